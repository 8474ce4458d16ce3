"""The cost model against the paper's tables, and against PyTorch's own counter."""

from __future__ import annotations

from collections.abc import Collection
from itertools import combinations
from typing import Any

import pytest

from shortv_export.base.cost import dense_layer_flops, flops_ratio, frozen_layer_flops, model_flops
from shortv_export.base.shapes import LayerShape, layer_shapes

# Vicuna-7B and 13B: hidden size h, FFN size m, multi-head attention; L layers.
VICUNA_7B = LayerShape(hidden_size=4096, intermediate_size=11008, query_size=4096, key_value_size=4096)
VICUNA_13B = LayerShape(hidden_size=5120, intermediate_size=13824, query_size=5120, key_value_size=5120)

# arXiv 2504.00502v2, Tables 1 and 2, t = 64: shape, L, N, v, and of the vanilla and of the ShortV row the TFLOPs,
# and of the ShortV row the ratio in percent.
PAPER = {
    "llava-1.5-7b": (VICUNA_7B, 32, 19, 576, 8.5, 4.7, 55),
    "llava-1.5-13b": (VICUNA_13B, 40, 24, 576, 16.6, 9.1, 55),
    "llava-next-7b": (VICUNA_7B, 32, 19, 2880, 42.7, 21.6, 51),
    "llava-next-13b": (VICUNA_13B, 40, 24, 2880, 81.8, 41.0, 50),
}


def test_layers_of_another_shape_by_their_numbers_in_the_config() -> None:
    """transformers writes them with leading zeros once there are more than ten layers."""
    from transformers import Gemma4TextConfig

    config = Gemma4TextConfig(
        **{"num_hidden_layers": 12, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2},
        **{"head_dim": 16, "global_head_dim": 32, "num_global_key_value_heads": 1, "attention_k_eq_v": True},
    )
    shapes = layer_shapes(config.to_dict())
    kinds = [(shape.query_size, shape.key_value_size, shape.value_projections) for shape in shapes]
    assert kinds == ([(64, 32, 1)] * 5 + [(128, 32, 0)]) * 2


@pytest.mark.parametrize("model", PAPER)
def test_papers_tables(model: str) -> None:
    shape, layers, num_frozen, visual, vanilla_tflops, shortv_tflops, percent = PAPER[model]
    shapes, frozen = (shape,) * layers, range(num_frozen)
    assert round(model_flops(shapes, (), 64, visual) / 1e12, 1) == vanilla_tflops
    assert round(model_flops(shapes, frozen, 64, visual) / 1e12, 1) == shortv_tflops
    assert round(100 * flops_ratio(shapes, frozen, 64, visual)) == percent
    assert flops_ratio(shapes, (), 64, visual) == 1


@pytest.mark.parametrize("shape", [VICUNA_7B, VICUNA_13B])
@pytest.mark.parametrize(("t", "v"), [(64, 576), (64, 2880), (1, 1), (64, 0), (0, 576)])
def test_multi_head_attention_costs_what_equations_3_and_4_say(shape: LayerShape, t: int, v: int) -> None:
    h, m = shape.hidden_size, shape.intermediate_size
    assert dense_layer_flops(shape, t, v) == 2 * (t + v) * (4 * h + 3 * m) * h + 4 * (t + v) ** 2 * h
    assert frozen_layer_flops(shape, t, v) == 2 * t * (4 * h + 3 * m) * h + 4 * v * h**2 + 4 * t * (t + v) * h


def test_without_visual_tokens_a_frozen_layer_saves_nothing() -> None:
    assert frozen_layer_flops(VICUNA_7B, 64, 0) == dense_layer_flops(VICUNA_7B, 64, 0)


def test_shapes_of_a_config() -> None:
    config = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 3}
    assert layer_shapes(config) == (LayerShape(64, 128, 64, 64),) * 3
    assert layer_shapes({**config, "num_key_value_heads": 2}) == (LayerShape(64, 128, 64, 32),) * 3
    assert layer_shapes({**config, "head_dim": 32}) == (LayerShape(64, 128, 128, 128),) * 3


