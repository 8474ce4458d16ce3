"""The cost model: floating-point operations of the base's decoder layers and of frozen ones (paper, Eqs. 3-5).

The paper counts, per layer, with *t* text tokens, *v* visual tokens, hidden size *h* and FFN size *m*::

    base    2(t+v)(4h+3m)h + 4(t+v)²h                 (Eq. 3; the paper says "dense")
    frozen  2t(4h+3m)h + 4vh² + 4t(t+v)h              (Eq. 4)

This assumes multi-head attention and one FFN. The functions here use the real projection widths instead, so they also
count grouped-query attention and mixtures of experts exactly; under the paper's assumptions they equal its formulas.
As in the paper, a multiply-add counts as two operations, and attention counts as if nothing were masked.

A layer can also freeze one operator alone: attention (query, output projection and the attention itself) or the FFN.
Linear attention and convolutions pass a state from token to token. A frozen layer therefore runs them for every token,
and its visual tokens skip the FFN only.

All layers of the paper's models are equal. Here each layer has its own shape, since in some models only some layers
have experts; then it matters which layers are frozen.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from .shapes import LayerShape

# Lengths of the paper's prompts.
TEXT_TOKENS = 64
VISUAL_TOKENS = 576


def dense_layer_flops(shape: LayerShape, text_tokens: int, visual_tokens: int) -> int:
    """FLOPs of a decoder layer that updates every token (Eq. 3)."""
    return layer_flops(shape, text_tokens, visual_tokens)


def frozen_layer_flops(shape: LayerShape, text_tokens: int, visual_tokens: int) -> int:
    """FLOPs of a frozen layer, which updates text tokens only (Eq. 4)."""
    return layer_flops(shape, text_tokens, visual_tokens, frozen_attention=True, frozen_ffn=True)


def layer_flops(
    shape: LayerShape,
    text_tokens: int,
    visual_tokens: int,
    *,
    frozen_attention: bool = False,
    frozen_ffn: bool = False,
) -> int:
    """FLOPs of a decoder layer, whose visual tokens may skip attention or the FFN.

    Key and value projections, or the layer's linear attention or convolution, run for all tokens in any case.
    """
    tokens = text_tokens + visual_tokens
    rows = text_tokens if frozen_attention else tokens
    attention = rows * (2 * shape.query_size + shape.gate_size)  # query, output and gate
    attention += tokens * (1 + shape.value_projections) * shape.key_value_size  # key and value
    passed = 0 if frozen_ffn else visual_tokens
    visual_size = shape.visual_intermediate_size or shape.intermediate_size
    ffn = 3 * (text_tokens * shape.intermediate_size + passed * visual_size)
    ffn += (text_tokens + passed) * shape.router_size
    products = 4 * rows * tokens * shape.query_size
    return 2 * shape.hidden_size * (attention + ffn) + products + tokens * shape.mixer_flops


def operator_savings(shape: LayerShape, text_tokens: int, visual_tokens: int) -> tuple[int, int]:
    """The FLOPs that a layer saves if visual tokens skip its attention alone, and its FFN alone.

    Linear attention and convolutions cannot be skipped and save nothing.
    """
    prompt = (shape, text_tokens, visual_tokens)
    dense = layer_flops(*prompt)
    return dense - layer_flops(*prompt, frozen_attention=True), dense - layer_flops(*prompt, frozen_ffn=True)


def model_flops(
    shapes: Sequence[LayerShape],
    frozen_layers: Collection[int],
    text_tokens: int,
    visual_tokens: int,
    *,
    frozen_attention: Collection[int] = (),
    frozen_ffn: Collection[int] = (),
) -> int:
    """FLOPs of all decoder layers in one prefill.

    Args:
        shapes: one per decoder layer, in order.
        frozen_layers: numbers of the frozen layers; empty for the base.
        text_tokens, visual_tokens: of the prompt.
        frozen_attention, frozen_ffn: numbers of the layers that freeze a single operator.
    """
    return sum(
        layer_flops(
            shape,
            text_tokens,
            visual_tokens,
            frozen_attention=layer in frozen_layers or layer in frozen_attention,
            frozen_ffn=layer in frozen_layers or layer in frozen_ffn,
        )
        for layer, shape in enumerate(shapes)
    )


def flops_ratio(
    shapes: Sequence[LayerShape],
    frozen_layers: Collection[int],
    text_tokens: int,
    visual_tokens: int,
    *,
    frozen_attention: Collection[int] = (),
    frozen_ffn: Collection[int] = (),
) -> float:
    """FLOPs of the ShortV model over those of its base (Eq. 5); its inverse is the limit of the prefill speed-up.

    The arguments are those of `model_flops`.
    """
    prompt = (text_tokens, visual_tokens)
    flops = model_flops(shapes, frozen_layers, *prompt, frozen_attention=frozen_attention, frozen_ffn=frozen_ffn)
    return flops / model_flops(shapes, (), *prompt)
