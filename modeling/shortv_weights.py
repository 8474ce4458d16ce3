"""Where the weights of a ShortV model come from, and by which names they are read.

The weights keep the names they have in the base's repository, which may differ from those of the modules. transformers
knows how to read them for its own classes only; custom code must ask for the same, or parts of the model stay random.
And a repository without weights takes them from its base, at the commit that its config pins.
"""

import json
from pathlib import Path

from transformers import GenerationConfig
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME, cached_file

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_PLACE = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


class ShortVWeights:
    """Mixed in front of a model class: reads weights as its stock class does, of model type `weights_of`.

    Follows `"shortv_base": {"repo_id": ..., "revision": ...}` in `config.json`, unless there are weights beside it,
    which always win.
    """

    weights_of = None

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        for name in (cls.__name__.removeprefix("ShortV"), cls.weights_of):
            mapping = get_checkpoint_conversion_mapping(name)
            if mapping is not None:
                register_checkpoint_conversion_mapping(cls.__name__, mapping, overwrite=True)
                break

    def __init__(self, config, *args, **kwargs):
        vars(config).pop("shortv_base", None)  # a model in memory has weights of its own, wherever it is saved
        super().__init__(config, *args, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, config=None, **kwargs):
        """As the stock method, which is told where the weights are."""
        name, place = pretrained_model_name_or_path, {key: kwargs[key] for key in _PLACE if key in kwargs}

        def find(file):
            return name and cached_file(name, file, _raise_exceptions_for_missing_entries=False, **place)

        config_file = find(CONFIG_NAME)
        base = json.loads(Path(config_file).read_text("utf-8")).get("shortv_base") if config_file else None
        if base is None or kwargs.get("variant") or any(map(find, _WEIGHTS)):
            return super().from_pretrained(name, *args, config=config, **kwargs)
        if find(GENERATION_CONFIG_NAME):
            kwargs.setdefault("generation_config", GenerationConfig.from_pretrained(name, **place))
        # Of the base's repository only weights are used: no code, no pickle.
        if "_adapter_model_path" not in (kwargs.get("adapter_kwargs") or {}):
            kwargs.pop("adapter_kwargs", None)  # where AutoModel looked for an adapter, in vain
        kwargs |= {"use_safetensors": True, "trust_remote_code": False}
        there = {"revision": base["revision"], "subfolder": ""}
        config = Path(config_file).parent if config is None else config
        try:
            cached_file(
                base["repo_id"], CONFIG_NAME, **{**place, **there}
            )  # of all requests, this one says what is wrong
            loaded = super().from_pretrained(base["repo_id"], *args, config=config, **{**kwargs, **there})
        except OSError as error:
            raise OSError(
                f"{name} has no weights of its own, and those of {base['repo_id']} at revision {base['revision']} "
                f"could not be loaded: {str(error).splitlines()[0]}"
            ) from error
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.name_or_path = model.config.name_or_path = str(name)
        return loaded
