"""A Hub to publish to, and packages to publish."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from shortv_export.base.resolve import resolve_base
from shortv_export.loopback import LoopbackHub
from shortv_export.records.scores import Scores
from shortv_export.records.selection import Selection
from tests.support.packages import make_package

SCORES = Scores((0.3, 0.02, 0.5, 0.0), (1.5, 2.0, 0.7, 0.1), (0.1, 0.01, 0.1, 0.0), 2)


@pytest.fixture
def loopback(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> LoopbackHub:
    """The Hub; retries do not wait."""
    monkeypatch.setattr("time.sleep", lambda _: None)
    return hub


@pytest.fixture(scope="session")
def packages(tiny_base: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two packages of the same base, in two shards, with different frozen layers; only `two` has a figure."""
    base = resolve_base(tiny_base(num_shards=2))
    folder = tmp_path_factory.mktemp("packages")
    one = make_package(base, folder / "one", Selection((1,), 4, "given"))
    two = make_package(base, folder / "two", Selection((1, 3), 4, "lc"), scores=SCORES)
    return {"one": one, "two": two}


@pytest.fixture
def package(packages: dict[str, Path]) -> Path:
    """A package. Tests must not change it."""
    return packages["one"]
