"""ShortV for LLaVA-1.5: the stock model, whose chosen decoder layers freeze visual tokens.

How a frozen layer works is in `shortv_layers.py`; how the weights are found and read is in `shortv_weights.py`.
"""

from transformers import LlavaForConditionalGeneration

from .configuration_shortv_llava import ShortVLlavaConfig
from .shortv_layers import ShortVMixin
from .shortv_weights import ShortVWeights


class ShortVLlavaForConditionalGeneration(ShortVWeights, ShortVMixin, LlavaForConditionalGeneration):
    config_class = ShortVLlavaConfig
    weights_of = "llava"
