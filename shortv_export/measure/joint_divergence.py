"""Measures the KL divergence of a model from itself with several operators frozen, by whole forward passes.

Layer Contribution freezes one layer or operator at a time, but the effects of several do not add up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..base.definition import frozen_by_definition, placed, text_decoder, visual_tokens
from ..records import Frozen
from .layer_contribution import greedy_answer, later_answer_hidden, log_probabilities, with_answer


class JointDivergence:
    """What is frozen -> mean KL(base || frozen) in nats, and its standard error over the samples.

    Args:
        model: a stock model of a supported family, in evaluation mode.
        inputs: what its processor returns, one sample at a time. They stay in memory, with the base's distributions.
        positions: ``"first"``, the last prompt position; or ``"answer"``, the mean over the tokens of the base's own
            greedy answer.

    Raises:
        ShortVError: the base gives logits that are not finite.
    """

    def __init__(self, model: Any, inputs: Iterable[Mapping[str, Tensor]], positions: str = "first") -> None:
        self.model = model
        samples = [placed(model, sample) for sample in inputs]
        answers = [greedy_answer(model, sample) if positions == "answer" else [0] for sample in samples]
        # Each with the number of positions at its end that are compared.
        self.samples = [with_answer(model, *each) for each in zip(samples, answers, strict=True)]
        self.base = [self._log_probabilities(*sample, Frozen()) for sample in self.samples]

    def __call__(self, frozen: Frozen) -> tuple[float, float]:
        divergences = torch.stack(
            [
                (base.exp() * (base - self._log_probabilities(*sample, frozen))).sum(-1).mean()
                for base, sample in zip(self.base, self.samples, strict=True)
            ]
        )
        count = len(divergences)
        error = divergences.std() / count**0.5 if count > 1 else torch.zeros(())
        return divergences.mean().item(), error.item()

    def _log_probabilities(self, sample: Mapping[str, Tensor], positions: int, frozen: Frozen) -> Tensor:
        """At the last positions: ``(positions, vocabulary)``."""
        visual = visual_tokens(self.model.config, sample["input_ids"])
        layers = text_decoder(self.model).layers
        with (
            torch.inference_mode(),
            frozen_by_definition(layers, frozen=visual, **frozen.lists),
            later_answer_hidden(layers, visual.shape[1] - positions + 1),
        ):
            output = self.model(**sample, use_cache=False, logits_to_keep=positions)
        return log_probabilities(output.logits[0, -positions:])
