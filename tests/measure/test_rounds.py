"""Rounds: how many samples each has, and when they end."""

from __future__ import annotations

import pytest

from shortv_export.measure.scorer import score_in_rounds
from shortv_export.records.frozen import Frozen
from shortv_export.records.scores import Scores
from shortv_export.samples.decode import Sample
from shortv_export.samples.draw import DrawnSamples


def scores(samples: DrawnSamples) -> Scores:
    return Scores((0.0,), (0.0,), (0.0,), len(samples.samples))


@pytest.mark.parametrize(
    ("available", "most", "changes", "rounds", "stable"),
    [
        (99, 160, 0, [4, 6, 9], True),
        (99, 160, 2, [4, 6, 9, 13, 19], True),
        (99, 7, 9, [4, 6, 7], False),
        (99, 4, 0, [4], False),
        (8, 160, 9, [4, 6, 8], False),
        (6, 160, 0, [4, 6], False),
    ],
)
def test_rounds(
    available: int, most: int, changes: int, rounds: list[int], stable: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The selection changes in so many rounds after the first."""
    caplog.set_level("INFO", "shortv_export")
    asked: list[tuple[int, bool]] = []
    selections = [(0, layer + 1) for layer in range(changes)] + [(0, changes + 1)] * 9

    def draw(number: int, allow_fewer: bool) -> DrawnSamples:
        asked.append((number, allow_fewer))
        found = tuple(Sample((), "?", None, str(each)) for each in range(min(number, available)))
        return DrawnSamples(found, {})

    found = score_in_rounds(scores, draw, lambda _: Frozen(selections.pop(0)), 4, most)
    assert found.num_samples == rounds[-1]
    assert found.until_stable == {"num_frozen": 2, "rounds": rounds, "stable": stable}
    assert [allow_fewer for _, allow_fewer in asked] == [False] + [True] * (len(asked) - 1)
    first, *others, last = caplog.messages
    assert first == "round 1: 4 samples"
    assert len(others) == len(rounds) - 1
    assert all("of the 2 selected layers were not selected in the round before" in message for message in others)
    told = "the selection is stable" if stable else "the selection may still change"
    assert last.startswith(f"{told} after {rounds[-1]} samples")
