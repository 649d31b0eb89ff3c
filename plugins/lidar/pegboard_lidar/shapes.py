"""Meshes of what stands in a generated scene: cars, people, bicycles, trees, houses, clutter.

A mesh stands on z = 0, its middle over the origin, its front to +x; metres. Vehicles are drawn by
lofting: cross-sections along the length are joined to a skin, whose parts are paint or glass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float32]
Random = np.random.Generator
Point = Sequence[float] | NDArray[np.floating[Any]]

GROUND, WALL, LEAVES, WOOD, PAINT, GLASS, PANE, RUBBER, CLOTH, METAL, NET = range(11)
"""Materials. Rays pass through GLASS, LEAVES and NET at times; a PANE has a room behind it that
swallows them."""

LABELLED = ("Car", "Van", "Truck", "Pedestrian", "Cyclist", "Misc")
"""Kinds of which a scene keeps labels, by KITTI's names."""


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """Triangles and what they are made of."""

    vertices: Floats
    """(V, 3)."""
    triangles: NDArray[np.int32]
    """(T, 3)."""
    materials: NDArray[np.uint8]
    """(T,)."""
    size: Floats
    """(3,), length, width and height of what a label's box encloses."""


def joined(parts: Sequence[Mesh], *, extras: Sequence[Mesh] = ()) -> Mesh:
    """Return one mesh, its middle over the origin; `extras`, such as mirrors, leave the box."""
    everything = [*parts, *extras]
    starts = np.cumsum([0, *(len(part.vertices) for part in everything[:-1])])
    triangles = [part.triangles + start for part, start in zip(everything, starts, strict=True)]
    vertices = np.concatenate([part.vertices for part in everything])
    boxed = vertices[: sum(len(part.vertices) for part in parts)]
    low, high = boxed.min(axis=0), boxed.max(axis=0)
    vertices[:, :2] -= (low[:2] + high[:2]) / 2
    vertices[:, 2] -= low[2]
    return Mesh(
        vertices=vertices,
        triangles=np.concatenate(triangles).astype(np.int32),
        materials=np.concatenate([part.materials for part in everything]),
        size=high - low,
    )


def mesh(vertices: ArrayLike, triangles: ArrayLike, material: int | ArrayLike) -> Mesh:
    """Return a mesh of vertices (V, 3), triangles (T, 3) and one material or (T,)."""
    points = np.array(vertices, dtype=np.float32)
    corners = np.array(triangles, dtype=np.int32)
    return Mesh(
        vertices=points,
        triangles=corners,
        materials=np.broadcast_to(np.asarray(material, dtype=np.uint8), len(corners)).copy(),
        size=points.max(axis=0) - points.min(axis=0),
    )


def moved(part: Mesh, by: Point, *, yaw: float = 0.0, pitch: float = 0.0) -> Mesh:
    """Return it pitched (front down), turned about z, then shifted."""
    sin, cos = np.sin(pitch), np.cos(pitch)
    pitched = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
    sin, cos = np.sin(yaw), np.cos(yaw)
    turned = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    vertices = part.vertices @ (turned @ pitched).T.astype(np.float32) + np.asarray(by, np.float32)
    return mesh(vertices, part.triangles, part.materials)


# --- Simple bodies --------------------------------------------------------------------------------

_CORNERS = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (0.0, 1.0)])
# fmt: off
_SIDES = np.array([
    [0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1],
    [2, 3, 7], [2, 7, 6], [1, 5, 7], [1, 7, 3], [0, 2, 6], [0, 6, 4],
])
# fmt: on


def block(length: float, width: float, height: float, material: int, at: Point = (0, 0, 0)) -> Mesh:
    """Return a box that stands at a point, the middle of its bottom."""
    return mesh(_CORNERS * (length, width, height) + np.asarray(at), _SIDES, material)


def limb(
    start: Point,
    end: Point,
    thick: float,
    thin: float,
    material: int,
    *,
    sides: int = 6,
    closed: bool = False,
) -> Mesh:
    """Return a prism between two points, of a radius at each; closed: it has ends."""
    first, last = np.asarray(start, float), np.asarray(end, float)
    along = (last - first) / max(float(np.linalg.norm(last - first)), 1e-6)
    across = np.cross(along, (0.0, 0.0, 1.0) if abs(along[2]) < 0.9 else (1.0, 0.0, 0.0))
    across /= np.linalg.norm(across)
    angles = np.arange(sides) * 2 * np.pi / sides
    ring = np.cos(angles)[:, None] * across + np.sin(angles)[:, None] * np.cross(along, across)
    vertices = np.concatenate([first + thick * ring, last + thin * ring, [first, last]])
    i = np.arange(sides)
    j = (i + 1) % sides
    low, high = np.full(sides, 2 * sides), np.full(sides, 2 * sides + 1)
    triangles = [(i, j, j + sides), (i, j + sides, i + sides)]
    if closed:
        triangles += [(j, i, low), (i + sides, j + sides, high)]
    return mesh(vertices, np.concatenate([np.stack(one, axis=1) for one in triangles]), material)


