"""This process among those that `accelerate launch` or `torchrun` started, and where it loads a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..options import Placement
from .memory import check_max_memory

if TYPE_CHECKING:
    from accelerate import PartialState


def this_process() -> PartialState:
    """The process's number, the number of processes and the process's device."""
    import torch
    from accelerate import PartialState

    # Without `cpu=True` on a machine without accelerators, every process would count as the only one.
    return PartialState(cpu=not torch.accelerator.is_available())


def device_map_for(placement: Placement) -> Any:
    """The ``device_map`` to load a model with.

    Returns:
        The one given, ``"auto"`` if memory is limited, or else this process's accelerator; None is the CPU.

    Raises:
        ShortVError: a limit of memory is not a size.
    """
    check_max_memory(placement.max_memory)
    device = this_process().device
    if placement.device_map is None and placement.max_memory:
        return "auto"
    if placement.device_map is None and device.type != "cpu":
        return {"": str(device)}
    return placement.device_map
