"""A package that freezes two layers, an attention and an FFN."""

from __future__ import annotations

from pathlib import Path

import pytest

from shortv_export.base.resolve import resolve_base
from shortv_export.records.selection import Selection
from tests.support.packages import make_package
from tests.support.tiny_llava import build_tiny_llava


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    base = resolve_base(str(build_tiny_llava(folder / "base")))
    return make_package(base, folder / "out", Selection((1, 3), 4, "given", frozen_attention=(0,), frozen_ffn=(2,)))
