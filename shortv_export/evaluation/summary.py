"""Fidelity and accuracy over all samples: means with confidence intervals, and whether accuracy fell by chance."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from ..records import CONTROL_TOLERANCE, LEVEL, MIN_SAMPLES, RESAMPLES, Accuracy, Estimate, Fidelity
from ..samples import Sample
from .fidelity import Answers

_SEED = 0  # one for all, so that all measures are resampled alike
STATISTICS: dict[str, int | float] = {
    "level": LEVEL,
    "min_samples": MIN_SAMPLES,
    "resamples": RESAMPLES,
    "seed": _SEED,
    "control_tolerance": CONTROL_TOLERANCE,
}
"""What an evaluation records of how its intervals and verdicts were made."""
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBERS)}


def fidelity_of(answers: Sequence[Answers]) -> Fidelity:
    """The mean of each measure over the samples."""
    return Fidelity(
        len(answers),
        _mean([answer.first_token_kl for answer in answers]),
        _share([answer.top1_agreement for answer in answers]),
        _mean([answer.answer_kl for answer in answers]),
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
    lost, gained = pairs.count((True, False)), pairs.count((False, True))
    return Accuracy(
        len(pairs),
        _share(base),
        _share(changed),
        _mean([float(after) - float(before) for before, after in pairs]),
        lost,
        gained,
        p_value=mcnemar(lost, gained) if len(pairs) >= MIN_SAMPLES else None,
    )


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


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % confidence interval of a mean: a BCa bootstrap (bias-corrected and accelerated) over the samples.

    Returns:
        None below `MIN_SAMPLES` samples, and where the bootstrap has no answer: for values that are all equal.
    """
    from scipy.stats import bootstrap

    if len(values) < MIN_SAMPLES or min(values) == max(values):
        return None
    found = bootstrap(
        (np.asarray(values, dtype=np.float64),),
        np.mean,
        n_resamples=RESAMPLES,
        batch=1000,  # of all at once, thousands of samples would take gigabytes
        confidence_level=LEVEL,
        method="BCa",
        rng=np.random.default_rng(_SEED),
    ).confidence_interval
    return (float(found.low), float(found.high)) if np.isfinite(found).all() else None


def mcnemar(lost: int, gained: int) -> float:
    """The p-value of McNemar's exact test, two-sided: losses and gains, if equally likely, are binomial with 1/2."""
    from scipy.stats import binomtest

    return float(binomtest(lost, lost + gained, 0.5).pvalue) if lost + gained else 1.0


def _mean(values: Sequence[float]) -> Estimate:
    return Estimate(sum(values) / len(values), *(mean_interval(values) or (None, None)))


def _share(hits: Sequence[bool]) -> Estimate:
    """A share of samples, with the exact interval of Clopper and Pearson."""
    from scipy.stats import binomtest

    share = sum(hits) / len(hits)
    if len(hits) < MIN_SAMPLES:
        return Estimate(share, None, None)
    found = binomtest(sum(hits), len(hits)).proportion_ci(LEVEL, method="exact")
    return Estimate(share, float(found.low), float(found.high))
