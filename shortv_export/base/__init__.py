"""Base models: supported families, FLOPs, files, and loading."""

from .checks import check_code
from .cost import dense_layer_flops, flops_ratio, frozen_layer_flops, model_flops
from .families import FAMILIES, Family, plain_prompt
from .model import BaseModel, load_base, load_processor
from .resolve import fetch_weights, resolve_base
from .shapes import LayerShape, layer_shapes
