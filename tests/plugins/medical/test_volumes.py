from __future__ import annotations

import itertools

import numpy as np
import pytest

from pegboard.records import Array
from pegboard_medical.volumes import (
    Orientation,
    Volume,
    orientation_of,
    oriented,
    resize,
    resized_shape,
)

WAYS = [
    (order, signs)
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


def a_volume(order: tuple[int, ...] = (2, 1, 0), signs: tuple[int, ...] = (1, 1, 1)) -> Volume:
    """Voxels of different lengths along their axes, which follow the given patient axes."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (along, sign, length) in enumerate(zip(order, signs, (2.5, 0.7, 0.8), strict=True)):
        affine[along, axis] = sign * length
    affine[:3, 3] = (-100.0, 20.0, 300.0)
    voxels = np.random.default_rng(0).integers(-1000, 1000, (3, 4, 5), dtype=np.int16)
    return Volume(voxels=voxels, affine=affine, modality="ct")


def place(volume: Volume, index: Array) -> Array:
    moved: Array = volume.affine @ np.append(index, 1.0)
    return moved[:3]


@pytest.mark.parametrize(("order", "signs"), WAYS)
def test_however_a_volume_lies_it_is_turned_towards_head_back_and_left(
    order: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    turned = oriented(a_volume(order, signs))
    directions = turned.affine[:3, :3] / np.array(turned.spacing)
    assert np.allclose(directions, np.eye(3)[:, ::-1])


@pytest.mark.parametrize(("order", "signs"), WAYS)
def test_turning_moves_no_voxel_in_the_patient(
    order: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    volume = a_volume(order, signs)
    turned = oriented(volume)
    by_place = {
        tuple(np.round(place(turned, index), 6)): turned.voxels[index]
        for index in np.ndindex(turned.voxels.shape)
    }
    for index in np.ndindex(volume.voxels.shape):
        assert by_place[tuple(np.round(place(volume, index), 6))] == volume.voxels[index]


@pytest.mark.parametrize(("order", "signs"), WAYS)
def test_turning_back_gives_the_volume_and_its_channels_again(
    order: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    volume = a_volume(order, signs)
    turn = orientation_of(volume.affine)
    assert np.array_equal(turn.undo(turn.apply(volume.voxels)), volume.voxels)
    channels = np.stack([turn.apply(volume.voxels), turn.apply(-volume.voxels)])
    back = turn.undo(channels[None])
    assert np.array_equal(back[0, 0], volume.voxels)
    assert np.array_equal(back[0, 1], -volume.voxels)


def test_an_oblique_volume_takes_no_direction_twice() -> None:
    # Rows and columns at 45 degrees, a little nearer to one another's axis.
    volume = a_volume()
    affine = volume.affine.copy()
    affine[:3, 1] = (0.71, 0.70, 0.0)
    affine[:3, 2] = (-0.70, 0.71, 0.0)
    turn = orientation_of(affine)
    assert sorted(turn.order) == [0, 1, 2]
    assert np.array_equal(turn.undo(turn.apply(volume.voxels)), volume.voxels)


def test_the_spacing_and_the_content_of_a_voxel_are_those_of_the_affine() -> None:
    volume = a_volume((0, 2, 1), (-1, 1, -1))
    assert volume.spacing == pytest.approx((2.5, 0.7, 0.8))
    assert volume.voxel_ml == pytest.approx(2.5 * 0.7 * 0.8 / 1000)
    sheared = volume.affine.copy()
    sheared[:3, 0] += sheared[:3, 1]  # A tilted gantry changes no voxel's content.
    assert Volume(voxels=volume.voxels, affine=sheared).voxel_ml == pytest.approx(volume.voxel_ml)


def test_a_model_order_needs_no_turning() -> None:
    assert orientation_of(a_volume().affine) == Orientation(order=(0, 1, 2), flipped=())


def test_as_many_voxels_of_the_target_spacing_are_taken_as_cover_the_space() -> None:
    assert resized_shape((10, 100, 100), (5.0, 0.5, 0.5), (2.0, 1.0, 0.0)) == (25, 50, 100)
    assert resized_shape((1, 2, 2), (1.0, 1.0, 1.0), (9.0, 9.0, 9.0)) == (1, 1, 1)


def test_resizing_keeps_a_ramp_where_it_is() -> None:
    # Voxel centres of the coarse grid lie between those of the fine one.
    ramp = np.arange(8, dtype=np.float32)[None, None, :].repeat(2, axis=1)
    assert np.allclose(resize(ramp, (1, 2, 4))[0, 0], [0.5, 2.5, 4.5, 6.5])
    assert np.allclose(resize(ramp, (1, 2, 16))[0, 0, 1:-1], np.arange(14) / 2 + 0.25)


def test_resizing_and_back_keeps_a_smooth_volume() -> None:
    k, j, i = np.meshgrid(*(np.linspace(0, np.pi, n) for n in (12, 20, 24)), indexing="ij")
    smooth = (np.sin(k) * np.sin(j) * np.sin(i)).astype(np.float32)
    back = resize(resize(smooth, (24, 40, 48)), (12, 20, 24))
    assert back.shape == smooth.shape
    assert np.abs(back - smooth).max() < 0.05  # A straight line cuts the tops off.
    # Nothing is moved: what is left over is as large on one side as on the other.
    moved = np.abs(back - smooth)
    assert np.allclose(moved, moved[::-1, ::-1, ::-1], atol=1e-5)


def test_labels_are_never_mixed() -> None:
    labels = np.zeros((6, 6, 6), dtype=np.uint8)
    labels[1:4, 2:5, 2:5] = 3
    for shape in ((9, 13, 5), (3, 3, 3)):
        resized = resize(labels, shape, order=0)
        assert resized.dtype == np.uint8
        assert set(np.unique(resized)) <= {0, 3}


def test_a_volume_of_the_wanted_shape_is_not_copied() -> None:
    voxels = a_volume().voxels
    assert resize(voxels, (3, 4, 5)) is voxels
