"""Calibration samples: images or videos with a question each, from the Hub or from local files, drawn with a seed.

Everything is read through `datasets`, as a stream: 40 samples of a large data set cost the download of a few
parts of it, not of the whole. Data set scripts are never run. A data set is named by a text::

    DATA[:key=value[,key=value...]]

where DATA is a Hub id, a folder or a file (``.parquet``, ``.jsonl``, ``.json``) and the keys are

========  ==================================================================================================
config    configuration of the data set
split     split; without it the only one, else the first of test, validation, train
revision  branch, tag or commit on the Hub; without it the newest commit, which the record pins
image     column of the image, or of a list of images (default: image, images or file_name)
video     column of the video: a list of images, which are its frames, or a video file (default: video, where no
          column has images); with image besides, a row may have either or both
frames    most frames of a video, evenly spread (default: 8)
fps       how many frames of those lists make a second, for models that read the time
question  column of the question (default: question)
answer    column of the answer, or of a list whose first is taken (default: answer, where there is one)
prompt    one question for every image, instead of a column
suffix    a line to put after every question
images    configuration that holds the images under an ``id``, where they lie apart from the questions
image_id  column of the question that names its image there
========  ==================================================================================================

A comma inside a value is fine. A folder holds images, and beside them a ``metadata.jsonl`` (``file_name`` or,
for several images, ``file_names``; ``question``; optional ``answer``); without it every image gets
`DEFAULT_PROMPT`. Of a video, the ``metadata.jsonl`` names the file (``video_file_name``) or the images of its
frames (``video_file_names``).
``paper`` stands for the paper's mix.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ShortVError
from .video import MAX_FRAMES

if TYPE_CHECKING:
    pass

# The paper's calibration set (arXiv 2504.00502v2, Appendix B): 20 GQA and 20 Flickr30K samples. Splits and
# prompts are those of the tasks `gqa` and `flickr30k` of lmms-eval, which the reference code runs on.
PAPER = (
    "lmms-lab/GQA:config=testdev_balanced_instructions,split=testdev,images=testdev_balanced_images,image_id=imageId,"
    "suffix=Answer the question using a single word or phrase.",
    "lmms-lab/flickr30k:split=test,prompt=Provide a one-sentence caption for the provided image.",
)
DEFAULT_PROMPT = "Describe this image in one sentence."
DEFAULT_VIDEO_PROMPT = "Describe this video in one sentence."
_IMAGE_COLUMNS = ("image", "images", "file_name")
_VIDEO_COLUMN = "video"
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg")
FOLDER_READERS = {_IMAGE_SUFFIXES: "imagefolder", _VIDEO_SUFFIXES: "videofolder"}
_FILE_READERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json"}


@dataclass(frozen=True)
class Source:
    """One data set and how to read it: the parsed form of the text that the module describes."""

    path: str
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    image: str | None = None
    question: str | None = None
    answer: str | None = None
    prompt: str | None = None
    suffix: str | None = None
    images: str | None = None
    image_id: str | None = None
    video: str | None = None
    frames: int | None = None
    fps: float | None = None

    @classmethod
    def parse(cls, text: str) -> Source:
        """Parses ``DATA[:key=value[,key=value...]]``; a file or folder of exactly that name comes first.

        Raises:
            ShortVError: an unknown, repeated, empty or contradictory key.
        """
        if not text:
            raise ShortVError("the calibration data has no name; give a Hub id, a folder or a file.")
        if Path(text).expanduser().exists():
            return cls(text)
        path, *rest = re.split(r":(?=[a-z_]+=)", text, maxsplit=1)
        known = [field.name for field in fields(cls)][1:]
        options: dict[str, Any] = {}
        # A comma belongs to the value unless a key follows it.
        for option in re.split(r",(?=[a-z_]+=)", rest[0]) if rest else ():
            key, value = option.split("=", 1)
            if key not in known:
                raise ShortVError(
                    f"unknown key {key!r} in the calibration data {text!r}; there are: {', '.join(known)}."
                )
            if key in options or not value:
                raise ShortVError(
                    f"the key {key!r} in the calibration data {text!r} is repeated or empty; give it once."
                )
            options[key] = value
        for key, kind in (("frames", int), ("fps", float)):
            if key in options:
                options[key] = _positive(options[key], kind, f"the key {key!r} in the calibration data {text!r}")
        source = cls(path, **options)
        if source.question and source.prompt:
            raise ShortVError(f"the calibration data {text!r} has both question and prompt; give one of them.")
        besides = source.images and (source.image or source.video)
        if (source.images is None) != (source.image_id is None) or besides:
            raise ShortVError(f"the calibration data {text!r} needs images and image_id, or image, or video.")
        return source

    @property
    def local(self) -> Path | None:
        """The file or folder that is meant; None for a Hub id."""
        path = Path(self.path).expanduser()
        return path if path.exists() else None


def _positive(text: str, kind: Callable[[str], float], what: str) -> float:
    """A number greater than zero."""
    try:
        number = kind(text)
    except ValueError:
        number = 0
    if not 0 < number < float("inf"):
        raise ShortVError(f"{what} is {text!r}; give a number above zero.")
    return number


def reader_of(source: Source) -> str:
    """The `datasets` reader of local files.

    Raises:
        ShortVError: none reads them, or a folder without images, videos or tables.
    """
    path = source.local
    assert path is not None
    if path.is_file():
        if path.suffix.lower() not in _FILE_READERS:
            raise ShortVError(
                f"{source.path} is no calibration data; give a folder of images or videos or a .parquet or .jsonl "
                "file."
            )
        return _FILE_READERS[path.suffix.lower()]
    names = [name.lower() for _, _, files in os.walk(path) for name in files]
    for suffixes, reader in FOLDER_READERS.items():
        if any(name.endswith(suffixes) for name in names):
            return reader
    for suffix, reader in _FILE_READERS.items():
        if any(name.endswith(suffix) and not name.startswith("metadata.") for name in names):
            return reader
    raise ShortVError(
        f"{source.path} holds no images or videos; put some there, with a metadata.jsonl of their questions."
    )


def with_columns(source: Source, columns: list[str]) -> Source:
    """The source with its column names settled.

    Raises:
        ShortVError: a column that is not there.
    """
    image, video, frames = source.image, source.video, source.frames
    question, answer, prompt = source.question, source.answer, source.prompt
    if not (image or video or source.images):
        image = next((name for name in _IMAGE_COLUMNS if name in columns), None)
        if image is None and _VIDEO_COLUMN in columns:
            video = _VIDEO_COLUMN
        elif image is None:
            image = _IMAGE_COLUMNS[0]
    if video is not None:
        frames = frames or MAX_FRAMES
    elif frames or source.fps:
        raise ShortVError(f"{source.path}: frames and fps are for videos; name their column with video=COLUMN.")
    if question is None and prompt is None:
        if "question" not in columns and source.local and reader_of(source) in FOLDER_READERS.values():
            prompt = DEFAULT_VIDEO_PROMPT if image is None else DEFAULT_PROMPT
        else:
            question = "question"
    if answer is None and "answer" in columns:
        answer = "answer"
    wanted = {"image": image, "video": video, "image_id": source.image_id, "question": question, "answer": answer}
    for key, name in wanted.items():
        if name is not None and name not in columns:
            hint = ", or ask one question of all with prompt=TEXT" if key == "question" else ""
            raise ShortVError(
                f"{source.path} has no column {name!r}; there are: {', '.join(columns)}. "
                f"Name it as in {source.path}:{key}=COLUMN{hint}."
            )
    return replace(source, image=image, video=video, frames=frames, question=question, answer=answer, prompt=prompt)
