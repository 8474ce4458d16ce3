"""The cost model: floating-point operations of dense and frozen decoder layers (paper, Eqs. 3-5).

The paper counts, per layer, with *t* text tokens, *v* visual tokens, hidden size *h* and FFN size *m*::

    dense   2(t+v)(4h+3m)h + 4(t+v)²h                 (Eq. 3)
    frozen  2t(4h+3m)h + 4vh² + 4t(t+v)h              (Eq. 4)

which assumes multi-head attention. The formulas here use the real projection widths, so that grouped-query models
are counted exactly, and of a mixture of experts those that a token passes; with as many key heads as query heads and
a single FFN they are the paper's. A multiply-add counts as two, and attention as if nothing were masked, as in the
paper.

The paper's models have equal layers, so that their number says what frozen ones save. Where only some layers have
experts, it matters which layers are frozen: the sums here are over the layers, each with its own shape.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
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
        visual_intermediate_size: *m* of visual tokens, where they have experts of their own; 0 where they pass the
            FFN that text tokens pass.
    """

    hidden_size: int
    intermediate_size: int
    query_size: int
    key_value_size: int
    router_size: int = 0
    visual_intermediate_size: int = 0


def layer_shapes(text_config: Mapping[str, Any]) -> tuple[LayerShape, ...]:
    """The shapes of a text model's decoder layers, the first one first.

    Args:
        text_config: the config, complete with the defaults of its class.

    Raises:
        LookupError, TypeError, ArithmeticError: a field is missing, or holds something else than what it is for.
    """
    hidden = text_config["hidden_size"]
    heads = text_config["num_attention_heads"]
    head_dim = text_config.get("head_dim") or hidden // heads
    key_value_heads = text_config.get("num_key_value_heads") or heads
    # Llama 4 has a name of its own for dense layers; its other name is for the experts.
    intermediate = text_config.get("intermediate_size_mlp") or text_config["intermediate_size"]
    dense = LayerShape(hidden, intermediate, heads * head_dim, key_value_heads * head_dim)
    sparse = _with_experts(dense, text_config)
    layers = range(text_config["num_hidden_layers"])
    return tuple(sparse if _has_experts(text_config, layer) else dense for layer in layers)


def _with_experts(dense: LayerShape, config: Mapping[str, Any]) -> LayerShape:
    """What a dense layer becomes with experts in the place of its FFN; unchanged by a config that has none."""
    # The names of the numbers differ from model to model; a model has one of each.
    experts = _first(config, "num_experts", "num_local_experts", "moe_num_experts", "n_routed_experts")
    if not experts:
        return dense
    active = _first(config, "num_experts_per_tok", "moe_topk", "moe_k")
    shared = _first(config, "moe_num_shared_experts", "n_shared_experts")
    if config.get("model_type") == "llama4_text":
        # Its code runs every expert on every token, with a weight of zero for those not chosen, and one more.
        active, shared = experts, 1
    width = _first(config, "moe_intermediate_size", "intermediate_size")
    if isinstance(width, list | tuple):
        # ERNIE 4.5 VL has experts for text tokens, others for visual ones, and shared ones as wide as the former.
        visual = active * width[1] + shared * width[0]
        return replace(
            dense, intermediate_size=(active + shared) * width[0], router_size=experts, visual_intermediate_size=visual
        )
    return replace(dense, intermediate_size=(active + shared) * width, router_size=experts)


def _has_experts(config: Mapping[str, Any], layer: int) -> bool:
    """Whether a layer of a model with experts has them; where no field says which ones have, all do."""
    if config.get("mlp_layer_types"):
        return bool(config["mlp_layer_types"][layer] == "sparse")
    if config.get("moe_layers") is not None:
        return layer in config["moe_layers"]
    return (
        layer >= (config.get("first_k_dense_replace") or 0)
        and layer not in (config.get("mlp_only_layers") or ())
        and (layer + 1) % config.get("decoder_sparse_step", 1) == 0
    )


def _first(config: Mapping[str, Any], *names: str) -> Any:
    """The first of some fields that a config has; 0 if it has none."""
    return next((config[name] for name in names if config.get(name)), 0)


def dense_layer_flops(shape: LayerShape, text_tokens: int, visual_tokens: int) -> int:
    """FLOPs of a decoder layer that updates every token (Eq. 3)."""
    tokens = text_tokens + visual_tokens
    return (
        _rows(shape, text_tokens, visual_tokens) + _keys_and_values(shape, tokens) + _attention(shape, tokens, tokens)
    )


def frozen_layer_flops(shape: LayerShape, text_tokens: int, visual_tokens: int) -> int:
    """FLOPs of a frozen layer: keys and values of all tokens, everything else for text tokens only (Eq. 4)."""
    tokens = text_tokens + visual_tokens
    return _rows(shape, text_tokens, 0) + _keys_and_values(shape, tokens) + _attention(shape, text_tokens, tokens)


def model_flops(
    shapes: Sequence[LayerShape], frozen_layers: Collection[int], text_tokens: int, visual_tokens: int
) -> int:
    """FLOPs of the decoder layers in one prefill.

    Args:
        shapes: of every decoder layer, in order.
        frozen_layers: numbers of those that are frozen; none for the base.
        text_tokens, visual_tokens: of the prompt.
    """
    total = 0
    for layer, shape in enumerate(shapes):
        flops = frozen_layer_flops if layer in frozen_layers else dense_layer_flops
        total += flops(shape, text_tokens, visual_tokens)
    return total


def flops_ratio(
    shapes: Sequence[LayerShape], frozen_layers: Collection[int], text_tokens: int, visual_tokens: int
) -> float:
    """FLOPs of the ShortV model over those of its base (Eq. 5); its inverse is the limit of the prefill speed-up.

    The arguments are those of `model_flops`.
    """
    prompt = (text_tokens, visual_tokens)
    return model_flops(shapes, frozen_layers, *prompt) / model_flops(shapes, (), *prompt)


def _rows(shape: LayerShape, text_rows: int, visual_rows: int) -> int:
    """Query and output projection, router and FFN."""
    visual_size = shape.visual_intermediate_size or shape.intermediate_size
    projections = (text_rows + visual_rows) * (2 * shape.query_size + shape.router_size)
    ffn = 3 * (text_rows * shape.intermediate_size + visual_rows * visual_size)
    return 2 * shape.hidden_size * (projections + ffn)


def _keys_and_values(shape: LayerShape, tokens: int) -> int:
    return 2 * tokens * shape.hidden_size * 2 * shape.key_value_size


def _attention(shape: LayerShape, queries: int, keys: int) -> int:
    return 4 * queries * keys * shape.query_size
