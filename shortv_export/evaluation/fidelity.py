"""How close a changed model's answers stay to those of its base, and how many answers of each are right.

Each change (see `changes.Change`) is compared with the base's own greedy answer:

1. The base answers; its distribution before each token of the answer is kept.
2. The changed model is forced to generate the same tokens; its distributions are compared with the base's.
3. The changed model answers freely.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..base.definition import placed
from ..measure import PartialResults, log_probabilities
from ..records import Accuracy, Fidelity
from ..samples import encode_samples
from .answers import normalised
from .changes import UNCHANGED, Change, Inputs
from .estimates import estimate_of

if TYPE_CHECKING:
    from ..samples import Sample


@dataclass(frozen=True)
class Answers:
    """One sample's greedy answers, and how close they are.

    Attributes:
        first_token_kl, answer_kl, top1_agreement, exact_match: as in `records.Fidelity`, of this sample.
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
    finished: PartialResults | None = None,
) -> list[list[Answers]]:
    """Compares changed models with their base, one sample at a time: no result depends on other samples.

    Args:
        model: the base, a ShortV model that freezes nothing.
        processor: of the model.
        samples: to measure on.
        changes: to measure.
        max_new_tokens: most tokens of an answer.
        finished: results of an earlier run, which are not measured again; new ones are added.

    Returns:
        For each change, the answers of each sample.

    Raises:
        ShortVError: logits that are not finite.
    """
    from huggingface_hub.utils import tqdm

    finished = finished or PartialResults(None, "")
    for sample in tqdm(samples, desc="Evaluating samples", unit="sample"):
        missing = [change for change in changes if finished.get(sample.digest, _key(change)) is None]
        if missing:
            inputs = placed(model, encode_samples(processor, [sample]))
            base = _answer(model, UNCHANGED, inputs, max_new_tokens)
            for change in missing:
                forced = _answer(model, change, inputs, len(base.tokens), forced=base.tokens)
                own = _answer(model, change, inputs, max_new_tokens)
                divergences = (base.distributions.exp() * (base.distributions - forced.distributions)).sum(-1)
                same_first = base.distributions[0].argmax() == forced.distributions[0].argmax()
                answers = Answers(
                    first_token_kl=divergences[0].item(),
                    answer_kl=divergences.mean().item(),
                    top1_agreement=bool(same_first),
                    exact_match=own.tokens == base.tokens,
                    base=_text(processor, base.tokens),
                    changed=_text(processor, own.tokens),
                )
                finished.add(sample.digest, _key(change), asdict(answers))
    return [[Answers(**(finished.get(sample.digest, _key(change)) or {})) for sample in samples] for change in changes]


def _key(change: Change) -> str:
    return json.dumps([change.name, change.frozen_layers])


@dataclass(frozen=True)
class _Answer:
    """An answer, and the distribution before each of its tokens.

    Attributes:
        tokens: their ids.
        distributions: log-probabilities ``(tokens, vocabulary)`` of the model itself: the generation config's changes
            to them are left out.
    """

    tokens: list[int]
    distributions: Tensor


def _answer(
    model: Any, change: Change, inputs: Inputs, max_new_tokens: int, forced: Sequence[int] | None = None
) -> _Answer:
    """A changed model's greedy answer; with `forced`, these tokens instead."""
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
    tokens = output.sequences[0, -len(output.logits) :].tolist()
    return _Answer(tokens, log_probabilities(torch.cat(output.logits)))


class _Forced:
    """A logits processor that makes `generate` give these tokens."""

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
    """Both models' accuracy over the samples that have an answer; None if none has."""
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
    """The accuracy over the samples of each group that has answers."""
    groups: dict[str, Accuracy] = {}
    for group in sorted({sample.group for sample in samples if sample.group is not None}):
        members = [number for number, sample in enumerate(samples) if sample.group == group]
        accuracy = accuracy_of([answers[number] for number in members], [samples[number] for number in members])
        if accuracy is not None:
            groups[group] = accuracy
    return groups
