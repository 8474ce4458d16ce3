"""A base model and a selection become a package: the finished folder, ready to publish.

Weights are never re-serialised: each file of the base is carried bit for bit, weights as hard links where the
file system allows it. What the package adds is the remote code, a `config.json` that names it, the recipe and
the card.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import card
from .base_model import BaseModel
from .errors import ShortVError
from .families import FAMILIES, Family, modeling_dir
from .flops import flops_ratio
from .recipe import RECIPE_NAME, Recipe, Scores, Selection, json_text, library_versions, read_json, write_text

CONFIG_NAME = "config.json"

_TEXT_TOKENS = 64  # what the paper counts with

# What git, the Hub and `hf download --local-dir` put beside a package's files.
_NOT_OURS = {".gitattributes", ".cache", ".git"}

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: its name, whether it is right, and what was seen."""

    name: str
    passed: bool
    detail: str


def build_package(
    base: BaseModel,
    out: Path,
    selection: Selection,
    *,
    scores: Scores | None = None,
    license: str | None = None,
    repo_id: str | None = None,
) -> Path:
    """Writes the package: whole or not at all.

    The same arguments give the same bytes. The folder is made beside `out`, hidden, and renamed when
    complete.

    Args:
        base: the base model.
        out: the folder to make; it may exist if it is empty.
        selection: which layers to freeze.
        scores: the Layer Contributions behind the selection; the recipe and the card's figure show them.
        license: the card's licence, for a base whose own card names none.
        repo_id: where it will be published, for the card. Left out, `hub.push_package` fills it in.

    Returns:
        The absolute path of `out`.

    Raises:
        ShortVError: `out` is a file or not empty, or cannot be written; the selection or the scores are for
            another model; the licence is unknown.
    """
    out = Path(os.path.abspath(out))
    _check_target(out)
    _check_fit(base, selection, scores)
    inherited = card.inherited_metadata(base, license)
    with _becoming(out) as folder:
        record = base.record()
        for name, entry in record.files.items():
            _carry(base.path / name, folder / name, entry["sha256"])
        for name in base.family.code:
            shutil.copyfile(modeling_dir() / name, folder / name)
        write_text(folder / CONFIG_NAME, _config(base, selection.frozen_layers))
        recipe = Recipe(
            base=record,
            family=base.family.model_type,
            num_layers=base.num_layers,
            frozen_layers=selection.frozen_layers,
            selection=asdict(selection),
            scores=asdict(scores) if scores else None,
            cost=_cost(base, selection),
            code={name: file_sha256(folder / name) for name in base.family.code},
            versions=library_versions(),
        )
        write_text(folder / RECIPE_NAME, json_text(recipe.to_dict()))
        if scores:
            (folder / card.FIGURE_NAME).write_bytes(card.draw_scores(scores, selection.frozen_layers))
        text = card.render_card(base, recipe, inherited, tag=recipe_tag(folder), repo_id=repo_id)
        write_text(folder / card.CARD_NAME, text)
    return out


def expected_files(recipe: Recipe) -> set[str]:
    """The names of all files of a package, no more and no less."""
    names = {*recipe.base.files, *recipe.code, CONFIG_NAME, RECIPE_NAME, card.CARD_NAME}
    return names | {card.FIGURE_NAME} if recipe.scores else names


def recipe_tag(package: Path) -> str:
    """A package's tag on the Hub, named after its recipe's hash: a card cannot name its own commit."""
    return f"shortv-{file_sha256(package / RECIPE_NAME)[:12]}"


def inspect_package(package: Path, *, names: set[str] | None = None, weights: bool = True) -> list[Check]:
    """Looks at a package's files without running anything of it.

    Args:
        package: the folder.
        names: what it holds; the folder's own listing if not given. A repository's is longer than its
        download. weights: hash the weight files too, which reads all of them.

    Returns:
        The checks in order, up to and including the first that failed: later ones need earlier ones.
    """
    found = ({entry.name for entry in package.iterdir()} if names is None else names) - _NOT_OURS
    try:
        recipe = Recipe.load(package / RECIPE_NAME)
    except ShortVError as error:
        return [Check("recipe", False, str(error))]
    looks: tuple[tuple[str, Callable[[], str]], ...] = (
        ("recipe", lambda: _look_at_recipe(recipe)),
        ("files", lambda: _look_at_files(recipe, found)),
        ("hashes", lambda: _look_at_hashes(package, recipe, weights)),
        ("remote code", lambda: _look_at_code(package, recipe)),
        ("config", lambda: _look_at_config(package, recipe)),
    )
    checks: list[Check] = []
    for name, look in looks:
        try:
            checks.append(Check(name, True, look()))
        except ShortVError as error:
            return [*checks, Check(name, False, str(error))]
    return checks


