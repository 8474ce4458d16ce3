"""Publishes ShortV models: vision-language models that skip visual-token computation that does not matter.

The verbs are functions: `score`, `package`, `rebuild`, `verify`, `evaluate`, `compare` and `push`. They take the
dataclasses of `options`. `Package` opens a finished package.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_OPTIONS = (
    *("Budget", "Choice", "Comparison", "Contents", "Conversion", "Placement"),
    *("Questions", "Samples", "Scoring", "Target"),
)
_HOMES = {
    **dict.fromkeys(("score", "package", "rebuild", "verify", "evaluate", "compare", "push"), "pipeline"),
    **dict.fromkeys(_OPTIONS, "options"),
    "Package": "packaging",
    "ShortVError": "errors",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    # Imported when first used, so that `--help` is quick.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
