"""The verbs: each step from names and files to a file, and `push`, which runs them all.

The command line calls these, and so can a notebook.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .base_model import BaseModel, resolve_base
from .errors import ShortVError
from .recipe import RECIPE_NAME, Recipe, Scores
from .selection import Selection, given_selection, preset_selection, select_layers

if TYPE_CHECKING:
    from .hub import Push

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Choice:
    """How the frozen layers are chosen: from a scores file, from a preset, or as given; and how many.

    Attributes:
        scores: a ``scores.json``.
        preset: ``"paper"``.
        frozen_layers: ``"31,29,30"``.
        num_frozen, flops_ratio: the budget, with scores (see `selection.select_layers`).
    """

    scores: Path | None = None
    preset: str | None = None
    frozen_layers: str | None = None
    num_frozen: int | None = None
    flops_ratio: float | None = None

    @property
    def sources(self) -> list[str]:
        """The options given that say where the list comes from; more than one contradict each other."""
        given = {"--scores": self.scores, "--preset": self.preset, "--frozen-layers": self.frozen_layers}
        return [option for option, value in given.items() if value is not None]

    def select(self, base: BaseModel) -> tuple[Selection, Scores | None]:
        """The selection for a base, and the scores it rests on.

        Raises:
            ShortVError: not exactly one source, a budget for a fixed list, or a source that does not fit the base.
        """
        if len(self.sources) != 1:
            raise ShortVError("say which layers to freeze with one of --scores, --preset and --frozen-layers.")
        if self.scores is not None:
            scores = Scores.load(self.scores)
            return self._from_scores(base, scores), scores
        if self.num_frozen is not None or self.flops_ratio is not None:
            raise ShortVError(f"{self.sources[0]} fixes the list; --num-frozen and --flops-ratio go with --scores.")
        if self.frozen_layers is not None:
            return given_selection(self.frozen_layers, base.num_layers), None
        if self.preset != "paper":
            raise ShortVError(f"unknown preset {self.preset!r}; there is one: paper.")
        return preset_selection(base), None

    def _from_scores(self, base: BaseModel, scores: Scores) -> Selection:
        return select_layers(
            scores,
            num_frozen=self.num_frozen,
            flops_ratio=self.flops_ratio,
            num_layers=base.num_layers,
            shape=base.layer_shape,
            visual_tokens=base.prompt_visual_tokens,
        )


@dataclass(frozen=True)
class CalibrationChoice:
    """Which samples Layer Contribution is measured on (see `calibration.load_calibration`)."""

    data: str = "paper"
    num_samples: int = 40
    seed: int = 0


def score(
    base: str,
    output: Path,
    *,
    revision: str | None = None,
    calibration: CalibrationChoice = CalibrationChoice(),
    dtype: str = "auto",
    device_map: str | None = None,
    stream: bool = False,
    progress: Progress | None = None,
) -> Scores:
    """Measures the Layer Contributions of a base and writes them to `output`.

    Args:
        base: a Hub id or a folder.
        output: the ``scores.json`` to write. Finished samples are kept beside it until it is.
        revision: branch, tag or commit of the base.
        calibration: which samples.
        dtype: of the measurement: ``"auto"`` (the checkpoint's), ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        device_map: placement by accelerate, such as ``"auto"``.
        stream: read the decoder layers from disk one at a time, for a base that is larger than memory.
        progress: called with the samples done and the samples in all.

    Raises:
        ShortVError: the base or the calibration data cannot be used.
    """
    from . import contribution
    from .calibration import load_calibration

    resolved = resolve_base(base, revision=revision)
    samples = load_calibration(calibration.data, num_samples=calibration.num_samples, seed=calibration.seed)
    return contribution.score(
        resolved,
        samples,
        dtype=dtype,
        device_map=device_map,
        stream=stream,
        output=output,
        progress=progress,
    )


def package(
    base: str, out: Path, choice: Choice, *, revision: str | None = None, license: str | None = None
) -> Recipe:
    """Makes the folder that gets published.

    Args:
        base: a Hub id or a folder.
        out: the folder; must not exist or be empty.
        choice: which layers to freeze.
        revision: branch, tag or commit of the base.
        license: of the result, if the base's card names none.

    Raises:
        ShortVError: the base, the choice or the folder cannot be used; nothing is left behind.
    """
    from .package import build_package

    resolved = resolve_base(base, revision=revision)
    selection, scores = choice.select(resolved)
    build_package(resolved, out, selection, scores=scores, license=license)
    return Recipe.load(out / RECIPE_NAME)


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
    stream: bool = False,
    license: str | None = None,
    private: bool = False,
    create_pr: bool = False,
    revision: str | None = None,
    overwrite: bool = False,
    commit_message: str | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Push:
    """Publishes a package; given a base, scores, packages and verifies it first.

    Args:
        source: the folder of a finished package, or a base model (Hub id or folder).
        repo_id: where to, ``user/name``.
        choice, calibration, base_revision, dtype, device_map, stream, license, progress: for a base, as in `score` and
            `package`. A choice without a source measures the scores.
        out: for a base, the folder of the package; the default is the repository's name in the current folder. It
            stays, so that a failed upload is continued by pushing it.
        private, create_pr, revision, overwrite, commit_message, dry_run: as in `hub.push_package`.
        report: called with one line per finished step.

    Raises:
        ShortVError: a step failed; what is finished stays for the next try.
    """
    from .hub import preflight, push_package
    from .verify import verify

    target: dict[str, Any] = {"private": private, "create_pr": create_pr, "revision": revision, "overwrite": overwrite}
    folder = Path(source)
    if not (folder / RECIPE_NAME).is_file():
        # Nobody should wait an hour for scores to learn that the token is missing.
        preflight(repo_id, **target)
        folder = out or Path(repo_id.split("/")[-1])
        if not choice.sources:
            scores_file = folder.with_name(f"{folder.name}.scores.json")
            scores = score(
                source,
                scores_file,
                revision=base_revision,
                calibration=calibration,
                dtype=dtype,
                device_map=device_map,
                stream=stream,
                progress=progress,
            )
            report(f"scored {len(scores.visual)} layers on {scores.num_samples} samples: {scores_file}")
            choice = replace(choice, scores=scores_file)
        recipe = package(source, folder, choice, revision=base_revision, license=license)
        report(f"packaged with {len(recipe.frozen_layers)} of {recipe.num_layers} layers frozen: {folder}")
        verification = verify(folder)
        verification.raise_if_failed()
        report(f"verified: {len(verification.checks)} checks passed")
    result = push_package(folder, repo_id, commit_message=commit_message, dry_run=dry_run, **target)
    report(result.summary)
    return result
