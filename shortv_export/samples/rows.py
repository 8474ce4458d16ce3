"""Opens a data set at one commit, and streams its rows, shuffled with a seed."""

from __future__ import annotations

import itertools
import logging
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..errors import ShortVError, one_line
from .layout import FOLDERS, Layout
from .places import Folder, Place
from .repository import Repository
from .source import Source
from .tables import BrokenRow, Row, Rows

logger = logging.getLogger(__name__)

_SPLITS = ("test", "validation", "train")
_LOCAL_SPLIT = "train"  # the name that `datasets` has for rows of no split
# Rows in the shuffle buffer. It is filled first, so it is smaller where a row holds its image or video.
_BUFFER = 10_000
_BUFFER_OF_IMAGES = 256
_BUFFER_OF_VIDEOS = 32
_MOST_BYTES = 2 << 30  # of images and videos in the buffer
_WINDOW = 256  # rows among which those of other tasks are looked for
_OPEN_SHARDS = 10  # rows of so many come by turns
_ROWS_FOR_COLUMNS = 100
_RECORDED = ("image", "video", "frames", "fps", "question", "answer", "prompt", "suffix", "images", "image_id")


@dataclass(frozen=True)
class DataSet:
    """A data set that is open for reading.

    Attributes:
        source: with its columns filled in.
        place: where its files lie.
        split: the split's name.
        layout: which files hold the rows.
        columns: all columns of a row.
        buffer_size: rows in the shuffle buffer.
    """

    source: Source
    place: Place
    split: str
    layout: Layout
    columns: list[str]
    buffer_size: int

    @classmethod
    def open(cls, source: Source) -> DataSet:
        """Finds the commit, the split and the columns.

        Raises:
            ShortVError: the data cannot be found or read, is empty, or lacks the split or a column.
        """
        place, split, layout = _local(source) if source.local else _on_the_hub(source)
        with reading(source):
            first = list(itertools.islice(_in_order(place, layout, layout.shards), _ROWS_FOR_COLUMNS))
        rows = [row for row in first if not isinstance(row, BrokenRow)]
        if not rows:
            reasons = [f"its first row is broken: {row.reason}" for row in first if isinstance(row, BrokenRow)]
            raise ShortVError(f"the data {source.path} cannot be read: {[*reasons, 'it holds no samples'][0]}.")
        columns = list(dict.fromkeys(column for row in rows for column in row))
        source = source.with_columns(columns, may_lack_questions=bool(source.local) and layout.reader in FOLDERS)
        size = max(_BUFFER, len(layout.shards) if layout.reader in FOLDERS else 0)
        for column, smaller in ((source.image, _BUFFER_OF_IMAGES), (source.video, _BUFFER_OF_VIDEOS)):
            if column is not None and any(_bytes_in(row.get(column)) for row in rows):
                size = smaller
        return cls(source, place, split, layout, columns, size)

    def shuffled(self, seed: int, most: int, *, by_turns: str | None = None) -> Rows:
        """At most `most` rows in random order. Images that are stored apart come in the column "image".

        With `by_turns`, rows with different values in this column come by turns.
        """
        import numpy

        shards, readers, turn = list(self.layout.shards), 1, 1
        if self.layout.reader not in FOLDERS:  # of a folder, all shards are read into the buffer
            numpy.random.default_rng(seed).shuffle(shards)
            readers, turn = min(len(shards), _OPEN_SHARDS), self.buffer_size // _OPEN_SHARDS
        parts = numpy.array_split(numpy.arange(len(shards)), readers)
        streams = [_in_order(self.place, self.layout, [shards[number] for number in part]) for part in parts]
        every = _shuffled(_by_turns(streams, turn), seed, self.buffer_size)
        rows = itertools.islice(_stratified(every, by_turns) if by_turns else every, most)
        return self._joined(rows) if self.source.images else rows

    def _joined(self, rows: Rows) -> Rows:
        """Adds to each row its image from the configuration that holds the images."""
        source, key = self.source, str(self.source.image_id)
        assert isinstance(self.place, Repository)
        questions = list(rows)
        wanted = {_id(row, key) for row in questions} - {None}
        layout = _split(source, self.place, source.images, self.split)[1]
        found: dict[Any, Any] = {}
        for row in _in_order(self.place, layout, layout.shards):
            if isinstance(row, BrokenRow):
                continue
            if not {"id", "image"} <= row.keys():
                raise ShortVError(f"{source.path}: its configuration {source.images!r} has no columns id and image.")
            if (name := _id(row, "id")) in wanted:
                found[name] = row["image"]
                if len(found) == len(wanted):  # so the rest is not downloaded
                    break
        for row in questions:
            yield row if isinstance(row, BrokenRow) else {**row, "image": found.get(_id(row, key))}

    @property
    def record(self) -> dict[str, Any]:
        """What was read, without local paths."""
        source, place = self.source, self.place
        return {
            **(
                {"repo_id": source.path, "revision": place.commit}
                if isinstance(place, Repository)
                else {"format": self.layout.reader}
            ),
            "config": source.config,
            "split": self.split,
            **{key: value for key in _RECORDED if (value := getattr(source, key)) is not None},
        }


