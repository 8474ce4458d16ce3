"""A package gets its evaluation: the files, the recipe that pins them, and the card that shows them.

The recipe's hash changes with it, and so the package's tag on the Hub: what was published before keeps its own.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..base import FAMILIES, BaseModel
from ..errors import ShortVError
from ..files import json_text, read_json, write_text
from ..records import (
    CARD_NAME,
    CONFIG_NAME,
    EVALUATION_NAME,
    NOT_OURS,
    RECIPE_NAME,
    Evaluation,
    Recipe,
    library_versions,
)
from . import card
from .build import add_measured
from .card_metadata import plain_line, recorded_metadata
from .inspection import expected_files, inspect_package, recipe_tag

_NAMED = re.compile(r'^model_id = "([\w.-]+/[\w.-]+)"$', re.ASCII | re.MULTILINE)


@dataclass(frozen=True)
class Evaluable:
    """A package whose card can be written anew, as nobody has edited it.

    Attributes:
        folder: of the package.
        recipe: without an evaluation, of which there may have been one.
        base: what the card needs of the base, taken from the package.
        repo_id: that the card names.
    """

    folder: Path
    recipe: Recipe
    base: BaseModel
    repo_id: str


def check_evaluable(package: str, *, sweep: bool = False) -> Evaluable:
    """Whether a package can take an evaluation, which one wants to know before measuring it.

    Args:
        package: its folder.
        sweep: whether the evaluation has one, of which the card shows a figure.

    Raises:
        ShortVError: it is no folder, it is damaged, its card was edited or is another release's, it cannot be
            replaced, or a figure would be drawn by other libraries than the package's own, which a recipe names once.
    """
    if not Path(package).is_dir():
        raise ShortVError(f"{package} is no folder, and only a folder's card can be updated; package the base again.")
    folder = Path(package).resolve()
    for check in inspect_package(folder, weights=False):
        if not check.passed:
            raise ShortVError(f"{package} is not a complete package: {check.detail}")
    recipe = Recipe.load(folder / RECIPE_NAME)
    text = (folder / CARD_NAME).read_text(encoding="utf-8")
    named = _NAMED.search(text)
    found = Evaluable(
        folder,
        replace(recipe, measured={}),
        BaseModel(
            name=package,
            repo_id=recipe.base.repo_id,
            revision=recipe.base.revision,
            path=folder,
            config=_base_config(folder, recipe),
            family=FAMILIES[recipe.family],
            files=tuple(sorted(recipe.base.files)),
        ),
        named[1] if named else card.UNNAMED,
    )
    if text != _card(found, recipe, recipe_tag(folder), _earlier(folder, recipe)):
        raise ShortVError(
            f"the card of {package} is not as this release writes it, and would lose text; package the base again."
        )
    if not os.access(folder.parent, os.W_OK):
        raise ShortVError(f"cannot write in {folder.parent}, where {folder.name} would be replaced.")
    if sweep:
        installed = library_versions("matplotlib", "pillow")
        for name in ("matplotlib", "pillow"):
            if recipe.versions.get(name, installed[name]) != installed[name]:
                version = plain_line(recipe.versions[name])
                raise ShortVError(f"the figures of {package} were drawn with {name} {version}; install that one.")
    return found


def add_evaluation(package: Evaluable, evaluation: Evaluation) -> Recipe:
    """Puts an evaluation into its package, in place of an earlier one: all of it or nothing.

    The new package is made beside the old one, of hard links where nothing changes, and takes its place.

    Args:
        package: from `check_evaluable`.
        evaluation: of this package.

    Returns:
        The recipe of the package as it is now.

    Raises:
        ShortVError: the evaluation is of another package, or the folder cannot be replaced.
    """
    folder = package.folder
    before = Recipe.load(folder / RECIPE_NAME)
    unchanged = expected_files(before) - before.measured.keys() - {RECIPE_NAME, CARD_NAME}
    hidden = None  # a folder of what is being made and, for a moment, of what it replaces
    try:
        hidden = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        new, old = hidden / "new", hidden / "old"
        new.mkdir(mode=0o755)
        recipe = add_measured(new, package.recipe, evaluation)
        for name in unchanged:
            _link(folder / name, new / name)
        write_text(new / RECIPE_NAME, json_text(recipe.to_dict()))
        write_text(new / CARD_NAME, _card(package, recipe, recipe_tag(new), evaluation))
        os.rename(folder, old)
        os.rename(new, folder)
        for name in NOT_OURS:  # what git and the Hub put there stays
            if (old / name).exists():
                os.rename(old / name, folder / name)
    except OSError as error:
        raise ShortVError(f"cannot replace {folder}: {error.strerror or error}.") from None
    finally:
        if hidden is not None:
            if not folder.exists():
                os.rename(hidden / "old", folder)
            if not any((hidden / "old" / name).exists() for name in NOT_OURS):
                shutil.rmtree(hidden, ignore_errors=True)
    return recipe


def _card(package: Evaluable, recipe: Recipe, tag: str, evaluation: Evaluation | None) -> str:
    inherited = recorded_metadata(recipe.card)
    return card.render_card(package.base, recipe, inherited, tag=tag, repo_id=package.repo_id, evaluation=evaluation)


def _earlier(folder: Path, recipe: Recipe) -> Evaluation | None:
    return Evaluation.load(folder / EVALUATION_NAME) if recipe.measured else None


def _base_config(folder: Path, recipe: Recipe) -> dict[str, Any]:
    """The base's own config, as far as a card needs it."""
    return {**read_json(folder / CONFIG_NAME), "model_type": FAMILIES[recipe.family].model_type}


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    with suppress(OSError):  # a file system without links
        os.link(os.path.realpath(source), target)
        return
    shutil.copyfile(source, target)
