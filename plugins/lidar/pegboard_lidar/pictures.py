"""Pictures of a scan without a display: from above, as the scanner sees it, and in space.

No library draws in space here: all is NumPy and Pillow, with Matplotlib's colours. Pictures are
uint8 (H, W, 3); `png_bytes` makes a file of one. True boxes are blue, found ones orange, which
those tell apart, too, who confuse red and green.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import minimum_filter

from pegboard.records import Array
from pegboard_lidar import boxes as shapes
from pegboard_lidar.settings import LidarSettings

BACKGROUND, FAINT, TEXT = (16, 20, 26), (44, 52, 62), (150, 160, 172)
TRUE, FOUND = (70, 190, 255), (255, 150, 0)

FINER = 2
"""Everything is drawn so many times as large, and then made smaller: lines become smooth."""

SPARSE = 10_000
"""Points of a thinned scan, which are drawn twice as large."""

RINGS = 20
"""Metres between the rings about the scanner."""

HEIGHTS = (-2.0, 1.5)
"""Metres, the colours' ends: about from the ground to the roof of a car for a scanner on one."""

EDGES = (
    (0, 1),
    (1, 2),
    (2, 3),
    (3, 0),
    (4, 5),
    (5, 6),
    (6, 7),
    (7, 4),
    *((i, i + 4) for i in range(4)),
)
"""Of a box, between its `corners`."""

CELL = (0.2, 0.42)
"""Degrees across and down of a cell of the range image: about what 64 beams leave between them."""

NEAR_PLANE = 0.5
"""Metres before the eye at which lines are cut."""


