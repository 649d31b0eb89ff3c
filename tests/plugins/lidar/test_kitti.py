from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

from pegboard.errors import DataError
from pegboard_lidar import boxes, kitti, scans
from pegboard_lidar.frames import Labels
from pegboard_lidar.kitti import Calibration

TRUCK = "Truck 0.00 0 -1.57 599.41 156.40 629.75 189.25 2.85 2.63 12.34 0.47 1.49 69.44 -1.56"
REGION = "DontCare -1 -1 -10 503.89 169.71 590.61 190.13 -1 -1 -1 -1000 -1000 -1000 -10"


@pytest.fixture(scope="session")
def frames(test_data: Path) -> Path:
    folder = test_data / "lidar" / "kitti_object_mini" / "training"
    if not folder.is_dir():
        pytest.skip(f"no KITTI frames at {folder}")
    return folder


def read(frames: Path, key: str) -> tuple[Any, Calibration, Path]:
    calibration = kitti.read_calibration(frames / "calib" / f"{key}.txt")
    return (
        scans.read_scan(frames / "velodyne" / f"{key}.bin"),
        calibration,
        frames / "label_2" / f"{key}.txt",
    )


def level_calibration(
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0), tilt: float = 0.0
) -> Calibration:
    """Return a camera that looks ahead from where the scanner is, or `shift` from it."""
    cos, sin = np.cos(tilt), np.sin(tilt)
    axes = np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])
    return Calibration(
        projection=np.array([[700.0, 0, 620, 45], [0, 700, 187, 0.2], [0, 0, 1, 0.003]]),
        rectification=np.array([[1.0, 0, 0], [0, cos, -sin], [0, sin, cos]]),
        scanner_to_camera=np.concatenate([axes, np.array(shift)[:, None]], axis=1),
    )


# Counted with the boxes upright in the camera's frame, as KITTI defines them.
POINTS = {
    "000000": [("Pedestrian", 376)],
    "000001": [("Truck", 70), ("Car", 9), ("Cyclist", 18)],
    "000002": [("Misc", 1351), ("Car", 67)],
    "000003": [("Car", 680)],
    "000004": [("Car", 77), ("Car", 26)],
    "000005": [("Pedestrian", 70)],
}


@pytest.mark.parametrize("key", POINTS)
def test_labelled_boxes_hold_exactly_the_points_that_kitti_says(frames: Path, key: str) -> None:
    points, calibration, path = read(frames, key)
    level = level_calibration()
    # The camera's frame with our names of the axes: nothing is tilted.
    moved = level.to_scanner(calibration.to_camera(points))
    labels = kitti.read_labels(path, level)
    counts = boxes.points_in_boxes(moved, labels.boxes).sum(axis=1)
    assert list(zip(labels.names, counts.tolist(), strict=True)) == POINTS[key]


@pytest.mark.parametrize("key", POINTS)
def test_upright_in_the_scanners_frame_they_differ_by_the_cameras_tilt_alone(
    frames: Path, key: str
) -> None:
    points, calibration, path = read(frames, key)
    labels = kitti.read_labels(path, calibration)
    counts = boxes.points_in_boxes(points, labels.boxes).sum(axis=1)
    expected = np.array([count for _, count in POINTS[key]])
    assert (np.abs(counts - expected) <= 0.03 * expected).all()


def test_a_box_ahead_to_the_left_is_where_it_was_put() -> None:
    # 20 m ahead, 3 m to the left, its bottom 1.5 m below; heading to the left (ry = -pi).
    path_line = "Car 0.1 1 0 10 20 110 80 1.6 1.8 4.0 -3 1.5 20 -3.14159265"
    labels = _labels(path_line, level_calibration())
    assert np.allclose(labels.boxes, [[20, 3, -0.7, 4.0, 1.8, 1.6, np.pi / 2]], atol=1e-6)
    assert labels.pixels.tolist() == [60.0]
    assert labels.truncation.tolist() == [0.1]
    assert labels.occlusion.tolist() == [1]


def _labels(text: str, calibration: Calibration) -> Labels:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "000000.txt"
        path.write_text(text)
        return kitti.read_labels(path, calibration)


def test_points_go_to_the_camera_and_back() -> None:
    calibration = level_calibration((0.1, -0.2, 0.3), tilt=0.1)
    points = np.random.default_rng(0).normal(0, 10, (20, 3))
    assert np.allclose(calibration.to_scanner(calibration.to_camera(points)), points)


