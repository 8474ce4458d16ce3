"""What names a data set: a text, parsed into a `Source`.

A data set is on the Hub or in local files. It is read through `datasets` as a stream: 40 samples of a large data set
cost the download of a few parts of it, not of the whole. Scripts of data sets are never run. The text has the form ::

    DATA[:key=value[,key=value...]]

DATA is a Hub id, a folder or a file (``.parquet``, ``.jsonl``, ``.json``). Every key is optional; a value may hold
commas:

========  ==================================================================================================
config    configuration of the data set
split     split (default: test, else validation, else train, else the first)
revision  branch, tag or commit on the Hub (default: the newest commit); the record holds the commit
image     column of the image, or of a list of images (default: image, images or file_name)
video     column of the video: a video file, or a list of images, its frames (default: video, where no column
          has images). Given together with image, a row may have either or both
frames    most frames of a video, evenly spread (default: 8)
fps       frames per second of a video that is a list of images, for models that read the time
question  column of the question (default: question)
answer    column of the answer, or of a list whose first item is taken (default: answer, if there is one)
prompt    one question for all samples, instead of a column
suffix    a line to put after every question
images    configuration with the columns id and image, if images are stored apart from the questions
image_id  column of the question's image id there
========  ==================================================================================================

A folder holds images or videos, and a ``metadata.jsonl`` with one object per sample: ``file_name`` (several images:
``file_names``; a video: ``video_file_name``; the frames of a video: ``video_file_names``), ``question`` and, optional,
``answer``. Without questions, every sample gets `DEFAULT_PROMPT` or `DEFAULT_VIDEO_PROMPT`.

The text ``paper`` stands for the paper's mix, `PAPER`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..errors import ShortVError
from .video import MAX_FRAMES

# The paper's samples (arXiv 2504.00502v2, Appendix B): 20 of GQA and 20 of Flickr30K. Splits and prompts are those of
# the tasks `gqa` and `flickr30k` of lmms-eval, which the reference code runs on.
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
    """A data set and how to read it. The fields after `path` are the keys that the module describes."""

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
        """Parses ``DATA[:key=value[,key=value...]]``; a file or folder of exactly that name is preferred.

        Raises:
            ShortVError: an unknown, repeated, empty or contradictory key.
        """
        if not text:
            raise ShortVError("the data has no name; give a Hub id, a folder or a file.")
        if Path(text).expanduser().exists():
            return cls(text)
        path, *rest = re.split(r":(?=[a-z_]+=)", text, maxsplit=1)
        known = [field.name for field in fields(cls)][1:]
        options: dict[str, Any] = {}
        # A comma belongs to the value unless a key follows it.
        for option in re.split(r",(?=[a-z_]+=)", rest[0]) if rest else ():
            key, value = option.split("=", 1)
            if key not in known:
                raise ShortVError(f"unknown key {key!r} in the data {text!r}; there are: {', '.join(known)}.")
            if key in options or not value:
                raise ShortVError(f"the key {key!r} in the data {text!r} is repeated or empty; give it once.")
            options[key] = value
        for key, kind in (("frames", int), ("fps", float)):
            if key in options:
                options[key] = _positive(options[key], kind, f"the key {key!r} in the data {text!r}")
        source = cls(path, **options)
        if source.question and source.prompt:
            raise ShortVError(f"the data {text!r} has both question and prompt; give one of them.")
        besides = source.images and (source.image or source.video)
        if (source.images is None) != (source.image_id is None) or besides:
            raise ShortVError(f"the data {text!r} needs images and image_id, or image, or video.")
        return source

    @property
    def local(self) -> Path | None:
        """The file or folder; None for a Hub id."""
        path = Path(self.path).expanduser()
        return path if path.exists() else None

    @property
    def reader(self) -> str | None:
        """The `datasets` reader of local files; None for a Hub id.

        Raises:
            ShortVError: a file of another kind, or a folder without images, videos or tables.
        """
        if (path := self.local) is None:
            return None
        if path.is_file():
            if path.suffix.lower() not in _FILE_READERS:
                raise ShortVError(
                    f"{self.path} is no data set; give a folder of images or videos, or a .parquet or .jsonl file."
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
            f"{self.path} holds no images or videos; put some there, with a metadata.jsonl of their questions."
        )

    @property
    def image_key(self) -> str:
        """Where a row has its image, or a list of images: its column, or "image" if images are stored apart."""
        return self.image or "image"

    def with_columns(self, columns: list[str]) -> Source:
        """This source with its defaults filled in, for a data set with these columns.

        Raises:
            ShortVError: a column is missing.
        """
        image, video, frames = self.image, self.video, self.frames
        question, answer, prompt = self.question, self.answer, self.prompt
        if not (image or video or self.images):
            image = next((name for name in _IMAGE_COLUMNS if name in columns), None)
            if image is None and _VIDEO_COLUMN in columns:
                video = _VIDEO_COLUMN
            elif image is None:
                image = _IMAGE_COLUMNS[0]
        if video is not None:
            frames = frames or MAX_FRAMES
        elif frames or self.fps:
            raise ShortVError(f"{self.path}: frames and fps are for videos; name their column with video=COLUMN.")
        if question is None and prompt is None:
            if "question" not in columns and self.reader in FOLDER_READERS.values():
                prompt = DEFAULT_VIDEO_PROMPT if image is None else DEFAULT_PROMPT
            else:
                question = "question"
        if answer is None and "answer" in columns:
            answer = "answer"
        wanted = {"image": image, "video": video, "image_id": self.image_id, "question": question, "answer": answer}
        for key, name in wanted.items():
            if name is not None and name not in columns:
                hint = ", or ask one question of all with prompt=TEXT" if key == "question" else ""
                raise ShortVError(
                    f"{self.path} has no column {name!r}; there are: {', '.join(columns)}. "
                    f"Name it as in {self.path}:{key}=COLUMN{hint}."
                )
        return replace(self, image=image, video=video, frames=frames, question=question, answer=answer, prompt=prompt)


def _positive(text: str, kind: Callable[[str], float], what: str) -> float:
    """The number above zero that the text holds."""
    try:
        number = kind(text)
    except ValueError:
        number = 0
    if not 0 < number < float("inf"):
        raise ShortVError(f"{what} is {text!r}; give a number above zero.")
    return number
