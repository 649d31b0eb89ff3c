"""Anomalies simulated on pictures of good parts, to learn from where there are no defects.

A shape is drawn, filled from a source, and blended into the picture. The blobs and their blending
follow Zavrtanik, Kristan and Skocaj, DRAEM, ICCV 2021; the pasted patches follow Li et al.,
CutPaste, CVPR 2021. Lines and dots are ours: real defects are small and thin. No other pictures
are needed: sources are generated, or made of the picture itself. H height, W width, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pegboard.records import Array

Floats = NDArray[np.float32]
Size = tuple[int, int]

GOOD_SHARE = 0.5
"""Share of pictures that stay as they are."""
COUNTS = (1, 1, 2, 3, 5)
"""Anomalies on a picture, one as often as another. Several teach more in the same time: a defect
has a hundredth of a picture's pixels."""
OPACITY = (0.2, 1.0)
"""Least and most of the source in the blend."""
FAINTEST = 5.0
"""Least mean change of the grey level inside the mask; a fainter anomaly is none."""
INSIDE = 0.35
"""Coverage of a pixel from which on the mask counts it."""
FINE = 2
"""Lines and dots are drawn so many times larger and averaged: they may be thinner than a pixel."""


def simulate(image: Array, generator: np.random.Generator) -> tuple[Array, Array]:
    """Put an anomaly on a picture of a good part; in half of the cases leave it as it is.

    Args:
        image: The picture. uint8 (H, W, C)
        generator: Where all chance comes from.

    Returns:
        A new picture, uint8 (H, W, C), and its mask, uint8 (H, W): 1 where it was changed.
    """
    clean = image.astype(np.float32)
    mask = np.zeros(image.shape[:2], np.uint8)
    if generator.random() < GOOD_SHARE:
        return image.copy(), mask
    changed = clean
    for _ in range(generator.choice(COUNTS)):
        changed, place = _add_one(changed, clean, generator)
        mask |= place
    return changed.round().clip(0, 255).astype(np.uint8), mask


def _add_one(
    picture: Floats, clean: Floats, generator: np.random.Generator
) -> tuple[Floats, Array]:
    """Blend one anomaly into a picture (H, W, C); one that nobody could see is left out."""
    draw, sources = _KINDS[generator.choice(len(_KINDS), p=_KIND_SHARES)]
    coverage = draw((clean.shape[0], clean.shape[1]), generator)  # (H, W) in [0, 1]
    source = sources[generator.integers(len(sources))](clean, coverage, generator)
    opacity = generator.uniform(*OPACITY)
    blended = picture + (opacity * coverage)[:, :, None] * (source - picture)
    inside = coverage > INSIDE
    visible = inside.any() and np.abs(blended - picture)[inside].mean() > FAINTEST
    return (blended, inside.astype(np.uint8)) if visible else (picture, np.zeros_like(inside, "u1"))


# --- Shapes: coverage of each pixel, (H, W) in [0, 1] ---------------------------------------------


def blob(size: Size, generator: np.random.Generator) -> Floats:
    """Draw islands of Perlin noise above a random level, mostly around one place."""
    noise = perlin(size, generator)
    if generator.random() < 0.7:
        noise += np.float32(1.5) * _hill(size, generator)
    share = math.exp(generator.uniform(math.log(0.001), math.log(0.08)))
    count = max(1, int(share * noise.size))
    level = np.partition(noise, -count, axis=None)[-count]
    sharpness = np.float32(generator.uniform(4.0, 30.0))  # From a soft stain to a hard edge.
    coverage: Floats = np.clip((noise - level) * sharpness + np.float32(0.5), 0, 1)
    return coverage


def line(size: Size, generator: np.random.Generator) -> Floats:
    """Draw a scratch or a crack: a thin walk that bends little or much, at times with branches."""
    height, width = size
    unit = min(size) / 128
    crack = generator.random() < 0.5
    thickness = max(0.8, unit * math.exp(generator.uniform(math.log(0.7), math.log(3.5))))
    length = min(size) * math.exp(generator.uniform(math.log(0.08), math.log(0.8)))
    start = generator.uniform(0.05, 0.95, 2) * (width, height)
    heading = generator.uniform(0, 2 * math.pi)
    bend = generator.uniform(0.2, 0.7) if crack else generator.uniform(0.0, 0.08)
    path = _walk(start, heading, length, bend, generator)
    canvas, pen = _canvas(size)
    _stroke(pen, path, thickness)
    if crack and generator.random() < 0.5:
        joint = path[generator.integers(len(path))]
        turn = heading + generator.choice((-1, 1)) * generator.uniform(0.4, 1.2)
        _stroke(pen, _walk(joint, turn, length / 2, bend, generator), thickness)
    return _covered(canvas)


