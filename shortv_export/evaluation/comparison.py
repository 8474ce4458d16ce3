"""Measures a package against its base: answers and speed, base and change in turn on one load.

A loaded package that freezes nothing is its base, bit for bit; freezing layers is a *change* to it for a while, as
another method in a comparison is (see `speed.Change`).
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..base import FAMILIES, layer_shapes
from ..base.definition import text_decoder, visual_tokens
from ..errors import ShortVError, one_line
from ..measure import FinishedSamples, MaxMemory, device_map_for, is_out_of_memory, out_of_memory
from ..packaging import find_package, inspect_package, referenced_weights
from ..records import (
    NO_CPU_MEMORY,
    NO_WIDTH,
    RECIPE_NAME,
    SINGLE_SAMPLE,
    Evaluation,
    Recipe,
    Row,
    Scores,
    Speed,
    library_versions,
)
from ..samples import encode_samples
from ..selection import ranking
from .baselines import comparisons
from .fidelity import accuracy_by_group, accuracy_of, fidelity_of, measure_fidelity
from .speed import accelerators, frozen, measure_speed

if TYPE_CHECKING:
    from ..samples import Calibration, Sample


@dataclass(frozen=True)
class Checked:
    """A package whose files are what its recipe says, and whose code is this release's.

    Attributes:
        name: as the user wrote it.
        folder: of its files.
        commit: of a repository; None for a folder.
        recipe: its recipe.
    """

    name: str
    folder: Path
    commit: str | None
    recipe: Recipe

    @property
    def scores(self) -> Scores | None:
        """What its selection rests on."""
        return Scores.from_dict(self.recipe.scores, RECIPE_NAME) if self.recipe.scores is not None else None


def check_package(package: str, *, revision: str | None = None, token: str | None = None) -> Checked:
    """Finds a package, or downloads a repository, and looks at its files; none of its code is run.

    Raises:
        ShortVError: there is none, its files are not what its recipe says, its code is not this release's, or it
            freezes nothing.
    """
    folder, names = find_package(package, revision, token)
    failed = [check for check in inspect_package(folder, names=names) if check.passed is False]
    if not failed:
        recipe = Recipe.load(folder / RECIPE_NAME)
        if recipe.weights == "reference":
            _, weights = referenced_weights(recipe, token)
            failed = [weights] if weights.passed is False else []
    for check in failed:
        raise ShortVError(f"{package} cannot be evaluated: {check.name}: {check.detail}")
    if not recipe.frozen_layers:
        raise ShortVError(f"{package} freezes no layer, so it is its base; evaluate a package that freezes some.")
    # A snapshot's folder in the Hub's cache is named after its commit.
    commit = None if Path(package).is_dir() else folder.name
    return Checked(package, folder, commit, recipe)


def load_package(
    package: Checked,
    *,
    dtype: str = "auto",
    device_map: Any = None,
    max_memory: MaxMemory | None = None,
    token: str | None = None,
) -> tuple[Any, Any]:
    """The model of a package, freezing nothing until it is told to, and its processor.

    Args:
        package: what to load.
        dtype, device_map, max_memory: as in ``from_pretrained``; without a map it goes on the accelerator, if there is
            one, and limits of memory ask for a map.
        token: for weights in a private repository.

    Raises:
        ShortVError: it cannot be loaded, or its weights are not the ones that its config describes.
    """
    from transformers import AutoModel, AutoProcessor

    options: dict[str, Any] = {"trust_remote_code": True, "token": token}
    try:
        model, loading = AutoModel.from_pretrained(
            package.folder,
            dtype=dtype,
            device_map=device_map_for(device_map, max_memory),
            max_memory=max_memory,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
        processor = AutoProcessor.from_pretrained(package.folder, **options)
    except Exception as error:  # transformers and torch raise many kinds; the cause stays for --debug
        if is_out_of_memory(error):
            raise
        raise ShortVError(f"{package.name} cannot be loaded: {one_line(error)}") from error
    family = FAMILIES[package.recipe.family]
    if type(model).__name__ != family.model_class or any(loading.values()):
        raise ShortVError(f"{package.name} does not load as it should; look at it with `shortv-export verify`.")
    model.freeze_layers([])
    return model.eval(), processor


def frozen_lists(package: Checked, sweep: Sequence[int] | None) -> list[tuple[int, ...]]:
    """The package's own list, and for each number in a sweep that many layers with the lowest scores.

    Returns:
        By length, without repetition.

    Raises:
        ShortVError: a number that is out of range, or a sweep over a package without scores.
    """
    recipe = package.recipe
    lists = {recipe.frozen_layers}
    if sweep is not None:
        if package.scores is None:
            raise ShortVError(
                f"{package.name} holds no scores, which --sweep chooses layers by; make it with `package --scores`."
            )
        order = ranking(package.scores.visual)
        for count in sweep:
            if not 0 <= count <= recipe.num_layers:
                raise ShortVError(f"--sweep has {count}; the model has {recipe.num_layers} layers.")
            lists.add(tuple(sorted(order[:count])))
    return sorted(lists, key=lambda layers: (len(layers), layers))


def evaluate(
    package: Checked,
    samples: Calibration,
    *,
    lists: Sequence[tuple[int, ...]],
    baselines: bool = False,
    max_new_tokens: int = 32,
    speed: bool = True,
    lengths: Sequence[tuple[int, int]] = (),
    dtype: str = "auto",
    device_map: Any = None,
    max_memory: MaxMemory | None = None,
    token: str | None = None,
    output: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Evaluation:
    """Measures a package, and other lists of frozen layers, against the base.

    Args:
        package: from `check_package`.
        samples: held-out ones.
        lists: frozen layers, from `frozen_lists`; the package's own is one of them.
        baselines: also measure what ShortV is compared with (see `baselines.comparisons`).
        max_new_tokens: most tokens of an answer.
        speed: also measure the speed, at the median sample's token counts and at `lengths`.
        lengths: numbers of text and of visual tokens.
        dtype, device_map, max_memory, token: as in `load_package`.
        output: where to save the result. Finished samples are kept beside it until then
            (``<output>.partial.jsonl``), and a run that was interrupted goes on from there.
        progress: called with the samples done and the samples in all.
        report: called with a line before each measurement of speed.

    Raises:
        ShortVError: it cannot be loaded, memory runs out, or the output cannot be written.
    """
    recipe = package.recipe
    changes = [frozen(layers, recipe.num_layers) for layers in lists]
    advice = (
        "load it with --dtype bfloat16 or spread it with --device-map auto, or ask for less with --max-new-tokens "
        "and --at. Finished samples are kept"
    )
    with out_of_memory(advice):
        model, processor = load_package(
            package, dtype=dtype, device_map=device_map, max_memory=max_memory, token=token
        )
        median = _median_sample(processor, samples.samples)
        visual = visual_tokens(model.config, median["input_ids"])
        shapes = layer_shapes(text_decoder(model).config.to_dict())
        prompt = (shapes, int((~visual).sum()), int(visual.sum()))
        if baselines:
            changes += comparisons(recipe.frozen_layers, *prompt, package.scores)
        device = _device_name(model)
        settings = [recipe.sha256, str(model.dtype), device, max_new_tokens, library_versions()]
        finished = FinishedSamples(output, hashlib.sha256(json.dumps(settings).encode()).hexdigest())
        answers = measure_fidelity(
            model,
            processor,
            samples.samples,
            changes,
            max_new_tokens=max_new_tokens,
            finished=finished,
            progress=progress,
        )
        speeds: list[tuple[Speed, ...]] = [() for _ in changes]
        if speed:
            for number, change in enumerate(changes):
                report(f"timing {change.name}")
                at_data = measure_speed(model, change, inputs=median)
                at_lengths = (measure_speed(model, change, tokens=length) for length in lengths)
                speeds[number] = (at_data, *at_lengths)
    rows = tuple(
        Row(
            name=change.name,
            frozen_layers=change.frozen_layers,
            chosen=number < len(lists) and change.frozen_layers == recipe.frozen_layers,
            baseline=number >= len(lists),
            flops_ratio=change.flops_ratio(*prompt),
            fidelity=fidelity_of(found),
            accuracy=accuracy_of(found, samples.samples),
            groups=accuracy_by_group(found, samples.samples),
            speed=measured,
        )
        for number, (change, found, measured) in enumerate(zip(changes, answers, speeds, strict=True))
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
        notes=_notes(samples, rows, on_cpu=not accelerators(model)) + _baseline_notes(rows, *prompt[1:]),
        rows=rows,
    )
    if output is not None:
        evaluation.save(output)
        finished.remove()
    return evaluation


def with_overlap(samples: Calibration, used: Sequence[str] | None) -> Calibration:
    """Records how many of the samples the layers were chosen by; `used` are those, None if that is not known."""
    overlap = None if used is None else len({sample.digest for sample in samples.samples} & {*used})
    return replace(samples, record={**samples.record, "overlap": overlap})


def _median_sample(processor: Any, samples: Sequence[Sample]) -> Mapping[str, Tensor]:
    """The inputs of the sample with the median number of tokens."""
    lengths = [encode_samples(processor, [sample])["input_ids"].shape[1] for sample in samples]
    order = sorted(range(len(samples)), key=lengths.__getitem__)
    inputs: Mapping[str, Tensor] = encode_samples(processor, [samples[order[len(order) // 2]]])
    return inputs


def _notes(samples: Calibration, rows: Sequence[Row], *, on_cpu: bool) -> tuple[str, ...]:
    notes = []
    if len(samples.samples) == 1:
        notes.append(SINGLE_SAMPLE)
    shares = [share for row in rows for share in (row.fidelity.top1_agreement, row.fidelity.exact_match)]
    if any(share.has_no_width for share in shares):
        notes.append(NO_WIDTH)
    overlap = samples.record.get("overlap", 0)
    if overlap is None:
        notes.append("It is not known which samples the layers were chosen by; these may be among them.")
    elif overlap:
        notes.append(f"The layers were chosen by {overlap} of these {len(samples.samples)} samples.")
    answered = rows[0].accuracy.num_samples if rows[0].accuracy else len(samples.samples)
    if answered < len(samples.samples):
        notes.append(f"Accuracy is over the {answered} of {len(samples.samples)} samples that have an answer.")
    if rows[0].speed and on_cpu:
        notes.append(NO_CPU_MEMORY)
    return tuple(notes)


def _baseline_notes(rows: Sequence[Row], text_tokens: int, visual_tokens: int) -> tuple[str, ...]:
    names = [row.name for row in rows if row.baseline]
    if not names:
        return ()
    budget = f"no more FLOPs than this package at {text_tokens} + {visual_tokens} tokens"
    notes = [f"FastV and VTW run in the ShortV paper's setting, and where another one takes {budget}, in that too."]
    if not any(name.startswith("cosine") for name in names):
        notes.append("Cosine selection is left out: the package holds no cosine distances.")
    return tuple(notes)


def _device_name(model: Any) -> str:
    devices = accelerators(model)
    if not devices:
        threads = torch.get_num_threads()
        return f"CPU ({platform.machine()}), {threads} thread{'s' if threads > 1 else ''}"
    if devices[0].type != "cuda":
        return devices[0].type
    number = f"{len(devices)} x " if len(devices) > 1 else ""
    return number + str(torch.cuda.get_device_name(devices[0]))