def text_model(model_type: str, **fields: Any) -> Any:
    """A text model of transformers with random weights, whose operations the counter sees one by one.

    Eager attention multiplies all queries with all keys and masks afterwards, so that the counter, like the paper,
    sees no causal saving; eager experts multiply by one expert after the other.
    """
    import transformers

    config = transformers.AutoConfig.for_model(
        model_type,
        **{"vocab_size": 9, "hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4},
        **fields,
    )
    # By name: not every text model has an auto class.
    model_class = getattr(transformers, type(config).__name__.replace("Config", "Model"))
    model = model_class._from_config(config, attn_implementation="eager")
    model.set_experts_implementation("eager")
    return model.eval()


def frozen_layer(layer: Any, states: Any, text: int) -> None:
    """The products of a frozen layer as the paper defines it, written out.

    Keys and values of all tokens, and the rest for the last `text` rows.

    Args:
        layer: a stock decoder layer.
        states: ``(1, tokens, hidden)``.
        text: number of text tokens.
    """
    attention, rows = layer.self_attn, states[:, -text:]
    width = attention.head_dim
    keys, values = (
        project(states).unflatten(-1, (-1, width)).transpose(1, 2) for project in (attention.k_proj, attention.v_proj)
    )
    queries = attention.q_proj(rows).unflatten(-1, (-1, width)).transpose(1, 2)
    repeats = queries.shape[1] // keys.shape[1]
    weights = (queries @ keys.repeat_interleave(repeats, 1).transpose(2, 3)).softmax(-1)
    mixed = weights @ values.repeat_interleave(repeats, 1)
    ffn = layer.feed_forward if hasattr(layer, "feed_forward") else layer.mlp
    ffn(attention.o_proj(mixed.transpose(1, 2).flatten(2)))


def count(model: Any, text: int, visual: int, frozen_layers: Collection[int] = ()) -> list[int]:
    """What PyTorch counts in each decoder layer: in those that are frozen, of the paper's definition.

    The matrix products that really run. Norms, rotary embedding, softmax and activation are none: neither the counter
    nor the cost model counts them.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    states = torch.randn(1, visual + text, model.config.hidden_size)
    inputs = {"inputs_embeds": states}
    if model.config.model_type == "ernie4_5_vl_moe_text":
        inputs["moe_mm_token_type_ids"] = torch.tensor([[1] * visual + [0] * text])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**inputs, use_cache=False)
    counted = counter.get_flop_counts()
    found = [sum(counted[f"{type(model).__name__}.layers.{i}"].values()) for i in range(len(model.layers))]
    for index in frozen_layers:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            frozen_layer(model.layers[index], states, text)
        found[index] = counter.get_total_flops()
    return found


@pytest.mark.parametrize(("key_value_heads", "head_dim"), [(4, 16), (2, 16), (1, 16), (2, 24)])
def test_against_torchs_counter(key_value_heads: int, head_dim: int) -> None:
    """The sums must be equal, to the last one."""
    model = text_model("llama", num_hidden_layers=2, num_key_value_heads=key_value_heads, head_dim=head_dim)
    shapes = layer_shapes(model.config.to_dict())
    assert count(model, 5, 12, [1]) == [dense_layer_flops(shapes[0], 5, 12), frozen_layer_flops(shapes[1], 5, 12)]


# Text models whose layers differ: those of four that have experts, and what of their config says so.
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 48}
ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
ERNIE = {
    **{"moe_k": 2, "moe_num_experts": 6, "moe_num_shared_experts": 1, "moe_intermediate_size": [48, 32]},
    "rope_parameters": {**ROPE, "mrope_section": [3, 3, 2]},
}
GLM = {
    **EXPERTS,
    **{"n_routed_experts": 6, "n_shared_experts": 1},
    "rope_parameters": {**ROPE, "mrope_section": [1, 1, 2], "partial_rotary_factor": 0.5},
}
QWEN = {**EXPERTS, "num_experts": 6, "head_dim": 16}
LLAMA = {"intermediate_size_mlp": 224, "num_local_experts": 3, "num_experts_per_tok": 1, "head_dim": 16}
MIXED: dict[str, tuple[str, dict[str, Any], set[int]]] = {
    "ernie, first layer dense": ("ernie4_5_vl_moe_text", ERNIE, {1, 2, 3}),
    "ernie, as listed": (
        "ernie4_5_vl_moe_text",
        {**ERNIE, "mlp_layer_types": ["sparse", "dense", "dense", "sparse"]},
        {0, 3},
    ),
    "ernie, nothing shared": ("ernie4_5_vl_moe_text", {**ERNIE, "moe_num_shared_experts": 0}, {1, 2, 3}),
    "glm, first layer dense": ("glm4v_moe_text", GLM, {1, 2, 3}),
    "glm, three dense": ("glm4v_moe_text", {**GLM, "first_k_dense_replace": 3, "n_shared_experts": 2}, {3}),
    "glm, none dense": ("glm4v_moe_text", {**GLM, "first_k_dense_replace": 0}, {0, 1, 2, 3}),
    "qwen, all": ("qwen3_vl_moe_text", QWEN, {0, 1, 2, 3}),
    "qwen, every other": ("qwen3_vl_moe_text", {**QWEN, "decoder_sparse_step": 2}, {1, 3}),
    "qwen, but not these": ("qwen3_vl_moe_text", {**QWEN, "mlp_only_layers": [0, 2, 3]}, {1}),
    "qwen, both": ("qwen3_vl_moe_text", {**QWEN, "decoder_sparse_step": 2, "mlp_only_layers": [3]}, {1}),
    "qwen, none": ("qwen3_vl_moe_text", {**QWEN, "num_experts": 0}, set()),
    "llama 4, all": ("llama4_text", LLAMA, {0, 1, 2, 3}),
    "llama 4, every other": ("llama4_text", {**LLAMA, "interleave_moe_layer_step": 2}, {1, 3}),
    "llama 4, as listed": ("llama4_text", {**LLAMA, "moe_layers": [0, 1]}, {0, 1}),
    "llama 4, none": ("llama4_text", {**LLAMA, "moe_layers": []}, set()),
}


@pytest.mark.parametrize("case", MIXED)
def test_layers_that_differ_against_torchs_counter(case: str) -> None:
    """Layer by layer, stock and with every choice of two frozen layers."""
    model_type, fields, with_experts = MIXED[case]
    model = text_model(model_type, num_hidden_layers=4, num_key_value_heads=2, **fields)
    shapes = layer_shapes(model.config.to_dict())
    assert {layer for layer, shape in enumerate(shapes) if shape.router_size} == with_experts
    stock, frozen = count(model, 5, 12), count(model, 5, 12, range(4))
    assert stock == [dense_layer_flops(shape, 5, 12) for shape in shapes]
    assert frozen == [frozen_layer_flops(shape, 5, 12) for shape in shapes]
    assert model_flops(shapes, (), 5, 12) == sum(stock)
    for pair in combinations(range(4), 2):
        total = sum(frozen[layer] if layer in pair else stock[layer] for layer in range(4))
        assert model_flops(shapes, pair, 5, 12) == total
        assert flops_ratio(shapes, pair, 5, 12) == total / sum(stock)


def test_it_matters_which_layers_are_frozen() -> None:
    """By hand: t = 2, v = 3, h = 4; FFNs of width 6 and, for two experts of width 5 out of seven, of 10."""
    common = {"hidden_size": 4, "num_attention_heads": 1, "num_hidden_layers": 2, "intermediate_size": 6}
    experts = {"num_experts": 7, "num_experts_per_tok": 2, "moe_intermediate_size": 5, "mlp_only_layers": [0]}
    shapes = layer_shapes(common | experts)
    attention = 4 * 5 * 5 * 4 + 2 * 5 * 4 * 4 * 4  # scores and mixing; four projections
    dense, sparse = attention + 2 * 5 * 3 * 4 * 6, attention + 2 * 5 * 3 * 4 * 10 + 2 * 5 * 4 * 7
    assert model_flops(shapes, [], 2, 3) == dense + sparse
    attention = 4 * 2 * 5 * 4 + 2 * 2 * 2 * 4 * 4 + 2 * 2 * 5 * 4 * 4  # two projections of 2 rows, two of 5
    frozen_dense, frozen_sparse = attention + 2 * 2 * 3 * 4 * 6, attention + 2 * 2 * 3 * 4 * 10 + 2 * 2 * 4 * 7
    assert model_flops(shapes, [0], 2, 3) == frozen_dense + sparse
    assert model_flops(shapes, [1], 2, 3) == dense + frozen_sparse
    assert flops_ratio(shapes, [1], 2, 3) < flops_ratio(shapes, [0], 2, 3)
