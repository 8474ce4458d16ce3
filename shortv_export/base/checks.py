"""Checks the files of a base before they are used.

Nothing of a base is executed: no pickle is opened and no Python file is read. Only `CARRIED` files, weights, the
config and the card are downloaded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ..errors import ShortVError, one_line, shown
from ..files import open_regular, read_json
from ..records import CARRIED, CONFIG_NAME, INDEX_NAME, SHARD, TEMPLATES_FOLDER, WEIGHTS_NAME
from .config import check_numbers
from .families import Family, family_of
from .model import BaseModel, find_image_token

# Far above the sizes in any real config.
_LARGEST = 1 << 31
_MOST_LAYERS = 1 << 12
_QUANTISED = ("F4", "F6", "F8", "I4", "I8", "U4", "U8")  # as safetensors names dtypes of few bits
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

_MIB = 1 << 20
_LARGE_FILES = ("tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json", "vocab.txt", "merges.txt")
_LIMITS = {
    INDEX_NAME: 64 * _MIB,
    **dict.fromkeys(_LARGE_FILES, 256 * _MIB),
    "chat_template.json": _MIB,
}
"""The largest size of a small file, in bytes, where that is not `_LIMIT`."""
_LIMIT = 4 * _MIB
_ADAPTER = re.compile(r"adapter_(?:config|model)\..+")
_PROCESSORS = ("processor_config.json", "preprocessor_config.json")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")

# Repositories in the layout of the original LLaVA code -> their conversions for transformers.
_LLAVA_HF = {
    "liuhaotian/llava-v1.5-7b": "llava-hf/llava-1.5-7b-hf",
    "liuhaotian/llava-v1.5-13b": "llava-hf/llava-1.5-13b-hf",
    "liuhaotian/llava-v1.6-vicuna-7b": "llava-hf/llava-v1.6-vicuna-7b-hf",
    "liuhaotian/llava-v1.6-vicuna-13b": "llava-hf/llava-v1.6-vicuna-13b-hf",
    "liuhaotian/llava-v1.6-mistral-7b": "llava-hf/llava-v1.6-mistral-7b-hf",
    "liuhaotian/llava-v1.6-34b": "llava-hf/llava-v1.6-34b-hf",
}


def inspect_files(name: str, folder: Path, names: Collection[str]) -> tuple[dict[str, Any], Family, tuple[str, ...]]:
    """Checks everything except the content of the weights.

    Args:
        name: the base, for messages.
        folder: where its small files are.
        names: of all files in the repository or folder (see `listing`).

    Returns:
        The config, the family, and the sorted names of the files that a package takes over, weights included.

    Raises:
        ShortVError: a file is missing, damaged, unsafe or not supported.
    """
    if CONFIG_NAME not in names:
        raise ShortVError(f"{name} has no {CONFIG_NAME}, so it is not a transformers model; give one that is.")
    _check_names(name, names)
    carried = [file for file in names if CARRIED.fullmatch(file)]
    for file in (CONFIG_NAME, *carried):
        _check_file(name, folder, file, most_bytes(file))
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
        fields = read_json(folder / file) if file.endswith("config.json") else None
        # Users load packages with trust_remote_code=True, which would run the code that `auto_map` names. An audio
        # tokenizer is a model of another repository.
        for field in ("auto_map", "audio_tokenizer"):
            if _values(fields, field):
                raise ShortVError(
                    f"{name}: its {file} asks for code or a model of its own ({field}), which is not supported; "
                    "use a base without."
                )
    files = tuple(sorted({*carried, *_weight_files(name, folder, names)}))
    _check_case(name, files)
    return config, family, files


def _check_names(name: str, names: Collection[str]) -> None:
    """Refuses files that change what the base computes or is asked, and that a package cannot take over."""
    if adapters := sorted(file for file in names if _ADAPTER.fullmatch(file)):
        raise ShortVError(
            f"{name} holds an adapter ({shown(adapters[0])}); merge it into its model and give the merged model."
        )
    if "audio_tokenizer_config.json" in names:
        raise ShortVError(
            f"{name} has an audio tokenizer, a model of its own, which is not supported; use a base without."
        )
    for file in sorted(names):
        if file.startswith(f"{TEMPLATES_FOLDER}/") and file.endswith(".jinja") and not CARRIED.fullmatch(file):
            raise ShortVError(
                f"{name}: the chat template {shown(file)} cannot be packaged by this name; "
                "rename it with letters, digits and . _ - only."
            )


def _check_case(name: str, files: Collection[str]) -> None:
    """Refuses names that are one name to the disks of macOS and Windows."""
    seen: dict[str, str] = {}
    for file in files:
        if other := seen.get(file.lower()):
            raise ShortVError(f"{name}: {other} and {file} differ by case only, which many disks ignore; rename one.")
        seen[file.lower()] = file


def most_bytes(file: str) -> int:
    """The largest size of a base's small file, in bytes."""
    return _LIMITS.get(file, _MIB if file.endswith(".jinja") else _LIMIT)


