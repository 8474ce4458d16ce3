"""Makes a package from a base and a selection of layers.

The base's files are copied bit for bit, but for the names of classes (see `derived`). A package adds the remote code,
a ``config.json`` that names it, the recipe and the card.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..base import TEXT_TOKENS, BaseModel, flops_ratio, told
from ..errors import ShortVError
from ..files import (
    MAX_JSON_BYTES,
    check_space,
    copies_are_clones,
    copy_file,
    json_text,
    new_folder,
    read_regular,
    same_device,
    write_text,
)
from ..options import Contents
from ..records import (
    CARD_NAME,
    CONFIG_NAME,
    FIGURE_NAME,
    RECIPE_NAME,
    WEIGHTS,
    Evaluation,
    Recipe,
    Scores,
    Selection,
    library_versions,
)
from .card import render_card, template_sha256
from .card_metadata import Inherited, inherited_metadata, plain_line, recorded_metadata
from .contents import carried_files, code_sha256, layers_problem, own_fields
from .derived import derive_fields, derived_text
from .evaluation_files import check_evaluation, evaluation_files
from .figures import draw_scores
from .inspection import check_same_base, look_at_recipe
from .package import Package

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
    """

    base: BaseModel
    out: Path
    inherited: Inherited
    weights: str

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
        if weights not in WEIGHTS:
            raise ShortVError(f"`weights` is {weights!r}; choose one of: {', '.join(WEIGHTS)}.")
        if weights == "reference" and not (base.repo_id and base.revision):
            raise ShortVError(f"{base.name} is a folder, which others cannot load weights from; leave out `weights`.")
        inherited = inherited_metadata(base, contents.license)
        _check_room(base, out, weights)
        _tell_left_out(base)
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
    _check_fit(base, selection, scores)
    fields, figure = _derive(base, selection, scores, draft.inherited)
    classes = derive_fields(base)
    with new_folder(draft.out) as folder:
        # Copying hashes, too, so that the weights are read once.
        weights = base.weight_sizes if draft.weights == "copy" else ()
        known = {name: copy_file(base.path / name, folder / name, folder=base.path) for name in weights}
        recipe = Recipe(
            base=base.record(known),
            weights=draft.weights,
            versions=library_versions(*(("matplotlib", "pillow") if scores else ())),
            derived=classes,
            **fields,
        )
        _fill(folder, base, recipe, figure)
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
    inherited = recorded_metadata(recipe.card)
    selection = Selection(**{**recipe.selection, "frozen_layers": tuple(recipe.selection["frozen_layers"])})
    scores = Scores.from_dict(recipe.scores, RECIPE_NAME) if recipe.scores else None
    check_same_base(base, recipe.base)
    files = tuple(sorted(recipe.base.files))
    base = replace(base, repo_id=recipe.base.repo_id, revision=recipe.base.revision, files=files)
    _check_fit(base, selection, scores)
    _check_room(base, out, recipe.weights)
    fields, figure = _derive(base, selection, scores, inherited)
    with new_folder(out) as folder:
        made = _fill(folder, base, replace(recipe, **fields, measured={}), figure, evaluation)
        _check_same_recipe(made, recipe)
    return Package.open(out)


def add_measured(folder: Path, recipe: Recipe, evaluation: Evaluation) -> Recipe:
    """Writes the files that an evaluation adds to a package, and returns the recipe with their hashes.

    Raises:
        ShortVError: the evaluation is of another package.
    """
    check_evaluation(evaluation, recipe)
    files = evaluation_files(evaluation)
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return replace(recipe, measured={name: hashlib.sha256(files[name]).hexdigest() for name in files})


def _derive(
    base: BaseModel, selection: Selection, scores: Scores | None, inherited: Inherited
) -> tuple[dict[str, Any], bytes | None]:
    """The recipe's fields that follow from a base and a selection; and the card's figure, if there are scores."""
    figure = draw_scores(scores, selection.frozen_layers) if scores else None
    text = selection.budget.get("text_tokens", TEXT_TOKENS)
    visual = selection.budget.get("visual_tokens", base.prompt_visual_tokens)
    ratio = flops_ratio(base.layer_shapes, selection.frozen_layers, text, visual)
    fields = {
        "family": base.family.model_type,
        "num_layers": base.num_layers,
        "frozen_layers": selection.frozen_layers,
        "selection": asdict(selection),
        "scores": asdict(scores) if scores else None,
        "cost": {"text_tokens": text, "visual_tokens": visual, "flops_ratio": ratio},
        "card": {**asdict(inherited), "template": template_sha256()},
        "figure": hashlib.sha256(figure).hexdigest() if figure else None,
        "code": code_sha256(base.family),
    }
    return fields, figure


