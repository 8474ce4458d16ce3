"""Scores of a base: Layer Contributions of samples, measured by one or more processes; resumable."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..base import BaseModel, load_base, load_processor
from ..errors import ShortVError
from ..options import Placement, Scoring
from ..records import Scores, library_versions
from .layer_contribution import FORWARD, REVERSE, layer_contributions
from .memory import check_max_memory, estimate, free_bytes, stored_dtype, weight_bytes
from .partial_results import PartialResults
from .placement import device_map_for, this_process
from .streaming import load_streamed

if TYPE_CHECKING:
    from ..samples import DrawnSamples, Sample

logger = logging.getLogger(__name__)

STREAM_STATE_BYTES = 4 * 1024**3
"""Most memory for hidden states while streaming: the more samples fit, the fewer times the weights are read."""

_DIVERGENCES = {"forward": FORWARD, "reverse": REVERSE}
_MEASUREMENT = "layer contribution"
_VALUES = ("visual", "text", "visual_cosine_distance")


class Scorer:
    """Measures a base's Layer Contributions: means over samples, and standard errors.

    A call measures those of its samples that have no result yet. The first that needs the model loads it, and it stays
    loaded. Under `accelerate launch` or `torchrun` the samples are divided among the processes, and each process
    returns the scores of all samples. A sample is a batch of its own, without padding, so the scores depend neither on
    the number of processes nor on interruptions.

    Args:
        base: the base model.
        scoring: how to score. While streaming, decoder layers are read from disk one at a time.
        placement: where the base runs: by default on this process's accelerator, if it has one. While streaming,
            `max_memory` limits what this process uses.
        output: where `save` writes the scores. Until then, the results of finished samples are kept beside it
            (``<output>.partial.jsonl``), and an interrupted run resumes from them.

    Raises:
        ShortVError: both `stream` and `device_map`, or a limit of memory that is not a size.
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
        check_max_memory(placement.max_memory)
        self.base = base
        self.scoring = scoring
        self.placement = placement
        self.divergence = _DIVERGENCES[scoring.divergence]
        self.output = output
        self.process = this_process()
        settings = _settings(base, placement.dtype, self.divergence)
        self.finished = PartialResults(output, settings, self.process.process_index)
        self.model: Any = None
        self.layers: Iterable[nn.Module] | None = None
        self.processor: Any = None
        self.max_state_bytes = 0

    def __call__(self, samples: DrawnSamples) -> Scores:
        """The scores of these samples.

        Raises:
            ShortVError: as `layer_contributions`; too little memory; a result cannot be written.
        """
        from accelerate.utils import reduce

        process = self.process
        if not samples.samples:
            raise ShortVError("there are no samples to measure on.")
        numbers = range(process.process_index, len(samples.samples), process.num_processes)
        share = [samples.samples[number] for number in numbers]
        missing = [sample for sample in share if self.finished.get(sample.digest, _MEASUREMENT) is None]
        if missing:
            if self.model is None:
                self._load(missing)
            self._measure(missing, len(share))

        # Each process fills in its own share. Adding zeros is exact, so the sum equals what one process would have.
        values = torch.zeros(len(samples.samples), 3, self.base.num_layers, dtype=torch.float64)
        for number, sample in zip(numbers, share, strict=True):
            found = self.finished.get(sample.digest, _MEASUREMENT) or {}
            values[number] = torch.tensor([found[name] for name in _VALUES], dtype=torch.float64)
        if process.num_processes > 1:
            values = reduce(values.to(process.device), "sum").cpu()
        return _summary(values, self.base, samples, self.divergence)

    def save(self, scores: Scores) -> None:
        """Writes the scores, which all processes have, and deletes the partial results.

        Raises:
            ShortVError: they cannot be written.
        """
        if self.output is None:
            raise ValueError("there is no output to save to")
        if self.process.is_main_process:
            scores.save(self.output)
        self.process.wait_for_everyone()
        self.finished.delete()

    def _measure(self, samples: Sequence[Sample], total: int) -> None:
        from huggingface_hub.utils import tqdm

        from ..samples import encode_samples

        bar = tqdm(
            desc="Scoring samples",
            unit="sample",
            initial=total - len(samples),
            total=total,
            disable=None if self.process.is_main_process else True,  # None: no bar unless at a terminal
        )
        queue = iter(samples)

        def on_sample(values: Tensor) -> None:
            found = dict(zip(_VALUES, values.tolist(), strict=True))
            self.finished.add(next(queue).digest, _MEASUREMENT, found)
            bar.update()

        with bar:
            layer_contributions(
                self.model,
                (encode_samples(self.processor, [sample]) for sample in samples),
                layers=self.layers,
                divergence=self.divergence,
                max_batch_tokens=self.scoring.max_batch_tokens,
                max_state_bytes=self.max_state_bytes,
                on_sample=on_sample,
            )

    def _load(self, samples: Sequence[Sample]) -> None:
        """Loads the model, if the longest of the samples will fit beside it."""
        from ..samples import encode_samples

        base, device, placement = self.base, self.process.device, self.placement
        stream = self.scoring.stream
        self.processor = load_processor(base)
        tokens = max(encode_samples(self.processor, [sample])["input_ids"].shape[1] for sample in samples)
        files = [base.path / name for name in base.files if name.endswith(".safetensors")]
        value_bytes = _dtype(base, files, placement.dtype).itemsize
        weights = weight_bytes(files, value_bytes, stream=stream)
        need = estimate(weights, base.layer_shapes, tokens, value_bytes, self.scoring.max_batch_tokens)
        if not stream and (placement.device_map or placement.max_memory):
            # Accelerate places the weights; the rest must fit into the memory that they leave.
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
        placement = self.placement
        self.model, _ = load_base(
            self.base,
            dtype=placement.dtype,
            device_map=device_map_for(placement),
            max_memory=placement.max_memory,
        )


def _dtype(base: BaseModel, files: Sequence[Path], dtype: str) -> torch.dtype:
    """The dtype that the weights will be loaded as; ``"auto"`` is that of the config, or else of the files."""
    if dtype == "auto":
        configured = base.config.get("dtype") or base.config.get("torch_dtype")
        if not configured:
            return stored_dtype(files)
        dtype = configured
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else None
    return found if isinstance(found, torch.dtype) else torch.float32


def _summary(values: Tensor, base: BaseModel, samples: DrawnSamples, divergence: str) -> Scores:
    """The scores from visual LC, text LC and visual cosine distance of each sample, ``(samples, 3, layers)``."""
    visual, text, cosine_distance = values.unbind(1)
    num_samples = len(values)
    error = visual.std(0) / num_samples**0.5 if num_samples > 1 else torch.zeros_like(visual[0])
    return Scores(
        visual=tuple(visual.mean(0).tolist()),
        text=tuple(text.mean(0).tolist()),
        visual_standard_error=tuple(error.tolist()),
        num_samples=num_samples,
        visual_samples=tuple(map(tuple, visual.tolist())),
        visual_cosine_distance=tuple(cosine_distance.mean(0).tolist()),
        divergence=divergence,
        calibration=samples.record,
        base={"repo_id": base.repo_id, "revision": base.revision},
        versions=library_versions(),
    )


def _settings(base: BaseModel, dtype: str, divergence: str) -> str:
    """A digest of everything that a sample's LC depends on besides the sample."""
    stats = {}
    if base.revision is None:  # a folder's files may change between two runs
        stats = {name: [(stat := (base.path / name).stat()).st_size, stat.st_mtime_ns] for name in base.files}
    what = [base.repo_id, base.revision, stats, base.config, dtype, divergence, library_versions()]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
