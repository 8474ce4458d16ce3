"""A base model: a Hub repository at one commit or a local folder, whose files have been checked.

Nothing of a base is ever executed: no pickle is opened, no Python file is read, and of all that lies in its
repository only the names listed here are downloaded and carried on.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .disk import bytes_to_download, check_space
from .errors import ShortVError, one_line
from .families import Family, family_of
from .flops import LayerShape, layer_shapes
from .hashing import file_sha256
from .recipe import BaseRecord, read_json
from .xet import plain_if_xet_fails

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

_CONFIG = "config.json"
_README = "README.md"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"[\w-][\w.-]*\.safetensors", re.ASCII)
# What visual tokens are counted in where no config says how many there are: LLaVA-1.5's picture.
_REFERENCE_PICTURE = (336, 336)
# No size in a config comes near these.
_LARGEST = 1 << 31
_MOST_LAYERS = 1 << 12
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

# The files beside the weights that a user of the model needs, and those that its licence asks to keep.
_CARRIED = re.compile(
    r"(?:preprocessor_config|processor_config|video_preprocessor_config|chat_template|generation_config"
    r"|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json"
    r"|chat_template\.jinja|tokenizer\.model|merges\.txt"
    r"|(?i:(?:LICENSE|LICENCE|NOTICE|COPYING|USE_POLICY)[\w-]*(?:\.(?:txt|md))?)",
    re.ASCII,
)
# Packages that some processors need, beside what this one depends on.
_OF_PROCESSORS = ("torchvision", "num2words", "sentencepiece", "tiktoken")
_PROCESSORS = ("processor_config.json", "preprocessor_config.json")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")

# The original LLaVA code's repositories, and the conversions that transformers loads.
_LLAVA_HF = {
    "liuhaotian/llava-v1.5-7b": "llava-hf/llava-1.5-7b-hf",
    "liuhaotian/llava-v1.5-13b": "llava-hf/llava-1.5-13b-hf",
    "liuhaotian/llava-v1.6-vicuna-7b": "llava-hf/llava-v1.6-vicuna-7b-hf",
    "liuhaotian/llava-v1.6-vicuna-13b": "llava-hf/llava-v1.6-vicuna-13b-hf",
    "liuhaotian/llava-v1.6-mistral-7b": "llava-hf/llava-v1.6-mistral-7b-hf",
    "liuhaotian/llava-v1.6-34b": "llava-hf/llava-v1.6-34b-hf",
}


@dataclass(frozen=True)
class BaseModel:
    """A resolved, pinned and checked base.

    Attributes:
        name: the base as the user wrote it.
        repo_id: on the Hub; None for a local folder.
        revision: the commit, 40 hex digits; None for a local folder.
        path: the folder of its files: a snapshot in the Hub's cache, or the local folder.
        config: its ``config.json`` as it stands, without the defaults that it leaves out.
        family: how it becomes a ShortV model.
        files: sorted names of the files that a package carries unchanged: not ``config.json``, not the card.
    """

    name: str
    repo_id: str | None
    revision: str | None
    path: Path
    config: dict[str, Any]
    family: Family
    files: tuple[str, ...]

    @cached_property
    def complete_config(self) -> dict[str, Any]:
        """`config` with every default filled in by the stock class."""
        return _complete(self.config, self.name)

    @property
    def text_config(self) -> dict[str, Any]:
        """The language model's config, complete."""
        return self.complete_config["text_config"]

    @property
    def num_layers(self) -> int:
        """Decoder layers of the language model."""
        return self.text_config["num_hidden_layers"]

    @property
    def layer_shapes(self) -> tuple[LayerShape, ...]:
        """The widths of every decoder layer."""
        return layer_shapes(self.text_config)

    @cached_property
    def visual_tokens(self) -> int:
        """Visual tokens of one image, or of one tile where the family cuts images into tiles.

        Where the config does not tell, the processor is asked: how many it makes of a square picture.

        Raises:
            ShortVError: the processor cannot be loaded, or makes none.
        """
        tokens = self._configured_visual_tokens
        return _processed_visual_tokens(self) if tokens is None else tokens

    @property
    def prompt_visual_tokens(self) -> int:
        """Visual tokens of the paper's cost model: 576 for LLaVA-1.5, 2880 for LLaVA-NeXT."""
        return self.family.tiles * self.visual_tokens

    @property
    def image_token_id(self) -> int:
        """The id that stands in ``input_ids`` wherever a visual token is."""
        return _image_token_id(self.config)

    @property
    def weight_bytes(self) -> int:
        """Size of the weight files, whether they are here yet or not.

        Raises:
            ShortVError: they are not, and the Hub cannot be asked.
        """
        names = [name for name in self.files if name.endswith(".safetensors")]
        if self.repo_id is None or all((self.path / name).exists() for name in names):
            return sum((self.path / name).stat().st_size for name in names)
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HTTPError

        try:
            info = HfApi().model_info(self.repo_id, revision=self.revision, files_metadata=True)
        except (HTTPError, OSError) as error:
            raise hub_error(error, f"model {self.name}") from error
        return sum(file.size or 0 for file in info.siblings or () if file.rfilename in names)

    @property
    def _configured_visual_tokens(self) -> int | None:
        """`visual_tokens` by the config alone; None where it has no fields for them."""
        if type(self.config.get("image_seq_length")) is int:
            return self.config["image_seq_length"]
        vision = self.complete_config.get("vision_config") or {}
        strategy = self.complete_config.get("vision_feature_select_strategy")
        image_size, patch_size = (vision.get(name) for name in ("image_size", "patch_size"))
        if strategy is None or image_size is None or patch_size is None or isinstance(image_size, list | tuple):
            return None
        if self.complete_config.get("downsample_factor"):  # several patches become a token
            return None
        patches = (image_size // patch_size) ** 2
        # CLIP puts a class token before the patches; "full" keeps it. Other vision models have none.
        return patches + (strategy == "full" and vision["model_type"] == "clip_vision_model")

    def record(self) -> BaseRecord:
        """The pin of a recipe: sha256 and size of every file in `files` (reads all of them, large ones once)."""

        def entry(name: str) -> dict[str, Any]:
            path = self.path / name
            return {"sha256": file_sha256(path, remembered=True), "size": path.stat().st_size}

        # Hashing takes a core per file; more readers than this only wait for the disk.
        with ThreadPoolExecutor(max_workers=4) as workers:
            files = dict(zip(self.files, workers.map(entry, self.files), strict=True))
        return BaseRecord(self.repo_id, self.revision, file_sha256(self.path / _CONFIG), files)


def resolve_base(
    base: str | Path, *, revision: str | None = None, weights: bool = True, token: str | None = None
) -> BaseModel:
    """Finds a base model, pins it and checks its files.

    A base on the Hub is refused for its config and its list of files before its weights are downloaded; with
    ``HF_HUB_OFFLINE=1`` it is taken from the cache.

    Args:
        base: a Hub id or a local folder (a folder that exists comes first).
        revision: branch, tag or commit of a Hub repository; None is its main branch.
        weights: fetch and check the weights too. Without them the result can be looked at, not loaded or packaged.
        token: Hub access token; None takes the one that is logged in.

    Raises:
        ShortVError: it does not exist or cannot be reached; its family is not supported; its files are
            incomplete, damaged, unsafe or in a layout that transformers does not load.
    """
    name = str(base)
    folder = Path(base).expanduser()
    if name and folder.is_dir():
        if revision is not None:
            raise ShortVError(f"{name} is a local folder, which has no revisions; leave the revision out.")
        config, family, carried, shards = _inspect(name, folder, _files_in(folder))
        if weights:
            _check_weights(name, folder, shards)
        return BaseModel(name, None, None, folder, config, family, tuple(sorted({*carried, *shards})))
    if isinstance(base, Path) or not name or name[0] in "./~" or folder.exists():
        raise ShortVError(f"there is no folder {name!r}; give a Hub id such as llava-hf/llava-1.5-7b-hf, or a folder.")
    return _from_hub(name, revision, weights, token)


def load_base(
    base: BaseModel, *, dtype: Any = "auto", device_map: Any = None, max_memory: Any = None
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The stock model of a base, in eval mode, and its processor.

    Args:
        base: what to load.
        dtype, device_map, max_memory: as in ``from_pretrained``.

    Raises:
        ShortVError: it cannot be loaded, or its weights are not the ones that its config describes.
    """
    from transformers import AutoModelForImageTextToText

    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            base.path,
            dtype=dtype,
            device_map=device_map,
            max_memory=max_memory,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # transformers and torch raise many kinds; the cause stays for --debug
        raise ShortVError(f"{base.name} cannot be loaded: {one_line(error)}") from error
    model, loading = loaded
    for kind, keys in loading.items():
        if keys:
            what = kind.replace("_", " ")
            example = min(map(str, keys))
            raise ShortVError(
                f"{base.name}: its weights do not match its config ({len(keys)} {what}, such as {example}); "
                "use a base whose weights are complete."
            )
    return model.eval(), load_processor(base)


def load_processor(base: BaseModel) -> ProcessorMixin:
    """The processor of a base.

    Raises:
        ShortVError: it cannot be loaded.
    """
    from transformers import AutoProcessor

    try:
        processor: ProcessorMixin = AutoProcessor.from_pretrained(
            base.path, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # as above: tokenizers raises bare Exception
        if package := _missing_package(error):
            raise ShortVError(
                f"{base.name}: its processor needs {package}, which is not installed: pip install {package}."
            ) from error
        raise ShortVError(f"{base.name}: its processor cannot be loaded: {one_line(error)}") from error
    return processor


def _missing_package(error: Exception) -> str | None:
    """The package that a processor was not made for want of, if that is what an error of transformers says."""
    text = str(error).lower()
    return next((name for name in _OF_PROCESSORS if name in text and find_spec(name) is None), None)


def hub_error(error: Exception, what: str) -> ShortVError:
    """What went wrong on the way to the Hub, as one line.

    Args:
        error: raised by huggingface_hub.
        what: what was asked for, such as ``"model acme/base"``.
    """
    from huggingface_hub import errors, is_offline_mode

    if isinstance(error, errors.GatedRepoError):
        reason = "is gated; accept its conditions on its Hub page, then log in with `hf auth login`"
    elif isinstance(error, errors.RepositoryNotFoundError):
        reason = "is not on the Hub, or is private; check the name, or log in with `hf auth login`"
    elif isinstance(error, errors.RevisionNotFoundError):
        reason = "has no such revision; give a branch, a tag or a commit of it"
    elif is_offline_mode():
        reason = "is not in the cache, and HF_HUB_OFFLINE forbids to download it; unset that variable"
    elif isinstance(error, errors.HfHubHTTPError):
        reason = f"could not be read from the Hub, try again later: {one_line(error)}"
    elif isinstance(error, errors.HFValidationError):
        reason = "is neither a folder here nor a Hub id such as llava-hf/llava-1.5-7b-hf"
    else:
        reason = f"could not be reached ({one_line(error)}); check the network"
    return ShortVError(f"{what} {reason}.")


def _from_hub(name: str, revision: str | None, weights: bool, token: str | None) -> BaseModel:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError, OfflineModeIsEnabled

    what = f"model {name}" + (f" at revision {revision}" if revision else "")
    try:
        # By the revision as asked for, so that the cache can answer the same question offline.
        path = Path(snapshot_download(name, revision=revision, token=token, allow_patterns=[_CONFIG]))
        commit = path.name
        try:
            info = HfApi(token=token).model_info(name, revision=commit, files_metadata=weights)
        except OfflineModeIsEnabled:
            repo_id, names = name, _files_in(path)
            config, family, carried, shards = _inspect(name, path, names)
        else:
            # The canonical id: a renamed repository answers to its old name too.
            repo_id, names = info.id, {sibling.rfilename for sibling in info.siblings or ()}
            small = [file for file in names if file in (_CONFIG, _README, _INDEX) or _CARRIED.fullmatch(file)]
            snapshot_download(name, revision=commit, token=token, allow_patterns=small)
            config, family, carried, shards = _inspect(name, path, names)
            if weights:
                check_space(
                    path,
                    bytes_to_download(info, path, shards),
                    f"downloading the weights of {name}",
                    "make room there, or set HF_HOME to a folder on another disk",
                )
                plain_if_xet_fails(
                    lambda: snapshot_download(name, revision=commit, token=token, allow_patterns=[*small, *shards])
                )
    except (HTTPError, OSError, HFValidationError) as error:
        raise hub_error(error, what) from error
    if weights:
        _check_weights(name, path, shards)
    return BaseModel(name, repo_id, commit, path, config, family, tuple(sorted({*carried, *shards})))


def _files_in(folder: Path) -> set[str]:
    return {entry.name for entry in os.scandir(folder) if entry.is_file()}


def _inspect(name: str, folder: Path, names: Collection[str]) -> tuple[dict[str, Any], Family, list[str], list[str]]:
    """Checks everything but the weights themselves.

    Args:
        name: the base, for messages.
        folder: where its small files are.
        names: all files of the repository or folder.

    Returns:
        Its config, its family, the names of the small files that a package carries, and of the weight files.
    """
    if _CONFIG not in names:
        raise ShortVError(f"{name} has no {_CONFIG}, so it is not a transformers model; give one that is.")
    if "adapter_config.json" in names:
        raise ShortVError(f"{name} holds an adapter; merge it into its model and give the merged model.")
    carried = [file for file in names if _CARRIED.fullmatch(file)]
    for file in (_CONFIG, *carried):
        _check_link(name, folder, file)
    config = read_json(folder / _CONFIG)
    if not isinstance(config, dict):
        raise ShortVError(f"{name}: its {_CONFIG} is not a JSON object.")
    family = _check_config(name, config)
    for kind, wanted in (("processor", _PROCESSORS), ("tokenizer", _TOKENIZERS)):
        if not set(wanted) & set(carried):
            raise ShortVError(
                f"{name} has no {kind} ({' or '.join(wanted)}); add the files of the model it was made from."
            )
    for file in carried:
        # A package is loaded with trust_remote_code=True, and would then run what this entry names.
        if file.endswith("config.json") and _values(read_json(folder / file), "auto_map"):
            raise ShortVError(
                f"{name}: its {file} asks for code of its own (auto_map), which is never run or carried on."
            )
    return config, family, carried, _weight_files(name, folder, names)


def _check_config(name: str, config: dict[str, Any]) -> Family:
    """The family of a config that describes a model with an image token and sound sizes."""
    if "mm_vision_tower" in config or "LlavaLlamaForCausalLM" in str(config.get("architectures")):
        twin = _LLAVA_HF.get(name, "llava-hf/llava-1.5-7b-hf and its siblings")
        raise ShortVError(f"{name} is in the original LLaVA code's layout; use its transformers conversion: {twin}.")
    family = family_of(config, name)
    check_code(name, config)
    _image_token_id(config, name)
    base = BaseModel(name, None, None, Path(), config, family, ())
    try:
        _check_size(name, "num_hidden_layers", base.num_layers, most=_MOST_LAYERS)  # before so many are looked at
        visual_tokens = base._configured_visual_tokens
        shapes = base.layer_shapes
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ShortVError(f"{name}: its {_CONFIG} is not valid: {one_line(error)}") from error
    family.check(base.text_config, name)
    if visual_tokens is not None:  # else the processor will tell, where there is one to ask
        _check_size(name, "visual tokens", visual_tokens)
    for shape in shapes:
        for what, size in vars(shape).items():
            everywhere = ("hidden_size", "intermediate_size", *(() if shape.mixer_flops else _ATTENTION))
            _check_size(name, what, size, least=1 if what in everywhere else 0)
    return family


_ATTENTION = ("query_size", "key_value_size")  # of a layer that has attention


def _check_size(name: str, what: str, size: Any, *, least: int = 1, most: int = _LARGEST) -> None:
    if type(size) is not int or not least <= size <= most:
        raise ShortVError(f"{name}: its {_CONFIG} gives {what} {size!r:.40}, which is not a positive integer.")


def check_code(name: str, config: dict[str, Any]) -> None:
    """Refuses entries with which transformers would fetch code, or open other files than those that were checked."""
    # At the top, `auto_map` is left out of packages: a base that transformers knows loads without it.
    asks = bool(_values([*config.values()], "auto_map")) or "transformers_weights" in config
    for key in ("attn_implementation", "_attn_implementation", "experts_implementation"):
        # A name with a slash is a repository of kernels.
        asks = asks or "/" in str(_values(config, key))
    if asks:
        raise ShortVError(
            f"{name}: its {_CONFIG} asks for code or weights from elsewhere (auto_map, attn_implementation or "
            "transformers_weights), which is never run or carried on."
        )


def _image_token_id(config: Mapping[str, Any], name: str = "the base") -> int:
    for field in ("image_token_id", "image_token_index", "image_patch_id"):
        if type(config.get(field)) is int and config[field] >= 0:
            return config[field]
    raise ShortVError(
        f"{name}: its {_CONFIG} names no image token (image_token_index or image_token_id), "
        "so its visual tokens cannot be found; add it."
    )


def _processed_visual_tokens(base: BaseModel) -> int:
    """Visual tokens of one picture, counted in what the base's own processor makes of it."""
    from PIL import Image
    from transformers import AutoConfig

    from .oracle import visual_tokens

    processor: Any = load_processor(base)
    try:
        if getattr(processor, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": "?"}]
            prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        else:
            prompt = processor.image_token
        picture = Image.new("RGB", _REFERENCE_PICTURE)
        inputs = processor(images=[picture], text=[prompt], return_tensors="pt")
        config = AutoConfig.for_model(**copy.deepcopy(base.config))
        count = int(visual_tokens(config, inputs["input_ids"]).sum())
    except Exception as error:  # the processor classes raise many kinds
        raise ShortVError(f"{base.name}: its processor cannot be used: {one_line(error)}") from error
    if not count:
        raise ShortVError(f"{base.name}: its processor puts no image token into a prompt; complete its files.")
    return count


def _complete(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The config with the defaults of the stock class, which never runs code of the base."""
    from transformers import AutoConfig

    try:
        return AutoConfig.for_model(**copy.deepcopy(dict(config))).to_dict()
    except Exception as error:  # the config classes raise many kinds over wrong types and values
        raise ShortVError(f"{name}: its {_CONFIG} is not valid: {one_line(error)}") from error


def _weight_files(name: str, folder: Path, names: Collection[str]) -> list[str]:
    """The weight files that transformers would load, in the order in which it looks."""
    if _WEIGHTS in names:
        return [_WEIGHTS]
    if _INDEX in names:
        shards = sorted(set(_weight_map(name, folder).values()))
        missing = [shard for shard in shards if shard not in names]
        if missing:
            raise ShortVError(f"{name}: {missing[0]}, which its {_INDEX} names, is missing; complete the download.")
        return [_INDEX, *shards]
    pickles = sorted(file for file in names if file.endswith(_PICKLES))
    if pickles:
        raise ShortVError(
            f"{name} has its weights only as pickle files ({pickles[0]}), which can run code when opened; "
            "convert to safetensors first (https://huggingface.co/spaces/safetensors/convert)."
        )
    raise ShortVError(f"{name} has no weights: neither {_WEIGHTS} nor {_INDEX}.")


def _weight_map(name: str, folder: Path) -> dict[str, str]:
    """The index: tensor name to shard name, every one of them a plain file name."""
    _check_link(name, folder, _INDEX)
    index = read_json(folder / _INDEX)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ShortVError(f"{name}: its {_INDEX} has no weight_map; complete the download.")
    for shard in weight_map.values():
        if not isinstance(shard, str) or not _SHARD.fullmatch(shard):
            raise ShortVError(f"{name}: its {_INDEX} names {shard!r:.100}, which is not a safetensors file beside it.")
    return weight_map


def _check_weights(name: str, folder: Path, weights: list[str]) -> None:
    """Opens every shard's header: whole, consistent with the file's size, and holding what the index says."""
    from safetensors import SafetensorError, safe_open

    tensors = {}
    for file in weights:
        _check_link(name, folder, file)
        if file == _INDEX:
            continue
        try:
            # Checks the header's length and JSON, and that the tensors fill the rest of the file exactly.
            with safe_open(folder / file, framework="numpy") as shard:
                tensors[file] = set(shard.keys())
        except (SafetensorError, OSError, ValueError) as error:
            raise ShortVError(
                f"{name}: {file} is truncated or damaged ({one_line(error)}); download it again."
            ) from error
    if _INDEX in weights:
        for tensor, file in _weight_map(name, folder).items():
            if tensor not in tensors[file]:
                raise ShortVError(
                    f"{name}: {file} lacks the tensor {tensor!r:.99} that the index names; download it again."
                )


def _check_link(name: str, folder: Path, file: str) -> None:
    """Refuses a link that leaves the folder; a snapshot of the Hub's cache links to its ``../../blobs``."""
    root = folder.resolve()
    allowed = [root]
    if root.parent.name == "snapshots":
        allowed.append(root.parent.parent / "blobs")
    target = (folder / file).resolve()
    if not any(target.is_relative_to(place) for place in allowed):
        raise ShortVError(f"{name}: {file} is a link out of its folder; put the file itself there.")


def _values(value: Any, key: str) -> list[Any]:
    """What a JSON value has under this key, at any depth."""
    found, pending = [], [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            found += [item[key]] if key in item else []
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)
    return found