@contextmanager
def reading(source: Source) -> Iterator[None]:
    """Turns any exception of a reader into a `ShortVError`."""
    try:
        yield
    except ShortVError:
        raise
    except Exception as error:
        raise ShortVError(f"the data {source.path} cannot be read: {one_line(error)}") from error


def _local(source: Source) -> tuple[Place, str, Layout]:
    """All files of a folder, or one file."""
    path = source.local
    assert path is not None
    if path.is_dir():
        folder = Folder(path)
        layout = Layout.of(folder.names(), source.path)
        if layout.others:
            logger.info(
                "%s: %d files beside the %s are left out, such as %r; a table is read if it is given as the data",
                *(source.path, len(layout.others), layout.kind, layout.others[0]),
            )
        return folder, _LOCAL_SPLIT, layout
    return Folder(path.parent, given=path.name), _LOCAL_SPLIT, Layout.of_table(path.name, source.path)


def _on_the_hub(source: Source) -> tuple[Place, str, Layout]:
    repository = Repository.find(source)
    return repository, *_split(source, repository, source.config, source.split)


def _split(source: Source, repository: Repository, config: str | None, name: str | None) -> tuple[str, Layout]:
    """A split of a configuration, or the one that is usually measured on, and its files."""
    with reading(source):
        splits = repository.splits(config)
    name = name or next((name for name in _SPLITS if name in splits), next(iter(splits)))
    if name not in splits:
        raise ShortVError(f"{source.path} has no split {name!r}; there are: {', '.join(splits)}.")
    return name, Layout.of(splits[name].files, f"the split {name!r} of {source.path}", splits[name].reader)


def _in_order(place: Place, layout: Layout, shards: list[str]) -> Rows:
    return itertools.chain.from_iterable(layout.rows(place, shard) for shard in shards)


def _by_turns(streams: list[Rows], number: int) -> Iterator[list[Row | BrokenRow]]:
    """So many rows of each stream in turn, until all have ended."""
    while streams:
        for stream in list(streams):
            if rows := list(itertools.islice(stream, number)):
                yield rows
            else:
                streams.remove(stream)


def _stratified(rows: Rows, column: str) -> Rows:
    """The same rows, so that those with each value of a column come by turns, as far as the next `_WINDOW` rows go."""
    window: dict[str, deque[Row | BrokenRow]] = {}
    given: Counter[str] = Counter()
    held = 0
    for row in itertools.chain(rows, itertools.repeat(None)):
        if row is not None:
            value = "" if isinstance(row, BrokenRow) else str(row.get(column))
            window.setdefault(value, deque()).append(row)
            held += 1
            if held < _WINDOW:
                continue
        if not held:
            return
        # Of the values that wait, the one that was given least often; the first one of them that was seen.
        value = min((value for value, waiting in window.items() if waiting), key=lambda value: given[value])
        given[value] += 1
        held -= 1
        yield window[value].popleft()


def _shuffled(parts: Iterator[list[Row | BrokenRow]], seed: int, size: int) -> Rows:
    """Rows in random order, as `datasets` shuffles: when the buffer is full, about half of its rows leave."""
    import numpy

    rng = numpy.random.default_rng(seed)
    buffer: list[Row | BrokenRow] = []
    held = 0
    for rows in parts:
        buffer += rows
        held += _bytes_in(rows)
        if len(buffer) >= size or held > _MOST_BYTES:
            buffer = [buffer[number] for number in rng.permutation(len(buffer))]
            leaving = len(buffer) - min(size, len(buffer)) // 2
            yield from buffer[:leaving]
            buffer = buffer[leaving:]
            held = _bytes_in(buffer)
    yield from (buffer[number] for number in rng.permutation(len(buffer)))


def _id(row: Row | BrokenRow, column: str) -> str | int | None:
    """The id of an image, or None if there is none that an image can be found by."""
    value = None if isinstance(row, BrokenRow) else row.get(column)
    return value if isinstance(value, str | int) else None


def _bytes_in(value: Any, depth: int = 5) -> int:
    """The bytes of images and videos that rows or their cells hold; a path is none."""
    if isinstance(value, list | dict) and depth:
        items = value.values() if isinstance(value, dict) else value
        return sum(_bytes_in(item, depth - 1) for item in items)
    return len(value) if isinstance(value, bytes) else 0
