"""The widths of decoder layers, read from a config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class LayerShape:
    """The widths that decide what a decoder layer costs.

    Attributes:
        hidden_size: *h*.
        intermediate_size: *m* of a gated FFN with three matrices; with experts, the sum over those of one token.
        query_size: output width of the query projection: query heads times head size.
        key_value_size: output width of the key projection: key heads times head size.
        router_size: number of experts that the router scores; 0 without experts.
        visual_intermediate_size: *m* for visual tokens if they have their own experts, else 0.
        value_projections: 1, or 0 if values are made from the projected keys.
        gate_size: output width of the projection that gates the attention output; 0 without a gate.
        mixer_flops: FLOPs per token of the linear attention or convolution that replaces attention; 0 without one.
    """

    hidden_size: int
    intermediate_size: int
    query_size: int
    key_value_size: int
    router_size: int = 0
    visual_intermediate_size: int = 0
    value_projections: int = 1
    gate_size: int = 0
    mixer_flops: int = 0


def layer_shapes(text_config: Mapping[str, Any]) -> tuple[LayerShape, ...]:
    """The shapes of a text model's decoder layers, in order.

    Args:
        text_config: the text model's config, with the defaults of its class filled in.

    Raises:
        LookupError, TypeError, ValueError, AttributeError, ArithmeticError: a field is missing or has a wrong value.
    """
    # transformers writes layer numbers as text with leading zeros.
    overrides = {int(layer): fields for layer, fields in (text_config.get("per_layer_config") or {}).items()}
    shapes = []
    for layer in range(text_config["num_hidden_layers"]):
        config = {**text_config, **overrides.get(layer, {})}
        kind = config["layer_types"][layer] if config.get("layer_types") else "full_attention"
        shape = _dense_shape(config, kind)
        shapes.append(_with_experts(shape, config) if _has_experts(config, layer) else shape)
    return tuple(shapes)


def _dense_shape(config: Mapping[str, Any], kind: str) -> LayerShape:
    """The shape of a layer of this kind (an entry of `layer_types`) with a dense FFN."""
    hidden, intermediate = config["hidden_size"], _dense_width(config)
    without_attention = LayerShape(hidden, intermediate, query_size=0, key_value_size=0)
    if kind == "linear_attention":
        return replace(without_attention, mixer_flops=_delta_rule_flops(config))
    if kind == "conv":  # LFM2: three input projections, a short convolution of each channel, one output projection
        return replace(without_attention, mixer_flops=2 * hidden * (4 * hidden + config["conv_L_cache"]))
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    key_value_heads = config.get("num_key_value_heads") or heads
    return LayerShape(
        hidden,
        intermediate,
        heads * head_dim,
        key_value_heads * head_dim,
        value_projections=0 if config.get("attention_k_eq_v") and kind == "full_attention" else 1,
        # Models with this linear attention gate the attention output of their other layers.
        gate_size=heads * head_dim if "linear_num_value_heads" in config else 0,
    )


def _delta_rule_flops(config: Mapping[str, Any]) -> int:
    """FLOPs per token of linear attention by the gated delta rule, in chunks of 64 tokens.

    The triangular systems inside a chunk do not count, as in PyTorch's counter.
    """
    hidden, heads = config["hidden_size"], config["linear_num_value_heads"]
    keys, values = config["linear_key_head_dim"], config["linear_value_head_dim"]
    mixed = 2 * config["linear_num_key_heads"] * keys + heads * values
    projections = 2 * hidden * (mixed + 2 * heads * values + 2 * heads)  # in, gate and out, decay and rate
    convolution = 2 * config["linear_conv_kernel_dim"] * mixed
    return projections + convolution + heads * (2 * 64 * (2 * keys + values) + 6 * keys * values)


def _dense_width(config: Mapping[str, Any]) -> Any:
    """*m* of a dense FFN; 0 if the config names none."""
    # In Llama 4, `intermediate_size` is the width of an expert.
    width = _first(config, "intermediate_size_mlp", "intermediate_size")
    if config.get("block_auto_adjust_ff_dim"):  # LFM2
        width = 2 * width // 3
        if config.get("block_ffn_dim_multiplier") is not None:
            width = int(config["block_ffn_dim_multiplier"] * width)
            width = -(-width // config["block_multiple_of"]) * config["block_multiple_of"]
    return width


def _with_experts(dense: LayerShape, config: Mapping[str, Any]) -> LayerShape:
    """The shape with experts instead of the dense FFN; unchanged if the model has no experts."""
    # Each model names these numbers in its own way.
    experts = _first(config, "num_experts", "num_local_experts", "moe_num_experts", "n_routed_experts")
    if not experts:
        return dense
    active = _first(config, "num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts")
    shared = _first(config, "moe_num_shared_experts", "n_shared_experts")
    if config.get("model_type") == "llama4_text":
        # Its code runs every expert on every token (unchosen ones have weight zero), and one shared expert.
        active, shared = experts, 1
    width = _first(config, "moe_intermediate_size", "intermediate_size")
    if isinstance(width, list | tuple):
        # ERNIE 4.5 VL: text experts, visual experts, and shared experts as wide as the text ones.
        visual = active * width[1] + shared * width[0]
        return replace(
            dense, intermediate_size=(active + shared) * width[0], router_size=experts, visual_intermediate_size=visual
        )
    beside = 0
    if config.get("shared_expert_intermediate_size"):  # a shared expert with its own width and its own gate
        beside, experts = config["shared_expert_intermediate_size"], experts + 1
    elif config.get("enable_moe_block"):  # Gemma 4 has experts in addition to the dense FFN
        beside = dense.intermediate_size
    return replace(dense, intermediate_size=(active + shared) * width + beside, router_size=experts)


def _has_experts(config: Mapping[str, Any], layer: int) -> bool:
    """Whether this layer of a model with experts has them. Without a field that tells, every layer has."""
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
    """The value of the first of these fields that is set; 0 if none is."""
    return next((config[name] for name in names if config.get(name)), 0)
