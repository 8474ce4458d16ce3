"""Loads a package to evaluate it. Its files are checked before its code runs."""

from __future__ import annotations

from typing import Any

from ..errors import ShortVError, one_line
from ..measure import device_map_for, is_out_of_memory
from ..options import Comparison, Placement
from ..packaging import Package, referenced_weights, require_intact
from .changes import frozen_lists


def require_evaluable(package: Package, comparison: Comparison = Comparison()) -> None:
    """Refuses a package that cannot be evaluated. None of its code is run.

    Raises:
        ShortVError: its files are not what its recipe says, the weights that it refers to are not the recipe's, its
            code is not this release's, it freezes no layer, or `comparison.sweep` does not fit it.
    """
    failure = "cannot be evaluated"
    require_intact(package, failure)
    if package.recipe.weights == "reference":
        _, check = referenced_weights(package)
        if check.passed is False:
            raise ShortVError(f"{package.name} {failure}: {check.name}: {check.detail}")
    if not package.recipe.frozen_layers:
        raise ShortVError(f"{package.name} freezes no layer, so it is its base; evaluate a package that freezes some.")
    frozen_lists(package, comparison.sweep)


def load_package(package: Package, placement: Placement = Placement()) -> tuple[Any, Any]:
    """Loads a package's model, which freezes nothing until it is told to, and its processor.

    Args:
        package: checked by `require_evaluable`.
        placement: where the model runs; by default on the accelerator, if there is one.

    Raises:
        ShortVError: it cannot be loaded, or its weights are not the ones that its config describes.
    """
    from transformers import AutoModel, AutoProcessor

    try:
        model, loading = AutoModel.from_pretrained(
            package.folder,
            trust_remote_code=True,
            dtype=placement.dtype,
            device_map=device_map_for(placement),
            max_memory=placement.max_memory,
            use_safetensors=True,
            output_loading_info=True,
        )
        processor = AutoProcessor.from_pretrained(package.folder, trust_remote_code=True)
    except Exception as error:  # transformers and torch raise many kinds
        if is_out_of_memory(error):
            raise
        raise ShortVError(f"{package.name} cannot be loaded: {one_line(error)}") from error
    if type(model).__name__ != package.family.model_class or any(loading.values()):
        raise ShortVError(f"{package.name} does not load as it should; look at it with `shortv-export verify`.")
    model.freeze_layers([])
    return model.eval(), processor
