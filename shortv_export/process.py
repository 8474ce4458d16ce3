"""This process: its device, and its place among those that `accelerate launch` or `torchrun` started."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import PartialState


def this_process() -> PartialState:
    """The state that accelerate keeps. Without an accelerator, several processes meet over gloo.

    Unless told that it is to use the CPU, accelerate takes each of them for the only one there.
    """
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.accelerator.is_available())
