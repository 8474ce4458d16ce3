"""Measures Layer Contributions, within the memory there is, and can be interrupted."""

from .joint_divergence import JointDivergence
from .memory import available_memory, is_out_of_memory, out_of_memory
from .next_token import log_probabilities
from .partial_results import PartialResults
from .placement import device_map_for, this_process
from .rounds import score_in_rounds
from .scorer import Scorer

__all__ = [
    "JointDivergence",
    "PartialResults",
    "Scorer",
    "available_memory",
    "device_map_for",
    "is_out_of_memory",
    "log_probabilities",
    "out_of_memory",
    "score_in_rounds",
    "this_process",
]
