"""Time, memory and FLOPs of the prefill, for a base and a changed model.

Both are the same loaded weights and run in turn, so that a slow moment of the machine affects both. The language model
is also timed with nothing frozen, in the same rounds: a control, which shows how far the machine itself is off.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..base import layer_shapes, model_flops
from ..base.definition import input_device, placed, text_decoder, visual_tokens
from ..errors import ShortVError
from ..records import Frozen, Pair, Speed
from .changes import UNCHANGED, Change, Inputs, shortv


def measure_speed(
    model: Any,
    change: Change,
    *,
    inputs: Inputs | None = None,
    tokens: tuple[int, int] | None = None,
    repeats: int = 7,
) -> Speed:
    """Measures the prefill of a model and of the changed model.

    Args:
        model: a ShortV model that freezes nothing, in evaluation mode.
        change: the change to measure.
        inputs: of one sample: the whole model is timed up to the first token, and the language model alone at the
            sample's token counts.
        tokens: instead of `inputs`, numbers of text and visual tokens; the language model alone is timed.
        repeats: timed rounds, after one to warm up.

    Raises:
        ShortVError: more tokens than the model has positions for.
    """
    first_token = None
    if inputs is not None:
        visual = visual_tokens(model.config, inputs["input_ids"])
        first_token = Pair(
            *map(statistics.median, _seconds(model, (UNCHANGED, change), placed(model, inputs), repeats))
        )
    else:
        assert tokens is not None
        visual = torch.zeros(1, sum(tokens), dtype=torch.bool)
        before = (tokens[0] + 1) // 2  # text before and after the visual tokens, as in a prompt
        visual[:, before : before + tokens[1]] = True
    num_visual = int(visual.sum())
    num_text = visual.numel() - num_visual
    prompt = _embeddings(model, visual.to(input_device(model)))
    base_times, times, control_times = _seconds(model, (UNCHANGED, change, shortv(Frozen(), 0)), prompt, repeats)
    prefill = Pair(statistics.median(base_times), statistics.median(times))
    ratios, control_ratios = (
        tuple(before / after for before, after in zip(base_times, side, strict=True))
        for side in (times, control_times)
    )
    counted = Pair(count_flops(model, UNCHANGED, prompt), count_flops(model, change, prompt))
    expected = difference = None
    if change.flops is not None:
        shapes = layer_shapes(text_decoder(model).config.to_dict())
        base = model_flops(shapes, (), num_text, num_visual)
        expected = Pair(float(base), float(change.flops(shapes, num_text, num_visual)))
        sides = ((counted.base, expected.base), (counted.changed, expected.changed))
        difference = max(abs(count - cost) / cost for count, cost in sides)
    speed_up, limit = statistics.median(ratios), counted.base / counted.changed
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
        flops_difference=difference,
        ratios=ratios,
        control_ratios=control_ratios,
        speed_up=speed_up,
        control=statistics.median(control_ratios),
        limit=limit,
        share_of_limit=speed_up / limit,
    )


def accelerators(model: Any) -> list[torch.device]:
    """The devices besides the CPU that hold parts of a model."""
    # Parts that wait on disk are on the device "meta".
    found = {parameter.device for parameter in model.parameters()}
    return sorted((device for device in found if device.type not in ("cpu", "meta")), key=str)


def device_name(model: Any) -> str:
    """The name of a model's devices, such as ``"2 x NVIDIA H100"``."""
    devices = accelerators(model)
    if not devices:
        threads = torch.get_num_threads()
        return f"CPU ({platform.machine()}), {threads} thread{'s' if threads > 1 else ''}"
    if devices[0].type != "cuda":
        return devices[0].type
    number = f"{len(devices)} x " if len(devices) > 1 else ""
    return number + str(torch.cuda.get_device_name(devices[0]))


