"""A base and a selection become a package: the folder that is published.

Weights are never written anew: each file of the base is carried bit for bit, weights as hard links where the file
system allows it. A package adds the remote code, a ``config.json`` that names it, the recipe and the card.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..base import BaseModel, flops_ratio
from ..errors import ShortVError
from ..files import carry, check_space, json_text, new_folder, same_device, write_text
from ..options import Contents
from ..records import (
    CARD_NAME,
    CONFIG_NAME,
    FIGURE_NAME,
    RECIPE_NAME,
    TOKENIZER_CONFIG_NAME,
    WEIGHTS,
    Evaluation,
    Recipe,
    Scores,
    Selection,
    library_versions,
)
from .benchmark_results import check_evaluation, evaluation_files
from .card import render_card, template_sha256
from .card_metadata import Inherited, inherited_metadata, plain_line, recorded_metadata
from .contents import carried_files, code_sha256, layers_problem, own_fields
from .figures import draw_scores
from .inspection import look_at_recipe
from .package import Package
from .pinned_base import check_same_base
from .tokenizer import tokenizer_classes, with_class

_TEXT_TOKENS = 64  # as in the paper


@dataclass(frozen=True)
class Draft:
    """A package that can be made: whatever could stand in its way has been looked at.

    Attributes:
        base: its base; the weights need not have been downloaded yet.
        out: the folder to make, absolute; missing or empty.
        inherited: what its card takes over from the base's.
        weights: ``"copy"``, or ``"reference"`` for a package whose code loads those of its base on the Hub.
    """

    base: BaseModel
    out: Path
    inherited: Inherited
    weights: str

    @classmethod
    def of(cls, base: BaseModel, out: Path, contents: Contents = Contents()) -> Draft:
        """Decides the licence, and looks at the folder and the disk.

        Raises:
            ShortVError: `out` is a file or not empty; the disk is too full; no licence is known; a base that is
                not on the Hub cannot be referenced.
        """
        out = Path(os.path.abspath(out))
        _check_empty(out)
        weights = contents.weights
        if weights not in WEIGHTS:
            raise ShortVError(f"`weights` is {weights!r}; choose one of: {', '.join(WEIGHTS)}.")
        if weights == "reference" and not (base.repo_id and base.revision):
            raise ShortVError(
                f"{base.name} is a folder, which nobody else can load weights from; leave out `weights`."
            )
        inherited = inherited_metadata(base, contents.license)
        _check_room(base, out, weights)
        return cls(base, out, inherited, weights)


def build_package(draft: Draft, selection: Selection, scores: Scores | None = None) -> Package:
    """Makes a package: whole or not at all. The same arguments give the same bytes.

    Args:
        draft: what it is made of; the base's weights have been fetched.
        selection: which layers to freeze.
        scores: what the layers were selected by. The recipe keeps them, and the card's figure shows them.

    Raises:
        ShortVError: the folder cannot be written; the selection or the scores are for another model.
    """
    base = draft.base
    _check_fit(base, selection, scores)
    derived, figure = _derive(base, selection, scores, draft.inherited)
    recipe = Recipe(
        base=base.record(),
        weights=draft.weights,
        versions=library_versions(*(("matplotlib", "pillow") if scores else ())),
        tokenizer_class=tokenizer_classes(base),
        **derived,
    )
    with new_folder(draft.out) as folder:
        _fill(folder, base, recipe, figure)
    return Package.open(draft.out)


def rebuild_package(base: BaseModel, out: Path, recipe: Recipe, evaluation: Evaluation | None = None) -> Package:
    """Makes the package that a recipe describes, byte for byte; or nothing.

    Args:
        base: the recipe's base, from the Hub or as a folder with the same files.
        out: the folder to make, missing or empty.
        recipe: of a package.
        evaluation: of the package, if its recipe has one.

    Raises:
        ShortVError: as in `build_package`; the base's files are not the recipe's; this release or its libraries make
            something else of the recipe.
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
    derived, figure = _derive(base, selection, scores, inherited)
    with new_folder(out) as folder:
        made = _fill(folder, base, replace(recipe, **derived, measured={}), figure, evaluation)
        _check_same_recipe(made, recipe)
    return Package.open(out)


