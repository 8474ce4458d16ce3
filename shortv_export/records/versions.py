"""The versions of the libraries that a result depends on."""

from __future__ import annotations

from importlib.metadata import version


def library_versions(*more: str) -> dict[str, str]:
    """The versions that a measurement or a package depends on, and those of `more` distributions."""
    return {name: version(name) for name in ("shortv-export", "transformers", "torch", "huggingface-hub", *more)}
