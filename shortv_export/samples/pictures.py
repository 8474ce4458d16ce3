"""Decodes a picture to RGB, as a viewer shows it; bounded before it is decoded.

A decoded picture takes 4 bytes per pixel, and up to 16 meanwhile: 1.1 GB for the largest that is allowed.
"""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any

from ..errors import one_line

if TYPE_CHECKING:
    from PIL import Image

MOST_BYTES = 128 << 20
"""The size of a picture's file."""
MOST_PIXELS = 1 << 26
"""Width times height of a picture: 8192 x 8192, or eight frames of 4K."""
# What programs and cameras write. Others are rare, and some of their readers start programs, as that of EPS does.
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF")


def read_picture(content: bytes) -> Image.Image:
    """Decodes a picture; of several in one file, such as an animation, the first.

    It is turned as its EXIF orientation says, and what is transparent becomes white. Greys of 16 bits are scaled to 8;
    of floating-point numbers, 0 is black and 1 is white.

    Raises:
        ValueError: it cannot be decoded, is too large, or says not how bright its numbers are.
    """
    from PIL import Image, UnidentifiedImageError

    if len(content) > MOST_BYTES:
        raise ValueError(f"it is larger than {MOST_BYTES:,} bytes")
    try:
        with warnings.catch_warnings():  # of the size, which is checked here, and of harmless oddities
            warnings.simplefilter("ignore")
            Image.init()
            picture = Image.open(io.BytesIO(content), formats=[name for name in _FORMATS if name in Image.OPEN])
            check_size(*picture.size)
            picture.load()
            return _rgb(picture)
    except UnidentifiedImageError:
        raise ValueError(f"cannot identify the image; these formats are read: {', '.join(_FORMATS)}") from None
    except Exception as error:  # decoders raise many kinds over damaged files
        raise ValueError(one_line(error)) from error


def check_size(width: int, height: int) -> None:
    """Refuses a picture or a frame that would take too much memory.

    Raises:
        ValueError: it has more than `MOST_PIXELS`.
    """
    if width * height > MOST_PIXELS:
        raise ValueError(f"{width} x {height} pixels are more than the limit of {MOST_PIXELS:,}")


def _rgb(picture: Any) -> Image.Image:
    from PIL import ExifTags, Image, ImageOps

    white, inverted = _white(picture), _tag(picture, "PhotometricInterpretation", 1) == 0
    if picture.getexif().get(ExifTags.Base.Orientation) is not None:
        picture = ImageOps.exif_transpose(picture)
    if white is not None:
        picture = _in_8_bits(picture, white, inverted)
    elif picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def _white(picture: Any) -> float | None:
    """The number that stands for white, if the greys have more than 8 bits."""
    if picture.mode == "F":
        return 1
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in ("PNG", "PPM")):
        return 2.0 ** _tag(picture, "BitsPerSample", 16) - 1  # as a TIFF says; readers of others scale to 16 bits
    if picture.mode == "I":
        raise ValueError("its greys have 32 bits or a sign, which viewers show in different ways")
    return None


def _in_8_bits(picture: Any, white: float, inverted: bool) -> Image.Image:
    import numpy
    from PIL import Image

    values = numpy.asarray(picture)
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= white):  # also if some are no numbers
        raise ValueError(f"its greys go from {low:.6g} to {high:.6g}; black is 0 and white is {white:.6g}")
    scaled = (values * numpy.float32(255 / white) + numpy.float32(0.5)).astype(numpy.uint8)
    return Image.fromarray(255 - scaled if inverted else scaled)


def _tag(picture: Any, name: str, default: int) -> int:
    """The value of a tag of a TIFF; of other formats the default."""
    from PIL import ExifTags

    value = getattr(picture, "tag_v2", {}).get(ExifTags.Base[name], default)
    return int(value[0] if isinstance(value, tuple) else value)