def png_bytes(picture: Array) -> bytes:
    """Return the file of a picture, uint8 (H, W, 3)."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    return stream.getvalue()


# --- From above -----------------------------------------------------------------------------------


def birds_eye(
    settings: LidarSettings,
    points: Array,
    true: Array | None = None,
    found: Array | None = None,
    *,
    true_names: Sequence[str] = (),
    found_names: Sequence[str] = (),
    heat: Array | None = None,
    pixels: int = 640,
) -> Array:
    """Draw a scan from above: ahead is up, left is left.

    Args:
        settings: Say the range that is drawn.
        points: (N, >=3), points that are not finite among them.
        true: Boxes (M, 7).
        found: Boxes (D, 7).
        true_names: What stands to the left of true boxes; nothing where it is shorter.
        found_names: What stands to the right of found ones; nothing where it is shorter.
        heat: 0 to 1, (K, H, W) of K classes over the range, rows ahead and columns to the left as
            the model's maps are; the largest is drawn.
        pixels: Of the longer side.
    """
    view = _FromAbove(settings, pixels * FINER)
    canvas = np.full((view.height, view.width, 3), BACKGROUND, dtype=np.uint8)
    if heat is not None:
        _lay_heat(canvas, np.asarray(heat).max(axis=0))
    points = _inside(settings, points)
    _put(canvas, *view.places(points), _height_colors(points[:, 2]), size=_dot(points))
    image = Image.fromarray(canvas)
    pen = ImageDraw.Draw(image)
    _draw_rings(pen, view)
    writer = _Names(pen, view)
    for some, names, color, anchor in (
        (true, true_names, TRUE, "rm"),
        (found, found_names, FOUND, "lm"),
    ):
        for box, name in _boxes(some, names):
            _draw_footprint(pen, view, box, color)
            if name:
                writer.write(box, name, color, anchor)
    return _smaller(image)


class _FromAbove:
    """Metres to pixels."""

    def __init__(self, settings: LidarSettings, pixels: int) -> None:
        low_x, low_y, _, high_x, high_y, _ = settings.data.range
        self.scale = pixels / max(high_x - low_x, high_y - low_y)
        self.top, self.left = high_x, high_y
        self.height = round((high_x - low_x) * self.scale / FINER) * FINER
        self.width = round((high_y - low_y) * self.scale / FINER) * FINER

    def places(self, points: Array) -> tuple[Array, Array]:
        """Return across and down of points (N, >=2)."""
        return (self.left - points[:, 1]) * self.scale, (self.top - points[:, 0]) * self.scale


def _inside(settings: LidarSettings, points: Array) -> Array:
    low, high = np.array(settings.data.range).reshape(2, 3)
    xyz = np.asarray(points)[:, :3]
    # A point with NaN is nowhere.
    kept = xyz[((xyz >= low) & (xyz < high)).all(axis=1)]
    return kept[np.argsort(kept[:, 2], kind="stable")]


def _dot(points: Array) -> int:
    return FINER * (2 if len(points) < SPARSE else 1)


def _height_colors(heights: Array) -> Array:
    """Colour heights: what stands on the ground is brighter than the ground, (N, 3)."""
    low, high = HEIGHTS
    share = np.clip((heights - low) / (high - low), 0, 1)
    return _colored(0.25 + 0.75 * share, "viridis")


def _colored(shares: Array, name: str) -> Array:
    """Return the colours uint8 (..., 3) of 0 to 1."""
    from matplotlib import colormaps

    colors: Array = colormaps[name](shares, bytes=True)[..., :3]
    return colors


def _lay_heat(canvas: Array, heat: Array) -> None:
    """Mix a map into the ground of a picture: where it is hot, red."""
    height, width = canvas.shape[:2]
    # Rows ahead are upwards here, columns to the left leftwards.
    turned = np.clip(np.asarray(heat, dtype=np.float32)[::-1, ::-1], 0, 1)
    large = Image.fromarray(turned).resize((width, height), Image.Resampling.BILINEAR)
    share = np.asarray(large)[..., None]
    canvas[:] = (canvas * (1 - share) + _colored(share[..., 0], "inferno") * share).astype(np.uint8)


def _put(canvas: Array, across: Array, down: Array, colors: Array, *, size: int) -> None:
    """Set square dots; later ones cover earlier ones."""
    column, row = np.floor(across).astype(np.int64), np.floor(down).astype(np.int64)
    for right in range(size):
        for below in range(size):
            x, y = column + right, row + below
            seen = (x >= 0) & (x < canvas.shape[1]) & (y >= 0) & (y < canvas.shape[0])
            canvas[y[seen], x[seen]] = colors[seen]


def _draw_rings(pen: ImageDraw.ImageDraw, view: _FromAbove) -> None:
    """Draw how far it is, at every 20 m."""
    x, y = view.left * view.scale, view.top * view.scale
    font = ImageFont.load_default(11 * FINER)
    farthest = int(np.hypot(view.width, view.height) / view.scale)
    for metres in range(RINGS, farthest, RINGS):
        reach = metres * view.scale
        pen.ellipse((x - reach, y - reach, x + reach, y + reach), outline=FAINT, width=FINER)
        pen.text((x + 3 * FINER, y - reach), f"{metres} m", fill=TEXT, font=font)
    pen.regular_polygon((x, y - 2 * FINER, 5 * FINER), 3, fill=TEXT)


def _boxes(boxes: Array | None, names: Sequence[str] = ()) -> Iterator[tuple[Array, str]]:
    """Yield boxes that are finite, and their names."""
    for place, box in enumerate([] if boxes is None else boxes):
        if np.isfinite(box).all():
            yield box, names[place] if place < len(names) else ""


def _draw_footprint(
    pen: ImageDraw.ImageDraw, view: _FromAbove, box: Array, color: tuple[int, int, int]
) -> None:
    """Draw a box from above, with a line to where it heads."""
    bottom = shapes.corners(box[None])[0, :4]
    front = bottom[[0, 3]].mean(axis=0)
    nose = front + (front - box[:3]) * 0.35
    across, down = view.places(np.vstack([bottom, bottom[:1]]))
    pen.line(list(zip(across, down, strict=True)), fill=color, width=2 * FINER, joint="curve")
    across, down = view.places(np.stack([front, nose]))
    pen.line(list(zip(across, down, strict=True)), fill=color, width=2 * FINER)


class _Names:
    """Writes names beside boxes, none over another."""

    def __init__(self, pen: ImageDraw.ImageDraw, view: _FromAbove) -> None:
        self.pen, self.view = pen, view
        self.font = ImageFont.load_default(11 * FINER)
        self.taken: list[tuple[float, float, float, float]] = []

    def write(self, box: Array, name: str, color: tuple[int, int, int], anchor: str) -> None:
        """Write on a box's right where the name's left end is the anchor, else on its left."""
        across, down = self.view.places(shapes.corners(box[None])[0, :4])
        gap = 4 * FINER
        x = float(across.max() + gap if anchor == "lm" else across.min() - gap)
        y = float(down.mean())
        place = self.pen.textbbox((x, y), name, font=self.font, anchor=anchor)
        while any(_overlap(place, other) for other in self.taken):
            y += FINER
            place = self.pen.textbbox((x, y), name, font=self.font, anchor=anchor)
        self.taken.append(place)
        self.pen.text((x, y), name, fill=color, font=self.font, anchor=anchor)


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two (left, top, right, bottom) share an area."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _smaller(image: Image.Image) -> Array:
    size = image.width // FINER, image.height // FINER
    return np.asarray(image.resize(size, Image.Resampling.BOX))


# --- As the scanner sees it -----------------------------------------------------------------------


def range_image(
    points: Array,
    *,
    coarser: float | None = None,
    farthest: float = 60.0,
    size: tuple[int, int] = (1024, 256),
) -> Array:
    """Draw a scan as the scanner sees it: azimuth across, elevation down, near is bright.

    Args:
        points: (N, >=3), points that are not finite among them.
        coarser: How many times as large as `CELL` the cells are along both sides; None: so large
            that half of them hold a point, as a scan may have been thinned.
        farthest: Metres that are drawn darkest.
        size: Width and height in pixels.
    """
    xyz = np.asarray(points)[:, :3].astype(np.float64)
    xyz = xyz[np.isfinite(xyz).all(axis=1)]
    distance = np.maximum(np.linalg.norm(xyz, axis=1), 1e-6)
    azimuth = np.rad2deg(np.arctan2(xyz[:, 1], xyz[:, 0]))
    elevation = np.rad2deg(np.arcsin(xyz[:, 2] / distance))
    if coarser is None:
        cells = _bins(azimuth, CELL[0])[1] * _bins(elevation, CELL[1])[1]
        coarser = max(1.0, float(np.sqrt(cells / max(1, 2 * len(xyz)))))
    column, columns = _bins(-azimuth, CELL[0] * coarser)
    row, rows = _bins(-elevation, CELL[1] * coarser)
    nearest = np.full((rows, columns), np.inf)
    np.minimum.at(nearest, (row, column), distance)
    # A gap of one cell is between beams, not between things.
    nearest = np.where(np.isfinite(nearest), nearest, minimum_filter(nearest, 3, mode="nearest"))
    is_there = np.isfinite(nearest)
    near = 1 - np.clip(np.where(is_there, nearest, farthest) / farthest, 0, 1)
    colors = _colored(0.08 + 0.92 * near, "magma")
    colors[~is_there] = BACKGROUND
    return np.asarray(Image.fromarray(colors).resize(size, Image.Resampling.NEAREST))


def _bins(degrees: Array, width: float) -> tuple[Array, int]:
    """Sort angles evenly between the smallest and the largest that are usual.

    Returns:
        The place of each, and how many places there are.
    """
    if not len(degrees):
        return np.zeros(0, dtype=np.int64), 1
    low, high = np.percentile(degrees, (0.2, 99.8))
    count = max(1, round(float(high - low) / width))
    places = ((degrees - low) / width).astype(np.int64).clip(0, count - 1)
    return places, count


# --- In space -------------------------------------------------------------------------------------


class _Eye:
    """A pinhole camera.

    Args:
        place: Where it is, in metres.
        target: What it looks at.
        size: Width and height of the picture in pixels.
        angle: That it sees across, in degrees.
    """

    def __init__(
        self, place: Sequence[float], target: Sequence[float], size: tuple[int, int], angle: float
    ) -> None:
        self.place, self.size = np.array(place), size
        ahead = np.array(target) - self.place
        ahead = ahead / np.linalg.norm(ahead)
        right = np.cross(ahead, (0.0, 0.0, 1.0))
        right /= np.linalg.norm(right)
        self.turn = np.stack([right, np.cross(ahead, right), ahead])
        self.focal = size[0] / 2 / np.tan(np.deg2rad(angle) / 2)

    def seen(self, points: Array) -> Array:
        """Return points (N, 3) in its frame: to the right, down, ahead."""
        seen: Array = (points - self.place) @ self.turn.T
        return seen

    def places(self, seen: Array) -> tuple[Array, Array]:
        """Return across and down, in pixels, of points of its frame."""
        width, height = self.size
        scaled = seen[:, :2] * self.focal / seen[:, 2:]
        return width / 2 + scaled[:, 0], height / 2 + scaled[:, 1]


def perspective(
    settings: LidarSettings,
    points: Array,
    true: Array | None = None,
    found: Array | None = None,
    *,
    size: tuple[int, int] = (960, 480),
) -> Array:
    """Draw a scan in space, seen from behind and above the scanner.

    Args:
        settings: Say the range that is drawn.
        points: (N, >=3), points that are not finite among them.
        true: Boxes (M, 7).
        found: Boxes (D, 7).
        size: Width and height in pixels.
    """
    width, height = size[0] * FINER, size[1] * FINER
    eye = _Eye((-14.0, 0.0, 9.0), (20.0, 0.0, -2.0), (width, height), 60.0)
    canvas = np.full((height, width, 3), BACKGROUND, dtype=np.uint8)
    inside = _inside(settings, points)
    seen = eye.seen(inside)
    order = np.argsort(-seen[:, 2], kind="stable")  # What is near covers what is far.
    order = order[seen[order, 2] > NEAR_PLANE]
    colors = _height_colors(inside[order, 2]).astype(np.float64)
    # What is far fades.
    clear = np.clip(1.15 - seen[order, 2] / 110, 0.35, 1)[:, None]
    colors = (colors * clear + np.array(BACKGROUND) * (1 - clear)).astype(np.uint8)
    _put(canvas, *eye.places(seen[order]), colors, size=_dot(inside) + 1)
    image = Image.fromarray(canvas)
    pen = ImageDraw.Draw(image)
    for some, color in ((true, TRUE), (found, FOUND)):
        for box, _ in _boxes(some):
            _draw_box(pen, eye, box, color)
    return _smaller(image)


def _draw_box(pen: Any, eye: _Eye, box: Array, color: tuple[int, int, int]) -> None:
    corners = eye.seen(shapes.corners(box[None])[0])
    for first, second in EDGES:
        ends = _before(corners[first], corners[second])
        if ends is not None:
            across, down = eye.places(ends)
            pen.line(list(zip(across, down, strict=True)), fill=color, width=FINER + 1)


def _before(start: Array, end: Array) -> Array | None:
    """Cut a line (3,), (3,) of the eye's frame at the near plane, (2, 3); None if it is behind."""
    if start[2] < end[2]:
        start, end = end, start
    if start[2] <= NEAR_PLANE:
        return None
    if end[2] < NEAR_PLANE:
        end = start + (end - start) * (start[2] - NEAR_PLANE) / (start[2] - end[2])
    return np.stack([start, end])
