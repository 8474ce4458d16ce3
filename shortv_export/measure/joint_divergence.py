"""How far a model moves when several layers are frozen together: by definition, with whole forward passes.

Layer Contribution freezes one layer at a time, and the effects of several do not add up. This measures what a list of
layers does as a whole, with nothing but the stock model and the definition of a frozen layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..base.definition import frozen_by_definition, placed, text_decoder, visual_tokens
from ..errors import ShortVError


class JointDivergence:
    """Frozen layers -> mean KL(base || frozen) at the last prompt position, in nats, and its standard error.

    Args:
        model: a stock model of a supported family, in evaluation mode.
        inputs: what its processor returns, one sample at a time. They are kept, as is the base's distribution for
            each of them.

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
        """Of the next token: ``(vocabulary,)`` float64 on the CPU, as differences of distributions are small."""
        visual = visual_tokens(self.model.config, sample["input_ids"])
        layers = text_decoder(self.model).layers
        with torch.inference_mode(), frozen_by_definition(layers, frozen_layers, visual):
            logits = self.model(**sample, use_cache=False, logits_to_keep=1).logits[0, -1]
        log_probabilities = logits.cpu().double().log_softmax(-1)
        if not bool(log_probabilities.isfinite().all()):
            raise ShortVError("the model gives logits that are not finite; use dtype bfloat16 or float32.")
        return log_probabilities