@lru_cache
def _ball(rings: int, sides: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    heights = np.linspace(-np.pi / 2, np.pi / 2, rings + 1)[:, None]
    angles = np.arange(sides)[None] * 2 * np.pi / sides
    points = np.stack(
        [
            np.cos(heights) * np.cos(angles),
            np.cos(heights) * np.sin(angles),
            np.sin(heights) + 0 * angles,
        ],
        axis=-1,
    )
    return points.reshape(-1, 3), grid(rings + 1, sides, closed=True)


def grid(rows: int, columns: int, *, closed: bool) -> NDArray[np.int64]:
    """Return the triangles of a grid of vertices; closed: its last column meets the first."""
    i = np.arange(rows - 1)[:, None]
    j = np.arange(columns if closed else columns - 1)[None]
    k = (j + 1) % columns
    a, b, c, d = i * columns + j, i * columns + k, (i + 1) * columns + k, (i + 1) * columns + j
    return np.stack([a, b, c, a, c, d], axis=-1).reshape(-1, 3)


def ball(
    middle: Point, radii: Point, material: int, *, random: Random | None = None, bumps: float = 0.0
) -> Mesh:
    """Return an ellipsoid; with `bumps` its vertices are moved by that share of the radius."""
    points, triangles = _ball(4, 7)
    if random is not None:
        points = points * (1 + bumps * random.uniform(-1, 1, (len(points), 1)))
    return mesh(points * np.asarray(radii) + np.asarray(middle), triangles, material)


def leaves(random: Random, middle: Point, radii: Point, count: int) -> Mesh:
    """Return `count` small triangles strewn in an ellipsoid."""
    direction = random.normal(size=(count, 1, 3))
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    places = direction * random.uniform(0.3, 1.0, (count, 1, 1)) * np.asarray(radii)
    corners = places + random.normal(0, 0.2, (count, 3, 3)) + np.asarray(middle)
    corners[..., 2] = corners[..., 2].clip(0)
    return mesh(corners.reshape(-1, 3), np.arange(3 * count).reshape(-1, 3), LEAVES)


# --- Vehicles -------------------------------------------------------------------------------------

Profile = Sequence[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Style:
    """What makes a kind of car: ranges of sizes, and its outline seen from the side."""

    length: tuple[float, float]
    width: tuple[float, float]
    height: tuple[float, float]
    nose: tuple[float, float]
    """Height of the bonnet's front edge, as a share of the car's height."""
    cowl: tuple[float, float]
    """Where the windscreen begins, as a share of the length from the front."""
    belt: tuple[float, float]
    """Height of the windows' lower edge, as a share of the height."""
    rake: tuple[float, float]
    """Length of the windscreen seen from above, as a share of the car's length."""
    roof_end: tuple[float, float]
    tail: tuple[float, float]
    """Where the rear window ends, as a share of the length."""
    deck: tuple[float, float]
    """Height there, as a share of the height."""
    clearance: tuple[float, float] = (0.14, 0.22)
    windowless: float = 0.0
    """Share of the cars that have metal in place of the rear side windows."""


CARS: Mapping[str, tuple[float, Style]] = {
    "hatchback": (
        0.28,
        Style(
            length=(3.5, 4.3), width=(1.54, 1.76), height=(1.4, 1.56), nose=(0.46, 0.56),
            cowl=(0.2, 0.28), belt=(0.6, 0.67), rake=(0.14, 0.22), roof_end=(0.84, 0.92),
            tail=(0.94, 0.985), deck=(0.6, 0.7),
        ),
    ),
    "sedan": (
        0.22,
        Style(
            length=(4.0, 5.0), width=(1.6, 1.84), height=(1.36, 1.52), nose=(0.46, 0.56),
            cowl=(0.23, 0.3), belt=(0.6, 0.67), rake=(0.13, 0.2), roof_end=(0.62, 0.72),
            tail=(0.78, 0.88), deck=(0.63, 0.74),
        ),
    ),
    "estate": (
        0.16,
        Style(
            length=(4.0, 4.8), width=(1.6, 1.8), height=(1.4, 1.56), nose=(0.46, 0.56),
            cowl=(0.22, 0.28), belt=(0.6, 0.67), rake=(0.13, 0.2), roof_end=(0.88, 0.95),
            tail=(0.96, 0.99), deck=(0.58, 0.68),
        ),
    ),
    "suv": (
        0.13,
        Style(
            length=(3.8, 4.8), width=(1.66, 1.92), height=(1.6, 1.9), nose=(0.5, 0.62),
            cowl=(0.2, 0.28), belt=(0.6, 0.68), rake=(0.1, 0.18), roof_end=(0.86, 0.95),
            tail=(0.95, 0.99), deck=(0.58, 0.7), clearance=(0.2, 0.3),
        ),
    ),
    "people carrier": (
        0.1,
        Style(
            length=(3.8, 4.7), width=(1.6, 1.82), height=(1.56, 1.8), nose=(0.44, 0.54),
            cowl=(0.12, 0.2), belt=(0.54, 0.62), rake=(0.18, 0.27), roof_end=(0.88, 0.95),
            tail=(0.95, 0.99), deck=(0.55, 0.65), windowless=0.2,
        ),
    ),
    "city car": (
        0.11,
        Style(
            length=(3.2, 3.7), width=(1.5, 1.66), height=(1.38, 1.56), nose=(0.46, 0.58),
            cowl=(0.13, 0.22), belt=(0.58, 0.66), rake=(0.16, 0.26), roof_end=(0.86, 0.95),
            tail=(0.95, 0.99), deck=(0.55, 0.68),
        ),
    ),
}  # fmt: skip
"""How frequent each is, and what it is like."""

VAN = Style(
    length=(4.3, 6.0), width=(1.8, 2.1), height=(1.85, 2.6), nose=(0.4, 0.48), cowl=(0.08, 0.16),
    belt=(0.5, 0.58), rake=(0.09, 0.15), roof_end=(0.95, 0.97), tail=(0.98, 0.99),
    deck=(0.45, 0.6), clearance=(0.18, 0.28), windowless=0.7,
)  # fmt: skip


def car(random: Random) -> Mesh:
    """Return a car of any style."""
    shares = np.array([share for share, _ in CARS.values()])
    style = list(CARS.values())[random.choice(len(shares), p=shares / shares.sum())][1]
    return vehicle(random, style)


def van(random: Random) -> Mesh:
    """Return a delivery van or minibus."""
    return vehicle(random, VAN)


def vehicle(random: Random, style: Style) -> Mesh:
    """Return a vehicle: skin, wheels, seats seen through the windows, mirrors."""

    def of(limits: tuple[float, float]) -> float:
        return float(random.uniform(*limits))

    # Long cars are wide ones, so that proportions stay those of real cars.
    place = float(random.uniform())
    length = style.length[0] + place * (style.length[1] - style.length[0])
    spread = float(np.clip(place + random.normal(0, 0.25), 0, 1))
    width = style.width[0] + spread * (style.width[1] - style.width[0])
    height = of(style.height)
    radius = float(np.clip(0.2 * height + random.normal(0, 0.012), 0.26, 0.4))
    axles = (length * random.uniform(0.16, 0.21), length * random.uniform(0.78, 0.84))
    skin = _skin(random, style, (length, width, height), radius, axles)
    inside = 0.11 * width
    wheels = [
        limb((x, side * (width / 2 - 0.02), radius), (x, side * inside * 2.8, radius),
             radius, radius, RUBBER, sides=8, closed=True)
        for x in axles for side in (-1, 1)
    ]  # fmt: skip
    seat = 0.62 * height
    seats = [
        block(0.16, 0.45 * width / 2, seat, CLOTH, (x * length, side * width * 0.22, 0.3))
        for x in (0.52, 0.74)
        for side in (-1, 1)
        if x < style.roof_end[0]
    ]
    mirror = style.cowl[0] * length + random.uniform(0.25, 0.55)
    mirrors = [
        block(0.09, 0.2, 0.15, PAINT, (mirror, side * (width / 2 + 0.06), style.belt[1] * height))
        for side in (-1, 1)
    ]
    whole = joined([skin, *wheels, *seats], extras=mirrors)
    # It was drawn from the front backwards.
    vertices = whole.vertices * np.array([-1, 1, 1], dtype=np.float32)
    return Mesh(
        vertices=vertices,
        triangles=whole.triangles,
        materials=whole.materials,
        size=np.array([length, width, height], dtype=np.float32),
    )


def _skin(
    random: Random,
    style: Style,
    size: tuple[float, float, float],
    radius: float,
    axles: tuple[float, float],
) -> Mesh:
    """Return the body without wheels, x from the front bumper backwards."""

    def of(limits: tuple[float, float]) -> float:
        return float(random.uniform(*limits))

    length, width, height = size
    nose, belt, deck, cowl, tail = map(
        of, (style.nose, style.belt, style.deck, style.cowl, style.tail)
    )
    screen = cowl + of(style.rake)
    roof_end = min(of(style.roof_end), tail - 0.02)
    cowl_height = max(belt, nose + 0.04) + random.uniform(0.0, 0.05)
    rear = random.uniform(0.3, 0.42)
    top: Profile = [
        (0.0, nose - random.uniform(0.1, 0.18)), (0.015, nose - 0.05),
        (random.uniform(0.03, 0.07), nose),
        (cowl * 0.6, nose + 0.65 * (cowl_height - nose)), (cowl, cowl_height),
        (screen, 0.95), ((screen + roof_end) / 2 - 0.04, 1.0),
        (roof_end, random.uniform(0.92, 0.98)), (tail, deck),
        (min(tail + 0.1, 0.985), deck - random.uniform(0.0, 0.03)), (1.0, rear),
    ]  # fmt: skip
    arch = radius * random.uniform(1.08, 1.2)
    pillar = (screen + roof_end) / 2 + random.uniform(-0.05, 0.05)
    last = roof_end - random.uniform(0.02, 0.12)
    windowless = random.uniform() < style.windowless
    marks = [share for share, _ in top] + [pillar - 0.012, pillar + 0.012, last]
    arches = [x / length + arch / length * k for x in axles for k in (-1, -0.7, 0.7, 1)]
    share = np.unique(np.round(np.clip([*marks, *arches], 0, 1), 4))
    x = share * length
    ceiling = np.interp(share, *np.array(sorted(top)).T) * height
    floor = np.interp(share, [0, 0.06, 0.94, 1], [0.27, 0.2, 0.2, 0.3]) - 0.2 + of(style.clearance)
    for axle in axles:
        inside = (arch**2 - (x - axle) ** 2).clip(0)
        floor = np.maximum(floor, np.where(inside > 0, radius + np.sqrt(inside), 0))
    floor = np.minimum(floor, ceiling - 0.12)
    bow = random.uniform(0.76, 0.9), random.uniform(0.8, 0.92)
    half = (
        width
        / 2
        * np.interp(share, [0, 0.07, 0.3, 0.7, 0.94, 1], [bow[0], 0.95, 1, 1, 0.96, bow[1]])
    )
    # The cabin is narrower than the body: the windows lean inwards.
    lean = random.uniform(0.72, 0.86)
    cabin = ((ceiling / height - cowl_height) / (1 - cowl_height)).clip(0, 1)
    edge = half * (0.95 - (0.95 - lean) * cabin)
    shoulder = np.minimum(belt * height, ceiling - 0.04)
    rail = ceiling - 0.02 - 0.05 * cabin
    heights = [floor, floor + 0.6 * (shoulder - floor), shoulder]
    heights += [np.maximum(rail, shoulder + 0.01), ceiling]
    widths = [0.93 * half, half, 0.965 * half, edge, 0.6 * edge]
    one_side = np.stack(
        [np.stack([x, w, z], axis=-1) for w, z in zip(widths, heights, strict=True)], axis=1
    )
    other = one_side[:, ::-1] * (1, -1, 1)
    vertices = np.concatenate([one_side, other], axis=1)  # (stations, 10, 3)
    stations = len(x)
    middle = (share[:-1] + share[1:]) / 2
    materials = np.full((stations - 1, 10), PAINT, dtype=np.uint8)
    cabin_middle = (cabin[:-1] + cabin[1:]) / 2
    side = (cabin_middle > 0.25) & (middle > screen - 0.09) & (middle < last)
    side &= np.abs(middle - pillar) > 0.012
    if windowless:
        side &= middle < pillar
    materials[np.ix_(side, [2, 6])] = GLASS
    front = (middle > cowl) & (middle < screen)
    back = (middle > roof_end) & (middle < tail)
    if windowless:
        back[:] = False
    materials[np.ix_(front | back, [3, 4, 5])] = GLASS
    # Bumpers close the skin at both ends.
    fan = np.array([(0, k, k + 1) for k in range(1, 9)])
    triangles = np.concatenate([grid(stations, 10, closed=True), fan, fan + 10 * (stations - 1)])
    painted = np.concatenate([np.repeat(materials.ravel(), 2), np.full(16, PAINT, np.uint8)])
    return mesh(vertices.reshape(-1, 3), triangles, painted)


def truck(random: Random) -> Mesh:
    """Return a lorry: cab, load, wheels."""
    length, width = random.uniform(6.0, 12.5), random.uniform(2.3, 2.6)
    height, cab = random.uniform(2.6, 3.9), random.uniform(1.7, 2.4)
    low = random.uniform(0.8, 1.2)
    parts = [
        block(cab, width, random.uniform(0.75, 0.95) * height - 0.5, PAINT, (cab / 2, 0, 0.5)),
        block(length - cab - 0.4, width, height - low, METAL, ((length + cab + 0.4) / 2, 0, low)),
        block(length - cab, 0.9, 0.35, METAL, ((length + cab) / 2, 0, 0.6)),
        block(0.02, width * 0.85, 0.7, PANE, (-0.02, 0, 1.5)),
    ]
    parts += [
        limb(
            (x, side * width / 2 * 0.99, 0.5),
            (x, side * (width / 2 - 0.35), 0.5),
            0.5,
            0.5,
            RUBBER,
            sides=10,
            closed=True,
        )
        for x in (1.1, length - 1.2, length - 2.5)
        for side in (-1, 1)
    ]
    return moved(joined(parts), (0, 0, 0), yaw=np.pi)


def trailer(random: Random) -> Mesh:
    """Return a car's trailer, or a caravan."""
    length, width, height = (
        random.uniform(1.6, 4.5),
        random.uniform(1.3, 2.1),
        random.uniform(0.5, 2.0),
    )
    wheels = [
        limb(
            (0, side * width / 2, 0.3),
            (0, side * (width / 2 + 0.15), 0.3),
            0.3,
            0.3,
            RUBBER,
            sides=8,
            closed=True,
        )
        for side in (-1, 1)
    ]
    bar = limb((length / 2, 0, 0.45), (length / 2 + 1.0, 0, 0.45), 0.05, 0.05, METAL)
    return joined([block(length, width, height, METAL, (0, 0, 0.4)), bar, *wheels])


# --- People ---------------------------------------------------------------------------------------


def pedestrian(random: Random) -> Mesh:
    """Return somebody who walks or stands, perhaps a child, perhaps with a bag."""
    tall = random.uniform(1.0, 1.45) if random.uniform() < 0.12 else random.normal(1.74, 0.09)
    wide = tall * random.uniform(0.125, 0.16) * random.choice([1.0, 1.0, 1.15])
    deep = tall * random.uniform(0.07, 0.1)
    hip, neck = 0.5 * tall, 0.82 * tall
    stride = random.uniform(0.02, 0.24) * tall * (random.uniform() < 0.8)
    thick = 0.052 * tall * random.uniform(0.9, 1.3)
    parts = []
    for side in (-1, 1):
        foot, knee = side * stride, side * stride * 0.45 + 0.04 * (stride > 0.1)
        y = side * wide * 0.45
        parts += [
            limb((0, y, hip + 0.04), (knee, y, hip * 0.52), thick * 1.35, thick, CLOTH),
            limb((knee, y, hip * 0.54), (foot, y, 0.05), thick, thick * 0.7, CLOTH),
            block(0.15 * tall, 0.055 * tall, 0.06, RUBBER, (foot + 0.04, y, 0)),
        ]
    parts.append(_torso((0, 0, hip - 0.05), (random.uniform(-0.02, 0.06), 0, neck), wide, deep))
    parts.append(ball((0.02, 0, 0.925 * tall), (0.055 * tall, 0.045 * tall, 0.075 * tall), CLOTH))
    if random.uniform() < 0.15:
        parts.append(
            limb((0, 0, hip + 0.1), (0, 0, 0.25 * tall), wide, wide * 1.25, CLOTH, sides=8)
        )
    parts += _arms(random, tall, wide, neck, stride)
    if random.uniform() < 0.2:
        parts.append(block(0.17, wide * 1.5, 0.28 * tall, CLOTH, (-deep - 0.08, 0, 0.52 * tall)))
    return joined(parts)


def _torso(low: Point, high: Point, wide: float, deep: float) -> Mesh:
    """Return an eight-sided body, broadest at the shoulders."""
    angles = np.arange(8) * np.pi / 4 + np.pi / 8
    oval = np.stack([deep * np.cos(angles), wide * np.sin(angles)], axis=1) * 1.08
    first, last = np.asarray(low, float), np.asarray(high, float)
    rings = []
    for share, breadth in (
        (0, 0.85),
        (0.1, 0.92),
        (0.4, 0.85),
        (0.85, 1.0),
        (0.97, 0.75),
        (1.0, 0.2),
    ):
        middle = first + share * (last - first)
        rings.append(np.column_stack([middle[:2] + breadth * oval, np.full(8, middle[2])]))
    return mesh(np.concatenate(rings), grid(6, 8, closed=True), CLOTH)


def _arms(random: Random, tall: float, wide: float, neck: float, stride: float) -> list[Mesh]:
    """Return arms that swing against the legs, or hold something, and a bag in a hand."""
    parts = []
    bent = random.uniform(0, 0.25) if random.uniform() < 0.7 else random.uniform(0.25, 0.45)
    for side in (-1, 1):
        swing = -side * stride * random.uniform(0.4, 1.0)
        shoulder = (0.0, side * wide, neck - 0.05 * tall)
        elbow = (swing * 0.5 - 0.03, side * (wide + 0.05 * tall), neck - 0.2 * tall)
        hand = (
            elbow[0] + swing * 0.5 + bent * tall * 0.4,
            side * (wide + random.uniform(0, 0.04)),
            elbow[2] - (0.2 - 0.35 * bent) * tall,
        )
        parts += [
            limb(shoulder, elbow, 0.033 * tall, 0.026 * tall, CLOTH, sides=5),
            limb(elbow, hand, 0.026 * tall, 0.02 * tall, CLOTH, sides=5),
        ]
        if random.uniform() < 0.12:
            parts.append(
                block(0.35, 0.12, 0.3, CLOTH, (hand[0], hand[1], max(hand[2] - 0.35, 0.05)))
            )
    return parts


def bicycle(random: Random) -> Mesh:
    """Return a bicycle without anybody on it."""
    return joined(_bicycle(random)[0])


def _bicycle(random: Random) -> tuple[list[Mesh], float, float]:
    """Return its parts, the radius of the wheels and the distance between them."""
    radius, base = random.uniform(0.31, 0.36), random.uniform(0.98, 1.12)
    parts = []
    for x in (-base / 2, base / 2):
        angles = np.arange(12) * np.pi / 6
        rim = np.stack(
            [x + radius * np.cos(angles), 0 * angles, radius + radius * np.sin(angles)], axis=1
        )
        hub = np.array([x, 0, radius])
        inner = hub + (rim - hub) * 0.86
        side = np.array([0, 0.02, 0])
        tyre = np.concatenate([inner - side, rim - side, rim + side, inner + side])
        parts.append(mesh(tyre, grid(4, 12, closed=True), RUBBER))
        spokes = mesh(
            np.concatenate([inner, [hub]]), [(k, (k + 1) % 12, 12) for k in range(12)], NET
        )
        parts.append(spokes)
    saddle, bars = (-0.22, 0, 0.92), (base / 2 - 0.17, 0, 1.0)
    crank, back, front = (-0.1, 0, 0.3), (-base / 2, 0, radius), (base / 2, 0, radius)
    parts += [
        limb(a, b, 0.022, 0.022, METAL, sides=4)
        for a, b in (
            (crank, saddle),
            (crank, bars),
            (saddle, bars),
            (back, crank),
            (back, saddle),
            (front, bars),
        )
    ]
    wide = random.uniform(0.22, 0.31)
    parts.append(limb((bars[0], -wide, 1.04), (bars[0], wide, 1.04), 0.02, 0.02, METAL, sides=4))
    parts.append(block(0.24, 0.14, 0.06, CLOTH, (saddle[0], 0, 0.92)))
    if random.uniform() < 0.25:
        parts.append(block(0.35, 0.3, 0.25, CLOTH, (-base / 2, 0, 0.72)))
    return parts, radius, base


def cyclist(random: Random) -> Mesh:
    """Return somebody on a bicycle, more or less bent over the handlebars."""
    parts, _, base = _bicycle(random)
    scale = random.uniform(0.92, 1.06)
    lean = random.uniform(0.1, 0.5)
    hip = np.array([-0.22, 0, 0.96])
    reach = 0.52 * scale
    chest = hip + reach * np.array([np.sin(lean), 0, np.cos(lean)])
    wide = random.uniform(0.19, 0.24)
    parts.append(_torso(hip - np.array([0, 0, 0.06]), chest, wide, 0.13))
    head = chest + np.array([0.06 + 0.08 * lean, 0, 0.19 * scale])
    parts.append(ball(head, (0.11, 0.09, 0.14), CLOTH))
    bars = np.array([base / 2 - 0.17, 0, 1.05])
    turn = random.uniform(0, 2 * np.pi)
    for side in (-1, 1):
        shoulder = chest + np.array([0, side * wide * 0.9, -0.08])
        hand = bars + np.array([0, side * random.uniform(0.2, 0.27), 0])
        elbow = (shoulder + hand) / 2 + (0, side * 0.06, -0.06)
        pedal = np.array([-0.08, side * 0.12, 0.3]) + side * 0.16 * np.array(
            [np.cos(turn), 0, np.sin(turn)]
        )
        knee = (hip + pedal) / 2 + (0.24, side * 0.03, 0.08)
        parts += [
            limb(shoulder, elbow, 0.055, 0.045, CLOTH, sides=5),
            limb(elbow, hand, 0.045, 0.035, CLOTH, sides=5),
            limb(hip + np.array([0, side * 0.08, 0]), knee, 0.09, 0.065, CLOTH),
            limb(knee, pedal, 0.065, 0.045, CLOTH),
            block(0.26, 0.09, 0.08, RUBBER, pedal + np.array([0.05, 0, -0.06])),
        ]
    if random.uniform() < 0.25:
        parts.append(block(0.2, 0.32, 0.42, CLOTH, (chest[0] - 0.3, 0, chest[2] - 0.48)))
    return joined(parts)


# --- Plants ---------------------------------------------------------------------------------------


def tree(random: Random) -> Mesh:
    """Return a trunk with a crown of blobs, of leaves, or a cone to the ground."""
    height = random.uniform(3.0, 10.0)
    thick = random.uniform(0.07, 0.28)
    if random.uniform() < 0.15:
        radius = random.uniform(0.5, 1.6)
        cone = limb((0, 0, 0.1), (0, 0, height * 0.8), radius, 0.1, LEAVES, sides=9)
        return joined(
            [cone, leaves(random, (0, 0, height * 0.3), (radius, radius, height * 0.3), 60)]
        )
    crown = random.uniform(0.3, 0.6) * height
    bend = random.normal(0, 0.04 * height, 2)
    fork = (bend[0], bend[1], crown)
    parts = [limb((0, 0, 0), fork, thick, thick * 0.7, WOOD, sides=7)]
    reach = random.uniform(0.2, 0.38) * height
    for _ in range(random.integers(2, 6)):
        middle = np.array([*bend, crown + 0.25 * height]) + random.normal(0, 0.35, 3) * reach
        radii = reach * random.uniform(0.4, 0.8, 3)
        if random.uniform() < 0.55:
            parts.append(ball(middle, radii, LEAVES, random=random, bumps=0.3))
        else:
            parts.append(leaves(random, middle, radii * 1.2, 45))
        parts.append(limb(fork, middle, thick * 0.4, 0.02, WOOD, sides=3))
    return joined(parts)


def bush(random: Random) -> Mesh:
    """Return a bush, from knee-high to larger than a car."""
    size = np.exp(random.uniform(np.log(0.35), np.log(2.2)))
    parts = []
    for _ in range(random.integers(1, 5)):
        middle = random.normal(0, 0.4, 3) * size * (1, 1, 0) + (
            0,
            0,
            size * random.uniform(0.3, 0.7),
        )
        radii = size * random.uniform(0.4, 0.9, 3)
        if random.uniform() < 0.6:
            parts.append(ball(middle, radii, LEAVES, random=random, bumps=0.3))
        else:
            parts.append(leaves(random, middle, radii, 40))
    return joined(parts)


def hedge(random: Random) -> Mesh:
    """Return a cut hedge, as long as a car at times, and as high."""
    length, width, height = (
        random.uniform(1.5, 7),
        random.uniform(0.5, 1.8),
        random.uniform(0.7, 2.4),
    )
    body = block(length, width, height, LEAVES)
    radii = (length / 2, width / 2 + 0.1, height / 2)
    return joined([body, leaves(random, (0, 0, height / 2), radii, int(8 * length))])


def weeds(random: Random) -> Mesh:
    """Return tall grass and twigs."""
    radius = random.uniform(0.4, 1.5)
    return leaves(random, (0, 0, 0.1), (radius, radius, random.uniform(0.3, 0.9)), 40)


# --- Built ----------------------------------------------------------------------------------------


def facade(random: Random) -> Mesh:
    """Return a house of a street, its length along x, with windows on both sides."""
    length, depth, height = random.uniform(5, 14), random.uniform(5, 10), random.uniform(3, 11)
    parts = [block(length, depth, height, WALL)]
    if random.uniform() < 0.5:
        ridge = random.uniform(1.5, 4)
        roof = [(x, y, height) for x in (-length / 2, length / 2) for y in (-depth / 2, depth / 2)]
        roof += [(-length / 2, 0, height + ridge), (length / 2, 0, height + ridge)]
        parts.append(
            mesh(roof, [(0, 2, 5), (0, 5, 4), (1, 5, 3), (1, 4, 5), (0, 4, 1), (2, 3, 5)], WALL)
        )
    pitch, wide = random.uniform(1.6, 3.0), random.uniform(0.8, 1.4)
    for side in (-1, 1):
        for z in np.arange(random.uniform(0.6, 1.2), height - 1.6, 2.8):
            for x in np.arange(-length / 2 + 1, length / 2 - 0.8, pitch):
                if random.uniform() < 0.8:
                    parts.append(_window((x, side * (depth / 2 + 0.02), z), wide, 1.3))
        for _ in range(random.integers(0, 3)):
            at = (
                random.uniform(-0.4, 0.4) * length,
                side * (depth / 2 + 0.4),
                random.uniform(0, height - 1),
            )
            parts.append(block(random.uniform(1, 3), 0.9, random.uniform(0.2, 1.2), WALL, at))
    return joined(parts)


def _window(at: Point, wide: float, high: float) -> Mesh:
    """Return a pane along x over the middle of its lower edge."""
    corners = np.array(
        [(-wide / 2, 0, 0), (wide / 2, 0, 0), (wide / 2, 0, high), (-wide / 2, 0, high)]
    )
    return mesh(corners + np.asarray(at), [(0, 1, 2), (0, 2, 3)], PANE)


def shed(random: Random) -> Mesh:
    """Return a garage, a kiosk or a hut."""
    length, width, height = random.uniform(2.2, 6), random.uniform(2, 4), random.uniform(2.0, 3.2)
    roof = block(length + 0.4, width + 0.4, 0.15, WOOD, (0, 0, height))
    return joined([block(length, width, height, WALL), roof])


def wall(random: Random) -> Mesh:
    """Return a piece of wall along x."""
    return block(random.uniform(3, 8), random.uniform(0.15, 0.5), random.uniform(0.4, 2.5), WALL)


def fence(random: Random) -> Mesh:
    """Return a piece of fence along x: posts with rails, planks, or wire."""
    length, height = random.uniform(3, 8), random.uniform(0.8, 2.2)
    posts = [
        limb((x, 0, 0), (x, 0, height), 0.05, 0.05, WOOD, sides=4)
        for x in np.linspace(-length / 2, length / 2, 4)
    ]
    kind = random.uniform()
    if kind < 0.4:
        return joined([*posts, block(length, 0.02, height * 0.95, NET, (0, 0, 0.05))])
    if kind < 0.7:
        rails = [block(length, 0.04, 0.1, WOOD, (0, 0, z)) for z in np.arange(0.25, height, 0.4)]
        return joined([*posts, *rails])
    planks = [
        block(0.1, 0.03, height, WOOD, (x, 0, 0.05))
        for x in np.arange(-length / 2, length / 2, 0.2)
    ]
    return joined([*posts, *planks])


def guard_rail(random: Random) -> Mesh:
    """Return a piece of guard rail along x."""
    length = random.uniform(6, 10)
    posts = [
        limb((x, 0, 0), (x, 0, 0.7), 0.06, 0.06, METAL, sides=4)
        for x in (-length / 3, 0, length / 3)
    ]
    return joined([*posts, block(length, 0.08, 0.31, METAL, (0, 0, 0.45))])


def pole(random: Random) -> Mesh:
    """Return a lamp post, a mast or a traffic light."""
    height, thick = random.uniform(2.5, 9), random.uniform(0.04, 0.16)
    parts = [limb((0, 0, 0), (0, 0, height), thick, thick * 0.7, METAL)]
    kind = random.uniform()
    if kind < 0.4:
        reach = random.uniform(0.5, 2.0)
        parts.append(limb((0, 0, height), (reach, 0, height + 0.2), 0.04, 0.04, METAL, sides=4))
        parts.append(block(0.6, 0.25, 0.15, METAL, (reach, 0, height + 0.1)))
    elif kind < 0.65:
        parts.append(block(0.3, 0.3, 0.9, METAL, (0.1, 0, random.uniform(1.8, 2.4))))
    return joined(parts)


def sign(random: Random) -> Mesh:
    """Return a traffic sign or a street's name."""
    height = random.uniform(1.8, 3.0)
    wide, high = random.uniform(0.4, 1.2), random.uniform(0.4, 0.9)
    post = limb((0, 0, 0), (0, 0, height), 0.035, 0.035, METAL, sides=5)
    return joined([post, block(0.03, wide, high, METAL, (0.04, 0, height - high))])


def post(random: Random) -> Mesh:
    """Return a bollard, a hydrant or a parking meter: thin as somebody, and lower at times."""
    height, thick = random.uniform(0.5, 1.9), random.uniform(0.05, 0.22)
    parts = [
        limb(
            (0, 0, 0),
            (0, 0, height),
            thick,
            thick * random.uniform(0.7, 1),
            METAL,
            sides=8,
            closed=True,
        )
    ]
    if random.uniform() < 0.3:
        parts.append(block(0.25, 0.3, 0.45, METAL, (0, 0, height - 0.1)))
    return joined(parts)


def pillar(random: Random) -> Mesh:
    """Return an advertising pillar, a tank or a concrete column."""
    height, thick = random.uniform(1.0, 3.5), random.uniform(0.25, 0.8)
    return joined([limb((0, 0, 0), (0, 0, height), thick, thick, WALL, sides=12, closed=True)])


# --- Clutter --------------------------------------------------------------------------------------


def container(random: Random) -> Mesh:
    """Return a skip, a container or a pile of goods, from car-sized down to a pallet."""
    length, width, height = (
        random.uniform(0.8, 6),
        random.uniform(0.8, 2.4),
        random.uniform(0.6, 2.6),
    )
    body = block(length, width, height, METAL)
    # Skips widen to the top.
    flare = random.uniform(1.0, 1.25)
    body.vertices[body.vertices[:, 2] > 0, :2] *= (flare, 1)
    parts = [body]
    for _ in range(random.integers(0, 4)):
        side = random.uniform(0.3, 0.9, 3)
        at = (*(random.uniform(-0.4, 0.4, 2) * (length, width)), height * random.uniform(0.6, 1.0))
        parts.append(block(side[0], side[1], side[2], WOOD, at))
    return joined(parts)


def crates(random: Random) -> Mesh:
    """Return boxes put on and beside one another."""
    parts = []
    for _ in range(random.integers(1, 6)):
        side = random.uniform(0.3, 1.3, 3)
        at = (*random.normal(0, 0.8, 2), random.choice([0.0, 0.0, 0.6]))
        parts.append(moved(block(side[0], side[1], side[2], WOOD), at, yaw=random.uniform(0, 3)))
    return joined(parts)


def bench(random: Random) -> Mesh:
    """Return a bench, or a table with two."""
    length = random.uniform(1.2, 2.2)
    parts = [block(length, 0.45, 0.06, WOOD, (0, 0, 0.42))]
    parts += [block(0.08, 0.4, 0.42, METAL, (x, 0, 0)) for x in (-length * 0.4, length * 0.4)]
    if random.uniform() < 0.6:
        parts.append(block(length, 0.06, 0.4, WOOD, (0, -0.22, 0.48)))
    else:
        parts.append(block(length, 0.8, 0.06, WOOD, (0, 0.7, 0.72)))
    return joined(parts)


def bins(random: Random) -> Mesh:
    """Return one to four rubbish bins in a row."""
    wide, deep, high = (
        random.uniform(0.45, 1.3),
        random.uniform(0.45, 0.9),
        random.uniform(0.8, 1.4),
    )
    return joined(
        [
            block(wide, deep, high * random.uniform(0.9, 1), METAL, (k * (wide + 0.1), 0, 0))
            for k in range(random.integers(1, 5))
        ]
    )


def cabinet(random: Random) -> Mesh:
    """Return a cabinet of the telephone or the electricity works, or an advertising board."""
    return block(
        random.uniform(0.3, 1.8), random.uniform(0.15, 0.6), random.uniform(0.8, 2.2), METAL
    )


def heap(random: Random) -> Mesh:
    """Return a rock, or a heap of earth."""
    size = random.uniform(0.4, 2.2)
    radii = size * random.uniform(0.5, 1.0, 3)
    lump = ball((0, 0, 0), radii, WALL, random=random, bumps=0.25)
    lump.vertices[:, 2] = lump.vertices[:, 2].clip(0)
    return joined([lump])


def shelter(random: Random) -> Mesh:
    """Return a bus stop's shelter, or a carport."""
    length, width, height = (
        random.uniform(2.5, 5.5),
        random.uniform(1.4, 2.8),
        random.uniform(2.1, 2.7),
    )
    corners = [(x, y) for x in (-length / 2, length / 2) for y in (-width / 2, width / 2)]
    parts = [limb((x, y, 0), (x, y, height), 0.05, 0.05, METAL, sides=4) for x, y in corners]
    parts.append(block(length + 0.2, width + 0.2, 0.12, METAL, (0, 0, height)))
    parts.append(block(length, 0.02, height - 0.5, GLASS, (0, -width / 2, 0.3)))
    return joined(parts)


MAKERS: Mapping[str, tuple[Callable[[Random], Mesh], int]] = {
    "Car": (car, 160), "Van": (van, 16), "Truck": (truck, 10), "Misc": (trailer, 10),
    "Pedestrian": (pedestrian, 100), "Cyclist": (cyclist, 70), "bicycle": (bicycle, 12),
    "tree": (tree, 40), "bush": (bush, 40), "hedge": (hedge, 20), "weeds": (weeds, 12),
    "facade": (facade, 24), "shed": (shed, 10), "wall": (wall, 16), "fence": (fence, 20),
    "rail": (guard_rail, 4), "pole": (pole, 24), "sign": (sign, 12), "post": (post, 24),
    "pillar": (pillar, 10), "container": (container, 30), "crates": (crates, 20),
    "bench": (bench, 8), "bins": (bins, 12), "cabinet": (cabinet, 16), "heap": (heap, 12),
    "shelter": (shelter, 6),
}  # fmt: skip
"""What a library holds: how it is made and how many different ones there are."""

Library = Mapping[str, Sequence[Mesh]]


@lru_cache(maxsize=4)
def library(seed: int, share: float = 1.0) -> Library:
    """Return meshes of every kind; scenes place copies of them.

    Args:
        seed: The same seed gives the same meshes.
        share: Of the usual number of different ones.
    """
    made = {}
    for number, (kind, (make, count)) in enumerate(MAKERS.items()):
        random = np.random.default_rng((seed, number))
        made[kind] = tuple(make(random) for _ in range(max(3, round(share * count))))
    return made
