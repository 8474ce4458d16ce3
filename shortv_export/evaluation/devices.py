"""The devices that a model is on."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any

import torch


def accelerators(model: Any) -> list[torch.device]:
    """The devices besides the CPU that hold parts of a model; none for a model on the CPU."""
    # Parts of a model that is spread out may wait on disk (meta).
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


def synchronize(devices: Sequence[torch.device]) -> None:
    """Waits until these accelerators have finished their work."""
    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()
