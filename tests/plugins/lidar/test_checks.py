from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pegboard.records import Finding
from pegboard_lidar import checks, kitti, layouts, scans, splits
from pegboard_lidar.kitti import Calibration
from pegboard_lidar.settings import LidarData


def found(path: Path, **settings: Any) -> list[Finding]:
    data = LidarData(path=path, **settings)
    frames = layouts.read_frames(data)
    labelled = [frame for frame in frames if frame.labels]
    return checks.check(data, frames, splits.assign(labelled, data))


def only(findings: list[Finding], words: str) -> Finding:
    (finding,) = [one for one in findings if words in one.what]
    assert finding.where
    assert finding.remedy
    return finding


def told(findings: list[Finding], words: str) -> bool:
    return any(words in one.what for one in findings)


# --- Real frames ----------------------------------------------------------------------------------


@pytest.fixture
def real(test_data: Path, tmp_path: Path) -> Path:
    """Return a copy of the real frames whose small files may be changed."""
    source = test_data / "lidar" / "kitti_object_mini" / "training"
    if not source.is_dir():
        pytest.skip(f"no KITTI frames at {source}")
    for folder in ("calib", "label_2"):
        shutil.copytree(source / folder, tmp_path / "training" / folder)
    (tmp_path / "training" / "velodyne").symlink_to(source / "velodyne")
    return tmp_path


def recalibrate(
    real: Path, change: Callable[[Calibration], Calibration], keys: tuple[str, ...] = ("000001",)
) -> None:
    for key in keys:
        path = real / "training" / "calib" / f"{key}.txt"
        path.write_text(kitti.calibration_text(change(kitti.read_calibration(path))))


def turned(degrees: float) -> Callable[[Calibration], Calibration]:
    def turn(calibration: Calibration) -> Calibration:
        matrix = calibration.scanner_to_camera.copy()
        matrix[:, :3] = matrix[:, :3] @ checks._turn(degrees)[:3, :3]
        return replace(calibration, scanner_to_camera=matrix)

    return turn


def mirrored(row: int) -> Callable[[Calibration], Calibration]:
    def mirror(calibration: Calibration) -> Calibration:
        matrix = calibration.scanner_to_camera.copy()
        matrix[row] *= -1
        return replace(calibration, scanner_to_camera=matrix)

    return mirror


def test_nothing_is_wrong_with_the_real_frames(real: Path) -> None:
    findings = found(real)
    assert {one.level for one in findings} == {"warning", "note"}
    assert {one.what.split(":")[0] for one in findings if one.level == "warning"} == {
        "fewer than 10 objects of a class"
    }
    assert only(findings, "classes that data.classes lacks").what.endswith("Misc 1, Truck 1")
    assert "6 scans, 113,110 to 126,891 points, 10 objects" in findings[-1].what


@pytest.mark.parametrize("row", [0, 1, 2])
def test_a_calibration_that_exchanges_left_and_right_is_found(real: Path, row: int) -> None:
    recalibrate(real, mirrored(row))
    finding = only(found(real), "calibration cannot be right")
    assert finding.level == "error"
    assert finding.where == "000001"
    assert "Tr_velo_to_cam exchanges left and right" in finding.what


@pytest.mark.parametrize(
    ("degrees", "words"),
    [
        (180, "turned by a half they would hold 81 points instead of 0"),
        (90, "turned by a quarter to the left they would hold 81 points instead of 0"),
        (10, "0 of 9 rays towards its objects end on them"),
    ],
)
def test_a_calibration_that_is_turned_is_found(real: Path, degrees: float, words: str) -> None:
    recalibrate(real, turned(degrees))
    finding = only(found(real), "do not lie on the objects")
    assert finding.level == "warning"
    assert finding.where == "000001"
    assert words in finding.what
    assert "calibration of the day" in finding.remedy


@pytest.mark.parametrize("degrees", [5, 20, -10, 90, 180])
def test_a_wrong_calibration_everywhere_stops_the_run(real: Path, degrees: float) -> None:
    recalibrate(real, turned(degrees), tuple(f"{n:06d}" for n in range(6)))
    assert only(found(real), "do not lie on the objects").level == "error"


def test_a_calibration_of_another_camera_is_found(real: Path) -> None:
    recalibrate(real, lambda one: replace(one, scanner_to_camera=np.eye(4)[:3]))
    finding = only(found(real), "calibration cannot be right")
    assert "0.0% of the points are in the picture" in finding.what


def test_a_matrix_that_is_no_rotation_is_found(real: Path) -> None:
    recalibrate(real, lambda one: replace(one, rectification=1.1 * one.rectification))
    assert "R0_rect is no rotation" in only(found(real), "calibration cannot be right").what


