"""The embedded data set: generated scenes seen by a spinning scanner, in KITTI's object format.

A scene is a site, ground on which copies of meshes are placed, and one turn of the scanner in it.
Streets have coordinates of their own: s along the road, t to its left. Labelled kinds stand only
where the camera of KITTI's calibration would see them, because only there KITTI has labels.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pegboard.files import atomic_path
from pegboard.progress import Progress
from pegboard_lidar import shapes
from pegboard_lidar.scanner import RANGE_NOISE, Echoes, Surfaces, rays, scan, unobstructed
from pegboard_lidar.shapes import Library, Mesh, library

Floats = NDArray[np.float64]
Random = np.random.Generator
Kinds = Mapping[str, float]
Span = tuple[float, float]
T = TypeVar("T", float, Floats)

PICTURE = (1242, 375)
"""Width and height of the camera's picture in pixels."""
P2 = np.array([[719.0, 0, 608.6, 44.6], [0, 719.0, 173.4, 0.22], [0, 0, 1, 0.0027]])
"""Rectified camera to pixels; numbers of our own, like those of a real car."""
FIELD = np.radians(39.0)
"""Directions left and right of ahead in which labelled kinds stand: the camera sees them."""
FARTHEST = 70.0
"""Metres ahead up to which they stand."""
TINY = (8, 2, 2)
"""Scenes of train, val and test in the tiny data set."""
HIDDEN = (0.75, 0.4, 0.1)
"""Visible share of an object's rays from which its occlusion level is 0, 1, 2; else it is 3."""
HEIGHT = 1.73
"""Of the scanner above the ground, metres."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One scan with its labels."""

    points: NDArray[np.float32]
    """(N, 4): x, y, z, reflectance."""
    names: Sequence[str]
    """M classes, by KITTI's names; every object has at least one point."""
    boxes: Floats
    """(M, 7): see `pegboard_lidar.frames`."""
    occlusion: NDArray[np.int64]
    """(M,): 0 fully visible, 1 partly, 2 largely hidden, 3 almost wholly."""
    visible: Floats
    """(M,), share of the object's rays that nothing else takes."""
    counts: NDArray[np.int64]
    """(M,), points of the object in its box."""


@dataclass(frozen=True, kw_only=True)
class SequenceFrame:
    """One scan of a drive."""

    points: NDArray[np.float32]
    """(N, 4), in the scanner's frame; it stands still during a turn."""
    pose: Floats
    """(4, 4), scanner -> world; the world is the frame of the first scan."""
    names: Sequence[str]
    """M classes."""
    boxes: Floats
    """(M, 7), in the scanner's frame."""
    velocity: Floats
    """(M, 2), over the ground, metres a second along the scanner's x and y."""
    ids: NDArray[np.int64]
    """(M,), the same for an object in every frame."""
    seconds: float
    """Since the first scan."""


