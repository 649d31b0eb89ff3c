"""The embedded data set: pictures of brushed metal, woven cloth and cells, with exact masks.

A part is a surface with at most one kind of defect. A lot sets what its parts share: surface, scale
of the texture, light, contrast, focus and noise. Every part is photographed twice. Each surface has
marks that are no defects (polish marks, slubs, boundaries of grains, dust), so that finding what is
odd is not enough.

Canvases are float32 (H, W), about 0.5 in the mean; lengths are given for a picture of 128 pixels
and scale with it. Angles are in radians, points are (x, y). NumPy and Pillow alone.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pegboard.files import atomic_path
from pegboard.progress import Progress, SilentProgress
from pegboard.records import Array
from pegboard_defect.images import as_png

if TYPE_CHECKING:
    from pegboard_defect.settings import DefectData

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]
Random = np.random.Generator
Shape = tuple[int, int]

COLUMNS = ("image", "label", "mask", "part", "lot")
DEFECTIVE_SHARE = 0.3
PICTURES = 2
"""Of each part: moved, under other light, with other noise and dust."""
LOTS = 8
DARK_LOT = 3
"""This one is photographed under too little light."""
MARGIN = 8.0
"""How far a part is moved at most between its pictures, and how much larger a canvas is."""
FINER = 4
"""Strokes are drawn so many times larger, then averaged."""
COVERED = 0.35
"""Share of a pixel that a line covers where the mask counts it."""
FAINT_SHARE = 0.06
"""Of the defects: hardly seen."""


@dataclass(frozen=True, kw_only=True)
class Lot:
    """What the parts of a lot share."""

    name: str
    """As in the table."""
    surface: str
    """A key of `SURFACES`."""
    scale: float
    """Size of the texture; 1 is usual."""
    light: float
    """Brightness; 1 is usual."""
    contrast: float
    """Of the surface; 1 is usual."""
    blur: float
    """Standard deviation of the lens, in pixels."""
    noise: float
    """Standard deviation of the camera's noise, as a share of the grey range."""


@dataclass(frozen=True, kw_only=True)
class Surface:
    """A part before it is photographed."""

    canvas: Floats
    """How bright it is: (H, W)."""
    unit: float
    """Pixels for one of a picture of 128."""
    grain: float | None = None
    """Direction along which a straight mark is no defect; None where there is none."""


# --- writing --------------------------------------------------------------------------------------


