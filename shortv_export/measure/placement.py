"""This process: its device, and its place among those that `accelerate launch` or `torchrun` started."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accelerate import PartialState


def this_process() -> PartialState:
    """The state that accelerate keeps. Without an accelerator, several processes meet over gloo.

    Unless told that it is to use the CPU, accelerate takes each of them for the only one there.
    """
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.accelerator.is_available())


def device_map_for(device_map: Any, max_memory: Any) -> Any:
    """The ``device_map`` to load a model with: as given; spread out if memory is limited; or this process's device."""
    device = this_process().device
    if device_map is None and max_memory:
        return "auto"
    if device_map is None and device.type != "cpu":
        return {"": str(device)}
    return device_map
