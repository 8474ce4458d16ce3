"""ShortV for EXAONE 4.5: the stock model, in which chosen decoder layers freeze visual tokens.

`shortv_layers.py` holds the frozen layers, `shortv_weights.py` the loading of weights.
"""

import sys

from transformers import Exaone4_5_ForConditionalGeneration, GenerationMixin

from .configuration_shortv_exaone4_5 import ShortVExaone4_5_Config
from .shortv_layers import FrozenAttention, FrozenLayer, ShortVMixin
from .shortv_weights import ShortVWeights


class FrozenExaone4Attention(FrozenAttention):
    """If some layers use a sliding window, the full-attention layers have no rotary embedding."""

    @property
    def sliding_window(self):
        # Full-attention layers keep `sliding_window` only as a flag; return an infinite window.
        window = self.config.sliding_window
        return window if window is None or self.is_sliding else sys.maxsize

    def _rotate(self, states, position_embeddings):
        if self.sliding_window is None or self.is_sliding:
            return super()._rotate(states, position_embeddings)
        return states


class FrozenExaone4Layer(FrozenLayer):
    """These layers normalise the output of attention, not its input."""

    def normed(self, hidden_states):
        return hidden_states

    def without_ffn(self, hidden_states, update):
        return hidden_states + self.post_attention_layernorm(update)


class ShortVExaone4_5_ForConditionalGeneration(
    ShortVWeights, ShortVMixin, Exaone4_5_ForConditionalGeneration, GenerationMixin
):
    config_class = ShortVExaone4_5_Config
    weights_of = "exaone4_5"
    text_models = ("exaone4",)
    frozen_layer = FrozenExaone4Layer
    frozen_parts = {"self_attn": FrozenExaone4Attention}
