"""The steps before clustering: what each keeps and drops, on made points and on a real scan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pegboard_lidar import steps
from pegboard_lidar.boxes import points_in_boxes
from pegboard_lidar.kitti import read_calibration, read_labels
from pegboard_lidar.scans import finite, read_scan
from pegboard_lidar.settings import LidarData, StepsSettings

Array = Any
PLAIN = StepsSettings()


def road(count: int = 20_000, *, slope: float = 0.0, seed: int = 0) -> Array:
    """Return points of a road that rises ahead, under a scanner 1.73 m above it."""
    generator = np.random.default_rng(seed)
    points = np.zeros((count, 4), dtype=np.float32)
    points[:, :2] = generator.uniform([0, -30], [60, 30], (count, 2))
    points[:, 2] = slope * points[:, 0] - 1.73 + generator.normal(0, 0.02, count)
    return points


def car(x: float, y: float, ground: float = -1.73) -> Array:
    """Return points of the two sides of a car that the scanner sees."""
    along, up = np.meshgrid(np.linspace(0, 4, 40), np.linspace(0.3, 1.5, 12))
    side = np.stack([x + along, np.full_like(along, y), ground + up, 0 * up], -1)
    back = np.stack([np.full_like(along, x), y - along * 0.45, ground + up, 0 * up], -1)
    return np.concatenate([side, back]).reshape(-1, 4).astype(np.float32)


@pytest.fixture(scope="module")
def real(test_data: Path) -> Path:
    folder = test_data / "lidar" / "kitti_object_mini" / "training"
    if not folder.is_dir():
        pytest.skip(f"no real scans at {folder}")
    return folder


# --- Crop and voxels ------------------------------------------------------------------------------


def test_the_range_holds_its_near_edge_and_not_its_far_one() -> None:
    points = np.array([[0, 0, 0, 1], [10, 0, 0, 1], [5, -5, 0, 1], [5, 5, 0, 1]], dtype=np.float32)
    kept = steps.crop(points, (0.0, -5.0, -1.0, 10.0, 5.0, 1.0))
    assert kept.tolist() == [True, False, True, False]


def test_a_voxel_keeps_its_first_point_as_it_was_scanned() -> None:
    points = np.array(
        [[0.01, 0, 0, 0.1], [0.15, 0, 0, 0.2], [0.02, 0.01, 0, 0.3], [-0.01, 0, 0, 0.4]],
        dtype=np.float32,
    )
    assert steps.voxel_down(points, 0.1)[:, 3].tolist() == pytest.approx([0.1, 0.2, 0.4])


def test_no_voxel_side_keeps_every_point() -> None:
    points = road(100)
    assert steps.voxel_down(points, 0.0) is points


def test_voxels_are_as_many_as_open3d_finds() -> None:
    points = road(5000)
    # Open3D's grid begins half a voxel below the smallest point, ours at 0.
    corner = np.array([[-0.05, -30.05, -2.05, 0]], dtype=np.float32)
    moved = np.concatenate([corner, points])
    theirs = len(steps.cloud_of(moved).voxel_down_sample(0.4).points)
    ours = len(steps.voxel_down(moved - corner + 0.2, 0.4))
    assert ours == pytest.approx(theirs, rel=0.01)


def test_a_lonely_point_is_an_outlier() -> None:
    points = np.concatenate([road(2000), [[30.0, 0.0, 20.0, 0.0]]]).astype(np.float32)
    kept = steps.without_outliers(points, 10, 3.0)
    assert not kept[-1]
    assert kept[:-1].mean() > 0.95


# --- Ground ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("slope", [0.0, 0.1, -0.1])
def test_the_road_goes_and_the_car_stays(slope: float) -> None:
    below = slope * 12 - 1.73
    points = np.concatenate([road(slope=slope), car(12, 2, below)])
    is_ground = steps.ground(points, PLAIN)
    assert is_ground[:20_000].mean() > 0.999
    assert is_ground[20_000:].mean() < 0.12


def test_a_wall_is_no_ground() -> None:
    generator = np.random.default_rng(0)
    wall = np.zeros((30_000, 4), dtype=np.float32)
    wall[:, 0] = 15.0
    wall[:, 1], wall[:, 2] = generator.uniform([-20, -1.4], [20, 3], (30_000, 2)).T
    points = np.concatenate([road(3000), wall])
    is_ground = steps.ground(points, PLAIN)
    assert is_ground[:3000].mean() > 0.95
    assert is_ground[3000:].mean() < 0.01


def test_a_sector_has_a_plane_of_its_own() -> None:
    points = road()
    left = points[:, 1] > 0
    points[left, 2] += 0.08 * points[left, 1]  # A bank to the left, and level ground to the right.
    assert steps.ground(points, PLAIN).mean() > 0.95
    assert steps.ground(points, PLAIN.model_copy(update={"sectors": 1})).mean() < 0.9


def test_without_ground_removal_nothing_is_ground() -> None:
    assert not steps.ground(road(), PLAIN.model_copy(update={"ground": "none"})).any()


@pytest.mark.parametrize("method", ["ransac", "patchwork"])
def test_on_real_scans_the_road_goes_and_the_objects_stay(real: Path, method: str) -> None:
    if method == "patchwork":
        pytest.importorskip("pypatchworkpp", reason="the extra 'ground' is not installed")
    kept, gone = [], []
    for key in ("000000", "000003"):
        points = finite(read_scan(real / "velodyne" / f"{key}.bin"))
        labels = read_labels(
            real / "label_2" / f"{key}.txt", read_calibration(real / "calib" / f"{key}.txt")
        )
        is_ground = steps.ground(points, StepsSettings.model_validate({"ground": method}))
        inside = points_in_boxes(points, labels.boxes)
        for box, its in zip(labels.boxes, inside, strict=True):
            above = its & (points[:, 2] > box[2] - box[5] / 2 + 0.4)
            kept.append(1 - is_ground[above].mean())
        # Around the car, where there is nothing else, the ground is 1.73 m below the scanner.
        near = np.hypot(points[:, 0] - 6, points[:, 1]) < 2.5
        road_points = near & (np.abs(points[:, 2] + 1.73) < 0.1)
        assert road_points.sum() > 1000
        gone.append(is_ground[road_points].mean())
    assert min(kept) > 0.98
    assert min(gone) > 0.95


# --- All of them ----------------------------------------------------------------------------------


def test_a_scan_is_prepared_the_same_way_every_time() -> None:
    points = np.concatenate([road(), car(12, 2)])
    points[7, 0] = np.nan
    settings = PLAIN.model_copy(update={"neighbours": 8})
    one, other = (steps.prepare_points(points, LidarData(), settings) for _ in range(2))
    np.testing.assert_array_equal(one.points, other.points)
    np.testing.assert_array_equal(one.ground, other.ground)
    assert np.isfinite(one.points).all()
    assert len(one.points) > 100
    assert len(one.ground) > 5000


@pytest.mark.parametrize("points", [np.zeros((0, 4)), np.full((3, 4), np.nan)])
def test_a_scan_without_points_is_prepared(points: Array) -> None:
    prepared = steps.prepare_points(points.astype(np.float32), LidarData(), PLAIN)
    assert prepared.points.shape == prepared.ground.shape == (0, 4)