def count_flops(model: Any, change: Change, inputs: Inputs) -> float:
    """FLOPs of the decoder layers in one forward pass, by torch's counter."""
    names = {id(module): name for name, module in model.named_modules()}
    counter = FlopCounterMode(display=False, custom_mapping=_fused_kernels())
    # In inference_mode, the counter sees some operations as a whole and counts nothing inside them.
    with torch.no_grad(), change.apply(model, inputs), counter:
        _prefill(model, inputs)
    counts = counter.get_flop_counts()
    root = type(model).__name__
    layers = (f"{root}.{names[id(layer)]}" for layer in text_decoder(model).layers)
    return float(sum(sum(counts.get(layer, {}).values()) for layer in layers))


def _fused_kernels() -> dict[Any, Callable[..., int]]:
    """FLOPs of fused kernels that torch's counter may not know: attention, on the CPU and MPS too, and experts."""

    def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        batch, heads, queries, width = query
        return 2 * batch * heads * queries * key[-2] * (width + value[-1])

    def experts(rows: Any, weights: Any, *_: Any, **__: Any) -> int:
        return 2 * rows[0] * rows[1] * weights[-1]

    kernels = ("flash_attention", "efficient_attention", "cudnn_attention", "flash_attention_for_cpu")
    names = [f"_scaled_dot_product_{kernel}" for kernel in kernels] + ["_scaled_dot_product_attention_math_for_mps"]
    found = {getattr(torch.ops.aten, name): attention for name in names if hasattr(torch.ops.aten, name)}
    return found | ({torch.ops.aten._grouped_mm: experts} if hasattr(torch.ops.aten, "_grouped_mm") else {})


def _embeddings(model: Any, visual: Tensor) -> dict[str, Tensor]:
    """Inputs of the language model alone: noise, as time does not depend on the values."""
    config = text_decoder(model).config
    most = getattr(config, "max_position_embeddings", visual.numel())
    if visual.numel() > most:
        raise ShortVError(f"{visual.numel()} tokens are more than the model's {most} positions; ask for fewer.")
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(*visual.shape, config.hidden_size, generator=generator)
    return {"inputs_embeds": noise.to(visual.device, model.dtype), "visual_mask": visual}


def _prefill(model: Any, inputs: Inputs) -> None:
    model(**inputs, use_cache=True, logits_to_keep=1)


def _seconds(model: Any, sides: Sequence[Change], inputs: Inputs, repeats: int) -> list[list[float]]:
    """Seconds of a prefill with each of these changes in turn: one list for each, of all rounds."""
    seconds: list[list[float]] = [[] for _ in sides]
    devices = accelerators(model)
    for _ in range(repeats + 1):
        for times, side in zip(seconds, sides, strict=True):
            with torch.inference_mode(), side.apply(model, inputs):
                _synchronize(devices)
                start = time.perf_counter()
                _prefill(model, inputs)
                _synchronize(devices)
                times.append(time.perf_counter() - start)
    return [times[1:] for times in seconds]  # the first round warms up


def _peak_memory(model: Any, change: Change, inputs: Inputs) -> Pair | None:
    """Most bytes in use during a prefill (see `records.Speed`)."""
    devices = accelerators(model)
    if not devices or devices[0].type not in ("cuda", "mps"):
        return None
    on_cuda, peaks = devices[0].type == "cuda", []
    for side in (UNCHANGED, change):
        with torch.inference_mode(), side.apply(model, inputs):
            _synchronize(devices)
            if on_cuda:
                for device in devices:
                    torch.cuda.reset_peak_memory_stats(device)
            else:
                torch.mps.empty_cache()
            _prefill(model, inputs)
            _synchronize(devices)
            held = map(torch.cuda.max_memory_allocated, devices) if on_cuda else [torch.mps.driver_allocated_memory()]
            peaks.append(sum(held))
    base, changed = peaks
    return Pair(base, changed)


def _synchronize(devices: Sequence[torch.device]) -> None:
    """Waits until these accelerators have finished their work."""
    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()
