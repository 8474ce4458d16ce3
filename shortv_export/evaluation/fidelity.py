"""How close a changed model's answers stay to those of its base, and which of both are right.

Each change (see `speed.Change`) is held against the base's own greedy answer:

1. the base answers, and its distribution before each token of the answer is kept;
2. the changed model is made to give the same tokens, one by one as in any generation, which gives its distributions;
3. the changed model answers by itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..base.definition import placed
from ..errors import ShortVError
from ..measure import FinishedSamples
from ..records import Accuracy, Fidelity
from ..samples import encode_samples
from .answers import normalised
from .estimates import estimate_of
from .speed import UNCHANGED, Change

if TYPE_CHECKING:
    from ..samples import Sample


@dataclass(frozen=True)
class Answers:
    """What one sample's greedy answers show.

    Attributes:
        first_token_kl, answer_kl, top1_agreement, exact_match: as in `results.Fidelity`, of this sample.
        base, changed: the answers as text.
    """

    first_token_kl: float
    answer_kl: float
    top1_agreement: bool
    exact_match: bool
    base: str
    changed: str


def measure_fidelity(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    changes: Sequence[Change],
    *,
    max_new_tokens: int,
    finished: FinishedSamples | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[list[Answers]]:
    """Holds changed models against their base, one sample at a time, so that nothing depends on other samples.

    Args:
        model: the base: it answers as it is, and then inside each change.
        processor: of the model.
        samples: to measure on.
        changes: to measure.
        max_new_tokens: most tokens of an answer.
        finished: where what is measured is kept, and what was measured before is taken from.
        progress: called with the samples done and the samples in all.

    Returns:
        For each change, the answers of each sample.

    Raises:
        ShortVError: logits that are not finite.
    """
    finished = finished or FinishedSamples(None, "")
    if progress is not None:
        progress(0, len(samples))
    for number, sample in enumerate(samples, start=1):
        missing = [change for change in changes if finished.get(sample.digest, _key(change)) is None]
        if missing:
            prompt = encode_samples(processor, [sample])
            inputs = placed(model, prompt)
            tokens, base = _answer(model, UNCHANGED, inputs, max_new_tokens)
            text = _text(processor, tokens)
            for change in missing:
                _, changed = _answer(model, change, inputs, len(tokens), forced=tokens)
                own, _ = _answer(model, change, inputs, max_new_tokens)
                divergences = (base.exp() * (base - changed)).sum(-1)
                values = {
                    "first_token_kl": divergences[0].item(),
                    "answer_kl": divergences.mean().item(),
                    "top1_agreement": bool(base[0].argmax() == changed[0].argmax()),
                    "exact_match": own == tokens,
                    "base": text,
                    "changed": _text(processor, own),
                }
                finished.add(sample.digest, _key(change), values)
        if progress is not None:
            progress(number, len(samples))
    return [[Answers(**(finished.get(sample.digest, _key(change)) or {})) for sample in samples] for change in changes]


def _key(change: Change) -> str:
    return json.dumps([change.name, change.frozen_layers])


def _answer(
    model: Any,
    change: Change,
    inputs: Mapping[str, Tensor],
    max_new_tokens: int,
    forced: Sequence[int] | None = None,
) -> tuple[list[int], Tensor]:
    """The tokens of a greedy answer, or `forced` ones, and the distribution before each of them.

    Returns:
        Token ids, and log-probabilities ``(tokens, vocabulary)``, float64 on the CPU, as differences of
        distributions are small; before anything that the generation config does to them.
    """
    from transformers import LogitsProcessorList

    processors = LogitsProcessorList([_Forced(forced)] if forced is not None else [])
    with torch.inference_mode(), change.apply(model, inputs):
        output = model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            logits_processor=processors,
            return_dict_in_generate=True,
            output_logits=True,
        )
    logits = torch.cat(output.logits).cpu().double()
    log_probabilities = logits.log_softmax(-1)
    if not bool(log_probabilities.isfinite().all()):
        raise ShortVError("the model gives logits that are not finite; use dtype bfloat16 or float32.")
    return output.sequences[0, -len(logits) :].tolist(), log_probabilities


class _Forced:
    """A logits processor that lets `generate` choose these tokens and no others."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = iter(tokens)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, next(self.tokens)] = 0
        return forced


def _text(processor: Any, tokens: Sequence[int]) -> str:
    return str(processor.tokenizer.decode(tokens, skip_special_tokens=True)).strip()


def fidelity_of(answers: Sequence[Answers]) -> Fidelity:
    """Means over samples."""
    return Fidelity(
        len(answers),
        estimate_of([answer.first_token_kl for answer in answers]),
        estimate_of([float(answer.top1_agreement) for answer in answers]),
        estimate_of([answer.answer_kl for answer in answers]),
        estimate_of([float(answer.exact_match) for answer in answers]),
    )


def accuracy_of(answers: Sequence[Answers], samples: Sequence[Sample]) -> Accuracy | None:
    """Both models' accuracy over those samples that have an answer; None if none has."""
    pairs = []
    for answer, sample in zip(answers, samples, strict=True):
        if sample.answer is not None:
            expected = normalised(sample.answer)
            pairs.append((float(normalised(answer.base) == expected), float(normalised(answer.changed) == expected)))
    if not pairs:
        return None
    base, changed = zip(*pairs, strict=True)
    difference = [after - before for before, after in pairs]
    return Accuracy(len(pairs), estimate_of(base), estimate_of(changed), estimate_of(difference))


def accuracy_by_group(answers: Sequence[Answers], samples: Sequence[Sample]) -> dict[str, Accuracy]:
    """The accuracy over the samples of each group, where samples have groups."""
    groups: dict[str, Accuracy] = {}
    for group in sorted({sample.group for sample in samples if sample.group is not None}):
        members = [number for number, sample in enumerate(samples) if sample.group == group]
        accuracy = accuracy_of([answers[number] for number in members], [samples[number] for number in members])
        if accuracy is not None:
            groups[group] = accuracy
    return groups
