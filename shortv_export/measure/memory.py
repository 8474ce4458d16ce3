"""Where a process runs its model, how much memory is free there, and how much a measurement will need."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..base import LayerShape
from ..errors import ShortVError
from ..options import MaxMemory, Placement, Scoring, parse_max_memory
from .streaming import CheckpointLayers, stored_tensors

if TYPE_CHECKING:
    from accelerate import PartialState


@dataclass(frozen=True)
class MemoryNeed:
    """What a measurement keeps on the computing device, in bytes.

    Attributes:
        weights: resident weights: all of them, or while streaming one decoder layer and everything outside the layers.
        states: hidden states of one sample (see `layer_contributions`).
        layer_call: temporary values of one call of a decoder layer.
        tokens: number of tokens of that sample.
    """

    weights: int
    states: int
    layer_call: int
    tokens: int

    @property
    def total(self) -> int:
        return self.weights + self.states + self.layer_call

    def describe(self, free: int) -> str:
        """What is needed and what is free, in one line."""
        return (
            f"{_gigabytes(self.total)} for a sample of {self.tokens} tokens (weights {_gigabytes(self.weights)}, "
            f"states {_gigabytes(self.states)}, a layer call {_gigabytes(self.layer_call)}); "
            f"{_gigabytes(free)} are free"
        )

    def check(self, free: int, *, stream: bool) -> None:
        """Checks that one sample fits into the free bytes.

        Raises:
            ShortVError: it does not fit; the message names the options that need less.
        """
        if self.total > free:
            levers = ["`max_batch_tokens`", "`dtype` bfloat16"]
            levers = levers if stream else ["`stream`", "`device_map` auto", *levers]
            raise ShortVError(
                f"too little memory: it takes {self.describe(free)}. What takes less: {', '.join(levers)}."
            )


def estimate(
    weights: int, shapes: Sequence[LayerShape], tokens: int, value_bytes: int, scoring: Scoring
) -> MemoryNeed:
    """Estimates the memory that one sample needs.

    Args:
        weights: bytes of the resident weights (see `weight_bytes`).
        shapes: of the decoder layers.
        tokens: of the sample.
        value_bytes: bytes per number of the hidden states.
        scoring: how many tokens a layer call has, and how many ablations there are.
    """
    states = len(scoring.ablations) * (len(shapes) - 1) + 1
    hidden = shapes[0].hidden_size
    widest = max(max(shape.intermediate_size, shape.visual_intermediate_size) for shape in shapes)
    rows = tokens * min(states, max(1, scoring.max_batch_tokens // tokens))
    # The peak is inside the FFN: two projections and their product, the residual stream, the normalised input and the
    # output; the norm computes in float32.
    row = value_bytes * (3 * widest + 3 * hidden) + 4 * hidden
    return MemoryNeed(weights, states * tokens * hidden * value_bytes, rows * row, tokens)


def weight_bytes(files: Sequence[Path], value_bytes: int, *, stream: bool) -> int:
    """Bytes of a checkpoint's weights that stay in memory. Reads only the headers of its files.

    Args:
        files: its safetensors files, in the folder of its config.
        value_bytes: bytes per number once loaded.
        stream: whether its decoder layers are read one at a time.
    """
    from transformers import AutoConfig

    checkpoint = CheckpointLayers(AutoConfig.from_pretrained(files[0].parent))
    sizes: Counter[int | None] = Counter()
    for _, name, tensor in stored_tensors(files):
        sizes[checkpoint.layer_of(name)] += math.prod(tensor.get_shape()) * value_bytes
    outside_layers = sizes.pop(None, 0)
    return outside_layers + (max(sizes.values(), default=0) if stream else sum(sizes.values()))


def stored_dtype(files: Sequence[Path]) -> torch.dtype:
    """The dtype of the first floating-point tensor in these safetensors files; float32 if there is none."""
    floats = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    found = (floats.get(tensor.get_dtype()) for _, _, tensor in stored_tensors(files))
    return next((dtype for dtype in found if dtype), torch.float32)


def this_process() -> PartialState:
    """This process among those that `accelerate launch` or `torchrun` started: number, count and device."""
    from accelerate import PartialState

    # Without `cpu=True` on a machine without accelerators, every process would count as the only one.
    return PartialState(cpu=not torch.accelerator.is_available())


def device_map_for(placement: Placement) -> Any:
    """The ``device_map`` to load a model with.

    Returns:
        The one given, ``"auto"`` if memory is limited, or else this process's accelerator. None means the CPU.

    Raises:
        ShortVError: a memory limit is not a size.
    """
    check_max_memory(placement.max_memory)
    device = this_process().device
    if placement.device_map is None and placement.max_memory:
        return "auto"
    if placement.device_map is None and device.type != "cpu":
        return {"": str(device)}
    return placement.device_map


def check_max_memory(max_memory: MaxMemory | None) -> None:
    """Checks that every memory limit is a size.

    Raises:
        ShortVError: a limit is not a size.
    """
    for size in (max_memory or {}).values():
        if not isinstance(size, int) or size < 0:
            # A list of limits may hold commas and spaces, but a size may not.
            parse_max_memory("cpu=" + re.sub(r"[\s,]", "?", str(size)))


def available_memory() -> int:
    """Bytes of main memory that are free, on this machine and within its container's limit."""
    import psutil

    free: int = psutil.virtual_memory().available
    with suppress(ValueError, OSError):  # no container, or one without a limit ("max")
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        # The kernel frees cached files when memory is needed.
        cache = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())["inactive_file"]
        free = min(free, limit - used + int(cache))
    return free


def free_bytes(device: torch.device, max_memory: MaxMemory | None = None) -> int:
    """Bytes that this process may use on a device: its share of what is free, and at most its limit."""
    from accelerate.utils import convert_file_size_to_int

    place: int | str
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        place = device.index or 0
    else:
        free = available_memory() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        place = "cpu"
    if max_memory is None or place not in max_memory:
        return free
    return min(free, convert_file_size_to_int(max_memory[place]))


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error of PyTorch means that memory ran out."""
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


@contextmanager
def out_of_memory(advice: str) -> Iterator[None]:
    """Turns PyTorch's error when memory runs out into one that gives advice.

    Raises:
        ShortVError: memory ran out.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise ShortVError(f"out of memory; {advice}.") from None


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e7 else f"{size / 1e9:.1g} GB"
