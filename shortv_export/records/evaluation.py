"""What an evaluation found: values with their intervals, and their file ``evaluation.json``."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from ..errors import ShortVError
from ..files import read_json, write_json

FORMAT = 1
SINGLE_SAMPLE = "A single sample says nothing about others: there are no confidence intervals."
NO_WIDTH = "An interval without width means that all samples agree, not that others would."
NO_CPU_MEMORY = "Peak memory is not measured on a CPU, where one process cannot tell it for each side."


@dataclass(frozen=True)
class Estimate:
    """A mean over samples and its 95 % confidence interval, a percentile bootstrap over the samples.

    Attributes:
        mean: over the samples.
        low, high: the interval; None for a single sample, which has none.
    """

    mean: float
    low: float | None
    high: float | None

    @property
    def has_no_width(self) -> bool:
        """Whether every sample has the same value, of which a bootstrap can draw no other."""
        return self.low is not None and self.low == self.high


@dataclass(frozen=True)
class Pair:
    """A number of the base, and the same of the changed model."""

    base: float
    changed: float


@dataclass(frozen=True)
class Fidelity:
    """How close the changed model stays to its base, over `num_samples` samples.

    Attributes:
        num_samples: samples.
        first_token_kl: KL(base || changed) of the first answer token, in nats.
        top1_agreement: share of samples whose most likely first answer token is the same.
        answer_kl: KL(base || changed) averaged over the tokens of the base's own greedy answer, both models having
            read the same tokens before each (teacher forcing), in nats.
        exact_match: share of samples with the same greedy answer, token for token.
    """

    num_samples: int
    first_token_kl: Estimate
    top1_agreement: Estimate
    answer_kl: Estimate
    exact_match: Estimate


@dataclass(frozen=True)
class Accuracy:
    """Share of greedy answers that are the data's, after normalisation (see `answers.normalised`).

    Attributes:
        num_samples: samples with an answer.
        base, changed: of each model.
        difference: changed - base, with the interval of the paired differences.
    """

    num_samples: int
    base: Estimate
    changed: Estimate
    difference: Estimate


@dataclass(frozen=True)
class Speed:
    """The prompt pass of the base and of the changed model, one sequence, in turn in one process; medians.

    Attributes:
        at: ``"data"``, the token counts of the sample with the median length, or ``"given"``.
        text_tokens, visual_tokens: of the prompt.
        repeats: rounds that the medians are over, after a warm-up.
        first_token_seconds: of the whole model with its vision tower, up to the logits of the first answer token;
            None at given counts, for which there is no image.
        prefill_seconds: of the language model alone, on embeddings of these token counts.
        tokens_per_second: prompt tokens over `prefill_seconds`.
        peak_memory: bytes, weights included, during the prefill: on CUDA the allocator's peak, on MPS what the driver
            holds after it; None on a CPU.
        flops: of the decoder layers, counted by torch's counter, which counts a causal attention as a full one.
        expected_flops: of the cost model (`flops.model_flops`) for these frozen layers; None for a change
            that it does not know.
        flops_difference: the larger relative difference between the counted and the expected.
        speed_up: base over changed, of `prefill_seconds`.
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
    speed_up: float
    limit: float
    share_of_limit: float


@dataclass(frozen=True)
class Row:
    """All that was measured of one change to the base.

    Attributes:
        name: of the change.
        frozen_layers: what it freezes; None for a change that freezes nothing of the kind.
        chosen: whether it is what the package does.
        baseline: whether it is another method, measured for comparison (see `baselines.comparisons`).
        flops_ratio: FLOPs of the prompt pass over the base's, by the cost model for the sample with the median
            length; None for a change that it does not know.
        fidelity: to the base.
        accuracy: None for data without answers.
        groups: accuracy by the value of the data's column.
        speed: at each prompt length; empty if it was not measured.
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


@dataclass(frozen=True)
class Evaluation:
    """``evaluation.json``.

    Attributes:
        package: ``{"repo_id", "revision"}`` of a repository, both None for a folder.
        recipe_sha256: of the package's recipe without evaluation (see `recipe.Recipe.sha256`).
        base: ``{"repo_id", "revision"}``.
        num_layers: of the language model.
        data: the samples (see `calibration.Calibration.record`); as ``"overlap"`` how many of them the layers were
            chosen by, None if that cannot be told; as ``"group_by"`` the column of the groups; and of a benchmark
            its ``"task_id"``.
        max_new_tokens: most tokens of an answer.
        dtype: of the weights.
        device: its name.
        versions: of the libraries.
        notes: what a reader of the numbers must know.
        rows: by number of frozen layers.
    """

    package: dict[str, Any]
    recipe_sha256: str
    base: dict[str, Any]
    num_layers: int
    data: dict[str, Any]
    max_new_tokens: int
    dtype: str
    device: str
    versions: dict[str, str]
    notes: tuple[str, ...]
    rows: tuple[Row, ...]
    format: int = FORMAT

    @property
    def chosen(self) -> Row:
        """The row of the package itself."""
        return next(row for row in self.rows if row.chosen)

    @property
    def sweep(self) -> tuple[Row, ...]:
        """The rows of ShortV and of no frozen layers, if there are several: by number of frozen layers."""
        rows = [row for row in self.rows if row.frozen_layers is not None and not row.baseline]
        return tuple(sorted(rows, key=lambda row: len(row.frozen_layers or ()))) if len(rows) > 1 else ()

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of ``evaluation.json``."""
        return asdict(self)

    def save(self, path: Path) -> None:
        """Writes ``evaluation.json``, whole or not at all."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: Path) -> Evaluation:
        """Reads an ``evaluation.json``.

        Raises:
            ShortVError: the file is missing, no JSON, or not what `save` writes.
        """
        return cls.from_dict(read_json(path), str(path))

    @classmethod
    def from_dict(cls, data: Any, name: str) -> Evaluation:
        """The evaluation in a parsed JSON object; `name` is where it came from, for messages.

        Raises:
            ShortVError: it holds anything else.
        """
        try:
            evaluation: Evaluation = _read(cls, data)
        except (TypeError, ValueError) as error:
            raise ShortVError(
                f"{name} is not an evaluation: {error}; write one with `shortv-export evaluate`."
            ) from None
        if evaluation.format != FORMAT or [row.chosen for row in evaluation.rows].count(True) != 1:
            raise ShortVError(f"{name} is not an evaluation of format {FORMAT} with one chosen row.")
        return evaluation


def _read(kind: Any, value: Any) -> Any:
    """A parsed JSON value as the declared type `kind`: dataclasses, `tuple[X, ...]`, `dict[str, X]`, `X | None`.

    Raises:
        TypeError, ValueError: it is something else.
    """
    if isinstance(kind, type) and is_dataclass(kind):
        hints = get_type_hints(kind)
        if not isinstance(value, dict) or value.keys() != hints.keys():
            raise TypeError(f"what should be a {kind.__name__} lacks or adds fields")
        return kind(**{name: _read(hint, value[name]) for name, hint in hints.items()})
    origin, parts = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return None if value is None else _read(parts[0], value)
    if origin is tuple and isinstance(value, list):
        return tuple(_read(parts[0], item) for item in value)
    if origin is dict and isinstance(value, dict):
        return {key: _read(parts[1], item) for key, item in value.items()}
    if kind is Any:
        return value
    if kind is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if kind is float or type(value) is not kind:
        raise TypeError(f"{value!r:.40} stands where another kind of value belongs")
    return value
