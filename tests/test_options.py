"""Text becomes a value or is refused in one line."""

from __future__ import annotations

from typing import Any

import pytest

from shortv_export.errors import ShortVError
from shortv_export.options import parse_layers, parse_max_memory


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
