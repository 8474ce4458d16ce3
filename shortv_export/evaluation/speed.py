"""What a change to a model does to its prompt pass: time, memory and floating-point operations.

Base and changed model are the same weights in the same process, and take turns, so that a slow moment of the machine
meets both.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..base import LayerShape, layer_shapes, model_flops
from ..base.definition import input_device, placed, text_decoder, visual_tokens
from ..errors import ShortVError
from ..records import Pair, Speed

REPEATS = 7

Inputs = Mapping[str, Any]


@dataclass(frozen=True)
class Change:
    """Something done to a base model for a while, such as freezing layers.

    Attributes:
        name: for tables.
        apply: called with the model and with the inputs that it will be given; while the context that it returns
            lasts, the model is the changed one.
        frozen_layers: the layers that it freezes, if that is all it does.
        flops: what the cost model says of the changed decoder layers, from their shapes and the numbers of text and
            of visual tokens.
    """

    name: str
    apply: Callable[[Any, Inputs], AbstractContextManager[Any]]
    frozen_layers: tuple[int, ...] | None = None
    flops: Callable[[Sequence[LayerShape], int, int], float] | None = None

    def flops_ratio(self, shapes: Sequence[LayerShape], text_tokens: int, visual_tokens: int) -> float | None:
        """Its FLOPs over the base's; None where the cost model does not know it."""
        if self.flops is None:
            return None
        return self.flops(shapes, text_tokens, visual_tokens) / model_flops(shapes, (), text_tokens, visual_tokens)


def frozen(layers: Sequence[int], num_layers: int) -> Change:
    """Freezing these decoder layers of a model that freezes none, which a loaded package is."""

    @contextmanager
    def apply(model: Any, inputs: Inputs) -> Iterator[None]:
        model.freeze_layers(list(layers))
        try:
            yield
        finally:
            model.freeze_layers([])

    def flops(shapes: Sequence[LayerShape], text_tokens: int, visual_tokens: int) -> float:
        return model_flops(shapes, layers, text_tokens, visual_tokens)

    return Change(f"{len(layers)} of {num_layers}", apply, tuple(sorted(layers)), flops)


UNCHANGED = Change("base", lambda model, inputs: nullcontext(), ())


def accelerators(model: Any) -> list[torch.device]:
    """The devices besides the CPU that hold parts of a model; none for a model on the CPU."""
    # Of a model that is spread out, some parts may wait in the CPU's memory or on disk (meta).
    found = {parameter.device for parameter in model.parameters()}
    return sorted((device for device in found if device.type not in ("cpu", "meta")), key=str)


def measure_speed(
    model: Any,
    change: Change,
    *,
    inputs: Inputs | None = None,
    tokens: tuple[int, int] | None = None,
    repeats: int = REPEATS,
) -> Speed:
    """Times the prompt pass of a model and of the changed one.

    Args:
        model: a ShortV model that freezes nothing, in evaluation mode.
        change: to measure.
        inputs: what the processor makes of one sample; its token counts are used.
        tokens: or, numbers of text and visual tokens, for embeddings of noise: time does not depend on the values.
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
    counted = Pair(_count_flops(model, UNCHANGED, prompt), _count_flops(model, change, prompt))
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
    """``(1, tokens)`` bool: an image between two halves of text, as prompts have it."""
    before = (text_tokens + 1) // 2
    mask = torch.zeros(1, text_tokens + visual, dtype=torch.bool)
    mask[:, before : before + visual] = True
    return mask


def _embeddings(model: Any, visual: Tensor) -> dict[str, Tensor]:
    """Inputs of the language model alone, for tokens of which `visual` are visual."""
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
    """Median seconds of a forward pass of each side."""
    seconds: dict[str, list[float]] = {"base": [], "changed": []}
    devices = accelerators(model)
    for turn in range(repeats + 1):
        for side, applied in (("base", UNCHANGED), ("changed", change)):
            with torch.inference_mode(), applied.apply(model, inputs):
                _synchronize(devices)
                start = time.perf_counter()
                _run(model, inputs)
                _synchronize(devices)
                elapsed = time.perf_counter() - start
            if turn:  # the first warms up
                seconds[side].append(elapsed)
    return Pair(**{side: statistics.median(values) for side, values in seconds.items()})


def _synchronize(devices: Sequence[torch.device]) -> None:
    """Waits for everything that these accelerators were told to do."""
    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()


def _peak_memory(model: Any, change: Change, inputs: Inputs) -> Pair | None:
    """Bytes that a forward pass of each side needs at most, weights included; None on a CPU."""
    devices = accelerators(model)
    if not devices or devices[0].type not in ("cuda", "mps"):
        return None
    peaks = {}
    for side, applied in (("base", UNCHANGED), ("changed", change)):
        with torch.inference_mode(), applied.apply(model, inputs):
            _synchronize(devices)
            if devices[0].type == "cuda":
                for device in devices:
                    torch.cuda.reset_peak_memory_stats(device)
                _run(model, inputs)
                _synchronize(devices)
                peaks[side] = sum(torch.cuda.max_memory_allocated(device) for device in devices)
            else:
                torch.mps.empty_cache()
                _run(model, inputs)
                _synchronize(devices)
                peaks[side] = torch.mps.driver_allocated_memory()
    return Pair(**peaks)


def _count_flops(model: Any, change: Change, inputs: Inputs) -> float:
    """FLOPs of the decoder layers in one forward pass, by torch's counter."""
    names = {id(module): name for name, module in model.named_modules()}
    counter = FlopCounterMode(display=False, custom_mapping=_fused_kernels())
    # Not inference_mode, in which some operations reach the counter only as a whole.
    with torch.no_grad(), change.apply(model, inputs), counter:
        _run(model, inputs)
    counts = counter.get_flop_counts()
    root = type(model).__name__
    layers = (f"{root}.{names[id(layer)]}" for layer in text_decoder(model).layers)
    return float(sum(sum(counts.get(layer, {}).values()) for layer in layers))


def _fused_kernels() -> dict[Any, Callable[..., int]]:
    """The formula for every fused attention, as torch has none for those of a CPU and of MPS; and for experts."""

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
    """What the cost model says of the same tokens."""
    if change.flops is None:
        return None
    shapes = layer_shapes(text_decoder(model).config.to_dict())
    base = model_flops(shapes, (), text_tokens, num_visual)
    return Pair(float(base), float(change.flops(shapes, text_tokens, num_visual)))


def _difference(counted: Pair, expected: Pair) -> float:
    pairs = ((counted.base, expected.base), (counted.changed, expected.changed))
    return max(abs(seen - said) / said for seen, said in pairs)
