"""Chooses the layers to freeze: by scores and a budget, from the paper, or as given."""

from .budgets import default_count, select_layers
from .choice import granularity_of, may_be_operators, preview_selection, require_source, select, select_by_scores
from .operators import Measure, select_operators
from .stability import boundary, describe, describe_operators, ranking
