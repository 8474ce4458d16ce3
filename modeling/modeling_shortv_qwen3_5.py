"""ShortV for Qwen3.5: the stock model, in which chosen decoder layers freeze visual tokens.

`shortv_layers.py` holds the frozen layers, `shortv_weights.py` the loading of weights.
"""

from transformers import GenerationMixin, Qwen3_5ForConditionalGeneration

from .configuration_shortv_qwen3_5 import ShortVQwen3_5Config
from .shortv_layers import FrozenAttention, FrozenMixer, ShortVMixin
from .shortv_weights import ShortVWeights


class FrozenGatedAttention(FrozenAttention):
    """The query projection also gives each head a gate, which multiplies the head's output."""

    def queries(self, hidden_states, text_rows, position_embeddings, past):
        both = self.q_proj(hidden_states)
        queries, gates = both.view(*both.shape[:-1], -1, 2 * self.head_dim).chunk(2, dim=-1)
        queries = self._rotate(self.q_norm(queries).transpose(1, 2), text_rows.rotary(position_embeddings))
        return queries, gates.flatten(2).sigmoid()


class ShortVQwen3_5ForConditionalGeneration(
    ShortVWeights,
    ShortVMixin,
    Qwen3_5ForConditionalGeneration,
    GenerationMixin,
):
    config_class = ShortVQwen3_5Config
    weights_of = "qwen3_5"
    text_models = ("qwen3_5_text",)
    frozen_parts = {"self_attn": FrozenGatedAttention, "linear_attn": FrozenMixer}
