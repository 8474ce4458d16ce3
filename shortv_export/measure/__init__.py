"""Measures Layer Contributions, within the memory there is, and can be interrupted."""

from .joint_divergence import JointDivergence
from .layer_contribution import log_probabilities
from .memory import available_memory, device_map_for, is_out_of_memory, out_of_memory, this_process
from .partial_results import PartialResults
from .running import running
from .scorer import Scorer, score_in_rounds
