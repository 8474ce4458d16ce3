"""Turns a row of a data set into a sample: images or videos, a question and perhaps an answer."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import ShortVError, one_line
from .pictures import MOST_BYTES, MOST_PIXELS, read_picture
from .places import Folder, Place
from .source import Source
from .tables import BrokenRow, Row
from .video import MOST_VIDEO_BYTES, Clip, make_clip, read_clip, spread

if TYPE_CHECKING:
    from PIL import Image

_MOST_PICTURES = 1024  # of a sample
_MOST_PIXELS_OF_A_SAMPLE = 4 * MOST_PIXELS


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


@dataclass(frozen=True)
class Fault:
    """Why a row gives no sample.

    Attributes:
        reason: such as ``"it does not exist"``.
        name: of the file that the reason is about, if any.
        lack: what the row has not, such as ``"readable image"``; None if the reason says it.
        column: whether the column may be the wrong one.
    """

    reason: str
    name: str = ""
    lack: str | None = None
    column: bool = False

    def __str__(self) -> str:
        return f"{self.reason} ({self.name!r:.100})" if self.name else self.reason


class Unusable(Exception):
    """A row gives no sample; others of its data set may."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault = fault


def sample_of(row: Row | BrokenRow, source: Source, place: Place, group_by: str | None = None) -> Sample:
    """Decodes a row. Its files are read from `place`. `group_by` names the column of `Sample.group`.

    Raises:
        Unusable: the row lacks something, or it cannot be read.
        ShortVError: the source is read in the wrong way; or PyAV is needed and not installed.
    """
    if isinstance(row, BrokenRow):
        raise Unusable(Fault(f"the row cannot be read: {row.reason}", lack="readable row"))
    images: tuple[Image.Image, ...] = ()
    videos: tuple[Clip, ...] = ()
    if source.image or source.images:
        column = source.image or "image"
        cell = row.get(column)
        cells = cell if isinstance(cell, list) else [] if cell is None else [cell]
        images = _pictures(cells, place, column, "readable image")
    if source.video and row.get(source.video):
        videos = (_video(row[source.video], source, place, source.video),)
    if not images and not videos:
        kind = "video" if source.video else "image"
        raise Unusable(Fault(f"the row has no {kind}", lack=f"readable {kind}"))
    question = source.prompt
    if source.question is not None:
        question = _text(row, source.question, "question")
        if not question or not question.strip():
            raise Unusable(Fault("the row has no question", lack="question"))
    assert question is not None
    if source.suffix:
        question = f"{question}\n{source.suffix}"
    answer = _text(row, source.answer, "answer") if source.answer else None
    group = _text(row, group_by, "group") if group_by is not None else None
    if group_by is not None and group is None:
        raise Unusable(Fault(f"the row has no {group_by!r:.60} to group by", lack="group"))
    return Sample(images, question, answer, _digest(images, videos, question), group, videos)


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


def _text(row: Row, column: str, role: str) -> str | None:
    """The text of a cell. Of a list of answers, the first counts. A number is an answer or a group, no question."""
    value = row.get(column)
    if role == "answer" and isinstance(value, list):
        value = value[0] if value else None
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if not isinstance(value, str) and (role == "question" or isinstance(value, bytes | dict | list)):
        _wrong_column(column, value, "text", role)
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Unusable(Fault(f"its column {column!r:.60} is not valid Unicode", lack=role)) from None
    return text


def _wrong_column(column: str, value: Any, wanted: str, lack: str) -> NoReturn:
    found = "text" if isinstance(value, str) else type(value).__name__
    reason = f"its column {column!r:.60} holds {found}, not {wanted}; name another column"
    raise Unusable(Fault(reason, lack=lack, column=True))


def _pictures(cells: list[Any], place: Place, column: str, lack: str) -> tuple[Image.Image, ...]:
    if len(cells) > _MOST_PICTURES:
        raise Unusable(Fault(f"the row has more than {_MOST_PICTURES} images", lack=lack))
    pictures: list[Image.Image] = []
    left = _MOST_PIXELS_OF_A_SAMPLE
    for cell in cells:
        with _medium(cell, place, column, "image", lack, MOST_BYTES) as file:
            pictures.append(read_picture(file.read(MOST_BYTES + 1)))
        left -= pictures[-1].width * pictures[-1].height
        if left < 0:
            limit = f"{_MOST_PIXELS_OF_A_SAMPLE:,} pixels, the limit of a sample"
            raise Unusable(Fault(f"its images have together more than {limit}", lack=lack))
    return tuple(pictures)


def _video(cell: Any, source: Source, place: Place, column: str) -> Clip:
    """The video of a cell, which holds a file or a list of images."""
    assert source.frames is not None
    lack = "readable video"
    if isinstance(cell, list):
        chosen = [cell[number] for number in spread(len(cell), source.frames)]
        frames = _pictures(chosen, place, column, lack)
        with _fault("", lack):
            return make_clip(frames, len(cell), source.fps)
    if source.fps:
        raise ShortVError(f"{source.path}: its videos are files, which say their own fps; leave that key out.")
    with _medium(cell, place, column, "video", lack, MOST_VIDEO_BYTES) as file:
        return read_clip(file, source.frames)


@contextmanager
def _medium(cell: Any, place: Place, column: str, kind: str, lack: str, most: int) -> Iterator[Any]:
    """The file that a cell holds or names. The cell is bytes, ``{"bytes", "path"}`` or, in local data, a name."""
    if cell is None or isinstance(cell, bytes):
        cell = {"bytes": cell, "path": None}
    elif isinstance(cell, str) and isinstance(place, Folder):
        cell = {"bytes": None, "path": cell}
    if not isinstance(cell, dict) or not {"bytes", "path"} <= cell.keys():
        _wrong_column(column, cell, f"{kind}s", lack)
    content, name = cell["bytes"], cell["path"]
    if not isinstance(content, bytes | None) or not isinstance(name, str | None):
        _wrong_column(column, content or name, f"{kind}s", lack)
    with _fault(name or "", lack):
        if content is not None:
            with io.BytesIO(content) as file:
                yield file
        elif name is None:
            raise ValueError(f"the row has no {kind}")
        elif not name.startswith(place.prefix):
            raise ValueError(f"the row names a local file instead of holding its {kind}")
        else:
            with place.named(name.removeprefix(place.prefix), most) as found:
                yield found


@contextmanager
def _fault(name: str, lack: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError) as error:
        raise Unusable(Fault(one_line(error), name, lack)) from error
