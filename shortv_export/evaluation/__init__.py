"""Evaluates a package against its base: fidelity, accuracy and speed."""

from .evaluate import evaluate_package, load_package, require_evaluable, require_frozen
from .held_out import data_of, held_out_from_package, held_out_from_scores
from .report import tables
