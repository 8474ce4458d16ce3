"""Base models: supported families, FLOPs, files, and loading."""

from .checks import check_code
from .confined import entering
from .cost import TEXT_TOKENS, VISUAL_TOKENS, dense_layer_flops, flops_ratio, model_flops, operator_savings
from .families import FAMILIES, Family
from .listing import told
from .model import BaseModel, load_base
from .processor import Processor, load_processor
from .prompt import render_prompt
from .resolve import fetch_weights, resolve_base, resolve_pinned
from .shapes import LayerShape, layer_shapes
from .worker import PartError, in_worker
