"""ShortV for LLaVA-1.5: the stock model, whose chosen decoder layers freeze visual tokens.

How a frozen layer works is in `shortv_layers.py`; how a repository without weights loads is in `shortv_weights.py`.
"""

from transformers import LlavaForConditionalGeneration
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)

from .configuration_shortv_llava import ShortVLlavaConfig
from .shortv_layers import ShortVMixin
from .shortv_weights import ReferencedWeights


class ShortVLlavaForConditionalGeneration(ReferencedWeights, ShortVMixin, LlavaForConditionalGeneration):
    config_class = ShortVLlavaConfig


# The weights keep the names they have on the Hub, which may differ from those of the modules. transformers knows how
# to read them for its own classes only; custom code must ask for the same, or parts of the model would stay random.
for _name in ("LlavaForConditionalGeneration", "llava"):
    _mapping = get_checkpoint_conversion_mapping(_name)
    if _mapping is not None:
        register_checkpoint_conversion_mapping("ShortVLlavaForConditionalGeneration", _mapping, overwrite=True)
        break
