"""Packages: the folder that is published, with its recipe, code, card and figures."""

from .benchmark_results import check_task
from .build import Draft, build_package, rebuild_package
from .card import UNNAMED
from .card_metadata import inherited_metadata
from .contents import carried_files, expected_files
from .inspection import Check, inspect_package, require_intact
from .package import Package
from .pinned_base import referenced_weights
from .update import add_evaluation, require_updatable

__all__ = [
    "UNNAMED",
    "Check",
    "Draft",
    "Package",
    "add_evaluation",
    "build_package",
    "carried_files",
    "check_task",
    "expected_files",
    "inherited_metadata",
    "inspect_package",
    "rebuild_package",
    "referenced_weights",
    "require_intact",
    "require_updatable",
]
