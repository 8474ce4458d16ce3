"""Scores of a base: Layer Contributions of calibration samples, on one or more processes; resumable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..base import BaseModel, load_base, load_processor
from ..errors import ShortVError
from ..records import Scores, library_versions
from .layer_contribution import FORWARD, MAX_BATCH_TOKENS, layer_contributions
from .memory import MaxMemory, estimate, free_bytes, stored_dtype, weight_bytes
from .partial_results import FinishedSamples
from .placement import device_map_for, this_process
from .streaming import load_streamed

if TYPE_CHECKING:
    from ..samples import Calibration, Sample

STREAM_STATE_BYTES = 4 * 1024**3
"""Hidden states held at a time while streaming, where memory allows: more samples per reading of the weights."""

_MEASUREMENT = "layer contribution"
_VALUES = ("visual", "text", "visual_cosine_distance")


class Scorer:
    """Measures a base's Layer Contributions: means over calibration samples, and standard errors.

    Called with samples, it measures those that it has not measured yet. The model is loaded when the first of them
    comes, and kept. Under `accelerate launch` or `torchrun` the samples are divided among the processes, and every
    process returns the scores of all. Every sample is a batch of its own, without padding, so the result depends
    neither on how they are divided nor on where a run was interrupted.

    Args:
        base: the base model.
        dtype, device_map, max_memory: how to load the base; without a map it goes on this process's accelerator, if
            any. Limits imply the map ``"auto"``; while streaming they bound what this process takes.
        stream: read the decoder layers from disk one at a time instead of loading them.
        divergence, max_batch_tokens: see `layer_contributions`.
        output: where `save` puts the scores. Finished samples are kept beside it until then
            (``<output>.partial.jsonl``), and a run that was interrupted goes on from there.
        progress: called with how many of this process's samples are done, and how many it has.
        report: called with a line about memory before the model is loaded.

    Raises:
        ShortVError: both `stream` and `device_map`.
    """

    def __init__(
        self,
        base: BaseModel,
        *,
        dtype: str | torch.dtype = "auto",
        device_map: str | dict[str, Any] | None = None,
        max_memory: MaxMemory | None = None,
        stream: bool = False,
        divergence: str = FORWARD,
        max_batch_tokens: int = MAX_BATCH_TOKENS,
        output: Path | None = None,
        progress: Callable[[int, int], None] | None = None,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        if stream and device_map is not None:
            raise ShortVError("stream and device_map exclude each other; leave out one of them.")
        self.base = base
        self.dtype = dtype
        self.device_map = "auto" if max_memory and not stream and device_map is None else device_map
        self.max_memory = max_memory
        self.stream = stream
        self.divergence = divergence
        self.max_batch_tokens = max_batch_tokens
        self.output = output
        self.progress = progress or (lambda done, total: None)
        self.report = report
        self.process = this_process()
        self.finished = FinishedSamples(output, _settings(base, dtype, divergence), self.process.process_index)
        self.model: Any = None
        self.layers: Iterable[nn.Module] | None = None
        self.processor: Any = None
        self.max_state_bytes = 0

    def __call__(self, calibration: Calibration) -> Scores:
        """The scores of these samples.

        Raises:
            ShortVError: see `layer_contributions`; too little memory; finished samples cannot be written.
        """
        from accelerate.utils import reduce

        process = self.process
        if not calibration.samples:
            raise ShortVError("there are no samples to measure on.")
        numbers = range(process.process_index, len(calibration.samples), process.num_processes)
        samples = [calibration.samples[number] for number in numbers]
        missing = [sample for sample in samples if self.finished.get(sample.digest, _MEASUREMENT) is None]
        if missing and self.model is None:
            self._load(missing)
        self.progress(len(samples) - len(missing), len(samples))
        if missing:
            self._measure(missing, len(samples))

        # Every process fills in its own samples; adding zeros is exact, so the sum is what one process has.
        values = torch.zeros(len(calibration.samples), 3, self.base.num_layers, dtype=torch.float64)
        for number, sample in zip(numbers, samples, strict=True):
            found = self.finished.get(sample.digest, _MEASUREMENT) or {}
            values[number] = torch.tensor([found[name] for name in _VALUES], dtype=torch.float64)
        if process.num_processes > 1:
            values = reduce(values.to(process.device), "sum").cpu()
        return _summary(values, self.base, calibration, self.divergence)

    def save(self, scores: Scores) -> None:
        """Writes the scores, which all processes have, and removes the finished samples beside them.

        Raises:
            ShortVError: they cannot be written.
        """
        if self.output is None:
            raise ValueError("there is no output to save to")
        if self.process.is_main_process:
            scores.save(self.output)
        self.process.wait_for_everyone()
        self.finished.remove()

    def _measure(self, samples: Sequence[Sample], total: int) -> None:
        from ..samples import encode_samples

        queue = iter(samples)
        done = total - len(samples)

        def on_sample(values: Tensor) -> None:
            nonlocal done
            found = dict(zip(_VALUES, values.tolist(), strict=True))
            self.finished.add(next(queue).digest, _MEASUREMENT, found)
            done += 1
            self.progress(done, total)

        layer_contributions(
            self.model,
            (encode_samples(self.processor, [sample]) for sample in samples),
            layers=self.layers,
            divergence=self.divergence,
            max_batch_tokens=self.max_batch_tokens,
            max_state_bytes=self.max_state_bytes,
            on_sample=on_sample,
        )

    def _load(self, samples: Sequence[Sample]) -> None:
        """Loads the model, if the longest of the samples will fit beside it."""
        from ..samples import encode_samples

        base, device = self.base, self.process.device
        self.processor = load_processor(base)
        tokens = max(encode_samples(self.processor, [sample])["input_ids"].shape[1] for sample in samples)
        files = [base.path / name for name in base.files if name.endswith(".safetensors")]
        value_bytes = _dtype(base, files, self.dtype).itemsize
        weights = weight_bytes(files, value_bytes, stream=self.stream)
        need = estimate(weights, base.layer_shapes, tokens, value_bytes, self.max_batch_tokens)
        if self.device_map is not None:
            # The placement sees to the weights, and what it leaves must do for the rest.
            self.model, _ = load_base(base, dtype=self.dtype, device_map=self.device_map, max_memory=self.max_memory)
            devices = {parameter.device for parameter in self.model.parameters() if not parameter.is_meta}
            need = replace(need, weights=0)
            free = min(free_bytes(each) for each in devices or {device})
        else:
            free = free_bytes(device, self.max_memory)
        if self.process.is_main_process:
            self.report(f"memory: {need.describe(free)}")
        need.check(free, stream=self.stream)
        if self.stream:
            self.max_state_bytes = min(STREAM_STATE_BYTES, free - need.weights - need.layer_call)
            self.model, self.layers = load_streamed(base.path, files, dtype=self.dtype, device=device)
        elif self.model is None:
            self.model, _ = load_base(base, dtype=self.dtype, device_map=device_map_for(None, None))


def _dtype(base: BaseModel, files: Sequence[Path], dtype: str | torch.dtype) -> torch.dtype:
    """What the weights will be loaded as: where nobody says, as they stand in the files."""
    if dtype == "auto":
        dtype = base.config.get("dtype") or base.config.get("torch_dtype") or stored_dtype(files)
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    return found if isinstance(found, torch.dtype) else torch.float32


def _summary(values: Tensor, base: BaseModel, calibration: Calibration, divergence: str) -> Scores:
    """The scores of samples whose ``(samples, 3, layers)`` are visual LC, text LC and visual cosine distance."""
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
        calibration=calibration.record,
        base={"repo_id": base.repo_id, "revision": base.revision},
        versions=library_versions(),
    )


def _settings(base: BaseModel, dtype: str | torch.dtype, divergence: str) -> str:
    """A digest of what a sample's LC depends on besides the sample."""
    stats = {}
    if base.revision is None:  # a folder's files may change between two runs
        stats = {name: [(stat := (base.path / name).stat()).st_size, stat.st_mtime_ns] for name in base.files}
    what = [base.repo_id, base.revision, stats, base.config, str(dtype), divergence, library_versions()]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
