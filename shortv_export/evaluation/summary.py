"""Fidelity and accuracy over all samples: means with confidence intervals."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from ..records import Accuracy, Estimate, Fidelity
from ..samples import Sample
from ..selection import RESAMPLES, draws
from .fidelity import Answers

_LEVEL = 0.95  # of confidence
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBERS)}


def fidelity_of(answers: Sequence[Answers]) -> Fidelity:
    """The mean of each measure over the samples."""
    return Fidelity(
        len(answers),
        _estimate([answer.first_token_kl for answer in answers]),
        _estimate([float(answer.top1_agreement) for answer in answers]),
        _estimate([answer.answer_kl for answer in answers]),
        _estimate([float(answer.exact_match) for answer in answers]),
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
    return Accuracy(len(pairs), _estimate(base), _estimate(changed), _estimate(difference))


def accuracy_by_group(answers: Sequence[Answers], samples: Sequence[Sample]) -> dict[str, Accuracy]:
    """The accuracy over the samples of each group; groups without answers are left out."""
    groups: dict[str, Accuracy] = {}
    for group in sorted({sample.group for sample in samples if sample.group is not None}):
        members = [number for number, sample in enumerate(samples) if sample.group == group]
        if accuracy := accuracy_of([answers[number] for number in members], [samples[number] for number in members]):
            groups[group] = accuracy
    return groups


def normalised(answer: str) -> str:
    """A short answer in the form in which answers are compared, by the rules of the VQA challenge.

    The rules (https://visualqa.org/evaluation.html): lower case, numbers as digits, no articles, no punctuation except
    a decimal point. The challenge adds missing apostrophes to contractions; here all apostrophes are removed, which
    makes the same answers equal.
    """
    text = re.sub(r"['’]", "", answer.lower())
    text = re.sub(r"(?<=\d),(?=\d)", "", text)  # 1,000
    text = re.sub(r"(?<!\d)\.|\.(?!\d)", "", text)  # a full stop, not a decimal point
    words = re.sub(r"[^\w.]|_", " ", text).split()
    return " ".join(_DIGITS.get(word, word) for word in words if word not in ("a", "an", "the"))


def mean_interval(values: Sequence[float], resamples: int = RESAMPLES) -> tuple[float, float] | None:
    """The 95 % confidence interval of a mean, a percentile bootstrap over the samples; None below two samples."""
    if len(values) < 2:
        return None
    # A fixed seed, so that all measures are resampled alike.
    means = np.asarray(values, dtype=np.float64)[draws(len(values), resamples, seed=0)].mean(axis=1)
    low, high = np.quantile(means, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)


def _estimate(values: Sequence[float]) -> Estimate:
    return Estimate(sum(values) / len(values), *(mean_interval(values) or (None, None)))
