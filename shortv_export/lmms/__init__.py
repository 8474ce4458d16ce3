"""The standard benchmarks: a model `shortv` for lmms-eval (the extra ``lmms``)."""

from __future__ import annotations

from typing import Any


def models() -> Any:
    """What lmms-eval's entry points give it: how its model `shortv` is called, as its `llava_hf` in both ways."""
    from lmms_eval.models.registry_v2 import ModelManifest

    module = "shortv_export.lmms.models"
    return ModelManifest("shortv", simple_class_path=f"{module}.ShortVSimple", chat_class_path=f"{module}.ShortV")
