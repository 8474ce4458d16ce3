"""Evaluates a package against its base: fidelity, accuracy and speed."""

from .comparison import Checked, check_package, with_overlap
from .estimates import mean_interval
from .tables import tables

__all__ = ["Checked", "check_package", "mean_interval", "tables", "with_overlap"]
