"""Base models: the supported families, what a base costs, where its files are, and how it is loaded."""

from .checks import check_code
from .cost import dense_layer_flops, flops_ratio, frozen_layer_flops, model_flops
from .families import FAMILIES, Family, plain_prompt
from .model import BaseModel, load_base, load_processor
from .resolve import fetch_weights, resolve_base
from .shapes import LayerShape, layer_shapes

__all__ = [
    "FAMILIES",
    "BaseModel",
    "Family",
    "LayerShape",
    "check_code",
    "definition",
    "dense_layer_flops",
    "fetch_weights",
    "flops_ratio",
    "frozen_layer_flops",
    "layer_shapes",
    "load_base",
    "load_processor",
    "model_flops",
    "plain_prompt",
    "resolve_base",
]
