"""The cost model: floating-point operations of dense and frozen decoder layers (paper, Eqs. 3-5).

The paper counts, per layer, with *t* text tokens, *v* visual tokens, hidden size *h* and FFN size *m*::

    dense   2(t+v)(4h+3m)h + 4(t+v)²h                 (Eq. 3)
    frozen  2t(4h+3m)h + 4vh² + 4t(t+v)h              (Eq. 4)

which assumes multi-head attention. The formulas here use the real projection widths, so that grouped-query models
are counted exactly, and of a mixture of experts those that a token passes; with as many key heads as query heads and
a single FFN they are the paper's. A multiply-add counts as two, and attention as if nothing were masked, as in the
paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LayerShape:
    """The widths that decide what a decoder layer costs.

    Attributes:
        hidden_size: *h*.
        intermediate_size: *m*, of a gated FFN with three matrices; of a mixture of experts, of those together that a
            token passes.
        query_size: output width of the query projection, number of heads times head size.
        key_value_size: output width of the key projection, number of key heads times head size.
        router_size: number of experts, which a router weighs for each token; 0 without any.
    """

    hidden_size: int
    intermediate_size: int
    query_size: int
    key_value_size: int
    router_size: int = 0

    @classmethod
    def from_config(cls, text_config: Mapping[str, Any]) -> LayerShape:
        """The shape that a text model's (complete) config describes."""
        heads = text_config["num_attention_heads"]
        hidden = text_config["hidden_size"]
        head_dim = text_config.get("head_dim") or hidden // heads
        key_value_heads = text_config.get("num_key_value_heads") or heads
        # The names of the experts' numbers differ from model to model; a model has one of each.
        experts = _first(text_config, "num_experts", "moe_num_experts", "n_routed_experts")
        intermediate = text_config["intermediate_size"]
        if experts:
            active = _first(text_config, "num_experts_per_tok", "moe_topk")
            shared = _first(text_config, "moe_num_shared_experts", "n_shared_experts")
            intermediate = (active + shared) * (_first(text_config, "moe_intermediate_size") or intermediate)
        return cls(hidden, intermediate, heads * head_dim, key_value_heads * head_dim, experts)


def _first(config: Mapping[str, Any], *names: str) -> int:
    """The first of some fields that a config has; 0 if it has none."""
    return next((config[name] for name in names if config.get(name)), 0)


def dense_layer_flops(shape: LayerShape, text_tokens: int, visual_tokens: int) -> int:
    """FLOPs of a decoder layer that updates every token (Eq. 3)."""
    tokens = text_tokens + visual_tokens
    return _rows(shape, tokens) + _keys_and_values(shape, tokens) + _attention(shape, tokens, tokens)


def frozen_layer_flops(shape: LayerShape, text_tokens: int, visual_tokens: int) -> int:
    """FLOPs of a frozen layer: keys and values of all tokens, everything else for text tokens only (Eq. 4)."""
    tokens = text_tokens + visual_tokens
    return _rows(shape, text_tokens) + _keys_and_values(shape, tokens) + _attention(shape, text_tokens, tokens)


def model_flops(shape: LayerShape, num_layers: int, num_frozen: int, text_tokens: int, visual_tokens: int) -> int:
    """FLOPs of the decoder layers in one prefill, with ``num_frozen`` of them frozen."""
    dense = dense_layer_flops(shape, text_tokens, visual_tokens)
    frozen = frozen_layer_flops(shape, text_tokens, visual_tokens)
    return (num_layers - num_frozen) * dense + num_frozen * frozen


def flops_ratio(shape: LayerShape, num_layers: int, num_frozen: int, text_tokens: int, visual_tokens: int) -> float:
    """FLOPs of the ShortV model over those of its base (Eq. 5); its inverse is the limit of the prefill speed-up."""
    return model_flops(shape, num_layers, num_frozen, text_tokens, visual_tokens) / model_flops(
        shape, num_layers, 0, text_tokens, visual_tokens
    )


def _rows(shape: LayerShape, rows: int) -> int:
    """Query and output projection and the FFN."""
    return 2 * rows * shape.hidden_size * (2 * shape.query_size + 3 * shape.intermediate_size + shape.router_size)


def _keys_and_values(shape: LayerShape, tokens: int) -> int:
    return 2 * tokens * shape.hidden_size * 2 * shape.key_value_size


def _attention(shape: LayerShape, queries: int, keys: int) -> int:
    return 4 * queries * keys * shape.query_size
