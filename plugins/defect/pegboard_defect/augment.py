"""Changes that training pictures undergo, by presets: the one place that uses albumentations.

Its release 2.0.8 is the last under MIT and its project is archived; whoever replaces it replaces
this file. A preset holds what a line of its kind really does to a picture, and nothing more: what
it does not contain, a model is not made robust against.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

# Before the import: it would ask its maker's server for a newer version.
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

import albumentations as A
import cv2
import numpy as np

from pegboard.records import Array

cv2.setNumThreads(1)

MIRROR = cv2.BORDER_REFLECT_101


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a preset has to know of the pictures."""

    grey: bool
    """Whether they have one channel."""
    square: bool
    """Whether they may be turned by a quarter: others would change their shape."""


def _turns(kind: Kind) -> list[Any]:
    """The eight ways a square picture may lie, and the four of another."""
    turn = A.RandomRotate90(p=1.0) if kind.square else A.VerticalFlip(p=0.5)
    return [turn, A.HorizontalFlip(p=0.5)]


def _flips() -> list[Any]:
    """For parts whose texture or wiring runs in one direction."""
    return [A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)]


def _placed(shift: float, scale: float, angle: float) -> Any:
    """A part that does not lie exactly where it should."""
    return A.Affine(
        translate_percent=(-shift, shift),
        scale=(1 - scale, 1 + scale),
        rotate=(-angle, angle),
        border_mode=MIRROR,
        p=0.8,
    )


def _light(brightness: float, contrast: float) -> Any:
    """Lamps that age and exposures that drift."""
    return A.RandomBrightnessContrast(brightness_limit=brightness, contrast_limit=contrast, p=0.8)


def _colour(hue: int, saturation: int, value: int, kind: Kind) -> Any:
    """White balance that drifts; of a grey picture the value alone."""
    return A.HueSaturationValue(
        hue_shift_limit=0 if kind.grey else hue,
        sat_shift_limit=0 if kind.grey else saturation,
        val_shift_limit=value,
        p=1.0,
    )


def _none(kind: Kind) -> list[Any]:
    return []


def _classic(kind: Kind) -> list[Any]:
    """The recipe of many notebooks."""
    return [
        *([A.RandomRotate90(p=0.5)] if kind.square else []),
        A.ElasticTransform(alpha=30, sigma=6, border_mode=MIRROR, p=0.3),
        A.OneOf([A.RandomBrightnessContrast(p=1.0), _colour(20, 30, 20, kind)], p=0.5),
    ]


def _metal(kind: Kind) -> list[Any]:
    """Brushed or rolled: any way round, gloss that moves with the lamp."""
    return [
        *_turns(kind),
        _placed(0.04, 0.05, 5),
        _light(0.25, 0.25),
        A.RandomGamma(gamma_limit=(80, 125), p=0.3),
        A.GaussNoise(std_range=(0.01, 0.03), p=0.3),
    ]


def _textile(kind: Kind) -> list[Any]:
    """Woven: never turned by a quarter, stretched a little."""
    return [
        *_flips(),
        _placed(0.04, 0.05, 3),
        A.ElasticTransform(alpha=20, sigma=6, border_mode=MIRROR, p=0.3),
        _light(0.2, 0.2),
        A.MotionBlur(blur_limit=(3, 3), p=0.1),
    ]


def _solar(kind: Kind) -> list[Any]:
    """Electroluminescence of cells: exposure and focus differ by module.

    Flipped, but not turned by a quarter: busbars run one way, what crosses them is a defect.
    """
    return [
        *_flips(),
        _placed(0.03, 0.02, 1),
        _light(0.15, 0.2),
        A.GaussianBlur(blur_limit=(3, 3), p=0.1),
    ]


def _electronics(kind: Kind) -> list[Any]:
    """Boards: they lie one way round; colour and focus drift, letters must stay legible."""
    return [
        _placed(0.03, 0.03, 2),
        _light(0.2, 0.2),
        A.Compose([_colour(5, 15, 5, kind)], p=0.3),
        A.GaussianBlur(blur_limit=(3, 3), p=0.1),
        A.ImageCompression(quality_range=(60, 95), p=0.3),
    ]


PRESETS: Mapping[str, Callable[[Kind], Sequence[Any]]] = {
    "none": _none,
    "classic": _classic,
    "metal": _metal,
    "textile": _textile,
    "solar": _solar,
    "electronics": _electronics,
}
"""By the names of `data.augmentation`."""


def change(image: Array, mask: Array, preset: str) -> tuple[Array, Array]:
    """Change a picture and its mask together.

    What is drawn follows from Python's global generator, which the core seeds for each sample and
    epoch.

    Args:
        image: uint8 (H, W, C).
        mask: uint8 (H, W).
        preset: A name of `PRESETS`.
    """
    height, width, channels = image.shape
    pipeline = _pipeline(preset, Kind(grey=channels == 1, square=height == width))
    pipeline.set_random_seed(random.getrandbits(32))
    # Most parts are good, and moving an empty mask would cost as much as moving a picture.
    marked = bool(mask.any())
    changed = pipeline(image=image, mask=mask) if marked else pipeline(image=image)
    array = changed["image"].reshape(image.shape)
    return array, changed["mask"] if marked else np.zeros_like(mask)


@lru_cache(maxsize=4 * len(PRESETS))
def _pipeline(preset: str, kind: Kind) -> Any:
    return A.Compose(list(PRESETS[preset](kind)), seed=0)
