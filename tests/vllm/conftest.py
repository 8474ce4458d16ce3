"""Fixtures for tests with vLLM engines. Without vLLM, only the tests of the plan are collected."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

collect_ignore_glob = [] if find_spec("vllm") else ["test_[!p]*.py", "test_parallel.py"]

if find_spec("vllm"):
    # Read when vLLM is imported; processes that tests start inherit them.
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine runs in this process, where tests can look at its model
        "VLLM_TARGET_DEVICE": "cpu",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
        "HF_HUB_OFFLINE": "1",
    }

FROZEN = (1, 2)


@pytest.fixture(autouse=True)
def lookup_of_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, vLLM 0.32.0 looks through all modules at start, and fails at one of numba, which drafting imports."""
    if not find_spec("vllm"):
        return
    from vllm.triton_utils import dispatcher

    def vars_of(value: Any) -> Any:
        return value.__dict__ if hasattr(value.__dict__, "get") else {}

    monkeypatch.setattr(dispatcher, "vars", vars_of, raising=False)


@pytest.fixture(scope="session")
def package_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``package_of(base, frozen=(1, 2), attention=(), ffn=())``: the folder of a package."""
    from shortv_export.base.resolve import resolve_base
    from shortv_export.records.selection import Selection
    from tests.support.packages import make_package

    def make(
        base: Path, frozen: Sequence[int] = FROZEN, attention: Sequence[int] = (), ffn: Sequence[int] = ()
    ) -> Path:
        out = tmp_path_factory.mktemp("package") / "package"
        selection = Selection(tuple(frozen), 4, "given", frozen_attention=tuple(attention), frozen_ffn=tuple(ffn))
        return make_package(resolve_base(str(base)), out, selection)

    return make


@pytest.fixture(scope="session")
def llava(tmp_path_factory: pytest.TempPathFactory, package_of: Callable[..., Path]) -> Callable[..., Path]:
    """``llava(frozen=(1, 2), attention=(), ffn=(), **build_tiny_llava's arguments)``: a package.

    The same call gives the same folder.
    """
    from tests.support.tiny_llava import build_tiny_llava

    made: dict[Any, Path] = {}

    def make(
        frozen: Sequence[int] = FROZEN, attention: Sequence[int] = (), ffn: Sequence[int] = (), **arguments: Any
    ) -> Path:
        key = (tuple(frozen), tuple(attention), tuple(ffn), *sorted(arguments.items()))
        if key not in made:
            base = build_tiny_llava(tmp_path_factory.mktemp("base"), **{"hidden_size": 128, **arguments})
            made[key] = package_of(base, frozen, attention, ffn)
        return made[key]

    return make
