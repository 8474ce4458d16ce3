"""How the files of a data set make up its rows: tables, or a folder of pictures or videos.

A folder's rows are those of its metadata files; each names pictures or videos beside it. Without a metadata file,
every picture is a row, or every video.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from ..errors import ShortVError, one_line
from .places import Place
from .tables import TABLES, BrokenRow, Row, Rows

_VIDEOS = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg")
FOLDERS = {
    "imagefolder": (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"),
        *(".avif", ".jp2", ".j2k", ".pbm", ".pgm", ".ppm", ".pnm"),
    ),
    "videofolder": _VIDEOS,
}
"""Suffixes of what a folder holds, by the names that `datasets` has for such folders."""
_ARCHIVES = (".zip", ".gz", ".tgz", ".rar", ".7z", ".zst")
_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_COLUMNS = {"file_name": ("image", "video"), "file_names": ("images", "videos")}


@dataclass(frozen=True)
class Layout:
    """Which files hold rows.

    Attributes:
        reader: a key of `FOLDERS` or `TABLES`.
        shards: the files that are read for rows, in order: tables, metadata files, or else pictures or videos.
        others: tables, archives, images or videos that are left out, as they are of another kind.
    """

    reader: str
    shards: list[str]
    others: list[str]

    @classmethod
    def of(cls, names: Sequence[str], what: str, reader: str | None = None) -> Layout:
        """Sorts out files.

        Args:
            names: the files.
            what: the data set, for errors.
            reader: what they are; by default, or if none is of this kind, what is found first: images, videos, tables.

        Raises:
            ShortVError: there are no images, videos or tables, or two metadata files in one folder.
        """
        metadata = [name for name in names if _is_metadata(name)]
        tables = [name for name in names if not _is_metadata(name)]
        found = {kind: _with_suffix(names, suffixes) for kind, suffixes in FOLDERS.items()}
        found |= {kind: _with_suffix(tables, suffixes) for kind, suffixes in TABLES.items()}
        if reader is None or not found.get(reader):
            reader = next((kind for kind, files in found.items() if files), "imagefolder")
        shards = found.get(reader, [])
        # Metadata may name both images and videos.
        named = {reader, *(FOLDERS if metadata and reader in FOLDERS else ())}
        others = [name for kind, files in found.items() if kind not in named for name in files]
        others += _with_suffix(names, _ARCHIVES)
        if reader in FOLDERS and metadata:
            shards = metadata if shards else []
            folders = [posixpath.dirname(name) for name in metadata]
            if len({*folders}) < len(folders):
                raise ShortVError(f"{what} has two metadata files in one folder ({', '.join(metadata)}); keep one.")
        if not shards:
            raise ShortVError(
                f"{what} holds no images or videos that can be read, and no table of them; give images with a "
                f"metadata.jsonl of their questions, or a file of {', '.join(TABLES)}; no archives."
            )
        return cls(reader, shards, others)

    @classmethod
    def of_table(cls, name: str, what: str) -> Layout:
        """A single file.

        Raises:
            ShortVError: it is no table.
        """
        for reader, suffixes in TABLES.items():
            if _with_suffix([name], suffixes):
                return cls(reader, [name], [])
        raise ShortVError(f"{what} is no data set; give a folder of images or videos, or a .parquet or .jsonl file.")

    @property
    def kind(self) -> str:
        """What the rows are, for messages."""
        return {"imagefolder": "images", "videofolder": "videos"}.get(self.reader, f"{self.reader} files")

    def rows(self, place: Place, shard: str) -> Rows:
        """The rows of one of the `shards`. Its pictures and videos are not read yet."""
        if self.reader in FOLDERS and not _is_metadata(shard):
            column = _COLUMNS["file_name"][self.reader == "videofolder"]
            return iter([{column: {"bytes": None, "path": place.prefix + shard}}])
        rows = _table(place, shard)
        return _with_files(rows, place.prefix + posixpath.dirname(shard)) if self.reader in FOLDERS else rows


def _is_metadata(name: str) -> bool:
    return posixpath.basename(name).lower() in _METADATA


def _with_suffix(names: Iterable[str], suffixes: Iterable[str]) -> list[str]:
    wanted = {*suffixes}
    return [name for name in names if PurePosixPath(name).suffix.lower() in wanted]


def _table(place: Place, name: str) -> Iterator[Row | BrokenRow]:
    suffix = PurePosixPath(name).suffix.lower()
    (read,) = (readers[suffix] for readers in TABLES.values() if suffix in readers)
    with place.open(name) as file:
        try:
            yield from read(file)
        except Exception as error:  # readers raise many kinds over damaged files
            raise ValueError(f"{name!r:.100}: {one_line(error)}") from error


def _with_files(rows: Rows, folder: str) -> Rows:
    """Turns names of files beside a metadata file, such as `file_name`, into columns of images and videos."""
    for row in rows:
        if isinstance(row, BrokenRow):
            yield row
            continue
        cells = Row()
        for key, value in row.items():
            kind = next((kind for kind in _COLUMNS if key == kind or key.endswith(f"_{kind}")), None)
            if kind is None:
                cells[key] = value
            elif key == kind:
                cells[_COLUMNS[kind][_is_video(value)]] = _cell(value, folder)
            else:
                cells[key.removesuffix(f"_{kind}")] = _cell(value, folder)
        yield cells if any(key.endswith((*_COLUMNS,)) for key in row) else BrokenRow("it has no `file_name`")


def _is_video(value: Any) -> bool:
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, str) and first.lower().endswith(_VIDEOS)


def _cell(value: Any, folder: str) -> Any:
    if isinstance(value, list):
        return [_cell(item, folder) for item in value]
    return {"bytes": None, "path": posixpath.join(folder, value)} if isinstance(value, str) else value
