"""Base models: supported families, FLOPs, files, and loading."""

from .checks import check_code
from .cost import TEXT_TOKENS, VISUAL_TOKENS, flops_ratio, model_flops
from .families import FAMILIES, Family, plain_prompt
from .listing import told
from .model import BaseModel, load_base, load_processor
from .resolve import fetch_weights, resolve_base
from .shapes import LayerShape, layer_shapes
