"""Decoding pictures: as a viewer shows them, and never more of them than memory holds."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shortv_export.samples import decode
from shortv_export.samples.pictures import MOST_BYTES, MOST_PIXELS, read_picture
from tests.support.sample_data import draw, png, refusal, write_rows

RAMP = np.tile(np.arange(256) / 255, (4, 1))  # from black to white
GREYS = np.tile(np.arange(256, dtype=np.uint8), (4, 1))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(content: bytes) -> np.ndarray:
    image = read_picture(content)
    assert image.mode == "RGB"
    return np.asarray(image)


def grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values)


DEEP = {
    "png": encoded(grey((RAMP * 65535).astype(np.uint16))),
    "tiff": encoded(grey((RAMP * 65535).astype(np.uint16)), "TIFF"),
    "tiff, packed": encoded(grey((RAMP * 65535).astype(np.uint16)), "TIFF", compression="tiff_lzw"),
    "tiff, big-endian": encoded(grey((RAMP * 65535).astype(">u2")), "TIFF"),
    "pgm": encoded(grey((RAMP * 65535).astype(np.uint16)), "PPM"),
    "pgm of 10 bits": b"P5 256 4 1023\n" + (RAMP * 1023).astype(">u2").tobytes(),
    "jpeg 2000": encoded(grey((RAMP * 65535).astype(np.uint16)), "JPEG2000"),
    "floats": encoded(grey(RAMP.astype(np.float32)), "TIFF"),
    "floats, packed": encoded(grey(RAMP.astype(np.float32)), "TIFF", compression="tiff_lzw"),
    "floats, portable": encoded(grey(RAMP.astype(np.float32)), "PPM"),
}


@pytest.mark.parametrize("name", DEEP)
def test_greys_of_more_than_8_bits(name: str) -> None:
    found = decoded(DEEP[name]).astype(int)
    assert np.abs(found - GREYS[..., None]).max() <= 1
    assert (found[0, 0].tolist(), found[0, -1].tolist()) == ([0, 0, 0], [255, 255, 255])


def test_greys_of_more_than_8_bits_where_white_is_zero() -> None:
    content = encoded(grey((RAMP * 65535).astype(np.uint16)), "TIFF", tiffinfo={262: 0})
    assert np.abs(decoded(content).astype(int) - (255 - GREYS)[..., None]).max() <= 1


def test_sixteen_bits_of_each_colour() -> None:
    rows = b"".join(b"\0" + struct.pack(">3H", 0xFFFF, 0x8000, 0) * 5 for _ in range(3))
    assert decoded(raw_png(5, 3, rows, depth=16)).tolist() == [[[255, 128, 0]] * 5] * 3


@pytest.mark.parametrize(
    "values",
    [
        *((RAMP * 65535).astype(np.int32), (RAMP * 2**31 * 0.99).astype(np.int32), (RAMP * 255).astype(np.float32)),
        *((RAMP - 0.5).astype(np.float32), np.full((4, 4), np.nan, np.float32), np.full((4, 4), np.inf, np.float32)),
        *((RAMP * 65535).astype(np.float32), np.where(RAMP == 0, np.nan, RAMP).astype(np.float32)),
    ],
)
def test_greys_that_viewers_show_in_different_ways(values: np.ndarray) -> None:
    with pytest.raises(ValueError, match="its greys"):
        read_picture(encoded(grey(values), "TIFF"))


def test_transparency_is_white() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 200, 0, 0])
    palette.putdata([0, 1])
    assert decoded(encoded(palette, transparency=0)).tolist() == [[[255, 255, 255], [200, 0, 0]]]
    assert decoded(encoded(palette, transparency=b"\xff\x00")).tolist() == [[[0, 0, 0], [255, 255, 255]]]
    assert decoded(encoded(palette, "GIF", transparency=0)).tolist() == [[[255, 255, 255], [200, 0, 0]]]
    assert decoded(encoded(palette)).tolist() == [[[0, 0, 0], [200, 0, 0]]]
    for mode, clear, half, full in (
        ("LA", (0, 0), (0, 128), (0, 255)),
        ("RGBA", (0,) * 4, (0, 0, 0, 128), (0, 0, 0, 255)),
    ):
        image = Image.new(mode, (3, 1))
        image.putdata([clear, half, full])
        for kind in ("PNG", "TIFF", "WEBP"):
            options = {"lossless": True} if kind == "WEBP" else {}
            found = decoded(encoded(image, kind, **options))
            assert found[0, :, 0].tolist() == pytest.approx([255, 127, 0], abs=1), (mode, kind)
    for mode, colour in (("L", 0), ("RGB", (0, 0, 0))):
        assert (decoded(encoded(Image.new(mode, (2, 2)), transparency=colour)) == 255).all()


def test_other_modes(photos: dict[str, Any]) -> None:
    photo = photos["chelsea"]
    for image in (photo, photo.convert("L"), photo.convert("1"), photo.convert("P")):
        assert (decoded(encoded(image)) == np.asarray(image.convert("RGB"))).all()
    cmyk = encoded(photo.convert("CMYK"), "JPEG", quality=100, subsampling=0)
    assert np.abs(decoded(cmyk).astype(int) - np.asarray(photo)).mean() < 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_orientation(kind: str, photos: dict[str, Any]) -> None:
    """As `PIL.ImageOps` turns it, and as the stock data sets' own decoder does."""
    from datasets import Image as Stock

    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[274] = orientation
        content = encoded(photos["chelsea"], kind, exif=exif)
        expected = Stock().decode_example({"bytes": content, "path": None}).convert("RGB")
        assert (decoded(content) == np.asarray(expected)).all()
    deep = encoded(grey((RAMP * 65535).astype(np.uint16)), "PNG", exif=exif)
    assert decoded(deep).shape == (256, 4, 3)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_several_pictures_the_first_counts(kind: str) -> None:
    images = [Image.new("RGB", (5, 4), colour) for colour in ("red", "green", "blue")]
    found = decoded(encoded(images[0], kind, save_all=True, append_images=images[1:] * 300))
    assert (found[:, :, 0] > 250).all()
    assert (found[:, :, 1:] < 5).all()


