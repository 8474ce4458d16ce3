"""Turns a row of a data set into a sample: images or videos, a question and perhaps an answer."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ShortVError
from .source import Source
from .video import Clip, make_clip, read_clip, spread

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Sample:
    """What a model is shown and asked: at least one image or video, and a question.

    Attributes:
        images: RGB.
        question: the user's text.
        answer: of the data set; None if it has none.
        digest: sha256 of the question and the pixels of all images and frames.
        group: value of the column that results are grouped by, if any.
        videos: as chosen frames.
    """

    images: tuple[Image.Image, ...]
    question: str
    answer: str | None
    digest: str
    group: str | None = None
    videos: tuple[Clip, ...] = ()


def sample_of(row: dict[str, Any], source: Source, group_by: str | None = None) -> Sample:
    """Decodes a row. `group_by` names the column of `Sample.group`.

    Raises:
        OSError, ValueError, SyntaxError: the row has no image and no video, or one that cannot be read.
        ShortVError: a column holds something else; or PyAV is needed and not installed.
    """
    images: tuple[Image.Image, ...] = ()
    videos: tuple[Clip, ...] = ()
    if source.image or source.images:
        column = source.image or "image"
        cell = row[column]
        cells = cell if isinstance(cell, list) else [] if cell is None else [cell]
        images = tuple(_image(each, source, column) for each in cells)
    if source.video and row[source.video]:
        videos = (_video(row[source.video], source, source.video),)
    if not images and not videos:
        raise ValueError(f"the row has no {'video' if source.video else 'image'}")
    question = source.prompt if source.question is None else row[source.question]
    if not isinstance(question, str):
        found = type(question).__name__
        raise ShortVError(
            f"{source.path}: its column {source.question!r} holds {found}, not text; name another column."
        )
    if source.suffix:
        question = f"{question}\n{source.suffix}"
    answer = row[source.answer] if source.answer else None
    if isinstance(answer, list):
        answer = answer[0] if answer else None
    return Sample(
        images,
        question,
        None if answer is None else str(answer),
        _digest(images, videos, question),
        None if group_by is None else str(row[group_by]),
        videos,
    )


def _digest(images: tuple[Image.Image, ...], videos: tuple[Clip, ...], question: str) -> str:
    digest = hashlib.sha256()

    def add(images: tuple[Image.Image, ...]) -> None:
        for image in images:
            digest.update(f"{image.width}x{image.height}:".encode() + image.tobytes())

    add(images)
    for clip in videos:
        digest.update(f"video of {len(clip.frames)} frames at {clip.fps}:".encode())
        add(clip.frames)
    digest.update(question.encode())
    return digest.hexdigest()


def _image(cell: Any, source: Source, column: str) -> Image.Image:
    from datasets import Image

    return Image().decode_example(_undecoded(cell, source, column, "image")).convert("RGB")


def _video(cell: Any, source: Source, column: str) -> Clip:
    """The video of a cell, which holds a file or a list of images."""
    from datasets.utils.file_utils import xopen

    assert source.frames is not None
    if isinstance(cell, list):
        frames = [_image(cell[number], source, column) for number in spread(len(cell), source.frames)]
        return make_clip(frames, len(cell), source.fps)
    if source.fps:
        raise ShortVError(f"{source.path}: its videos are files, which say their own fps; leave that key out.")
    value = _undecoded(cell, source, column, "video")
    if value["bytes"] is not None:
        return read_clip(io.BytesIO(value["bytes"]), source.frames)
    with xopen(value["path"], "rb") as file:
        return read_clip(file, source.frames)


def _undecoded(cell: Any, source: Source, column: str, kind: str) -> dict[str, Any]:
    """A cell as ``{"bytes", "path"}``, one of them None. The cell may also be bytes or, in local data, a path."""
    local = source.local
    if cell is None or isinstance(cell, bytes):
        cell = {"bytes": cell, "path": None}
    elif isinstance(cell, str) and local is not None:
        folder = local if local.is_dir() else local.parent
        cell = {"bytes": None, "path": str(folder / cell)}
    if not isinstance(cell, dict) or not {"bytes", "path"} <= cell.keys():
        found = "text" if isinstance(cell, str) else type(cell).__name__
        raise ShortVError(f"{source.path}: its column {column!r} holds {found}, not {kind}s; name another column.")
    if cell["bytes"] is None and cell["path"] is None:
        raise ValueError(f"the row has no {kind}")
    # Data of the Hub must not open files of this machine.
    if local is None and cell["bytes"] is None and "://" not in cell["path"]:
        raise ValueError(f"the row names a local file instead of holding its {kind}")
    return cell
