"""ShortV for LLaVA-1.5 and LLaVA-NeXT: the stock models, whose chosen decoder layers freeze visual tokens.

How a frozen layer works is in `shortv_layers.py`; how a repository without weights loads is in `shortv_weights.py`.
"""

from transformers import LlavaForConditionalGeneration, LlavaNextForConditionalGeneration
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)

from .configuration_shortv_llava import ShortVLlavaConfig, ShortVLlavaNextConfig
from .shortv_layers import ShortVMixin
from .shortv_weights import ReferencedWeights


class ShortVLlavaForConditionalGeneration(ReferencedWeights, ShortVMixin, LlavaForConditionalGeneration):
    config_class = ShortVLlavaConfig


class ShortVLlavaNextForConditionalGeneration(ReferencedWeights, ShortVMixin, LlavaNextForConditionalGeneration):
    config_class = ShortVLlavaNextConfig


# The weights keep the names they have on the Hub (`language_model.model.layers.0...`). transformers knows how to read
# them for its own classes only; custom code must ask for the same, or `lm_head` would stay random.
for _model_class, _model_type in (
    (ShortVLlavaForConditionalGeneration, "llava"),
    (ShortVLlavaNextForConditionalGeneration, "llava_next"),
):
    register_checkpoint_conversion_mapping(
        _model_class.__name__, get_checkpoint_conversion_mapping(_model_type), overwrite=True
    )
