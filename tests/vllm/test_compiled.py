"""vLLM's default compilation: one graph for steps with and without visual tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.vllm.engines import ask, difference, engine, model_of


@pytest.mark.parametrize("frozen", [(1, 2), (3,)])
def test_compiled(llava: Callable[..., Path], frozen: Sequence[int]) -> None:
    """Two models that differ in nothing but the list, which no kept graph may mix up."""
    package = llava(frozen)
    with engine(package) as llm:
        eager = ask(llm)
    with engine(package, enforce_eager=False) as llm:
        compiled, again = ask(llm), ask(llm, alone=True)
        model = model_of(llm)
        assert model.get_language_model().model.do_not_compile is False
        assert model.shortv_counter.steps > 0
    assert difference(compiled, eager) <= 2e-5
    assert difference(again, eager) <= 2e-5
