"""Packages: the folder that is published, with its recipe, code, card and figures."""

from .benchmark_results import check_task
from .build import build_package, check_room, check_target, rebuild_package
from .card import UNNAMED
from .card_metadata import inherited_metadata
from .evaluated import add_evaluation, check_evaluable
from .inspection import (
    Check,
    base_tokenizer_config,
    carried_files,
    expected_files,
    inspect_package,
    recipe_tag,
    referenced_weights,
)
from .package import find_package

__all__ = [
    "UNNAMED",
    "Check",
    "add_evaluation",
    "base_tokenizer_config",
    "build_package",
    "carried_files",
    "check_evaluable",
    "check_room",
    "check_target",
    "check_task",
    "expected_files",
    "find_package",
    "inherited_metadata",
    "inspect_package",
    "rebuild_package",
    "recipe_tag",
    "referenced_weights",
]
