"""Draws samples from data sets, with a seed."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..errors import ShortVError
from ..options import Samples
from .decode import Fault, Sample, Unusable, sample_of
from .rows import DataSet, reading
from .source import PAPER, Source
from .tables import Rows

logger = logging.getLogger(__name__)

LOCAL_FILES = "local files"
"""Stands in a record as ``"data"`` for files and folders, as records hold no local paths."""

TASK = "task"
"""The column by which samples to choose layers by are stratified."""

_ALWAYS_ALLOWED = 3
"""So many rows may be unusable however few samples are asked for, so that a bad one among good ones ends no draw."""


@dataclass(frozen=True)
class DrawnSamples:
    """Samples in the order drawn, and a record of what they are.

    Attributes:
        record: ``{"data", "sources", "seed", "num_samples", "num_images", "num_videos", "skipped", "digest",
            "sample_digests"}``. Each source has its repository and commit or its format, its configuration, split,
            keys (see `source`), perhaps ``"stratified_by"``, and its numbers of samples and of skipped rows. No local
            paths.
    """

    samples: tuple[Sample, ...]
    record: dict[str, Any]


def draw_samples(
    asked: Samples,
    *,
    exclude: Collection[str] = (),
    allow_fewer: bool = False,
    group_by: str | None = None,
    usable: Callable[[Sample], str | None] | None = None,
    stratify: bool = False,
) -> DrawnSamples:
    """Draws samples in random order. Skips and counts unusable rows: a quarter of the number asked for, or three.

    Args:
        asked: the data (None: the paper's mix), number and seed. The same values give the same samples; a larger
            number gives those of the smaller one first, then more (in each data set of a mix).
        exclude: digests of samples that must not be drawn.
        allow_fewer: if the data has fewer samples, take them all.
        group_by: a column whose value becomes `Sample.group`.
        usable: is asked for every sample drawn, and returns why it must be skipped, in one line, or None.
        stratify: if the data has a column `TASK`, draw as many samples of each task, as far as there are.

    Raises:
        ShortVError: the data cannot be found or read, lacks a column, has no images and no videos, too few samples,
            or too many unusable ones.
    """
    if asked.num_samples < 1:
        raise ShortVError(f"`num_samples` is {asked.num_samples}; ask for at least 1.")
    data = "paper" if asked.data is None else asked.data
    shares = {data: asked.num_samples}
    if data == "paper":  # half of each; of an odd number, GQA has one more
        shares = {PAPER[0]: asked.num_samples - asked.num_samples // 2, PAPER[1]: asked.num_samples // 2}
    exclude = frozenset(exclude)
    samples: list[Sample] = []
    sources = []
    for text, share in shares.items():
        if not share:
            continue
        data_set = DataSet.open(Source.parse(text))
        by_turns = TASK if stratify and TASK in data_set.columns else None
        rows = partial(data_set.shuffled, asked.seed, by_turns=by_turns)
        drawn, faults = _draw(data_set, rows, share, exclude, group_by, usable)
        if not drawn and faults:
            raise _too_many(data_set.source, faults, 0)
        if not drawn or (len(drawn) < share and not allow_fewer):
            others = f" besides the {len(exclude)} that are set apart" if exclude else ""
            last = f" The last unreadable one: {faults[-1]}." if faults else ""
            raise ShortVError(
                f"{data_set.source.path} has {len(drawn)} usable samples{others} ({len(faults)} unreadable), fewer "
                f"than the {share} asked for; lower `num_samples`, or give more data.{last}"
            )
        samples += drawn
        stratified = {"stratified_by": by_turns} if by_turns else {}
        sources.append({**data_set.record, **stratified, "num_samples": len(drawn), "skipped": len(faults)})
        if faults:
            reason, times = Counter(fault.reason for fault in faults).most_common(1)[0]
            logger.info(
                "%s: %d of %d rows were skipped, %d of them for this reason: %s",
                *(data_set.source.path, len(faults), len(faults) + len(drawn), times, reason),
            )
    digests = [sample.digest for sample in samples]
    return DrawnSamples(
        tuple(samples),
        {
            "data": data if "repo_id" in sources[0] else LOCAL_FILES,
            "sources": sources,
            "seed": asked.seed,
            "num_samples": len(samples),
            "num_images": sum(len(sample.images) for sample in samples),
            "num_videos": sum(len(sample.videos) for sample in samples),
            "skipped": sum(source["skipped"] for source in sources),
            "digest": hashlib.sha256("".join(digests).encode()).hexdigest(),
            "sample_digests": digests,
        },
    )


def _draw(
    data: DataSet,
    rows: Callable[[int], Rows],
    num_samples: int,
    exclude: Collection[str],
    group_by: str | None,
    usable: Callable[[Sample], str | None] | None,
) -> tuple[list[Sample], list[Fault]]:
    """At most `num_samples` samples of one data set, and what is wrong with the rows skipped.

    `rows` gives at most so many of its rows, in the order in which they are drawn.
    """
    source = data.source
    if group_by is not None and group_by not in data.columns:
        columns = ", ".join(data.columns)
        raise ShortVError(f"{source.path} has no column {group_by!r} to group by; there are: {columns}.")
    limit = max(num_samples // 4, _ALWAYS_ALLOWED)
    samples: list[Sample] = []
    faults: list[Fault] = []
    with reading(source):
        for row in rows(num_samples + limit + 1 + len(exclude)):
            try:
                sample = sample_of(row, source, data.place, group_by)
                if sample.digest in exclude:
                    continue
                if usable is not None and (reason := usable(sample)):
                    raise Unusable(Fault(reason))
            except Unusable as error:
                faults.append(error.fault)
                if len(faults) > limit:
                    raise _too_many(source, faults, len(samples)) from error
                continue
            samples.append(sample)
            if len(samples) == num_samples:
                break
    return samples, faults


def _too_many(source: Source, faults: list[Fault], usable: int) -> ShortVError:
    last = faults[-1]
    if not usable and last.column and {fault.reason for fault in faults} == {last.reason}:
        return ShortVError(f"{source.path}: {last.reason}.")
    problem = f"have no {last.lack}" if last.lack else "cannot be used"
    return ShortVError(
        f"{source.path}: {len(faults)} of {len(faults) + usable} samples {problem}; the last one: {last}."
    )
