"""Pictures as arrays: read, laid on white, brought to a square. Pillow and NumPy alone.

Training, the index and serving read pictures through these functions, so that a model sees in
production what it saw in training.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from pegboard.errors import DataError
from pegboard.records import Array

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""Of the files that are taken for pictures, in small letters."""

_REPLACE = "replace it, or take it out of the data"
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")


def read_image(source: Path | bytes, *, pixels: int, where: str, at_least: int = 0) -> Image.Image:
    """Decode a picture, the right way up; what is transparent shows white.

    Args:
        source: A file, or what is in one.
        pixels: Most pixels that are decoded: a few bytes can claim any size.
        where: The place that an error names.
        at_least: Side that is enough: a large JPEG file is decoded to a half, a quarter or an
            eighth, where neither side falls below it. 0: decoded whole.

    Returns:
        A picture of mode RGB.

    Raises:
        DataError: It is missing, is no picture, is cut off, or has more pixels.
    """
    try:
        # What Pillow warns of is either refused below or none of the caller's concern.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _decoded(source, pixels, where, at_least)
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(
            "the picture is missing", where=where, remedy="restore it, or name it no more"
        ) from None
    except Image.DecompressionBombError:
        raise DataError(
            "the picture has more pixels than Pillow decodes",
            where=where,
            remedy="make it smaller, or take it out of the data",
        ) from None
    except Exception as error:  # A decoder that is given broken bytes raises whatever it meets.
        raise DataError(
            f"the picture cannot be read ({type(error).__name__})", where=where, remedy=_REPLACE
        ) from None


def _decoded(source: Path | bytes, pixels: int, where: str, at_least: int) -> Image.Image:
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        if image.width * image.height > pixels:
            raise DataError(
                f"the picture has {image.width} x {image.height} pixels, more than {pixels:,}",
                where=where,
                remedy="make it smaller, or raise data.pixels",
            )
        if at_least:
            image.draft(None, (at_least, at_least))
        image.load()
        return _on_white(_upright(image))


def _upright(image: Image.Image) -> Image.Image:
    """Turn a picture as its EXIF block says, which cameras write instead of turning pixels."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # A broken block says nothing, in many ways.
        return image


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode in _SIXTEEN_BITS:
        wide = np.asarray(image).astype(np.float64)
        image = Image.fromarray((wide.clip(0, 65535) / 257).round().astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def fitted(image: Image.Image, size: int) -> Array:
    """Return the middle square of a picture in the model's size.

    As CLIP's own preprocessing (Radford et al. 2021, github.com/openai/CLIP): the shortest side is
    brought to `size` with a bicubic filter, and the middle is cut out; no pixel beside the cut is
    computed, so that a picture of 1 x 100,000 pixels costs nothing.

    Args:
        image: Of mode RGB.
        size: Side S in pixels.

    Returns:
        uint8 (S, S, 3), which can be written to.
    """
    if image.size != (size, size):
        shortest = min(image.size)
        spans = [_span(side, int(size * side / shortest), size) for side in image.size]
        (left, right), (top, bottom) = spans
        box = (left, top, right, bottom)
        image = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return np.array(image)


def _span(side: int, resized: int, size: int) -> tuple[float, float]:
    """Return where in a side the middle `size` pixels of the resized side begin and end."""
    scale = side / resized
    first = round((resized - size) / 2)
    return first * scale, min((first + size) * scale, side)