def file_sha256(path: Path) -> str:
    """A file's sha256, in hexadecimal.

    Raises:
        ShortVError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise ShortVError(f"cannot read {path}: {error.strerror}.") from None
    return digest.hexdigest()


# Building


def _check_target(out: Path) -> None:
    if out.is_dir():
        if any(out.iterdir()):
            raise ShortVError(f"{out} exists and is not empty; name another output folder.")
    elif out.exists() or out.is_symlink():
        raise ShortVError(f"{out} exists and is not a folder; name another output folder.")


def _check_fit(base: BaseModel, selection: Selection, scores: Scores | None) -> None:
    """Refuses a selection or scores that were made for another model."""
    layers = base.num_layers
    if selection.num_layers != layers:
        raise ShortVError(
            f"the selection is for {selection.num_layers} layers, but {base.name} has {layers}."
        )
    if reason := _layers_problem(selection.frozen_layers, layers):
        raise ShortVError(f"the selection's frozen layers {reason}.")
    if scores is None:
        return
    if len(scores.visual) != layers:
        raise ShortVError(f"the scores are for {len(scores.visual)} layers, but {base.name} has {layers}.")
    for key, ours in (("repo_id", base.repo_id), ("revision", base.revision)):
        theirs = scores.base.get(key)
        if ours and theirs and ours != theirs:
            raise ShortVError(
                f"the scores were measured on {theirs}, not on {ours}; measure them on {base.name}."
            )


def _layers_problem(frozen_layers: Any, num_layers: int) -> str | None:
    if not all(type(layer) is int for layer in frozen_layers):
        return "must be integers"
    if list(frozen_layers) != sorted(set(frozen_layers)):
        return "must be sorted, each once"
    if any(not 0 <= layer < num_layers for layer in frozen_layers):
        return f"must lie between 0 and {num_layers - 1}"
    return None


@contextmanager
def _becoming(out: Path) -> Iterator[Path]:
    """A hidden sibling of `out` to write into: it becomes `out` at the end, or vanishes if anything fails."""
    new_parents = [parent for parent in out.parents if not parent.exists()]
    folder = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        yield folder
        folder.chmod(0o755)  # mkdtemp makes private folders
        os.replace(folder, out)
    except OSError as error:
        raise ShortVError(f"cannot write {out}: {error.strerror or error}.") from None
    finally:
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
        for parent in new_parents:
            with suppress(OSError):  # not empty: it holds the package
                parent.rmdir()


def _carry(source: Path, target: Path, sha256: str) -> None:
    """Puts a file of the base into the package: weights as a hard link if possible, the rest as a copy."""
    # In a Hub cache the files are links to blobs: link the blob, not the link.
    source = Path(os.path.realpath(source))
    if target.suffix == ".safetensors":
        with suppress(OSError):  # another device, or a file system without links
            os.link(source, target)
            return
    shutil.copyfile(source, target)
    if file_sha256(target) != sha256:
        raise ShortVError(f"the copy of {target.name} differs from the base's file; run the command again.")


def _config(base: BaseModel, frozen_layers: tuple[int, ...]) -> str:
    """The base's `config.json`, field by field, under the package's own model type and code."""
    fields = {name: value for name, value in base.config.items() if name != "auto_map"}
    try:
        return json_text({**fields, **_own_fields(base.family), "frozen_layers": list(frozen_layers)})
    except ValueError:
        raise ShortVError(f"the {CONFIG_NAME} of {base.name} holds NaN or Infinity; write a number.") from None


def _own_fields(family: Family) -> dict[str, Any]:
    return {
        "model_type": family.shortv_model_type,
        "architectures": [family.model_class],
        "auto_map": family.auto_map,
    }


def _cost(base: BaseModel, selection: Selection) -> dict[str, Any]:
    """The share of the base's FLOPs (paper, Eq. 5), at the selection's prompt length or the paper's."""
    text = selection.budget.get("text_tokens", _TEXT_TOKENS)
    visual = selection.budget.get("visual_tokens", base.prompt_visual_tokens)
    ratio = flops_ratio(base.layer_shape, base.num_layers, len(selection.frozen_layers), text, visual)
    return {"text_tokens": text, "visual_tokens": visual, "flops_ratio": ratio}


