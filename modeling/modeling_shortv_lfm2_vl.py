"""ShortV for LFM2-VL: the stock model, in which chosen decoder layers freeze visual tokens.

`shortv_layers.py` holds the frozen layers, `shortv_weights.py` the loading of weights.
"""

from transformers import GenerationMixin, Lfm2VlForConditionalGeneration

from .configuration_shortv_lfm2_vl import ShortVLfm2VlConfig
from .shortv_layers import FrozenAttention, FrozenLayer, FrozenMixer, ShortVMixin
from .shortv_weights import ShortVWeights


class FrozenLfm2Attention(FrozenAttention):
    """The usual attention under LFM2's own names."""

    attention_dropout = 0.0

    def output(self, attended):
        return self.out_proj(attended)

    def _heads(self, name, hidden_states):
        states = getattr(self, f"{name}_proj")(hidden_states).view(*hidden_states.shape[:-1], -1, self.head_dim)
        return getattr(self, f"{name}_layernorm")(states).transpose(1, 2)


class FrozenLfm2Layer(FrozenLayer):
    def normed(self, hidden_states):
        return self.operator_norm(hidden_states)


class ShortVLfm2VlForConditionalGeneration(
    ShortVWeights, ShortVMixin, Lfm2VlForConditionalGeneration, GenerationMixin
):
    config_class = ShortVLfm2VlConfig
    weights_of = "lfm2_vl"
    text_models = ("lfm2",)
    frozen_layer = FrozenLfm2Layer
    frozen_parts = {"self_attn": FrozenLfm2Attention, "conv": FrozenMixer}
