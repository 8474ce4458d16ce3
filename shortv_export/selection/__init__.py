"""Chooses the layers to freeze: by scores and a budget, from the paper, or as given."""

from .budgets import Measure, default_count, select_layers
from .choice import preview_selection, require_source, select, select_by_scores
from .stability import RESAMPLES, boundary, describe, draws, ranking
