"""The cost model against the paper's tables, and against PyTorch's own counter."""

from __future__ import annotations

from typing import Any

import pytest

from shortv_export.flops import (
    LayerShape,
    dense_layer_flops,
    flops_ratio,
    frozen_layer_flops,
    model_flops,
)

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


@pytest.mark.parametrize("model", PAPER)
def test_papers_tables(model: str) -> None:
    shape, layers, frozen, visual, vanilla_tflops, shortv_tflops, percent = PAPER[model]
    assert round(model_flops(shape, layers, 0, 64, visual) / 1e12, 1) == vanilla_tflops
    assert round(model_flops(shape, layers, frozen, 64, visual) / 1e12, 1) == shortv_tflops
    assert round(100 * flops_ratio(shape, layers, frozen, 64, visual)) == percent
    assert flops_ratio(shape, layers, 0, 64, visual) == 1


@pytest.mark.parametrize("shape", [VICUNA_7B, VICUNA_13B])
@pytest.mark.parametrize(("t", "v"), [(64, 576), (64, 2880), (1, 1), (64, 0), (0, 576)])
def test_multi_head_attention_costs_what_equations_3_and_4_say(shape: LayerShape, t: int, v: int) -> None:
    h, m = shape.hidden_size, shape.intermediate_size
    assert dense_layer_flops(shape, t, v) == 2 * (t + v) * (4 * h + 3 * m) * h + 4 * (t + v) ** 2 * h
    assert frozen_layer_flops(shape, t, v) == 2 * t * (4 * h + 3 * m) * h + 4 * v * h**2 + 4 * t * (t + v) * h


def test_without_visual_tokens_a_frozen_layer_saves_nothing() -> None:
    assert frozen_layer_flops(VICUNA_7B, 64, 0) == dense_layer_flops(VICUNA_7B, 64, 0)


def test_shape_of_a_config() -> None:
    config: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    assert LayerShape.from_config(config) == LayerShape(64, 128, 64, 64)
    assert LayerShape.from_config({**config, "num_key_value_heads": 2}) == LayerShape(64, 128, 64, 32)
    assert LayerShape.from_config({**config, "head_dim": 32}) == LayerShape(64, 128, 128, 128)


@pytest.mark.parametrize(("key_value_heads", "head_dim"), [(4, 16), (2, 16), (1, 16), (2, 24)])
def test_against_torchs_counter(key_value_heads: int, head_dim: int) -> None:
    """PyTorch counts the matrix products of a layer that is really run; the sums must be equal, to the last one.

    Eager attention multiplies all queries with all keys and masks afterwards, so that the counter, like the paper,
    sees no causal saving. Norms, rotary embedding, softmax and activation are no matrix products: neither counts them.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=160,
        num_attention_heads=4,
        num_key_value_heads=key_value_heads,
        head_dim=head_dim,
        attn_implementation="eager",
    )
    shape = LayerShape.from_config(config.to_dict())
    layer = LlamaDecoderLayer(config, layer_idx=0).eval()
    text, visual = 5, 12
    tokens = text + visual
    states = torch.randn(1, tokens, 64)
    rotary = LlamaRotaryEmbedding(config)(states, torch.arange(tokens)[None])

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(states, position_embeddings=rotary, attention_mask=None)
    assert counter.get_total_flops() == dense_layer_flops(shape, text, visual)

    # The frozen layer as the paper defines it: keys and values of all tokens, the rest for the last `text` rows.
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        attention, rows = layer.self_attn, states[:, visual:]
        keys, values = (
            project(states).view(1, tokens, key_value_heads, head_dim).transpose(1, 2)
            for project in (attention.k_proj, attention.v_proj)
        )
        queries = attention.q_proj(rows).view(1, text, 4, head_dim).transpose(1, 2)
        repeats = 4 // key_value_heads
        weights = (queries @ keys.repeat_interleave(repeats, 1).transpose(2, 3)).softmax(-1)
        mixed = weights @ values.repeat_interleave(repeats, 1)
        layer.mlp(attention.o_proj(mixed.transpose(1, 2).reshape(1, text, 4 * head_dim)))
    assert counter.get_total_flops() == frozen_layer_flops(shape, text, visual)
