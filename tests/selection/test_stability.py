"""The bootstrap against a case small enough to write out, and against all resamples of a small one."""

from __future__ import annotations

import itertools
from dataclasses import asdict

import numpy as np
import pytest

from shortv_export.options import Budget
from shortv_export.records.scores import Scores
from shortv_export.selection.budgets import select_layers
from shortv_export.selection.stability import boundary, describe


def scores(rows: list[list[float]]) -> Scores:
    means = tuple(np.mean(rows, axis=0).tolist())
    zeros = (0.0,) * len(means)
    return Scores(means, zeros, zeros, len(rows), tuple(map(tuple, rows)))


def test_two_samples_and_two_layers() -> None:
    # Drawn twice: both the first, one chance in four; both the second, one in four; each once, one in two. Layer 0
    # is the lower one unless the second sample comes twice.
    found = boundary(scores([[0.0, 3.0], [2.0, 0.0]]), 1, resamples=4000)
    assert found is not None
    assert (found.inside, found.outside, found.num_samples, found.num_frozen) == (0, 1, 2, 1)
    assert found.order_kept == pytest.approx(0.75, abs=0.03)  # four standard deviations
    assert found.selection_frequency == pytest.approx((0.75, 0.25), abs=0.03)


@pytest.mark.parametrize("num_frozen", [1, 2, 3, 4])
def test_against_every_resample_there_is(num_frozen: int) -> None:
    rows = np.random.default_rng(5).random((4, 5)).round(1).tolist()  # rounded, so that layers tie
    chosen, kept, total = np.zeros(5), 0, 0
    order = sorted(range(5), key=lambda layer: (float(np.mean(rows, axis=0)[layer]), -layer))
    for draw in itertools.product(range(4), repeat=4):
        drawn = scores([rows[number] for number in draw])
        frozen = select_layers(drawn, Budget(num_frozen=num_frozen)).frozen_layers
        chosen[list(frozen)] += 1
        total += 1
        first, second = (drawn.visual[layer] for layer in order[num_frozen - 1 : num_frozen + 1])
        kept += first < second or (first == second and order[num_frozen - 1] > order[num_frozen])
    found = boundary(scores(rows), num_frozen, resamples=6000)
    assert found is not None
    assert (found.inside, found.outside) == (order[num_frozen - 1], order[num_frozen])
    np.testing.assert_allclose(found.selection_frequency, chosen / total, atol=0.03)
    assert found.order_kept == pytest.approx(kept / total, abs=0.03)
    assert sum(found.selection_frequency) == pytest.approx(num_frozen)


def test_layers_that_are_far_apart_always_keep_their_order() -> None:
    found = boundary(scores([[0.1, 5.0, 0.0], [0.2, 6.0, 0.0], [0.1, 5.5, 0.0]]), 2)
    assert found is not None
    assert (found.selection_frequency, found.order_kept) == ((1.0, 0.0, 1.0), 1.0)
    assert "layer 0 (frozen) ranks before layer 1 (not frozen) in 100% of bootstrap resamples" in describe(
        scores([[0.1, 5.0, 0.0], [0.2, 6.0, 0.0], [0.1, 5.5, 0.0]]), 2
    )


def test_the_seed_decides_and_the_selection_records_it() -> None:
    rows = scores(np.random.default_rng(1).random((9, 6)).tolist())
    assert boundary(rows, 3) == boundary(rows, 3)
    assert boundary(rows, 3) != boundary(rows, 3, seed=1)
    found = boundary(rows, 3)
    assert found is not None
    assert select_layers(rows, Budget(num_frozen=3)).evidence == {"boundary": asdict(found)}


def test_where_nothing_can_be_said() -> None:
    single, pair = scores([[0.1, 0.2]]), scores([[0.1, 0.2], [0.3, 0.1]])
    bare = Scores(pair.visual, pair.text, pair.visual_standard_error, 2)
    for given, num_frozen, reason in (
        (single, 1, "a single sample"),
        (pair, 2, "every layer is frozen"),
        (bare, 1, "lack the values of each sample"),
    ):
        assert boundary(given, num_frozen) is None
        assert reason in describe(given, num_frozen)
        assert len(describe(given, num_frozen).splitlines()) == 1
        assert select_layers(given, Budget(num_frozen=num_frozen)).evidence == {}
