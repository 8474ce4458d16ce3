"""``evaluation.json``: how close a package is to its base, how accurate it is and how fast."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import ShortVError
from ..files import read_json, write_json
from .frozen import Frozen
from .validation import STRICT, validated

FORMAT = 2
LEVEL = 0.95
"""Of confidence; a test's p-value below 1 - LEVEL is a verdict."""
MIN_SAMPLES = 20
"""Below so many samples there is no interval and no verdict."""
RESAMPLES = 9999
"""Of each bootstrap."""
CONTROL_TOLERANCE = 0.05
"""How far from 1 a control's speed-up may be. In half of the rounds it must be nearer, or the speed-up is void."""
FEW_SAMPLES = f"Below {MIN_SAMPLES} samples there is no interval and no verdict."
ALL_EQUAL = (
    "Where all samples have the same value there is no interval: they do not tell how much others would differ."
)
TOO_NOISY = (
    "The machine was too noisy to measure speed: the package with nothing frozen, timed in turn with its base, was "
    f"more than {CONTROL_TOLERANCE:.0%} faster or slower in half of the rounds. Such speed-ups are void; measure "
    "again on an idle machine."
)
NO_CPU_MEMORY = "Peak memory is not measured on a CPU, where one process cannot tell it for each side."


@dataclass(frozen=True)
class Estimate:
    """A mean over samples, with its 95 % confidence interval.

    A share of samples has the exact interval of Clopper and Pearson, any other mean that of a BCa bootstrap.

    Attributes:
        low, high: the interval; None below `MIN_SAMPLES` samples, or if a bootstrap finds all values equal.
    """

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Pair:
    """The same quantity of the base and of the changed model."""

    base: float
    changed: float


@dataclass(frozen=True)
class Fidelity:
    """How close the changed model stays to its base.

    Attributes:
        num_samples: number of samples.
        first_token_kl: KL(base || changed) of the first answer token, in nats.
        top1_agreement: share of samples whose most likely first answer token is the same.
        answer_kl: KL(base || changed), averaged over the tokens of the base's greedy answer, in nats. Both models read
            this answer (teacher forcing).
        exact_match: share of samples with the same greedy answer, token for token.
    """

    num_samples: int
    first_token_kl: Estimate
    top1_agreement: Estimate
    answer_kl: Estimate
    exact_match: Estimate


@dataclass(frozen=True)
class Accuracy:
    """Share of greedy answers that equal the data's answer, normalised by the rules of the VQA challenge.

    Attributes:
        num_samples: number of samples with an answer.
        difference: changed - base, with the interval of the paired differences.
        lost, gained: numbers of samples that only the base, and only the changed model answers right.
        p_value: of McNemar's exact test, two-sided, whether losses and gains are equally likely; None below
            `MIN_SAMPLES` samples.
    """

    num_samples: int
    base: Estimate
    changed: Estimate
    difference: Estimate
    lost: int
    gained: int
    p_value: float | None

    @property
    def fell(self) -> bool:
        """Whether the accuracy fell by more than chance explains."""
        return self.p_value is not None and self.p_value < 1 - LEVEL and self.lost > self.gained


@dataclass(frozen=True)
class Speed:
    """The prefill of one sequence by both models, which take turns in one process. All times are medians.

    A control runs in the same rounds: the base with nothing frozen, which should be as fast as the base.

    Attributes:
        at: ``"data"``, the token counts of the sample with the median length, or ``"given"``.
        text_tokens, visual_tokens: of the prompt.
        repeats: number of rounds after a warm-up.
        first_token_seconds: the whole model with its vision tower, up to the logits of the first answer token; None at
            given token counts, since there is no image.
        prefill_seconds: the language model alone, on embeddings.
        tokens_per_second: prompt tokens over `prefill_seconds`.
        peak_memory: bytes during the prefill, weights included: on CUDA the allocator's peak, on MPS the driver's
            memory after it; None on a CPU.
        flops: of the decoder layers, by torch's counter, which counts causal attention as full attention.
        expected_flops: by the cost model (`base.model_flops`); None for a change that the cost model does not cover.
        flops_difference: the larger relative difference between `flops` and `expected_flops`.
        ratios: base over changed, of the time of the language model, in each round.
        control_ratios: base over control, likewise.
        speed_up: the median of `ratios`.
        control: the median of `control_ratios`.
        limit: base over changed, of `flops`.
        share_of_limit: `speed_up` over `limit`.
    """

    at: str
    text_tokens: int
    visual_tokens: int
    repeats: int
    first_token_seconds: Pair | None
    prefill_seconds: Pair
    tokens_per_second: Pair
    peak_memory: Pair | None
    flops: Pair
    expected_flops: Pair | None
    flops_difference: float | None
    ratios: tuple[float, ...]
    control_ratios: tuple[float, ...]
    speed_up: float
    control: float
    limit: float
    share_of_limit: float

    def __post_init__(self) -> None:
        if not len(self.ratios) == len(self.control_ratios) == self.repeats > 0:
            raise ShortVError("a speed must hold one ratio for each of its rounds ('repeats').")

    @property
    def too_noisy(self) -> bool:
        """Whether the control voids the speed-up. Its median alone does not tell: rounds of 0.5 and 1.5 hide in it."""
        return statistics.median(abs(ratio - 1) for ratio in self.control_ratios) > CONTROL_TOLERANCE


