"""The values that are saved as JSON, checked when they are read: scores, recipes and evaluations."""

from .evaluation import (
    NO_CPU_MEMORY,
    NO_WIDTH,
    SINGLE_SAMPLE,
    Accuracy,
    Estimate,
    Evaluation,
    Fidelity,
    Pair,
    Row,
    Speed,
)
from .file_names import (
    CARD_NAME,
    CONFIG_NAME,
    EVALUATION_NAME,
    FIGURE_NAME,
    INDEX_NAME,
    NOT_OURS,
    RECIPE_NAME,
    RESULTS_FOLDER,
    SWEEP_NAME,
    TOKENIZER_CONFIG_NAME,
    WEIGHT_FILES,
    WEIGHTS_NAME,
)
from .recipe import WEIGHTS, BaseRecord, Recipe
from .scores import Scores
from .selection import Selection
from .versions import library_versions

__all__ = [
    "CARD_NAME",
    "CONFIG_NAME",
    "EVALUATION_NAME",
    "FIGURE_NAME",
    "INDEX_NAME",
    "NOT_OURS",
    "NO_CPU_MEMORY",
    "NO_WIDTH",
    "RECIPE_NAME",
    "RESULTS_FOLDER",
    "SINGLE_SAMPLE",
    "SWEEP_NAME",
    "TOKENIZER_CONFIG_NAME",
    "WEIGHTS",
    "WEIGHTS_NAME",
    "WEIGHT_FILES",
    "Accuracy",
    "BaseRecord",
    "Estimate",
    "Evaluation",
    "Fidelity",
    "Pair",
    "Recipe",
    "Row",
    "Scores",
    "Selection",
    "Speed",
    "library_versions",
]
