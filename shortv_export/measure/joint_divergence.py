"""Measures the KL divergence of a model from itself with several layers frozen, by whole forward passes.

Layer Contribution freezes one layer at a time, but the effects of several layers do not add up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..base.definition import frozen_by_definition, placed, text_decoder, visual_tokens
from .layer_contribution import log_probabilities


class JointDivergence:
    """Frozen layers -> mean KL(base || frozen) at the last prompt position, in nats, and its standard error.

    Args:
        model: a stock model of a supported family, in evaluation mode.
        inputs: what its processor returns, one sample at a time. They stay in memory, with the base's distributions.

    Raises:
        ShortVError: the base gives logits that are not finite.
    """

    def __init__(self, model: Any, inputs: Iterable[Mapping[str, Tensor]]) -> None:
        self.model = model
        self.inputs = [placed(model, sample) for sample in inputs]
        self.base = [self._log_probabilities(sample, ()) for sample in self.inputs]

    def __call__(self, frozen_layers: Sequence[int]) -> tuple[float, float]:
        divergences = torch.stack(
            [
                (base.exp() * (base - self._log_probabilities(sample, frozen_layers))).sum()
                for base, sample in zip(self.base, self.inputs, strict=True)
            ]
        )
        count = len(divergences)
        error = divergences.std() / count**0.5 if count > 1 else torch.zeros(())
        return divergences.mean().item(), error.item()

    def _log_probabilities(self, sample: Mapping[str, Tensor], frozen_layers: Sequence[int]) -> Tensor:
        """Of the next token: ``(vocabulary,)``."""
        visual = visual_tokens(self.model.config, sample["input_ids"])
        layers = text_decoder(self.model).layers
        with torch.inference_mode(), frozen_by_definition(layers, frozen_layers, visual):
            return log_probabilities(self.model(**sample, use_cache=False, logits_to_keep=1).logits[0, -1])
