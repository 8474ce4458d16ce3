"""The values that are saved as JSON, checked when they are read: scores, recipes and evaluations."""

from .evaluation import (
    ALL_EQUAL,
    CONTROL_TOLERANCE,
    FEW_SAMPLES,
    LEVEL,
    MIN_SAMPLES,
    NO_CPU_MEMORY,
    RESAMPLES,
    TOO_NOISY,
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
    CARRIED,
    CONFIG_NAME,
    EVALUATION_NAME,
    FIGURE_NAME,
    FOREIGN_FILES,
    HUB_ID,
    INDEX_NAME,
    RECIPE_NAME,
    RESULTS_FOLDER,
    SHARD,
    SWEEP_NAME,
    TEMPLATES_FOLDER,
    TOKENIZER_CONFIG_NAME,
    WEIGHT_FILES,
    WEIGHTS,
    WEIGHTS_NAME,
)
from .frozen import Frozen
from .recipe import MOST_NAMES, BaseRecord, Recipe, library_versions
from .scores import FORWARD, REVERSE, Ablation, Scores
from .selection import Selection
