"""The files of a base are checked before anything is made of them.

Nothing of a base is executed: no pickle is opened and no Python file is read. Only the files named here are
downloaded and carried on.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ShortVError, one_line
from ..files import read_json
from ..records import CONFIG_NAME, INDEX_NAME, WEIGHTS_NAME
from .families import Family, family_of
from .model import BaseModel, find_image_token

if TYPE_CHECKING:
    pass

_SHARD = re.compile(r"[\w-][\w.-]*\.safetensors", re.ASCII)
# No size in a config comes near these.
_LARGEST = 1 << 31
_MOST_LAYERS = 1 << 12
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

# The files beside the weights that a user of the model needs, and those that its licence asks to keep.
CARRIED = re.compile(
    r"(?:preprocessor_config|processor_config|video_preprocessor_config|chat_template|generation_config"
    r"|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json"
    r"|chat_template\.jinja|tokenizer\.model|merges\.txt"
    r"|(?i:(?:LICENSE|LICENCE|NOTICE|COPYING|USE_POLICY)[\w-]*(?:\.(?:txt|md))?)",
    re.ASCII,
)
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


def inspect_files(
    name: str, folder: Path, names: Collection[str]
) -> tuple[dict[str, Any], Family, list[str], list[str]]:
    """Checks everything but the weights themselves.

    Args:
        name: the base, for messages.
        folder: where its small files are.
        names: all files of the repository or folder.

    Returns:
        Its config, its family, the names of the small files that a package carries, and of the weight files.
    """
    if CONFIG_NAME not in names:
        raise ShortVError(f"{name} has no {CONFIG_NAME}, so it is not a transformers model; give one that is.")
    if "adapter_config.json" in names:
        raise ShortVError(f"{name} holds an adapter; merge it into its model and give the merged model.")
    carried = [file for file in names if CARRIED.fullmatch(file)]
    for file in (CONFIG_NAME, *carried):
        _check_link(name, folder, file)
    config = read_json(folder / CONFIG_NAME)
    if not isinstance(config, dict):
        raise ShortVError(f"{name}: its {CONFIG_NAME} is not a JSON object.")
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
    find_image_token(config, name)
    base = BaseModel(name, None, None, Path(), config, family, ())
    try:
        _check_size(name, "num_hidden_layers", base.num_layers, most=_MOST_LAYERS)  # before so many are looked at
        visual_tokens = base.configured_visual_tokens
        shapes = base.layer_shapes
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ShortVError(f"{name}: its {CONFIG_NAME} is not valid: {one_line(error)}") from error
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
        raise ShortVError(f"{name}: its {CONFIG_NAME} gives {what} {size!r:.40}, which is not a positive integer.")


def check_code(name: str, config: dict[str, Any]) -> None:
    """Refuses entries with which transformers would fetch code, or open other files than those that were checked."""
    # At the top, `auto_map` is left out of packages: a base that transformers knows loads without it.
    asks = bool(_values([*config.values()], "auto_map")) or "transformers_weights" in config
    for key in ("attn_implementation", "_attn_implementation", "experts_implementation"):
        # A name with a slash is a repository of kernels.
        asks = asks or "/" in str(_values(config, key))
    if asks:
        raise ShortVError(
            f"{name}: its {CONFIG_NAME} asks for code or weights from elsewhere (auto_map, attn_implementation or "
            "transformers_weights), which is never run or carried on."
        )


def _weight_files(name: str, folder: Path, names: Collection[str]) -> list[str]:
    """The weight files that transformers would load, in the order in which it looks."""
    if WEIGHTS_NAME in names:
        return [WEIGHTS_NAME]
    if INDEX_NAME in names:
        shards = sorted(set(_weight_map(name, folder).values()))
        missing = [shard for shard in shards if shard not in names]
        if missing:
            raise ShortVError(
                f"{name}: {missing[0]}, which its {INDEX_NAME} names, is missing; complete the download."
            )
        return [INDEX_NAME, *shards]
    pickles = sorted(file for file in names if file.endswith(_PICKLES))
    if pickles:
        raise ShortVError(
            f"{name} has its weights only as pickle files ({pickles[0]}), which can run code when opened; "
            "convert to safetensors first (https://huggingface.co/spaces/safetensors/convert)."
        )
    raise ShortVError(f"{name} has no weights: neither {WEIGHTS_NAME} nor {INDEX_NAME}.")


def _weight_map(name: str, folder: Path) -> dict[str, str]:
    """The index: tensor name to shard name, every one of them a plain file name."""
    _check_link(name, folder, INDEX_NAME)
    index = read_json(folder / INDEX_NAME)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ShortVError(f"{name}: its {INDEX_NAME} has no weight_map; complete the download.")
    for shard in weight_map.values():
        if not isinstance(shard, str) or not _SHARD.fullmatch(shard):
            raise ShortVError(
                f"{name}: its {INDEX_NAME} names {shard!r:.100}, which is not a safetensors file beside it."
            )
    return weight_map


def check_weights(name: str, folder: Path, weights: Collection[str]) -> None:
    """Opens every shard's header: whole, consistent with the file's size, and holding what the index says."""
    from safetensors import SafetensorError, safe_open

    tensors = {}
    for file in weights:
        _check_link(name, folder, file)
        if file == INDEX_NAME:
            continue
        try:
            # Checks the header's length and JSON, and that the tensors fill the rest of the file exactly.
            with safe_open(folder / file, framework="numpy") as shard:
                tensors[file] = set(shard.keys())
        except (SafetensorError, OSError, ValueError) as error:
            raise ShortVError(
                f"{name}: {file} is truncated or damaged ({one_line(error)}); download it again."
            ) from error
    if INDEX_NAME in weights:
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
