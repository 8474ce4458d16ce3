"""Time, memory and FLOPs of the prefill, for a base and a changed model.

Both are the same loaded weights and run in turn, so that a slow moment of the machine affects both.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..base import layer_shapes, model_flops
from ..base.definition import input_device, placed, text_decoder, visual_tokens
from ..errors import ShortVError
from ..records import Pair, Speed
from .changes import UNCHANGED, Change, Inputs
from .devices import accelerators, synchronize

REPEATS = 7


def measure_speed(
    model: Any,
    change: Change,
    *,
    inputs: Inputs | None = None,
    tokens: tuple[int, int] | None = None,
    repeats: int = REPEATS,
) -> Speed:
    """Times the prefill of a model and of the changed model.

    Args:
        model: a ShortV model that freezes nothing, in evaluation mode.
        change: to measure.
        inputs: of one sample. The language model alone is timed at its token counts.
        tokens: instead of `inputs`, numbers of text and visual tokens.
        repeats: rounds, after one to warm up.

    Raises:
        ShortVError: more tokens than the model has positions for.
    """
    device = input_device(model)
    first_token = None
    if inputs is not None:
        visual = visual_tokens(model.config, inputs["input_ids"])
        inputs = placed(model, inputs)
        first_token = _in_turn(model, change, inputs, repeats)
    else:
        assert tokens is not None
        visual = _visual_after_half(*tokens)
    prompt = _embeddings(model, visual.to(device))
    num_visual = int(visual.sum())
    num_text = visual.numel() - num_visual
    prefill = _in_turn(model, change, prompt, repeats)
    counted = Pair(count_flops(model, UNCHANGED, prompt), count_flops(model, change, prompt))
    expected = _expected_flops(model, change, num_text, num_visual)
    speed_up, limit = prefill.base / prefill.changed, counted.base / counted.changed
    return Speed(
        at="given" if inputs is None else "data",
        text_tokens=num_text,
        visual_tokens=num_visual,
        repeats=repeats,
        first_token_seconds=first_token,
        prefill_seconds=prefill,
        tokens_per_second=Pair(visual.numel() / prefill.base, visual.numel() / prefill.changed),
        peak_memory=_peak_memory(model, change, prompt),
        flops=counted,
        expected_flops=expected,
        flops_difference=None if expected is None else _difference(counted, expected),
        speed_up=speed_up,
        limit=limit,
        share_of_limit=speed_up / limit,
    )


def _visual_after_half(text_tokens: int, visual: int) -> Tensor:
    """``(1, tokens)`` bool: visual tokens between two halves of text, as in a prompt."""
    before = (text_tokens + 1) // 2
    mask = torch.zeros(1, text_tokens + visual, dtype=torch.bool)
    mask[:, before : before + visual] = True
    return mask


def _embeddings(model: Any, visual: Tensor) -> dict[str, Tensor]:
    """Inputs of the language model alone: noise, as time does not depend on the values.

    Args:
        visual: ``(1, tokens)`` bool.
    """
    config = text_decoder(model).config
    most = getattr(config, "max_position_embeddings", visual.numel())
    if visual.numel() > most:
        raise ShortVError(f"{visual.numel()} tokens are more than the model's {most} positions; ask for fewer.")
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(*visual.shape, config.hidden_size, generator=generator)
    return {"inputs_embeds": noise.to(visual.device, model.dtype), "visual_mask": visual}


def _run(model: Any, inputs: Inputs) -> Any:
    return model(**inputs, use_cache=True, logits_to_keep=1)


def _in_turn(model: Any, change: Change, inputs: Inputs, repeats: int) -> Pair:
    """Median seconds of a forward pass, of the base and of the changed model."""
    seconds: dict[str, list[float]] = {"base": [], "changed": []}
    devices = accelerators(model)
    for turn in range(repeats + 1):
        for side, applied in (("base", UNCHANGED), ("changed", change)):
            with torch.inference_mode(), applied.apply(model, inputs):
                synchronize(devices)
                start = time.perf_counter()
                _run(model, inputs)
                synchronize(devices)
                elapsed = time.perf_counter() - start
            if turn:  # the first warms up
                seconds[side].append(elapsed)
    return Pair(**{side: statistics.median(values) for side, values in seconds.items()})


def _peak_memory(model: Any, change: Change, inputs: Inputs) -> Pair | None:
    """Most bytes in use during a forward pass (see `records.Speed`)."""
    devices = accelerators(model)
    if not devices or devices[0].type not in ("cuda", "mps"):
        return None
    peaks = {}
    for side, applied in (("base", UNCHANGED), ("changed", change)):
        with torch.inference_mode(), applied.apply(model, inputs):
            synchronize(devices)
            if devices[0].type == "cuda":
                for device in devices:
                    torch.cuda.reset_peak_memory_stats(device)
                _run(model, inputs)
                synchronize(devices)
                peaks[side] = sum(torch.cuda.max_memory_allocated(device) for device in devices)
            else:
                torch.mps.empty_cache()
                _run(model, inputs)
                synchronize(devices)
                peaks[side] = torch.mps.driver_allocated_memory()
    return Pair(**peaks)


def count_flops(model: Any, change: Change, inputs: Inputs) -> float:
    """FLOPs of the decoder layers in one forward pass, by torch's counter."""
    names = {id(module): name for name, module in model.named_modules()}
    counter = FlopCounterMode(display=False, custom_mapping=_fused_kernels())
    # Not inference_mode: there, some operations reach the counter only as a whole.
    with torch.no_grad(), change.apply(model, inputs), counter:
        _run(model, inputs)
    counts = counter.get_flop_counts()
    root = type(model).__name__
    layers = (f"{root}.{names[id(layer)]}" for layer in text_decoder(model).layers)
    return float(sum(sum(counts.get(layer, {}).values()) for layer in layers))


def _fused_kernels() -> dict[Any, Callable[..., int]]:
    """FLOPs of fused attention and of experts. Torch's counter knows no attention kernel of a CPU or of MPS."""

    def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        batch, heads, queries, width = query
        return 2 * batch * heads * queries * key[-2] * (width + value[-1])

    def experts(rows: Any, weights: Any, *_: Any, **__: Any) -> int:
        return 2 * rows[0] * rows[1] * weights[-1]

    kernels = ("flash_attention", "efficient_attention", "cudnn_attention", "flash_attention_for_cpu")
    names = [f"_scaled_dot_product_{kernel}" for kernel in kernels] + ["_scaled_dot_product_attention_math_for_mps"]
    found = {getattr(torch.ops.aten, name): attention for name in names if hasattr(torch.ops.aten, name)}
    return found | ({torch.ops.aten._grouped_mm: experts} if hasattr(torch.ops.aten, "_grouped_mm") else {})


def _expected_flops(model: Any, change: Change, text_tokens: int, num_visual: int) -> Pair | None:
    """FLOPs of the decoder layers by the cost model; None for a change that it does not cover."""
    if change.flops is None:
        return None
    shapes = layer_shapes(text_decoder(model).config.to_dict())
    base = model_flops(shapes, (), text_tokens, num_visual)
    return Pair(float(base), float(change.flops(shapes, text_tokens, num_visual)))


def _difference(counted: Pair, expected: Pair) -> float:
    pairs = ((counted.base, expected.base), (counted.changed, expected.changed))
    return max(abs(count - model) / model for count, model in pairs)