def _check_config(name: str, config: dict[str, Any]) -> Family:
    """The family of a config, which must name an image token and have plausible sizes."""
    if "mm_vision_tower" in config or "LlavaLlamaForCausalLM" in str(config.get("architectures")):
        twin = _LLAVA_HF.get(name, "llava-hf/llava-1.5-7b-hf and its siblings")
        raise ShortVError(f"{name} is in the original LLaVA code's layout; use its transformers conversion: {twin}.")
    family = family_of(config, name)
    check_code(name, config)
    check_numbers(name, config)
    for key in ("quantization_config", "compression_config"):
        if found := [value for value in _values(config, key) if value]:
            method = found[0].get("quant_method") if isinstance(found[0], dict) else None
            raise _quantised(name, method if isinstance(method, str) else key)
    image_token = find_image_token(config, name)
    base = BaseModel(name, None, None, Path(), config, family, ())
    try:
        _check_size(name, "num_hidden_layers", base.num_layers, most=_MOST_LAYERS)  # before looping over them
        visual_tokens = base.configured_visual_tokens
        shapes = base.layer_shapes
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ShortVError(f"{name}: its {CONFIG_NAME} is not valid: {one_line(error)}") from error
    family.check(base.text_config, name)
    if visual_tokens is not None:  # otherwise the processor is asked later
        _check_size(name, "visual tokens", visual_tokens)
    for shape in shapes:
        positive = {"hidden_size", "intermediate_size"}
        if not shape.mixer_flops:  # the layer has attention
            positive |= {"query_size", "key_value_size"}
        for what, size in vars(shape).items():
            _check_size(name, what, size, least=1 if what in positive else 0)
    known = base.skeleton.embeddings
    if family.embeds_placeholders and image_token >= known:
        raise ShortVError(
            f"{name}: its {CONFIG_NAME} names the image token {image_token}, but its model has {known} embeddings; "
            "correct image_token_id."
        )
    return family


def _quantised(name: str, how: str) -> ShortVError:
    """Weights are measured, compared and published as they are; quantised ones would need their libraries for that."""
    return ShortVError(
        f"{name}: its weights are quantised ({shown(how)}), which is not supported; give the model before "
        "quantisation, and quantise the package when you load it."
    )


def _check_size(name: str, what: str, size: Any, *, least: int = 1, most: int = _LARGEST) -> None:
    if type(size) is not int or not least <= size <= most:
        raise ShortVError(f"{name}: its {CONFIG_NAME} has {what} {size!r:.40}; use an integer from {least} to {most}.")


def check_code(name: str, config: dict[str, Any]) -> None:
    """Refuses a config that makes transformers fetch code or open files that were not checked.

    Raises:
        ShortVError: the config does that.
    """
    # An `auto_map` at the top level is harmless: transformers knows the family, and packages leave the entry out.
    asks = bool(_values([*config.values()], "auto_map"))
    # These fields name other files: of weights, and of configs for other releases of transformers.
    asks = asks or not config.keys().isdisjoint(("transformers_weights", "configuration_files"))
    for key in ("attn_implementation", "_attn_implementation", "experts_implementation"):
        # A name with a slash is a Hub repository of kernels.
        asks = asks or "/" in str(_values(config, key))
    if asks:
        raise ShortVError(
            f"{name}: its {CONFIG_NAME} asks for code or weights from elsewhere (auto_map, attn_implementation, "
            "transformers_weights or configuration_files), which is not supported; use a base without."
        )