def dots(size: Size, generator: np.random.Generator) -> Floats:
    """Draw pits: one or a few small ellipses near each other."""
    unit = min(size) / 128
    count = generator.choice((1, 2, 3, 6), p=(0.5, 0.2, 0.15, 0.15))
    spread = generator.uniform(0.02, 0.15) * min(size)
    centres = _place(size, generator) + generator.normal(0, spread, (count, 2)) * (count > 1)
    lengths = np.exp(generator.uniform(math.log(1.0), math.log(5.0), (count, 1)))
    radii = (unit * lengths * generator.uniform(0.6, 1.0, (count, 2))).clip(0.9)
    boxes = np.concatenate([centres - radii, centres + radii], axis=1) * FINE
    canvas, pen = _canvas(size)
    for box in boxes:
        pen.ellipse(box.tolist(), fill=255)
    return _covered(canvas)


def patch(size: Size, generator: np.random.Generator) -> Floats:
    """Draw a turned rectangle, from a square to a thin bar."""
    area = math.exp(generator.uniform(math.log(0.0005), math.log(0.04))) * size[0] * size[1]
    aspect = math.exp(generator.uniform(0, math.log(8)))
    half = np.array([math.sqrt(area * aspect), math.sqrt(area / aspect)]).clip(2.0) / 2
    angle = generator.uniform(0, math.pi)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half @ turn + _place(size, generator)
    canvas, pen = _canvas(size)
    pen.polygon((corners * FINE).ravel().tolist(), fill=255)
    return _covered(canvas)


def perlin(size: Size, generator: np.random.Generator) -> Floats:
    """Return gradient noise (H, W) of about [-1, 1] (Perlin, SIGGRAPH 1985), coarse or fine."""
    rows, columns = 2 ** generator.integers(1, 6, 2)
    angles = generator.uniform(0, 2 * math.pi, (rows + 1, columns + 1)).astype(np.float32)
    y, top, fade_y = _cells(size[0], rows)
    x, left, fade_x = _cells(size[1], columns)
    slopes = np.stack([np.sin(angles), np.cos(angles)])  # (2, rows + 1, columns + 1)

    def corner(down: int, right: int) -> Floats:
        slope: Floats = slopes[:, top + down][:, :, left + right]  # (2, H, W)
        height: Floats = slope[0] * (y - down)[:, None] + slope[1] * (x - right)[None, :]
        return height

    upper = corner(0, 0) + fade_x * (corner(0, 1) - corner(0, 0))
    lower = corner(1, 0) + fade_x * (corner(1, 1) - corner(1, 0))
    noise: Floats = math.sqrt(2) * (upper + fade_y[:, None] * (lower - upper))
    return noise


def _cells(length: int, count: int) -> tuple[Floats, Array, Floats]:
    """Place in the cell, the cell's number, and the faded place, of each of `length` pixels."""
    place = (np.arange(length, dtype=np.float32) + 0.5) * (count / length)
    cell = place.astype(np.int64)
    inner = (place - cell).astype(np.float32)
    return inner, cell, inner**3 * (inner * (inner * 6 - 15) + 10)


def _hill(size: Size, generator: np.random.Generator) -> Floats:
    """A Gaussian bump (H, W) of height 1 at a random place."""
    (x, y), radius = _place(size, generator), generator.uniform(0.06, 0.25) * min(size)
    down = np.exp(-0.5 * ((np.arange(size[0], dtype=np.float32) - y) / radius) ** 2)
    right = np.exp(-0.5 * ((np.arange(size[1], dtype=np.float32) - x) / radius) ** 2)
    return np.outer(down, right).astype(np.float32)


def _place(size: Size, generator: np.random.Generator) -> Floats:
    """A point (x, y) inside the picture."""
    return (generator.uniform(0.03, 0.97, 2) * (size[1], size[0])).astype(np.float32)


def _walk(
    start: Array, heading: float, length: float, bend: float, generator: np.random.Generator
) -> Array:
    """Points (S, 2) of a walk whose heading wanders by `bend` radians a step."""
    steps = max(2, int(length / 3))
    headings = heading + np.cumsum(generator.normal(0, bend, steps))
    moves = np.stack([np.cos(headings), np.sin(headings)], axis=1) * (length / steps)
    return np.concatenate([start[None], start + np.cumsum(moves, axis=0)])


def _stroke(pen: ImageDraw.ImageDraw, path: Array, thickness: float) -> None:
    pen.line((path * FINE).ravel().tolist(), fill=255, width=max(1, round(thickness * FINE)))


