"""The verbs: each step from names and files to a file, and `push`, which runs them all.

The command line calls these, and so can a notebook.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .base import BaseModel, resolve_base
from .errors import ShortVError
from .files import file_sha256
from .measure import MaxMemory, device_map_for
from .records import RECIPE_NAME, Recipe, Scores, Selection
from .selection import Measure, describe, given_selection, preset_selection, select_layers
from .verification import verify

if TYPE_CHECKING:
    from .evaluation import Checked
    from .publish import Forecast, Push
    from .records import Evaluation
    from .samples import Calibration

__all__ = ["CalibrationChoice", "Choice", "evaluate", "package", "push", "score", "verify"]

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Choice:
    """How the frozen layers are chosen: by scores, from a preset, as given or at random; and how many.

    Attributes:
        scores: a ``scores.json``.
        preset: ``"paper"``.
        frozen_layers: ``"31,29,30"``.
        num_frozen, flops_ratio, max_kl: the budget, with scores or at random (see `selection.select_layers`).
        method: ``"lc"``, ``"cosine"`` or ``"random"``.
        seed: of the random order, and of the held-out samples (see `CalibrationChoice`).
    """

    scores: Path | None = None
    preset: str | None = None
    frozen_layers: str | None = None
    num_frozen: int | None = None
    flops_ratio: float | None = None
    max_kl: float | None = None
    method: str = "lc"
    seed: int = 0

    @property
    def sources(self) -> list[str]:
        """The options given that say where the list comes from; more than one contradict each other."""
        given = {"--scores": self.scores, "--preset": self.preset, "--frozen-layers": self.frozen_layers}
        random = ["--method random"] if self.method == "random" else []
        return [option for option, value in given.items() if value is not None] + random

    def select(
        self,
        base: BaseModel,
        measurement: Callable[[Scores | None], Measure] | None = None,
        report: Callable[[str], None] = lambda line: None,
    ) -> tuple[Selection, Scores | None]:
        """The selection for a base, and the scores it rests on.

        Args:
            base: the base.
            measurement: makes what measures a divergence, given the scores; for `max_kl`.
            report: called with a line for each measurement.

        Raises:
            ShortVError: not exactly one source, a budget for a fixed list, or a source that does not fit the base.
        """
        if len(self.sources) != 1:
            raise ShortVError(
                "say which layers to freeze with one of --scores, --preset, --frozen-layers and --method random."
            )
        if self.scores is not None or self.method == "random":
            scores = Scores.load(self.scores) if self.scores is not None else None
            measure = measurement(scores) if measurement is not None and self.max_kl is not None else None
            return self._by_method(base, scores, measure, report), scores
        budgets = (self.num_frozen, self.flops_ratio, self.max_kl)
        if any(budget is not None for budget in budgets) or self.method != "lc":
            raise ShortVError(
                f"{self.sources[0]} fixes the list; "
                "--num-frozen, --flops-ratio, --max-kl and --method go with --scores."
            )
        if self.frozen_layers is not None:
            return given_selection(self.frozen_layers, base.num_layers), None
        if self.preset != "paper":
            raise ShortVError(f"unknown preset {self.preset!r}; there is one: paper.")
        return preset_selection(base), None

    def foresee(self, base: BaseModel) -> Selection | None:
        """What will be selected, or None where that has yet to be measured; refuses now what would be refused then.

        Raises:
            ShortVError: as `select`.
        """

        def free(frozen_layers: Any) -> tuple[float, float]:
            return 0.0, 0.0

        if not self.sources:
            zeros = (0.0,) * base.num_layers
            self._by_method(base, Scores(zeros, zeros, zeros, 1, visual_cosine_distance=zeros), free)
            return None
        selection = self.select(base, lambda scores: free)[0]
        return selection if self.max_kl is None else None

    def _by_method(
        self,
        base: BaseModel,
        scores: Scores | None,
        measure: Measure | None = None,
        report: Callable[[str], None] = lambda line: None,
    ) -> Selection:
        return select_layers(
            scores,
            method=self.method,
            seed=self.seed,
            num_frozen=self.num_frozen,
            flops_ratio=self.flops_ratio,
            max_kl=self.max_kl,
            measure=measure,
            num_layers=base.num_layers,
            shapes=base.layer_shapes,
            visual_tokens=base.prompt_visual_tokens,
            report=report,
        )


@dataclass(frozen=True)
class CalibrationChoice:
    """Which samples are measured on (see `calibration.load_calibration`).

    Attributes:
        data: what they are drawn from. None stands for the paper's, and where scores are at hand, for theirs.
        num_samples: how many.
        seed: of the draw. Held-out samples are drawn with the one after `Choice.seed`, and are none of the scores'.
        until_stable: for scores, add samples, half as many as there are each time, until the selected layers have not
            changed over two rounds. The scores record the rounds, and whether that became so.
        max_samples: for `until_stable`, where to stop in any case.
    """

    data: str | None = None
    num_samples: int = 40
    seed: int = 0
    until_stable: bool = False
    max_samples: int = 160

    def check(self) -> None:
        """Refuses numbers that contradict each other.

        Raises:
            ShortVError: they do.
        """
        if self.until_stable and self.max_samples < self.num_samples:
            raise ShortVError(f"at most {self.max_samples} samples are fewer than the first {self.num_samples}.")


def score(
    base: str,
    output: Path,
    *,
    revision: str | None = None,
    calibration: CalibrationChoice = CalibrationChoice(),
    num_frozen: int | None = None,
    flops_ratio: float | None = None,
    divergence: str = "forward",
    max_batch_tokens: int | None = None,
    dtype: str = "auto",
    device_map: str | None = None,
    max_memory: MaxMemory | None = None,
    stream: bool = False,
    progress: Progress | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Scores:
    """Measures the Layer Contributions of a base and writes them to `output`.

    Args:
        base: a Hub id or a folder.
        output: the ``scores.json`` to write. Finished samples are kept beside it until it is.
        revision: branch, tag or commit of the base.
        calibration: which samples.
        num_frozen, flops_ratio: for `CalibrationChoice.until_stable`, how many layers are meant to be selected; the
            default is that of `selection.select_layers`.
        divergence: ``"forward"``, KL(original || ablated) as the paper defines it, or ``"reverse"``, as its reference
            code computes it.
        max_batch_tokens: tokens per call of a decoder layer; less takes less memory.
        dtype: of the measurement: ``"auto"`` (the checkpoint's), ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        device_map: placement by accelerate, such as ``"auto"``.
        max_memory: what that may use, such as ``{0: "10GiB", "cpu": "20GiB"}``; implies ``"auto"``. While streaming,
            what everything may use.
        stream: read the decoder layers from disk one at a time, for a base that is larger than memory.
        progress: called with the samples done and the samples in all.
        report: called with a line about memory, and with one for each round.

    Raises:
        ShortVError: the base or the calibration data cannot be used; a number is out of range; too little memory.
    """
    from .measure import Scorer
    from .measure import layer_contribution as contribution
    from .samples import load_calibration

    directions = {"forward": contribution.FORWARD, "reverse": contribution.REVERSE}
    if divergence not in directions:
        raise ShortVError(f"unknown divergence {divergence!r}; choose forward or reverse.")
    calibration.check()
    resolved = resolve_base(base, revision=revision)
    choice = Choice(num_frozen=num_frozen, flops_ratio=flops_ratio)
    choice.foresee(resolved)
    draw = partial(load_calibration, calibration.data or "paper", seed=calibration.seed)
    scorer = Scorer(
        resolved,
        dtype=dtype,
        device_map=device_map,
        max_memory=max_memory,
        stream=stream,
        divergence=directions[divergence],
        max_batch_tokens=max_batch_tokens or contribution.MAX_BATCH_TOKENS,
        output=output,
        progress=progress,
        report=report,
    )
    if calibration.until_stable:
        scores = _until_stable(
            draw,
            scorer,
            lambda scores: choice._by_method(resolved, scores),
            calibration.num_samples,
            calibration.max_samples,
            report,
        )
    else:
        scores = scorer(draw(num_samples=calibration.num_samples))
    scorer.save(scores)
    return scores


def _until_stable(
    draw: Callable[..., Calibration],
    measure: Callable[[Calibration], Scores],
    select: Callable[[Scores], Selection],
    first: int,
    most: int,
    report: Callable[[str], None],
) -> Scores:
    """Scores on more and more samples, until the selection stays the same for two rounds or there are no more."""
    rounds: list[int] = []
    selections: list[tuple[int, ...]] = []
    number = first
    while True:
        # The first round must have what was asked for; after it, the data may come to its end.
        samples = draw(num_samples=number, allow_fewer=bool(rounds))
        found = len(samples.samples)
        if not rounds or found > rounds[-1]:
            scores = measure(samples)
            rounds.append(found)
            selections.append(select(scores).frozen_layers)
            changed = len({*selections[-1]} - {*selections[-2]}) if len(selections) > 1 else None
            news = "" if changed is None else f"; {changed} of {len(selections[-1])} selected layers are new"
            report(f"round {len(rounds)}: {found} samples{news}")
        stable = len(selections) > 2 and len({*selections[-3:]}) == 1
        if stable or found < number or number >= most:
            report("the selection is stable" if stable else f"the selection is not stable after {rounds[-1]} samples")
            record = {"num_frozen": len(selections[-1]), "rounds": rounds, "stable": stable}
            return replace(scores, until_stable=record)
        number = min(most, number + max(1, number // 2))


def package(
    base: str,
    out: Path,
    choice: Choice,
    *,
    revision: str | None = None,
    license: str | None = None,
    weights: str = "copy",
    calibration: CalibrationChoice = CalibrationChoice(),
    dtype: str = "auto",
    device_map: str | None = None,
    max_memory: MaxMemory | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Recipe:
    """Makes the folder that gets published.

    Args:
        base: a Hub id or a folder.
        out: the folder; must not exist or be empty.
        choice: which layers to freeze.
        revision: branch, tag or commit of the base.
        license: of the result, if the base's card names none.
        weights: ``"copy"``, or ``"reference"`` for a package that loads those of its base on the Hub.
        calibration: for a choice by `max_kl`, what the held-out samples are drawn from, and how many.
        dtype, device_map, max_memory: for a choice by `max_kl`, of the measurement, as in `score`.
        report: called with a line for each measurement.

    Raises:
        ShortVError: the base, the choice or the folder cannot be used; nothing is left behind.
    """
    from .packaging import build_package, check_room, check_target, inherited_metadata

    resolved = resolve_base(base, revision=revision)
    held_out: dict[str, Any] = {}

    def measurement(scores: Scores | None) -> Measure:
        # What would be refused in the end is refused before the measurement.
        check_target(out)
        check_room(resolved, out, weights)
        inherited_metadata(resolved, license)
        choice.foresee(resolved)
        samples = _held_out_samples(scores, calibration.data, calibration.num_samples, choice.seed)
        held_out.update(held_out=samples.record)
        return _joint_divergence(resolved, samples, dtype, device_map, max_memory)

    selection, scores = choice.select(resolved, measurement, report)
    selection = replace(selection, evidence=selection.evidence | held_out)
    build_package(resolved, out, selection, scores=scores, license=license, weights=weights)
    return Recipe.load(out / RECIPE_NAME)


def _held_out_samples(scores: Scores | None, data: str | None, num_samples: int, seed: int) -> Calibration:
    """Samples that the scores were not measured on."""
    from .samples import load_calibration

    used: list[str] = []
    if scores is not None:
        used = scores.calibration.get("sample_digests", [])
        if not used or not all(isinstance(digest, str) for digest in used):
            raise ShortVError("the scores do not say which samples they were measured on; score again for --max-kl.")
        data = data or scores.calibration.get("data")
        if not isinstance(data, str) or data == "local files":
            raise ShortVError("the scores were measured on local files; name them with --data, for --max-kl.")
    return load_calibration(data or "paper", num_samples=num_samples, seed=seed + 1, exclude=used)


def _joint_divergence(
    base: BaseModel, samples: Calibration, dtype: str, device_map: str | None, max_memory: MaxMemory | None
) -> Measure:
    """What measures the divergence of a base from itself with layers frozen."""
    from .base import load_base
    from .measure import JointDivergence
    from .samples import encode_samples

    model, processor = load_base(
        base, dtype=dtype, device_map=device_map_for(device_map, max_memory), max_memory=max_memory
    )
    return JointDivergence(model, (encode_samples(processor, [sample]) for sample in samples.samples))


def rebuild(recipe: Path, out: Path, *, base: str | None = None) -> Recipe:
    """Makes the same folder again, byte for byte.

    Args:
        recipe: a package's ``shortv.json``; if the package was evaluated, beside its ``evaluation.json``.
        out: the folder; must not exist or be empty.
        base: a Hub id or a folder with the recipe's base; left out, it comes from the Hub at the recipe's commit.

    Raises:
        ShortVError: the recipe or the folder cannot be used, the base is not the recipe's, or this release would make
            another package of it; nothing is left behind.
    """
    from .packaging import rebuild_package
    from .records import EVALUATION_NAME, Evaluation

    loaded = Recipe.load(recipe)
    base = base or loaded.base.repo_id
    if base is None:
        raise ShortVError(f"{recipe} was made from a folder; name that folder: package BASE OUT --recipe {recipe}.")
    revision = None if Path(base).expanduser().is_dir() else loaded.base.revision
    evaluation = None
    if loaded.measured:
        path = recipe.with_name(EVALUATION_NAME)
        if not path.is_file() or file_sha256(path) != loaded.measured.get(EVALUATION_NAME):
            raise ShortVError(f"the recipe's package was evaluated; put its {EVALUATION_NAME} beside {recipe}.")
        evaluation = Evaluation.load(path)
    rebuild_package(resolve_base(base, revision=revision), out, loaded, evaluation)
    return loaded


def evaluate(
    package: str,
    output: Path | None = None,
    *,
    revision: str | None = None,
    data: str | None = None,
    num_samples: int = 64,
    seed: int = 0,
    group_by: str | None = None,
    accuracy: bool = False,
    task: str | None = None,
    max_new_tokens: int = 32,
    sweep: Sequence[int] | None = None,
    baselines: bool = False,
    speed: bool = True,
    at: Sequence[tuple[int, int]] = (),
    force_overlap: bool = False,
    dtype: str = "auto",
    device_map: str | None = None,
    max_memory: MaxMemory | None = None,
    update_card: bool = False,
    token: str | None = None,
    progress: Progress | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Evaluation:
    """Measures a package against its base, both in one process on one load of the weights.

    Args:
        package: a folder, or a repository id.
        output: the ``evaluation.json`` to write. Finished samples are kept beside it until it is.
        revision: of the repository: branch, tag or commit.
        data: what held-out samples are drawn from; the default is what the layers were chosen by, or the paper's mix.
        num_samples, seed: of the draw.
        group_by: a column of the data; accuracy is also told for each of its values.
        accuracy: refuse data without answers; otherwise accuracy is measured where there are answers.
        task: the data is a benchmark on the Hub, of which this is the task; implies `accuracy`.
        max_new_tokens: most tokens of an answer.
        sweep: also measure these numbers of frozen layers, the lowest by the package's scores.
        baselines: also measure FastV, VTW, ShortV with FastV, and other selections of as many layers.
        speed: also measure time, memory and FLOPs, at the data's median token counts.
        at: and at these numbers of text and of visual tokens.
        force_overlap: draw from all samples, those that the layers were chosen by too.
        dtype, device_map, max_memory: of the measurement, as in `score`.
        update_card: put the result into the package, a folder: its card shows it.
        token: for a private repository.
        progress: called with the samples done and the samples in all.
        report: called with a line before each measurement of speed.

    Raises:
        ShortVError: the package or the data cannot be used, too few held-out samples are left, or the card cannot be
            updated.
    """
    from .evaluation import comparison as evaluation
    from .packaging import add_evaluation, check_evaluable, check_task

    evaluable = check_evaluable(package, sweep=sweep is not None) if update_card else None
    checked = evaluation.check_package(package, revision=revision, token=token)
    lists = evaluation.frozen_lists(checked, sweep)
    if output is not None and output.absolute().parent.resolve() == checked.folder.resolve():
        raise ShortVError(f"{output} lies in the package, which must stay as it is; choose another --output.")
    samples = _evaluation_samples(checked, data, num_samples, seed, group_by, force_overlap, token)
    if task is not None:
        check_task(task, samples.record, token)
        samples = replace(samples, record={**samples.record, "task_id": task})
    if (accuracy or task is not None) and all(sample.answer is None for sample in samples.samples):
        raise ShortVError(
            "accuracy needs answers, but no sample has one; add a column answer, or name it as in DATA:answer=COLUMN."
        )
    result = evaluation.evaluate(
        checked,
        samples,
        lists=lists,
        baselines=baselines,
        max_new_tokens=max_new_tokens,
        speed=speed,
        lengths=at,
        dtype=dtype,
        device_map=device_map,
        max_memory=max_memory,
        token=token,
        output=output,
        progress=progress,
        report=report,
    )
    if evaluable is not None:
        add_evaluation(evaluable, result)
    return result


def _evaluation_samples(
    checked: Checked,
    data: str | None,
    num_samples: int,
    seed: int,
    group_by: str | None,
    force_overlap: bool,
    token: str | None,
) -> Calibration:
    """Samples that a package's layers were not chosen by, unless that is forced, and the record of how many were."""
    from .evaluation import with_overlap
    from .samples import load_calibration

    selection = checked.recipe.selection
    # The samples of the scores, and those that a bound on the divergence was held against.
    records = [checked.scores.calibration] if checked.scores is not None else []
    records += [selection["evidence"]["held_out"]] if "held_out" in selection["evidence"] else []
    digests = [record.get("sample_digests") for record in records]
    known = all(isinstance(found, list) and found for found in digests)
    # The paper does not say which samples its lists were chosen by.
    used = [str(digest) for found in digests for digest in found or ()] if known else None
    if used is None and not force_overlap:
        raise ShortVError(
            f"{checked.name} does not say which samples its layers were chosen by, so that none can be held out; "
            "score and package the base again, or add --force-overlap."
        )
    if data is None and records:
        data = records[0].get("data")
        if not isinstance(data, str) or data == "local files":
            raise ShortVError(f"the layers of {checked.name} were chosen by local files; name data with --data.")
    exclude = [] if force_overlap else used or []
    samples = load_calibration(
        data or "paper", num_samples=num_samples, seed=seed + 1, exclude=exclude, group_by=group_by, token=token
    )
    samples = replace(samples, record={**samples.record, "group_by": group_by})
    # Nobody says by which samples a list was chosen that was given as it stands.
    return with_overlap(samples, None if selection["method"] in ("preset", "given") else used)


def push(
    source: str,
    repo_id: str,
    *,
    choice: Choice = Choice(),
    calibration: CalibrationChoice = CalibrationChoice(),
    out: Path | None = None,
    base_revision: str | None = None,
    dtype: str = "auto",
    device_map: str | None = None,
    max_memory: MaxMemory | None = None,
    stream: bool = False,
    license: str | None = None,
    weights: str = "copy",
    private: bool = False,
    create_pr: bool = False,
    revision: str | None = None,
    overwrite: bool = False,
    commit_message: str | None = None,
    tag: str | None = None,
    dry_run: bool = False,
    evaluate_on: int | None = None,
    progress: Progress | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Push | Forecast:
    """Publishes a package; given a base, scores, packages and verifies it first, and may evaluate it.

    Args:
        source: the folder of a finished package, or a base model (Hub id or folder).
        repo_id: where to, ``user/name``.
        choice, calibration, base_revision, dtype, device_map, max_memory, stream, license, weights, progress: for a
            base, as in `score` and `package`. A choice without a source measures the scores.
        out: for a base, the folder of the package; the default is the repository's name in the current folder. It
            stays, so that a failed upload is continued by pushing it.
        private, create_pr, revision, overwrite, commit_message, tag: as in `hub.push_package`.
        dry_run: only tell what would be done; for a base, as far as one can tell without its weights and its scores.
        evaluate_on: for a base, evaluate the verified package on so many samples, as `evaluate` does by default; the
            card shows the result.
        report: called with one line per finished step.

    Raises:
        ShortVError: a step failed; what is finished stays for the next try.
    """
    from .packaging import check_room, check_target, inherited_metadata
    from .publish import forecast_push, preflight, push_package

    target: dict[str, Any] = {
        "private": private,
        "create_pr": create_pr,
        "revision": revision,
        "overwrite": overwrite,
        "tag": tag,
    }
    folder = Path(source)
    if not (folder / RECIPE_NAME).is_file():
        # Nobody should wait an hour for scores to learn that the token is missing, the licence, or a layer.
        preflight(repo_id, **target)
        outline = resolve_base(source, revision=base_revision, weights=False)
        inherited_metadata(outline, license)
        if stream and choice.max_kl is not None:
            raise ShortVError("--max-kl runs the whole model; place a large one with --device-map auto, not --stream.")
        if stream and evaluate_on is not None:
            raise ShortVError("--evaluate runs the whole model; place it with --device-map auto, not --stream.")
        if evaluate_on is not None and calibration.data is None and choice.scores is not None:
            known = Scores.load(choice.scores).calibration.get("data")
            if known in (None, "local files"):
                raise ShortVError("the scores were measured on local files; name data for --evaluate with --data.")
        calibration.check()
        selection = choice.foresee(outline)
        if dry_run:
            forecast = forecast_push(
                outline, repo_id, selection=selection, weights=weights, evaluated=evaluate_on is not None, **target
            )
            report(forecast.summary)
            return forecast
        folder = out or Path(repo_id.split("/")[-1])
        check_target(folder)
        check_room(outline, folder, weights)
        if not choice.sources:
            scores_file = folder.with_name(f"{folder.name}.scores.json")
            scores = score(
                source,
                scores_file,
                revision=base_revision,
                calibration=calibration,
                num_frozen=choice.num_frozen,
                flops_ratio=choice.flops_ratio,
                dtype=dtype,
                device_map=device_map,
                max_memory=max_memory,
                stream=stream,
                progress=progress,
                report=report,
            )
            report(f"scored {len(scores.visual)} layers on {scores.num_samples} samples: {scores_file}")
            choice = replace(choice, scores=scores_file)
        recipe = package(
            source,
            folder,
            choice,
            revision=base_revision,
            license=license,
            weights=weights,
            calibration=calibration,
            dtype=dtype,
            device_map=device_map,
            max_memory=max_memory,
            report=report,
        )
        report(f"packaged with {len(recipe.frozen_layers)} of {recipe.num_layers} layers frozen: {folder}")
        if line := boundary_line(recipe):
            report(line)
        verification = verify(folder, report=report)
        verification.raise_if_failed()
        report(f"verified: {verification.summary}")
        if evaluate_on is not None:
            evaluation_file = folder.with_name(f"{folder.name}.evaluation.json")
            evaluate(
                str(folder),
                evaluation_file,
                data=calibration.data,
                num_samples=evaluate_on,
                seed=calibration.seed,
                dtype=dtype,
                device_map=device_map,
                max_memory=max_memory,
                update_card=True,
                progress=progress,
                report=report,
            )
            report(f"evaluated on {evaluate_on} samples: {evaluation_file}")
    elif evaluate_on is not None:
        raise ShortVError(f"{source} is a package; evaluate it first: shortv-export evaluate {source} --update-card.")
    result = push_package(folder, repo_id, commit_message=commit_message, dry_run=dry_run, **target)
    report(result.summary)
    return result


def boundary_line(recipe: Recipe) -> str | None:
    """How sure a selection by Layer Contribution is, in one line; None for any other."""
    if recipe.selection["method"] != "lc" or recipe.scores is None:
        return None
    return describe(Scores.from_dict(recipe.scores, RECIPE_NAME), len(recipe.frozen_layers))
