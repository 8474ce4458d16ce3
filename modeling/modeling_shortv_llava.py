"""ShortV for LLaVA-1.5: the stock model, in which chosen decoder layers freeze visual tokens.

`shortv_layers.py` holds the frozen layers, `shortv_weights.py` the loading of weights.
"""

from transformers import GenerationMixin, LlavaForConditionalGeneration

from .configuration_shortv_llava import ShortVLlavaConfig
from .shortv_layers import ShortVMixin
from .shortv_weights import ShortVWeights


class ShortVLlavaForConditionalGeneration(
    ShortVWeights,
    ShortVMixin,
    LlavaForConditionalGeneration,
    GenerationMixin,
):
    config_class = ShortVLlavaConfig
    weights_of = "llava"