@dataclass(frozen=True, kw_only=True)
class Ground:
    """Undulating ground, perhaps with a road along s, one across it, kerbs and banks."""

    heading: float = 0.0
    """Of the road, radians."""
    aside: float = 0.0
    """t of the scanner, metres left of the road's middle."""
    edge: float = 1e3
    """Half the road's width."""
    kerb: float = 0.0
    """Height of what is beside the road."""
    across: tuple[float, float] | None = None
    """s and half the width of a road across."""
    slope: Floats = field(default_factory=lambda: np.zeros(2))
    bend: float = 0.0
    """Metres of rise for a square metre along s."""
    waves: Floats = field(default_factory=lambda: np.zeros((0, 4)))
    """(W, 4): wave numbers along x and y, phase, height."""
    bank: Floats = field(default_factory=lambda: np.zeros(2))
    """Slopes left and right, 3 m beside the road."""
    below: float = HEIGHT
    """Metres from the scanner down to it."""

    def road(self, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        """Return s and t of points."""
        sin, cos = np.sin(self.heading), np.cos(self.heading)
        return x * cos + y * sin, y * cos - x * sin + self.aside

    def place(self, s: T, t: T) -> tuple[T, T]:
        """Return x and y of points on the road."""
        sin, cos = math.sin(self.heading), math.cos(self.heading)
        return s * cos - (t - self.aside) * sin, s * sin + (t - self.aside) * cos

    def height(self, x: Floats, y: Floats) -> Floats:
        """Return z at points."""
        s, t = self.road(x, y)
        z = self._rise(x, y, s) - self._rise(np.zeros(1), np.zeros(1), np.zeros(1)) - self.below
        beside = np.abs(t) > self.edge
        if self.across is not None:
            beside &= np.abs(s - self.across[0]) > self.across[1]
        z = z + self.kerb * beside
        beyond = (np.abs(t) - self.edge - 3).clip(0)
        high: Floats = z + (beyond * np.where(t > 0, *self.bank)).clip(-1.5, 3.0)
        return high

    def _rise(self, x: Floats, y: Floats, s: Floats) -> Floats:
        z: Floats = self.slope[0] * x + self.slope[1] * y + self.bend * s * np.abs(s).clip(0, 80)
        for along, sideways, phase, high in self.waves:
            z = z + high * np.sin(along * x + sideways * y + phase)
        return z

    def gradient(self, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        """Return the slope along x and y at points, over the length of a car."""
        up = self._rise
        s = self.road
        dx = up(x + 1, y, s(x + 1, y)[0]) - up(x - 1, y, s(x - 1, y)[0])
        dy = up(x, y + 1, s(x, y + 1)[0]) - up(x, y - 1, s(x, y - 1)[0])
        return dx / 2, dy / 2

    def mesh(self, along: Span, *, rough: float, random: Random) -> Mesh:
        """Return its triangles between two values of s; lines lie close where heights jump."""
        s = _lines(along, near=1.6)
        t = _lines((-75.0, 75.0), near=1.6)
        if self.edge < 75:
            edges = [-self.edge - 0.02, -self.edge + 0.02, self.edge - 0.02, self.edge + 0.02]
            t = np.unique([*t, *edges])
        if self.across is not None:
            middle, half = self.across
            s = np.unique([*s, *(middle + k * (half + e) for k in (-1, 1) for e in (-0.02, 0.02))])
        x, y = self.place(*(one.ravel() for one in np.meshgrid(s, t, indexing="ij")))
        z = self.height(x, y) + random.normal(0, rough, len(x))
        grid = shapes.grid(len(s), len(t), closed=False)
        return shapes.mesh(np.stack([x, y, z], axis=1), grid, shapes.GROUND)


def _lines(span: Span, *, near: float) -> Floats:
    """Return places in a span, `near` metres apart at 0 and farther apart away from it."""
    steps = np.cumsum(near * 1.16 ** np.arange(40))
    steps = steps[np.insert(np.diff(steps) < 8, 0, True)]
    steps = np.concatenate([steps, np.arange(steps[-1] + 8, 1e3, 8)])
    places = np.concatenate([-steps[::-1], [0], steps])
    inside = places[(places > span[0]) & (places < span[1])]
    return np.array([span[0], *inside, span[1]])


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A copy of a mesh."""

    kind: str
    mesh: Mesh
    x: float
    y: float
    yaw: float
    scale: Floats
    """(3,); y below 0: mirrored."""
    albedo: float
    speed: float = 0.0
    """Metres a second along its heading."""

    def after(self, seconds: float) -> Placed:
        """Return it where it will be."""
        way = self.speed * seconds
        x, y = self.x + way * math.cos(self.yaw), self.y + way * math.sin(self.yaw)
        return replace(self, x=x, y=y)

    def discs(self) -> list[tuple[float, float, float]]:
        """Return discs of x, y and radius that cover what it takes up on the ground."""
        length, width = (float(k) for k in self.mesh.size[:2] * np.abs(self.scale[:2]))
        return _discs(self.x, self.y, self.yaw, length, width, _FOOT.get(self.kind))


# --- Placing --------------------------------------------------------------------------------------

_FOOT = {"tree": 0.5, "pole": 0.3, "sign": 0.3, "weeds": 0.1, "bush": 0.6}
"""Metres that a kind takes up on the ground where it is narrower there than above."""
_SPEEDS = {"Pedestrian": (0.6, 1.7), "Cyclist": (2.5, 6.0)}
"""Metres a second of those that go about on their own."""


class Site:
    """Ground, and what has been placed on it without overlap."""

    def __init__(
        self, random: Random, ground: Ground, meshes: Library, *, everywhere: bool = False
    ) -> None:
        self.random = random
        self.ground = ground
        self.meshes = meshes
        self.everywhere = everywhere
        self.placed: list[Placed] = []
        # The car that carries the scanner takes up some road, too.
        self._discs = np.array([[-2.0, 0, 1.6], [0, 0, 1.6], [2.0, 0, 1.8]])

    def choose(self, kinds: Kinds) -> tuple[str, Mesh]:
        """Return a kind by its weight, and one of its meshes."""
        # NumPy's `choice` takes longer than all the rest of placing a thing.
        weights = list(accumulate(kinds.values()))
        kind = list(kinds)[bisect(weights, self.random.random() * weights[-1])]
        meshes = self.meshes[kind]
        return kind, meshes[int(self.random.random() * len(meshes))]

    def put(
        self, kind: str, mesh: Mesh, s: float, t: float, yaw: float, *, speed: float = 0.0
    ) -> bool:
        """Place a mesh on the road's coordinates; False: there is no room for it."""
        x, y = self.ground.place(s, t)
        if not self.everywhere and x < -8:
            return False
        if kind in shapes.LABELLED and not (self.everywhere or _in_view(x, y)):
            return False
        spread = 0.03 if kind in shapes.LABELLED else 0.15
        scale = self.random.uniform(1 - spread, 1 + spread, 3)
        yaw += self.ground.heading
        if self.random.random() < 0.5:
            scale[1] *= -1
        albedo = self._albedo(kind)
        one = Placed(
            kind=kind, mesh=mesh, x=x, y=y, yaw=yaw, scale=scale, albedo=albedo, speed=speed
        )
        discs = one.discs()
        if any(self._is_taken(*disc) for disc in discs):
            return False
        self._discs = np.concatenate([self._discs, discs])
        self.placed.append(one)
        return True

    def _is_taken(self, x: float, y: float, radius: float) -> bool:
        apart = self._discs - (x, y, -radius)
        return bool((apart[:, 0] ** 2 + apart[:, 1] ** 2 < apart[:, 2] ** 2).any())

    def _albedo(self, kind: str) -> float:
        """Return how bright a thing is; the paint of cars goes from black to white."""
        if kind in ("Car", "Van", "Truck"):
            return math.exp(self.random.uniform(math.log(0.012), math.log(1.6)))
        return math.exp(self.random.uniform(math.log(0.25), math.log(1.6)))

    def row(
        self,
        kinds: Kinds,
        t: float,
        span: Span,
        *,
        gap: Span,
        yaw: float = 0.0,
        chance: float = 1.0,
        wobble: float = 0.1,
        turned: float = 0.5,
        speed: float = 0.0,
    ) -> None:
        """Place things one after another along the road.

        Args:
            kinds: Weights of the kinds.
            t: Where the row is.
            span: From which s to which.
            gap: Least and most metres between two.
            yaw: Their heading against the road's.
            chance: That a place is taken.
            wobble: Deviation of t, metres.
            turned: Share of things that look the other way.
            speed: Of them all, so that none runs into the next.
        """
        s = span[0] + self.random.uniform(0, 4)
        while s < span[1]:
            kind, mesh = self.choose(kinds)
            length, width = mesh.size[:2]
            half = (abs(math.cos(yaw)) * float(length) + abs(math.sin(yaw)) * float(width)) / 2
            s += half
            if self.random.random() < chance:
                about = yaw + np.pi * (self.random.random() < turned)
                about += self.random.normal(0, 0.03)
                self.put(kind, mesh, s, t + self.random.normal(0, wobble), about, speed=speed)
            s += half + self.random.uniform(*gap)

    def strew(
        self,
        kinds: Kinds,
        count: float,
        s: Span,
        t: Span,
        *,
        along: float | None = None,
        moves: bool = False,
    ) -> None:
        """Place about `count` things in a rectangle of the road's coordinates.

        Args:
            kinds: Weights of the kinds.
            count: Mean of a Poisson distribution.
            s: From which s to which.
            t: From which t to which.
            along: Deviation of the heading from the road's, either way; None: any heading.
            moves: Whether they move ahead.
        """
        for _ in range(self.random.poisson(count)):
            kind, mesh = self.choose(kinds)
            yaw = self.random.uniform(-np.pi, np.pi)
            if along is not None:
                yaw = np.pi * (self.random.random() < 0.5) + self.random.normal(0, along)
            place = self.random.uniform(*s), self.random.uniform(*t)
            speed = self.random.uniform(*_SPEEDS[kind]) if moves and kind in _SPEEDS else 0.0
            self.put(kind, mesh, *place, yaw, speed=speed)


def _in_view(x: float, y: float) -> bool:
    return 3.5 < x < FARTHEST and abs(math.atan2(y, x)) < FIELD


def _discs(
    x: float, y: float, yaw: float, length: float, width: float, foot: float | None
) -> list[tuple[float, float, float]]:
    """Return discs of x, y and radius that cover what a thing takes up on the ground."""
    if foot is not None:
        return [(x, y, foot / 2 + 0.05)]
    if width > length:
        yaw, length, width = yaw + math.pi / 2, width, length
    count = min(8, max(1, math.ceil(length / max(width, 0.3))))
    radius = max(width, length / count) / 2 + 0.05
    ways = [(k - (count - 1) / 2) * length / count for k in range(count)]
    return [(x + way * math.cos(yaw), y + way * math.sin(yaw), radius) for way in ways]


# --- Layouts --------------------------------------------------------------------------------------

PARKED: Kinds = {"Car": 0.88, "Van": 0.06, "Truck": 0.01, "Misc": 0.02, "container": 0.03}
TRAFFIC: Kinds = {"Car": 0.76, "Van": 0.08, "Truck": 0.05, "Cyclist": 0.11}
PEOPLE: Kinds = {"Pedestrian": 1.0}
FURNITURE: Kinds = {
    "pole": 4, "sign": 3, "post": 4, "bins": 2, "bench": 1, "cabinet": 2, "bicycle": 2,
    "pillar": 1, "shelter": 0.5, "tree": 4, "bush": 2,
}  # fmt: skip
CLUTTER: Kinds = {
    "container": 4, "crates": 3, "bench": 1, "bins": 2, "cabinet": 2, "heap": 2, "hedge": 3,
    "shelter": 1, "bicycle": 1, "post": 2, "pillar": 2, "shed": 1, "bush": 3, "wall": 1,
}  # fmt: skip
PLANTS: Kinds = {"tree": 3, "bush": 4, "weeds": 3, "hedge": 1}
BORDERS: Sequence[Kinds] = (
    {"fence": 1}, {"wall": 1}, {"hedge": 1}, {"bush": 3, "tree": 1, "hedge": 1}, {}, {"fence": 1},
    {"bush": 1, "weeds": 1, "tree": 0.3}, {"wall": 1, "hedge": 1}, {"facade": 1}, {},
)  # fmt: skip


def street(site: Site, span: Span) -> None:
    """Place parked cars, traffic, pavements with people, gardens and houses."""
    random, edge = site.random, site.ground.edge
    busy = random.uniform(0.5, 1.5)
    for side in (-1, 1):
        beside = _parking(site, side, span)
        lane = side * edge * random.uniform(0.3, 0.55)
        way = np.pi if side > 0 else 0.0
        speed = random.uniform(4, 12)
        site.row(TRAFFIC, lane, span, gap=(4, 45), yaw=way, chance=0.5, turned=0, speed=speed)
        walk = beside + random.uniform(1.0, 3.0)
        site.strew(
            PEOPLE,
            4.0 * busy,
            (span[0], min(span[1], 50)),
            _band(side, beside, walk),
            along=0.5,
            moves=True,
        )
        _pairs(site, busy, span, side * (beside + walk) / 2)
        site.strew(
            {"Cyclist": 1}, 2.4, (0, 60), _band(side, edge * 0.5, walk), along=0.15, moves=True
        )
        site.strew(FURNITURE, 9, span, _band(side, beside - 0.3, walk + 0.5), along=0.1)
        site.row(
            {"pole": 2, "tree": 3, "sign": 1},
            side * (beside + 0.4),
            span,
            gap=(7, 25),
            yaw=np.pi / 2,
        )
        border = BORDERS[int(random.integers(len(BORDERS)))]
        if border:
            deep = 5.5 if "facade" in border else 0.6
            site.row(border, side * (walk + deep), span, gap=(0, 1), chance=0.9, wobble=0.1)
        house = walk + random.uniform(1, 9)
        site.strew(PLANTS, 14, span, _band(side, walk + 1, house + 4))
        site.strew(CLUTTER, 3, span, _band(side, walk + 1, house + 2))
        built = {"facade": 1, "shed": 0.2} if random.random() < 0.75 else {"tree": 2, "bush": 1}
        site.row(built, side * (house + 5), span, gap=(0, random.uniform(0.5, 8)), wobble=0.6)


def _band(side: int, near: float, far: float) -> Span:
    """Return the t from near to far on one side of a road."""
    return (near, far) if side > 0 else (-far, -near)


def _parking(site: Site, side: int, span: Span) -> float:
    """Park cars along, beside or across the road's edge; return how far they reach from it."""
    random, edge = site.random, site.ground.edge
    chance = random.uniform(0.3, 0.95)
    kind = random.choice(4, p=[0.4, 0.2, 0.15, 0.25])
    if kind == 0:
        site.row(PARKED, side * (edge - 1.05), span, gap=(0.4, 3.5), chance=chance, turned=0.3)
        return float(edge)
    if kind == 1:
        site.row(PARKED, side * (edge + 0.9), span, gap=(0.5, 6), chance=chance, turned=0.4)
        return float(edge) + 2.0
    if kind == 2:
        yaw = side * random.choice([np.pi / 2, np.pi / 2, np.pi / 3, np.pi / 4])
        site.row(
            PARKED, side * (edge + 2.3), span, gap=(0.5, 1.3), yaw=yaw, chance=chance, turned=0.4
        )
        return float(edge) + 4.8
    return float(edge)


def _pairs(site: Site, busy: float, span: Span, t: float) -> None:
    """Place people who walk side by side."""
    for _ in range(site.random.poisson(0.5 * busy)):
        s, yaw = site.random.uniform(4, 35), site.random.uniform(-np.pi, np.pi)
        for k in range(site.random.integers(2, 4)):
            beside = 0.62 * k
            kind, mesh = site.choose(PEOPLE)
            site.put(kind, mesh, s - beside * np.sin(yaw), t + beside * np.cos(yaw), yaw)


def car_park(site: Site, span: Span) -> None:
    """Place rows of cars that stand across or at an angle, with trolleys, lamps and people."""
    random = site.random
    yaw = random.choice([np.pi / 2, np.pi / 2, np.pi / 3, np.pi / 4, 0.0])
    t = random.uniform(-32, -26)
    while t < 32:
        chance = random.uniform(0.15, 0.9)
        gap = (0.5, 1.2) if yaw else (0.5, 2.0)
        site.row(PARKED, t, span, gap=gap, yaw=yaw, chance=chance, turned=0.4, wobble=0.25)
        t += random.choice([5.2, 9.0, 11.0])
    site.strew(PEOPLE, 9, (4, 45), (-20, 20))
    site.strew({"Cyclist": 1}, 4, (5, 50), (-25, 25))
    site.strew(TRAFFIC, 2, span, (-25, 25), along=0.1)
    site.strew(FURNITURE, 10, span, (-40, 40))
    site.strew(CLUTTER, 6, span, (-45, 45))
    for side in (-1, 1):
        site.row({"facade": 1, "hedge": 2, "fence": 2, "tree": 1}, side * 42, span, gap=(0, 6))


def country(site: Site, span: Span) -> None:
    """Place plants, fences, guard rails and little traffic."""
    edge, random = site.ground.edge, site.random
    for side in (-1, 1):
        way = np.pi if side > 0 else 0.0
        site.row(TRAFFIC, side * edge * 0.5, span, gap=(6, 60), yaw=way, turned=0, chance=0.7)
        if random.random() < 0.4:
            site.row({"rail": 1}, side * (edge + 0.8), span, gap=(0, 0.2), wobble=0.02)
        elif random.random() < 0.5:
            site.row({"post": 1}, side * (edge + 0.6), span, gap=(6, 20))
        site.strew(PLANTS, 16, span, _band(side, edge + 1.5, edge + 8))
        site.strew(PLANTS, 16, span, _band(side, edge + 5, edge + 30))
        site.strew(
            {"Cyclist": 2, "Pedestrian": 1, "Car": 1},
            3,
            (4, 60),
            _band(side, edge * 0.6, edge + 1.2),
            along=0.1,
        )
        site.strew(CLUTTER, 3, span, _band(side, edge + 2, edge + 25))
        site.row({"pole": 2, "sign": 1}, side * (edge + 1.5), span, gap=(10, 30))
        border = BORDERS[int(random.integers(len(BORDERS)))]
        if border:
            site.row(border, side * (edge + random.uniform(3, 12)), span, gap=(0, 4), chance=0.8)


def highway(site: Site, span: Span) -> None:
    """Place lanes of fast traffic between guard rails."""
    edge, random = site.ground.edge, site.random
    for lane in np.arange(-edge + 2, edge - 1, 3.6):
        way = np.pi if lane > 0 else 0.0
        kinds: Kinds = {"Car": 0.72, "Van": 0.1, "Truck": 0.18}
        site.row(kinds, lane, span, gap=(5, 50), yaw=way, turned=0, wobble=0.3, chance=0.8)
    for t in (-edge - 0.5, edge + 0.5, *((0.0,) if random.random() < 0.5 else ())):
        site.row({"rail": 1}, t, span, gap=(0, 0.1), wobble=0.01)
    for side in (-1, 1):
        site.strew(PLANTS, 18, span, _band(side, edge + 2, edge + 25))
        site.row({"pole": 1, "sign": 1}, side * (edge + 1.5), span, gap=(15, 40))
        if random.random() < 0.4:
            site.row({"wall": 1}, side * (edge + 4), span, gap=(0, 0), wobble=0.02)


def square(site: Site, span: Span) -> None:
    """Place people, bicycles and street furniture among houses, as in a pedestrian zone."""
    random = site.random
    wide = random.uniform(6, 20)
    site.strew(PEOPLE, 12, (3, 40), (-wide, wide), along=0.7)
    for t in random.uniform(-wide, wide, 3):
        _pairs(site, 1.5, span, t)
    site.strew({"Cyclist": 1}, 6, (4, 50), (-wide, wide), along=0.5)
    site.strew(FURNITURE, 16, (2, 60), (-wide, wide))
    site.strew({**CLUTTER, "bicycle": 5}, 8, (2, 60), (-wide, wide))
    site.strew(PARKED, 3, (5, 65), (-wide, wide))
    for side in (-1, 1):
        site.row({"facade": 1}, side * (wide + 5), span, gap=(0, 4), wobble=0.5)
    if random.random() < 0.5:
        site.row({"facade": 1}, 0, (random.uniform(40, 70), 90), gap=(0, 1), yaw=np.pi / 2)


def anywhere(site: Site, span: Span) -> None:
    """Place everything everywhere, at any heading."""
    site.strew({"Car": 1}, 9, (4, 68), (-40, 40))
    site.strew({"Van": 2, "Truck": 1, "Misc": 1}, 1.5, (6, 68), (-40, 40))
    site.strew(PEOPLE, 9, (3, 45), (-25, 25))
    site.strew({"Cyclist": 1}, 7, (3, 55), (-30, 30))
    site.strew(CLUTTER, 18, (0, 70), (-45, 45))
    site.strew(FURNITURE, 12, (0, 70), (-45, 45))
    site.strew(PLANTS, 14, (0, 75), (-50, 50))
    site.strew({"facade": 1, "wall": 3, "fence": 3}, 8, (10, 80), (-50, 50))


Layout = Callable[[Site, Span], None]
LAYOUTS: Sequence[tuple[float, Layout]] = (
    (0.45, street), (0.13, car_park), (0.11, country), (0.05, highway), (0.1, square),
    (0.16, anywhere),
)  # fmt: skip
"""How frequent each is."""


def _ground(random: Random, layout: Layout) -> Ground:
    """Return the ground for a layout, as seen from a scanner in the right lane."""
    edges: Mapping[Layout, Span] = {street: (2.8, 6.5), country: (2.6, 4.5), highway: (5.5, 13.0)}
    edge = edges.get(layout)
    half = float(random.uniform(*edge)) if edge else 1e3
    turn = random.normal(0, 0.06)
    if random.random() < 0.15 or (edge is None and random.random() < 0.5):
        turn = random.uniform(-1.2, 1.2)
    waves = [
        (
            *(random.normal(0, 2 * np.pi / 45, 2)),
            random.uniform(0, 6.3),
            abs(random.normal(0, 0.05)),
        )
        for _ in range(3)
    ]
    crossing = layout is street and random.random() < 0.35
    return Ground(
        heading=float(turn),
        aside=-float(random.uniform(0.2, 0.6)) * half if edge else 0.0,
        edge=half,
        kerb=float(random.uniform(0.04, 0.16)) if layout is street else 0.0,
        across=(float(random.uniform(8, 45)), float(random.uniform(3, 6))) if crossing else None,
        slope=np.clip(random.normal(0, 0.013, 2), -0.035, 0.035),
        bend=float(random.normal(0, 1.2e-4)),
        waves=np.array(waves),
        bank=random.normal(0, 0.08, 2) * (random.random(2) < 0.5) if edge else np.zeros(2),
        below=HEIGHT + float(random.uniform(-0.1, 0.1)),
    )


# --- Scanning -------------------------------------------------------------------------------------


def surfaces(ground: Ground, floor: Mesh, placed: Sequence[Placed]) -> Surfaces:
    """Return the triangles of the ground, thing 0, and of what stands on it, things 1 and on."""
    meshes = [one.mesh for one in placed]
    counts = [len(mesh.vertices) for mesh in meshes]
    # All copies are turned and shifted at once.
    pose = np.array([(one.x, one.y, np.cos(one.yaw), np.sin(one.yaw)) for one in placed])
    x, y, cos, sin = pose.reshape(-1, 4).T
    base, (dx, dy) = ground.height(x, y), ground.gradient(x, y)
    scale = np.array([one.scale for one in placed]).reshape(-1, 3)
    each = np.column_stack([x, y, base, cos, sin, dx, dy, scale]).astype(np.float32)
    each = np.repeat(each, counts, axis=0)
    corners = [np.zeros((0, 3), np.float32), *(mesh.vertices for mesh in meshes)]
    local = np.concatenate(corners) * each[:, 7:]
    ahead = local[:, 0] * each[:, 3] - local[:, 1] * each[:, 4]
    left = local[:, 0] * each[:, 4] + local[:, 1] * each[:, 3]
    # What stands on a slope leans with it.
    high = local[:, 2] + each[:, 2] + ahead * each[:, 5] + left * each[:, 6]
    vertices = np.stack([ahead + each[:, 0], left + each[:, 1], high], axis=1)
    starts = np.cumsum([len(floor.vertices), *counts])[:-1]
    triangles = [mesh.triangles + start for mesh, start in zip(meshes, starts, strict=True)]
    faces = [len(floor.triangles), *(len(mesh.triangles) for mesh in meshes)]
    return Surfaces(
        vertices=np.concatenate([floor.vertices, vertices]),
        triangles=np.concatenate([floor.triangles, *triangles]).astype(np.int32),
        materials=np.concatenate([floor.materials, *(mesh.materials for mesh in meshes)]),
        objects=np.repeat(np.arange(len(faces), dtype=np.int32), faces),
        albedo=np.array([0.8, *(one.albedo for one in placed)], dtype=np.float32),
    )


def boxes_of(ground: Ground, placed: Sequence[Placed]) -> Floats:
    """Return boxes (M, 7) around things."""
    place = np.array([(one.x, one.y, one.yaw) for one in placed]).reshape(-1, 3)
    size = np.array([one.mesh.size * np.abs(one.scale) for one in placed]).reshape(-1, 3)
    x, y, yaw = place.T
    # Range noise puts points of a thing's sides a little outside of it.
    size += np.array([2, 2, 1]) * RANGE_NOISE
    middle = ground.height(x, y) + size[:, 2] / 2
    return np.column_stack([x, y, middle, size, (yaw + np.pi) % (2 * np.pi) - np.pi])


def make_scene(generator: Random, *, meshes: Library | None = None) -> Scene:
    """Return one scan of a new place.

    Args:
        generator: The same state gives the same scene.
        meshes: What is placed; by default a library that is made once a process.
    """
    shares = np.array([share for share, _ in LAYOUTS])
    layout = LAYOUTS[generator.choice(len(LAYOUTS), p=shares / shares.sum())][1]
    ground = _ground(generator, layout)
    site = Site(generator, ground, meshes if meshes is not None else library(0))
    layout(site, (-8.0, 80.0))
    floor = ground.mesh((-30.0, 110.0), rough=generator.uniform(0.002, 0.015), random=generator)
    sent = rays(generator, np.pi)
    everything = surfaces(ground, floor, site.placed)
    reach = generator.uniform(78, 120)
    echoes = scan(generator, sent, everything, reach=reach)
    things = np.array([k for k, one in enumerate(site.placed, 1) if one.kind in shapes.LABELLED])
    boxes = boxes_of(ground, [site.placed[k - 1] for k in things])
    counts = _points_inside(echoes, things, boxes, len(everything.albedo))
    seen = counts > 0
    things, boxes, counts = things[seen].astype(np.int64), boxes[seen], counts[seen]
    visible = echoes.struck[things] / np.maximum(unobstructed(sent, everything, things), 1)
    return Scene(
        points=echoes.points,
        names=[site.placed[k - 1].kind for k in things],
        boxes=boxes,
        occlusion=(visible[:, None] < HIDDEN).sum(axis=1),
        visible=visible.clip(0, 1),
        counts=counts,
    )


def _points_inside(
    echoes: Echoes, things: NDArray[np.int64], boxes: Floats, count: int
) -> NDArray[np.int64]:
    """Return how many points (M,) of each of M things lie in its box; mirrors do not."""
    row = np.full(count, -1)
    row[things.astype(np.int64)] = np.arange(len(things))
    of = row[echoes.objects]
    points, of = echoes.points[of >= 0, :3], of[of >= 0]
    x, y, z = (points - boxes[of, :3]).T
    sin, cos = np.sin(boxes[of, 6]), np.cos(boxes[of, 6])
    local = np.stack([x * cos + y * sin, y * cos - x * sin, z], axis=1)
    inside = (np.abs(local) <= boxes[of, 3:6] / 2).all(axis=1)
    return np.bincount(of[inside], minlength=len(things))


# --- Sequences ------------------------------------------------------------------------------------


def make_sequence(
    generator: Random, *, frames: int = 20, speed: float = 8.0
) -> Sequence[SequenceFrame]:
    """Return scans of a whole turn, 10 a second, of a drive along a street with traffic.

    Args:
        generator: The same state gives the same drive.
        frames: How many.
        speed: Of the scanner, metres a second.
    """
    ground = replace(_ground(generator, street), heading=0.0, across=None)
    site = Site(generator, ground, library(0, 0.3), everywhere=True)
    way = frames * speed * SECONDS
    street(site, (-50.0, way + 80))
    seconds = SECONDS * (frames - 1)
    site.placed = [one for one in _flowing(site.placed, speed) if _is_clear(one, site, seconds)]
    moving = [one for one in site.placed if one.speed]
    still = [one for one in site.placed if not one.speed]
    floor = ground.mesh((-90.0, way + 110), rough=generator.uniform(0.002, 0.015), random=generator)
    scenery = surfaces(ground, floor, still)
    sway = generator.uniform(-0.03, 0.03), generator.uniform(0.2, 0.5)
    reach = generator.uniform(78, 120)
    made = []
    start = np.eye(4)
    for number in range(frames):
        seconds = number * SECONDS
        pose = _pose(ground, seconds, speed, sway)
        if number == 0:
            start = pose
        objects = still + [one.after(seconds) for one in moving]
        now = _combined(scenery, surfaces(ground, _NOTHING, objects[len(still) :]))
        inverse = np.linalg.inv(pose).astype(np.float64)
        seen = replace(now, vertices=_transformed(inverse, now.vertices).astype(np.float32))
        echoes = scan(generator, rays(generator, 2 * np.pi), seen, reach=reach)
        made.append(_frame(ground, objects, echoes, inverse, np.linalg.inv(start) @ pose, seconds))
    return made


SECONDS = 0.1
"""Of a turn of the scanner."""
_NOTHING = Mesh(
    vertices=np.zeros((0, 3), np.float32),
    triangles=np.zeros((0, 3), np.int32),
    materials=np.zeros(0, np.uint8),
    size=np.zeros(3, np.float32),
)


def _flowing(placed: Sequence[Placed], speed: float) -> Iterator[Placed]:
    """Yield things; who is in the scanner's lane drives as fast as it does, or is left out."""
    for one in placed:
        if abs(one.y) > 2.5 or one.kind in _SPEEDS:
            yield one
        elif one.speed and math.cos(one.yaw) > 0:
            yield replace(one, speed=speed)


def _is_clear(one: Placed, site: Site, seconds: float) -> bool:
    """Return whether nothing that stands is in a thing's way."""
    still = [other for other in site.placed if not other.speed]
    if not one.speed:
        return True
    taken = np.array([disc for other in still for disc in other.discs()]).reshape(-1, 3)
    own = [disc for k in np.arange(0, seconds + 0.5, 0.25) for disc in one.after(k).discs()]
    x, y, radius = (
        np.subtract.outer(a, -b if k == 2 else b)
        for k, (a, b) in enumerate(zip(np.array(own).T, taken.T, strict=True))
    )
    return bool((x**2 + y**2 >= radius**2).all())


def _pose(ground: Ground, seconds: float, speed: float, sway: tuple[float, float]) -> Floats:
    """Return scanner -> site; it sways about the lane's middle and leans as the road does."""
    x = speed * seconds
    high, fast = sway
    yaw = high * np.sin(fast * seconds)
    # The way aside is what the heading adds up to.
    y = speed * high / fast * (1 - np.cos(fast * seconds))
    z = ground.height(np.array([x]), np.array([y]))[0] + HEIGHT
    dx, dy = (float(one[0]) for one in ground.gradient(np.array([x]), np.array([y])))
    ahead = np.array([np.cos(yaw), np.sin(yaw), dx * np.cos(yaw) + dy * np.sin(yaw)])
    ahead /= np.linalg.norm(ahead)
    up = np.array([-dx, -dy, 1.0])
    left = np.cross(up, ahead)
    left /= np.linalg.norm(left)
    pose = np.eye(4)
    pose[:3, 0], pose[:3, 1], pose[:3, 2], pose[:3, 3] = (
        ahead,
        left,
        np.cross(ahead, left),
        (x, y, z),
    )
    return pose


def _transformed(pose: Floats, points: NDArray[Any]) -> Floats:
    moved: Floats = points @ pose[:3, :3].T + pose[:3, 3]
    return moved


def _combined(first: Surfaces, second: Surfaces) -> Surfaces:
    """Return both, the things of the second numbered after those of the first."""
    things = len(first.albedo) - 1
    return Surfaces(
        vertices=np.concatenate([first.vertices, second.vertices]),
        triangles=np.concatenate([first.triangles, second.triangles + len(first.vertices)]),
        materials=np.concatenate([first.materials, second.materials]),
        objects=np.concatenate([first.objects, second.objects + np.int32(things)]),
        albedo=np.concatenate([first.albedo, second.albedo[1:]]),
    )


def _frame(
    ground: Ground,
    objects: Sequence[Placed],
    echoes: Echoes,
    inverse: Floats,
    pose: Floats,
    seconds: float,
) -> SequenceFrame:
    """Return a frame with those labelled objects that have points."""
    ids = np.array([k for k, one in enumerate(objects) if one.kind in shapes.LABELLED])
    boxes = boxes_of(ground, [objects[k] for k in ids])
    boxes[:, :3] = _transformed(inverse, boxes[:, :3])
    turned = np.arctan2(inverse[1, 0], inverse[0, 0])
    boxes[:, 6] = (boxes[:, 6] + turned + np.pi) % (2 * np.pi) - np.pi
    seen = _points_inside(echoes, ids + 1, boxes, len(objects) + 1) > 0
    ids, boxes = ids[seen].astype(np.int64), boxes[seen]
    chosen = [objects[k] for k in ids]
    velocity = np.array(
        [(one.speed * np.cos(one.yaw), one.speed * np.sin(one.yaw), 0.0) for one in chosen]
    ).reshape(-1, 3)
    return SequenceFrame(
        points=echoes.points,
        pose=pose,
        names=[one.kind for one in chosen],
        boxes=boxes,
        velocity=(velocity @ inverse[:3, :3].T)[:, :2],
        ids=ids,
        seconds=seconds,
    )


# --- Writing --------------------------------------------------------------------------------------


def write_scenes(path: Path, *, scenes: int, seed: int, tiny: bool, progress: Progress) -> None:
    """Generate the data set; the folder is whole or absent.

    No shape of the train split is met in the others: each split has a library of its own.

    Args:
        path: Gets `training/` with `velodyne/`, `label_2/` and `calib/`, and `ImageSets/`.
        scenes: How many; a tenth goes to val, a fifth to test.
        seed: The same seed gives the same files on the same machine.
        tiny: Make 12 scenes of few shapes.
        progress: Is told how many are done.
    """
    with atomic_path(path) as temporary:
        for name in ("velodyne", "label_2", "calib"):
            (temporary / "training" / name).mkdir(parents=True)
        (temporary / "ImageSets").mkdir()
        plan = list(_plan(scenes, seed, tiny))
        for number, (_, meshes) in enumerate(
            progress.track(plan, "generating scenes", total=len(plan))
        ):
            scene = make_scene(np.random.default_rng((seed, number)), meshes=meshes())
            _write_scene(temporary / "training", f"{number:06d}", scene)
        for split in SPLITS:
            keys = [f"{number:06d}\n" for number, (name, _) in enumerate(plan) if name == split]
            (temporary / "ImageSets" / f"{split}.txt").write_text("".join(keys), encoding="utf-8")


SPLITS = ("train", "val", "test")


def _plan(scenes: int, seed: int, tiny: bool) -> Iterator[tuple[str, Callable[[], Library]]]:
    """Yield the split of each scene, and what gives the meshes of it."""
    val, test = max(1, round(0.1 * scenes)), max(1, round(0.2 * scenes))
    counts = TINY if tiny else (max(1, scenes - val - test), val, test)
    for number, (split, count) in enumerate(zip(SPLITS, counts, strict=True)):
        share = 0.05 if tiny else (1.0, 0.3, 0.6)[number]
        for _ in range(count):
            yield split, partial(library, 3 * seed + number, share)


def _write_scene(folder: Path, key: str, scene: Scene) -> None:
    scene.points.tofile(folder / "velodyne" / f"{key}.bin")
    lines = [
        kitti_line(name, box, int(level))
        for name, box, level in zip(scene.names, scene.boxes, scene.occlusion, strict=True)
    ]
    text = "".join(f"{line}\n" for line in lines)
    (folder / "label_2" / f"{key}.txt").write_text(text, encoding="utf-8")
    (folder / "calib" / f"{key}.txt").write_text(CALIBRATION, encoding="utf-8")


# --- KITTI's format -------------------------------------------------------------------------------


def _rotation(roll: float, pitch: float, yaw: float) -> Floats:
    """Return turns about x, then y, then z."""
    (a, b), (c, d), (e, f) = ((np.cos(k), np.sin(k)) for k in (roll, pitch, yaw))
    about_x = np.array([[1, 0, 0], [0, a, -b], [0, b, a]])
    about_y = np.array([[c, 0, d], [0, 1, 0], [-d, 0, c]])
    about_z = np.array([[e, -f, 0], [f, e, 0], [0, 0, 1]])
    return np.asarray(about_z @ about_y @ about_x, dtype=np.float64)


_AXES = np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])
"""Scanner's x ahead, y left, z up -> camera's x right, y down, z ahead."""
R0_RECT = _rotation(0.0042, -0.0079, -0.0099)
TR_VELO_TO_CAM = np.column_stack(
    [_rotation(-0.011, 0.0008, 0.0069) @ _AXES, (-0.004, -0.074, -0.28)]
)
TR_IMU_TO_VELO = np.column_stack([_rotation(0.0148, -0.002, -0.0008), (-0.81, 0.32, -0.8)])


