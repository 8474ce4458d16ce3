"""Samples are drawn from a data set, with a seed."""

from __future__ import annotations

import glob
import hashlib
import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ShortVError, one_line
from ..hub import hub_error
from .decode import JOINED, Sample, has_bytes, sample_of
from .source import FOLDER_READERS, PAPER, Source, reader_of, with_columns

if TYPE_CHECKING:
    from datasets import IterableDataset

_SPLITS = ("test", "validation", "train")
# Rows to draw from. A row that carries its image costs a download, one with a path or an id next to nothing.
_BUFFER = 10_000
_BUFFER_OF_IMAGES = 256
_BUFFER_OF_VIDEOS = 32


@dataclass(frozen=True)
class Calibration:
    """Samples, and the record of what they are.

    Attributes:
        samples: in the order drawn.
        record: ``{"data", "sources", "seed", "num_samples", "num_images", "num_videos", "skipped", "digest",
            "sample_digests"}``; a source has its repository, commit, configuration, split and columns, and of its
            videos the most frames that were taken. Local paths stay out of it.
    """

    samples: tuple[Sample, ...]
    record: dict[str, Any]


def load_calibration(
    data: str | Path,
    *,
    num_samples: int = 40,
    seed: int = 0,
    exclude: Collection[str] = (),
    allow_fewer: bool = False,
    group_by: str | None = None,
    token: str | None = None,
) -> Calibration:
    """Draws calibration samples.

    Args:
        data: ``"paper"``, or a data set as the module describes.
        num_samples: how many.
        seed: of the draw. The same data, seed and number give the same samples, and a larger number those and more.
        exclude: digests of samples that are not to be drawn, as they serve for something else.
        allow_fewer: where the data has fewer samples, take them all.
        group_by: a column to carry along with each sample.
        token: Hub access token; None takes the one that is logged in.

    Raises:
        ShortVError: the data cannot be found or read, lacks a column, holds neither images nor videos or too few
            samples, or has more unreadable ones than a quarter of those asked for; fewer are skipped and counted.
    """
    if num_samples < 1:
        raise ShortVError(f"the number of calibration samples is {num_samples}; ask for at least 1.")
    if data == "paper":
        # Half of each; the GQA half is the larger one of an odd number.
        shares = [(PAPER[0], num_samples - num_samples // 2), (PAPER[1], num_samples // 2)]
    else:
        shares = [(str(data), num_samples)]
    samples: list[Sample] = []
    sources = []
    for text, share in shares:
        if share:
            drawn, record = _draw(Source.parse(text), share, seed, frozenset(exclude), allow_fewer, group_by, token)
            samples += drawn
            sources.append(record)
    local = "repo_id" not in sources[0]
    digests = [sample.digest for sample in samples]
    return Calibration(
        tuple(samples),
        {
            "data": "local files" if local else str(data),
            "sources": sources,
            "seed": seed,
            "num_samples": len(samples),
            "num_images": sum(len(sample.images) for sample in samples),
            "num_videos": sum(len(sample.videos) for sample in samples),
            "skipped": sum(source["skipped"] for source in sources),
            "digest": hashlib.sha256("".join(digests).encode()).hexdigest(),
            "sample_digests": digests,
        },
    )


def _draw(
    source: Source,
    num_samples: int,
    seed: int,
    exclude: Collection[str],
    allow_fewer: bool,
    group_by: str | None,
    token: str | None,
) -> tuple[list[Sample], dict[str, Any]]:
    """Samples of one data set, and the record of it."""
    revision = None if source.local else _pin(source, token)
    dataset, split = _open(source, source.config, revision, token)
    try:
        first = next(iter(dataset), None)
    except Exception as error:  # readers of many formats
        raise unreadable(source, error) from error
    if first is None:
        raise ShortVError(f"{source.path} holds no samples in its split {split!r}.")
    columns = list(dataset.features or first)
    source = with_columns(source, columns)
    if group_by is not None and group_by not in columns:
        raise ShortVError(f"{source.path} has no column {group_by!r} to group by; there are: {', '.join(columns)}.")
    buffer = _BUFFER
    for column, smaller in ((source.image, _BUFFER_OF_IMAGES), (source.video, _BUFFER_OF_VIDEOS)):
        if column is not None and has_bytes(first[column]):
            buffer = smaller
    shuffled = dataset.shuffle(seed=seed, buffer_size=buffer)

    limit = num_samples // 4
    rows = itertools.islice(shuffled, num_samples + limit + 1 + len(exclude))
    samples: list[Sample] = []
    skipped = 0
    try:
        for row in _with_images(rows, source, split, revision, token):
            try:
                sample = sample_of(row, source, token)
                if group_by is not None:
                    sample = replace(sample, group=str(row[group_by]))
                if sample.digest not in exclude:
                    samples.append(sample)
            except (OSError, ValueError, SyntaxError) as error:  # what PIL raises over damaged files
                skipped += 1
                if skipped > limit:
                    raise ShortVError(
                        f"{source.path}: {skipped} of {skipped + len(samples)} samples have no readable "
                        f"{'video' if source.video else 'image'}; the last one: {one_line(error)}"
                    ) from error
            if len(samples) == num_samples:
                break
    except ShortVError:
        raise
    except Exception as error:  # readers of many formats
        raise unreadable(source, error) from error
    if not samples or (len(samples) < num_samples and not allow_fewer):
        others = f" besides the {len(exclude)} that are set apart" if exclude else ""
        raise ShortVError(
            f"{source.path} has {len(samples)} usable samples{others} ({skipped} unreadable), fewer than the "
            f"{num_samples} asked for; ask for fewer (--num-samples), or give more data."
        )
    record = {
        **({"repo_id": source.path, "revision": revision} if revision else {"format": reader_of(source)}),
        "config": source.config,
        "split": split,
        **{key: value for key in _RECORDED if (value := getattr(source, key)) is not None},
        "num_samples": len(samples),
        "skipped": skipped,
    }
    return samples, record


_RECORDED = ("image", "video", "frames", "fps", "question", "answer", "prompt", "suffix", "images", "image_id")


def _pin(source: Source, token: str | None) -> str:
    """The commit of a data set on the Hub."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, HTTPError

    what = f"data set {source.path}" + (f" at revision {source.revision}" if source.revision else "")
    if source.path[0] in "./~":
        raise ShortVError(f"there is no file or folder {source.path!r} to calibrate on.")
    try:
        return str(HfApi(token=token).dataset_info(source.path, revision=source.revision).sha)
    except HFValidationError:
        raise ShortVError(f"{source.path!r} is neither a file or folder here nor a Hub id of a data set.") from None
    except (HTTPError, OSError) as error:
        raise hub_error(error, what) from error


def _open(
    source: Source, config: str | None, revision: str | None, token: str | None, split: str | None = None
) -> tuple[IterableDataset, str]:
    """A stream of undecoded rows, and the name of its split."""
    from datasets import load_dataset

    split = split or source.split
    try:
        if (local := source.local) is None:
            splits = load_dataset(source.path, config, revision=revision, streaming=True, token=token)
        elif (reader := reader_of(source)) in FOLDER_READERS.values():
            splits = load_dataset(reader, data_dir=glob.escape(str(local)), streaming=True, drop_labels=True)
        elif local.is_dir():
            splits = load_dataset(reader, data_dir=glob.escape(str(local)), streaming=True)
        else:
            splits = load_dataset(reader, data_files=glob.escape(str(local)), streaming=True)
    except ShortVError:
        raise
    except Exception as error:  # load_dataset raises many kinds
        raise unreadable(source, error) from error
    if split is None:
        split = next((name for name in _SPLITS if name in splits), next(iter(splits)))
    if split not in splits:
        raise ShortVError(f"{source.path} has no split {split!r}; there are: {', '.join(splits)}.")
    dataset = splits[split]
    # Undecoded, so that a damaged image is one bad row and not the end of the stream.
    return dataset.decode(False) if dataset.features else dataset, str(split)


def _with_images(
    rows: Iterator[dict[str, Any]], source: Source, split: str, revision: str | None, token: str | None
) -> Iterator[dict[str, Any]]:
    """The rows, each with its image; read from the configuration of the images where they lie apart.

    That configuration is read until every image wanted has been seen, in the worst case to its end.
    """
    if source.images is None or source.image_id is None:
        yield from rows
        return
    questions = list(rows)
    wanted = {row[source.image_id] for row in questions}
    dataset, _ = _open(source, source.images, revision, token, split)
    found: dict[Any, Any] = {}
    for row in dataset:
        if not {"id", "image"} <= row.keys():
            raise ShortVError(f"{source.path}: its configuration {source.images!r} has no columns id and image.")
        if row["id"] in wanted:
            found[row["id"]] = row["image"]
            if len(found) == len(wanted):
                break
    for row in questions:
        yield {**row, JOINED: found.get(row[source.image_id])}


def unreadable(source: Source, error: Exception) -> ShortVError:
    return ShortVError(f"the calibration data {source.path} cannot be read: {one_line(error)}")
