"""Videos, as a few evenly spread frames. Video files are read with PyAV, which brings its own decoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from ..errors import ShortVError

if TYPE_CHECKING:
    from PIL import Image

MAX_FRAMES = 8
"""As LLaVA-NeXT-Video and Video-LLaVA are used."""


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

    Raises:
        ValueError: not a video, or a damaged one.
        ShortVError: PyAV is not installed.
    """
    try:
        import av
    except ImportError:
        raise ShortVError(
            "reading video files needs PyAV: pip install 'shortv-export[video]'; or give each video as a list of its "
            "frames' images."
        ) from None
    try:
        # Some formats list other files. Downloaded data must not open files of this machine.
        with av.open(file, container_options={"protocol_whitelist": ""}) as container:
            if not container.streams.video:
                raise ValueError("the file holds no video")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            fps = stream.average_rate
            # Not every container says how many frames it has, but each packet is one.
            total = sum(packet.size > 0 for packet in container.demux(stream))
            wanted = spread(total, max_frames)
            container.seek(0)
            frames = []
            for number, frame in enumerate(container.decode(stream)):
                if number in wanted:
                    frames.append(frame.to_image())
                    if number == wanted[-1]:
                        break
    except av.FFmpegError as error:
        raise ValueError(f"the video cannot be read: {error.strerror}") from error
    if not frames:
        raise ValueError("the video has no frame")
    return make_clip(frames, total, float(fps) if fps else None)
