"""Quantised models: frozen layers call the model's own projections, of any class."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.support.definition import TOLERANCE, relative_error


class Int8Linear(nn.Module):
    """A linear layer with int8 weights and a scale per output; like those of libraries, not an `nn.Linear`."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("weight", (linear.weight / scale).round().to(torch.int8))
        self.bias = linear.bias

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(inputs, self.weight * self.scale, self.bias)


def replace_linears(model: nn.Module) -> None:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, Int8Linear(child))


def with_torchao(model: nn.Module) -> None:
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())


@pytest.mark.parametrize("quantize", [replace_linears, with_torchao])
def test_int8_weights_equal_the_definition(load_pair: Any, quantize: Any) -> None:
    pair = load_pair(frozen=(0, 2))
    inputs = pair.inputs("USER: <image>\n what is in this picture ? ASSISTANT:")
    with torch.inference_mode(), pair.oracle():
        unquantized = pair.stock(**inputs).logits
    for model in (pair.stock, pair.shortv):
        quantize(model.model.language_model)
    with torch.inference_mode():
        dense = pair.stock(**inputs).logits
        with pair.oracle():
            expected = pair.stock(**inputs).logits
        actual = pair.shortv(**inputs).logits
    assert relative_error(actual, expected) <= TOLERANCE
    assert relative_error(dense, expected) > 100 * TOLERANCE
    assert relative_error(unquantized, expected) > 100 * TOLERANCE
