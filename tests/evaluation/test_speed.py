"""Speed: what is timed is the side that it says, and the counted operations are those of the cost model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from shortv_export.base.cost import dense_layer_flops, frozen_layer_flops
from shortv_export.base.shapes import LayerShape
from shortv_export.errors import ShortVError
from shortv_export.evaluation.changes import UNCHANGED, Change, shortv
from shortv_export.evaluation.speed import measure_speed
from shortv_export.records.frozen import Frozen

LAYERS = 4


@pytest.fixture
def load(load_pair: Callable[..., Any]) -> Callable[..., Any]:
    """``load(...)``: a pair whose ShortV model freezes nothing yet, as the evaluation loads it."""

    def make(**arguments: Any) -> Any:
        pair = load_pair(**arguments)
        pair.shortv.freeze_layers([])
        return pair

    return make


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("model", [{}, {"text_model": "qwen2", "num_key_value_heads": 2}])
@pytest.mark.parametrize(
    "frozen", [Frozen(), Frozen((1, 3)), Frozen((0, 1, 2, 3)), Frozen((0,), (1,), (2, 3)), Frozen((), (1, 2))], ids=str
)
def test_counted_operations_are_those_of_the_cost_model(
    load: Callable[..., Any], model: dict[str, Any], attention: str, frozen: Frozen
) -> None:
    pair = load(**model)
    pair.set_attention(attention)
    speed = measure_speed(pair.shortv, shortv(frozen, LAYERS), tokens=(20, 144), repeats=1)
    key_value_size = 64 * model.get("num_key_value_heads", 4) // 4
    shape = LayerShape(64, 128, 64, key_value_size)
    dense, short = dense_layer_flops(shape, 20, 144), frozen_layer_flops(shape, 20, 144)
    ffn = 2 * 144 * 3 * 64 * 128  # what visual tokens cost in the FFN
    changed = LAYERS * dense - len(frozen.layers) * (dense - short) - len(frozen.ffn) * ffn
    changed -= len(frozen.attention) * (dense - short - ffn)
    assert speed.flops.base == pytest.approx(LAYERS * dense, rel=0.01)
    assert speed.flops.changed == pytest.approx(changed, rel=0.01)
    assert speed.expected_flops is not None
    assert (speed.expected_flops.base, speed.expected_flops.changed) == (LAYERS * dense, changed)
    assert speed.flops_difference is not None
    assert speed.flops_difference < 0.01
    assert speed.limit == pytest.approx(LAYERS * dense / changed, rel=0.02)
    assert speed.share_of_limit == pytest.approx(speed.speed_up / speed.limit)
    assert pair.shortv.config.frozen_layers == []


@pytest.mark.parametrize("model_type", ["llava", "llava_next"])
def test_token_counts_are_those_of_the_data(load: Callable[..., Any], model_type: str) -> None:
    pair = load(model_type=model_type)
    inputs = pair.inputs("USER: <image>\n is there a cat ? ASSISTANT:")
    speed = measure_speed(pair.shortv, shortv(Frozen((1, 3)), LAYERS), inputs=inputs, repeats=1)
    visual = int(pair.visual(inputs).sum())
    assert (speed.at, speed.visual_tokens) == ("data", visual)
    assert speed.text_tokens == inputs["input_ids"].shape[1] - visual
    assert speed.first_token_seconds is not None
    assert min(speed.first_token_seconds.base, speed.first_token_seconds.changed) > 0
    assert speed.flops_difference == pytest.approx(0, abs=0.01)
    tokens = inputs["input_ids"].shape[1]
    assert speed.tokens_per_second.base == pytest.approx(tokens / speed.prefill_seconds.base)
    assert speed.tokens_per_second.changed == pytest.approx(tokens / speed.prefill_seconds.changed)
    assert speed.peak_memory is None  # this is a CPU


def test_a_change_costs_the_changed_side_only(load: Callable[..., Any]) -> None:
    model = load().shortv
    applied = []

    @contextmanager
    def sleep(model: Any, inputs: Any) -> Iterator[None]:
        applied.append(set(inputs))
        hook = model.model.language_model.register_forward_pre_hook(lambda *_: time.sleep(0.1))
        yield
        hook.remove()

    speed = measure_speed(model, Change("sleep", sleep), tokens=(8, 16), repeats=2)
    assert speed.prefill_seconds.changed > 0.1 > speed.prefill_seconds.base
    assert len(speed.ratios) == len(speed.control_ratios) == speed.repeats == 2
    assert speed.speed_up == pytest.approx(sum(speed.ratios) / 2)
    assert speed.control == pytest.approx(sum(speed.control_ratios) / 2)
    assert max(speed.ratios) < min(speed.control_ratios)  # the control does not sleep
    assert (speed.expected_flops, speed.flops_difference) == (None, None)
    assert speed.flops.base == speed.flops.changed
    assert speed.first_token_seconds is None
    assert all(names == {"inputs_embeds", "visual_mask"} for names in applied)


def test_the_frozen_rows_are_those_said_to_be_visual(load: Callable[..., Any]) -> None:
    model = load().shortv
    skipped = []

    @contextmanager
    def watched(model: Any, inputs: Any) -> Iterator[None]:
        with shortv(Frozen((2,)), LAYERS).apply(model, inputs):
            yield
            report = model.shortv_report()
            skipped.append((report["skipped_attention"], report["skipped_ffn"]))

    measure_speed(model, Change("watched", watched), tokens=(5, 16), repeats=1)
    assert skipped
    assert {*skipped} == {(16, 16)}


def test_more_tokens_than_positions(load: Callable[..., Any]) -> None:
    with pytest.raises(ShortVError, match=r"^4200 tokens are more than the model's 4096 positions; ask for fewer\.$"):
        measure_speed(load().shortv, UNCHANGED, tokens=(200, 4000))


def test_half_precision(load: Callable[..., Any]) -> None:
    speed = measure_speed(load(dtype=torch.bfloat16).shortv, shortv(Frozen((0,)), LAYERS), tokens=(8, 16), repeats=1)
    assert speed.flops_difference == pytest.approx(0, abs=0.01)
