"""ShortV for Molmo 2: the stock model, whose chosen decoder layers freeze visual tokens.

How a frozen layer works is in `shortv_layers.py`; how the weights are found and read is in `shortv_weights.py`.
"""

from transformers import Molmo2ForConditionalGeneration

from .configuration_shortv_molmo2 import ShortVMolmo2Config
from .shortv_layers import FrozenAttention, FrozenLayer, ShortVMixin
from .shortv_weights import ShortVWeights


class FrozenMolmo2Attention(FrozenAttention):
    """Queries and keys are normed over all heads together, or over each, as the config says."""

    def _heads(self, name, hidden_states):
        if self.qk_norm_type != "olmo":
            return super()._heads(name, hidden_states)
        states = getattr(self, f"{name}_norm")(getattr(self, f"{name}_proj")(hidden_states))
        return states.view(*hidden_states.shape[:-1], -1, self.head_dim).transpose(1, 2)


class FrozenMolmo2Layer(FrozenLayer):
    """Some of these models norm what attention gives instead of what it is given."""

    def normed(self, hidden_states):
        return hidden_states if self.norm_after else self.input_layernorm(hidden_states)


class ShortVMolmo2ForConditionalGeneration(ShortVWeights, ShortVMixin, Molmo2ForConditionalGeneration):
    config_class = ShortVMolmo2Config
    weights_of = "molmo2"
    text_models = ("molmo2_text",)
    frozen_layer = FrozenMolmo2Layer
    frozen_parts = {"self_attn": FrozenMolmo2Attention}
