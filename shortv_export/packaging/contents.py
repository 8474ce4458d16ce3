"""What a package with a given recipe holds: its files, its code, and its own fields in ``config.json``."""

from __future__ import annotations

import hashlib
from typing import Any

from ..base import Family
from ..records import CARD_NAME, CONFIG_NAME, FIGURE_NAME, RECIPE_NAME, WEIGHT_FILES, Frozen, Recipe


def expected_files(recipe: Recipe) -> set[str]:
    """The names of all files of a package."""
    names = {*carried_files(recipe), *recipe.derived, *recipe.code, *recipe.measured}
    return names | {CONFIG_NAME, RECIPE_NAME, CARD_NAME} | ({FIGURE_NAME} if recipe.figure else set())


def carried_files(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """The base's files that a package holds unchanged: name to ``{"sha256", "size"}``."""
    carried = {name: entry for name, entry in recipe.base.files.items() if name not in recipe.derived}
    if recipe.weights != "copy":
        carried = {name: entry for name, entry in carried.items() if not name.endswith(WEIGHT_FILES)}
    return carried


HANDLER_NAME = "handler.py"
"""What Inference Endpoints run, in packages that ask for it."""


def code_sha256(family: Family, *, handler: bool) -> dict[str, str]:
    """The sha256 of each file of this release's remote code, and of the handler if there is one."""
    names = (*family.code, *((HANDLER_NAME,) if handler else ()))
    return {name: hashlib.sha256(family.source(name).encode()).hexdigest() for name in names}


def own_fields(family: Family, recipe: Recipe) -> dict[str, Any]:
    """The fields of a package's ``config.json`` that are not its base's."""
    fields = {
        "model_type": family.shortv_model_type,
        "architectures": [family.model_class],
        "auto_map": family.auto_map,
        "frozen_layers": list(recipe.frozen_layers),
        **{name: list(layers) for name, layers in recipe.frozen.operators.items()},
    }
    if recipe.weights == "reference":
        fields["shortv_base"] = {"repo_id": recipe.base.repo_id, "revision": recipe.base.revision}
    return fields


def frozen_problem(frozen: Frozen, num_layers: int) -> str | None:
    """What is wrong with the lists of what is frozen; None if they are right."""
    seen: set[int] = set()
    for name, layers in frozen.lists.items():
        if not all(type(layer) is int for layer in layers):
            return f"{name} must be integers"
        if list(layers) != sorted(set(layers)):
            return f"{name} must be sorted, each once"
        if any(not 0 <= layer < num_layers for layer in layers):
            return f"{name} must lie between 0 and {num_layers - 1}"
        if seen & {*layers}:
            return f"{name} names layers of another list"
        seen |= {*layers}
    return None
