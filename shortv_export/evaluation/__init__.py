"""Evaluates a package against its base: fidelity, accuracy and speed."""

from .evaluate import evaluate_package
from .held_out import data_of, held_out_from_package, held_out_from_scores
from .loading import require_evaluable
from .tables import tables

__all__ = [
    "data_of",
    "evaluate_package",
    "held_out_from_package",
    "held_out_from_scores",
    "require_evaluable",
    "tables",
]
