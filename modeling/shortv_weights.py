"""Loading the weights of a ShortV model.

Weights keep their names from the base's repository, which may differ from the module names. transformers converts
such names for its own classes only; this file registers the same conversion for ShortV classes. A repository without
weights loads those of its base, at the commit pinned in its config.
"""

import json
import re
from pathlib import Path

from transformers import GenerationConfig
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME, cached_file
from transformers.utils.hub import EntryNotFoundError, hf_hub_download

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_PLACE = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


class ShortVWeights:
    """Mixin for a model class: converts weight names as for the stock model type `weights_of`.

    Without weights beside `config.json`, loads those of its `"shortv_base": {"repo_id": ..., "revision": ...}`.
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
        vars(config).pop("shortv_base", None)  # once in memory, the model is saved with its weights
        super().__init__(config, *args, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, config=None, **kwargs):
        """Loads as the stock method does; see the class for where the weights come from."""
        name, place = pretrained_model_name_or_path, {key: kwargs[key] for key in _PLACE if key in kwargs}

        def find(file):
            return name and cached_file(name, file, _raise_exceptions_for_missing_entries=False, **place)

        config_file = find(CONFIG_NAME)
        base = json.loads(Path(config_file).read_text("utf-8")).get("shortv_base") if config_file else None
        if base is None or kwargs.get("variant") or any(map(find, _WEIGHTS)):
            return super().from_pretrained(name, *args, config=config, **kwargs)
        if find(GENERATION_CONFIG_NAME):
            kwargs.setdefault("generation_config", GenerationConfig.from_pretrained(name, **place))
        # Only the weights of the base's repository are used: no code, no pickle files.
        if "_adapter_model_path" not in (kwargs.get("adapter_kwargs") or {}):
            kwargs.pop("adapter_kwargs", None)  # AutoModel found no adapter
        kwargs |= {"use_safetensors": True, "trust_remote_code": False}
        repo_id, revision = _pinned(base)
        kwargs |= {"revision": revision, "subfolder": ""}
        config = Path(config_file).parent if config is None else config
        try:
            folder = _download_weights(repo_id, **{**place, "revision": revision, "subfolder": None})
            loaded = super().from_pretrained(folder, *args, config=config, **kwargs)
        except (OSError, EntryNotFoundError) as error:
            raise OSError(
                f"{name} has no weights of its own, and those of {repo_id} at revision {revision} "
                f"could not be loaded: {' '.join(str(error).split())}"
            ) from error
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.name_or_path = model.config.name_or_path = str(name)
        return loaded


def _pinned(base):
    """`shortv_base` as the id of a repository on the Hub and a commit: whoever loads it gets the same weights."""
    repo_id, revision = (base.get("repo_id"), base.get("revision")) if isinstance(base, dict) else (None, None)
    pinned = re.fullmatch(r"(\w[\w.-]*/)?\w[\w.-]*@[0-9a-f]{40}", f"{repo_id}@{revision}", re.ASCII)
    if not pinned or not isinstance(repo_id, str):
        raise ValueError(f"`shortv_base` in config.json must name a repository on the Hub and a commit, not {base!r}.")
    return repo_id, revision


def _download_weights(repo_id, **place):
    """The folder of a repository's weights in the Hub's cache, whatever folders of its name there are elsewhere."""
    try:
        return Path(hf_hub_download(repo_id, "model.safetensors", **place)).parent
    except EntryNotFoundError:
        index = Path(hf_hub_download(repo_id, "model.safetensors.index.json", **place))
    for shard in sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values())):
        hf_hub_download(repo_id, shard, **place)
    return index.parent