def _weight_files(name: str, folder: Path, names: Collection[str]) -> list[str]:
    """The weight files that transformers would load: it looks for a single file first, then for an index."""
    if WEIGHTS_NAME in names:
        return [WEIGHTS_NAME]
    if INDEX_NAME in names:
        shards = sorted(set(_weight_map(name, folder).values()))
        missing = [shard for shard in shards if shard not in names]
        if missing:
            raise ShortVError(f"{name}: {missing[0]}, which its {INDEX_NAME} names, is missing; download it.")
        return [INDEX_NAME, *shards]
    pickles = sorted(file for file in names if file.endswith(_PICKLES))
    if pickles:
        raise ShortVError(
            f"{name} has its weights only as pickle files ({pickles[0]}), which can run code when opened; "
            "convert to safetensors first (https://huggingface.co/spaces/safetensors/convert)."
        )
    raise ShortVError(f"{name} has no weights: neither {WEIGHTS_NAME} nor {INDEX_NAME}.")


def _weight_map(name: str, folder: Path) -> dict[str, str]:
    """The index: tensor name -> shard, which must be a plain file name."""
    _check_file(name, folder, INDEX_NAME, most_bytes(INDEX_NAME))
    index = read_json(folder / INDEX_NAME)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ShortVError(f"{name}: its {INDEX_NAME} has no weight_map; complete the download.")
    for shard in weight_map.values():
        if not isinstance(shard, str) or not SHARD.fullmatch(shard):
            raise ShortVError(
                f"{name}: its {INDEX_NAME} names {shard!r:.99}, which is not a safetensors file beside it."
            )
    return weight_map


def check_weights(base: BaseModel) -> None:
    """Checks the header of every weight file against the file's size, the index and the size of the stock model.

    Raises:
        ShortVError: a file is missing, truncated or damaged, or lacks a tensor of the index; or the config describes a
            model of another size.
    """
    from safetensors import SafetensorError, safe_open

    name, folder, weights = base.name, base.path, base.weight_files
    tensors, numbers = {}, 0
    for file in weights:
        _check_file(name, folder, file)
        if file == INDEX_NAME:
            continue
        try:
            # This checks that the header is valid and that the tensors fill the rest of the file exactly.
            with safe_open(folder / file, framework="numpy") as shard:
                tensors[file] = set(shard.keys())
                numbers += sum(math.prod(shard.get_slice(tensor).get_shape()) for tensor in tensors[file])
                dtypes = {shard.get_slice(tensor).get_dtype() for tensor in tensors[file]}
        except (SafetensorError, OSError, ValueError) as error:
            reason = one_line(error)
            raise ShortVError(f"{name}: {file} is truncated or damaged ({reason}); download it again.") from error
        if quantised := sorted(dtype for dtype in dtypes if dtype.startswith(_QUANTISED)):
            raise _quantised(name, f"{quantised[0]} in {file}")
    if INDEX_NAME in weights:
        for tensor, file in _weight_map(name, folder).items():
            if tensor not in tensors[file]:
                raise ShortVError(
                    f"{name}: {file} lacks the tensor {tensor!r:.99} that the index names; download it again."
                )
    # Tied weights may be stored twice, and some files hold tensors that no model uses.
    described = base.skeleton.parameters
    if not described / 2 <= numbers <= described * 2:
        raise ShortVError(
            f"{name}: its {CONFIG_NAME} describes a model of {described / 1e6:,.1f} million parameters, but its "
            f"weights are {numbers / 1e6:,.1f} million; use a complete base."
        )


def _check_file(name: str, folder: Path, file: str, most: int | None = None) -> None:
    """Refuses what is no regular file, a link to outside the folder, and a file of more than `most` bytes."""
    try:
        open_regular(folder / file, folder=folder, most=most).close()
    except ShortVError as error:
        raise ShortVError(f"{name}: {error}") from None


def _values(value: Any, key: str) -> list[Any]:
    """All values under this key in a JSON value, at any depth."""
    found, pending = [], [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            found += [item[key]] if key in item else []
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)
    return found
