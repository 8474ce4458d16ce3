"""Makes a package from a base and a selection of layers.

The base's files are copied bit for bit, but for the names of classes (see `derived`). A package adds the remote code,
a ``config.json`` that names it, the recipe and the card.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from ..base import BaseModel, told
from ..errors import ShortVError
from ..files import check_space, check_writable, copies_are_clones, copy_file, new_folder, same_device
from ..options import Contents
from ..records import (
    CONFIG_NAME,
    FIGURE_NAME,
    Evaluation,
    Recipe,
    Scores,
    Selection,
    library_versions,
)
from .card_metadata import Inherited, inherited_metadata, plain_line, recorded_metadata
from .comparison import check_same_base, look_at_recipe
from .contents import carried_files
from .derived import derive_fields
from .evaluation_files import check_evaluation, evaluation_files
from .package import Package
from .rendering import (
    DRAWN_WITH,
    check_fit,
    check_same_recipe,
    measured_files,
    recipe_fields,
    remake,
    render_files,
    write_files,
)

logger = logging.getLogger(__name__)

_NAMES_ON_SCREEN = 12


@dataclass(frozen=True)
class Draft:
    """A package that can be made: folder, disk and licence have been checked.

    Attributes:
        base: the base; its weights need not have been downloaded yet.
        out: the folder to make, absolute; missing or empty.
        inherited: what the card takes over from the base's card.
        weights: ``"copy"``, or ``"reference"`` for a package whose code loads the weights from the base on the Hub.
        handler: whether it has one for Inference Endpoints.
    """

    base: BaseModel
    out: Path
    inherited: Inherited
    weights: str
    handler: bool = False

    @classmethod
    def of(cls, base: BaseModel, out: Path, contents: Contents = Contents()) -> Draft:
        """Checks the folder and the disk, decides the licence, and tells what of the base is left out.

        Raises:
            ShortVError: `out` is a file or not empty; the disk is too full; no licence is known; the base should be
                referenced but is not on the Hub.
        """
        out = Path(os.path.abspath(out))
        _check_empty(out)
        weights = contents.weights
        if weights == "reference" and not (base.repo_id and base.revision):
            raise ShortVError(f"{base.name} is a folder, which others cannot load weights from; leave out `weights`.")
        inherited = inherited_metadata(base, contents.license, contents.base_model)
        _check_room(base, out, weights)
        _tell_left_out(base)
        return cls(base, out, inherited, weights, contents.handler)


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
    fields, figure = recipe_fields(base, selection, scores, draft.inherited, handler=draft.handler)
    derived = derive_fields(base)
    with new_folder(draft.out) as folder:
        # Copying hashes, too, so that the weights are read once.
        weights = base.weight_sizes if draft.weights == "copy" else ()
        known = {name: copy_file(base.path / name, folder / name, folder=base.path) for name in weights}
        recipe = Recipe(
            base=base.record(known),
            weights=draft.weights,
            versions=library_versions(*(DRAWN_WITH if scores else ())),
            derived=derived,
            **fields,
        )
        write_files(folder, render_files(base, recipe, figures={FIGURE_NAME: figure} if figure else None)[1])
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
    with new_folder(out) as folder:
        write_files(folder, files)
        for name in carried_files(recipe).keys() - files.keys():
            if copy_file(base.path / name, folder / name, folder=base.path) != recipe.base.files[name]["sha256"]:
                raise ShortVError(f"the copy of {name} differs from the base's file; run the command again.")
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


def _tell_left_out(base: BaseModel) -> None:
    """One line on what else the base holds. The recipe has it, too."""
    names = base.left_out
    if names is None:
        logger.info("offline, what else %s holds is not known; it is left out of the package", base.name)
    elif names:
        more = len(names) - _NAMES_ON_SCREEN
        text = ", ".join(told(names[:_NAMES_ON_SCREEN])) + (f" and {more} more" if more > 0 else "")
        logger.info("left out of the package: %s", text)


def _check_room(base: BaseModel, out: Path, weights: str) -> None:
    """Refuses a disk that is too full for the copy of the weights, and for their download if that goes there, too."""
    if weights != "copy" or copies_are_clones(base.path / CONFIG_NAME, out.parent):
        return
    missing = [size for name, size in base.weight_sizes.items() if not (base.path / name).exists()]
    downloaded = sum(missing) if same_device(base.path, out) else 0
    check_space(
        out.parent,
        base.weight_bytes + downloaded,
        ("downloading and " if downloaded else "") + f"copying the weights of {base.name}",
        "name a folder on a disk with more room, or choose `weights` reference",
    )
