"""The benchmarks run: the fast ones at the smallest size, the others as far as their imports. No time is tested."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NAMES = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem != "__init__")
SMALL = ["--layers", "3", "--hidden-size", "128"]


@pytest.mark.parametrize("name", NAMES)
def test_imports(name):
    if name == "serving":
        pytest.importorskip("vllm")
    assert callable(importlib.import_module(f"benchmarks.{name}").main)


def run(name: str, *options: str) -> None:
    subprocess.run(
        [sys.executable, f"benchmarks/{name}.py", *options],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
    )


def test_contribution(tmp_path):
    """The walk and the plain loop agree."""
    run(
        "contribution", *SMALL, "--tokens", "80", "--repeats", "1", "--of", "visual", "text", "--json", f"{tmp_path}/r"
    )
    (row,) = json.loads((tmp_path / "r").read_text())["rows"]
    assert 0 <= row["largest_relative_difference"] < 1e-4


def test_prefill(tmp_path):
    run("prefill", *SMALL, "--repeats", "1", "--operators", "--output", f"{tmp_path}/r")
    result = json.loads((tmp_path / "r").read_text())
    assert set(result["median_seconds"]) == {"stock", "frozen", "stock_floor", "frozen_floor"}