@dataclass(frozen=True)
class Row:
    """All measurements of one change to the base.

    Attributes:
        name: the name of the change.
        frozen_layers: layer numbers; None for a method that does not freeze layers.
        chosen: whether this is the package itself.
        baseline: whether this is another method, measured for comparison.
        flops_ratio: prefill FLOPs over the base's, by the cost model for the sample with the median length; None for
            a change that the cost model does not cover.
        accuracy: None for data without answers.
        groups: value of the column `group_by` -> accuracy.
        speed: one entry per prompt length; empty if not measured.
        frozen_attention, frozen_ffn: numbers of the layers that freeze a single operator; not in the file if empty.
    """

    name: str
    frozen_layers: tuple[int, ...] | None
    chosen: bool
    baseline: bool
    flops_ratio: float | None
    fidelity: Fidelity
    accuracy: Accuracy | None
    groups: dict[str, Accuracy]
    speed: tuple[Speed, ...]
    frozen_attention: tuple[int, ...] = ()
    frozen_ffn: tuple[int, ...] = ()

    @property
    def frozen(self) -> Frozen:
        """The three lists."""
        return Frozen(self.frozen_layers or (), self.frozen_attention, self.frozen_ffn)


@dataclass(frozen=True)
class Evaluation:
    """``evaluation.json``.

    Attributes:
        package, base: ``{"repo_id", "revision"}``, both None for a folder.
        recipe_sha256: see `Recipe.sha256`.
        num_layers: number of decoder layers.
        data: the samples (see `DrawnSamples.record`); ``"overlap"``: how many of them chose the layers, None if
            unknown; ``"group_by"``: the column of the groups; for a benchmark its ``"task_id"``.
        max_new_tokens: the length limit of answers.
        dtype: of the weights.
        device: its name.
        statistics: how the intervals and verdicts were made: the level, the limits and the bootstrap's seed.
        versions: the versions of the libraries used.
        notes: limits of the numbers, for their readers.
        rows: first ShortV, by number of frozen layers, then the baselines.
    """

    package: dict[str, Any]
    recipe_sha256: str
    base: dict[str, Any]
    num_layers: int
    data: dict[str, Any]
    max_new_tokens: int
    dtype: str
    device: str
    statistics: dict[str, int | float]
    versions: dict[str, str]
    notes: tuple[str, ...]
    rows: tuple[Row, ...]
    format: int = FORMAT

    __pydantic_config__ = STRICT

    @property
    def chosen(self) -> Row:
        """The row of the package itself."""
        return next(row for row in self.rows if row.chosen)

    @property
    def sweep(self) -> tuple[Row, ...]:
        """The rows of ShortV, by what is frozen (from nothing); empty if there is only one."""
        rows = [row for row in self.rows if row.frozen_layers is not None and not row.baseline]
        return tuple(sorted(rows, key=lambda row: len(row.frozen.parts))) if len(rows) > 1 else ()

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of ``evaluation.json``."""
        fields = asdict(self)
        for row in fields["rows"]:
            for name in ("frozen_attention", "frozen_ffn"):
                if not row[name]:
                    del row[name]
        return fields

    def save(self, path: Path) -> None:
        """Writes ``evaluation.json``, whole or not at all."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: Path) -> Evaluation:
        """Reads an ``evaluation.json``.

        Raises:
            ShortVError: the file is missing, not JSON, or not a valid evaluation.
        """
        return cls.from_dict(read_json(path), str(path))

    @classmethod
    def from_dict(cls, data: Any, name: str) -> Evaluation:
        """The evaluation in parsed JSON; messages call it `name`.

        Raises:
            ShortVError: `data` is not valid.
        """
        advice = "evaluate again with `shortv-export evaluate`"
        if isinstance(data, dict) and data.get("format") != FORMAT:
            raise ShortVError(f"{name} is not an evaluation of format {FORMAT}; {advice}.")
        evaluation = validated(cls, data, f"{name} is not an evaluation", advice)
        if [row.chosen for row in evaluation.rows].count(True) != 1:
            raise ShortVError(f"{name} is not an evaluation with one chosen row; {advice}.")
        return evaluation
