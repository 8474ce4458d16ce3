"""Compares a package and other methods with the base, all on one loaded model.

A loaded package that freezes nothing is its base, bit for bit. Frozen layers and other methods are temporary changes
to it (see `changes.Change`).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..base import LayerShape, layer_shapes
from ..base.definition import text_decoder, visual_tokens
from ..errors import ShortVError, one_line
from ..measure import PartialResults, device_map_for, is_out_of_memory, out_of_memory, running
from ..options import Comparison, Placement, Questions
from ..packaging import Package, require_intact
from ..records import Evaluation, Frozen, Row, Speed, library_versions
from ..samples import DrawnSamples, Encoder, Sample
from .baselines import paper_baselines
from .changes import Change, Inputs, frozen_lists, shortv
from .fidelity import is_answers, measure_fidelity
from .report import notes_on
from .speed import accelerators, device_name, measure_speed
from .summary import STATISTICS, accuracy_by_group, accuracy_of, fidelity_of

logger = logging.getLogger(__name__)


def require_evaluable(package: Package, comparison: Comparison = Comparison()) -> None:
    """Refuses a package that cannot be evaluated. None of its code is run.

    Raises:
        ShortVError: its files are not what its recipe says, the weights that it refers to are not the recipe's, its
            code is not this release's, it freezes no layer, or `comparison.sweep` does not fit it.
    """
    require_frozen(package, "evaluated")
    frozen_lists(package, comparison.sweep)


def require_frozen(package: Package, purpose: str) -> None:
    """Refuses a package that cannot be loaded beside its base for a purpose, such as "evaluated".

    Raises:
        ShortVError: as `require_evaluable`.
    """
    require_intact(package, f"cannot be {purpose}", fetch=True)
    if package.recipe.frozen == Frozen():
        raise ShortVError(f"{package.name} freezes no layer, so it is its base; name a package that freezes some.")


def load_package(package: Package, placement: Placement = Placement()) -> Any:
    """Loads a package's model, which freezes nothing until `freeze_layers` is called.

    Args:
        package: checked by `require_evaluable`.
        placement: where the model runs; by default on the accelerator, if there is one.

    Raises:
        ShortVError: it cannot be loaded, or its weights are not the ones that its config describes.
    """
    from transformers import AutoModel

    try:
        model, loading = AutoModel.from_pretrained(
            package.folder,
            trust_remote_code=True,
            dtype=placement.dtype,
            device_map=device_map_for(placement),
            max_memory=placement.max_memory,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:  # transformers and torch raise many kinds
        if is_out_of_memory(error):
            raise
        raise ShortVError(
            f"{package.name} cannot be loaded; check it with `shortv-export verify`: {one_line(error)}"
        ) from error
    if type(model).__name__ != package.family.model_class or any(loading.values()):
        raise ShortVError(
            f"{package.name} loads with another class or other weights than its config describes; "
            "check it with `shortv-export verify`."
        )
    model.freeze_layers([])
    return model.eval()


def evaluate_package(
    package: Package,
    encoder: Encoder,
    samples: DrawnSamples,
    *,
    max_new_tokens: int = Questions.max_new_tokens,
    comparison: Comparison = Comparison(),
    placement: Placement = Placement(),
    output: Path | None = None,
) -> Evaluation:
    """Measures how close a package is to its base, how accurate and how fast.

    Args:
        package: checked by `require_evaluable`.
        encoder: of the package.
        samples: held-out samples, which it takes.
        max_new_tokens: maximum length of an answer.
        comparison: what else is compared with the base, and what is timed.
        placement: where the model runs.
        output: where to save the result. Until then, results of finished samples are kept beside it
            (``<output>.partial.jsonl``), and an interrupted run resumes from them.

    Raises:
        ShortVError: the package cannot be loaded, memory runs out, or the output cannot be written; or as
            `frozen_lists`.
    """
    recipe = package.recipe
    changes = [shortv(frozen, recipe.num_layers) for frozen in frozen_lists(package, comparison.sweep)]
    advice = "load it with `dtype` bfloat16 or spread it with `device_map` auto, or ask for less with `max_new_tokens`"
    with out_of_memory(f"{advice} and `at`"):
        model = load_package(package, placement)
        prompt, size = _median_prompt(model, encoder, samples.samples)
        if comparison.baselines:
            changes += paper_baselines(recipe.frozen, *size, package.scores)
        device = device_name(model)
        settings = [recipe.sha256, str(model.dtype), device, max_new_tokens, library_versions()]
        digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
        finished = PartialResults(output, digest, is_valid=is_answers)
        with finished.kept(), running(encoder.base):
            answers = measure_fidelity(
                model, encoder, samples.samples, changes, max_new_tokens=max_new_tokens, finished=finished
            )
            speeds = [_measure_speeds(model, change, prompt, comparison) for change in changes]
    rows = tuple(
        Row(
            name=change.name,
            **({"frozen_layers": None} if change.frozen is None else change.frozen.lists),
            chosen=not change.baseline and change.frozen == recipe.frozen,
            baseline=change.baseline,
            flops_ratio=change.flops_ratio(*size),
            fidelity=fidelity_of(found),
            accuracy=accuracy_of(found, samples.samples),
            groups=accuracy_by_group(found, samples.samples),
            speed=speed,
        )
        for change, found, speed in zip(changes, answers, speeds, strict=True)
    )
    evaluation = Evaluation(
        package={"repo_id": package.name if package.commit else None, "revision": package.commit},
        recipe_sha256=recipe.sha256,
        base={"repo_id": recipe.base.repo_id, "revision": recipe.base.revision},
        num_layers=recipe.num_layers,
        data=encoder.recorded(samples),
        max_new_tokens=max_new_tokens,
        dtype=str(model.dtype).removeprefix("torch."),
        device=device,
        statistics=STATISTICS,
        versions=library_versions("scipy"),
        notes=notes_on(samples, rows, *size[1:], on_cpu=not accelerators(model)),
        rows=rows,
    )
    if output is not None:
        with finished.kept():
            evaluation.save(output)
        finished.delete()
    return evaluation


def _median_prompt(
    model: Any, encoder: Encoder, samples: Sequence[Sample]
) -> tuple[Inputs, tuple[Sequence[LayerShape], int, int]]:
    """The sample with the median number of tokens, at which speed is measured and FLOPs are counted.

    Returns:
        The model's inputs; then the decoder layers' shapes, the number of text tokens and the number of visual tokens.
    """
    order = sorted(samples, key=encoder.num_tokens)
    inputs = encoder(order[len(order) // 2])
    visual = visual_tokens(model.config, inputs["input_ids"])
    shapes = layer_shapes(text_decoder(model).config.to_dict())
    return inputs, (shapes, int((~visual).sum()), int(visual.sum()))


def _measure_speeds(model: Any, change: Change, prompt: Inputs, comparison: Comparison) -> tuple[Speed, ...]:
    """The speed at this prompt and at the lengths asked for; empty if speed is not to be measured."""
    if not comparison.speed:
        return ()
    logger.info("timing %s", change.name)
    at_prompt = measure_speed(model, change, inputs=prompt)
    return at_prompt, *(measure_speed(model, change, tokens=tokens) for tokens in comparison.at)
