"""The way of the scanner: generated drives whose poses are known, and KITTI's measure by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pegboard.errors import DataError
from pegboard_lidar import odometry, scenes, shapes
from pegboard_lidar.odometry import draw_trajectory, drift, length_of, read_poses, write_poses

Array = Any


def driven(frames: int, speed: float = 10.0, seed: int = 0) -> tuple[list[Array], Array]:
    """Return the scans of a drive and its true poses; of few shapes, which are made quickly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes, "library", lambda seed, share: shapes.library(seed, 0.05))
        made = scenes.make_sequence(np.random.default_rng(seed), frames=frames, speed=speed)
    return [frame.points for frame in made], np.stack([frame.pose for frame in made])


def straight(metres: float, count: int, turn: float = 0.0) -> Array:
    """Return poses on a line that ends after so many metres; each is turned by `turn` radians."""
    poses = np.tile(np.eye(4), (count, 1, 1))
    cos, sin = np.cos(turn), np.sin(turn)
    poses[:, :2, :2] = [[cos, -sin], [sin, cos]]
    poses[:, 0, 3] = np.linspace(0, metres, count)
    return poses


@pytest.fixture(scope="module")
def drive() -> tuple[list[Array], Array]:
    return driven(4)


# --- Registration ---------------------------------------------------------------------------------


def test_icp_follows_a_drive(drive: tuple[list[Array], Array]) -> None:
    scans, true = drive
    found = odometry.odometry(scans)
    np.testing.assert_array_equal(found[0], np.eye(4))
    assert length_of(true) == pytest.approx(3.0, abs=0.01)
    assert np.abs(found[:, :3, 3] - true[:, :3, 3]).max() < 0.05
    assert drift(found, true) < 0.015


def test_the_same_scans_give_the_same_poses(drive: tuple[list[Array], Array]) -> None:
    scans, _ = drive
    one, other = (odometry.odometry(scans[:2]) for _ in range(2))
    np.testing.assert_allclose(one, other, rtol=0, atol=2e-9)


def test_kiss_icp_follows_the_drive_too(drive: tuple[list[Array], Array]) -> None:
    pytest.importorskip("kiss_icp", reason="the extra 'odometry' is not installed")
    scans, true = drive
    found = odometry.odometry(scans, "kiss")
    np.testing.assert_allclose(found[0], np.eye(4), atol=1e-9)
    assert np.abs(found[:, :3, 3] - true[:, :3, 3]).max() < 0.15


def test_points_that_are_not_finite_are_left_out(drive: tuple[list[Array], Array]) -> None:
    scans, _ = drive
    holes = [np.concatenate([scan, np.full((50, 4), np.nan)]) for scan in scans[:2]]
    found, expected = odometry.odometry(holes), odometry.odometry(scans[:2])
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-9)


def test_a_scan_of_few_points_is_named(drive: tuple[list[Array], Array]) -> None:
    scans, _ = drive
    with pytest.raises(DataError, match=r"20 points .* too few .*\(scan 2\)"):
        odometry.odometry([scans[0], scans[0][:20] + 20])


def test_no_scan_has_no_pose() -> None:
    assert odometry.odometry([]).shape == (0, 4, 4)


@pytest.mark.slow
def test_the_drift_of_a_longer_drive_is_below_a_percent() -> None:
    """0.12 % by ICP and 0.23 % by KISS-ICP, after 19 m."""
    scans, true = driven(20)
    for method in ("icp", "kiss"):
        if method == "kiss":
            pytest.importorskip("kiss_icp", reason="the extra 'odometry' is not installed")
        found = odometry.odometry(scans, method)
        share = drift(found, true)
        print(f"{method}, {length_of(true):.0f} m: drift {100 * share:.2f} %")
        assert share < 0.01
        np.testing.assert_allclose(
            odometry.odometry(scans[:4], method), found[:4], rtol=0, atol=1e-8
        )


# --- KITTI's measure ------------------------------------------------------------------------------


def test_a_way_that_is_2_percent_too_long_drifts_by_2_percent() -> None:
    assert drift(straight(204, 201), straight(200, 201)) == pytest.approx(0.02)


def test_of_a_short_way_the_whole_is_measured() -> None:
    assert drift(straight(10.5, 11), straight(10, 11)) == pytest.approx(0.05)


def test_where_a_drive_begins_and_looks_to_makes_no_drift() -> None:
    moved = straight(150, 151)
    turned = np.array([[0, -1, 0, 7], [1, 0, 0, -3], [0, 0, 1, 2], [0, 0, 0, 1.0]])
    assert drift(moved, turned @ moved) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("true", "words"),
    [(straight(10, 4), "4 true poses and 5 scans"), (straight(0, 5), "do not move")],
)
def test_poses_that_cannot_be_compared_are_one_sentence(true: Array, words: str) -> None:
    with pytest.raises(DataError, match=words):
        drift(straight(10, 5), true)


# --- Files ----------------------------------------------------------------------------------------


def test_poses_are_written_as_kitti_does_and_read_back(tmp_path: Path) -> None:
    poses = straight(12.3456789, 5, turn=0.3)
    write_poses(tmp_path / "poses.txt", poses)
    lines = (tmp_path / "poses.txt").read_text().splitlines()
    assert [len(line.split()) for line in lines] == [12] * 5
    np.testing.assert_allclose(read_poses(tmp_path / "poses.txt"), poses, atol=1e-8)
    (tmp_path / "blank.txt").write_text("\n".join(lines) + "\n\n")
    assert len(read_poses(tmp_path / "blank.txt")) == 5


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["1 0 0 0 0 1 0 0 0 0 1"], "write 12 numbers a line"),
        (["1 0 0 0 0 1 0 0 0 0 1 0" * 2], "write 12 numbers a line"),
        (["1 0 0 0 0 1 0 0 0 0 1 x"], "write 12 numbers a line"),
        (["1 0 0 0 0 1 0 0 0 0 1 0", "0 " * 12], "pose 2 is no rotation"),
        (["1 0 0 nan 0 1 0 0 0 0 1 0"], "pose 1 is no rotation"),
    ],
)
def test_a_file_that_holds_no_poses_is_one_sentence(
    tmp_path: Path, lines: Sequence[str], words: str
) -> None:
    (tmp_path / "poses.txt").write_text("\n".join(lines))
    with pytest.raises(DataError, match=words):
        read_poses(tmp_path / "poses.txt")


def test_a_file_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="poses cannot be read"):
        read_poses(tmp_path / "poses.txt")


def test_the_trajectory_is_a_picture_of_both_ways() -> None:
    alone, both = (
        draw_trajectory(straight(20, 5)),
        draw_trajectory(straight(20, 5), straight(21, 5)),
    )
    for svg in (alone, both):
        assert svg.startswith("<svg")
        assert 'xmlns="http://www.w3.org/2000/svg"' in svg
    assert "true" not in alone
    assert "true" in both
