"""Distances between surfaces: worked out by hand, and as MONAI measures them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from pegboard_medical import surfaces
from pegboard_medical.volumes import Spacing

Array = Any


def cube(first: tuple[int, int, int], side: int, shape: int = 24) -> Array:
    mask = np.zeros((shape, shape, shape), dtype=bool)
    mask[tuple(slice(a, a + side) for a in first)] = True
    return mask


def ball(radius: float, spacing: Spacing, shape: tuple[int, int, int]) -> Array:
    """A ball of `radius` mm in the middle of a volume."""
    grid = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in shape), indexing="ij")
    away = sum((place * side) ** 2 for place, side in zip(grid, spacing, strict=True))
    return np.asarray(away <= radius**2)


def measured(found: Array, true: Array, spacing: Spacing = (1, 1, 1)) -> surfaces.Distances:
    distances = surfaces.distances(found, true, spacing)
    assert distances is not None
    return distances


def test_the_surface_of_a_cube_is_its_shell() -> None:
    assert len(surfaces.surface(cube((3, 4, 5), 6))) == 6**3 - 4**3
    # What fills the volume touches the outside at its edge.
    assert len(surfaces.surface(np.ones((4, 4, 4), dtype=bool))) == 4**3 - 2**3


def test_a_mask_lies_on_itself() -> None:
    one = measured(cube((3, 4, 5), 6), cube((3, 4, 5), 6))
    assert surfaces.hd95(one) == 0
    assert surfaces.surface_dice(one, 0.0) == 1


def test_single_voxels_lie_as_far_apart_as_their_centres() -> None:
    one = measured(cube((2, 2, 2), 1), cube((5, 6, 2), 1), (2.0, 0.5, 1.0))
    # 3 slices of 2 mm, 4 rows of half a millimetre.
    assert surfaces.hd95(one) == pytest.approx(np.hypot(6, 2))
    assert surfaces.surface_dice(one, 6.3) == 0
    assert surfaces.surface_dice(one, 6.4) == 1


@pytest.mark.parametrize(("axis", "side"), [(0, 3.0), (1, 0.7), (2, 1.0)])
def test_a_shifted_cube_is_a_shift_away(axis: int, side: float) -> None:
    there = [6, 6, 6]
    there[axis] += 2
    one = measured(cube((6, 6, 6), 8), cube((there[0], there[1], there[2]), 8), (3.0, 0.7, 1.0))
    # The face that moved is 64 of 296 voxels, more than 5 %: it sets the percentile.
    assert surfaces.hd95(one) == pytest.approx(2 * side)


def test_surface_dice_of_a_shifted_cube_counts_what_coincides() -> None:
    one = measured(cube((6, 6, 6), 8), cube((7, 6, 6), 8))
    # Each loses the face that moved, 64, and on the other side the inside, 6 x 6, of its own.
    assert surfaces.surface_dice(one, 0.0) == pytest.approx((296 - 64 - 36) / 296)
    assert surfaces.surface_dice(one, 1.0) == 1


def test_a_larger_ball_lies_the_difference_of_radii_away() -> None:
    spacing = (2.5, 0.8, 0.8)
    one = measured(ball(9, spacing, (13, 40, 40)), ball(13, spacing, (13, 40, 40)), spacing)
    assert surfaces.hd95(one) == pytest.approx(4, abs=1.0)
    assert surfaces.surface_dice(one, 2.0) < 0.05
    assert surfaces.surface_dice(one, 5.0) > 0.99


def test_an_empty_mask_has_no_distance() -> None:
    nothing = np.zeros((24, 24, 24), dtype=bool)
    for pair in ((nothing, cube((6, 6, 6), 4)), (cube((6, 6, 6), 4), nothing), (nothing, nothing)):
        distances = surfaces.distances(*pair, (1, 1, 1))
        assert distances is None
        assert np.isnan(surfaces.hd95(distances))
        assert np.isnan(surfaces.surface_dice(distances, 1.0))


def blobs(seed: int) -> Array:
    noise = np.random.default_rng(seed).normal(size=(18, 30, 26))
    return ndimage.gaussian_filter(noise, 2) > 0.06


def test_it_is_what_a_distance_transform_gives() -> None:
    spacing = (2.0, 0.7, 1.1)
    found, true = blobs(0), blobs(1)
    one = measured(found, true, spacing)
    edge = np.zeros(true.shape, dtype=bool)
    edge[tuple(surfaces.surface(true).T)] = True
    away = ndimage.distance_transform_edt(~edge, sampling=spacing)
    np.testing.assert_allclose(one.found, away[tuple(surfaces.surface(found).T)])


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # Of MONAI by itself.
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.5, 0.7, 0.9)])
def test_it_agrees_with_monai(spacing: Spacing) -> None:
    import torch
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    found, true = blobs(0), blobs(1)
    one = measured(found, true, spacing)
    # (batch, class, ...), the background first.
    batches = [torch.tensor(np.stack([~mask, mask])[None]).float() for mask in (found, true)]
    theirs = compute_hausdorff_distance(*batches, percentile=95, spacing=spacing)
    assert surfaces.hd95(one) == pytest.approx(float(theirs), rel=1e-5)
    dice = compute_surface_dice(*batches, [1.0], spacing=spacing)
    assert surfaces.surface_dice(one, 1.0) == pytest.approx(float(dice), rel=1e-5)


def test_the_box_holds_what_is_set_and_no_more() -> None:
    mask = cube((3, 4, 5), 2)
    assert surfaces.bounding_box(mask) == (slice(3, 5), slice(4, 6), slice(5, 7))
    assert surfaces.bounding_box(np.zeros((4, 5, 6))) is None
