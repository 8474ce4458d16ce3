"""Draws samples from data sets, with a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from ..errors import ShortVError, one_line
from ..options import Samples
from .decode import Sample, sample_of
from .rows import DataSet, reading
from .source import PAPER, Source

LOCAL_FILES = "local files"
"""What a record has as ``"data"`` for files and folders, whose paths stay out of it."""


@dataclass(frozen=True)
class DrawnSamples:
    """Samples, and the record of what they are.

    Attributes:
        samples: in the order drawn.
        record: ``{"data", "sources", "seed", "num_samples", "num_images", "num_videos", "skipped", "digest",
            "sample_digests"}``. Each source has its repository and commit or its format, its configuration, split,
            keys (see `source`), and its numbers of samples and of skipped rows. No local paths.
    """

    samples: tuple[Sample, ...]
    record: dict[str, Any]


def draw_samples(
    asked: Samples, *, exclude: Collection[str] = (), allow_fewer: bool = False, group_by: str | None = None
) -> DrawnSamples:
    """Draws samples in random order. Up to a quarter as many unreadable rows are skipped and counted.

    Args:
        asked: the data (None: the paper's mix), number and seed. The same values give the same samples; a larger
            number gives those of the smaller one first, then more (in each data set of a mix).
        exclude: digests of samples that must not be drawn.
        allow_fewer: if the data has fewer samples, take them all.
        group_by: a column whose value becomes `Sample.group`.

    Raises:
        ShortVError: the data cannot be found or read, lacks a column, has no images and no videos, too few samples,
            or too many unreadable ones.
    """
    if asked.num_samples < 1:
        raise ShortVError(f"`num_samples` is {asked.num_samples}; ask for at least 1.")
    data = "paper" if asked.data is None else asked.data
    if data == "paper":
        # Half of each; the GQA half is the larger one of an odd number.
        shares = {PAPER[0]: asked.num_samples - asked.num_samples // 2, PAPER[1]: asked.num_samples // 2}
    else:
        shares = {data: asked.num_samples}
    draw = _Draw(asked.seed, frozenset(exclude), allow_fewer, group_by)
    samples: list[Sample] = []
    sources = []
    for text, share in shares.items():
        if share:
            drawn, record = draw(Source.parse(text), share)
            samples += drawn
            sources.append(record)
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


@dataclass(frozen=True)
class _Draw:
    """How to draw from each data set (see `draw_samples`)."""

    seed: int
    exclude: frozenset[str]
    allow_fewer: bool
    group_by: str | None

    def __call__(self, source: Source, num_samples: int) -> tuple[list[Sample], dict[str, Any]]:
        """Samples of one data set, and its record."""
        data = DataSet.open(source)
        if self.group_by is not None and self.group_by not in data.columns:
            columns = ", ".join(data.columns)
            raise ShortVError(f"{source.path} has no column {self.group_by!r} to group by; there are: {columns}.")
        samples, skipped = self._read(data, num_samples)
        if not samples or (len(samples) < num_samples and not self.allow_fewer):
            others = f" besides the {len(self.exclude)} that are set apart" if self.exclude else ""
            raise ShortVError(
                f"{source.path} has {len(samples)} usable samples{others} ({skipped} unreadable), fewer than the "
                f"{num_samples} asked for; lower `num_samples`, or give more data."
            )
        return samples, {**data.record, "num_samples": len(samples), "skipped": skipped}

    def _read(self, data: DataSet, num_samples: int) -> tuple[list[Sample], int]:
        """The samples, at most so many, and the number of unreadable rows."""
        source = data.source
        limit = num_samples // 4
        samples: list[Sample] = []
        skipped = 0
        with reading(source):
            for row in data.shuffled(self.seed, num_samples + limit + 1 + len(self.exclude)):
                try:
                    sample = sample_of(row, source, self.group_by)
                    if sample.digest not in self.exclude:
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
