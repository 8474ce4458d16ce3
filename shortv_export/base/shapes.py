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
        intermediate_size: *m*, of a gated FFN with three matrices; of a mixture of experts, of those together that a
            token passes.
        query_size: output width of the query projection, number of heads times head size.
        key_value_size: output width of the key projection, number of key heads times head size.
        router_size: number of experts, which a router weighs for each token; 0 without any.
        visual_intermediate_size: *m* of visual tokens, where they have experts of their own; 0 where they pass the
            FFN that text tokens pass.
        value_projections: 1, or 0 where values are made of the projected keys.
        gate_size: output width of the projection that gates what attention gives; 0 without any.
        mixer_flops: FLOPs per token of what takes the place of attention; 0 where that has no projections to count.
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
    """The shapes of a text model's decoder layers, the first one first.

    Args:
        text_config: the config, complete with the defaults of its class.

    Raises:
        LookupError, TypeError, ValueError, AttributeError, ArithmeticError: a field is missing, or holds what does not
            belong there.
    """
    # Numbers of layers are written as text, with leading zeros.
    overrides = {int(layer): fields for layer, fields in (text_config.get("per_layer_config") or {}).items()}
    shapes = []
    for layer in range(text_config["num_hidden_layers"]):
        config = {**text_config, **overrides.get(layer, {})}
        kind = config["layer_types"][layer] if config.get("layer_types") else "full_attention"
        shape = _mixing(config, kind)
        shapes.append(_with_experts(shape, config) if _has_experts(config, layer) else shape)
    return tuple(shapes)


def _mixing(config: Mapping[str, Any], kind: str) -> LayerShape:
    """A layer with a dense FFN, and attention or what is in its place in layers of this kind."""
    hidden, intermediate = config["hidden_size"], _dense_width(config)
    without_attention = LayerShape(hidden, intermediate, query_size=0, key_value_size=0)
    if kind == "linear_attention":
        return replace(without_attention, mixer_flops=_delta_rule_flops(config))
    if kind == "conv":  # of LFM2: three projections in and one out, around a short convolution of each channel
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
        # Models with such linear attention gate their other layers' attention.
        gate_size=heads * head_dim if "linear_num_value_heads" in config else 0,
    )


def _delta_rule_flops(config: Mapping[str, Any]) -> int:
    """FLOPs per token of linear attention by the gated delta rule, in chunks of 64 tokens; without the triangular
    systems inside a chunk, as PyTorch's counter leaves them out."""
    hidden, heads = config["hidden_size"], config["linear_num_value_heads"]
    keys, values = config["linear_key_head_dim"], config["linear_value_head_dim"]
    mixed = 2 * config["linear_num_key_heads"] * keys + heads * values
    projections = 2 * hidden * (mixed + 2 * heads * values + 2 * heads)  # in, gate and out, decay and rate
    convolution = 2 * config["linear_conv_kernel_dim"] * mixed
    return projections + convolution + heads * (2 * 64 * (2 * keys + values) + 6 * keys * values)


def _dense_width(config: Mapping[str, Any]) -> Any:
    """*m* of a dense layer; 0 if all have experts."""
    # Llama 4 has a name of its own for dense layers; its other name is for the experts.
    width = _first(config, "intermediate_size_mlp", "intermediate_size")
    if config.get("block_auto_adjust_ff_dim"):  # LFM2
        width = 2 * width // 3
        if config.get("block_ffn_dim_multiplier") is not None:
            width = int(config["block_ffn_dim_multiplier"] * width)
            width = -(-width // config["block_multiple_of"]) * config["block_multiple_of"]
    return width


def _with_experts(dense: LayerShape, config: Mapping[str, Any]) -> LayerShape:
    """What a dense layer becomes with experts in the place of its FFN; unchanged by a config that has none."""
    # The names of the numbers differ from model to model; a model has one of each.
    experts = _first(config, "num_experts", "num_local_experts", "moe_num_experts", "n_routed_experts")
    if not experts:
        return dense
    active = _first(config, "num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts")
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
    beside = 0
    if config.get("shared_expert_intermediate_size"):  # a shared expert of its own width, with a gate of its own
        beside, experts = config["shared_expert_intermediate_size"], experts + 1
    elif config.get("enable_moe_block"):  # Gemma 4's experts are beside the FFN
        beside = dense.intermediate_size
    return replace(dense, intermediate_size=(active + shared) * width + beside, router_size=experts)


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
