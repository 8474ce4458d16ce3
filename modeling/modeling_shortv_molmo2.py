"""ShortV for Molmo 2: the stock model, in which chosen decoder layers freeze visual tokens.

`shortv_layers.py` holds the frozen layers, `shortv_weights.py` the loading of weights.
"""

from transformers import GenerationMixin, Molmo2ForConditionalGeneration

from .configuration_shortv_molmo2 import ShortVMolmo2Config
from .shortv_layers import FrozenAttention, FrozenLayer, ShortVMixin
from .shortv_weights import ShortVWeights


class FrozenMolmo2Attention(FrozenAttention):
    """If `qk_norm_type` is "olmo", queries and keys are normalised over all heads at once, not per head."""

    def _heads(self, name, hidden_states):
        if self.qk_norm_type != "olmo":
            return super()._heads(name, hidden_states)
        states = getattr(self, f"{name}_norm")(getattr(self, f"{name}_proj")(hidden_states))
        return states.view(*hidden_states.shape[:-1], -1, self.head_dim).transpose(1, 2)


class FrozenMolmo2Layer(FrozenLayer):
    """With `norm_after`, layers normalise the output of attention, not its input."""

    def normed(self, hidden_states):
        return hidden_states if self.norm_after else self.input_layernorm(hidden_states)

    def without_ffn(self, hidden_states, update):
        return hidden_states + (self.input_layernorm(update) if self.norm_after else update)


class ShortVMolmo2ForConditionalGeneration(
    ShortVWeights, ShortVMixin, Molmo2ForConditionalGeneration, GenerationMixin
):
    config_class = ShortVMolmo2Config
    weights_of = "molmo2"
    text_models = ("molmo2_text",)
    frozen_layer = FrozenMolmo2Layer
    frozen_parts = {"self_attn": FrozenMolmo2Attention}
