"""A spinning scanner of 64 beams: which rays it sends, and which of them come back as points.

Its geometry is that of the Velodyne HDL-64E in KITTI: two blocks of 32 lasers, the upper denser.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pegboard_lidar import shapes

Floats = NDArray[np.float32]
Random = np.random.Generator

# fmt: off
ELEVATIONS = np.radians([
    1.94, 1.57, 1.3, 0.87, 0.58, 0.18, -0.09, -0.45, -0.8, -1.2, -1.49, -1.83, -2.21, -2.55, -2.87,
    -3.24, -3.54, -3.94, -4.22, -4.59, -4.91, -5.25, -5.61, -5.96, -6.33, -6.68, -7.0, -7.29,
    -7.68, -8.06, -8.31, -8.71, -9.03, -9.57, -10.06, -10.47, -10.96, -11.6, -12.12, -12.56,
    -13.04, -13.48, -14.05, -14.6, -15.19, -15.66, -16.18, -16.55, -17.19, -17.73, -18.32, -18.8,
    -19.32, -19.74, -20.23, -20.78, -21.31, -21.93, -22.44, -22.86, -23.32, -23.97, -24.51, -25.0,
])
# fmt: on
"""Of the beams, fitted to the rings of KITTI's scans 000001, 000004 and 000005."""
OFFSETS = np.repeat([0.2, 0.12], 32)
"""Metres that the lasers sit above the scanner's origin, from the same fit."""
AZIMUTH_STEP = np.radians(0.173)
RANGE_NOISE = 0.02
"""Deviation in metres."""

_REFLECTANCE = np.array(
    [0.25, 0.35, 0.35, 0.25, 0.45, 0.2, 0.2, 0.12, 0.35, 0.35, 0.3], dtype=np.float32
)
"""Of each material, as the scanner reports it, 0 to 1."""
_RETURNED = np.array([1, 1, 0.75, 1, 1, 0.06, 0.3, 1, 1, 1, 0.4], dtype=np.float32)
"""Share of the rays that a material sends back."""
_THROUGH = np.array([0, 0, 0.8, 0, 0, 0.35, 0, 0, 0, 0, 0.95], dtype=np.float32)
"""Share of the others that go on behind it."""
_GLOSSY = np.isin(np.arange(len(_RETURNED)), (shapes.PAINT, shapes.GLASS))
ENOUGH = 250
"""Rays that tell how many would reach an object."""
_WEAKEST = 0.004
"""Light from a white wall at 50 m that still makes a point in half of the cases."""


@dataclass(frozen=True, kw_only=True)
class Rays:
    """R rays, ring by ring."""

    origins: Floats
    """(R, 3)."""
    directions: Floats
    """(R, 3), of length 1."""
    azimuths: int
    """Rays of a ring."""


@dataclass(frozen=True, kw_only=True)
class Surfaces:
    """Everything that rays can hit, in the scanner's frame."""

    vertices: Floats
    """(V, 3)."""
    triangles: NDArray[np.int32]
    """(T, 3)."""
    materials: NDArray[np.uint8]
    """(T,)."""
    objects: NDArray[np.int32]
    """(T,), number of the thing that a triangle is part of; 0 is the ground."""
    albedo: Floats
    """(things,), how bright each is; 1 is the usual brightness of its material."""


@dataclass(frozen=True, kw_only=True)
class Echoes:
    """What a turn of the scanner brings."""

    points: Floats
    """(N, 4): x, y, z, reflectance."""
    objects: NDArray[np.int32]
    """(N,), number of the thing that each point lies on."""
    struck: NDArray[np.int64]
    """(things,), rays that reached each first, whether they came back or not."""


