"""Draws samples from data sets, with a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from ..errors import ShortVError, one_line
from ..options import Samples
from .decode import Sample, sample_of
from .rows import DataSet, reading
from .source import PAPER, Source

LOCAL_FILES = "local files"
"""Stands in a record as ``"data"`` for files and folders, as records hold no local paths."""


@dataclass(frozen=True)
class DrawnSamples:
    """Samples in the order drawn, and a record of what they are.

    Attributes:
        record: ``{"data", "sources", "seed", "num_samples", "num_images", "num_videos", "skipped", "digest",
            "sample_digests"}``. Each source has its repository and commit or its format, its configuration, split,
            keys (see `source`), and its numbers of samples and of skipped rows. No local paths.
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
) -> DrawnSamples:
    """Draws samples in random order. Skips and counts unreadable rows, at most a quarter of the number asked for.

    Args:
        asked: the data (None: the paper's mix), number and seed. The same values give the same samples; a larger
            number gives those of the smaller one first, then more (in each data set of a mix).
        exclude: digests of samples that must not be drawn.
        allow_fewer: if the data has fewer samples, take them all.
        group_by: a column whose value becomes `Sample.group`.
        usable: asked for every sample; a reason that it returns makes the sample an unreadable one.

    Raises:
        ShortVError: the data cannot be found or read, lacks a column, has no images and no videos, too few samples,
            or too many unreadable ones.
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
        drawn, skipped = _draw(data_set, share, asked.seed, exclude, group_by, usable)
        if not drawn or (len(drawn) < share and not allow_fewer):
            others = f" besides the {len(exclude)} that are set apart" if exclude else ""
            raise ShortVError(
                f"{data_set.source.path} has {len(drawn)} usable samples{others} ({skipped} unreadable), fewer than "
                f"the {share} asked for; lower `num_samples`, or give more data."
            )
        samples += drawn
        sources.append({**data_set.record, "num_samples": len(drawn), "skipped": skipped})
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
    num_samples: int,
    seed: int,
    exclude: Collection[str],
    group_by: str | None,
    usable: Callable[[Sample], str | None] | None,
) -> tuple[list[Sample], int]:
    """At most `num_samples` samples of one data set, and the number of unreadable rows."""
    source = data.source
    if group_by is not None and group_by not in data.columns:
        columns = ", ".join(data.columns)
        raise ShortVError(f"{source.path} has no column {group_by!r} to group by; there are: {columns}.")
    limit = num_samples // 4
    samples: list[Sample] = []
    skipped = 0
    with reading(source):
        for row in data.shuffled(seed, num_samples + limit + 1 + len(exclude)):
            try:
                sample = sample_of(row, source, group_by)
                if sample.digest in exclude:
                    continue
                if usable is not None and (reason := usable(sample)) is not None:
                    raise ValueError(reason)
                samples.append(sample)
            except (OSError, ValueError, SyntaxError) as error:  # PIL raises these for damaged files
                skipped += 1
                if skipped > limit:
                    raise ShortVError(
                        f"{source.path}: {skipped} of {skipped + len(samples)} samples have no readable "
                        f"{'video' if source.video else 'image'}; the last one: {one_line(error)}"
                    ) from error
            if len(samples) == num_samples:
                break
    return samples, skipped
