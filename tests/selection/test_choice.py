"""What is selected for a choice and a budget, and what is refused before anything is measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from shortv_export.base.families import FAMILIES
from shortv_export.base.model import BaseModel
from shortv_export.errors import ShortVError
from shortv_export.options import Budget, Choice
from shortv_export.records.frozen import Frozen
from shortv_export.records.scores import Scores
from shortv_export.selection.choice import preview_selection, select, select_by_scores

SCORES = Scores((0.3, 0.02, 0.5, 0.0), (1.0,) * 4, (0.0,) * 4, 1, visual_cosine_distance=(0.1, 0.2, 0.3, 0.4))


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    SCORES.save(tmp_path / "scores.json")
    return tmp_path / "scores.json"


def base(num_layers: int = 4) -> BaseModel:
    config = {
        "model_type": "llava",
        "image_token_index": 1,
        "image_seq_length": 576,
        "text_config": {"num_hidden_layers": num_layers},
    }
    return BaseModel("a folder", None, None, Path("nowhere"), config, FAMILIES["llava"], ())


def never(frozen_layers: Sequence[int]) -> tuple[float, float]:
    raise AssertionError("there is nothing to measure")


def test_choices_without_measurement(scores: Path) -> None:
    for choice, budget, expected in (
        (Choice(scores), Budget(), (1, 3)),
        (Choice(scores), Budget(num_frozen=3), (0, 1, 3)),
        (Choice(scores, method="cosine"), Budget(num_frozen=1), (0,)),
        (Choice(frozen_layers=(2, 0)), Budget(), (0, 2)),
    ):
        selection, rests_on = select(base(), choice, budget, seed=0, measure=never)
        assert selection.frozen_layers == expected
        assert rests_on == (SCORES if choice.scores else None)
        assert preview_selection(base(), choice, budget, seed=0) == selection
    drawn, _ = select(base(), Choice(method="random"), Budget(), seed=5)
    assert drawn.budget == {"fraction": 0.6, "seed": 5}
    assert preview_selection(base(), Choice(method="random"), Budget(), seed=5) == drawn


def test_a_divergence_is_measured_for_the_scores(scores: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "shortv_export")
    measured: list[Frozen] = []

    def measure(frozen: Frozen) -> tuple[float, float]:
        measured.append(frozen)
        return len(frozen.layers) / 10, 0.01

    budget = Budget(max_kl=0.15)
    assert preview_selection(base(), Choice(scores), budget, seed=0) is None
    assert preview_selection(base(), Choice(method="random"), budget, seed=0) is None
    assert (measured, caplog.messages) == ([], [])
    selection, rests_on = select(base(), Choice(scores), budget, seed=0, measure=measure)
    assert (measured, rests_on) == ([Frozen((1, 3)), Frozen((3,))], SCORES)
    assert selection.frozen_layers == (3,)
    assert caplog.messages == [
        "2 layers frozen together: KL 0.2, standard error 0.01",
        "1 layer frozen together: KL 0.1, standard error 0.01",
    ]


def test_scores_that_have_yet_to_be_measured() -> None:
    for budget in (Budget(), Budget(num_frozen=4), Budget(max_kl=0.1), Budget(flops_ratio=0.9)):
        assert preview_selection(base(), Choice(), budget, seed=0) is None
    assert select_by_scores(base(), SCORES, Budget(num_frozen=1)) == Frozen((3,))
    # The divergence has yet to be measured: as many as without a budget.
    assert select_by_scores(base(), SCORES, Budget(max_kl=0.1)) == select_by_scores(base(), SCORES, Budget())


@pytest.mark.parametrize(
    ("choice", "budget", "message"),
    [
        (Choice(preset="paper", frozen_layers=(1,)), Budget(), "one of `scores`, `preset`, `frozen_layers`"),
        (Choice(frozen_layers=(1,)), Budget(num_frozen=1), "`frozen_layers` fixes the list"),
        (Choice(preset="paper"), Budget(max_kl=0.1), "`preset` fixes the list"),
        (Choice(frozen_layers=(1,), method="cosine"), Budget(), "`frozen_layers` fixes the list"),
        (Choice(frozen_layers=(4,)), Budget(), "out of range"),
        (Choice(preset="paper"), Budget(), "no list for"),
        (Choice(), Budget(num_frozen=5), "from 1 to 4"),
        (Choice(), Budget(num_frozen=1, max_kl=0.1), "give one of them"),
        (Choice(), Budget(max_kl=-0.1), "nats"),
        (Choice(), Budget(flops_ratio=0.01), "out of reach"),
        (Choice(method="random"), Budget(num_frozen=0), "from 1 to 4"),
        (Choice(method="random"), Budget(max_kl=float("nan")), "nats"),
        (Choice(Path("nowhere.json")), Budget(max_kl=0.1), "nowhere.json"),
    ],
)
def test_what_is_refused_is_refused_before(choice: Choice, budget: Budget, message: str) -> None:
    with pytest.raises(ShortVError, match=message) as caught:
        preview_selection(base(), choice, budget, seed=0)
    assert "\n" not in str(caught.value)
    if choice.sources:
        with pytest.raises(ShortVError, match=message):
            select(base(), choice, budget, seed=0, measure=lambda frozen_layers: (0.0, 0.0))


def test_scores_of_another_base_are_refused_before(scores: Path) -> None:
    for budget in (Budget(), Budget(max_kl=0.1)):
        with pytest.raises(ShortVError, match="4 layers, but the model has 5"):
            preview_selection(base(5), Choice(scores), budget, seed=0)
