"""Compares a package, and other changes, with the base: both are the same loaded weights.

A loaded package that freezes nothing is its base, bit for bit. Frozen layers and other methods are temporary changes
to it (see `changes.Change`).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base import LayerShape, layer_shapes
from ..base.definition import text_decoder, visual_tokens
from ..measure import PartialResults, out_of_memory
from ..options import Comparison, Placement, Questions
from ..packaging import Package
from ..records import Evaluation, Row, Speed, library_versions
from ..samples import encode_samples
from .baselines import comparisons
from .changes import Change, Inputs, frozen, frozen_lists
from .devices import accelerators, device_name
from .fidelity import Answers, accuracy_by_group, accuracy_of, fidelity_of, measure_fidelity
from .loading import load_package
from .notes import notes_on, notes_on_baselines
from .speed import measure_speed

if TYPE_CHECKING:
    from ..samples import DrawnSamples, Sample

logger = logging.getLogger(__name__)

_ADVICE = (
    "load it with `dtype` bfloat16 or spread it with `device_map` auto, or ask for less with `max_new_tokens` and "
    "`at`. Finished samples are kept"
)


def evaluate_package(
    package: Package,
    samples: DrawnSamples,
    *,
    questions: Questions = Questions(),
    comparison: Comparison = Comparison(),
    placement: Placement = Placement(),
    output: Path | None = None,
) -> Evaluation:
    """Measures how close a package is to its base, how accurate and how fast.

    Args:
        package: checked by `require_evaluable`.
        samples: held-out ones.
        questions: the most tokens of an answer.
        comparison: what else is compared with the base, and what is timed.
        placement: where the model runs.
        output: where to save the result. Until then, the results of finished samples are kept beside it
            (``<output>.partial.jsonl``), and an interrupted run resumes from them.

    Raises:
        ShortVError: the package cannot be loaded, memory runs out, or the output cannot be written; or as
            `frozen_lists`.
    """
    recipe = package.recipe
    changes = [frozen(layers, recipe.num_layers) for layers in frozen_lists(package, comparison.sweep)]
    with out_of_memory(_ADVICE):
        model, processor = load_package(package, placement)
        prompt = _median_prompt(model, processor, samples.samples)
        if comparison.baselines:
            changes += comparisons(recipe.frozen_layers, *prompt.size, package.scores)
        device = device_name(model)
        settings = [recipe.sha256, str(model.dtype), device, questions.max_new_tokens, library_versions()]
        finished = PartialResults(output, hashlib.sha256(json.dumps(settings).encode()).hexdigest())
        max_new_tokens = questions.max_new_tokens
        answers = measure_fidelity(
            model, processor, samples.samples, changes, max_new_tokens=max_new_tokens, finished=finished
        )
        speeds = [_measure_speeds(model, change, prompt, comparison) for change in changes]
    rows = tuple(
        _row(change, found, speed, samples.samples, prompt, recipe.frozen_layers)
        for change, found, speed in zip(changes, answers, speeds, strict=True)
    )
    evaluation = Evaluation(
        package={"repo_id": package.name if package.commit else None, "revision": package.commit},
        recipe_sha256=recipe.sha256,
        base={"repo_id": recipe.base.repo_id, "revision": recipe.base.revision},
        num_layers=recipe.num_layers,
        data=samples.record,
        max_new_tokens=max_new_tokens,
        dtype=str(model.dtype).removeprefix("torch."),
        device=device,
        versions=library_versions(),
        notes=notes_on(samples, rows, on_cpu=not accelerators(model)) + notes_on_baselines(rows, *prompt.size[1:]),
        rows=rows,
    )
    if output is not None:
        evaluation.save(output)
        finished.delete()
    return evaluation


@dataclass(frozen=True)
class _Prompt:
    """The sample with the median number of tokens, at which speed is measured and FLOPs are counted.

    Attributes:
        inputs: of the model.
        size: the decoder layers' shapes, the number of text tokens and the number of visual tokens.
    """

    inputs: Inputs
    size: tuple[Sequence[LayerShape], int, int]


def _median_prompt(model: Any, processor: Any, samples: Sequence[Sample]) -> _Prompt:
    lengths = [encode_samples(processor, [sample])["input_ids"].shape[1] for sample in samples]
    order = sorted(range(len(samples)), key=lengths.__getitem__)
    inputs = encode_samples(processor, [samples[order[len(order) // 2]]])
    visual = visual_tokens(model.config, inputs["input_ids"])
    shapes = layer_shapes(text_decoder(model).config.to_dict())
    return _Prompt(inputs, (shapes, int((~visual).sum()), int(visual.sum())))


def _measure_speeds(model: Any, change: Change, prompt: _Prompt, comparison: Comparison) -> tuple[Speed, ...]:
    """The speed at the median sample and at the lengths asked for; empty if it was not asked for."""
    if not comparison.speed:
        return ()
    logger.info("timing %s", change.name)
    at_data = measure_speed(model, change, inputs=prompt.inputs)
    return at_data, *(measure_speed(model, change, tokens=length) for length in comparison.at)


def _row(
    change: Change,
    answers: Sequence[Answers],
    speed: tuple[Speed, ...],
    samples: Sequence[Sample],
    prompt: _Prompt,
    chosen: tuple[int, ...],
) -> Row:
    """What was measured of a change; `chosen` are the frozen layers of the package."""
    return Row(
        name=change.name,
        frozen_layers=change.frozen_layers,
        chosen=not change.baseline and change.frozen_layers == chosen,
        baseline=change.baseline,
        flops_ratio=change.flops_ratio(*prompt.size),
        fidelity=fidelity_of(answers),
        accuracy=accuracy_of(answers, samples),
        groups=accuracy_by_group(answers, samples),
        speed=speed,
    )