def test_a_point_behind_the_camera_is_nowhere_in_the_picture() -> None:
    pixels, depth = level_calibration().project(np.array([[10.0, 0, 0], [-10.0, 0, 0]]))
    assert np.allclose(pixels[0], [(620 * 10 + 45) / 10.003, (187 * 10 + 0.2) / 10.003])
    assert np.isnan(pixels[1]).all()
    assert np.allclose(depth, [10.003, -9.997])


def test_real_boxes_project_onto_their_regions_of_the_picture(frames: Path) -> None:
    away = []
    for key in POINTS:
        _, calibration, path = read(frames, key)
        regions, _ = kitti.regions_of(kitti.read_labels(path, calibration).boxes, calibration)
        objects = kitti.read_objects(path)
        away.append(np.abs(regions - objects.values[objects.is_object][:, 3:7]))
    # The people who labelled drew close around what they saw, arms and legs.
    assert np.concatenate(away).max() < 12
    assert np.median(np.concatenate(away)) < 0.5


def test_what_is_written_for_the_server_is_read_as_the_same_boxes(tmp_path: Path) -> None:
    calibration = level_calibration((0.0, -0.08, -0.27))
    made = np.array([[20.0, 3, -0.7, 4, 1.8, 1.6, 2.0], [15, -4, -0.8, 0.8, 0.6, 1.8, -3.0]])
    lines = kitti.label_lines(
        ["Car", "Pedestrian"], made, calibration, scores=np.array([0.9, 0.25])
    )
    (tmp_path / "000000.txt").write_text("\n".join(lines))
    read = kitti.read_labels(tmp_path / "000000.txt", calibration)
    assert [line.split()[-1] for line in lines] == ["0.9000", "0.2500"]
    assert all(len(line.split()) == 16 for line in lines)
    assert read.names == ["Car", "Pedestrian"]
    assert np.allclose(read.boxes, made, atol=2e-4)


def test_real_labels_survive_being_written(frames: Path) -> None:
    for key in POINTS:
        _, calibration, path = read(frames, key)
        labels = kitti.read_labels(path, calibration)
        given = kitti.read_objects(path)
        lines = kitti.label_lines(
            labels.names, labels.boxes, calibration, occlusion=labels.occlusion
        )
        written = np.array([line.split()[1:] for line in lines], dtype=np.float64)
        known = given.values[given.is_object]
        assert np.allclose(written[:, 7:13], known[:, 7:13], atol=1e-3)
        turned = written[:, 13] - known[:, 13]
        # The heading of an upright box loses the camera's tilt.
        assert np.abs(np.arctan2(np.sin(turned), np.cos(turned))).max() < 2e-3
        alpha = written[:, 2] - known[:, 2]
        # KITTI's own alpha of the first frames is off by up to 0.1.
        assert np.abs(np.arctan2(np.sin(alpha), np.cos(alpha))).max() < 0.1


def test_results_outside_the_picture_are_left_out_and_labels_are_kept() -> None:
    calibration = level_calibration()
    made = np.array([[20.0, 0, 0, 4, 2, 2, 0], [-20, 0, 0, 4, 2, 2, 0], [5, 40, 0, 4, 2, 2, 0]])
    names = ["Car"] * 3
    assert len(kitti.label_lines(names, made, calibration, scores=np.ones(3))) == 1
    labels = [line.split() for line in kitti.label_lines(names, made, calibration)]
    assert len(labels) == 3
    assert labels[1][4:8] == ["-1.00"] * 4
    assert np.isnan(_labels(" ".join(labels[1]), calibration).pixels).all()


def test_a_box_that_reaches_behind_the_camera_has_a_region_up_to_the_border() -> None:
    region, outside = kitti.regions_of(
        np.array([[0.5, 1.5, 0, 4, 1.8, 1.5, 0]]), level_calibration()
    )
    assert region[0, 0] == 0
    assert 0.5 < outside[0] < 1


def test_a_region_where_nothing_is_labelled_is_no_object() -> None:
    labels = _labels(f"{TRUCK}\n\n{REGION}\n", level_calibration())
    assert labels.names == ["Truck"]
    assert labels.ignored.tolist() == [[503.89, 169.71, 590.61, 190.13]]


def test_a_frame_without_objects_has_empty_labels() -> None:
    labels = _labels("", level_calibration())
    assert labels.boxes.shape == (0, 7)
    assert labels.velocity.shape == (0, 2)
    assert kitti.difficulty(labels).shape == (0,)


