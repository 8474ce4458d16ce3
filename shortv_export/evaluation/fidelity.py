"""Compares the greedy answers of changed models with those of their base, sample by sample.

For each sample and each change (see `changes.Change`):

1. The base answers. Its distribution before each token of the answer is kept.
2. The changed model is forced to give the same tokens, and its distributions are compared with the base's.
3. The changed model answers freely.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_type_hints

import torch
from torch import Tensor

from ..base.definition import placed
from ..measure import PartialResults, log_probabilities
from ..progress import progress
from ..samples import Encoder, Sample
from .changes import UNCHANGED, Change, Inputs


@dataclass(frozen=True)
class Answers:
    """The base's and a changed model's greedy answer to one sample, and how close they are.

    Attributes:
        first_token_kl, answer_kl, top1_agreement, exact_match: see `records.Fidelity`.
        base, changed: the answers as text.
    """

    first_token_kl: float
    answer_kl: float
    top1_agreement: bool
    exact_match: bool
    base: str
    changed: str


def is_answers(values: Any) -> bool:
    """Whether these are the fields of `Answers`, as an earlier run kept them."""
    kinds = get_type_hints(Answers)
    return (
        isinstance(values, dict)
        and values.keys() == kinds.keys()
        and all(type(value) is kinds[name] for name, value in values.items())
        and all(math.isfinite(value) for value in values.values() if isinstance(value, float))
    )


def measure_fidelity(
    model: Any,
    encoder: Encoder,
    samples: Sequence[Sample],
    changes: Sequence[Change],
    *,
    max_new_tokens: int,
    finished: PartialResults | None = None,
) -> list[list[Answers]]:
    """Compares changed models with their base, one sample at a time, so that no result depends on other samples.

    Args:
        model: a ShortV model that freezes nothing, which is the base.
        encoder: of its package.
        samples: what the models are asked.
        changes: what is compared with the base.
        max_new_tokens: the longest answer, in tokens.
        finished: results of an earlier run, which are not measured again; new results are added.

    Returns:
        For each change, the answers to each sample.

    Raises:
        ShortVError: logits are not finite.
    """
    finished = finished or PartialResults(None, "")
    with progress("Evaluating", len(samples), "sample") as advance:
        for sample in samples:
            missing = [change for change in changes if finished.get(sample.digest, _key(change)) is None]
            if missing:
                for change, answers in zip(
                    missing, _compared(model, encoder, sample, missing, max_new_tokens), strict=True
                ):
                    finished.add(sample.digest, _key(change), asdict(answers))
            advance(1)
    return [[Answers(**(finished.get(sample.digest, _key(change)) or {})) for sample in samples] for change in changes]


def _compared(
    model: Any, encoder: Encoder, sample: Sample, changes: Sequence[Change], max_new_tokens: int
) -> Iterator[Answers]:
    """The answers of each changed model to one sample; the base answers once."""
    inputs = placed(model, encoder(sample))
    tokens, expected = _answer(model, UNCHANGED, inputs, max_new_tokens)
    for change in changes:
        _, found = _answer(model, change, inputs, len(tokens), forced=tokens)
        own, _ = _answer(model, change, inputs, max_new_tokens)
        divergences = (expected.exp() * (expected - found)).sum(-1)
        yield Answers(
            first_token_kl=divergences[0].item(),
            answer_kl=divergences.mean().item(),
            top1_agreement=bool(expected[0].argmax() == found[0].argmax()),
            exact_match=own == tokens,
            base=encoder.decode(tokens),
            changed=encoder.decode(own),
        )


def _key(change: Change) -> str:
    return json.dumps([change.name, change.frozen.lists if change.frozen is not None else None])


def _answer(
    model: Any, change: Change, inputs: Inputs, max_new_tokens: int, forced: Sequence[int] | None = None
) -> tuple[list[int], Tensor]:
    """A changed model's greedy answer, or the tokens in `forced` instead.

    Returns:
        The answer's token ids, and the log-probabilities before each token ``(tokens, vocabulary)``. They are the
        model's own: the generation config's penalties and suppressed tokens do not change them.
    """
    from transformers import GenerationMixin, LogitsProcessorList

    processors = LogitsProcessorList([_Forced(forced)] if forced is not None else [])
    with torch.inference_mode(), change.apply(model, inputs):
        output = GenerationMixin.generate(  # Janus has a `generate` of its own, which leaves out the processors
            model,
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            logits_processor=processors,
            return_dict_in_generate=True,
            output_logits=True,
        )
    return output.sequences[0, -len(output.logits) :].tolist(), log_probabilities(torch.cat(output.logits))


class _Forced:
    """A logits processor that makes `generate` give these tokens."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = iter(tokens)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, next(self.tokens)] = 0
        return forced
