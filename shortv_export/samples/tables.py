"""The rows of a table's file. A row that cannot be read is a `BrokenRow`; the others are not lost with it.

Files are read in parts, so that few rows of a large file cost little memory and little download. A damaged file raises
whatever the reader of its format raises.
"""

from __future__ import annotations

import codecs
import csv
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import pyarrow

_CHUNK = 1 << 20
_MOST_LINE = 64 << 20
_BETWEEN = " \t\r\n,"  # items of a list
_MOST_MEMBER = 1 << 30
_ROWS = 64  # converted at a time


@dataclass(frozen=True)
class BrokenRow:
    """What stands for a row that cannot be read.

    Attributes:
        reason: why, as a predicate of the row.
    """

    reason: str


Row = dict[str, Any]
Rows = Iterator[Row | BrokenRow]


def _json(file: BinaryIO) -> Rows:
    """Objects, one per line or in one list."""
    start = file.read(_CHUNK).removeprefix(b"\xef\xbb\xbf")
    if start.lstrip().startswith(b"["):
        yield from map(_row, _items(file, start.lstrip()[1:]))
        return
    for line in _lines(file, start):
        if line.strip():
            try:
                yield _row(json.loads(line))
            except (ValueError, RecursionError):  # ValueError: also for text that is not UTF-8
                yield BrokenRow("it is not valid JSON")


def _row(item: Any) -> Row | BrokenRow:
    return item if isinstance(item, dict) else BrokenRow(f"it is {type(item).__name__}, not an object")


def _items(file: BinaryIO, start: bytes) -> Iterator[Any]:
    """The items of a JSON list, after its bracket."""
    decode = codecs.getincrementaldecoder("utf-8")(errors="surrogateescape").decode
    parse = json.JSONDecoder().raw_decode
    text, position, ended = decode(start), 0, False
    while True:
        while text[position : position + 1] in _BETWEEN and position < len(text):
            position += 1
        if text[position : position + 1] == "]":
            return
        try:
            item, end = parse(text, position)
        except ValueError:  # perhaps the item goes on in what was not read yet
            end = len(text)
        if end < len(text):
            yield item
            position = end
        elif ended or len(text) - position > _MOST_LINE:
            raise ValueError("its list is not valid JSON, or has an item that is too long")
        else:
            chunk = file.read(_CHUNK)
            text, position, ended = text[position:] + decode(chunk, final=not chunk), 0, not chunk


def _lines(file: BinaryIO, start: bytes) -> Iterator[bytes]:
    begun: list[bytes] = []  # parts of a line
    chunk = start
    while chunk:
        first, *more = chunk.split(b"\n")
        begun.append(first)
        if more:
            yield b"".join(begun)
            yield from more[:-1]
            begun = more[-1:]
        if sum(map(len, begun)) > _MOST_LINE:
            raise ValueError(f"it has a line of more than {_MOST_LINE:,} bytes")
        chunk = file.read(_CHUNK)
    yield b"".join(begun)


def _csv(file: BinaryIO, delimiter: str = ",") -> Rows:
    start = file.read(_CHUNK).removeprefix(b"\xef\xbb\xbf")
    # A byte that is not UTF-8 becomes a character that no text may have, so its row alone is refused later.
    text = (f"{line.decode(errors='surrogateescape')}\n" for line in _lines(file, start))
    reader = csv.DictReader(text, delimiter=delimiter)
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield BrokenRow(f"it is not valid CSV ({error})")
        else:
            yield {key: value for key, value in row.items() if key is not None}


def _tsv(file: BinaryIO) -> Rows:
    return _csv(file, "\t")


def _parquet(file: BinaryIO) -> Rows:
    import pyarrow.parquet

    # Threads would still read the file while the program ends.
    for batch in pyarrow.parquet.ParquetFile(file).iter_batches(_ROWS, use_threads=False):
        yield from _batch(batch)


def _arrow(file: BinaryIO) -> Rows:
    import pyarrow

    stream = file.read(6) != b"ARROW1"
    file.seek(0)
    if stream:
        batches: Any = pyarrow.ipc.open_stream(file)
    else:
        reader = pyarrow.ipc.open_file(file)
        batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
    for batch in batches:
        for start in range(0, batch.num_rows, _ROWS):
            yield from _batch(batch.slice(start, _ROWS))


def _batch(batch: pyarrow.RecordBatch) -> Rows:
    columns = list(zip(batch.schema.names, batch.columns, strict=True))
    for number in range(batch.num_rows):
        try:
            yield {name: column[number].as_py() for name, column in columns}
        except (ValueError, OverflowError) as error:  # such as a date beyond Python's, or text that is not UTF-8
            yield BrokenRow(f"it has a value that cannot be read ({type(error).__name__})")


def _webdataset(file: BinaryIO) -> Rows:
    """Files of an archive that differ in their suffixes only are one row, with the suffixes as columns."""
    key, row = None, Row()
    with tarfile.open(fileobj=file, mode="r|") as archive:
        for member in archive:
            folder, slash, name = member.name.rpartition("/")
            stem, dot, column = name.partition(".")
            if not (member.isfile() and stem and dot):
                continue
            if key != (folder, stem) and row:
                yield row
                row = Row()
            key = (folder, stem)
            row["__key__"] = f"{folder}{slash}{stem}"
            if (content := archive.extractfile(member)) and member.size <= _MOST_MEMBER:
                row[column.lower()] = _decoded(content.read(), column.lower())
    if row:
        yield row


def _decoded(content: bytes, column: str) -> Any:
    if not column.endswith(("txt", "text", "json", "cls")):
        return content
    text = content.decode(errors="surrogateescape")
    try:
        return json.loads(text) if column.endswith("json") else text
    except (ValueError, RecursionError):
        return None


TABLES: dict[str, dict[str, Callable[[BinaryIO], Rows]]] = {
    "parquet": dict.fromkeys((".parquet", ".geoparquet", ".gpq"), _parquet),
    "json": dict.fromkeys((".jsonl", ".json", ".ndjson"), _json),
    "csv": {".csv": _csv, ".tsv": _tsv},
    "arrow": {".arrow": _arrow},
    "webdataset": {".tar": _webdataset},
}
"""The readers of each format by suffix. The formats have the names that `datasets` gives them."""
