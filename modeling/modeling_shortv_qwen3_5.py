"""ShortV for Qwen3.5: the stock model, whose chosen decoder layers freeze visual tokens.

How a frozen layer works is in `shortv_layers.py`; how the weights are found and read is in `shortv_weights.py`.
"""

from transformers import Qwen3_5ForConditionalGeneration

from .configuration_shortv_qwen3_5 import ShortVQwen3_5Config
from .shortv_layers import FrozenAttention, FrozenMixer, ShortVMixin
from .shortv_weights import ShortVWeights


class FrozenGatedAttention(FrozenAttention):
    """The query projection gives each head a query and a gate, which its output is multiplied with."""

    def queries(self, hidden_states, text_rows, position_embeddings, past):
        both = self.q_proj(hidden_states)
        queries, gates = both.view(*both.shape[:-1], -1, 2 * self.head_dim).chunk(2, dim=-1)
        queries = self._rotate(self.q_norm(queries).transpose(1, 2), text_rows.rotary(position_embeddings))
        return queries, gates.flatten(2).sigmoid()


class ShortVQwen3_5ForConditionalGeneration(ShortVWeights, ShortVMixin, Qwen3_5ForConditionalGeneration):
    config_class = ShortVQwen3_5Config
    weights_of = "qwen3_5"
    text_models = ("qwen3_5_text",)
    frozen_parts = {"self_attn": FrozenGatedAttention, "linear_attn": FrozenMixer}
