"""ShortV for EXAONE 4.5: the stock model, whose chosen decoder layers freeze visual tokens.

How a frozen layer works is in `shortv_layers.py`; how the weights are found and read is in `shortv_weights.py`.
"""

import sys

from transformers import Exaone4_5_ForConditionalGeneration

from .configuration_shortv_exaone4_5 import ShortVExaone4_5_Config
from .shortv_layers import FrozenAttention, FrozenLayer, ShortVMixin
from .shortv_weights import ShortVWeights


class FrozenExaone4Attention(FrozenAttention):
    """Where some layers have a window, the others know no positions."""

    @property
    def sliding_window(self):
        # The stock module keeps the window of other layers, too, as a sign that there are such: here, one without end.
        window = self.config.sliding_window
        return window if window is None or self.is_sliding else sys.maxsize

    def _rotate(self, states, position_embeddings):
        if self.sliding_window is None or self.is_sliding:
            return super()._rotate(states, position_embeddings)
        return states


class FrozenExaone4Layer(FrozenLayer):
    """What attention gives is normed, instead of what it is given."""

    def normed(self, hidden_states):
        return hidden_states


class ShortVExaone4_5_ForConditionalGeneration(ShortVWeights, ShortVMixin, Exaone4_5_ForConditionalGeneration):
    config_class = ShortVExaone4_5_Config
    weights_of = "exaone4_5"
    text_models = ("exaone4",)
    frozen_layer = FrozenExaone4Layer
    frozen_parts = {"self_attn": FrozenExaone4Attention}