def write_parts(
    folder: Path, data: DefectData, *, parts: int, seed: int, progress: Progress | None = None
) -> Path:
    """Generate a data set of the layout `csv`; the folder is whole or absent.

    Args:
        folder: Gets `parts.csv`, `images/` and, for defective parts, `masks/`.
        data: Its `size`, `textures` and `classes` are followed. Defects are those of `DEFECTS` that
            it names, or all where it names none or merges; good parts get its first class.
        parts: How many; every one is photographed twice.
        seed: The same seed gives the same pictures.
        progress: Is told how many parts are done.

    Returns:
        The table, with the columns `image`, `label`, `mask`, `part` and `lot`.
    """
    random = np.random.default_rng(seed)
    lots = draw_lots(random, data.textures)
    kinds = draw_kinds(random, parts, defects_of(data))
    rows: list[tuple[str, ...]] = []
    with atomic_path(folder) as temporary:
        for name in ("images", "masks"):
            (temporary / name).mkdir(parents=True)
        shown = progress or SilentProgress()
        for index, kind in enumerate(shown.track(kinds, "drawing parts", total=parts)):
            lot = lots[index * len(lots) // parts]
            pictures = draw_part(np.random.default_rng((seed, index)), lot, kind, data.size)
            for number, picture in enumerate(pictures, start=1):
                stem, label = f"p{index:05d}-{number}", kind or data.classes[0]
                mask = _write_picture(temporary, stem, picture)
                rows.append((f"images/{stem}.png", label, mask, f"p{index:05d}", lot.name))
        _write_table(temporary / "parts.csv", rows)
    return folder / "parts.csv"


def _write_picture(folder: Path, stem: str, picture: tuple[Array, Array]) -> str:
    """Write picture and mask; return the mask's path, empty where nothing is defective."""
    image, mask = picture
    (folder / "images" / f"{stem}.png").write_bytes(as_png(image))
    if not mask.any():
        return ""
    (folder / "masks" / f"{stem}.png").write_bytes(as_png(mask * 255))
    return f"masks/{stem}.png"


def _write_table(path: Path, rows: Sequence[tuple[str, ...]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([COLUMNS, *rows])


def defects_of(data: DefectData) -> tuple[str, ...]:
    """Return the defects that are generated for some settings."""
    named = tuple(name for name in DEFECTS if name in data.classes[1:])
    return tuple(DEFECTS) if data.merge or not named else named


def draw_kinds(random: Random, parts: int, defects: Sequence[str]) -> list[str | None]:
    """Draw each part's defect, None for a good one: the share is exact, the order is not."""
    defective = max(1, round(parts * DEFECTIVE_SHARE)) if parts > 1 else 0
    kinds: list[str | None] = [defects[number % len(defects)] for number in range(defective)]
    kinds += [None] * (parts - defective)
    return [kinds[place] for place in random.permutation(parts)]


def draw_lots(random: Random, textures: Sequence[str]) -> list[Lot]:
    """Draw the lots; they take the surfaces in turn."""
    lots = [_draw_lot(random, f"L{n + 1}", textures[n % len(textures)]) for n in range(LOTS)]
    lots[DARK_LOT] = replace(lots[DARK_LOT], light=0.5)
    return lots


def _draw_lot(random: Random, name: str, surface: str) -> Lot:
    return Lot(
        name=name,
        surface=surface,
        scale=random.uniform(0.8, 1.4),
        light=random.uniform(0.85, 1.2),
        contrast=random.uniform(0.8, 1.25),
        blur=random.uniform(0.3, 0.7),
        noise=random.uniform(0.008, 0.02),
    )


# --- a part ---------------------------------------------------------------------------------------


def one_part(
    *, surface: str, defect: str | None, size: Shape = (128, 128), seed: int = 0
) -> tuple[Array, Array]:
    """Draw one picture, of a lot of its own.

    Args:
        surface: A key of `SURFACES`.
        defect: A key of `DEFECTS`; None for a good part.
        size: Height and width.
        seed: The same seed gives the same picture.

    Returns:
        The picture, uint8 (H, W), and its mask of 0 and 1, uint8 (H, W).
    """
    random = np.random.default_rng(seed)
    return draw_part(random, _draw_lot(random, "L1", surface), defect, size)[0]


def draw_part(
    random: Random, lot: Lot, defect: str | None, size: Shape
) -> list[tuple[Array, Array]]:
    """Draw the pictures of one part, each with its mask: uint8 (H, W) both."""
    unit = min(size) / 128
    shape = (size[0] + 2 * round(MARGIN * unit), size[1] + 2 * round(MARGIN * unit))
    surface = SURFACES[lot.surface](random, shape, unit, lot.scale)
    canvas, mask = surface.canvas, np.zeros(shape, dtype=np.bool_)
    if defect is not None:
        canvas, mask = DEFECTS[defect](random, surface, draw_clarity(random))
    return [photograph(random, canvas, mask, lot, size) for _ in range(PICTURES)]


def draw_clarity(random: Random) -> float:
    """Draw how well a defect is seen: contrast over the roughness of the surface around it."""
    faint = random.random() < FAINT_SHARE
    return float(random.uniform(1.0, 1.6) if faint else random.uniform(2.0, 4.2))


def photograph(
    random: Random, canvas: Floats, mask: Mask, lot: Lot, size: Shape
) -> tuple[Array, Array]:
    """Take a picture of a part: moved, lit, out of focus, dusty and noisy."""
    height, width = size
    top = int(random.integers(canvas.shape[0] - height + 1))
    left = int(random.integers(canvas.shape[1] - width + 1))
    window = (slice(top, top + height), slice(left, left + width))
    contrasted = 0.5 + np.float32(lot.contrast) * (canvas[window] - 0.5)
    picture = soften(contrasted + _dust(random, size), lot.blur)
    picture *= _light(random, size) * np.float32(lot.light)
    picture += lot.noise * random.standard_normal(size, dtype=np.float32)
    return (picture.clip(0, 1) * 255).round().astype(np.uint8), mask[window].astype(np.uint8)


def _light(random: Random, size: Shape) -> Floats:
    """Uneven light (H, W) about 1: a slope, and less of it in the corners."""
    x, y = _grid(size)
    right, down = x / size[1] * 2 - 1, y / size[0] * 2 - 1
    angle, slope = random.uniform(0, 2 * np.pi), random.uniform(0, 0.16)
    tilted = 1 + slope * (np.cos(angle) * right + np.sin(angle) * down)
    light = tilted - random.uniform(0, 0.12) * (right**2 + down**2)
    return np.asarray(light * random.uniform(0.93, 1.07), dtype=np.float32)


def _dust(random: Random, size: Shape) -> Floats:
    """Specks of one or two pixels (H, W), elsewhere in every picture."""
    dust = np.zeros(size, dtype=np.float32)
    for _ in range(random.poisson(3)):
        y, x = random.integers(size[0]), random.integers(size[1])
        dust[y, x : x + int(random.integers(1, 3))] = random.uniform(0.06, 0.22) * _sign(random)
    return dust


# --- surfaces -------------------------------------------------------------------------------------


def brushed_metal(random: Random, shape: Shape, unit: float, scale: float) -> Surface:
    """Fine streaks in one direction, a band of reflection, and polish marks along the streaks."""
    angle = random.uniform(0, np.pi)
    fine = streaks(random, shape, 30 * unit * scale, 0.35 * unit, angle)
    coarse = streaks(random, shape, 60 * unit * scale, 1.5 * unit * scale, angle)
    texture = random.uniform(0.04, 0.07) * (fine + random.uniform(0.3, 0.8) * coarse)
    _, y = _turned(shape, angle)
    place, breadth = random.uniform(-40, 40) * unit, random.uniform(20, 50) * unit
    reflection = random.uniform(0, 0.2) * np.exp(-(((y - place) / breadth) ** 2))
    canvas = 0.46 + texture + reflection
    for _ in range(random.poisson(4)):
        canvas += random.normal(0, 0.07) * _polish_mark(random, shape, unit, angle)
    return Surface(canvas=canvas.astype(np.float32), unit=unit, grain=angle)


def _polish_mark(random: Random, shape: Shape, unit: float, angle: float) -> Floats:
    """A straight line (H, W) almost along the streaks, thinner at its ends."""
    points = _curve(random, shape, unit, random.uniform(20, 110), angle + random.normal(0, 0.02), 0)
    points += random.uniform(-0.5, 0.5, 2) * shape[::-1]
    along = np.linspace(0, np.pi, len(points))
    return stroke(shape, points, random.uniform(0.5, 0.8) * unit * np.sin(along) ** 0.3)


def woven_cloth(random: Random, shape: Shape, unit: float, scale: float) -> Surface:
    """Two families of threads that cross, plain or twill; uneven yarn and slubs: thicker places."""
    pitch = random.uniform(4.5, 7) * unit * scale
    x, y = _turned(shape, random.normal(0, 0.06))
    wave = random.uniform(0.1, 0.3)
    x = x / pitch + wave * clouds(random, shape, 12 * unit, 36 * unit)
    y = y / pitch + wave * clouds(random, shape, 36 * unit, 12 * unit)
    over = 2 if random.random() < 0.4 else 1
    # From 0 to 1 a thread lies above as many as it crosses at once, from 1 to 2 below them.
    warp_turn = (np.floor(x) + y) % (2 * over) / over
    weft_turn = (np.floor(y) + x + over) % (2 * over) / over
    warp = _threads(random, x, y * pitch, warp_turn, clouds(random, shape, 1.3 * unit, 5 * unit))
    weft = _threads(random, y, x * pitch, weft_turn, clouds(random, shape, 5 * unit, 1.3 * unit))
    canvas = 0.24 + 0.4 * np.where(warp_turn < 1, warp, weft * random.uniform(0.75, 1.0))
    return Surface(canvas=canvas.astype(np.float32), unit=unit)


def _threads(random: Random, across: Array, along: Array, turn: Array, fibre: Array) -> Array:
    """Brightness (H, W) of round threads, given where they are: across in threads, and along."""
    number = np.floor(across).astype(int)
    number -= number.min()
    yarn = random.normal(1, random.uniform(0.04, 0.1), number.max() + 1)[number]
    slub = _slubs(random, number, along)
    offset = (across % 1 - 0.5) / (1 + 0.6 * slub)
    height = np.sqrt(1 - 3.6 * offset**2) * (0.5 + 0.5 * np.sin(np.pi * turn))
    brightness: Array = height * (yarn + 0.12 * fibre + 0.3 * slub)
    return brightness


def _slubs(random: Random, number: Array, along: Array) -> Array:
    """How much thicker (H, W) the threads are: some have one place where they are."""
    thicker = np.zeros(number.shape)
    for _ in range(random.poisson(1.5)):
        chosen = number == random.integers(number.max() + 1)
        place = random.uniform(along.min(), along.max())
        length = random.uniform(0.06, 0.2) * (along.max() - along.min())
        thicker += random.uniform(0.4, 1.0) * chosen * np.exp(-(((along - place) / length) ** 2))
    return thicker


def solar_cells(random: Random, shape: Shape, unit: float, scale: float) -> Surface:
    """Grains with boundaries, fine fingers, broad busbars, edges that are dark on some sides."""
    grains, boundary = _grains(random, shape, unit, random.uniform(11, 22) * scale)
    canvas = 0.55 + random.uniform(0.015, 0.04) * grains
    canvas -= random.uniform(0.0, 0.14) * boundary
    canvas += 0.02 * clouds(random, shape, 2 * unit, 2 * unit)
    canvas += random.uniform(0.01, 0.03) * clouds(random, shape, 20 * unit, 20 * unit)
    x, y = _turned(shape, random.normal(0, 0.01))
    pitch = random.uniform(4, 6) * unit * scale
    canvas -= random.uniform(0.02, 0.05) * np.cos(2 * np.pi * x / pitch) ** 4
    canvas -= random.uniform(0.12, 0.22) * _busbars(random, y / unit)
    return Surface(canvas=(canvas * _edges(random, shape, unit)).astype(np.float32), unit=unit)


def _busbars(random: Random, y: Array) -> Array:
    """Which share of each pixel (H, W) parallel bars cover, given the height."""
    pitch, width = random.uniform(38, 55), random.uniform(3, 5)
    distance = np.abs((y + random.uniform(0, pitch)) % pitch - pitch / 2)
    return (width / 2 - distance + 0.5).clip(0, 1)


def _grains(random: Random, shape: Shape, unit: float, width: float) -> tuple[Floats, Floats]:
    """Grey value (H, W) of grains so many units wide, and their boundaries from 0 to 1."""
    coarse = (round(shape[0] / unit / 1.5), round(shape[1] / unit / 1.5))
    x, y = (axis + clouds(random, coarse, 5, 5) for axis in _grid(coarse))
    count = max(4, int(coarse[0] * coarse[1] / (width / 1.5) ** 2))
    nearest = np.full(coarse, np.inf, dtype=np.float32)
    second, owner = nearest.copy(), np.zeros(coarse, dtype=np.int64)
    for number, (seed_x, seed_y) in enumerate(random.uniform((0, 0), coarse[::-1], (count, 2))):
        distance = np.hypot(x - np.float32(seed_x), y - np.float32(seed_y))
        second = np.minimum(second, np.maximum(nearest, distance))
        owner[distance < nearest] = number
        nearest = np.minimum(nearest, distance)
    strength = random.random(count)[owner]
    boundary = strength * np.exp(-(((second - nearest) / 0.9) ** 2))
    return resized(random.standard_normal(count)[owner], shape), resized(boundary, shape)


def _edges(random: Random, shape: Shape, unit: float) -> Array:
    """Light (H, W) that falls off towards each side, by chance far or hardly."""
    x, y = _grid(shape)
    light = np.ones(shape, dtype=np.float32)
    for distance in (x, y, shape[1] - x, shape[0] - y):
        depth, reach = random.uniform(0, 0.6) ** 1.5, random.uniform(8, 25) * unit
        light *= 1 - np.float32(depth) * np.exp(-distance / np.float32(reach))
    return light


SURFACES: Mapping[str, Callable[[Random, Shape, float, float], Surface]] = {
    "metal": brushed_metal,
    "cloth": woven_cloth,
    "cells": solar_cells,
}
"""Surfaces by the name that `data.textures` has for them."""


# --- defects --------------------------------------------------------------------------------------


def scratch(random: Random, surface: Surface, clarity: float) -> tuple[Floats, Mask]:
    """A thin curve, light or dark, of changing width and strength, sometimes broken."""
    shape, unit = surface.canvas.shape, surface.unit
    angle, bend = _across(random, surface.grain), random.normal(0, 0.008) / unit
    points = _curve(random, shape, unit, random.uniform(40, 90), angle, bend)
    along = np.linspace(0, np.pi, len(points))
    radii = random.uniform(0.8, 1.6) * unit * (0.5 + 0.5 * np.sin(along) ** 0.5)
    kept = _unbroken(random, len(points), unit)
    line = stroke(shape, points[kept], radii[kept])
    strength = (1 + 0.3 * clouds(random, shape, 18 * unit, 18 * unit)).clip(0.6, 1.6)
    shadow = (np.roll(line, (1, 1), (0, 1)) - line).clip(0, 1)
    contrast = 1.2 * clarity * roughness(surface) * _sign(random, light=0.6)
    return _changed(surface, contrast * (strength * line - 0.35 * shadow)), line >= COVERED


def _unbroken(random: Random, count: int, unit: float) -> Mask:
    """Which of the points of a line are there (N,): some lines have a gap or two."""
    kept = np.ones(count, dtype=np.bool_)
    for _ in range(int(random.integers(1, 3)) if random.random() < 0.3 else 0):
        start = int(random.integers(count // 5, count * 3 // 4))
        kept[start : start + int(random.uniform(8, 18) * unit)] = False
    return kept


def pit(random: Random, surface: Surface, clarity: float) -> tuple[Floats, Mask]:
    """One small hollow or several near each other, each with a rim that catches the light."""
    shape, unit = surface.canvas.shape, surface.unit
    middle, sun = _centre(random, shape), random.uniform(0, 2 * np.pi)
    contrast = clarity * roughness(surface) * _sign(random, light=0.25)
    change, mask = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.bool_)
    for _ in range(1 + random.poisson(1.2)):
        radius = max(1.0, random.uniform(2.0, 4.5) * unit)
        distance, bearing = _oval(random, shape, middle)
        rim = np.exp(-(((distance - radius) / (0.35 * radius)) ** 2))
        core = ((radius - distance) / unit + 0.5).clip(0, 1)
        change += contrast * (1.4 * core - 0.9 * rim * np.cos(bearing - sun))
        mask |= distance <= radius + 0.5
        middle = middle + random.normal(0, 11 * unit, 2)
    return _changed(surface, change), mask


def stain(random: Random, surface: Surface, clarity: float) -> tuple[Floats, Mask]:
    """A large blot of uneven outline that dulls the texture, sometimes with a darker edge."""
    shape, unit = surface.canvas.shape, surface.unit
    distance, _ = _oval(random, shape, _centre(random, shape))
    outline = distance / (random.uniform(13, 26) * unit)
    outline += 0.16 * clouds(random, shape, 12 * unit, 12 * unit)
    inside = ((1 - outline) / random.uniform(0.15, 0.5) + 0.5).clip(0, 1)
    ring = random.uniform(0, 0.5) * np.exp(-(((outline - 0.95) / 0.1) ** 2))
    contrast = clarity * roughness(surface) * _sign(random, light=0.15)
    dulled = smooth(surface.canvas, 1.5 * unit, 1.5 * unit) - surface.canvas
    change = contrast * (inside + ring) + random.uniform(0.1, 0.4) * inside * dulled
    return _changed(surface, change), inside >= 0.5


def _oval(random: Random, shape: Shape, middle: Array) -> tuple[Array, Array]:
    """Draw an oval: distance (H, W) from the middle, by the long half axis, and bearing."""
    x, y = _grid(shape)
    x, y = x - np.float32(middle[0]), y - np.float32(middle[1])
    angle, narrow = random.uniform(0, np.pi), random.uniform(0.6, 1.0)
    along, beside = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    return np.hypot(along, beside / narrow), np.arctan2(y, x)


def crack(random: Random, surface: Surface, clarity: float) -> tuple[Floats, Mask]:
    """A thin dark line that zigzags, often with thinner branches."""
    shape, unit = surface.canvas.shape, surface.unit
    angle = _across(random, surface.grain)
    trunk = _zigzag(random, _centre(random, shape), random.uniform(35, 75) * unit, angle, unit)
    trunk += _centre(random, shape) - trunk.mean(axis=0)
    width = random.uniform(0.85, 1.3) * unit
    line = stroke(shape, trunk, width * np.linspace(1, 0.6, len(trunk)))
    for _ in range(int(random.integers(0, 4))):
        start = trunk[int(random.uniform(0.15, 0.85) * len(trunk))]
        turn = random.uniform(0.5, 1.1) * _sign(random)
        branch = _zigzag(random, start, random.uniform(10, 28) * unit, angle + turn, unit)
        thinner = stroke(shape, branch, 0.75 * width * np.linspace(1, 0.6, len(branch)))
        line = np.maximum(line, thinner)
    return _changed(surface, -1.3 * clarity * roughness(surface) * line), line >= COVERED


DEFECTS: Mapping[str, Callable[[Random, Surface, float], tuple[Floats, Mask]]] = {
    "scratch": scratch,
    "pit": pit,
    "stain": stain,
    "crack": crack,
}
"""Defects by class: each takes a surface and how clear it is, and returns canvas and mask."""


def _changed(surface: Surface, change: Array) -> Floats:
    return surface.canvas + change.astype(np.float32)


def roughness(surface: Surface) -> float:
    """Return the standard deviation of the texture, between noise and light."""
    unit = surface.unit
    fine = smooth(surface.canvas, 0.7 * unit, 0.7 * unit)
    return max(0.04, float((fine - smooth(surface.canvas, 6 * unit, 6 * unit)).std()))


def _across(random: Random, grain: float | None) -> float:
    """Draw a direction; not one along which a mark is no defect."""
    if grain is None:
        return float(random.uniform(0, np.pi))
    return grain + float(random.uniform(0.45, np.pi - 0.45))


# --- tools ----------------------------------------------------------------------------------------


def streaks(random: Random, shape: Shape, along: float, across: float, angle: float) -> Floats:
    """Draw noise (H, W) of mean 0 and standard deviation 1, longer in one direction.

    Args:
        random: Draws.
        shape: Height and width.
        along: Standard deviation of the Gaussian it is smoothed with, in pixels, in the direction.
        across: The same at right angles to it.
        angle: The direction.
    """
    return _standard(smooth(random.standard_normal(shape, dtype=np.float32), along, across, angle))


def clouds(random: Random, shape: Shape, width: float, height: float) -> Floats:
    """Draw smooth noise (H, W) of mean 0 and standard deviation 1, in spots of so many pixels."""
    coarse = (max(2, round(shape[0] / height) + 1), max(2, round(shape[1] / width) + 1))
    return _standard(resized(random.standard_normal(coarse), shape, Image.Resampling.BICUBIC))


def _standard(drawn: Floats) -> Floats:
    centred = drawn - drawn.mean()
    standard: Floats = centred / centred.std()
    return standard


def resized(
    picture: Array, shape: Shape, how: Image.Resampling = Image.Resampling.BILINEAR
) -> Floats:
    """Bring any (H, W) to a size, as float32."""
    image = Image.fromarray(picture.astype(np.float32))
    return np.asarray(image.resize(shape[::-1], how))


def smooth(picture: Floats, along: float, across: float, angle: float = 0.0) -> Floats:
    """Smooth (H, W) with a Gaussian in any direction; what leaves at one side comes in opposite."""
    fy = np.fft.fftfreq(picture.shape[0])[:, None].astype(np.float32)
    fx = np.fft.rfftfreq(picture.shape[1])[None].astype(np.float32)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    squares = (along * (cos * fx + sin * fy)) ** 2 + (across * (cos * fy - sin * fx)) ** 2
    gain = np.exp(np.float32(-2 * np.pi**2) * squares)
    # Newer NumPy keeps float32 by itself.
    return np.fft.irfft2(np.fft.rfft2(picture) * gain, s=picture.shape).astype(np.float32)


def soften(picture: Floats, deviation: float) -> Floats:
    """Smooth (H, W) with three taps each way, of a standard deviation below 0.7 pixels."""
    side = np.float32(deviation**2 / 2)
    for axis in (0, 1):
        padded = np.pad(picture, [(int(axis == 0),) * 2, (int(axis == 1),) * 2], mode="edge")
        before, after = (padded[:-2], padded[2:]) if axis == 0 else (padded[:, :-2], padded[:, 2:])
        picture = (1 - 2 * side) * picture + side * (before + after)
    return picture


def stroke(shape: Shape, points: Array, radii: Array) -> Floats:
    """Draw discs along points (N, 2): which share of each pixel (H, W) they cover."""
    image = Image.new("L", (shape[1] * FINER, shape[0] * FINER))
    draw = ImageDraw.Draw(image)
    for (x, y), radius in zip(points * FINER, radii * FINER, strict=True):
        # Thinner ones would fall between pixels, and the line would not be whole.
        reach = max(radius, 0.5 * FINER)
        draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=255)
    covered: Floats = np.asarray(image.reduce(FINER), dtype=np.float32) / np.float32(255)
    return covered


def _curve(
    random: Random, shape: Shape, unit: float, length: float, angle: float, bend: float
) -> Array:
    """Points (N, 2), half a pixel apart, of an arc through a place near the centre.

    `bend` is in radians a pixel.
    """
    steps = np.arange(-length * unit, length * unit) / 2
    heading = angle + bend * steps
    points = np.cumsum(np.stack([np.cos(heading), np.sin(heading)], axis=1), axis=0) / 2
    points += _centre(random, shape) - points[len(points) // 2]
    return points


def _zigzag(random: Random, start: Array, length: float, angle: float, unit: float) -> Array:
    """Points (N, 2), half a pixel apart, of a line that changes its direction every few pixels."""
    headings: list[float] = []
    while len(headings) < 2 * length:
        headings += [angle + random.normal(0, 0.55)] * max(1, round(random.uniform(3, 10) * unit))
    heading = np.array(headings)
    return start + np.cumsum(np.stack([np.cos(heading), np.sin(heading)], axis=1), axis=0) / 2


def _centre(random: Random, shape: Shape) -> Array:
    """Draw a place (x, y) in the middle of a canvas, which every picture of it shows."""
    place: Array = random.uniform(0.28, 0.72, 2) * shape[::-1]
    return place


def _grid(shape: Shape) -> tuple[Floats, Floats]:
    y, x = np.indices(shape, dtype=np.float32)
    return x, y


def _turned(shape: Shape, angle: float) -> tuple[Array, Array]:
    """Coordinates (H, W) from the centre, along a direction and across it."""
    x, y = _grid(shape)
    x, y = x - shape[1] / 2, y - shape[0] / 2
    return np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x


def _sign(random: Random, light: float = 0.5) -> float:
    """Draw 1 for lighter, with this probability, else -1."""
    return 1.0 if random.random() < light else -1.0
