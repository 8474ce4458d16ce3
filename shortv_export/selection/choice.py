"""Selects layers for a base as the options `Choice` and `Budget` say."""

from __future__ import annotations

from dataclasses import replace

from ..base import BaseModel
from ..errors import ShortVError
from ..options import Budget, Choice
from ..records import Scores, Selection
from .budgets import Measure, check_budget, select_layers
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
        measure: for `max_kl`.

    Raises:
        ShortVError: there is no source or more than one; a fixed list is given a budget; or the source or the budget
            does not fit the base.
    """
    require_source(choice)
    if choice.scores is not None or choice.method == "random":
        scores = Scores.load(choice.scores) if choice.scores is not None else None
        prompt = (base.layer_shapes, base.prompt_visual_tokens)
        return select_layers(scores, budget, *prompt, method=choice.method, seed=seed, measure=measure), scores
    if budget != Budget() or choice.method != "lc":
        raise ShortVError(
            f"{choice.sources[0]} fixes the list; `num_frozen`, `flops_ratio`, `max_kl` and `method` go with `scores`."
        )
    if choice.preset is None:
        operators = {"frozen_attention": choice.frozen_attention or (), "frozen_ffn": choice.frozen_ffn or ()}
        return given_selection(choice.frozen_layers or (), base.num_layers, **operators), None
    if choice.preset != "paper":
        raise ShortVError(f"unknown `preset` {choice.preset!r}; there is one: paper.")
    return preset_selection(base), None


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
        select_layers(scores, known, base.layer_shapes, base.prompt_visual_tokens, method=choice.method, seed=seed)
        return None
    selection, _ = select(base, choice, known, seed=seed)
    return selection if budget.max_kl is None else None


def select_by_scores(base: BaseModel, scores: Scores, budget: Budget) -> Selection:
    """Selects the layers with the lowest Layer Contributions. `max_kl` needs a measurement and is ignored.

    Raises:
        ShortVError: as `select_layers`.
    """
    budget = replace(budget, max_kl=None)
    return select_layers(scores, budget, base.layer_shapes, base.prompt_visual_tokens)
