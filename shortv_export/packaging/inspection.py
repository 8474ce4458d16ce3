"""A package's files are compared with its recipe. Nothing of the package is run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from ..base import FAMILIES, check_code
from ..errors import ShortVError
from ..files import file_sha256, read_json
from ..records import CONFIG_NAME, FIGURE_NAME, NOT_OURS, RECIPE_NAME, TOKENIZER_CONFIG_NAME, Recipe
from .benchmark_results import check_evaluation
from .contents import carried_files, code_sha256, expected_files, layers_problem, own_fields
from .package import Package


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: what was checked.
        passed: whether it is right; None if it could not be checked.
        detail: what was seen.
    """

    name: str
    passed: bool | None
    detail: str


def inspect_package(package: Package, *, weights: bool = True) -> list[Check]:
    """Compares a package's files with its recipe, without running any of them.

    Args:
        package: the package.
        weights: hash the weight files too, which reads all of them.

    Returns:
        The checks in order, up to and including the first that failed.
    """
    looks: tuple[tuple[str, Callable[[], str]], ...] = (
        ("recipe", lambda: look_at_recipe(package.recipe)),
        ("files", lambda: _look_at_files(package)),
        ("hashes", lambda: _look_at_hashes(package, weights)),
        ("remote code", lambda: _look_at_code(package)),
        ("config", lambda: _look_at_config(package)),
    )
    checks: list[Check] = []
    for name, look in looks:
        try:
            checks.append(Check(name, True, look()))
        except ShortVError as error:
            return [*checks, Check(name, False, str(error))]
    return checks


def require_intact(package: Package, failure: str, *, weights: bool = True) -> None:
    """Refuses a package whose files are not what its recipe says.

    Args:
        package: the package.
        failure: what that means here, such as ``"is not a complete package"``.
        weights: hash the weight files too.

    Raises:
        ShortVError: a file is missing, foreign or changed.
    """
    for check in inspect_package(package, weights=weights):
        if check.passed is False:
            raise ShortVError(f"{package.name} {failure}: {check.name}: {check.detail}")


# Each look returns what it saw, or raises a ShortVError that says what is wrong.


def look_at_recipe(recipe: Recipe) -> str:
    """Checks what a recipe says against itself and against this release."""
    if recipe.family not in FAMILIES:
        raise ShortVError(f"{RECIPE_NAME} names the family {recipe.family!r:.40}, which this release does not know.")
    if reason := layers_problem(recipe.frozen_layers, recipe.num_layers):
        raise ShortVError(f"{RECIPE_NAME}: frozen_layers {reason}.")
    if recipe.weights == "reference" and not (recipe.base.repo_id and recipe.base.revision):
        raise ShortVError(f"{RECIPE_NAME} refers to the weights of a base without saying where they are.")
    return f"{len(recipe.frozen_layers)} of {recipe.num_layers} layers frozen"


def _look_at_files(package: Package) -> str:
    expected, found = expected_files(package.recipe), package.files - NOT_OURS
    if missing := sorted(expected - found):
        raise ShortVError(f"missing from the package: {', '.join(missing)}.")
    if extra := sorted(found - expected):
        raise ShortVError(f"not of the package: {', '.join(extra)}.")
    return f"{len(expected)} files"


def _look_at_hashes(package: Package, weights: bool) -> str:
    folder, recipe, carried = package.folder, package.recipe, carried_files(package.recipe)
    files = {n: e for n, e in carried.items() if weights or not n.endswith(".safetensors")}
    # Sizes first: a truncated shard is found at once, without reading the ones before it.
    for name, entry in carried.items():
        if (size := (folder / name).stat().st_size) != entry["size"]:
            raise ShortVError(f"{name} has {size} bytes, not the base's {entry['size']}.")
    for name, entry in files.items():
        if file_sha256(folder / name) != entry["sha256"]:
            raise ShortVError(f"{name} differs from the base's file: its sha256 is not the recipe's.")
    if recipe.tokenizer_class:
        _ = package.base_tokenizer_config  # compares it
    if recipe.figure and file_sha256(folder / FIGURE_NAME) != recipe.figure:
        raise ShortVError(f"{FIGURE_NAME} was changed after the package was made.")
    for name, sha256 in recipe.measured.items():
        if file_sha256(folder / name) != sha256:
            raise ShortVError(f"{name} was changed after the package was evaluated.")
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
    expected = {"shortv_base": None, **own_fields(package.family, recipe)}
    for name, value in expected.items():
        if config.get(name) != value:
            raise ShortVError(f"{CONFIG_NAME}: {name} is not what the recipe says.")
    check_code(package.name, config)
    # A processor's or tokenizer's auto_map would make loaders run code that nobody looked at.
    for name in sorted({*carried_files(recipe), *([TOKENIZER_CONFIG_NAME] if recipe.tokenizer_class else [])}):
        if name.endswith("config.json") and '"auto_map":' in json.dumps(read_json(folder / name)):
            raise ShortVError(f"{name} names remote code of its own (auto_map), which a package does not carry.")
    return f"model type {config['model_type']}"
