"""How much memory a measurement takes, estimated before it starts; and how much there is."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base import LayerShape
from ..errors import ShortVError

if TYPE_CHECKING:
    import torch

MaxMemory = Mapping[int | str, int | str]
"""As in ``from_pretrained``: GPU number or ``"cpu"`` -> bytes, or a text such as ``"20GiB"``."""


@dataclass(frozen=True)
class MemoryNeed:
    """What a measurement keeps on the device that computes, in bytes.

    Attributes:
        weights: that are there all the time: all of them, or while streaming all but the decoder's and one layer's.
        states: of one sample, from layer to layer (see `contribution.layer_contributions`).
        layer_call: of one call of a decoder layer, beside the states.
        tokens: of that sample.
    """

    weights: int
    states: int
    layer_call: int
    tokens: int

    @property
    def total(self) -> int:
        return self.weights + self.states + self.layer_call

    def describe(self, free: int) -> str:
        """The numbers in one line for people."""
        return (
            f"{_gigabytes(self.total)} for a sample of {self.tokens} tokens (weights {_gigabytes(self.weights)}, "
            f"states {_gigabytes(self.states)}, a layer call {_gigabytes(self.layer_call)}); "
            f"{_gigabytes(free)} are free"
        )

    def check(self, free: int, *, stream: bool) -> None:
        """Refuses what cannot fit.

        Raises:
            ShortVError: there is too little memory for one sample.
        """
        if self.total > free:
            levers = ["--max-batch-tokens", "--dtype bfloat16"]
            levers = levers if stream else ["--stream", "--device-map auto", *levers]
            raise ShortVError(
                f"too little memory: it takes {self.describe(free)}. What takes less: {', '.join(levers)}."
            )


def estimate(
    weights: int, shapes: Sequence[LayerShape], tokens: int, value_bytes: int, max_batch_tokens: int
) -> MemoryNeed:
    """What one sample takes.

    Args:
        weights: bytes of the resident weights (see `weight_bytes`).
        shapes: of the decoder's layers.
        tokens: of the sample.
        value_bytes: per number, in weights and states.
        max_batch_tokens: see `contribution.layer_contributions`.
    """
    states = 2 * len(shapes) - 1
    hidden = shapes[0].hidden_size
    widest = max(max(shape.intermediate_size, shape.visual_intermediate_size) for shape in shapes)
    rows = tokens * min(states, max(1, max_batch_tokens // tokens))
    # At the widest place, the FFN: its two projections and their product, beside the residual stream, the normalised
    # input and what the call returns; the norm computes in float32.
    row = value_bytes * (3 * widest + 3 * hidden) + 4 * hidden
    return MemoryNeed(weights, states * tokens * hidden * value_bytes, rows * row, tokens)


def weight_bytes(files: Sequence[Path], value_bytes: int, *, stream: bool) -> int:
    """The bytes of a checkpoint's weights that stay in memory, by the shapes in its safetensors headers.

    Args:
        files: its safetensors files, beside its config.
        value_bytes: per number once loaded.
        stream: whether its decoder layers come one at a time.
    """
    from safetensors import safe_open
    from transformers import AutoConfig

    from .streaming import CheckpointLayers

    checkpoint = CheckpointLayers(AutoConfig.from_pretrained(files[0].parent))
    layers: dict[int, int] = {}
    others = 0
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                size = math.prod(tensors.get_slice(name).get_shape()) * value_bytes
                if (layer := checkpoint.layer_of(name)) is not None:
                    layers[layer] = layers.get(layer, 0) + size
                else:
                    others += size
    return others + (max(layers.values(), default=0) if stream else sum(layers.values()))


def available_memory() -> int | None:
    """Bytes that a new process can use without pushing others out: of this machine, or of its control group.

    Returns:
        None where the system does not tell.
    """
    amounts = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                amounts.append(int(line.split()[1]) << 10)
    except OSError:
        with suppress(ValueError, OSError):  # no such name here, or no such system
            amounts.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with suppress(ValueError, OSError):  # no control group, or one without a limit ("max")
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        cache = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())["inactive_file"]
        amounts.append(limit - used + int(cache))
    return min(amounts, default=None)


def stored_dtype(files: Sequence[Path]) -> torch.dtype:
    """What the first floating-point tensor of these safetensors files is stored as; float32 if there is none."""
    import torch
    from safetensors import safe_open

    stored = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                if found := stored.get(tensors.get_slice(name).get_dtype()):
                    return found
    return torch.float32


def free_bytes(device: torch.device, max_memory: MaxMemory | None = None) -> int:
    """The memory that this process may take on a device: of what is free, its share and at most its limit."""
    import torch

    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        place: int | str = device.index or 0
    else:
        import psutil

        # Less than the machine has, in a container.
        free = min(psutil.virtual_memory().available, available_memory() or sys.maxsize)
        free //= int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        place = "cpu"
    if max_memory is None or place not in max_memory:
        return free
    return min(free, _bytes(max_memory[place]))


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error of PyTorch's says that memory ran out."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


@contextmanager
def out_of_memory(advice: str) -> Iterator[None]:
    """Says what to do when memory runs out meanwhile.

    Raises:
        ShortVError: it did.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise ShortVError(f"out of memory; {advice}.") from None


def parse_max_memory(text: str | None) -> dict[int | str, int] | None:
    """Limits from ``"0=10GiB,cpu=20GiB"``, as ``from_pretrained`` takes them.

    Raises:
        ShortVError: it does not have this form, or names a place twice.
    """
    if text is None:
        return None
    limits: dict[int | str, int] = {}
    for item in text.split(","):
        place, _, size = map(str.strip, item.partition("="))
        key: int | str = int(place) if place.isascii() and place.isdigit() else place
        if not (isinstance(key, int) or key == "cpu") or key in limits:
            raise ShortVError(f"{item!r:.60} is no limit of memory; give a GPU's number or cpu once, as in cpu=20GiB.")
        limits[key] = _bytes(size)
    return limits


def _bytes(size: Any) -> int:
    from accelerate.utils import convert_file_size_to_int

    try:
        return int(convert_file_size_to_int(size))
    except (ValueError, OverflowError):
        raise ShortVError(f"{size!r:.60} is no amount of memory; give one such as 20GiB or 500MB.") from None


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e7 else f"{size / 1e9:.1g} GB"
