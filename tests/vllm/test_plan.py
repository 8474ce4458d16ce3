"""The plan of a step, compared with plain attention under the causal mask. Needs no vLLM."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shortv_export.base.families import FAMILIES
from shortv_export.engines import VLLM_FAMILIES, VLLM_MISSING
from shortv_export.vllm.plan import Plan, make_plan

WIDTH = 4
CPU = torch.device("cpu")


def by_runs(plan: Plan, seen: list[int], lengths: list[int], states: list[torch.Tensor]) -> torch.Tensor:
    """What a causal kernel makes of the runs as sequences: each sees the first `seq_len` keys of its request.

    Args:
        seen: rows of each request in earlier steps.
        lengths: rows of each request in this step.
        states: `(seen + length, WIDTH)` of each request: queries, keys and values alike.
    """
    queries = torch.cat([rows[start:] for rows, start in zip(states, seen, strict=True)])[plan.rows]
    outputs = []
    for number, request in enumerate(plan.request.tolist()):
        query = queries[plan.starts[number] : plan.starts[number + 1]]
        seq_len = seen[request] + lengths[request] - int(plan.rows_after[number])
        keys = states[request][:seq_len]
        causal = torch.ones(len(query), seq_len, dtype=torch.bool).tril(seq_len - len(query))
        outputs.append((query @ keys.T).masked_fill(~causal, -torch.inf).softmax(-1) @ keys)
    return torch.cat(outputs)


@st.composite
def steps(draw: st.DrawFn) -> tuple[list[int], list[list[bool]]]:
    """Rows seen earlier by each request, and which of its rows in this step are visual."""
    requests = draw(
        st.lists(st.tuples(st.integers(0, 5), st.lists(st.booleans(), min_size=1, max_size=9)), min_size=1)
    )
    return [seen for seen, _ in requests], [visual for _, visual in requests]


@settings(deadline=None)
@given(steps())
def test_runs_attend_as_all_rows_do(step: tuple[list[int], list[list[bool]]]) -> None:
    seen, visual = step
    lengths = [len(rows) for rows in visual]
    mask = torch.tensor([row for rows in visual for row in rows])
    starts = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    generator = torch.Generator().manual_seed(0)
    states = [
        torch.randn(s + length, WIDTH, generator=generator, dtype=torch.float64)
        for s, length in zip(seen, lengths, strict=True)
    ]
    plan = make_plan(mask, starts, CPU)

    whole = []
    for rows, before in zip(states, seen, strict=True):
        scores = (rows @ rows.T).masked_fill(~torch.ones(len(rows), len(rows), dtype=torch.bool).tril(), -torch.inf)
        whole.append((scores.softmax(-1) @ rows)[before:])
    expected = torch.cat(whole)
    got = by_runs(plan, seen, lengths, states)
    assert plan.num_visual == int(mask.sum())
    assert plan.filler == bool(mask.all())
    if not plan.filler:
        assert plan.rows.tolist() == [index for index, row in enumerate(mask.tolist()) if not row]
        torch.testing.assert_close(got, expected[~mask])
    put = plan.put(got, len(mask))
    torch.testing.assert_close(put, torch.where(mask[:, None], 0.0, expected))
    assert plan.longest == int(plan.starts.diff().max())
    assert int(plan.starts[-1]) == len(plan.rows)


def test_padding() -> None:
    """Rows and requests that only fill up a captured shape belong to no run."""
    plan = make_plan(torch.tensor([False, True, False]), torch.tensor([0, 2, 3, 3, 3], dtype=torch.int32), CPU)
    assert plan.request.tolist() == [0, 1]
    assert plan.put(torch.ones(2, WIDTH), num_rows=8).sum(1).tolist() == [WIDTH, 0, WIDTH, 0, 0, 0, 0, 0]


def test_families() -> None:
    """Every family of this tool is either served or said to be missing."""
    assert {*VLLM_FAMILIES, *VLLM_MISSING} == set(FAMILIES)
    assert not set(VLLM_FAMILIES) & set(VLLM_MISSING)
    for model_type, name in VLLM_FAMILIES.items():
        assert FAMILIES[model_type].name == name


def test_take_other_rows() -> None:
    plan = make_plan(torch.tensor([True, False]), torch.tensor([0, 2], dtype=torch.int32), CPU)
    with pytest.raises(IndexError):
        plan.take(torch.zeros(1, WIDTH))