def _calibration() -> str:
    """Return the text of the calibration file; all scenes share it."""
    matrices = {}
    for number, shift in enumerate((0.0, -386.0, 44.6, -340.0)):
        matrices[f"P{number}"] = np.column_stack([P2[:, :3], (shift, 0, 0)])
    matrices["P2"] = P2
    matrices |= {
        "R0_rect": R0_RECT,
        "Tr_velo_to_cam": TR_VELO_TO_CAM,
        "Tr_imu_to_velo": TR_IMU_TO_VELO,
    }
    rows = [f"{name}: " + " ".join(f"{k:.12e}" for k in m.ravel()) for name, m in matrices.items()]
    return "\n".join(rows) + "\n\n"


CALIBRATION = _calibration()


def to_camera(points: Floats) -> Floats:
    """Return points (N, 3) of the scanner's frame in the rectified camera's."""
    seen: Floats = (points @ TR_VELO_TO_CAM[:, :3].T + TR_VELO_TO_CAM[:, 3]) @ R0_RECT.T
    return seen


def kitti_line(name: str, box: Floats, occlusion: int) -> str:
    """Return an object's line of a label file.

    Args:
        name: Its class.
        box: (7,), in the scanner's frame.
        occlusion: 0 to 3.
    """
    x, y, z, length, width, height, yaw = box
    sin, cos = np.sin(yaw), np.cos(yaw)
    corners = np.array([[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)]) / 2
    corners = (
        corners * (length, width, height) @ np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
    )
    left, top, right, bottom, truncation = _pictured(to_camera(corners + box[:3]))
    bottom_middle, ahead = to_camera(
        np.array([[x, y, z - height / 2], [x + cos, y + sin, z - height / 2]])
    )
    heading = ahead - bottom_middle
    turn = np.arctan2(-heading[2], heading[0])
    alpha = turn - np.arctan2(bottom_middle[0], bottom_middle[2])
    alpha = (alpha + np.pi) % (2 * np.pi) - np.pi
    numbers = (left, top, right, bottom)
    return " ".join(
        [name, f"{truncation:.2f}", str(occlusion), f"{alpha:.2f}"]
        + [f"{one:.2f}" for one in numbers]
        + [f"{one:.3f}" for one in (height, width, length, *bottom_middle)]
        + [f"{turn:.4f}"]
    )


def _pictured(corners: Floats) -> tuple[float, float, float, float, float]:
    """Return the box around corners (8, 3) in the picture, and the share outside of it."""
    ahead = corners * (1, 1, 0) + np.maximum(corners[:, 2:], 0.1) * (0, 0, 1)
    pixels = ahead @ P2[:, :3].T + P2[:, 3]
    pixels = pixels[:, :2] / pixels[:, 2:]
    low, high = pixels.min(axis=0), pixels.max(axis=0)
    last = np.array(PICTURE) - 1.0
    inside = high.clip(0, last) - low.clip(0, last)
    whole = np.maximum(high - low, 1e-6)
    share = float(1 - np.prod(inside) / np.prod(whole))
    left, top = low.clip(0, last)
    right, bottom = high.clip(0, last)
    return float(left), float(top), float(right), float(bottom), share