def rays(random: Random, field_of_view: float, *, beams: int = 64) -> Rays:
    """Return a turn's rays; every scanner is built a little differently, and starts anywhere.

    Args:
        random: Of the scanner.
        field_of_view: Radians around the direction ahead.
        beams: Of them so many are sent, evenly chosen.
    """
    count = round(field_of_view / AZIMUTH_STEP)
    start = -field_of_view / 2 + random.uniform(0, AZIMUTH_STEP)
    azimuth = start + AZIMUTH_STEP * np.arange(count)
    chosen = np.linspace(0, len(ELEVATIONS) - 1, beams).round().astype(int)
    elevation = ELEVATIONS[chosen] + random.normal(0, np.radians(0.03), beams)
    directions = np.empty((beams, count, 3), dtype=np.float32)
    directions[..., 0] = np.cos(elevation)[:, None] * np.cos(azimuth)
    directions[..., 1] = np.cos(elevation)[:, None] * np.sin(azimuth)
    directions[..., 2] = np.sin(elevation)[:, None]
    origins = np.zeros_like(directions)
    origins[..., 2] = OFFSETS[chosen, None]
    return Rays(
        origins=origins.reshape(-1, 3), directions=directions.reshape(-1, 3), azimuths=count
    )


class _Caster:
    """Rays against triangles, by Embree through Open3D, on one thread."""

    def __init__(self, vertices: Floats, triangles: NDArray[np.int32]) -> None:
        # Open3D's own types say that a tensor needs a dtype and a device; it does not.
        o3d: Any = import_module("open3d")
        self._tensor = o3d.core.Tensor
        self._scene = o3d.t.geometry.RaycastingScene(nthreads=1)
        self._scene.add_triangles(
            self._tensor(np.ascontiguousarray(vertices)),
            self._tensor(np.ascontiguousarray(triangles.astype(np.uint32))),
        )

    def __call__(
        self, origins: Floats, directions: Floats
    ) -> tuple[Floats, NDArray[np.int64], Floats]:
        """Return distance (inf: nothing), triangle (-1: none) and |cos| of incidence of each."""
        both = self._tensor(np.concatenate([origins, directions], axis=1))
        found = self._scene.cast_rays(both, nthreads=1)
        distance = found["t_hit"].numpy()
        # Open3D gives the largest uint32 where there is none.
        triangle = found["primitive_ids"].numpy().view(np.int32).astype(np.int64)
        normals = found["primitive_normals"].numpy()
        return distance, triangle, np.abs(np.einsum("ij,ij->i", normals, directions))


def scan(random: Random, sent: Rays, surfaces: Surfaces, *, reach: float) -> Echoes:
    """Return the points of one turn.

    Args:
        random: Of the noise.
        sent: The rays.
        surfaces: What they hit.
        reach: Farthest point in metres.
    """
    cast = _Caster(surfaces.vertices, surfaces.triangles)
    distance, triangle, slant = cast(sent.origins, sent.directions)
    things = surfaces.objects[triangle] * (triangle >= 0)
    struck = np.bincount(things[triangle >= 0], minlength=len(surfaces.albedo))
    returned = _returned(random, surfaces, distance, triangle, slant, reach)
    # What a window or a bush lets through hits what is behind it.
    material = surfaces.materials[triangle]
    through = (
        (triangle >= 0)
        & ~returned
        & (random.random(len(triangle), dtype=np.float32) < _THROUGH[material])
    )
    again = np.flatnonzero(through & (_RETURNED[material] < 1))
    if len(again):
        ahead = distance[again] + 0.02
        origins = sent.origins[again] + ahead[:, None] * sent.directions[again]
        farther, behind, slanted = cast(origins, sent.directions[again])
        distance[again], triangle[again], slant[again] = ahead + farther, behind, slanted
        returned[again] = _returned(random, surfaces, distance[again], behind, slanted, reach)
    return _echoes(random, sent, surfaces, distance, triangle, returned, struck)


def _returned(
    random: Random,
    surfaces: Surfaces,
    distance: Floats,
    triangle: NDArray[np.int64],
    slant: Floats,
    reach: float,
) -> NDArray[np.bool_]:
    """Return which rays (R,) come back: far, dark and grazed surfaces send little light."""
    material = surfaces.materials[triangle]
    bright = surfaces.albedo[surfaces.objects[triangle]] * _REFLECTANCE[material]
    near = np.where(triangle >= 0, distance, 1e3).clip(1)
    # Paint and glass are glossy: at a slant they send light elsewhere.
    facing = np.where(_GLOSSY[material], slant**2, slant)
    light = bright * facing * (50 / near) ** 2 + 1e-9
    chance = 0.994 * _RETURNED[material] / (1 + (_WEAKEST / light) ** 2)
    dice = random.random(len(distance), dtype=np.float32)
    kept: NDArray[np.bool_] = (dice < chance) & (near < reach)
    return kept & (triangle >= 0)