# Inspecting: each look returns what it saw, or raises a ShortVError that says what is wrong


def _look_at_recipe(recipe: Recipe) -> str:
    if not isinstance(recipe.family, str) or recipe.family not in FAMILIES:
        raise ShortVError(
            f"{RECIPE_NAME} names the family {recipe.family!r}, which this release does not know."
        )
    if type(recipe.num_layers) is not int:
        raise ShortVError(f"{RECIPE_NAME}: num_layers must be an integer.")
    if reason := _layers_problem(recipe.frozen_layers, recipe.num_layers):
        raise ShortVError(f"{RECIPE_NAME}: frozen_layers {reason}.")
    if not isinstance(recipe.base.files, Mapping) or not isinstance(recipe.code, Mapping):
        raise ShortVError(f"{RECIPE_NAME} lists no files.")
    for name, entry in recipe.base.files.items():
        if not isinstance(entry, Mapping) or not {"sha256", "size"} <= entry.keys():
            raise ShortVError(f"{RECIPE_NAME} has no sha256 and size for {name}.")
    return f"{len(recipe.frozen_layers)} of {recipe.num_layers} layers frozen"


def _look_at_files(recipe: Recipe, found: set[str]) -> str:
    expected = expected_files(recipe)
    if missing := sorted(expected - found):
        raise ShortVError(f"missing from the package: {', '.join(missing)}.")
    if extra := sorted(found - expected):
        raise ShortVError(f"not of the package: {', '.join(extra)}.")
    return f"{len(expected)} files"


def _look_at_hashes(package: Path, recipe: Recipe, weights: bool) -> str:
    files = {n: e for n, e in recipe.base.files.items() if weights or not n.endswith(".safetensors")}
    # Sizes first: a truncated shard is told at once, without reading the ones before it.
    for name, entry in recipe.base.files.items():
        if (size := (package / name).stat().st_size) != entry["size"]:
            raise ShortVError(f"{name} has {size} bytes, not the base's {entry['size']}.")
    for name, entry in files.items():
        if file_sha256(package / name) != entry["sha256"]:
            raise ShortVError(f"{name} differs from the base's file: its sha256 is not the recipe's.")
    return f"{len(files)} files of the base, {sum(entry['size'] for entry in files.values()):,} bytes"


def _look_at_code(package: Path, recipe: Recipe) -> str:
    code = FAMILIES[recipe.family].code
    if set(recipe.code) != set(code):
        raise ShortVError(
            f"{RECIPE_NAME} lists other remote code than this release's: {', '.join(recipe.code)}."
        )
    for name in code:
        sha256 = file_sha256(package / name)
        if sha256 != recipe.code[name]:
            raise ShortVError(f"{name} was changed after the package was made.")
        if sha256 != file_sha256(modeling_dir() / name):
            raise ShortVError(f"{name} is not this release's; package the base again to update it.")
    return f"{len(code)} files, identical to this release's"


def _look_at_config(package: Path, recipe: Recipe) -> str:
    config = read_json(package / CONFIG_NAME)
    if not isinstance(config, dict):
        raise ShortVError(f"{CONFIG_NAME} is not a JSON object.")
    expected = {**_own_fields(FAMILIES[recipe.family]), "frozen_layers": list(recipe.frozen_layers)}
    for name, value in expected.items():
        if config.get(name) != value:
            raise ShortVError(f"{CONFIG_NAME}: {name} is not what the recipe says.")
    # A processor's or tokenizer's auto_map would make loaders run code that nobody looked at.
    for name in sorted(recipe.base.files):
        if name.endswith("config.json") and '"auto_map":' in json.dumps(read_json(package / name)):
            raise ShortVError(
                f"{name} names remote code of its own (auto_map), which a package does not carry."
            )
    return f"model type {config['model_type']}"
