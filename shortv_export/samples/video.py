"""Videos, as a few evenly spread frames. Video files are read with PyAV, in a process of its own (see `frames`)."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ..errors import ShortVError, one_line

if TYPE_CHECKING:
    from PIL import Image

MAX_FRAMES = 8
"""As LLaVA-NeXT-Video and Video-LLaVA are used."""
MOST_VIDEO_BYTES = 2 << 30
"""The size of a video file."""
_LIMITS = {
    "frames": 1 << 18,  # of the file: two hours and a half
    "pixels": 1 << 25,  # of a frame: 8K
    "total_pixels": 1 << 28,  # of the frames that are taken
    "memory": 4 << 30,  # bytes
    "seconds": 300,
}
_TOO_LONG = f"it takes more than {_LIMITS['seconds']} seconds to read"
# The variables of the environment that the process sees: no secrets.
_PASSED = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR")


@dataclass(frozen=True)
class Clip:
    """The frames of a video that a model is shown.

    Attributes:
        frames: RGB, in order; at least one.
        fps: of these frames, per second of the video; None if unknown.
    """

    frames: tuple[Image.Image, ...]
    fps: float | None = None


def spread(total: int, most: int) -> list[int]:
    """Chooses at most `most` of `total` frames, evenly spread from the first one; returns their indices."""
    count = min(total, most)
    return [number * total // count for number in range(count)]


def make_clip(frames: Sequence[Image.Image], total: int, fps: float | None) -> Clip:
    """Makes a clip of frames that were chosen from a video of `total` frames at `fps` frames per second.

    Raises:
        ValueError: the frames differ in size.
    """
    if len({frame.size for frame in frames}) > 1:
        raise ValueError("the frames of the video differ in size")
    return Clip(tuple(frames), None if fps is None else fps * len(frames) / total)


def read_clip(file: BinaryIO, max_frames: int) -> Clip:
    """Reads at most `max_frames` frames of a video file. It is decoded from its start to the last of them.

    Args:
        file: a video. If it is no file on a disk, it is copied to one.
        max_frames: at least 1.

    Raises:
        ValueError: not a video, a damaged one, or one that is too large.
        ShortVError: PyAV is not installed.
    """
    from PIL import Image

    if find_spec("av") is None:
        raise ShortVError(
            "reading video files needs PyAV: pip install av; or give each video as a list of its frames' images."
        )
    limits = {**_LIMITS, "chosen": max_frames}
    with tempfile.TemporaryFile() as copy, tempfile.TemporaryFile() as output:
        if isinstance(file, io.BytesIO):
            copy.write(file.getbuffer())
            copy.seek(0)
            file = copy
        try:
            child = subprocess.run(
                [sys.executable, "-I", "-B", str(Path(__file__).with_name("frames.py")), json.dumps(limits)],
                env={name: os.environ[name] for name in _PASSED if name in os.environ},
                stdin=file,
                stdout=output,
                stderr=subprocess.PIPE,
                timeout=_LIMITS["seconds"],
            )
        except subprocess.TimeoutExpired:
            raise ValueError(_TOO_LONG) from None
        if child.returncode:
            raise ValueError(_reason(child.returncode, child.stderr))
        output.seek(0)
        head = json.loads(output.readline())
        width, height = head["size"]
        frames = []
        while content := output.read(3 * width * height):
            frames.append(Image.frombytes("RGB", (width, height), content))
    return make_clip(frames, head["total"], head["fps"])


def _reason(status: int, stderr: bytes) -> str:
    """Why the process has failed."""
    if status == -getattr(signal, "SIGXCPU", 0):
        return _TOO_LONG
    if status != 1:  # a decoder has crashed, or ran out of memory
        return f"its decoder ended with status {status}"
    lines = stderr.decode(errors="replace").split("\n")
    return one_line(ValueError(next((line for line in reversed(lines) if line.strip()), "the video cannot be read")))
