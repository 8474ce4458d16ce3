"""Adds an evaluation to its package: its files, their hashes in the recipe, and the measured sections of the card.

The recipe's hash changes, and with it the package's tag on the Hub. A version published before keeps its own tag.
"""

from __future__ import annotations

import os
from dataclasses import replace

from ..errors import ShortVError
from ..files import json_text, move_over, replacement, write_text
from ..records import CARD_NAME, FOREIGN_FILES, RECIPE_NAME, Evaluation, Recipe, library_versions
from .build import add_measured
from .card import render_card
from .card_metadata import plain_line
from .contents import expected_files
from .inspection import require_intact
from .package import Package
from .seal import named_in


def require_updatable(package: Package, *, sweep: bool = False) -> None:
    """Checks, before measuring, that an evaluation can be added to a package.

    Args:
        package: a folder.
        sweep: whether the evaluation will have a sweep, which the card shows in a figure.

    Raises:
        ShortVError: it is damaged, or its card was edited; its folder cannot be replaced;
            the installed libraries are not those that drew the package's figures.
    """
    name, folder = package.name, package.folder
    require_intact(package, "is not a complete package", weights=False)
    if not os.access(folder.resolve().parent, os.W_OK):
        raise ShortVError(f"cannot write in {folder.resolve().parent}, where {folder.name} would be replaced.")
    installed = library_versions("matplotlib", "pillow")
    for library in ("matplotlib", "pillow") if sweep else ():
        drawn_with = package.recipe.versions.get(library, installed[library])
        if drawn_with != installed[library]:
            raise ShortVError(
                f"the figures of {name} were drawn with {library} {plain_line(drawn_with)}; install that version."
            )


def add_evaluation(package: Package, evaluation: Evaluation) -> Package:
    """Adds an evaluation to its package, or replaces an earlier one: all of it or nothing, even if it is killed.

    The new folder is made beside the old one, with hard links to the unchanged files, and then replaces it.

    Args:
        package: a folder, checked by `require_updatable`.
        evaluation: of this package.

    Returns:
        The updated package.

    Raises:
        ShortVError: the evaluation is of another package, or the folder cannot be replaced.
    """
    folder = package.folder.resolve()
    before = package.recipe
    unchanged = expected_files(before) - before.measured.keys() - {RECIPE_NAME, CARD_NAME}
    with replacement(folder, FOREIGN_FILES) as new:
        recipe = add_measured(new, replace(before, measured={}), evaluation)
        for name in unchanged:
            move_over(folder, name, new)
        write_text(new / RECIPE_NAME, json_text(recipe.to_dict()))
        write_text(new / CARD_NAME, _render(package, recipe, Package.open(new).tag, evaluation))
    return Package.open(package.name)


def _card_text(package: Package) -> str:
    return (package.folder / CARD_NAME).read_text(encoding="utf-8")


def _render(package: Package, recipe: Recipe, tag: str, evaluation: Evaluation | None) -> str:
    """The card, rendered for the repository that the present card names."""
    repo_id = named_in(_card_text(package))
    return render_card(package.base, recipe, tag=tag, repo_id=repo_id, evaluation=evaluation)
