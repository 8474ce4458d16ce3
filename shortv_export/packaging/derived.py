"""Classes that transformers finds by the base's model type, and that a package therefore has to name.

A package has a model type of its own, by which transformers finds neither a processor nor its parts. It also corrects
the tokenizer class of some model types: for LLaVA it takes ``tokenizer.json`` as it is, since the `LlamaTokenizer`
that many repositories name would split the text after an image differently. So where a file of the base does not name
the class that transformers loads for it, the package's file does. The rest of the file is the base's.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..base import BaseModel, entering, in_worker, load_processor
from ..errors import ShortVError, one_line
from ..files import json_text, read_json, scratch_folder, write_json, write_text
from ..records import CONFIG_NAME, TOKENIZER_CONFIG_NAME, WEIGHT_FILES
from .json_fields import with_field

Changes = Mapping[str, Mapping[str, str | None]]
"""Field -> ``{"base", "package"}``, as `Recipe.derived` has it for one file."""

_PROCESSOR = "processor_config.json"
_IMAGES = "preprocessor_config.json"
_VIDEOS = "video_preprocessor_config.json"
# Field -> the auto class that reads it. The processor comes last, as it loads the others.
_AUTO = {
    "image_processor_type": "AutoImageProcessor",
    "video_processor_type": "AutoVideoProcessor",
    "feature_extractor_type": "AutoFeatureExtractor",
    "tokenizer_class": "AutoTokenizer",
    "processor_class": "AutoProcessor",
}


def derive_fields(base: BaseModel) -> dict[str, dict[str, dict[str, str | None]]]:
    """The fields that a package of this base has to change in the base's files (see `Recipe.derived`).

    Raises:
        ShortVError: the processor cannot be loaded, or not from a package.
    """
    from transformers import AutoProcessor, AutoTokenizer  # noqa: F401  # imported here, a fork has them

    with scratch_folder("shortv-classes") as folder:
        derived: dict[str, dict[str, dict[str, str | None]]] = in_worker(base.name, _derive, base, folder)
    return derived


def _derive(base: BaseModel, folder: Path) -> dict[str, dict[str, dict[str, str | None]]]:
    """`derive_fields`, in a worker."""
    loaded = _load_base(base)
    derived: dict[str, dict[str, dict[str, str | None]]] = {}
    view = _as_package(base, folder)
    for field, part in loaded.items():
        found = _load(view, field)
        if _class(found) != _class(part):
            file, place = _place(view, field)
            text = (view / file).read_bytes().decode() if (view / file).exists() else None
            change = {**_named(text, place, base.name, file), "package": _class(part)}
            write_text(view / file, derived_text(text, {place: change}, f"{base.name}: its {file}"))
            derived.setdefault(file, {})[place] = change
            found = _load(view, field)
        _check_same(base.name, part, found)
    return derived


def derived_text(text: str | None, changes: Changes, what: str) -> str:
    """The text of a package's file.

    Args:
        text: the base's; None if it has no such file.
        changes: of the recipe, for this file.
        what: names the file in an error.

    Raises:
        ShortVError: the base's text is not the one that the changes are for.
    """
    if text is None:
        return json_text({field: change["package"] for field, change in changes.items()})
    return _changed(text, list(changes.items()), "base", "package", what)


def base_text(text: str, changes: Changes, what: str) -> str:
    """The text of a base's file, given the package's (see `derived_text`).

    Raises:
        ShortVError: the package's text is not the one that the changes made.
    """
    return _changed(text, list(changes.items())[::-1], "package", "base", what)


def _changed(text: str, changes: list[tuple[str, Any]], before: str, after: str, what: str) -> str:
    try:
        for field, change in changes:
            old, new = (json.dumps(change[key]) if key in change else None for key in (before, after))
            text = with_field(text, field, old, new)
    except ValueError as error:
        raise ShortVError(f"{what} cannot be read as JSON with a class to change: {one_line(error)}.") from None
    return text


def _load_base(base: BaseModel) -> dict[str, Any]:
    """What transformers loads for a base, by the field that can name its class."""
    from transformers import AutoTokenizer

    entering("tokenizer", "cannot be loaded")
    tokenizer = AutoTokenizer.from_pretrained(base.path, trust_remote_code=False, local_files_only=True)
    processor = load_processor(base.path)
    parts = {field: getattr(processor, field.removesuffix("_type"), None) for field in _AUTO}
    loaded = {field: part for field, part in parts.items() if part is not None}
    return {**loaded, "tokenizer_class": tokenizer, "processor_class": processor}


def _load(folder: Path, field: str) -> Any:
    """What transformers loads for a folder; None if it finds nothing."""
    import transformers

    auto: Any = getattr(transformers, _AUTO[field])
    entering("processor", "cannot be loaded from a package")
    try:
        return auto.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception:  # transformers raises many kinds
        return None


def _check_same(name: str, wanted: Any, found: Any) -> None:
    """Refuses a base whose part would be another one in a package."""
    if _class(found) != _class(wanted):
        reason = f"is a {_class(wanted)}, but in a package a {_class(found)}"
    elif _rules(found) != _rules(wanted):
        reason = "splits text otherwise in a package"
    else:
        return
    part = type(wanted).__name__
    raise ShortVError(
        f"{name}: transformers loads its {part} by the model type: it {reason}; save it with `save_pretrained` and "
        "put these files into the base."
    )


def _rules(part: Any) -> str | None:
    """How a tokenizer, or a processor's tokenizer, splits text; None for other parts."""
    backend = getattr(getattr(part, "tokenizer", part), "backend_tokenizer", None)
    return None if backend is None else backend.to_str()


def _class(part: Any) -> str:
    """The name of a part's class in files: without the ending for its backend, which transformers chooses anew."""
    name = type(part).__name__
    if name == "MistralCommonBackend":  # needs mistral-common; without it, transformers takes the other
        return "TokenizersBackend"
    return name.removesuffix("Pil").removesuffix("Fast") if "Processor" in name else name


def _as_package(base: BaseModel, folder: Path) -> Path:
    """A folder with the base's small files, and no model type that transformers knows, as a package has none."""
    for name in base.files:
        if not name.endswith(WEIGHT_FILES):
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(base.path / name, folder / name)
    named = {field: base.config[field] for field in (*_AUTO, "transformers_version") if field in base.config}
    write_json(folder / CONFIG_NAME, {**named, "model_type": ""})
    return folder


def _place(folder: Path, field: str) -> tuple[str, str]:
    """The file, and the field in it, where transformers looks for the name of a class."""
    if field == "tokenizer_class":
        return TOKENIZER_CONFIG_NAME, field
    has_processor = (folder / _PROCESSOR).exists()
    if field == "processor_class":
        return _PROCESSOR if has_processor else _IMAGES, field
    part = field.removesuffix("_type")
    if has_processor and part in read_json(folder / _PROCESSOR):
        return _PROCESSOR, f"{part}.{field}"
    return _VIDEOS if part == "video_processor" and (folder / _VIDEOS).exists() else _IMAGES, field


def _named(text: str | None, place: str, name: str, file: str) -> dict[str, str | None]:
    """``{"base": value}`` of a field in the base's file; empty if it has none."""
    value = json.loads(text) if text else {}
    for part in place.split("."):
        if not isinstance(value, dict) or part not in value:
            return {}
        value = value[part]
    if value is not None and not (isinstance(value, str) and value.isidentifier() and value.isascii()):
        raise ShortVError(f"{name}: its {file} has {place} {value!r:.40}, which is not a class; correct it.")
    return {"base": value}