def test_a_calibration_that_is_missing_is_named(real: Path) -> None:
    (real / "training" / "calib" / "000001.txt").unlink()
    finding = only(found(real), "there is no calibration file")
    assert finding.level == "error"
    assert finding.where.endswith("calib/000001.txt")


def test_objects_where_the_scanner_never_looked_are_told(tmp_path: Path) -> None:
    a_sound_folder(tmp_path)
    write(tmp_path, "001", labels=[box(z=9.0)])
    assert "the scanner looked at none" in only(found(tmp_path), "do not lie on the objects").what


def test_labels_of_another_frame_are_found(real: Path) -> None:
    labels = real / "training" / "label_2"
    shutil.copy(labels / "000004.txt", labels / "000003.txt")
    assert only(found(real), "do not lie on the objects").where == "000003"


# --- Scans of a block on the ground ---------------------------------------------------------------

BLOCK = [12.0, 3.0, -0.9, 4.0, 2.0, 1.6, 0.4]


def write(path: Path, name: str, *, seed: int = 0, points: Any = None, labels: Any = None) -> None:
    """Write a scan of a block, a wall behind it and the ground, with the block as a car."""
    if points is None:
        points = a_scan(seed)
    scans.write_bin(path / f"{name}.bin", points)
    if labels is None:
        labels = [{"class": "Car", "box": BLOCK}]
    (path / f"{name}.json").write_text(json.dumps(labels))


def a_scan(seed: int) -> Any:
    generator = np.random.default_rng(seed)
    # What a ray towards the block meets first: its face at 10.5 m, else the wall at 30 m.
    rays = np.stack(
        [np.ones(4000), generator.uniform(-1, 1, 4000), generator.uniform(-0.16, 0.16, 4000)],
        axis=-1,
    )
    face, wall = rays * 11.0, rays * 30.0
    on_block = (np.abs(face[:, 1] - 2.75) < 1.0) & (np.abs(face[:, 2] + 0.9) < 0.8)
    xyz = np.where(on_block[:, None], face, wall)
    return np.concatenate([xyz, np.full((4000, 1), 0.3)], axis=1).astype(np.float32)


def a_sound_folder(path: Path, count: int = 12) -> Path:
    for number in range(count):
        write(path, f"{number:03d}", seed=number)
    return path


def test_nothing_is_wrong_with_sound_scans(tmp_path: Path) -> None:
    findings = found(a_sound_folder(tmp_path, 60), classes=("Car",), test_share=0.3,
                     validation_share=0.2)  # fmt: skip
    assert [one.level for one in findings] == ["note"]
    assert "60 scans" in findings[0].what


def test_an_unreadable_and_an_empty_scan_are_named(tmp_path: Path) -> None:
    a_sound_folder(tmp_path)
    (tmp_path / "003.bin").write_bytes(b"\0" * 21)
    (tmp_path / "004.bin").write_bytes(b"")
    findings = found(tmp_path)
    assert only(findings, "cannot be used").where == "003"
    assert "21 bytes are no whole number of points" in only(findings, "cannot be used").what
    assert only(findings, "scan empty").where == "004"
    assert [one.level for one in findings[:2]] == ["error", "error"]


def test_a_scan_with_nan_points_is_named(tmp_path: Path) -> None:
    a_sound_folder(tmp_path)
    points = a_scan(2)
    points[:7, 0] = np.nan
    points[8, 1] = np.inf
    write(tmp_path, "002", points=points)
    finding = only(found(tmp_path), "not finite (NaN)")
    assert finding.what == "8 points not finite (NaN) in 1 scan"
    assert finding.where == "002 (8)"
    assert finding.level == "warning"


def test_scans_outside_the_range_are_named(tmp_path: Path) -> None:
    a_sound_folder(tmp_path)
    write(tmp_path, "005", points=a_scan(5) - np.float32([500, 0, 0, 0]))
    finding = only(found(tmp_path), "without a point in data.range")
    assert (finding.where, finding.level) == ("005", "warning")
    everywhere = found(tmp_path, range=(100.0, -40.0, -3.0, 170.4, 40.0, 1.0))
    assert only(everywhere, "without a point in data.range").level == "error"


def test_at_most_ten_places_are_named(tmp_path: Path) -> None:
    a_sound_folder(tmp_path, 13)
    for number in range(13):
        (tmp_path / f"{number:03d}.bin").write_bytes(b"")
    assert only(found(tmp_path), "empty").where.endswith("008, 009 and 3 more")


def box(**changes: float) -> dict[str, Any]:
    names = ("x", "y", "z", "length", "width", "height", "yaw")
    return {
        "class": "Car",
        "box": list({**dict(zip(names, BLOCK, strict=True)), **changes}.values()),
    }