def _canvas(size: Size) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A black picture, larger than (H, W), and a pen for it."""
    canvas = Image.new("L", (size[1] * FINE, size[0] * FINE))
    return canvas, ImageDraw.Draw(canvas)


def _covered(canvas: Image.Image) -> Floats:
    """What was drawn of each pixel: (H, W) in [0, 1]."""
    return np.asarray(canvas.reduce(FINE), dtype=np.float32) / np.float32(255)


# --- Sources: what the shape is filled with, (H, W, C) in grey levels -----------------------------


def shade(clean: Floats, coverage: Floats, generator: np.random.Generator) -> Floats:
    """Make the picture darker or brighter, all of it alike."""
    step = generator.choice((-1, 1)) * generator.uniform(20, 150)
    return clean + np.float32(step)


def flat(clean: Floats, coverage: Floats, generator: np.random.Generator) -> Floats:
    """Return one random colour."""
    colour = np.clip(generator.uniform(0, 255) + generator.normal(0, 25, (clean.shape[2],)), 0, 255)
    return np.broadcast_to(colour.astype(np.float32), clean.shape)


def relief(clean: Floats, coverage: Floats, generator: np.random.Generator) -> Floats:
    """Light a dent or a bump from one side: one edge brighter, the other darker."""
    down, right = generator.integers(-2, 3, 2)
    if not (down or right):
        down = 1
    edges = coverage - np.roll(coverage, (down, right), (0, 1))
    depth = generator.choice((-1, 1)) * generator.uniform(40, 160)
    floor = generator.uniform(-40, 20)
    return clean + (np.float32(depth) * edges + np.float32(floor))[:, :, None]


def texture(clean: Floats, coverage: Floats, generator: np.random.Generator) -> Floats:
    """Return Perlin noise, or grain, around a random grey level."""
    size, channels = (clean.shape[0], clean.shape[1]), clean.shape[2]
    if generator.random() < 0.5:
        waves = perlin(size, generator)[:, :, None]
    else:
        waves = generator.standard_normal((*size, 1), dtype=np.float32)
    tint = generator.normal(1.0, 0.3, (channels,)).astype(np.float32)
    level = np.float32(generator.uniform(0, 255))
    depth = np.float32(generator.uniform(15, 90))
    filled: Floats = np.clip(level + depth * waves * tint, 0, 255)
    return filled


def itself(clean: Floats, coverage: Floats, generator: np.random.Generator) -> Floats:
    """Return the picture moved, turned, mirrored or shuffled, and at times of another contrast."""
    moved = _MOVES[generator.integers(len(_MOVES))](clean, generator)
    if generator.random() < 0.5:
        mean = moved.mean()
        moved = (moved - mean) * generator.uniform(0.3, 2.0) + mean + generator.uniform(-50, 50)
    return moved.astype(np.float32).clip(0, 255)


def _rolled(picture: Floats, generator: np.random.Generator) -> Floats:
    height, width = picture.shape[:2]
    shifts = generator.integers(height // 8, height), generator.integers(width // 8, width)
    return np.roll(picture, shifts, (0, 1))


def _turned(picture: Floats, generator: np.random.Generator) -> Floats:
    """A quarter turn, tiled or cut to the picture's size."""
    rows = np.arange(picture.shape[0]) % picture.shape[1]
    columns = np.arange(picture.shape[1]) % picture.shape[0]
    turned = np.rot90(_rolled(picture, generator))
    return turned[np.ix_(rows, columns)]


def _mirrored(picture: Floats, generator: np.random.Generator) -> Floats:
    return _rolled(picture, generator)[:: generator.choice((-1, 1)), ::-1]


def _shuffled(picture: Floats, generator: np.random.Generator) -> Floats:
    """A grid of 4 x 4 (rows and columns each in a new order)."""
    rows = np.array_split(np.arange(picture.shape[0]), 4)
    columns = np.array_split(np.arange(picture.shape[1]), 4)
    order = generator.permutation(4), generator.permutation(4)
    down = np.concatenate([rows[index] for index in order[0]])
    right = np.concatenate([columns[index] for index in order[1]])
    shuffled: Floats = picture[np.ix_(down, right)]
    return shuffled


def _enlarged(picture: Floats, generator: np.random.Generator) -> Floats:
    """The texture at another scale: every pixel twice, or every second one."""
    height, width = picture.shape[:2]
    factor = generator.choice((0.5, 2.0))
    rows = (np.arange(height) * factor).astype(np.int64) % height
    columns = (np.arange(width) * factor).astype(np.int64) % width
    return picture[np.ix_(rows, columns)]


Shape = Callable[[Size, np.random.Generator], Floats]
Source = Callable[[Floats, Floats, np.random.Generator], Floats]
Move = Callable[[Floats, np.random.Generator], Floats]

_MOVES: tuple[Move, ...] = (_rolled, _turned, _mirrored, _shuffled, _enlarged)
_KINDS: tuple[tuple[Shape, tuple[Source, ...]], ...] = (
    (blob, (shade, flat, texture, itself)),
    (line, (shade, shade, flat, relief, texture)),
    (dots, (shade, shade, flat, relief)),
    (patch, (itself,)),
)
_KIND_SHARES = (0.3, 0.35, 0.2, 0.15)