def _echoes(
    random: Random,
    sent: Rays,
    surfaces: Surfaces,
    distance: Floats,
    triangle: NDArray[np.int64],
    returned: NDArray[np.bool_],
    struck: NDArray[np.int64],
) -> Echoes:
    """Return points with noise of those rays that came back."""
    kept = np.flatnonzero(returned)
    directions, triangle = sent.directions[kept], triangle[kept]
    material, things = surfaces.materials[triangle], surfaces.objects[triangle]
    noise = random.standard_normal((2, len(kept)), dtype=np.float32)
    length = distance[kept] + RANGE_NOISE * noise[0]
    # Foliage has depth: light comes back from leaves behind its outline.
    leafy = np.flatnonzero(material == shapes.LEAVES)
    length[leafy] += random.exponential(0.2, len(leafy)).clip(0, 1.0)
    points = np.empty((len(kept), 4), dtype=np.float32)
    points[:, :3] = length[:, None] * directions
    points[:, 2] += sent.origins[kept, 2]
    bright = _REFLECTANCE[material] * np.sqrt(surfaces.albedo)[things]
    points[:, 3] = ((bright + 0.06 * noise[1]).clip(0, 0.99) * 100).round() / 100
    return Echoes(points=points, objects=things, struck=struck)


def unobstructed(sent: Rays, surfaces: Surfaces, things: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many rays (M,) would reach each of M things if nothing else were there.

    Every thing is lifted to a height of its own, its rays with it, so that one cast serves all.
    """
    elevation = np.arcsin(sent.directions[:: sent.azimuths, 2])
    azimuth = np.arctan2(
        sent.directions[: sent.azimuths, 1].astype(float), sent.directions[: sent.azimuths, 0]
    )
    azimuth = np.unwrap(azimuth)
    vertices, triangles, origins, chosen, owner, steps = [], [], [], [], [], []
    start = 0
    for number, thing in enumerate(things):
        part = surfaces.triangles[surfaces.objects == thing]
        low, high = part.min(), part.max() + 1
        own = surfaces.vertices[low:high]
        index = _towards(own, elevation, azimuth)
        # Of a near object a few hundred rays tell the same as thousands.
        step = 1 + len(index) // ENOUGH
        index = index[number % step :: step]
        steps.append(step)
        lift = np.array([0, 0, 1000.0 * number], dtype=np.float32)
        vertices.append(own + lift)
        triangles.append(part - low + start)
        start += len(own)
        chosen.append(index)
        origins.append(sent.origins[index] + lift)
        owner.append(np.full(len(index), number))
    if not len(things):
        return np.zeros(0, dtype=np.int64)
    cast = _Caster(np.concatenate(vertices), np.concatenate(triangles))
    distance, _, _ = cast(np.concatenate(origins), sent.directions[np.concatenate(chosen)])
    hit = np.concatenate(owner)[np.isfinite(distance)]
    counts: NDArray[np.int64] = np.bincount(hit, minlength=len(things)) * np.array(steps)
    return counts


def _towards(
    vertices: Floats, elevation: NDArray[np.float64], azimuth: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return the rays that may meet vertices (V, 3): those towards the block around them."""
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    x, y, z = np.where(_CORNERS, low, high).T
    angles = np.arctan2(y, x)
    middle = math.atan2((low[1] + high[1]) / 2, (low[0] + high[0]) / 2)
    around = (angles - middle + np.pi) % (2 * np.pi) - np.pi
    sideways = (azimuth - middle + np.pi) % (2 * np.pi) - np.pi
    columns = np.flatnonzero((sideways >= around.min()) & (sideways <= around.max()))
    # The lasers sit up to 0.2 m above the origin.
    flat = np.hypot(x, y)
    bottom, top = np.arctan2(z - OFFSETS.max(), flat).min(), np.arctan2(z, flat).max()
    rows = np.flatnonzero((elevation >= bottom) & (elevation <= top))
    chosen: NDArray[np.int64] = (rows[:, None] * len(azimuth) + columns).ravel()
    return chosen


_CORNERS = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], dtype=bool)
