"""nuScenes' data may not be passed on: its tables in miniature, positions worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pegboard.errors import DataError
from pegboard_lidar import layouts, nuscenes, splits
from pegboard_lidar.settings import LidarData

# Quaternions w, x, y, z of turns to the left about z.
STRAIGHT = [1.0, 0.0, 0.0, 0.0]
QUARTER = [np.sqrt(0.5), 0.0, 0.0, np.sqrt(0.5)]
QUARTER_BACK = [np.sqrt(0.5), 0.0, 0.0, -np.sqrt(0.5)]

SECOND = 1_000_000


def write(folder: Path, scenes: tuple[str, ...] = ("scene-0061",)) -> Path:
    """Write scenes of three key frames, half a second apart, with a sweep between two of them.

    The car drives at 10 m/s along the world's y, from (100, 200). The scanner is 1.8 m above its
    middle and, as nuScenes' own, turned by a quarter to the right: its y looks ahead.
    """
    tables: dict[str, list[dict[str, Any]]] = {
        "sensor": [
            {"token": "top", "channel": "LIDAR_TOP"},
            {"token": "front", "channel": "CAM_FRONT"},
        ],
        "calibrated_sensor": [
            # An ego x (ahead) is the scanner's y: the sensor's axes are turned by -90 degrees.
            {"token": "c-top", "sensor_token": "top", "translation": [0, 0, 1.8],
             "rotation": QUARTER_BACK},
            {"token": "c-front", "sensor_token": "front", "translation": [1.5, 0, 1.5],
             "rotation": STRAIGHT},
        ],
        "category": [
            {"token": "k-car", "name": "vehicle.car"},
            {"token": "k-animal", "name": "animal"},
        ],
        "instance": [],
        "scene": [],
        "sample": [],
        "sample_data": [],
        "ego_pose": [],
        "sample_annotation": [],
    }  # fmt: skip
    for scene in scenes:
        _add_scene(tables, scene, folder)
    path = folder / "v1.0-mini"
    path.mkdir(parents=True)
    for name, rows in tables.items():
        (path / f"{name}.json").write_text(json.dumps(rows))
    return folder


def _add_scene(tables: dict[str, list[dict[str, Any]]], scene: str, folder: Path) -> None:
    tables["scene"].append({"token": f"t-{scene}", "name": scene})
    tables["instance"] += [
        {"token": f"{scene}-car", "category_token": "k-car"},
        {"token": f"{scene}-dog", "category_token": "k-animal"},
    ]
    times = [0.0, 0.5, 0.75, 1.0]  # The third is a sweep that nobody labelled.
    for number, time in enumerate(times):
        token = f"{scene}-{number}"
        is_key = number != 2
        stamp = int((1000 + time) * SECOND)
        tables["ego_pose"].append(
            {"token": token, "translation": [100, 200 + 10 * time, 0], "rotation": QUARTER}
        )
        if is_key:
            tables["sample"].append(
                {"token": token, "scene_token": f"t-{scene}", "timestamp": stamp}
            )
        name = f"{'samples' if is_key else 'sweeps'}/LIDAR_TOP/{token}.pcd.bin"
        tables["sample_data"].append(
            {
                "token": token,
                "sample_token": token if is_key else f"{scene}-3",
                "calibrated_sensor_token": "c-top",
                "ego_pose_token": token,
                "filename": name,
                "is_key_frame": is_key,
                "timestamp": stamp,
                "prev": f"{scene}-{number - 1}" if number else "",
                "next": f"{scene}-{number + 1}" if number < 3 else "",
            }
        )
        # A post that stands at (95, 230) in the world: 5 m to the left, ahead by what is left of
        # 30 m; and a point on the car itself.
        ahead = 30 - 10 * time
        points = np.array([[-5, ahead, 0.2, 255, 1], [0.3, -0.5, -1, 51, 2]], dtype=np.float32)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        points.tofile(folder / name)
        if is_key:
            _add_annotations(tables, scene, number, time)
    tables["sample_data"].append(
        {"token": f"{scene}-photo", "sample_token": f"{scene}-0", "prev": "", "next": "",
         "calibrated_sensor_token": "c-front", "ego_pose_token": f"{scene}-0",
         "filename": "samples/CAM_FRONT/0.jpg", "is_key_frame": True, "timestamp": 0}
    )  # fmt: skip


def _add_annotations(
    tables: dict[str, list[dict[str, Any]]], scene: str, number: int, time: float
) -> None:
    before, after = {0: ("", 1), 1: (0, 3), 3: (1, "")}[number]
    tables["sample_annotation"].append(
        {
            "token": f"{scene}-car-{number}",
            "sample_token": f"{scene}-{number}",
            "instance_token": f"{scene}-car",
            # It drives at 4 m/s in the world's x, 20 m ahead at first, 3 m to the right.
            "translation": [103 + 4 * time, 220, 0.9],
            "size": [1.9, 4.5, 1.6],
            "rotation": STRAIGHT,
            "prev": f"{scene}-car-{before}" if before != "" else "",
            "next": f"{scene}-car-{after}" if after != "" else "",
        }
    )
    if number == 0:
        tables["sample_annotation"].append(
            {"token": f"{scene}-dog-0", "sample_token": f"{scene}-0", "prev": "", "next": "",
             "instance_token": f"{scene}-dog", "translation": [100, 210, 0.4],
             "size": [0.4, 0.8, 0.8], "rotation": QUARTER}
        )  # fmt: skip


def test_key_frames_are_frames_of_their_scene(tmp_path: Path) -> None:
    data = LidarData(path=write(tmp_path))
    assert layouts.detect(tmp_path) == "nuscenes"
    frames = layouts.read_frames(data)
    assert [frame.key for frame in frames] == [f"scene-0061-{n:03d}" for n in range(3)]
    assert {frame.sequence for frame in frames} == {"scene-0061"}
    assert [frame.seconds for frame in frames] == [1000.0, 1000.5, 1001.0]
    # The folder of the tables is a path to the same.
    assert layouts.read_frames(LidarData(path=tmp_path / "v1.0-mini")) == frames


def test_points_have_x_ahead_and_y_to_the_left(tmp_path: Path) -> None:
    data = LidarData(path=write(tmp_path))
    points = layouts.read_points(layouts.read_frames(data)[0], data)
    assert np.allclose(points, [[30, 5, 0.2, 1.0], [-0.5, -0.3, -1, 0.2]], atol=1e-5)


def test_boxes_lie_where_they_are_worked_out_by_hand(tmp_path: Path) -> None:
    data = LidarData(path=write(tmp_path))
    labels = layouts.read_frame_labels(layouts.read_frames(data)[0], data)
    assert labels.names == ["car", "animal"]
    # The scanner is 1.8 m up; the car's length crosses ours, from left to right.
    assert np.allclose(
        labels.boxes,
        [[20, -3, -0.9, 4.5, 1.9, 1.6, -np.pi / 2], [10, 0, -1.4, 0.8, 0.4, 0.8, 0]],
        atol=1e-9,
    )
    assert np.isnan(labels.pixels).all()


def test_velocity_is_that_of_the_labels_before_and_after(tmp_path: Path) -> None:
    data = LidarData(path=write(tmp_path))
    frames = layouts.read_frames(data)
    for frame in frames:
        labels = layouts.read_frame_labels(frame, data)
        # 4 m/s to the right, over the ground, however fast we drive.
        assert np.allclose(labels.velocity[0], [0, -4])
    # The dog was labelled once.
    assert np.isnan(layouts.read_frame_labels(frames[0], data).velocity[1]).all()


def test_labels_too_far_apart_in_time_tell_no_velocity(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "v1.0-mini" / "sample.json"
    rows = json.loads(path.read_text())
    rows[0]["timestamp"] -= 2 * SECOND
    path.write_text(json.dumps(rows))
    data = LidarData(path=tmp_path)
    first, second, third = (
        layouts.read_frame_labels(frame, data).velocity[0] for frame in layouts.read_frames(data)
    )
    assert np.isnan(first).all()  # 2.5 s to the next.
    assert np.allclose(second, [0, -4 / 3])  # 3 s from before to after: as the devkit does.
    assert np.allclose(third, [0, -4])


def test_a_standing_post_is_one_spot_in_all_sweeps(tmp_path: Path) -> None:
    data = LidarData(path=write(tmp_path), sweeps=3)
    last = layouts.read_frames(data)[-1]
    points = layouts.read_points(last, data)
    # The key frame, the sweep before it and the key frame before that; no point on the car.
    assert points.shape == (3, 4)
    assert np.allclose(points[:, :3], [[20, 5, 0.2]] * 3, atol=1e-4)
    first = layouts.read_frames(data)[0]
    assert layouts.read_points(first, data).shape == (1, 4)  # There is nothing before.


def test_mini_has_its_own_validation_scenes(tmp_path: Path) -> None:
    data = LidarData(path=write(tmp_path, ("scene-0061", "scene-0103", "scene-0553")))
    frames = layouts.read_frames(data)
    given = {frame.sequence: frame.split for frame in frames}
    assert given == {"scene-0061": "train", "scene-0103": "validation", "scene-0553": "train"}
    assert {frame.sequence for frame in splits.assign(frames, data)["test"]} == {"scene-0103"}
    assert nuscenes._official_split("v1.0-trainval", "scene-0553") == "validation"
    assert len(nuscenes._VALIDATION["v1.0-trainval"]) == 150


def test_splits_of_ones_own_come_before_the_official_ones(tmp_path: Path) -> None:
    write(tmp_path, ("scene-0061", "scene-0103"))
    own = tmp_path / "v1.0-mini" / "splits.json"
    own.write_text(json.dumps({"my_train": ["scene-0103"], "my_test": ["scene-0061"]}))
    given = {one.sequence: one.split for one in layouts.read_frames(LidarData(path=tmp_path))}
    assert given == {"scene-0061": "test", "scene-0103": "train"}
    own.write_text("[]")
    with pytest.raises(DataError, match=r"the splits are no lists of scenes .*splits.json"):
        layouts.read_frames(LidarData(path=tmp_path))


def test_scenes_that_were_not_downloaded_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, ("scene-0061", "scene-0103"))
    for file in tmp_path.rglob("scene-0103-*.pcd.bin"):
        file.unlink()
    frames = layouts.read_frames(LidarData(path=tmp_path))
    assert {frame.sequence for frame in frames} == {"scene-0061"}


def test_a_table_that_is_missing_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "v1.0-mini" / "ego_pose.json").unlink()
    with pytest.raises(DataError, match=r"table ego_pose is not there .*ego_pose.json"):
        layouts.read_frames(LidarData(path=tmp_path))


def test_tables_of_two_versions_are_not_mixed_up(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "v1.0-trainval").mkdir()
    (tmp_path / "v1.0-trainval" / "sample_data.json").write_text("[]")
    with pytest.raises(DataError, match=r"tables of v1.0-mini, v1.0-trainval .*set data.path"):
        layouts.read_frames(LidarData(path=tmp_path))
