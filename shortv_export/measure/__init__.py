"""Measures Layer Contributions, within the memory there is, and can be interrupted."""

from .joint_divergence import JointDivergence
from .memory import MaxMemory, available_memory, is_out_of_memory, out_of_memory, parse_max_memory
from .partial_results import FinishedSamples
from .placement import device_map_for, this_process
from .scorer import Scorer

__all__ = [
    "FinishedSamples",
    "JointDivergence",
    "MaxMemory",
    "Scorer",
    "available_memory",
    "device_map_for",
    "is_out_of_memory",
    "out_of_memory",
    "parse_max_memory",
    "this_process",
]
