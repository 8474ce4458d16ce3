"""Verifies a package: its files against its recipe, and what it computes against its definition."""

from .checks import Verification, verify_package
