"""Parses the text that names a data set into a `Source`.

A data set is on the Hub or in local files. Scripts of data sets are never run. The text has the form ::

    DATA[:key=value[,key=value...]]

DATA is a Hub id, a folder or a file (see `layout`). Every key is optional; a value may hold commas. Those for the Hub
are config, split, revision, images and image_id: local files are one set.

========  ==================================================================================================
config    configuration of the data set
split     split (default: test, else validation, else train, else the first)
revision  branch, tag or commit on the Hub (default: the newest commit); the record holds the commit
image     column of the image, or of a list of images (default: image, images or file_name)
video     column of the video: a video file, or a list of its frames as images (default: video, if no column has
          images). If image is given too, a row may have either or both
frames    how many frames of a video are used at most, evenly spread (default: 8)
fps       frames per second of a video that is a list of images, for models that read the time
question  column of the question (default: question)
answer    column of the answer, or of a list whose first item is taken (default: answer, if there is one)
prompt    one question for all samples, instead of a column
suffix    a line to put after every question
images    configuration with the columns id and image, if images are stored apart from the questions
image_id  column of the question's image id there
========  ==================================================================================================

A folder holds images or videos, and a ``metadata.jsonl`` (or ``.csv``, ``.parquet``) with one object per sample:
``file_name`` (several images: ``file_names``; a video: ``video_file_name``; the frames of a video:
``video_file_names``), ``question`` and, optional, ``answer``. Without questions, every sample gets `DEFAULT_PROMPT` or
`DEFAULT_VIDEO_PROMPT`.

The text ``paper`` stands for the paper's mix, `PAPER`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..errors import ShortVError, one_line
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
_OF_THE_HUB = ("config", "split", "revision", "images", "image_id")


@dataclass(frozen=True)
class Source:
    """A data set and how to read it. The fields after `path` are the keys of the module's table."""

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
        """Parses ``DATA[:key=value[,key=value...]]``, unless a file or folder has exactly this name.

        Raises:
            ShortVError: a key is unknown, repeated, empty, no number above zero, or contradicts another.
        """
        if text and _existing(text):
            return cls(text)
        path, *rest = re.split(r":(?=[a-z_]+=)", text, maxsplit=1)
        if not path.strip():
            raise ShortVError("the data has no name; give a Hub id, a folder or a file.")
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
            if key in ("frames", "fps"):
                try:
                    options[key] = int(value) if key == "frames" else float(value)
                except ValueError:
                    options[key] = 0
                if not 0 < options[key] < float("inf"):
                    raise ShortVError(f"the key {key!r} in the data {text!r} is {value!r}; give a number above zero.")
        source = cls(path, **options)
        if source.question and source.prompt:
            raise ShortVError(f"the data {text!r} has both question and prompt; give one of them.")
        both = source.images and (source.image or source.video)
        if both or (source.images is None) != (source.image_id is None):
            raise ShortVError(f"the data {text!r} needs images and image_id, or image, or video.")
        if source.local and (given := [key for key in _OF_THE_HUB if getattr(source, key)]):
            raise ShortVError(
                f"{path} is on this machine, where all rows are one set; leave out {' and '.join(given)}, and name "
                "the subfolder or the file of the rows that you mean."
            )
        return source

    @property
    def local(self) -> Path | None:
        """The file or folder; None for a Hub id."""
        return _existing(self.path)

    def with_columns(self, columns: list[str], may_lack_questions: bool) -> Source:
        """Fills in the defaults for a data set with these columns.

        Args:
            columns: their names.
            may_lack_questions: whether one question is asked of all samples if there is no column of questions.

        Raises:
            ShortVError: a column is missing.
        """
        image, video, frames = self.image, self.video, self.frames
        question, answer, prompt = self.question, self.answer, self.prompt
        if not (image or video or self.images):
            column = next((name for name in (*_IMAGE_COLUMNS, "video") if name in columns), "image")
            image, video = (None, column) if column == "video" else (column, None)
        if video is not None:
            frames = frames or MAX_FRAMES
        elif frames or self.fps:
            raise ShortVError(f"{self.path}: frames and fps are for videos; name their column with video=COLUMN.")
        if question is None and prompt is None:
            if "question" not in columns and may_lack_questions:
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
                    f"{self.path} has no column {name!r}; there are: {one_line(ValueError(', '.join(columns)))}. "
                    f"Name it as in {self.path}:{key}=COLUMN{hint}."
                )
        return replace(self, image=image, video=video, frames=frames, question=question, answer=answer, prompt=prompt)


def _existing(text: str) -> Path | None:
    """The file or folder of this name; None if there is none, or the text cannot be a name."""
    path = Path(os.path.expanduser(text))
    try:
        return path if path.exists() else None
    except (OSError, ValueError):  # too long, not permitted, or with a null character
        return None
