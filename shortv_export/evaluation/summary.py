"""Fidelity and accuracy over all samples: means with confidence intervals."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from ..records import LEAST_SAMPLES, Accuracy, Estimate, Fidelity
from ..samples import Sample
from ..selection import RESAMPLES
from .fidelity import Answers

_LEVEL = 0.95  # of confidence
_MOST_VALUES = 10_000_000  # resampled at once
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBERS)}


def fidelity_of(answers: Sequence[Answers]) -> Fidelity:
    """The mean of each measure over the samples."""
    return Fidelity(
        len(answers),
        _estimate([answer.first_token_kl for answer in answers]),
        _share([answer.top1_agreement for answer in answers]),
        _estimate([answer.answer_kl for answer in answers]),
        _share([answer.exact_match for answer in answers]),
    )


def accuracy_of(answers: Sequence[Answers], samples: Sequence[Sample]) -> Accuracy | None:
    """Both models' accuracy over the samples that have an answer; None if none has."""
    pairs = []
    for answer, sample in zip(answers, samples, strict=True):
        if sample.answer is not None:
            expected = normalised(sample.answer)
            pairs.append((normalised(answer.base) == expected, normalised(answer.changed) == expected))
    if not pairs:
        return None
    base, changed = zip(*pairs, strict=True)
    difference = [float(after) - float(before) for before, after in pairs]
    return Accuracy(len(pairs), _share(base), _share(changed), _estimate(difference), mcnemar(base, changed))


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


def mcnemar(base: Sequence[bool], changed: Sequence[bool]) -> float | None:
    """The p-value of the exact McNemar test, two-sided, of paired right and wrong answers; None below `LEAST_SAMPLES`.

    Under the null hypothesis, samples that only one of both answers right fall to either with equal probability.
    """
    from scipy.stats import binomtest

    if len(base) < LEAST_SAMPLES:
        return None
    lost = sum(before and not after for before, after in zip(base, changed, strict=True))
    gained = sum(after and not before for before, after in zip(base, changed, strict=True))
    return float(binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0


def share_interval(hits: int, number: int) -> tuple[float, float] | None:
    """The exact 95 % confidence interval of a share (Clopper-Pearson); None below `LEAST_SAMPLES`."""
    from scipy.stats import binomtest

    if number < LEAST_SAMPLES:
        return None
    low, high = binomtest(hits, number).proportion_ci(_LEVEL, method="exact")
    return float(low), float(high)


def mean_interval(values: Sequence[float], resamples: int = RESAMPLES) -> tuple[float, float] | None:
    """The 95 % confidence interval of a mean, by a BCa bootstrap over the samples; None below `LEAST_SAMPLES`."""
    from scipy.stats import bootstrap

    if len(values) < LEAST_SAMPLES:
        return None
    data = np.asarray(values, dtype=np.float64)
    if (data == data[0]).all():  # nothing to resample; BCa is not defined
        return float(data[0]), float(data[0])
    found = bootstrap(
        (data,),
        np.mean,
        n_resamples=resamples,
        batch=max(1, _MOST_VALUES // len(data)),
        confidence_level=_LEVEL,
        method="BCa",
        rng=np.random.default_rng(0),  # a fixed seed, so that the same answers give the same file
    ).confidence_interval
    return float(found.low), float(found.high)


def _share(values: Sequence[bool]) -> Estimate:
    return Estimate(sum(values) / len(values), *(share_interval(sum(values), len(values)) or (None, None)))


def _estimate(values: Sequence[float]) -> Estimate:
    return Estimate(sum(values) / len(values), *(mean_interval(values) or (None, None)))
