"""Runs in a process of its own: decodes frames of a video file, with limits of time and memory.

``python -I frames.py LIMITS`` reads the file from standard input; LIMITS is JSON with the keys of `_Limits`. It prints
a line of JSON, ``{"total", "fps", "size"}``, and then the frames in RGB. If the video cannot be read, the last line of
standard error says why, and the status is 1.

A few hundred bytes can announce a billion frames, for which a decoder reserves memory and time before anyone can look.
"""

import json
import sys
from dataclasses import dataclass
from typing import Any, BinaryIO

_THREADS = 4  # each holds frames


@dataclass(frozen=True)
class _Limits:
    """See the constants of `video`. Of all frames, at most `chosen` are taken, evenly spread."""

    chosen: int
    frames: int
    pixels: int
    total_pixels: int
    memory: int
    seconds: int


def main() -> None:
    """Reads the arguments, sets the limits, and reports failures."""
    import av

    limits = _Limits(**json.loads(sys.argv[1]))
    _limit_process(limits)
    try:
        _decode(sys.stdin.buffer, limits)
    except (av.FFmpegError, ValueError, MemoryError) as error:
        if isinstance(error, MemoryError) or getattr(error, "errno", None) == 12:
            sys.exit("it needs too much memory")
        sys.exit(f"the video cannot be read: {error.strerror}" if isinstance(error, av.FFmpegError) else str(error))


def _limit_process(limits: _Limits) -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    for kind, limit in ((resource.RLIMIT_AS, limits.memory), (resource.RLIMIT_CPU, limits.seconds)):
        resource.setrlimit(kind, (limit, limit))


def _decode(file: BinaryIO, limits: _Limits) -> None:
    import av

    # Some formats list other files. Downloaded data must not open files of this machine.
    with av.open(file, container_options={"protocol_whitelist": ""}) as container:
        if not container.streams.video:
            raise ValueError("the file holds no video")
        stream: Any = container.streams.video[0]
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = _THREADS
        stream.codec_context.options = {"max_pixels": str(limits.pixels)}  # also if a later frame is larger
        if stream.width * stream.height > limits.pixels:
            raise ValueError(
                f"its frames have {stream.width} x {stream.height} pixels; {limits.pixels:,} is the limit"
            )
        fps = stream.average_rate
        # Not every container says how many frames it has, but each packet is one.
        total = 0
        for packet in container.demux(stream):
            total += packet.size > 0
            if total > limits.frames:
                raise ValueError(f"it has more than {limits.frames:,} frames")
        container.seek(0)
        count = min(total, limits.chosen)
        wanted = [number * total // count for number in range(count)]
        size = None
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                if size is None:
                    size = frame.width, frame.height
                    if count * frame.width * frame.height > limits.total_pixels:
                        raise ValueError(f"its frames have together more than {limits.total_pixels:,} pixels")
                    head = {"total": total, "fps": float(fps) if fps else None, "size": size}
                    sys.stdout.buffer.write(json.dumps(head).encode() + b"\n")
                if size != (frame.width, frame.height):
                    raise ValueError("the frames of the video differ in size")
                sys.stdout.buffer.write(frame.to_image().tobytes())
                if number == wanted[-1]:
                    break
    if size is None:
        raise ValueError("the video has no frame")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
