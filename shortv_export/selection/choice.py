"""Selects layers for a base as the options `Choice` and `Budget` say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..base import TEXT_TOKENS, BaseModel, flops_ratio
from ..errors import ShortVError
from ..options import Budget, Choice
from ..records import Frozen, Scores, Selection
from .budgets import check_budget, select_layers
from .operators import Measure, better_of, select_operators
from .presets import given_selection, preset_selection


def select(
    base: BaseModel,
    choice: Choice,
    budget: Budget,
    *,
    seed: int,
    measure: Measure | None = None,
) -> tuple[Selection, Scores | None]:
    """Selects layers for a base. Also returns the scores that were used, if any.

    Args:
        choice: where the list comes from, and by which method.
        budget: how many layers; not for a preset or a given list.
        seed: of the random order and of held-out samples.
        measure: for `max_kl`; and to compare single operators with whole layers, which is left out without it.

    Raises:
        ShortVError: there is no source or more than one; a fixed list is given a budget; or the source or the budget
            does not fit the base.
    """
    require_source(choice)
    scores = Scores.load(choice.scores) if choice.scores is not None else None
    granularity = granularity_of(choice, budget, scores)
    if scores is not None or choice.method == "random":
        prompt = (base.layer_shapes, base.prompt_visual_tokens)
        if granularity == "layer" or scores is None:
            return select_layers(scores, budget, *prompt, method=choice.method, seed=seed, measure=measure), scores
        check_budget(budget)
        operators = select_operators(scores, budget, *prompt, seed=seed, measure=measure)
        if measure is None:
            return operators, scores

        def ratio(frozen: Frozen) -> float:
            return flops_ratio(
                base.layer_shapes, **frozen.lists, text_tokens=TEXT_TOKENS, visual_tokens=base.prompt_visual_tokens
            )

        layers = select_layers(scores, Budget(flops_ratio=ratio(operators.frozen)), *prompt)
        return better_of(operators, layers, measure, ratio), scores
    if budget != Budget() or choice.method != "lc":
        raise ShortVError(
            f"{choice.sources[0]} fixes the list; `num_frozen`, `flops_ratio`, `max_kl` and `method` go with `scores`."
        )
    if choice.preset is None:
        given = {"frozen_attention": choice.frozen_attention or (), "frozen_ffn": choice.frozen_ffn or ()}
        return given_selection(choice.frozen_layers or (), base.num_layers, **given), None
    return preset_selection(base), None


def granularity_of(choice: Choice, budget: Budget, scores: Scores | None) -> str:
    """Whether single operators or whole layers are chosen: ``"operator"`` or ``"layer"``.

    Args:
        choice, budget: what is asked for.
        scores: by which it is chosen, if there are any.

    Raises:
        ShortVError: single operators are asked for, and something else or the scores do not allow it.
    """
    possible = may_be_operators(choice, budget)
    if choice.granularity is None:
        return "operator" if possible and scores is not None and scores.positions else "layer"
    if choice.granularity == "operator":
        if choice.sources != ["`scores`"] or not possible:
            raise ShortVError(
                "`granularity` operator goes with `scores` and one of the budgets `flops_ratio` and `max_kl`; "
                "`num_frozen`, presets, lists and other methods are of whole layers."
            )
        if scores is not None:
            scores.operators(scores.positions or "first")
    return choice.granularity


def may_be_operators(choice: Choice, budget: Budget) -> bool:
    """Whether scores may choose single operators for this: the paper's way counts whole layers."""
    return choice.method == "lc" and choice.granularity != "layer" and budget.num_frozen is None and budget != Budget()


def require_source(choice: Choice) -> None:
    """Raises a ShortVError unless exactly one source of the list is given."""
    if len(choice.sources) != 1:
        raise ShortVError(
            "say which layers to freeze with one of `scores`, `preset`, `frozen_layers` and `method` random."
        )


def preview_selection(base: BaseModel, choice: Choice, budget: Budget, *, seed: int) -> Selection | None:
    """The selection, or None if scores or a divergence must be measured first.

    Raises:
        ShortVError: as `select`; what it would refuse after measuring is refused here.
    """
    check_budget(budget)
    # How many layers `max_kl` allows is not known yet. Any number lets the rest be checked.
    known = budget if budget.max_kl is None else Budget(num_frozen=1)
    if not choice.sources:
        zeros = (0.0,) * base.num_layers
        scores = Scores(zeros, zeros, zeros, 1, visual_cosine_distance=zeros)
        granularity_of(replace(choice, scores=Path("scores.json")), budget, None)
        select_layers(scores, known, base.layer_shapes, base.prompt_visual_tokens, method=choice.method, seed=seed)
        return None
    granularity = granularity_of(choice, budget, Scores.load(choice.scores) if choice.scores is not None else None)
    selection, _ = select(base, replace(choice, granularity="layer"), known, seed=seed)
    return selection if budget.max_kl is None and granularity == "layer" else None


def select_by_scores(base: BaseModel, scores: Scores, budget: Budget) -> Frozen:
    """What scores choose for a budget. `max_kl` needs a measurement and is ignored.

    Raises:
        ShortVError: as `select_layers`.
    """
    budget, prompt = replace(budget, max_kl=None), (base.layer_shapes, base.prompt_visual_tokens)
    if granularity_of(Choice(), budget, scores) == "operator":
        return select_operators(scores, budget, *prompt).frozen
    return select_layers(scores, budget, *prompt).frozen
