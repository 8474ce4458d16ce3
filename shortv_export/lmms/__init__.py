"""The model `shortv` for lmms-eval, to run standard benchmarks on packages (the extra ``lmms``)."""

from __future__ import annotations

from typing import Any


def models() -> Any:
    """The entry point where lmms-eval finds the model `shortv`, with and without a chat template."""
    from lmms_eval.models.registry_v2 import ModelManifest

    module = "shortv_export.lmms.models"
    return ModelManifest("shortv", simple_class_path=f"{module}.ShortVSimple", chat_class_path=f"{module}.ShortV")
