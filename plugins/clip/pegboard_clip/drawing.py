"""Draw a scene: smooth edges, and whatever makes counting colours useless.

Tints, positions, turns and proportions vary; light falls unevenly, a texture lies over everything,
and coloured strokes that nobody mentions cross the background.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from pegboard_clip.scenes import Scene, Things

Floats = NDArray[np.float64]
Pixels = NDArray[np.uint8]
Colour = tuple[int, int, int]

SIDE = 96
"""Of a picture, in pixels."""

FINER = 3
"""Pixels are drawn so many times finer than they are kept."""

HOLLOW = ("circle", "square", "triangle", "star", "ring", "heart", "diamond")
"""Shapes that others may lie inside."""

_HSV = {
    "red": (0.0, 0.85, 0.85),
    "orange": (0.075, 0.92, 0.96),
    "yellow": (0.145, 0.88, 0.95),
    "green": (0.36, 0.75, 0.62),
    "blue": (0.61, 0.80, 0.82),
    "purple": (0.765, 0.65, 0.62),
    "pink": (0.92, 0.42, 0.98),
    "brown": (0.065, 0.68, 0.42),
    "black": (0.6, 0.15, 0.10),
}
"""Hue, saturation and value."""

_RADII = {"small": (7.0, 8.0), "": (9.5, 11.5), "large": (13.5, 16.0)}
"""Pixels, from and to."""

_MARGIN = 2.0
_LAID = 40
"""Ways to lay things that are tried before they are made smaller."""


def draw(scene: Scene, generator: np.random.Generator) -> Pixels:
    """Return a picture of a scene, uint8 (96, 96, 3)."""
    canvas = _background(scene.background, generator)
    _scribble(canvas, generator)
    for things, places in _placed(scene, generator):
        for place in places:
            _draw_thing(canvas, things, place, generator)
    return _textured(np.asarray(canvas.reduce(FINER)), generator)


# --- Places ---------------------------------------------------------------------------------------

Place = tuple[float, float, float]
"""Middle from the left and from the top, and radius, in pixels."""

Region = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels."""


def _placed(scene: Scene, generator: np.random.Generator) -> list[tuple[Things, list[Place]]]:
    """Say where things lie; what lies behind comes first."""
    if scene.second is None:
        return [(scene.first, _scattered(scene.first, (0, 0, SIDE, SIDE), generator))]
    if scene.relation == "inside":
        radius = generator.uniform(33, 38)
        x, y = generator.uniform(radius + 1, SIDE - radius - 1, 2)
        inner = generator.uniform(9, 11)
        return [(scene.second, [(x, y, radius)]), (scene.first, [(x, y, inner)])]
    cut = SIDE / 2 + generator.uniform(-3, 3)
    regions: Sequence[Region] = ((0, 0, cut, SIDE), (cut, 0, SIDE, SIDE))
    if scene.relation == "above":
        regions = ((0, 0, SIDE, cut), (0, cut, SIDE, SIDE))
    both = zip((scene.first, scene.second), regions, strict=True)
    return [(things, _scattered(things, region, generator)) for things, region in both]


def _scattered(things: Things, region: Region, generator: np.random.Generator) -> list[Place]:
    """Lay things of one size into a region, none on another."""
    left, top, right, bottom = region
    radius = generator.uniform(*_RADII[things.size])
    while True:
        reach = radius + _MARGIN
        x = generator.uniform(left + reach, right - reach, (_LAID, things.count, 1))
        y = generator.uniform(top + reach, bottom - reach, (_LAID, things.count, 1))
        apart = np.hypot(x - x.swapaxes(1, 2), y - y.swapaxes(1, 2)) + np.eye(things.count) * SIDE
        chosen = apart.min(axis=(1, 2)) > 2 * reach
        if chosen.any():
            places = np.concatenate([x, y], axis=2)[chosen.argmax()]
            return [(float(across), float(down), radius) for across, down in places]
        radius *= 0.96


# --- Shapes ---------------------------------------------------------------------------------------


def _draw_thing(
    canvas: Image.Image, things: Things, place: Place, generator: np.random.Generator
) -> None:
    x, y, radius = (number * FINER for number in place)
    stretch = generator.uniform(0.92, 1.08)
    turn = np.radians(generator.uniform(-12, 12))
    half = int(radius * 1.2) + 2
    mask = Image.new("L", (2 * half, 2 * half))
    pen = ImageDraw.Draw(mask)
    for value, outline in _OUTLINES[things.shape]:
        cos, sin = np.cos(turn), np.sin(turn)
        points = outline * radius * (stretch, 1 / stretch) @ np.array([[cos, sin], [-sin, cos]])
        pen.polygon([(float(a), float(b)) for a, b in points + half], fill=value)
    colour = _tint(_HSV[things.colour], generator)
    canvas.paste(colour, (round(x) - half, round(y) - half), mask)