# Bounds


def raw_png(width: int, height: int, rows: bytes = b"", depth: int = 8) -> bytes:
    """A PNG in RGB that says it has this size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def bmp(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


def gif(width: int, height: int) -> bytes:
    return (
        b"GIF89a"
        + struct.pack("<HHBBB", width, height, 0, 0, 0)
        + b","
        + struct.pack("<HHHHB", 0, 0, 1, 1, 0)
        + b"\2\2D\1\0;"
    )


LARGE = {
    "20000 x 20000": raw_png(20_000, 20_000),
    "13000 x 13000": raw_png(13_000, 13_000),
    "one row too many": raw_png(8192, 8193),
    "long": raw_png(MOST_PIXELS + 1, 1),
    "widest": raw_png(2**31 - 1, 2**31 - 1),
    "bmp": bmp(20_000, 20_000),
    "gif": gif(65_535, 65_535),
    "pgm": b"P5 100000 100000 255\n",
    "tiff": encoded(Image.new("1", (9000, 9000)), "TIFF", compression="group4"),
    "webp": b"RIFF"
    + struct.pack("<I", 18 + 12)
    + b"WEBPVP8X"
    + struct.pack("<I", 10)
    + bytes(4)
    + b"\xff" * 3 * 2
    + b"VP8L"
    + bytes(8),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_large_picture_is_a_bad_row(tmp_path: Path, name: str) -> None:
    for number in range(12):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    (tmp_path / "large.png").write_bytes(LARGE[name])
    assert len(draw(tmp_path, num_samples=12).samples) == 12
    assert "has 12 usable samples (1 unreadable)" in refusal(tmp_path, num_samples=13)


def test_a_large_file_is_a_bad_row(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    with (tmp_path / "large.png").open("wb") as file:
        file.write(png(99))
        file.truncate(MOST_BYTES + 1)
    message = refusal(tmp_path, num_samples=13)
    assert f"it is larger than {MOST_BYTES:,} bytes" in message
    with pytest.raises(ValueError, match="larger than"):
        read_picture(bytes(MOST_BYTES + 1))


def test_a_row_of_many_large_pictures_is_a_bad_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert decode._MOST_PIXELS_OF_A_SAMPLE == 4 * MOST_PIXELS
    monkeypatch.setattr(decode, "_MOST_PIXELS_OF_A_SAMPLE", 4 * 12 * 9)
    (tmp_path / "a.png").write_bytes(png(1))
    rows = [{"image": ["a.png"] * number, "question": f"{number} ?"} for number in (4, 5, 500)]
    write_rows(tmp_path / "rows.jsonl", rows)
    message = refusal(tmp_path / "rows.jsonl", num_samples=2)
    assert "has 1 usable samples (2 unreadable)" in message
    assert "its images have together more than 432 pixels" in message


MEASURE = """
import resource, sys
from pathlib import Path
from shortv_export.samples import decode
from shortv_export.samples.pictures import read_picture
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_picture(Path(sys.argv[1]).read_bytes())
except ValueError:
    pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="kilobytes on Linux only")
def test_memory(tmp_path: Path) -> None:
    """The largest that is allowed takes 1.1 GB with transparency; a larger one takes nothing."""

    def peak(content: bytes) -> int:
        path = tmp_path / "picture"
        path.write_bytes(content)
        run = subprocess.run([sys.executable, "-c", MEASURE, path], capture_output=True, text=True, check=True)
        return int(run.stdout) >> 10

    assert peak(encoded(Image.new("LA", (8192, 8192)), compress_level=1)) < 1300
    assert peak(LARGE["13000 x 13000"]) < 50
    assert peak(LARGE["20000 x 20000"]) < 50


@pytest.mark.parametrize(
    "content",
    [
        *(
            b"",
            b"text",
            b"GIF89a",
            b"BM",
            b"\x89PNG\r\n\x1a\n",
            b"II*\0\x08\0\0\0\xff\xff",
            b"\xff\xd8\xff\xe0",
            png(1)[:45],
        ),
        *(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"P5 0 0 255\n", b"P6 9 9 99999999\n"),
        *(
            encoded(Image.new("RGB", (9, 9)), "PDF"),
            encoded(Image.new("RGB", (9, 9)), "ICNS"),
            raw_png(0, 0),
            raw_png(9, 9),
        ),
    ],
)
def test_what_is_no_picture(content: bytes) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        read_picture(content)
    assert len(str(caught.value).splitlines()) == 1


def test_no_program_is_started_for_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PIL starts Ghostscript for the formats of PostScript, whatever the name of the file is."""
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda *arguments, **_: started.append(arguments))
    (tmp_path / "a.png").write_bytes(encoded(Image.new("RGB", (9, 9)), "EPS"))
    assert "cannot identify" in refusal(tmp_path, num_samples=1)
    assert started == []