def add_measured(folder: Path, recipe: Recipe, evaluation: Evaluation) -> Recipe:
    """Writes the files that an evaluation adds to a package; returns the recipe that names them.

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
    """The fields of a recipe that follow from a base and a selection; and the card's figure, if there are scores."""
    figure = draw_scores(scores, selection.frozen_layers) if scores else None
    fields = {
        "family": base.family.model_type,
        "num_layers": base.num_layers,
        "frozen_layers": selection.frozen_layers,
        "selection": asdict(selection),
        "scores": asdict(scores) if scores else None,
        "cost": _cost(base, selection),
        "card": {**asdict(inherited), "template": template_sha256()},
        "figure": hashlib.sha256(figure).hexdigest() if figure else None,
        "code": code_sha256(base.family),
    }
    return fields, figure


def _fill(
    folder: Path, base: BaseModel, recipe: Recipe, figure: bytes | None, evaluation: Evaluation | None = None
) -> Recipe:
    """Writes every file of a package; returns the recipe as it was written."""
    if evaluation is not None:
        recipe = add_measured(folder, recipe, evaluation)
    for name, entry in carried_files(recipe).items():
        carry(base.path / name, folder / name, entry["sha256"])
    if classes := recipe.tokenizer_class:
        text = (base.path / TOKENIZER_CONFIG_NAME).read_bytes().decode("utf-8")
        write_text(folder / TOKENIZER_CONFIG_NAME, with_class(text, classes["base"], classes["package"]))
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
    """Refuses a recipe that this release would not write for the same package."""
    before, after = (json.loads(json_text(each.to_dict())) for each in (recipe, made))
    figures = [{**each["measured"], FIGURE_NAME: each["figure"]} for each in (before, after)]
    if any(figures[0][name] != figures[1].get(name) for name in figures[0] if name.endswith(".png")):
        drawn = ", ".join(f"{name} {recipe.versions.get(name)}" for name in ("matplotlib", "pillow"))
        raise ShortVError(f"the figure comes out different here; install what drew it: {drawn}.")
    if changed := [name for name in before if before[name] != after[name]]:
        version = recipe.versions["shortv-export"]
        raise ShortVError(
            f"this release makes something else of the recipe's {changed[0]}; install the one that wrote it: "
            f"pip install shortv-export=={plain_line(version)}."
        )


def _check_empty(out: Path) -> None:
    """Refuses a folder that a package cannot be made in."""
    if out.is_dir():
        if any(out.iterdir()):
            raise ShortVError(f"{out} exists and is not empty; name another output folder.")
    elif out.exists() or out.is_symlink():
        raise ShortVError(f"{out} exists and is not a folder; name another output folder.")


def _check_room(base: BaseModel, out: Path, weights: str) -> None:
    """Refuses a disk that is too full for weights that have to be copied. On one disk they are hard links."""
    if weights == "copy" and not same_device(base.path, out):
        check_space(
            out,
            base.weight_bytes,
            f"copying the weights of {base.name}, which are on another disk,",
            "name a folder with more room or on the disk of the weights, or choose `weights` reference",
        )


def _check_fit(base: BaseModel, selection: Selection, scores: Scores | None) -> None:
    """Refuses a selection or scores that were made for another model."""
    layers = base.num_layers
    if selection.num_layers != layers:
        raise ShortVError(f"the selection is for {selection.num_layers} layers, but {base.name} has {layers}.")
    if reason := layers_problem(selection.frozen_layers, layers):
        raise ShortVError(f"the selection's frozen layers {reason}.")
    if scores is None:
        return
    if len(scores.visual) != layers:
        raise ShortVError(f"the scores are for {len(scores.visual)} layers, but {base.name} has {layers}.")
    for key, ours in (("repo_id", base.repo_id), ("revision", base.revision)):
        theirs = scores.base.get(key)
        if ours and theirs and ours != theirs:
            raise ShortVError(f"the scores were measured on {theirs}, not on {ours}; measure them on {base.name}.")


def _config(base: BaseModel, recipe: Recipe) -> str:
    """The base's ``config.json``, field by field, under the package's own model type and code."""
    fields = {name: value for name, value in base.config.items() if name not in ("auto_map", "shortv_base")}
    try:
        return json_text({**fields, **own_fields(base.family, recipe)})
    except ValueError:
        raise ShortVError(f"the {CONFIG_NAME} of {base.name} holds NaN or Infinity; write a number.") from None


def _cost(base: BaseModel, selection: Selection) -> dict[str, Any]:
    """The share of the base's FLOPs (paper, Eq. 5), at the selection's prompt length or the paper's."""
    text = selection.budget.get("text_tokens", _TEXT_TOKENS)
    visual = selection.budget.get("visual_tokens", base.prompt_visual_tokens)
    ratio = flops_ratio(base.layer_shapes, selection.frozen_layers, text, visual)
    return {"text_tokens": text, "visual_tokens": visual, "flops_ratio": ratio}
