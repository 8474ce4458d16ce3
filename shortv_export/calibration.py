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

import glob
import hashlib
import io
import itertools
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .base_model import hub_error
from .clips import MAX_FRAMES, Clip, make_clip, read_clip, spread
from .errors import ShortVError, one_line
from .families import plain_prompt

if TYPE_CHECKING:
    from datasets import IterableDataset
    from PIL import Image
    from transformers import BatchFeature, ProcessorMixin

# The paper's calibration set (arXiv 2504.00502v2, Appendix B): 20 GQA and 20 Flickr30K samples. Splits and
# prompts are those of the tasks `gqa` and `flickr30k` of lmms-eval, which the reference code runs on.
PAPER = (
    "lmms-lab/GQA:config=testdev_balanced_instructions,split=testdev,images=testdev_balanced_images,image_id=imageId,"
    "suffix=Answer the question using a single word or phrase.",
    "lmms-lab/flickr30k:split=test,prompt=Provide a one-sentence caption for the provided image.",
)
DEFAULT_PROMPT = "Describe this image in one sentence."
DEFAULT_VIDEO_PROMPT = "Describe this video in one sentence."

_JOINED = "image"  # the key that an image from another configuration gets in its row
_IMAGE_COLUMNS = ("image", "images", "file_name")
_VIDEO_COLUMN = "video"
_SPLITS = ("test", "validation", "train")
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg")
_FOLDER_READERS = {_IMAGE_SUFFIXES: "imagefolder", _VIDEO_SUFFIXES: "videofolder"}
_FILE_READERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json"}

# Rows to draw from. A row that carries its image costs a download, one with a path or an id next to nothing.
_BUFFER = 10_000
_BUFFER_OF_IMAGES = 256
_BUFFER_OF_VIDEOS = 32


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


@dataclass(frozen=True)
class Calibration:
    """Samples, and the record of what they are.

    Attributes:
        samples: in the order drawn.
        record: ``{"data", "sources", "seed", "num_samples", "num_images", "num_videos", "skipped", "digest",
            "sample_digests"}``; a source has its repository, commit, configuration, split and columns, and of its
            videos the most frames that were taken. Local paths stay out of it.
    """

    samples: tuple[Sample, ...]
    record: dict[str, Any]


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