@pytest.mark.parametrize(
    "line", ["Car 1 2 3", TRUCK.replace("69.44", "far"), f"{TRUCK} 0.5 7"], ids=str
)
def test_a_line_that_is_no_label_is_named_with_its_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "000007.txt"
    path.write_text(f"{TRUCK}\n{line}\n")
    with pytest.raises(DataError, match=r"line 2 is no label of KITTI.*000007.txt:2"):
        kitti.read_objects(path)


def test_a_calibration_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = level_calibration((0.1, -0.2, 0.3), tilt=0.01)
    (tmp_path / "000000.txt").write_text(kitti.calibration_text(made))
    read = kitti.read_calibration(tmp_path / "000000.txt")
    assert np.allclose(read.matrix, made.matrix, atol=1e-11)
    assert np.allclose(read.projection, made.projection)


def test_a_calibration_without_a_matrix_says_which(tmp_path: Path) -> None:
    path = tmp_path / "000000.txt"
    lines = kitti.calibration_text(level_calibration()).splitlines()
    path.write_text("\n".join(lines[:2]))
    with pytest.raises(DataError, match=r"matrix Tr_velo_to_cam of the calibration is not there"):
        kitti.read_calibration(path)
    path.write_text("\n".join([*lines[:2], lines[2].rsplit(" ", 1)[0]]))
    with pytest.raises(DataError, match=r"Tr_velo_to_cam of the calibration is not 3 x 4 numbers"):
        kitti.read_calibration(path)
    with pytest.raises(DataError, match="there is no calibration file"):
        kitti.read_calibration(tmp_path / "none.txt")


def test_difficulty_is_kittis() -> None:
    pixels = np.array([40.1, 40.0, 25.1, 25.0, 100.0, 100.0, 100.0, 100.0, 100.0])
    occlusion = np.array([0, 0, 1, 0, 2, 3, 0, 0, 0])
    truncation = np.array([0.15, 0.0, 0.30, 0.0, 0.50, 0.0, 0.16, 0.31, 0.51])
    count = len(pixels)
    labels = Labels(
        names=["Car"] * count,
        boxes=np.ones((count, 7)),
        pixels=pixels,
        occlusion=occlusion,
        truncation=truncation,
    )
    assert kitti.difficulty(labels).tolist() == [0, 1, 1, -1, 2, -1, 1, 2, -1]
    unseen = replace(labels, pixels=np.full(count, np.nan))
    assert kitti.difficulty(unseen).tolist() == [0, 0, 1, 0, 2, -1, 0, 0, 0]


# --- boxes.py -------------------------------------------------------------------------------------


def test_corners_go_around_a_turned_box_bottom_first() -> None:
    found = boxes.corners(np.array([[10.0, 5, 1, 4, 2, 1.5, np.pi / 2]]))[0]
    # Heading to the left: its front left corner is at smaller x and larger y.
    assert np.allclose(found[0], [9, 7, 0.25])
    assert np.allclose(found[3], [11, 7, 0.25])
    assert np.allclose(found[:4, 2], 0.25)
    assert np.allclose(found[4:], found[:4] + np.array([0, 0, 1.5]))


def test_points_in_a_turned_box_are_found_and_nan_is_nowhere() -> None:
    box = np.array([[10.0, 5, 1, 4, 2, 2, np.pi / 4]])
    along = np.array([np.cos(np.pi / 4), np.sin(np.pi / 4)])
    points = np.array(
        [
            [10, 5, 1],
            [*(np.array([10, 5]) + 1.99 * along), 1],
            [*(np.array([10, 5]) + 2.01 * along), 1],
            [10, 5, 2.01],
            [np.nan, 5, 1],
        ]
    )
    assert boxes.points_in_boxes(points, box).tolist() == [[True, True, False, False, False]]
    assert boxes.points_in_boxes(np.zeros((0, 4)), box).shape == (1, 0)
    assert boxes.points_in_boxes(points, np.zeros((0, 7))).shape == (0, 5)


def test_a_box_moves_with_its_points() -> None:
    turn = np.radians(30)
    matrix = np.eye(4)
    matrix[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    matrix[:3, 3] = [1, 2, 3]
    made = np.array([[10.0, 5, 1, 4, 2, 1.5, 3.0]])
    moved = boxes.transformed(made, matrix)
    expected = boxes.corners(made)[0] @ matrix[:3, :3].T + matrix[:3, 3]
    assert np.allclose(boxes.corners(moved)[0], expected)
    assert -np.pi <= moved[0, 6] <= np.pi
