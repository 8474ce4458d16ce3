"""Compares files with a recipe: those of a package, or of the base that it pins. Nothing is run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..base import FAMILIES, BaseModel, check_code, resolve_base
from ..errors import ShortVError
from ..files import file_sha256, read_json
from ..records import (
    CONFIG_NAME,
    FIGURE_NAME,
    FOREIGN_FILES,
    RECIPE_NAME,
    WEIGHT_FILES,
    BaseRecord,
    Recipe,
)
from .contents import carried_files, code_sha256, expected_files, layers_problem, own_fields
from .evaluation_files import check_evaluation
from .package import Package


@dataclass(frozen=True)
class Check:
    """The result of one check, with what was found. `passed` is None if it could not be checked."""

    name: str
    passed: bool | None
    detail: str


def inspect_package(package: Package, *, weights: bool = True) -> list[Check]:
    """Compares a package's files with its recipe. Hashing the `weights` too means reading all of them.

    Returns:
        The checks in order, up to and including the first that failed.
    """
    looks: dict[str, Callable[[], str]] = {
        "recipe": lambda: look_at_recipe(package.recipe),
        "files": lambda: _look_at_files(package),
        "hashes": lambda: _look_at_hashes(package, weights),
        "remote code": lambda: _look_at_code(package),
        "config": lambda: _look_at_config(package),
    }
    checks: list[Check] = []
    for name, look in looks.items():
        try:
            checks.append(Check(name, True, look()))
        except ShortVError as error:
            return [*checks, Check(name, False, str(error))]
    return checks


def require_intact(package: Package, failure: str, *, weights: bool = True) -> None:
    """Refuses a package whose files are not those of its recipe.

    Args:
        package: to inspect.
        failure: what the error says of it, such as ``"is not a complete package"``.
        weights: hash the weight files too.

    Raises:
        ShortVError: a file is missing, foreign or changed.
    """
    for check in inspect_package(package, weights=weights):
        if check.passed is False:
            raise ShortVError(f"{package.name} {failure}: {check.name}: {check.detail}")


def check_same_base(base: BaseModel, recorded: BaseRecord) -> None:
    """Compares a base's files with those that a recipe records.

    Raises:
        ShortVError: a file is missing or differs.
    """
    if missing := sorted(recorded.files.keys() - set(base.files)):
        raise ShortVError(f"{base.name} is not the recipe's base: it has no {missing[0]}.")
    found = base.record()
    for name, entry in recorded.files.items():
        if found.files[name] != entry:
            raise ShortVError(f"{base.name} is not the recipe's base: its {name} differs.")
    if found.config_sha256 != recorded.config_sha256:
        raise ShortVError(f"{base.name} is not the recipe's base: its {CONFIG_NAME} differs.")


def referenced_weights(package: Package) -> tuple[Path, Check]:
    """Downloads the base whose weights a package refers to, and compares it with the recipe.

    Returns:
        The base's snapshot in the Hub's cache, and the check. The path is empty if the check failed.
    """
    recorded = package.recipe.base
    try:
        base = resolve_base(str(recorded.repo_id), revision=recorded.revision)
        check_same_base(base, recorded)
    except ShortVError as error:
        return Path(), Check("base", False, str(error))
    weights = [name for name in recorded.files if name.endswith(WEIGHT_FILES)]
    return base.path, Check("base", True, f"{base.name} has the recipe's {len(weights)} weight files")


# Each look returns what it found, or raises a ShortVError that says what is wrong.


def look_at_recipe(recipe: Recipe) -> str:
    """Checks that a recipe is consistent and that this release knows its family."""
    if recipe.family not in FAMILIES:
        raise ShortVError(f"{RECIPE_NAME} names the family {recipe.family!r:.40}, which this release does not know.")
    if reason := layers_problem(recipe.frozen_layers, recipe.num_layers):
        raise ShortVError(f"{RECIPE_NAME}: frozen_layers {reason}.")
    if recipe.weights == "reference" and not (recipe.base.repo_id and recipe.base.revision):
        raise ShortVError(f"{RECIPE_NAME} refers to the weights of a base without saying where they are.")
    return f"{len(recipe.frozen_layers)} of {recipe.num_layers} layers frozen"


def _look_at_files(package: Package) -> str:
    expected, found = expected_files(package.recipe), package.files - FOREIGN_FILES
    if missing := sorted(expected - found):
        raise ShortVError(f"missing from the package: {', '.join(missing)}.")
    if extra := sorted(found - expected):
        raise ShortVError(f"not of the package: {', '.join(extra)}.")
    return f"{len(expected)} files"


def _look_at_hashes(package: Package, weights: bool) -> str:
    folder, recipe, carried = package.folder, package.recipe, carried_files(package.recipe)
    # Sizes first: they show a truncated file without reading the others.
    for name, entry in carried.items():
        if (size := (folder / name).stat().st_size) != entry["size"]:
            raise ShortVError(f"{name} has {size} bytes, not the base's {entry['size']}.")
    files = {name: entry for name, entry in carried.items() if weights or not name.endswith(".safetensors")}
    for name, entry in files.items():
        if file_sha256(folder / name) != entry["sha256"]:
            raise ShortVError(f"{name} differs from the base's file: its sha256 is not the recipe's.")
    _ = package.restored_files  # compares them
    made = {FIGURE_NAME: recipe.figure} if recipe.figure else {}
    for event, hashes in (("made", made), ("evaluated", recipe.measured)):
        for name, sha256 in hashes.items():
            if file_sha256(folder / name) != sha256:
                raise ShortVError(f"{name} was changed after the package was {event}.")
    if package.evaluation is not None:
        check_evaluation(package.evaluation, recipe)
    return f"{len(files)} files of the base, {sum(entry['size'] for entry in files.values()):,} bytes"


def _look_at_code(package: Package) -> str:
    recipe, ours = package.recipe, code_sha256(package.family)
    if recipe.code.keys() != ours.keys():
        raise ShortVError(f"{RECIPE_NAME} lists other remote code than this release's: {', '.join(recipe.code)}.")
    for name in ours:
        sha256 = file_sha256(package.folder / name)
        if sha256 != recipe.code[name]:
            raise ShortVError(f"{name} was changed after the package was made.")
        if sha256 != ours[name]:
            raise ShortVError(f"{name} is not this release's; package the base again to update it.")
    return f"{len(ours)} files, identical to this release's"


def _look_at_config(package: Package) -> str:
    folder, recipe = package.folder, package.recipe
    config = read_json(folder / CONFIG_NAME)
    if not isinstance(config, dict):
        raise ShortVError(f"{CONFIG_NAME} is not a JSON object.")
    for name, value in {"shortv_base": None, **own_fields(package.family, recipe)}.items():
        if config.get(name) != value:
            raise ShortVError(f"{CONFIG_NAME}: {name} is not what the recipe says.")
    check_code(package.name, config)
    # Loaders run the code that auto_map in a processor's or tokenizer's config names, and nobody checked that code.
    for name in sorted({*carried_files(recipe), *recipe.derived}):
        if name.endswith("config.json") and '"auto_map":' in json.dumps(read_json(folder / name)):
            raise ShortVError(f"{name} names remote code of its own (auto_map), which a package does not carry.")
    return f"model type {config['model_type']}"
