"""Quantised linears: a frozen layer calls the model's own projections, whatever they are made of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import TOLERANCE, relative_error

torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")


def test_int8_weights_equal_the_definition(load_pair: Any) -> None:
    pair = load_pair(frozen_layers=(0, 2))
    for model in (pair.stock, pair.shortv):
        torchao.quantize_(model.model.language_model, torchao.Int8WeightOnlyConfig())
    projection = pair.shortv.model.language_model.layers[0].self_attn.k_proj
    assert type(projection.weight.data) is not torch.Tensor
    inputs = pair.inputs("USER: <image>\n what is in this picture ? ASSISTANT:")
    with torch.inference_mode():
        dense = pair.stock(**inputs).logits
        with pair.oracle():
            expected = pair.stock(**inputs).logits
        actual = pair.shortv(**inputs).logits
    assert relative_error(actual, expected) <= TOLERANCE
    assert relative_error(dense, expected) > 100 * TOLERANCE
