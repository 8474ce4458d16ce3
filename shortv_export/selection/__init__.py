"""Chooses the layers to freeze: by scores and a budget, from the paper, or as given."""

from .budgets import Measure, default_count, select_layers
from .presets import given_selection, preset_selection
from .stability import RESAMPLES, boundary, describe, draws, ranking

__all__ = [
    "RESAMPLES",
    "Measure",
    "boundary",
    "default_count",
    "describe",
    "draws",
    "given_selection",
    "preset_selection",
    "ranking",
    "select_layers",
]
