"""Draws held-out samples: from the data that layers were chosen by, without the samples that they were chosen by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ..errors import ShortVError
from ..options import Questions, Samples
from ..packaging import Package, check_task
from ..records import Scores
from ..samples import LOCAL_FILES, DrawnSamples, Sample, draw_samples

Usable = Callable[[Sample], str | None]


def data_of(record: Mapping[str, Any]) -> str | None:
    """The data that recorded samples were drawn from; None for local files, whose path is not recorded.

    Args:
        record: see `samples.DrawnSamples.record`.
    """
    data = record.get("data")
    return data if isinstance(data, str) and data != LOCAL_FILES else None


def held_out_from_scores(scores: Scores | None, asked: Samples, usable: Usable | None = None) -> DrawnSamples:
    """Draws samples that scores were not measured on. The seed is one more than the one asked for.

    Args:
        scores: None if layers are chosen without scores; nothing is then held out.
        asked: by default from the data of the scores.
        usable: see `draw_samples`.

    Raises:
        ShortVError: the scores do not name their samples or their data; or as `draw_samples`.
    """
    used: list[str] = []
    data = asked.data
    if scores is not None:
        used = _digests(scores.calibration)
        data = data or data_of(scores.calibration)
        if not used:
            raise ShortVError("the scores do not say which samples they were measured on; score again for `max_kl`.")
        if data is None:
            raise ShortVError("the scores were measured on local files; name them with `data`, for `max_kl`.")
    return _draw(asked, data, used, usable, stratify=True)


def held_out_from_package(
    package: Package, asked: Samples, questions: Questions, usable: Usable | None = None
) -> DrawnSamples:
    """Draws samples that a package's layers were not chosen by. The seed is one more than the one asked for.

    Args:
        package: the package to evaluate.
        asked: by default from the data that the layers were chosen by.
        questions: with `force_overlap`, nothing is held out; with `task` or `accuracy`, samples need answers.
        usable: see `draw_samples`.

    Returns:
        The samples. Their record also has ``"group_by"``, ``"overlap"`` and perhaps ``"task_id"`` (see
        `records.Evaluation.data`).

    Raises:
        ShortVError: the package does not name the samples or the data that its layers were chosen by; the data is not
            that of `task`; no sample has an answer; or as `draw_samples`.
    """
    selection = package.recipe.selection
    # Layers are chosen by the samples of the scores and by those that `max_kl` was measured on.
    records = [package.scores.calibration] if package.scores is not None else []
    records += [selection["evidence"]["held_out"]] if "held_out" in selection["evidence"] else []
    digests = [_digests(record) for record in records]
    known = all(digests)
    if not known and not questions.force_overlap:
        raise ShortVError(
            f"{package.name} does not say which samples its layers were chosen by, so none can be held out; "
            "score and package the base again, or give `force_overlap`."
        )
    data = asked.data
    if data is None and records:
        data = data_of(records[0])
        if data is None:
            raise ShortVError(f"the layers of {package.name} were chosen by local files; name data with `data`.")
    used = [digest for each in digests for digest in each]
    samples = _draw(asked, data, [] if questions.force_overlap else used, usable, questions.group_by)
    # A list from the paper or from the user does not say which samples it was chosen by.
    known = known and selection["method"] not in ("preset", "given")
    overlap = len({*used} & {sample.digest for sample in samples.samples}) if known else None
    record = {**samples.record, "group_by": questions.group_by, "overlap": overlap}
    if questions.task is not None:
        check_task(questions.task, record)
        record["task_id"] = questions.task
    if (questions.accuracy or questions.task is not None) and all(each.answer is None for each in samples.samples):
        raise ShortVError(
            "accuracy needs answers, but no sample has one; add a column answer, or name it as in DATA:answer=COLUMN."
        )
    return replace(samples, record=record)


def _digests(record: Mapping[str, Any]) -> list[str]:
    """The digests of the recorded samples; empty if the record does not have them."""
    digests = record.get("sample_digests")
    named = isinstance(digests, list | tuple) and all(isinstance(digest, str) for digest in digests)
    return list(digests) if named and digests else []


def _draw(
    asked: Samples,
    data: str | None,
    exclude: list[str],
    usable: Usable | None,
    group_by: str | None = None,
    *,
    stratify: bool = False,
) -> DrawnSamples:
    asked = replace(asked, data=data, seed=asked.seed + 1)
    return draw_samples(asked, exclude=exclude, group_by=group_by, usable=usable, stratify=stratify)