def _tint(hsv: tuple[float, float, float], generator: np.random.Generator) -> Colour:
    """Return a colour near the given one."""
    hue, saturation, value = np.array(hsv) + generator.normal(0, (0.008, 0.05, 0.04))
    return _rgb(hue, saturation, value)


def _rgb(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(
        hue % 1.0, float(np.clip(saturation, 0, 1)), float(np.clip(value, 0, 1))
    )
    return round(red * 255), round(green * 255), round(blue * 255)


def _circle(radius: float, x: float = 0.0) -> Floats:
    angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    return np.stack([x + radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _corners(radii: tuple[float, ...], first: float = -90.0) -> Floats:
    """Return corners at equal angles from the middle, the radii taking turns."""
    angle = np.radians(first + np.arange(len(radii)) * 360 / len(radii))
    corners: Floats = np.array(radii)[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return corners


def _heart() -> Floats:
    t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y - 1.5], axis=1) / 16.5


def _cross() -> Floats:
    a, b = 0.32, 0.95
    corners = [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a)]
    corners += [(a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)]
    return np.array(corners)


_OUTLINES: dict[str, list[tuple[int, Floats]]] = {
    "circle": [(255, _circle(0.95))],
    "square": [(255, _corners((1.12,) * 4, first=45.0))],
    "triangle": [(255, _corners((1.1,) * 3) + np.array([0, 0.2]))],
    "star": [(255, _corners((1.1, 0.46) * 5))],
    "ring": [(255, _circle(1.0)), (0, _circle(0.6))],
    "cross": [(255, _cross())],
    "heart": [(255, _heart())],
    "moon": [(255, _circle(1.0)), (0, _circle(0.86, 0.5))],
    "diamond": [(255, _corners((1.15, 0.8) * 2))],
}
"""Polygons (N, 2) about a middle, of a radius of about 1; 0 cuts out of what was filled."""


# --- What lies behind and over them ---------------------------------------------------------------


def _background(kind: str, generator: np.random.Generator) -> Image.Image:
    """Return a canvas in pale colours."""
    pale = (generator.random(), generator.uniform(0.03, 0.16), generator.uniform(0.88, 0.98))
    darker = (pale[0] + generator.normal(0, 0.08), pale[1] + 0.08, pale[2] - 0.17)
    canvas = Image.new("RGB", (SIDE * FINER, SIDE * FINER), _rgb(*pale))
    if kind == "plain":
        return canvas
    pattern = _pattern(kind, generator)
    canvas.paste(_rgb(*darker), mask=Image.fromarray((pattern * 255).astype(np.uint8)))
    return canvas


def _pattern(kind: str, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Return where the darker colour lies, bool (288, 288), turned by any angle."""
    angle, period = generator.uniform(0, np.pi), generator.uniform(9, 15)
    place = np.arange(SIDE * FINER, dtype=np.float32) / np.float32(period * FINER)
    cos, sin = place * np.float32(np.cos(angle)), place * np.float32(np.sin(angle))
    # In periods, far from 0, so that cutting the fraction off rounds down.
    u = np.add.outer(sin, cos) + np.float32(generator.uniform(50, 51))
    u -= u.astype(np.int32)
    if kind == "striped":
        return np.asarray(u < 0.5)
    v = np.subtract.outer(cos, sin) + np.float32(generator.uniform(50, 51))
    v -= v.astype(np.int32)
    if kind == "checked":
        return np.asarray((u < 0.5) ^ (v < 0.5))
    return np.asarray((u - 0.5) ** 2 + (v - 0.5) ** 2 < 0.27**2)


def _scribble(canvas: Image.Image, generator: np.random.Generator) -> None:
    """Draw a few strokes in any colour: they are no shapes, and nobody mentions them."""
    pen = ImageDraw.Draw(canvas)
    for _ in range(generator.integers(2, 6)):
        steps = generator.normal(0, 5, (6, 2)) + generator.normal(0, 5, 2)
        points = generator.uniform(0, SIDE, 2) + steps.cumsum(axis=0)
        colour = _rgb(generator.random(), generator.uniform(0.3, 0.9), generator.uniform(0.3, 0.9))
        flat = [(float(x) * FINER, float(y) * FINER) for x, y in points]
        pen.line(flat, fill=colour, width=int(generator.integers(3, 6)), joint="curve")


def _textured(picture: Pixels, generator: np.random.Generator) -> Pixels:
    """Let light fall unevenly and lay a grain over a picture."""
    across, down = generator.normal(0, 0.06, 2)
    slope = np.linspace(-1, 1, SIDE)
    light = generator.uniform(0.9, 1.06) + across * slope + down * slope[:, None]
    grain = generator.normal(0, generator.uniform(2, 7), (SIDE, SIDE))
    lit = picture * light[:, :, None] + grain[:, :, None]
    textured: Pixels = lit.round().clip(0, 255).astype(np.uint8)
    return textured