def _fill(
    folder: Path, base: BaseModel, recipe: Recipe, figure: bytes | None, evaluation: Evaluation | None = None
) -> Recipe:
    """Writes every file of a package, and returns the recipe that was written."""
    if evaluation is not None:
        recipe = add_measured(folder, recipe, evaluation)
    for name, entry in carried_files(recipe).items():
        source, target = base.path / name, folder / name
        if not target.exists() and copy_file(source, target, folder=base.path) != entry["sha256"]:
            raise ShortVError(f"the copy of {name} differs from the base's file; run the command again.")
    for name, changes in recipe.derived.items():
        text = None
        if name in recipe.base.files:
            text = read_regular(base.path / name, folder=base.path, most=MAX_JSON_BYTES).decode("utf-8", "replace")
        write_text(folder / name, derived_text(text, changes, f"{base.name}: its {name}"))
    for name in recipe.code:
        write_text(folder / name, base.family.source(name))
    write_text(folder / CONFIG_NAME, _config(base, recipe))
    write_text(folder / RECIPE_NAME, json_text(recipe.to_dict()))
    if figure:
        (folder / FIGURE_NAME).write_bytes(figure)
    tag = Package.open(folder).tag
    write_text(folder / CARD_NAME, render_card(base, recipe, tag=tag, evaluation=evaluation))
    return recipe


def _check_same_recipe(made: Recipe, recipe: Recipe) -> None:
    """Refuses a recipe other than the one that this release has made of it."""
    figures, made_figures = ({**each.measured, FIGURE_NAME: each.figure} for each in (recipe, made))
    if any(figures[name] != made_figures.get(name) for name in figures if name.endswith(".png")):
        drawn = ", ".join(f"{name} {recipe.versions.get(name)}" for name in ("matplotlib", "pillow"))
        raise ShortVError(f"the figure differs when drawn here; install the libraries that drew it: {drawn}.")
    before, after = (json.loads(json_text(each.to_dict())) for each in (recipe, made))
    if changed := [name for name in before if before[name] != after[name]]:
        version = recipe.versions["shortv-export"]
        raise ShortVError(
            f"the recipe's {changed[0]} would be different with this release; install the release that wrote it: "
            f"pip install shortv-export=={plain_line(version)}."
        )


def _check_empty(out: Path) -> None:
    """Refuses an output path that is not free."""
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


def _check_fit(base: BaseModel, selection: Selection, scores: Scores | None) -> None:
    """Refuses a selection or scores that were made for another model."""
    layers = base.num_layers
    if selection.num_layers != layers:
        raise ShortVError(f"the selection is for {selection.num_layers} layers, but {base.name} has {layers}.")
    if reason := layers_problem(selection.frozen_layers, layers):
        raise ShortVError(f"the selection's frozen layers {reason}.")
    if scores is not None and len(scores.visual) != layers:
        raise ShortVError(f"the scores are for {len(scores.visual)} layers, but {base.name} has {layers}.")
    for key, ours in (("repo_id", base.repo_id), ("revision", base.revision)):
        theirs = scores and scores.base.get(key)
        if ours and theirs and ours != theirs:
            raise ShortVError(f"the scores were measured on {theirs}, not on {ours}; measure them on {base.name}.")


def _config(base: BaseModel, recipe: Recipe) -> str:
    """The base's ``config.json``, field by field, under the package's own model type and code."""
    fields = {name: value for name, value in base.config.items() if name not in ("auto_map", "shortv_base")}
    try:
        return json_text({**fields, **own_fields(base.family, recipe)})
    except ValueError:
        raise ShortVError(f"the {CONFIG_NAME} of {base.name} holds NaN or Infinity; write a number.") from None
