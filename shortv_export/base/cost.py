"""The cost model: floating-point operations of the base's decoder layers and of frozen ones (paper, Eqs. 3-5).

The paper counts, per layer, with *t* text tokens, *v* visual tokens, hidden size *h* and FFN size *m*::

    base    2(t+v)(4h+3m)h + 4(t+v)²h                 (Eq. 3; the paper says "dense")
    frozen  2t(4h+3m)h + 4vh² + 4t(t+v)h              (Eq. 4)

This assumes multi-head attention and one FFN. The functions here use the real projection widths instead, so they also
count grouped-query attention and mixtures of experts exactly; under the paper's assumptions they equal its formulas.
As in the paper, a multiply-add counts as two operations, and attention counts as if nothing were masked.

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
    return _layer_flops(shape, text_tokens, visual_tokens, text_tokens + visual_tokens)


def frozen_layer_flops(shape: LayerShape, text_tokens: int, visual_tokens: int) -> int:
    """FLOPs of a frozen layer, which updates text tokens only (Eq. 4)."""
    return _layer_flops(shape, text_tokens, 0, text_tokens + visual_tokens)


def _layer_flops(shape: LayerShape, text_rows: int, visual_rows: int, tokens: int) -> int:
    """FLOPs of a layer that updates these rows of all `tokens`.

    Key and value projections, or the layer's linear attention or convolution, run for all tokens in any case.
    """
    rows = text_rows + visual_rows
    projections = rows * (2 * shape.query_size + shape.gate_size + shape.router_size)  # query, output, gate and router
    projections += tokens * (1 + shape.value_projections) * shape.key_value_size  # key and value
    visual_size = shape.visual_intermediate_size or shape.intermediate_size
    ffn = 3 * (text_rows * shape.intermediate_size + visual_rows * visual_size)
    attention = 4 * rows * tokens * shape.query_size
    return 2 * shape.hidden_size * (projections + ffn) + attention + tokens * shape.mixer_flops


def model_flops(
    shapes: Sequence[LayerShape], frozen_layers: Collection[int], text_tokens: int, visual_tokens: int
) -> int:
    """FLOPs of all decoder layers in one prefill.

    Args:
        shapes: one per decoder layer, in order.
        frozen_layers: numbers of the frozen layers; empty for the base.
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
