"""The folders that are installed with this package."""

from __future__ import annotations

from pathlib import Path


def modeling_dir() -> Path:
    """The folder of the remote code."""
    return _bundled("modeling")


def model_cards_dir() -> Path:
    """The folder of the card templates."""
    return _bundled("model_cards")


def _bundled(name: str) -> Path:
    package = Path(__file__).resolve().parents[1]
    installed = package / name
    return installed if installed.is_dir() else package.parent / name  # beside the package in a checkout
