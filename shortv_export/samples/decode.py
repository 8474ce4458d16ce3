"""A row of a data set becomes a sample: images or videos, a question and perhaps an answer."""

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

JOINED = "image"  # the key that an image from another configuration gets in its row


@dataclass(frozen=True)
class Sample:
    """One calibration sample.

    Attributes:
        images: RGB; at least one, if there are no videos.
        question: the user's text, without placeholders.
        answer: of the data set, where it has one.
        digest: sha256 over the decoded pixels of every image and of every frame, and the question.
        group: the value of the column that results are grouped by, if one was asked for.
        videos: at least one, if there are no images.
    """

    images: tuple[Image.Image, ...]
    question: str
    answer: str | None
    digest: str
    group: str | None = None
    videos: tuple[Clip, ...] = ()


def sample_of(row: dict[str, Any], source: Source, token: str | None) -> Sample:
    """A sample of a row.

    Raises:
        OSError, ValueError: no image and no video in the row, or one that cannot be read.
        ShortVError: a column of the wrong kind.
    """
    images: tuple[Image.Image, ...] = ()
    videos: tuple[Clip, ...] = ()
    if source.image or source.images:
        column = source.image or JOINED
        cell = row[column]
        cells = cell if isinstance(cell, list) else [] if cell is None else [cell]
        images = tuple(_image(each, source, column, token) for each in cells)
    if source.video and row[source.video]:
        videos = (_video(row[source.video], source, token),)
    if not images and not videos:
        raise ValueError(f"the row has no {'video' if source.video else 'image'}")
    question = source.prompt if source.question is None else row[source.question]
    if not isinstance(question, str):
        kind = type(question).__name__
        raise ShortVError(
            f"{source.path}: its column {source.question!r} holds {kind}, not text; name another column."
        )
    if source.suffix:
        question = f"{question}\n{source.suffix}"
    answer = row[source.answer] if source.answer else None
    if isinstance(answer, list):
        answer = answer[0] if answer else None
    digest = hashlib.sha256()
    for image in images:
        digest.update(_pixels(image))
    for clip in videos:
        digest.update(f"video of {len(clip.frames)} frames at {clip.fps}:".encode())
        for frame in clip.frames:
            digest.update(_pixels(frame))
    digest.update(question.encode())
    return Sample(images, question, None if answer is None else str(answer), digest.hexdigest(), videos=videos)


def _pixels(image: Image.Image) -> bytes:
    return f"{image.width}x{image.height}:".encode() + image.tobytes()


def _image(value: Any, source: Source, column: str, token: str | None) -> Image.Image:
    """The image of a cell (see `_undecoded`).

    Raises:
        OSError, ValueError: nothing there, or nothing readable.
        ShortVError: the column holds something else.
    """
    from datasets import Image

    value = _undecoded(value, source, column, "image")
    return Image().decode_example(value, token_per_repo_id={source.path: token}).convert("RGB")


def _video(value: Any, source: Source, token: str | None) -> Clip:
    """The video of a cell: a list of images, its frames, or a file (see `_undecoded`).

    Raises:
        OSError, ValueError: nothing there, or nothing readable.
        ShortVError: the column holds something else, or it takes a package that is not installed.
    """
    from datasets import DownloadConfig
    from datasets.utils.file_utils import xopen

    assert source.video is not None
    assert source.frames is not None
    if isinstance(value, list):
        frames = [_image(value[number], source, source.video, token) for number in spread(len(value), source.frames)]
        return make_clip(frames, len(value), source.fps)
    if source.fps:
        raise ShortVError(f"{source.path}: its videos are files, which say their own fps; leave that key out.")
    value = _undecoded(value, source, source.video, "video")
    if value["bytes"] is not None:
        return read_clip(io.BytesIO(value["bytes"]), source.frames)
    with xopen(value["path"], "rb", download_config=DownloadConfig(token=token)) as file:
        return read_clip(file, source.frames)


def _undecoded(value: Any, source: Source, column: str, kind: str) -> dict[str, Any]:
    """A cell of images or videos as ``{"bytes", "path"}``, one of which is None.

    It may be that, or bytes, or (in local data) a path.

    Raises:
        ValueError: nothing there.
        ShortVError: the column holds something else.
    """
    local = source.local
    if value is None:
        raise ValueError(f"the row has no {kind}")
    if isinstance(value, bytes):
        value = {"bytes": value, "path": None}
    elif isinstance(value, str) and local is not None:
        folder = local if local.is_dir() else local.parent
        value = {"bytes": None, "path": str(folder / value)}
    if not isinstance(value, dict) or not {"bytes", "path"} <= value.keys():
        found = "text" if isinstance(value, str) else type(value).__name__
        raise ShortVError(f"{source.path}: its column {column!r} holds {found}, not {kind}s; name another column.")
    if value["bytes"] is None and value["path"] is None:
        raise ValueError(f"the row has no {kind}")
    if local is None and value["bytes"] is None and "://" not in value["path"]:
        raise ValueError(f"the row names a local file instead of holding its {kind}")
    return value


def has_bytes(value: Any) -> bool:
    """Whether an undecoded cell carries its image, and not just its path."""
    if isinstance(value, list):
        return any(has_bytes(item) for item in value)
    return isinstance(value, bytes) or (isinstance(value, dict) and value.get("bytes") is not None)
