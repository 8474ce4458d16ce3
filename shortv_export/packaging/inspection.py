"""A package's files are compared with its recipe. Nothing of it is run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base import FAMILIES, BaseModel, Family, check_code, resolve_base
from ..errors import ShortVError
from ..files import file_sha256, read_json
from ..records import (
    CARD_NAME,
    CONFIG_NAME,
    EVALUATION_NAME,
    FIGURE_NAME,
    NOT_OURS,
    RECIPE_NAME,
    RESULTS_FOLDER,
    TOKENIZER_CONFIG_NAME,
    WEIGHT_FILES,
    BaseRecord,
    Evaluation,
    Recipe,
)
from .benchmark_results import check_evaluation
from .tokenizer import with_class


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: its name, whether it is right (None: that cannot be known), and what was seen."""

    name: str
    passed: bool | None
    detail: str


def expected_files(recipe: Recipe) -> set[str]:
    """The names of all files of a package, no more and no less."""
    names = {*carried_files(recipe), *recipe.code, *recipe.measured, CONFIG_NAME, RECIPE_NAME, CARD_NAME}
    if recipe.tokenizer_class:
        names.add(TOKENIZER_CONFIG_NAME)
    return names | {FIGURE_NAME} if recipe.figure else names


def carried_files(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Those of the base's files that are in the package, unchanged: name to sha256 and size."""
    carried = dict(recipe.base.files)
    if recipe.tokenizer_class:
        del carried[TOKENIZER_CONFIG_NAME]
    if recipe.weights != "copy":
        carried = {name: entry for name, entry in carried.items() if not name.endswith(WEIGHT_FILES)}
    return carried


def base_tokenizer_config(package: Path, recipe: Recipe) -> str:
    """The ``tokenizer_config.json`` of the base of a package that names another class.

    Raises:
        ShortVError: that cannot be told from the package's, or it is not the one that the recipe names.
    """
    assert recipe.tokenizer_class
    text = (package / TOKENIZER_CONFIG_NAME).read_bytes().decode("utf-8", "replace")
    text = with_class(text, recipe.tokenizer_class["package"], recipe.tokenizer_class["base"])
    if hashlib.sha256(text.encode()).hexdigest() != recipe.base.files[TOKENIZER_CONFIG_NAME]["sha256"]:
        raise ShortVError(f"{TOKENIZER_CONFIG_NAME} differs from the base's in more than its class.")
    return text


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
    found = (_listing(package) if names is None else names) - NOT_OURS
    try:
        recipe = Recipe.load(package / RECIPE_NAME)
    except ShortVError as error:
        return [Check("recipe", False, str(error))]
    looks: tuple[tuple[str, Callable[[], str]], ...] = (
        ("recipe", lambda: look_at_recipe(recipe)),
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


def _listing(package: Path) -> set[str]:
    """The names of what a folder holds, and of what its folder of results holds."""
    names = {entry.name for entry in package.iterdir()}
    if RESULTS_FOLDER in names and (package / RESULTS_FOLDER).is_dir():
        inside = {f"{RESULTS_FOLDER}/{entry.name}" for entry in (package / RESULTS_FOLDER).iterdir()}
        names = (names - {RESULTS_FOLDER}) | inside
    return names


def referenced_weights(recipe: Recipe, token: str | None = None) -> tuple[Path, Check]:
    """Finds the weights that a package without any refers to, and compares them with its recipe.

    Returns:
        The snapshot in the Hub's cache, and the check; if that failed, the path means nothing.
    """
    try:
        base = resolve_base(str(recipe.base.repo_id), revision=recipe.base.revision, token=token)
        check_same_base(base, recipe.base)
    except ShortVError as error:
        return Path(), Check("base", False, str(error))
    weights = [name for name in recipe.base.files if name.endswith(WEIGHT_FILES)]
    return base.path, Check("base", True, f"{base.name} has the recipe's {len(weights)} weight files")


def source_sha256(family: Family, name: str) -> str:
    return hashlib.sha256(family.source(name).encode()).hexdigest()


def check_same_base(base: BaseModel, recorded: BaseRecord) -> None:
    """Compares a base's files with a recipe's, before any of them is carried."""
    if missing := sorted(recorded.files.keys() - set(base.files)):
        raise ShortVError(f"{base.name} is not the recipe's base: it has no {missing[0]}.")
    found = base.record()
    for name, entry in recorded.files.items():
        if found.files[name] != entry:
            raise ShortVError(f"{base.name} is not the recipe's base: its {name} differs.")
    if found.config_sha256 != recorded.config_sha256:
        raise ShortVError(f"{base.name} is not the recipe's base: its {CONFIG_NAME} differs.")


def layers_problem(frozen_layers: Any, num_layers: int) -> str | None:
    if not all(type(layer) is int for layer in frozen_layers):
        return "must be integers"
    if list(frozen_layers) != sorted(set(frozen_layers)):
        return "must be sorted, each once"
    if any(not 0 <= layer < num_layers for layer in frozen_layers):
        return f"must lie between 0 and {num_layers - 1}"
    return None


def own_fields(family: Family, recipe: Recipe) -> dict[str, Any]:
    fields = {
        "model_type": family.shortv_model_type,
        "architectures": [family.model_class],
        "auto_map": family.auto_map,
        "frozen_layers": list(recipe.frozen_layers),
    }
    if recipe.weights == "reference":
        fields["shortv_base"] = {"repo_id": recipe.base.repo_id, "revision": recipe.base.revision}
    return fields


# Inspecting: each look returns what it saw, or raises a ShortVError that says what is wrong


def look_at_recipe(recipe: Recipe) -> str:
    if recipe.family not in FAMILIES:
        raise ShortVError(f"{RECIPE_NAME} names the family {recipe.family!r:.40}, which this release does not know.")
    if reason := layers_problem(recipe.frozen_layers, recipe.num_layers):
        raise ShortVError(f"{RECIPE_NAME}: frozen_layers {reason}.")
    if recipe.weights == "reference" and not (recipe.base.repo_id and recipe.base.revision):
        raise ShortVError(f"{RECIPE_NAME} refers to the weights of a base without saying where they are.")
    return f"{len(recipe.frozen_layers)} of {recipe.num_layers} layers frozen"


def _look_at_files(recipe: Recipe, found: set[str]) -> str:
    expected = expected_files(recipe)
    if missing := sorted(expected - found):
        raise ShortVError(f"missing from the package: {', '.join(missing)}.")
    if extra := sorted(found - expected):
        raise ShortVError(f"not of the package: {', '.join(extra)}.")
    return f"{len(expected)} files"


def _look_at_hashes(package: Path, recipe: Recipe, weights: bool) -> str:
    carried = carried_files(recipe)
    files = {n: e for n, e in carried.items() if weights or not n.endswith(".safetensors")}
    # Sizes first: a truncated shard is told at once, without reading the ones before it.
    for name, entry in carried.items():
        if (size := (package / name).stat().st_size) != entry["size"]:
            raise ShortVError(f"{name} has {size} bytes, not the base's {entry['size']}.")
    for name, entry in files.items():
        if file_sha256(package / name) != entry["sha256"]:
            raise ShortVError(f"{name} differs from the base's file: its sha256 is not the recipe's.")
    if recipe.tokenizer_class:
        base_tokenizer_config(package, recipe)
    if recipe.figure and file_sha256(package / FIGURE_NAME) != recipe.figure:
        raise ShortVError(f"{FIGURE_NAME} was changed after the package was made.")
    for name, sha256 in recipe.measured.items():
        if file_sha256(package / name) != sha256:
            raise ShortVError(f"{name} was changed after the package was evaluated.")
    if recipe.measured:
        check_evaluation(Evaluation.load(package / EVALUATION_NAME), recipe)
    return f"{len(files)} files of the base, {sum(entry['size'] for entry in files.values()):,} bytes"


def _look_at_code(package: Path, recipe: Recipe) -> str:
    family = FAMILIES[recipe.family]
    if set(recipe.code) != set(family.code):
        raise ShortVError(f"{RECIPE_NAME} lists other remote code than this release's: {', '.join(recipe.code)}.")
    for name in family.code:
        sha256 = file_sha256(package / name)
        if sha256 != recipe.code[name]:
            raise ShortVError(f"{name} was changed after the package was made.")
        if sha256 != source_sha256(family, name):
            raise ShortVError(f"{name} is not this release's; package the base again to update it.")
    return f"{len(family.code)} files, identical to this release's"


def _look_at_config(package: Path, recipe: Recipe) -> str:
    config = read_json(package / CONFIG_NAME)
    if not isinstance(config, dict):
        raise ShortVError(f"{CONFIG_NAME} is not a JSON object.")
    expected = {"shortv_base": None, **own_fields(FAMILIES[recipe.family], recipe)}
    for name, value in expected.items():
        if config.get(name) != value:
            raise ShortVError(f"{CONFIG_NAME}: {name} is not what the recipe says.")
    check_code(str(package), config)
    # A processor's or tokenizer's auto_map would make loaders run code that nobody looked at.
    for name in sorted({*carried_files(recipe), *([TOKENIZER_CONFIG_NAME] if recipe.tokenizer_class else [])}):
        if name.endswith("config.json") and '"auto_map":' in json.dumps(read_json(package / name)):
            raise ShortVError(f"{name} names remote code of its own (auto_map), which a package does not carry.")
    return f"model type {config['model_type']}"
