"""Pictures as arrays: read, brought to size, limited to a region. Pillow and NumPy alone.

Training and serving read pictures through `prepared`, so a model sees in production what it saw in
training.
"""

from __future__ import annotations

import base64
import binascii
import io
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pegboard.errors import DataError, RequestError
from pegboard.records import Array

if TYPE_CHECKING:
    from pegboard_defect.settings import DefectData

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
MOST_PIXELS = 200_000_000
"""Larger pictures are refused before they are unpacked: a few bytes can claim any size."""

_UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What Pillow raises, by format, for what is no picture."""


def channels_of(data: DefectData) -> int:
    """Return how many channels the model sees."""
    return 1 if data.color == "grey" else 3


def read_image(path: Path) -> Image.Image:
    """Open a picture and decode it whole.

    Raises:
        DataError: It is missing, is no picture, or is cut off.
    """
    try:
        with Image.open(path) as image:
            return _decoded(image)
    except FileNotFoundError:
        raise DataError(
            "the picture is missing", where=str(path), remedy="restore it, or name it no more"
        ) from None
    except _UNREADABLE as error:
        raise DataError(
            f"the picture cannot be read ({type(error).__name__})",
            where=str(path),
            remedy="replace it, or take it out of the data",
        ) from None


def decode_base64(text: Any, where: str) -> Image.Image:
    """Decode a picture that a request carries as base64.

    Raises:
        RequestError: It is no base64, or no picture. Its content is not repeated.
    """
    remedy = "send a PNG or JPEG file as base64"
    if not isinstance(text, str) or not text:
        raise RequestError("the picture is no text", where=where, remedy=remedy)
    try:
        # A browser's data URL says before a comma what it is.
        content = base64.b64decode(text.rpartition(",")[2], validate=True)
        return _decoded(Image.open(io.BytesIO(content)))
    except (binascii.Error, *_UNREADABLE):
        raise RequestError("the picture cannot be read", where=where, remedy=remedy) from None


def _decoded(image: Image.Image) -> Image.Image:
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels are too many")
    image.load()
    return image


def to_array(image: Image.Image, color: str) -> Array:
    """Return a picture as uint8 (H, W, 1) or (H, W, 3); 16 bits are scaled, alpha is dropped."""
    if image.mode in ("I;16", "I;16L", "I;16B", "I"):
        wide = np.asarray(image).astype(np.float64)
        image = Image.fromarray((wide.clip(0, 65535) / 257).round().astype(np.uint8))
    wanted = image.convert("L" if color == "grey" else "RGB")
    array: Array = np.asarray(wanted)
    return array[:, :, None] if array.ndim == 2 else array


def resize(array: Array, size: tuple[int, int]) -> Array:
    """Bring a picture (H, W, C) uint8 to a size; made smaller, pixels are averaged."""
    if array.shape[:2] == size:
        return array
    image = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
    resized = np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR))
    return resized[:, :, None] if resized.ndim == 2 else resized


def resize_mask(mask: Array, size: tuple[int, int]) -> Array:
    """Bring a mask (H, W) to a size; a place is defective where any of it is."""
    if mask.shape == size:
        return (mask > 0).astype(np.uint8)
    image = Image.fromarray((mask > 0).astype(np.uint8) * 255)
    resized = np.asarray(image.resize(size[::-1], Image.Resampling.BOX))
    return (resized > 0).astype(np.uint8)


def prepared(image: Image.Image, data: DefectData) -> Array:
    """Return what the model sees of a picture: uint8 (H, W, C) of `data.size`."""
    array = resize(to_array(image, data.color), data.size)
    inside = region_of(data)
    # A copy in any case: what Pillow gives cannot be written to.
    return array.copy() if inside is None else array * inside[:, :, None]


def region_of(data: DefectData) -> Array | None:
    """Return the inspected region as uint8 (H, W) of 0 and 1; None where all is inspected."""
    return None if data.region is None else _region(data.region, data.size)


@lru_cache(maxsize=8)
def _region(path: Path, size: tuple[int, int]) -> Array:
    grey = resize(to_array(read_image(path), "grey"), size)[:, :, 0]
    return (grey >= 128).astype(np.uint8)


def peaks(maps: Array, cells: int) -> Array:
    """Return the largest value in each of `cells` x `cells` places of maps (..., H, W).

    A mean would hide a defect that is smaller than a place.
    """
    for axis in (-2, -1):
        starts = np.arange(cells) * maps.shape[axis] // cells
        maps = np.maximum.reduceat(maps, starts, axis=axis)
    return maps


def as_png(array: Array) -> bytes:
    """Encode a picture (H, W), (H, W, 1) or (H, W, 3) uint8 as PNG."""
    buffer = io.BytesIO()
    squeezed = array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array
    Image.fromarray(np.ascontiguousarray(squeezed)).save(buffer, format="PNG")
    return buffer.getvalue()


def outlined(image: Array, mask: Array) -> Array:
    """Return a picture (H, W, C) as uint8 (H, W, 3) with a mask (H, W) outlined in red."""
    rgb = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image.copy()
    inside = np.pad(mask > 0, 1)
    surrounded = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    rgb[(mask > 0) & ~surrounded] = (230, 30, 30)
    return rgb
