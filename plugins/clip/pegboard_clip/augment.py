"""Change a training picture so that its caption stays true; draw a pair for the contact sheet."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pegboard.records import Array, Sample
from pegboard_clip.settings import AugmentSettings, ClipSettings

_ASPECT = math.log(6 / 5)
"""A crop is at most so much wider or higher than a square, as a logarithm."""

_WIDTH = 144
"""Pixels that a drawn pair is wide at least."""

_LINE = 13
_MOST_LINES = 5

_CHINESE_FONTS = (
    *("NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "NotoSansSC-Regular.otf"),
    *("wqy-microhei.ttc", "wqy-zenhei.ttc", "DroidSansFallbackFull.ttf", "DroidSansFallback.ttf"),
    *("msyh.ttc", "simsun.ttc", "PingFang.ttc", "Hiragino Sans GB.ttc", "STHeiti Medium.ttc"),
)
"""Fonts that come with systems, by the names of their files, which Pillow finds."""


def augment(settings: ClipSettings, sample: Sample) -> Sample:
    """Return a training pair with its picture cropped, mirrored and lit as `train.augment` says."""
    image = change(sample.inputs["image"], settings.train.augment)
    return replace(sample, inputs={**sample.inputs, "image": image})


def change(image: Array, asked: AugmentSettings) -> Array:
    """Return a picture changed at random, uint8 (S, S, 3); the given one is left as it is.

    The crop is Inception's random resized crop (Szegedy et al., CVPR 2015) with sides that differ
    little, so that a square stays one to the eye.
    """
    if asked.crop < 1.0:
        image = _cropped(image, asked.crop)
    if asked.flip and random.random() < 0.5:
        image = np.ascontiguousarray(image[:, ::-1])
    if asked.colour > 0.0:
        image = _lit(image, asked.colour)
    return image


def _cropped(image: Array, least: float) -> Array:
    size = image.shape[0]
    side = size * math.sqrt(random.uniform(least, 1.0))
    stretch = math.exp(random.uniform(-_ASPECT, _ASPECT) / 2)
    width, height = min(size, side * stretch), min(size, side / stretch)
    left, top = random.uniform(0, size - width), random.uniform(0, size - height)
    box = (left, top, min(size, left + width), min(size, top + height))
    resized = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR, box=box)
    return np.array(resized)


def _lit(image: Array, most: float) -> Array:
    """Change brightness and contrast, each by a factor of at most 1 + `most`, or its inverse."""
    brightness, contrast = ((1 + most) ** random.uniform(-1, 1) for _ in range(2))
    levels = (np.arange(256) - 127.5) * contrast + 127.5
    table = (levels * brightness).round().clip(0, 255).astype(np.uint8)
    lit: Array = table[image]
    return lit


# --- The contact sheet ----------------------------------------------------------------------------


def draw(settings: ClipSettings, sample: Sample) -> Array:
    """Return a pair of the train split as a picture: uint8 (H, W, 3), the caption underneath."""
    from pegboard_clip.data import captions_of

    caption = captions_of(settings.data, "train")[int(sample.targets["caption_id"])]
    return captioned(sample.inputs["image"], caption)


def captioned(picture: Array, caption: str) -> Array:
    """Return a picture uint8 (S, S, 3) with its caption under it: uint8 (H, W, 3)."""
    image = Image.fromarray(picture)
    if image.width < _WIDTH:
        image = image.resize((_WIDTH, _WIDTH), Image.Resampling.BICUBIC)
    font, can_chinese = _font()
    if not can_chinese:
        caption = caption.encode("ascii", "backslashreplace").decode()
    lines = list(_lines(caption, font, image.width - 4))[:_MOST_LINES]
    sheet = Image.new("RGB", (image.width, image.height + _LINE * len(lines) + 4), "white")
    sheet.paste(image)
    ImageDraw.Draw(sheet).text((2, image.height), "\n".join(lines), "black", font=font, spacing=1)
    return np.array(sheet)


_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def _lines(text: str, font: _Font, width: int) -> Iterator[str]:
    """Break a text at its spaces, or anywhere in what has none."""
    line = ""
    for word in text.split(" "):
        longer = f"{line} {word}" if line else word
        if font.getlength(longer) <= width:
            line = longer
            continue
        if line:
            yield line
        line = ""
        for letter in word:
            if line and font.getlength(line + letter) > width:
                yield line
                line = ""
            line += letter
    yield line


@lru_cache(maxsize=1)
def _font() -> tuple[_Font, bool]:
    """Return a font, and whether it has Chinese letters."""
    for name in _CHINESE_FONTS:
        try:
            return ImageFont.truetype(name, _LINE - 2), True
        except OSError:
            continue
    return ImageFont.load_default(_LINE - 2), False