def test_boxes_that_cannot_be_are_named(tmp_path: Path) -> None:
    a_sound_folder(tmp_path)
    sound = box()
    write(tmp_path, "001", labels=[sound, box(width=0.0)])
    write(tmp_path, "002", labels=[sound, box(height=-1.6)])
    write(tmp_path, "003", labels=[sound, box(length=400.0)])
    write(tmp_path, "004", labels=[sound, box(yaw=float("nan"))])
    write(tmp_path, "005", labels=[sound, box(x=-20.0)])
    write(tmp_path, "006", labels=[sound, box(y=-20.0)])
    findings = found(tmp_path)
    size = only(findings, "of no size")
    assert size.what == "2 boxes of 18 of no size: a side is 0 or negative"
    assert (size.where, size.level) == ("001 object 2 (Car), 002 object 2 (Car)", "error")
    assert only(findings, "larger than 40 m").where == "003 object 2 (Car)"
    assert only(findings, "not finite").where == "004 object 2 (Car)"
    assert only(findings, "outside data.range").where == "005 object 2 (Car)"
    assert only(findings, "without a point").where == "006 object 2 (Car)"


def test_a_file_of_labels_that_is_malformed_is_named_with_its_line(tmp_path: Path) -> None:
    a_sound_folder(tmp_path)
    for name in ("001", "002"):
        (tmp_path / f"{name}.json").unlink()
        (tmp_path / f"{name}.txt").write_text("Car 1 2 3 4 5 6 7\nCar 1 2\n")
    finding = only(found(tmp_path), "line 2 of the labels is none")
    assert finding.level == "error"
    assert finding.where.endswith("002.txt:2")
    assert "001.txt:2" in finding.where


def test_labels_in_another_frame_of_axes_are_found(tmp_path: Path) -> None:
    a_sound_folder(tmp_path)
    for number in range(12):
        # As nuScenes has them: x to the right, y ahead.
        write(
            tmp_path,
            f"{number:03d}",
            seed=number,
            labels=[box(x=-3.0, y=12.0, yaw=0.4 + np.pi / 2)],
        )
    finding = only(found(tmp_path, range=(-40, -40, -3, 40, 40, 1)), "do not lie on the objects")
    assert finding.level == "error"
    assert "turned by a quarter to the right they would hold" in finding.what
    assert "x ahead, y to the left" in finding.remedy


def test_an_object_behind_others_is_no_sign_of_displaced_labels(tmp_path: Path) -> None:
    a_sound_folder(tmp_path)
    # Behind the block, as seen from the scanner.
    write(tmp_path, "001", labels=[box(x=24.0, y=6.0)])
    findings = found(tmp_path)
    assert not told(findings, "do not lie")
    assert told(findings, "without a point")


def test_classes_are_counted_in_every_split(tmp_path: Path) -> None:
    a_sound_folder(tmp_path)
    write(tmp_path, "001", labels=[box(), {**box(), "class": "Tram"}])
    findings = found(tmp_path, classes=("Car", "Cyclist"))
    assert only(findings, "classes that data.classes lacks").level == "note"
    assert "Tram 1" in only(findings, "classes that data.classes lacks").what
    few = {one.where: one.what for one in findings if "fewer than 10" in one.what}
    assert set(few) == {"train split", "validation split", "test split"}
    assert "Cyclist 0" in few["train split"]
    none = only(found(tmp_path, classes=("car",)), "classes that data.classes lacks")
    assert none.level == "error"
    assert "it has car" in none.remedy


def test_scans_without_labels_are_noted_and_none_with_labels_is_an_error(tmp_path: Path) -> None:
    a_sound_folder(tmp_path)
    (tmp_path / "001.json").unlink()
    assert only(found(tmp_path), "without labels").level == "note"
    for path in tmp_path.glob("*.json"):
        path.unlink()
    assert only(found(tmp_path), "without labels").level == "error"


def test_a_scan_on_both_sides_of_a_split_is_found(tmp_path: Path) -> None:
    for place, split in enumerate(("train", "val", "test")):
        (tmp_path / split).mkdir()
        for number in range(3):
            write(tmp_path / split, f"{split}{number}", seed=number or 10 + place)
    finding = only(found(tmp_path), "in more than one split")
    assert finding.what == "2 scans in more than one split"
    assert finding.where.startswith("test/test1 = train/train1 = val/val1")


def test_an_empty_split_is_an_error(tmp_path: Path) -> None:
    a_sound_folder(tmp_path, 2)
    assert only(found(tmp_path), "there is no scan in the").level == "error"


def test_a_drive_across_given_splits_is_told(tmp_path: Path) -> None:
    data = LidarData(path=a_sound_folder(tmp_path))
    frames = [
        replace(frame, sequence=f"drive {number // 4}", split="test" if number < 2 else "train")
        for number, frame in enumerate(layouts.read_frames(data))
    ]
    findings = checks.check(data, frames, splits.assign(frames, data))
    assert only(findings, "the given splits separate").where == "drive 0"
