"""The cost model: floating-point operations of dense and frozen decoder layers (paper, Eqs. 3-5).

The paper counts, per layer, with *t* text tokens, *v* visual tokens, hidden size *h* and FFN size *m*::

    dense   2(t+v)(4h+3m)h + 4(t+v)²h                 (Eq. 3)
    frozen  2t(4h+3m)h + 4vh² + 4t(t+v)h              (Eq. 4)

which assumes multi-head attention. The formulas here use the real projection widths, so that grouped-query models
are counted exactly, and of a mixture of experts those that a token passes; with as many key heads as query heads and
a single FFN they are the paper's. A multiply-add counts as two, and attention as if nothing were masked, as in the
paper.

Linear attention and convolutions pass each token's state on to the next, so that a frozen layer runs them for every
token; visual tokens skip its FFN only.

The paper's models have equal layers, so that their number says what frozen ones save. Where only some layers have
experts, it matters which layers are frozen: the sums here are over the layers, each with its own shape.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from .shapes import LayerShape


def dense_layer_flops(shape: LayerShape, text_tokens: int, visual_tokens: int) -> int:
    """FLOPs of a decoder layer that updates every token (Eq. 3)."""
    tokens = text_tokens + visual_tokens
    return (
        _rows(shape, text_tokens, visual_tokens) + _keys_and_values(shape, tokens) + _attention(shape, tokens, tokens)
    )


def frozen_layer_flops(shape: LayerShape, text_tokens: int, visual_tokens: int) -> int:
    """FLOPs of a frozen layer: keys and values of all tokens, everything else for text tokens only (Eq. 4).

    What takes the place of attention in some layers runs for all tokens, too.
    """
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
    projections = (text_rows + visual_rows) * (2 * shape.query_size + shape.gate_size + shape.router_size)
    ffn = 3 * (text_rows * shape.intermediate_size + visual_rows * visual_size)
    return 2 * shape.hidden_size * (projections + ffn)


def _keys_and_values(shape: LayerShape, tokens: int) -> int:
    """Or what takes the place of attention: what every token needs in a frozen layer, too."""
    projections = (1 + shape.value_projections) * shape.key_value_size
    return tokens * (2 * shape.hidden_size * projections + shape.mixer_flops)


def _attention(shape: LayerShape, queries: int, keys: int) -> int:
    return 4 * queries * keys * shape.query_size
