"""Text becomes a value or is refused in one line."""

from __future__ import annotations

from typing import Any

import pytest

from shortv_export.errors import ShortVError, UsageError
from shortv_export.options import Choice, Contents, Placement, Scoring, Target, parse_layers, parse_max_memory


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("cpu=20GiB", {"cpu": "20GiB"}),
        ("0=10GB, 1=1.5GB ,cpu=0MB", {0: "10GB", 1: "1.5GB", "cpu": "0MB"}),
    ],
)
def test_limits(text: str, limits: Any) -> None:
    assert parse_max_memory(text) == limits


@pytest.mark.parametrize(
    "text",
    [
        *("", "20GiB", "gpu=1GB", "cpu=", "cpu=20", "cpu=-1GB", "cpu=1GB,", "cpu=infGiB"),
        *("cpu=1GB,cpu=2GB", "-1=1GB", "0=much"),
    ],
)
def test_bad_limits_are_refused(text: str) -> None:
    with pytest.raises(ShortVError, match=r"; give ") as caught:
        parse_max_memory(text)
    assert "\n" not in str(caught.value)


def test_layers() -> None:
    """tests/selection tests lists that are refused."""
    assert parse_layers(" 31,29 , 030") == (31, 29, 30)
    assert parse_layers("0,2-5, 7 - 8,9-9") == (0, 2, 3, 4, 5, 7, 8, 9)


@pytest.mark.parametrize(
    "text", ["5-2", "1-", "-1-3", "1--3", "1-2-3", "0-99999999", "0-10000", "a-b", "1_0-2", "1-\u0662"]
)
def test_ranges_that_are_refused(text: str) -> None:
    with pytest.raises(ShortVError, match=r"range.*; give ") as caught:
        parse_layers(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Placement("bf16"), "unknown `dtype` 'bf16'; choose auto, float32, bfloat16 or float16."),
        (lambda: Scoring(positions="x"), "unknown `positions` 'x'; choose answer or first."),
        (lambda: Choice(preset="best"), "unknown `preset` 'best'; choose paper."),
        (lambda: Choice(method="greedy"), "unknown `method` 'greedy'; choose lc, cosine or random."),
        (lambda: Choice(granularity="head"), "unknown `granularity` 'head'; choose operator or layer."),
        (lambda: Contents(weights=None), "unknown `weights` None; choose copy or reference."),
        (lambda: Target(card="both"), "unknown `card` 'both'; choose package or hub."),
    ],
)
def test_choices_in_python(make: Any, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        make()
    assert str(caught.value) == words
