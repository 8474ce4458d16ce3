"""Scores a base: measures Layer Contributions on samples, in one or more processes; resumes when interrupted."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from ..base import BaseModel, load_base
from ..errors import ShortVError
from ..options import Placement, Scoring
from ..progress import progress
from ..records import FORWARD, REVERSE, Ablation, Frozen, Scores, library_versions
from ..samples import DrawnSamples, Encoder, Sample
from .layer_contribution import MAX_ANSWER_TOKENS, Contributions, layer_contributions
from .memory import device_map_for, estimate, free_bytes, stored_dtype, this_process, weight_bytes
from .partial_results import PartialResults
from .running import running
from .streaming import load_streamed

logger = logging.getLogger(__name__)

STREAM_STATE_BYTES = 4 * 1024**3
"""Most memory for hidden states while streaming. The more samples fit, the less often the weights are read."""

_DIVERGENCES = {"forward": FORWARD, "reverse": REVERSE}
_MEASUREMENT = "layer contribution"


class Scorer:
    """Measures a base's Layer Contributions: means over samples, and standard errors.

    A call measures the samples that have no result yet. The model is loaded when it is first needed, and stays loaded.
    Under `accelerate launch` or `torchrun` the samples are divided among the processes, and each process returns the
    scores of all samples. A sample is a batch of its own, without padding, so the scores depend neither on the number
    of processes nor on interruptions.

    Args:
        base: the base model.
        scoring: how to score.
        placement: where the base runs; by default on this process's accelerator, if it has one. With `stream`,
            `max_memory` limits what this process uses.
        output: where `save` writes the scores. Until then, the results of finished samples are kept beside it
            (see `PartialResults`), and an interrupted run resumes from them.

    Raises:
        ShortVError: both `stream` and `device_map` are given, or a memory limit is not a size.
    """

    def __init__(
        self,
        base: BaseModel,
        scoring: Scoring = Scoring(),
        placement: Placement = Placement(),
        *,
        output: Path | None = None,
    ) -> None:
        if scoring.stream and placement.device_map is not None:
            raise ShortVError("`stream` and `device_map` exclude each other; leave out one of them.")
        self.base = base
        self.encoder = Encoder(base)
        self.scoring = scoring
        self.placement = placement
        self.device_map = device_map_for(placement)
        self.divergence = _DIVERGENCES[scoring.divergence]
        self.output = output
        self.process = this_process()
        self.sizes = _sizes(scoring, base.num_layers)
        settings = _settings(base, placement.dtype, self.divergence, [*self.sizes])
        self.finished = PartialResults(
            output, settings, self.process.process_index, is_valid=partial(_is_result, sizes=self.sizes)
        )
        self.model: Any = None
        self.layers: Iterable[nn.Module] | None = None
        self.max_state_bytes = 0

    def __call__(self, samples: DrawnSamples) -> Scores:
        """Scores these samples.

        Raises:
            ShortVError: as `layer_contributions`; or too little memory; or a result cannot be written.
        """
        from accelerate.utils import reduce

        process = self.process
        if not samples.samples:
            raise ShortVError("there are no samples to measure on.")
        numbers = range(process.process_index, len(samples.samples), process.num_processes)
        share = [samples.samples[number] for number in numbers]
        missing = [sample for sample in share if self.finished.get(sample.digest, _MEASUREMENT) is None]
        if missing:
            with self.finished.kept(), running(self.base):
                if self.model is None:
                    self._load(missing)
                self._measure(missing, len(samples.samples))

        # Each process fills in its own share. Adding zeros is exact, so the sum is what one process would have.
        values = torch.zeros(len(samples.samples), sum(self.sizes.values()), dtype=torch.float64)
        for number, sample in zip(numbers, share, strict=True):
            found = self.finished.get(sample.digest, _MEASUREMENT) or {}
            values[number] = torch.tensor([value for name in self.sizes for value in found[name]], dtype=torch.float64)
        if process.num_processes > 1:
            values = reduce(values.to(process.device), "sum").cpu()
        by_name = dict(zip(self.sizes, values.split([*self.sizes.values()], dim=1), strict=True))
        return _summary(by_name, self.base, self.encoder.recorded(samples), self.divergence)

    def save(self, scores: Scores) -> None:
        """Writes the scores, which every process has, and deletes the partial results.

        Raises:
            ShortVError: the file cannot be written.
        """
        if self.output is None:
            raise ValueError("there is no output to save to")
        if self.process.is_main_process:
            with self.finished.kept():
                scores.save(self.output)
        self.process.wait_for_everyone()
        self.finished.delete()

    def _measure(self, samples: Sequence[Sample], total: int) -> None:
        # One process tells of all: each has as many samples as it, or one less.
        each, main = self.process.num_processes, self.process.is_main_process
        shown = progress("Scoring", total, "sample", done=max(0, total - len(samples) * each), hidden=not main)
        queue = iter(samples)

        def on_sample(values: Contributions) -> None:
            found = {name: each.tolist() for name, each in values.items()}
            self.finished.add(next(queue).digest, _MEASUREMENT, found)
            advance(each)

        with shown as advance:
            layer_contributions(
                self.model,
                map(self.encoder, samples),
                layers=self.layers,
                scoring=self.scoring,
                max_state_bytes=self.max_state_bytes,
                on_sample=on_sample,
            )

    def _load(self, samples: Sequence[Sample]) -> None:
        """Loads the model, if the longest of the samples will fit beside it."""
        base, device, placement, stream = self.base, self.process.device, self.placement, self.scoring.stream
        answer = MAX_ANSWER_TOKENS if self.scoring.over_answer else 0
        tokens = max(map(self.encoder.num_tokens, samples)) + answer
        files = [base.path / name for name in base.files if name.endswith(".safetensors")]
        value_bytes = _dtype(base, files, placement.dtype).itemsize
        weights = weight_bytes(files, value_bytes, stream=stream)
        need = estimate(weights, base.layer_shapes, tokens, value_bytes, self.scoring)
        if not stream and (placement.device_map or placement.max_memory):
            # Accelerate places the weights; the rest must fit into the memory that is left.
            self._load_whole()
            devices = {parameter.device for parameter in self.model.parameters() if not parameter.is_meta}
            need = replace(need, weights=0)
            free = min(free_bytes(each) for each in devices or {device})
        else:
            free = free_bytes(device, placement.max_memory)
        if self.process.is_main_process:
            logger.info("memory: %s", need.describe(free))
        need.check(free, stream=stream)
        if stream:
            self.max_state_bytes = min(STREAM_STATE_BYTES, free - need.weights - need.layer_call)
            self.model, self.layers = load_streamed(base.path, files, dtype=placement.dtype, device=device)
        elif self.model is None:
            self._load_whole()

    def _load_whole(self) -> None:
        where = {"device_map": self.device_map, "max_memory": self.placement.max_memory}
        self.model = load_base(self.base, dtype=self.placement.dtype, **where)


def _sizes(scoring: Scoring, num_layers: int) -> dict[str, int]:
    """How many values a sample has of each kind (see `Contributions`)."""
    names = [*scoring.ablations, "visual_cosine_distance"]
    if scoring.over_answer:
        names += [f"answer_{name}" for name in scoring.ablations if name != "text"]
    return {**dict.fromkeys(names, num_layers), "tokens": 3}


def _is_result(values: Any, sizes: dict[str, int]) -> bool:
    """Whether these are the values of a sample, as `Scorer` keeps them."""
    return (
        isinstance(values, dict)
        and values.keys() == sizes.keys()
        and all(isinstance(values[name], list) and len(values[name]) == size for name, size in sizes.items())
        and all(isinstance(value, float) and math.isfinite(value) for each in values.values() for value in each)
    )


def _dtype(base: BaseModel, files: Sequence[Path], dtype: str) -> torch.dtype:
    """The dtype that the weights will be loaded as. For ``"auto"``, the config names it, or else the files have it."""
    if dtype == "auto":
        dtype = base.config.get("dtype") or base.config.get("torch_dtype") or ""
        if not dtype:
            return stored_dtype(files)
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else None
    return found if isinstance(found, torch.dtype) else torch.float32


def _summary(values: dict[str, Tensor], base: BaseModel, record: dict[str, Any], divergence: str) -> Scores:
    """Averages the values of all samples, ``(samples, layers)`` each; `record` is that of the samples."""
    visual = values["visual"]
    num_samples = len(visual)
    error = visual.std(0) / num_samples**0.5 if num_samples > 1 else torch.zeros_like(visual[0])
    rows: dict[Any, Any] = {name: tuple(map(tuple, each.tolist())) for name, each in values.items()}
    means = {name: tuple(each.mean(0).tolist()) for name, each in values.items()}
    return Scores(
        visual=means["visual"],
        text=means.get("text", ()),
        visual_standard_error=tuple(error.tolist()),
        num_samples=num_samples,
        visual_samples=rows["visual"],
        visual_cosine_distance=means["visual_cosine_distance"],
        ablations={name: rows[name] for name in get_args(Ablation) if name in rows},
        tokens=tuple((int(text), int(visual), int(answer)) for text, visual, answer in rows["tokens"]),
        divergence=divergence,
        calibration=record,
        base={"repo_id": base.repo_id, "revision": base.revision},
        versions=library_versions(),
    )


def _settings(base: BaseModel, dtype: str, divergence: str, measured: list[str]) -> str:
    """A digest of everything that a sample's values depend on besides the sample."""
    what = [*base.state, dtype, divergence, measured, library_versions()]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def score_in_rounds(
    scorer: Callable[[DrawnSamples], Scores],
    draw: Callable[[int, bool], DrawnSamples],
    select: Callable[[Scores], Frozen],
    first: int,
    most: int,
) -> Scores:
    """Scores in rounds, each with half as many samples more than the one before.

    Stops once the selection has stayed the same for two rounds, at `most` samples, or when the data has no more.

    Args:
        scorer: samples -> scores. A `Scorer` measures only the new samples of each round.
        draw: number of samples, and whether fewer are allowed -> samples.
        select: scores -> what is frozen.
        first: number of samples in the first round. The data must have that many.
        most: largest number of samples.

    Returns:
        The scores of the last round; their `until_stable` records the rounds.
    """
    rounds: list[int] = []
    selections: list[Frozen] = []
    number = first
    while True:
        samples = draw(number, bool(rounds))
        found = len(samples.samples)
        if not rounds or found > rounds[-1]:
            scores = scorer(samples)
            rounds.append(found)
            selections.append(select(scores))
            selected, what = _parts(selections[-1])
            news = ""
            if len(selections) > 1:
                new = len(selected - _parts(selections[-2])[0])
                news = f"; {new} of the {len(selected)} selected {what} were not selected in the round before"
            logger.info("round %d: %d samples%s", len(rounds), found, news)
        stable = len(selections) > 2 and len({*selections[-3:]}) == 1
        if stable or found < number or number >= most:
            steady = next(n for n in range(len(selections)) if len({*selections[n:]}) == 1)
            rest = len(selections) - 1 - steady
            verdict = "the selection is stable" if stable else "the selection may still change"
            reason = f"it stayed the same for {rest} round{'s' if rest != 1 else ''}; 2 are asked for"
            logger.info("%s after %d samples%s", verdict, rounds[-1], "" if stable else f": {reason}")
            record = {"num_frozen": len(selected), "rounds": rounds, "stable": stable}
            return replace(scores, until_stable=record)
        number = min(most, number + max(1, number // 2))


def _parts(frozen: Frozen) -> tuple[set[Any], str]:
    """What is counted: operators, where single ones are frozen; or else layers."""
    return (frozen.parts, "operators") if frozen.operators else ({*frozen.layers}, "layers")
