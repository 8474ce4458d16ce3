"""Opens a data set at one commit, and streams its rows, shuffled with a seed."""

from __future__ import annotations

import glob
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import ShortVError, one_line
from ..hub import hub_error
from .source import FOLDER_READERS, Source

if TYPE_CHECKING:
    from datasets import IterableDataset

_SPLITS = ("test", "validation", "train")
# Rows in the shuffle buffer. It is filled first, so it is smaller where a row holds its image or video.
_BUFFER = 10_000
_BUFFER_OF_IMAGES = 256
_BUFFER_OF_VIDEOS = 32
_RECORDED = ("image", "video", "frames", "fps", "question", "answer", "prompt", "suffix", "images", "image_id")


@dataclass(frozen=True)
class DataSet:
    """A data set that is open for reading.

    Attributes:
        source: with its columns filled in.
        revision: commit on the Hub; None for local files.
        columns: all columns of a row.
        stream: rows in their own order. Images and videos are not decoded, so that a damaged one ends only its row.
        buffer_size: rows in the shuffle buffer.
    """

    source: Source
    revision: str | None
    split: str
    columns: list[str]
    stream: IterableDataset
    buffer_size: int

    @classmethod
    def open(cls, source: Source) -> DataSet:
        """Finds the commit, the split and the columns.

        Raises:
            ShortVError: the data cannot be found or read, is empty, or lacks the split or a column.
        """
        revision = None if source.local else _commit(source)
        split, stream = _open_split(source, revision)
        with reading(source):
            first = next(iter(stream), None)
        if first is None:
            raise ShortVError(f"{source.path} holds no samples in its split {split!r}.")
        columns = list(stream.features or first)
        source = source.with_columns(columns)
        size = _BUFFER
        for column, smaller in ((source.image, _BUFFER_OF_IMAGES), (source.video, _BUFFER_OF_VIDEOS)):
            if column is not None and _holds_bytes(first[column]):
                size = smaller
        return cls(source, revision, split, columns, stream, size)

    def shuffled(self, seed: int, most: int) -> Iterator[dict[str, Any]]:
        """At most `most` rows in random order. Images that are stored apart come in the column "image"."""
        rows = itertools.islice(self.stream.shuffle(seed=seed, buffer_size=self.buffer_size), most)
        return self._joined(rows) if self.source.images else rows

    def _joined(self, rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Adds to each row its image from the configuration that holds the images."""
        source = self.source
        assert source.image_id is not None
        questions = list(rows)
        wanted = {row[source.image_id] for row in questions}
        _, stream = _open_split(replace(source, config=source.images, split=self.split), self.revision)
        found: dict[Any, Any] = {}
        for row in stream:
            if not {"id", "image"} <= row.keys():
                raise ShortVError(f"{source.path}: its configuration {source.images!r} has no columns id and image.")
            if row["id"] in wanted:
                found[row["id"]] = row["image"]
                if len(found) == len(wanted):  # so the rest is not downloaded
                    break
        for row in questions:
            yield {**row, "image": found.get(row[source.image_id])}

    @property
    def record(self) -> dict[str, Any]:
        """What was read, without local paths."""
        source = self.source
        return {
            **({"repo_id": source.path, "revision": self.revision} if self.revision else {"format": source.reader}),
            "config": source.config,
            "split": self.split,
            **{key: value for key in _RECORDED if (value := getattr(source, key)) is not None},
        }


@contextmanager
def reading(source: Source) -> Iterator[None]:
    """Turns any exception of a reader of `datasets` into a `ShortVError`."""
    try:
        yield
    except ShortVError:
        raise
    except Exception as error:
        raise ShortVError(f"the data {source.path} cannot be read: {one_line(error)}") from error


def _commit(source: Source) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, HTTPError

    if source.path[0] in "./~":
        raise ShortVError(f"there is no file or folder {source.path!r}; give one that exists, or a Hub id.")
    what = f"data set {source.path}" + (f" at revision {source.revision}" if source.revision else "")
    try:
        return str(HfApi().dataset_info(source.path, revision=source.revision).sha)
    except HFValidationError:
        raise ShortVError(f"{source.path!r} is neither a file or folder here nor a Hub id of a data set.") from None
    except (HTTPError, OSError) as error:
        raise hub_error(error, what) from error


def _open_split(source: Source, revision: str | None) -> tuple[str, IterableDataset]:
    """The split's name and a stream of its undecoded rows."""
    from datasets import load_dataset

    with reading(source):
        if (local := source.local) is None:
            splits = load_dataset(source.path, source.config, revision=revision, streaming=True)
        else:
            kind = "data_dir" if local.is_dir() else "data_files"
            files: dict[str, Any] = {kind: glob.escape(str(local))}
            if (reader := source.reader) in FOLDER_READERS:
                files["drop_labels"] = True  # else the names of subfolders become a column
            splits = load_dataset(reader, streaming=True, **files)
    split = source.split or next((name for name in _SPLITS if name in splits), next(iter(splits)))
    if split not in splits:
        raise ShortVError(f"{source.path} has no split {split!r}; there are: {', '.join(splits)}.")
    stream = splits[split]
    return str(split), stream.decode(False) if stream.features else stream


def _holds_bytes(cell: Any) -> bool:
    """Whether an undecoded cell holds its image or video itself, not a path."""
    if isinstance(cell, list):
        return any(_holds_bytes(item) for item in cell)
    return isinstance(cell, bytes) or (isinstance(cell, dict) and cell.get("bytes") is not None)
