"""The folders that come with the tool: the remote code, and the templates of cards."""

from __future__ import annotations

from pathlib import Path


def modeling_dir() -> Path:
    """The folder of the remote code: inside the installed package, or beside it in a checkout."""
    return _bundled("modeling")


def model_cards_dir() -> Path:
    """The folder of the card templates: inside the installed package, or beside it in a checkout."""
    return _bundled("model_cards")


def _bundled(name: str) -> Path:
    package = Path(__file__).resolve().parents[1]
    installed = package / name
    return installed if installed.is_dir() else package.parent / name
