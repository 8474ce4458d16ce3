"""ShortV for ERNIE 4.5 VL: the stock model, in which chosen decoder layers freeze visual tokens.

`shortv_layers.py` holds the frozen layers, `shortv_weights.py` the loading of weights.
"""

from transformers import Ernie4_5_VLMoeForConditionalGeneration, GenerationMixin

from .configuration_shortv_ernie4_5_vl_moe import ShortVErnie4_5_VLMoeConfig
from .shortv_layers import FrozenLayer, ShortVMixin
from .shortv_weights import ShortVWeights


class FrozenErnieLayer(FrozenLayer):
    """The experts take `moe_mm_token_type_ids`, the type of every token; they get those of the text rows."""

    def _forward_text(self, hidden_states, text_rows, *args, moe_mm_token_type_ids=None, **kwargs):
        if moe_mm_token_type_ids is not None:
            moe_mm_token_type_ids = moe_mm_token_type_ids.gather(1, text_rows.rows)
        kwargs["moe_mm_token_type_ids"] = moe_mm_token_type_ids
        return super()._forward_text(hidden_states, text_rows, *args, **kwargs)


class ShortVErnie4_5_VLMoeForConditionalGeneration(
    ShortVWeights, ShortVMixin, Ernie4_5_VLMoeForConditionalGeneration, GenerationMixin
):
    config_class = ShortVErnie4_5_VLMoeConfig
    weights_of = "ernie4_5_vl_moe"
    text_models = ("ernie4_5_vl_moe_text",)
    frozen_layer = FrozenErnieLayer
