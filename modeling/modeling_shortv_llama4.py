"""ShortV for Llama 4: the stock model, in which chosen decoder layers freeze visual tokens.

`shortv_layers.py` holds the frozen layers, `shortv_weights.py` the loading of weights.
"""

import torch
from transformers import GenerationMixin, Llama4ForConditionalGeneration
from transformers.models.llama4.modeling_llama4 import apply_rotary_emb

from .configuration_shortv_llama4 import ShortVLlama4Config
from .shortv_layers import FrozenAttention, ShortVMixin
from .shortv_weights import ShortVWeights


class FrozenLlama4Attention(FrozenAttention):
    """Layers with a rotary embedding then normalise queries and keys; the others scale queries by position."""

    def queries(self, hidden_states, text_rows, position_embeddings, past):
        queries = self._rotate(self._heads("q", hidden_states), text_rows.take(position_embeddings))
        if self.use_rope or not self.attn_temperature_tuning:
            return queries, None
        seen = 0 if past is None else past.get_seq_length(self.layer_idx)
        places = (text_rows.rows + seen).float() + 1.0  # like the stock layer, counts padding
        scales = torch.log1p(torch.floor(places / self.floor_scale)) * self.attn_scale + 1.0
        return (queries * scales[:, None, :, None]).to(queries.dtype), None

    def _rotate(self, states, position_embeddings):
        if not self.use_rope:
            return states
        states = states.transpose(1, 2)
        states = apply_rotary_emb(states, states[:, :, :1], position_embeddings)[0].transpose(1, 2)
        return self.qk_norm(states) if hasattr(self, "qk_norm") else states


class ShortVLlama4ForConditionalGeneration(
    ShortVWeights, ShortVMixin, Llama4ForConditionalGeneration, GenerationMixin
):
    config_class = ShortVLlama4Config
    weights_of = "llama4"
    text_models = ("llama4_text",)
    frozen_parts = {"self_attn": FrozenLlama4Attention}
