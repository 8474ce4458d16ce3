"""Makes every file of a package but its weights: a pure function of the base, the selection and the evaluation.

Packaging writes these files, verification compares them with those of a package.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..base import TEXT_TOKENS, BaseModel, flops_ratio
from ..errors import ShortVError
from ..files import json_text, read_regular
from ..records import (
    CARD_NAME,
    CONFIG_NAME,
    FIGURE_NAME,
    RECIPE_NAME,
    Evaluation,
    Recipe,
    Scores,
    Selection,
)
from .card import render_card, template_sha256
from .card_metadata import Inherited, plain_line
from .contents import HANDLER_NAME, carried_files, code_sha256, frozen_problem, own_fields
from .derived import derived_text
from .evaluation_files import evaluation_files
from .figures import draw_scores

DRAWN_WITH = ("matplotlib", "pillow")
"""The libraries that figures depend on. A recipe with scores records their versions."""
MOST_BYTES = 256 << 20
"""The largest file of a package, weights apart. Tokenizers of today take up to 35 MB."""


def recipe_fields(
    base: BaseModel,
    selection: Selection,
    scores: Scores | None,
    inherited: Inherited,
    figure: bytes | None = None,
    *,
    handler: bool = False,
) -> tuple[dict[str, Any], bytes | None]:
    """The recipe's fields that follow from a base and a selection; and the card's figure, if there are scores.

    Args:
        base, selection, scores: that the package is made of.
        inherited: what the card takes over from the base's card.
        figure: instead of drawing it.
        handler: whether the package has one for Inference Endpoints.
    """
    figure = (figure or draw_scores(scores, selection.frozen)) if scores else None
    text = selection.budget.get("text_tokens", TEXT_TOKENS)
    visual = selection.budget.get("visual_tokens", base.prompt_visual_tokens)
    ratio = flops_ratio(base.layer_shapes, **selection.frozen.lists, text_tokens=text, visual_tokens=visual)
    fields = {
        "family": base.family.model_type,
        "num_layers": base.num_layers,
        **selection.frozen.lists,
        "selection": selection.to_dict(),
        "scores": asdict(scores) if scores else None,
        "cost": {"text_tokens": text, "visual_tokens": visual, "flops_ratio": ratio},
        "card": {**inherited.to_dict(), "template": template_sha256()},
        "figure": hashlib.sha256(figure).hexdigest() if figure else None,
        "code": code_sha256(base.family, handler=handler),
    }
    return fields, figure


def measured_files(recipe: Recipe, files: Mapping[str, bytes]) -> Recipe:
    """The recipe with the hashes of the files that an evaluation added."""
    return replace(recipe, measured={name: hashlib.sha256(files[name]).hexdigest() for name in files})


def render_files(
    base: BaseModel,
    recipe: Recipe,
    *,
    figures: Mapping[str, bytes] | None = None,
    evaluation: Evaluation | None = None,
    originals: Mapping[str, bytes] | None = None,
    repo_id: str | None = None,
) -> tuple[Recipe, dict[str, bytes]]:
    """The recipe with the hashes of its evaluation's files; and the files of its package by name, without weights.

    Args:
        base: the base; its weights are not needed.
        recipe: its `measured` is filled in.
        figures: by name, instead of drawing them; that of the scores is needed if there are any.
        evaluation: of the package, if it was evaluated.
        originals: the base's files in which the package names classes, if they are not in the base's folder.
        repo_id: the repository that the card names; None for a package that is not published yet.

    Raises:
        ShortVError: a file of the base cannot be read; its config is not JSON; the evaluation is of another package.
    """
    figures = figures or {}
    measured = evaluation_files(evaluation) if evaluation else {}
    measured |= {name: figures[name] for name in figures.keys() & measured.keys()}
    recipe = measured_files(recipe, measured)
    files = {name: _of_base(base, recipe, name) for name in carried_files(recipe) if not name.endswith(".safetensors")}
    for name, changes in recipe.derived.items():
        content = (originals or {}).get(name)
        if content is None and name in recipe.base.files:
            content = _of_base(base, recipe, name)
        text = None if content is None else content.decode("utf-8", "replace")
        files[name] = derived_text(text, changes, f"{base.name}: its {name}").encode()
    files |= {name: base.family.source(name).encode() for name in recipe.code}
    files[CONFIG_NAME] = _encoded(_config(base, recipe), f"the {CONFIG_NAME} of {base.name}")
    files[RECIPE_NAME] = _encoded(json_text(recipe.to_dict()), RECIPE_NAME)
    if recipe.figure:
        files[FIGURE_NAME] = figures[FIGURE_NAME]
    files |= measured
    card = render_card(base, recipe, tag=recipe.tag, repo_id=repo_id, evaluation=evaluation)
    files[CARD_NAME] = _encoded(card, CARD_NAME)
    return recipe, files


def remake(
    base: BaseModel,
    recipe: Recipe,
    evaluation: Evaluation | None,
    inherited: Inherited,
    *,
    figures: Mapping[str, bytes] | None = None,
    originals: Mapping[str, bytes] | None = None,
    repo_id: str | None = None,
) -> tuple[Recipe, dict[str, bytes]]:
    """Makes recipe and files of a package again, from a base and what the recipe says was chosen.

    Args:
        base: the recipe's base, as the caller has found out.
        recipe: of the package; its `selection`, `scores`, `weights`, `versions` and `derived` are taken over.
        evaluation: of the package, if it was evaluated.
        inherited: what the card takes over from the base's card.
        figures: by name, instead of drawing them.
        originals: as in `render_files`.
        repo_id: the repository that the card names.

    Raises:
        ShortVError: the recipe is not one of this base; or as `render_files`.
    """
    selection = Selection.from_dict(recipe.selection)
    scores = Scores.from_dict(recipe.scores, RECIPE_NAME) if recipe.scores else None
    recorded = recipe.base
    base = replace(base, repo_id=recorded.repo_id, revision=recorded.revision, files=tuple(sorted(recorded.files)))
    check_fit(base, selection, scores)
    given = dict(figures or {})
    handler = HANDLER_NAME in recipe.code
    fields, figure = recipe_fields(base, selection, scores, inherited, given.get(FIGURE_NAME), handler=handler)
    if figure:
        given[FIGURE_NAME] = figure
    made = replace(recipe, **fields)
    return render_files(base, made, figures=given, evaluation=evaluation, originals=originals, repo_id=repo_id)


def check_fit(base: BaseModel, selection: Selection, scores: Scores | None) -> None:
    """Raises a ShortVError for a selection or scores that were made for another model."""
    layers = base.num_layers
    if selection.num_layers != layers:
        raise ShortVError(f"the selection is for {selection.num_layers} layers, but {base.name} has {layers}.")
    if reason := frozen_problem(selection.frozen, layers):
        raise ShortVError(f"the selection's {reason}.")
    unskippable = [layer for layer in selection.frozen_attention if not base.layer_shapes[layer].query_size]
    if unskippable:
        raise ShortVError(
            f"layers {', '.join(map(str, unskippable))} of {base.name} have linear attention or a convolution, which "
            "cannot be skipped; leave them out of `frozen_attention`."
        )
    if scores is not None and len(scores.visual) != layers:
        raise ShortVError(f"the scores are for {len(scores.visual)} layers, but {base.name} has {layers}.")
    for key, ours in (("repo_id", base.repo_id), ("revision", base.revision)):
        theirs = scores and scores.base.get(key)
        if ours and theirs and ours != theirs:
            raise ShortVError(f"the scores were measured on {theirs}, not on {ours}; measure them on {base.name}.")


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes files into a new folder, which nobody else knows yet."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)


def _of_base(base: BaseModel, recipe: Recipe, name: str) -> bytes:
    content = read_regular(base.path / name, folder=base.path, most=MOST_BYTES)
    if hashlib.sha256(content).hexdigest() != recipe.base.files[name]["sha256"]:
        raise ShortVError(f"{base.name}: its {name} is not the recipe's, or was changed meanwhile; run it again.")
    return content


def check_same_recipe(made: Recipe, recipe: Recipe) -> None:
    """Refuses a recipe other than the one that this release makes of it.

    Raises:
        ShortVError: a field differs.
    """
    before, after = (json.loads(json_text(each.to_dict())) for each in (recipe, made))
    if changed := [name for name in before if before[name] != after[name]]:
        raise ShortVError(f"the recipe's {changed[0]} would be different with this release; {its_release(recipe)}.")


def its_release(recipe: Recipe) -> str:
    """What to do about a recipe of another release."""
    release = plain_line(recipe.versions["shortv-export"])
    return f"install the release that wrote it, shortv-export {release}"


def _encoded(text: str, what: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:  # parsed JSON may have lone surrogates
        raise ShortVError(f"{what} has text that is not valid Unicode; correct it.") from None


def _config(base: BaseModel, recipe: Recipe) -> str:
    """The base's ``config.json``, field by field, under the package's own model type and code."""
    fields = {name: value for name, value in base.config.items() if name not in ("auto_map", "shortv_base")}
    try:
        return json_text({**fields, **own_fields(base.family, recipe)})
    except ValueError:
        raise ShortVError(f"the {CONFIG_NAME} of {base.name} holds NaN or Infinity; write a number.") from None
