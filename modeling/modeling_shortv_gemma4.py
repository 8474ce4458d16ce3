"""ShortV for Gemma 4: the stock model, in which chosen decoder layers freeze visual tokens.

`shortv_layers.py` holds the frozen layers, `shortv_weights.py` the loading of weights.
"""

from transformers import Gemma4ForConditionalGeneration, GenerationMixin
from transformers.models.gemma4.modeling_gemma4 import apply_rotary_pos_emb

from .configuration_shortv_gemma4 import ShortVGemma4Config
from .shortv_layers import FrozenAttention, FrozenLayer, ShortVMixin
from .shortv_weights import ShortVWeights


class FrozenGemma4Attention(FrozenAttention):
    """Values are normalised too. A layer without `v_proj` uses the keys, before norm and rotation, as values.

    Model sizes whose last layers share the keys and values of earlier layers are not supported.
    """

    def keys_and_values(self, all_rows, position_embeddings):
        heads = (*all_rows.shape[:-1], -1, self.head_dim)
        keys = self.k_proj(all_rows).view(heads)
        values = keys if self.v_proj is None else self.v_proj(all_rows).view(heads)
        keys = self._rotate(self.k_norm(keys).transpose(1, 2), position_embeddings)
        return keys, self.v_norm(values).transpose(1, 2)

    def cached(self, keys, values, past, kwargs):
        keys, values = super().cached(keys, values, past, kwargs)
        if self.store_full_length_kv:  # an assistant model reads them
            kwargs["shared_kv_states"][self.layer_type] = keys, values
        return keys, values

    def _rotate(self, states, position_embeddings):
        return apply_rotary_pos_emb(states, *position_embeddings)


class FrozenGemma4Layer(FrozenLayer):
    """These layers scale their output."""

    def without_ffn(self, hidden_states, update):
        return super().without_ffn(hidden_states, update) * self.layer_scalar


class ShortVGemma4ForConditionalGeneration(
    ShortVWeights, ShortVMixin, Gemma4ForConditionalGeneration, GenerationMixin
):
    config_class = ShortVGemma4Config
    weights_of = "gemma4"
    text_models = ("gemma4_text",)
    frozen_layer = FrozenGemma4Layer
    frozen_parts = {"self_attn": FrozenGemma4Attention}
