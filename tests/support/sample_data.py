"""Data sets for tests: pictures, films and tables of known content, and draws from them."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from shortv_export.errors import ShortVError
from shortv_export.loopback import LoopbackHub
from shortv_export.options import Samples
from shortv_export.samples.draw import DrawnSamples, draw_samples

EIGHT_OF_30 = [0, 3, 7, 11, 15, 18, 22, 26]
"""Every fourth frame of thirty, rounded down: eight of them."""


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def picture(seed: int, size: tuple[int, int] = (12, 9)) -> Any:
    """A small image in a colour of its own, which lossless formats keep."""
    from PIL import Image

    return Image.new("RGB", size, (seed * 20 % 256, seed, 255 - seed))


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    picture(seed).save(buffer, format="PNG")
    return buffer.getvalue()


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def draw(data: str | Path, num_samples: int = 40, seed: int = 0, **options: Any) -> DrawnSamples:
    return draw_samples(Samples(str(data), num_samples, seed), **options)


def refusal(data: str | Path, **arguments: Any) -> str:
    """The message with which data is refused, which is one line."""
    with pytest.raises(ShortVError) as caught:
        draw(data, **arguments)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


needs_av = pytest.mark.skipif(find_spec("av") is None, reason="needs PyAV")


def movie(path: Path, numbers: range, codec: str = "ffv1", pixels: str = "bgr0") -> None:
    """A film of ten frames a second, each in a colour of its own; by default without loss."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 16, 16, pixels
        for number in numbers:
            container.mux(stream.encode(av.VideoFrame.from_image(picture(number, (16, 16)))))
        container.mux(stream.encode())


PROBE = """
import json, sys
import fsspec.core
from shortv_export.errors import ShortVError
from shortv_export.options import Samples
from shortv_export.samples import draw_samples
asked, find = set(), fsspec.core.get_filesystem_class
def spy(protocol):
    asked.add(protocol)
    return find(protocol)
sys.modules["fsspec.registry"].get_filesystem_class = fsspec.core.get_filesystem_class = spy
for call in json.loads(sys.argv[1]):
    try:
        result = draw_samples(Samples(**call))
        shown = [[*s.images, *(f for clip in s.videos for f in clip.frames)] for s in result.samples]
        greens = [[image.getpixel((0, 0))[1] for image in images] for images in shown]
        samples = [(s.question, s.answer, *green, s.digest) for s, green in zip(result.samples, greens)]
        print(json.dumps({"samples": samples, "record": result.record}))
    except ShortVError as error:
        print(json.dumps(str(error)))
assert asked <= {"hf", "file", "zip"}, asked  # for its own cache, and for a list of an archive in the repository
"""


def probe(hub: LoopbackHub, home: Path, *calls: dict[str, Any], logged_in: bool = True) -> list[Any]:
    """The outcome of each call: its samples and record, or its message. No foreign file system may be asked."""
    environment = {**os.environ, **hub.env(), "HF_HOME": str(home), "HF_DATASETS_CACHE": str(home / "datasets")}
    if not logged_in:
        del environment["HF_TOKEN"]
    run = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(calls)], env=environment, capture_output=True, text=True, timeout=240
    )
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def parquet(columns: dict[str, list[Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def card(*configs: tuple[str, str, str]) -> bytes:
    """The front matter that tells `datasets` which files make up which configuration and split."""
    lines = [
        f"- config_name: {config}\n  data_files:\n  - split: {split}\n    path: {path}"
        for config, split, path in configs
    ]
    return ("---\nconfigs:\n" + "\n".join(lines) + "\n---\n").encode()
