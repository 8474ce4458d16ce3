"""Makes a package from a base and a selection of layers.

The base's files are carried over bit for bit, as hard links where the file system allows it. A package adds the remote
code, a ``config.json`` that names it, the recipe and the card.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..base import BaseModel
from ..errors import ShortVError
from ..files import carry, check_space, check_writable, new_folder, same_device
from ..options import Contents
from ..records import FIGURE_NAME, WEIGHTS, Evaluation, Recipe, Scores, Selection, library_versions
from .card_metadata import Inherited, inherited_metadata, plain_line, recorded_metadata
from .comparison import check_same_base, look_at_recipe
from .contents import carried_files
from .evaluation_files import check_evaluation, evaluation_files
from .package import Package
from .rendering import (
    DRAWN_WITH,
    check_fit,
    check_same_recipe,
    derived_fields,
    measured_files,
    remake,
    render_files,
    write_files,
)
from .tokenizer import tokenizer_classes


@dataclass(frozen=True)
class Draft:
    """A package that can be made: folder, disk and licence have been checked.

    Attributes:
        base: the base; its weights need not have been downloaded yet.
        out: the folder to make, absolute; missing or empty.
        inherited: what the card takes over from the base's card.
        weights: ``"copy"``, or ``"reference"`` for a package whose code loads the weights from the base on the Hub.
    """

    base: BaseModel
    out: Path
    inherited: Inherited
    weights: str

    @classmethod
    def of(cls, base: BaseModel, out: Path, contents: Contents = Contents()) -> Draft:
        """Checks the folder and the disk, and decides the licence.

        Raises:
            ShortVError: `out` is a file or not empty; the disk is too full; no licence is known; the base should be
                referenced but is not on the Hub.
        """
        out = Path(os.path.abspath(out))
        _check_empty(out)
        weights = contents.weights
        if weights not in WEIGHTS:
            raise ShortVError(f"`weights` is {weights!r}; choose one of: {', '.join(WEIGHTS)}.")
        if weights == "reference" and not (base.repo_id and base.revision):
            raise ShortVError(f"{base.name} is a folder, which others cannot load weights from; leave out `weights`.")
        inherited = inherited_metadata(base, contents.license)
        _check_room(base, out, weights)
        return cls(base, out, inherited, weights)


def build_package(draft: Draft, selection: Selection, scores: Scores | None = None) -> Package:
    """Makes a package, whole or not at all. The same arguments give the same bytes.

    Args:
        draft: the base, whose weights have been fetched, and the folder.
        selection: which layers to freeze.
        scores: by which the layers were selected; for the recipe and the card's figure.

    Raises:
        ShortVError: the folder cannot be written; the selection or the scores are for another model.
    """
    base = draft.base
    check_fit(base, selection, scores)
    derived, figure = derived_fields(base, selection, scores, draft.inherited)
    recipe = Recipe(
        base=base.record(),
        weights=draft.weights,
        versions=library_versions(*(DRAWN_WITH if scores else ())),
        tokenizer_class=tokenizer_classes(base),
        **derived,
    )
    recipe, files = render_files(base, recipe, figures={FIGURE_NAME: figure} if figure else None)
    _write(draft.out, base, recipe, files)
    return Package.open(draft.out)


def rebuild_package(base: BaseModel, out: Path, recipe: Recipe, evaluation: Evaluation | None = None) -> Package:
    """Makes the package of a recipe again, byte for byte, or nothing. Its evaluation is needed if it has one.

    Raises:
        ShortVError: as in `build_package`; the base's files are not the recipe's; this release or its libraries
            would make another package.
    """
    out = Path(os.path.abspath(out))
    _check_empty(out)
    look_at_recipe(recipe)
    check_same_base(base, recipe.base)
    if evaluation is not None:
        check_evaluation(evaluation, recipe)
    _check_room(base, out, recipe.weights)
    made, files = remake(base, recipe, evaluation, recorded_metadata(recipe.card))
    _check_figures(made, recipe)
    check_same_recipe(made, recipe)
    _write(out, base, made, files)
    return Package.open(out)


def add_measured(folder: Path, recipe: Recipe, evaluation: Evaluation) -> Recipe:
    """Writes the files that an evaluation adds to a package, and returns the recipe with their hashes.

    Raises:
        ShortVError: the evaluation is of another package.
    """
    check_evaluation(evaluation, recipe)
    files = evaluation_files(evaluation)
    write_files(folder, files)
    return measured_files(recipe, files)


def _write(out: Path, base: BaseModel, recipe: Recipe, files: dict[str, bytes]) -> None:
    """Writes a package, whole or not at all."""
    with new_folder(out) as folder:
        write_files(folder, files)
        for name, entry in carried_files(recipe).items():
            if name not in files:
                carry(base.path / name, folder / name, entry["sha256"])


def _check_figures(made: Recipe, recipe: Recipe) -> None:
    """Refuses figures that look different when they are drawn here."""
    figures, made_figures = ({**each.measured, FIGURE_NAME: each.figure} for each in (recipe, made))
    if any(figures[name] != made_figures.get(name) for name in figures if name.endswith(".png")):
        drawn = ", ".join(f"{name} {plain_line(recipe.versions.get(name))}" for name in DRAWN_WITH)
        raise ShortVError(f"the figure differs when drawn here; install the libraries that drew it: {drawn}.")


def _check_empty(out: Path) -> None:
    """Refuses an output path that is not free or cannot be written."""
    check_writable(out, folder=True)
    if out.is_dir():
        if any(out.iterdir()):
            raise ShortVError(f"{out} exists and is not empty; name another output folder.")
    elif out.exists() or out.is_symlink():
        raise ShortVError(f"{out} exists and is not a folder; name another output folder.")


def _check_room(base: BaseModel, out: Path, weights: str) -> None:
    """Refuses a disk that is too full for the weights. They need space only if they come from another disk."""
    if weights == "copy" and not same_device(base.path, out):
        check_space(
            out,
            base.weight_bytes,
            f"copying the weights of {base.name}, which are on another disk,",
            "name a folder with more room or on the disk of the weights, or choose `weights` reference",
        )