def load_calibration(
    data: str | Path,
    *,
    num_samples: int = 40,
    seed: int = 0,
    exclude: Collection[str] = (),
    allow_fewer: bool = False,
    group_by: str | None = None,
    token: str | None = None,
) -> Calibration:
    """Draws calibration samples.

    Args:
        data: ``"paper"``, or a data set as the module describes.
        num_samples: how many.
        seed: of the draw. The same data, seed and number give the same samples, and a larger number those and more.
        exclude: digests of samples that are not to be drawn, as they serve for something else.
        allow_fewer: where the data has fewer samples, take them all.
        group_by: a column to carry along with each sample.
        token: Hub access token; None takes the one that is logged in.

    Raises:
        ShortVError: the data cannot be found or read, lacks a column, holds neither images nor videos or too few
            samples, or has more unreadable ones than a quarter of those asked for; fewer are skipped and counted.
    """
    if num_samples < 1:
        raise ShortVError(f"the number of calibration samples is {num_samples}; ask for at least 1.")
    if data == "paper":
        # Half of each; the GQA half is the larger one of an odd number.
        shares = [(PAPER[0], num_samples - num_samples // 2), (PAPER[1], num_samples // 2)]
    else:
        shares = [(str(data), num_samples)]
    samples: list[Sample] = []
    sources = []
    for text, share in shares:
        if share:
            drawn, record = _draw(Source.parse(text), share, seed, frozenset(exclude), allow_fewer, group_by, token)
            samples += drawn
            sources.append(record)
    local = "repo_id" not in sources[0]
    digests = [sample.digest for sample in samples]
    return Calibration(
        tuple(samples),
        {
            "data": "local files" if local else str(data),
            "sources": sources,
            "seed": seed,
            "num_samples": len(samples),
            "num_images": sum(len(sample.images) for sample in samples),
            "num_videos": sum(len(sample.videos) for sample in samples),
            "skipped": sum(source["skipped"] for source in sources),
            "digest": hashlib.sha256("".join(digests).encode()).hexdigest(),
            "sample_digests": digests,
        },
    )


def encode(processor: ProcessorMixin, samples: Sequence[Sample]) -> BatchFeature:
    """The model's inputs for a batch of samples, up to where the answer would begin.

    Args:
        processor: of the base.
        samples: at least one; each with any number of images, then of videos, which come before its question.

    Returns:
        Tensors: ``input_ids`` and ``attention_mask``, both (samples, tokens) and padded on the left, and what
        the family's model takes besides.

    Raises:
        ShortVError: a video, for a processor or a chat template that takes none, or not such a one.
    """
    prompts = [_prompt(processor, sample) for sample in samples]
    media: dict[str, Any] = {}
    if any(sample.images for sample in samples):
        media["images"] = [list(sample.images) for sample in samples]
    if clips := [clip for sample in samples for clip in sample.videos]:
        media["videos"] = [[list(clip.frames) for clip in sample.videos] for sample in samples]
        # The frames are chosen already; what is left to say is when each of them was seen.
        media["do_sample_frames"] = False
        media["video_metadata"] = [_timing(clip) for clip in clips]
    bos = processor.tokenizer.bos_token
    try:
        inputs = processor(
            **media,
            text=prompts,
            padding=len(samples) > 1,
            padding_side="left",
            # A template that writes the first token itself must not get a second one.
            **({"add_special_tokens": False} if bos and prompts[0].startswith(bos) else {}),
            return_tensors="pt",
        )
    except Exception as error:  # processors raise many kinds, such as over too few frames
        if not clips:
            raise
        frames = min(len(clip.frames) for clip in clips)
        raise ShortVError(
            f"the base's processor cannot read a video of {frames} frame{'s' * (frames > 1)}: {one_line(error)}"
        ) from error
    inputs.pop("labels", None)  # there is no answer to learn, though some processors make labels of every prompt
    return inputs


def _prompt(processor: Any, sample: Sample) -> str:
    """A sample's text, with one placeholder for each image and each video."""
    image_token, video_token = (getattr(processor, f"{kind}_token", f"<{kind}>") for kind in ("image", "video"))
    if sample.videos and getattr(processor, "video_processor", None) is None:
        raise ShortVError(
            f"the base takes no videos ({type(processor).__name__}); give images, or a list of frames as image=COLUMN."
        )
    # Some data sets carry placeholders in the question; the template sets one for everything that is shown.
    question = sample.question
    for token in (image_token, video_token, "<image>", "<video>"):
        question = question.replace(token, "")
    question = question.strip()
    if processor.chat_template:
        content: list[Any] = [
            *({"type": "image"} for _ in sample.images),
            *({"type": "video"} for _ in sample.videos),
            {"type": "text", "text": question},
        ]
        conversation: Any = [{"role": "user", "content": content}]
        prompt = str(processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False))
    else:
        shown = [*[image_token] * len(sample.images), *[video_token] * len(sample.videos)]
        prompt = re.sub(
            r"<image>(\n?)", lambda found: "".join(f"{each}{found[1]}" for each in shown), plain_prompt(processor)
        )
        prompt = prompt.format(question=question)
    if sample.videos and prompt.count(video_token) != len(sample.videos):
        raise ShortVError(
            f"the chat template of the base puts {prompt.count(video_token)} of {len(sample.videos)} videos into a "
            "prompt; give images, or complete its template."
        )
    return prompt


def _timing(clip: Clip) -> dict[str, Any]:
    """A clip's ``video_metadata``: its frames are all there is of it, at their own rate."""
    count = len(clip.frames)
    duration = count / clip.fps if clip.fps else None
    return {
        "total_num_frames": count,
        "fps": clip.fps,
        "duration": duration,
        "frames_indices": list(range(count)),
    }


def _draw(
    source: Source,
    num_samples: int,
    seed: int,
    exclude: Collection[str],
    allow_fewer: bool,
    group_by: str | None,
    token: str | None,
) -> tuple[list[Sample], dict[str, Any]]:
    """Samples of one data set, and the record of it."""
    revision = None if source.local else _pin(source, token)
    dataset, split = _open(source, source.config, revision, token)
    try:
        first = next(iter(dataset), None)
    except Exception as error:  # readers of many formats
        raise _unreadable(source, error) from error
    if first is None:
        raise ShortVError(f"{source.path} holds no samples in its split {split!r}.")
    columns = list(dataset.features or first)
    source = _with_columns(source, columns)
    if group_by is not None and group_by not in columns:
        raise ShortVError(f"{source.path} has no column {group_by!r} to group by; there are: {', '.join(columns)}.")
    buffer = _BUFFER
    for column, smaller in ((source.image, _BUFFER_OF_IMAGES), (source.video, _BUFFER_OF_VIDEOS)):
        if column is not None and _has_bytes(first[column]):
            buffer = smaller
    shuffled = dataset.shuffle(seed=seed, buffer_size=buffer)

    limit = num_samples // 4
    rows = itertools.islice(shuffled, num_samples + limit + 1 + len(exclude))
    samples: list[Sample] = []
    skipped = 0
    try:
        for row in _with_images(rows, source, split, revision, token):
            try:
                sample = _sample(row, source, token)
                if group_by is not None:
                    sample = replace(sample, group=str(row[group_by]))
                if sample.digest not in exclude:
                    samples.append(sample)
            except (OSError, ValueError, SyntaxError) as error:  # what PIL raises over damaged files
                skipped += 1
                if skipped > limit:
                    raise ShortVError(
                        f"{source.path}: {skipped} of {skipped + len(samples)} samples have no readable "
                        f"{'video' if source.video else 'image'}; the last one: {one_line(error)}"
                    ) from error
            if len(samples) == num_samples:
                break
    except ShortVError:
        raise
    except Exception as error:  # readers of many formats
        raise _unreadable(source, error) from error
    if not samples or (len(samples) < num_samples and not allow_fewer):
        others = f" besides the {len(exclude)} that are set apart" if exclude else ""
        raise ShortVError(
            f"{source.path} has {len(samples)} usable samples{others} ({skipped} unreadable), fewer than the "
            f"{num_samples} asked for; ask for fewer (--num-samples), or give more data."
        )
    record = {
        **({"repo_id": source.path, "revision": revision} if revision else {"format": _reader(source)}),
        "config": source.config,
        "split": split,
        **{key: value for key in _RECORDED if (value := getattr(source, key)) is not None},
        "num_samples": len(samples),
        "skipped": skipped,
    }
    return samples, record


_RECORDED = ("image", "video", "frames", "fps", "question", "answer", "prompt", "suffix", "images", "image_id")


def _pin(source: Source, token: str | None) -> str:
    """The commit of a data set on the Hub."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, HTTPError

    what = f"data set {source.path}" + (f" at revision {source.revision}" if source.revision else "")
    if source.path[0] in "./~":
        raise ShortVError(f"there is no file or folder {source.path!r} to calibrate on.")
    try:
        return str(HfApi(token=token).dataset_info(source.path, revision=source.revision).sha)
    except HFValidationError:
        raise ShortVError(f"{source.path!r} is neither a file or folder here nor a Hub id of a data set.") from None
    except (HTTPError, OSError) as error:
        raise hub_error(error, what) from error


def _reader(source: Source) -> str:
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
    for suffixes, reader in _FOLDER_READERS.items():
        if any(name.endswith(suffixes) for name in names):
            return reader
    for suffix, reader in _FILE_READERS.items():
        if any(name.endswith(suffix) and not name.startswith("metadata.") for name in names):
            return reader
    raise ShortVError(
        f"{source.path} holds no images or videos; put some there, with a metadata.jsonl of their questions."
    )


def _open(
    source: Source, config: str | None, revision: str | None, token: str | None, split: str | None = None
) -> tuple[IterableDataset, str]:
    """A stream of undecoded rows, and the name of its split."""
    from datasets import load_dataset

    split = split or source.split
    try:
        if (local := source.local) is None:
            splits = load_dataset(source.path, config, revision=revision, streaming=True, token=token)
        elif (reader := _reader(source)) in _FOLDER_READERS.values():
            splits = load_dataset(reader, data_dir=glob.escape(str(local)), streaming=True, drop_labels=True)
        elif local.is_dir():
            splits = load_dataset(reader, data_dir=glob.escape(str(local)), streaming=True)
        else:
            splits = load_dataset(reader, data_files=glob.escape(str(local)), streaming=True)
    except ShortVError:
        raise
    except Exception as error:  # load_dataset raises many kinds
        raise _unreadable(source, error) from error
    if split is None:
        split = next((name for name in _SPLITS if name in splits), next(iter(splits)))
    if split not in splits:
        raise ShortVError(f"{source.path} has no split {split!r}; there are: {', '.join(splits)}.")
    dataset = splits[split]
    # Undecoded, so that a damaged image is one bad row and not the end of the stream.
    return dataset.decode(False) if dataset.features else dataset, str(split)


def _with_columns(source: Source, columns: list[str]) -> Source:
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
        if "question" not in columns and source.local and _reader(source) in _FOLDER_READERS.values():
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


def _with_images(
    rows: Iterator[dict[str, Any]], source: Source, split: str, revision: str | None, token: str | None
) -> Iterator[dict[str, Any]]:
    """The rows, each with its image; read from the configuration of the images where they lie apart.

    That configuration is read until every image wanted has been seen, in the worst case to its end.
    """
    if source.images is None or source.image_id is None:
        yield from rows
        return
    questions = list(rows)
    wanted = {row[source.image_id] for row in questions}
    dataset, _ = _open(source, source.images, revision, token, split)
    found: dict[Any, Any] = {}
    for row in dataset:
        if not {"id", "image"} <= row.keys():
            raise ShortVError(f"{source.path}: its configuration {source.images!r} has no columns id and image.")
        if row["id"] in wanted:
            found[row["id"]] = row["image"]
            if len(found) == len(wanted):
                break
    for row in questions:
        yield {**row, _JOINED: found.get(row[source.image_id])}


def _sample(row: dict[str, Any], source: Source, token: str | None) -> Sample:
    """A sample of a row.

    Raises:
        OSError, ValueError: no image and no video in the row, or one that cannot be read.
        ShortVError: a column of the wrong kind.
    """
    images: tuple[Image.Image, ...] = ()
    videos: tuple[Clip, ...] = ()
    if source.image or source.images:
        column = source.image or _JOINED
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


def _has_bytes(value: Any) -> bool:
    """Whether an undecoded cell carries its image, and not just its path."""
    if isinstance(value, list):
        return any(_has_bytes(item) for item in value)
    return isinstance(value, bytes) or (isinstance(value, dict) and value.get("bytes") is not None)


def _unreadable(source: Source, error: Exception) -> ShortVError:
    return ShortVError(f"the calibration data {source.path} cannot be read: {one_line(error)}")
