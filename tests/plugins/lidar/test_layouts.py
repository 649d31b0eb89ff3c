from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pegboard.errors import DataError
from pegboard_lidar import layouts, scans, splits
from pegboard_lidar.frames import UNKNOWN, Frame
from pegboard_lidar.settings import LidarData

CALIBRATION = """P2: 700 0 620 0 0 700 187 0 0 0 1 0
R0_rect: 1 0 0 0 1 0 0 0 1
Tr_velo_to_cam: 0 -1 0 0 0 0 -1 0 1 0 0 0
"""
CAR = "Car 0 0 0 600 150 650 190 1.5 1.8 4 0 1.5 20 0"


def points(count: int = 5) -> Any:
    return np.full((count, 4), 0.5, dtype=np.float32)


def a_kitti_folder(path: Path, count: int = 4) -> Path:
    for number in range(count):
        key = f"{number:06d}"
        scans.write_bin(path / "training" / "velodyne" / f"{key}.bin", points())
        for folder, text in (("label_2", CAR), ("calib", CALIBRATION)):
            file = path / "training" / folder / f"{key}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    return path


def test_the_real_frames_are_found_with_all_that_belongs_to_them(test_data: Path) -> None:
    path = test_data / "lidar" / "kitti_object_mini"
    if not path.is_dir():
        pytest.skip(f"no KITTI frames at {path}")
    data = LidarData(path=path)
    frames = layouts.read_frames(data)
    assert [frame.key for frame in frames] == [f"{n:06d}" for n in range(6)]
    assert all(frame.labels and frame.calibration for frame in frames)
    assert layouts.read_points(frames[1], data).shape == (120_268, 4)
    assert layouts.read_frame_labels(frames[1], data).names == ["Truck", "Car", "Cyclist"]


def test_image_sets_say_the_split(tmp_path: Path) -> None:
    path = a_kitti_folder(tmp_path)
    (path / "ImageSets").mkdir()
    (path / "ImageSets" / "train.txt").write_text("000000\n000001\n")
    (path / "ImageSets" / "val.txt").write_text("000002\n")
    # KITTI's own: the frames of testing/, which have the same numbers.
    (path / "ImageSets" / "test.txt").write_text("000000\n000001\n000002\n000003\n")
    frames = layouts.read_frames(LidarData(path=path))
    assert [frame.split for frame in frames] == ["train", "train", "validation", "test"]


def test_the_folder_inside_training_is_a_layout_too(tmp_path: Path) -> None:
    path = a_kitti_folder(tmp_path) / "training"
    assert layouts.detect(path) == "kitti"
    assert len(layouts.read_frames(LidarData(path=path))) == 4


def test_drives_of_kittis_devkit_become_sequences(tmp_path: Path) -> None:
    path = a_kitti_folder(tmp_path, 3)
    (path / "mapping").mkdir()
    (path / "mapping" / "train_rand.txt").write_text("3,1,2\n")
    lines = [f"2011_09_26 2011_09_26_drive_000{drive}_sync 0000" for drive in (5, 5, 9)]
    (path / "mapping" / "train_mapping.txt").write_text("\n".join(lines))
    frames = layouts.read_frames(LidarData(path=path))
    assert [frame.sequence[-9:-5] for frame in frames] == ["0009", "0005", "0005"]


def test_labels_without_their_calibration_cannot_be_placed(tmp_path: Path) -> None:
    path = a_kitti_folder(tmp_path)
    (path / "training" / "calib" / "000001.txt").unlink()
    data = LidarData(path=path)
    with pytest.raises(DataError, match=r"there is no calibration file .*calib/000001.txt"):
        layouts.read_frame_labels(layouts.read_frames(data)[1], data)


def test_scans_without_labels_are_frames_without_labels(tmp_path: Path) -> None:
    path = a_kitti_folder(tmp_path)
    (path / "training" / "label_2" / "000001.txt").unlink()
    (path / "training" / "calib" / "000001.txt").unlink()
    data = LidarData(path=path)
    frame = layouts.read_frames(data)[1]
    assert frame.labels is None
    assert layouts.read_frame_labels(frame, data).boxes.shape == (0, 7)


def test_a_folder_of_scans_is_read_with_the_labels_beside(tmp_path: Path) -> None:
    (tmp_path / "drive").mkdir()
    scans.write_bin(tmp_path / "drive" / "a.bin", points())
    np.save(tmp_path / "drive" / "b.npy", points()[:, :3])
    (tmp_path / "drive" / "c.pcd.bin").write_bytes(np.zeros((2, 5), np.float32).tobytes())
    scans.write_bin(tmp_path / "drive" / ".hidden.bin", points())
    scans.write_bin(tmp_path / ".cache" / "d.bin", points())
    (tmp_path / "drive" / "a.json").write_text(
        json.dumps(
            [
                {"class": "Car", "box": [10, 2, -1, 4, 2, 1.5, 0.3], "velocity": [3, -1]},
                {"class": "Person on a bike", "box": [5, 0, -1, 2, 1, 1.7, 0]},
            ]
        )
    )
    (tmp_path / "drive" / "c.txt").write_text("Car 10 2 -1 4 2 1.5 0.3\n\n")
    data = LidarData(path=tmp_path)
    frames = layouts.read_frames(data)
    assert [frame.key for frame in frames] == ["drive/a", "drive/b", "drive/c"]
    first, second, third = (layouts.read_frame_labels(frame, data) for frame in frames)
    assert first.names == ["Car", "Person on a bike"]
    assert first.boxes[0].tolist() == [10, 2, -1, 4, 2, 1.5, 0.3]
    assert first.velocity[0].tolist() == [3, -1]
    assert np.isnan(first.velocity[1]).all()
    assert first.occlusion.tolist() == [UNKNOWN] * 2
    assert np.isnan(first.pixels).all()
    assert frames[1].labels is None
    assert second.names == []
    assert third.boxes.tolist() == [[10, 2, -1, 4, 2, 1.5, 0.3]]
    assert layouts.read_points(frames[2], data).shape == (2, 4)


def test_folders_named_as_splits_are_splits_and_others_are_drives(tmp_path: Path) -> None:
    for name in ("train/a", "train/one/b", "val/c", "test/d"):
        scans.write_bin(tmp_path / f"{name}.bin", points())
    frames = layouts.read_frames(LidarData(path=tmp_path))
    assert {frame.key: frame.split for frame in frames} == {
        "test/d": "test",
        "train/a": "train",
        "train/one/b": "train",
        "val/c": "validation",
    }
    assert [frame.sequence for frame in frames] == ["", "", "train/one", ""]


def test_one_file_is_one_frame(tmp_path: Path) -> None:
    scans.write_bin(tmp_path / "a.bin", points())
    assert [frame.key for frame in layouts.read_frames(LidarData(path=tmp_path / "a.bin"))] == ["a"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", "[{", r"the labels are no JSON"),
        ("a.json", '{"class": "Car"}', r"the file of the labels is none .*write \["),
        ("a.json", '[{"class": "Car", "box": [1, 2]}]', r"item 1 of the labels is none"),
        ("a.json", '[{"box": [1, 2, 3, 4, 5, 6, 7]}]', r"item 1 of the labels is none"),
        ("a.txt", f"Car 1 2 3 4 5 6 7\n{CAR}", r"line 2 of the labels is none.*a.txt:2.*kitti"),
    ],
)
def test_labels_that_are_malformed_are_named_with_their_place(
    tmp_path: Path, name: str, content: str, words: str
) -> None:
    scans.write_bin(tmp_path / "a.bin", points())
    (tmp_path / name).write_text(content)
    data = LidarData(path=tmp_path)
    with pytest.raises(DataError, match=words):
        layouts.read_frame_labels(layouts.read_frames(data)[0], data)


def test_a_folder_without_scans_is_one_clear_sentence(tmp_path: Path) -> None:
    (tmp_path / "readme.md").write_text("nothing")
    with pytest.raises(DataError, match=r"there is no scan in the layout 'scans' .*pcd\.bin"):
        layouts.read_frames(LidarData(path=tmp_path))
    with pytest.raises(DataError, match=r"no scan in the layout 'kitti' .*training/velodyne"):
        layouts.read_frames(LidarData(path=tmp_path, layout="kitti"))
    with pytest.raises(DataError, match=r"no scan in the layout 'nuscenes' .*v1\.0-mini"):
        layouts.read_frames(LidarData(path=tmp_path, layout="nuscenes"))
    with pytest.raises(DataError, match="there is no data"):
        layouts.read_frames(LidarData(path=tmp_path / "none"))


# --- splits.py ------------------------------------------------------------------------------------


def frame(number: int, sequence: str = "", split: Any = None) -> Frame:
    return Frame(key=f"{number:06d}", scan=Path("x.bin"), sequence=sequence, split=split)


def keys(some: list[Frame]) -> set[str]:
    return {one.key for one in some}


def test_every_frame_is_in_one_split_and_the_shares_are_kept() -> None:
    frames = [frame(n) for n in range(100)]
    found = splits.assign(frames, LidarData())
    assert {split: len(some) for split, some in found.items()} == {
        "train": 70,
        "validation": 10,
        "test": 20,
    }
    assert keys([one for some in found.values() for one in some]) == keys(frames)
    assert found["train"] == sorted(found["train"], key=lambda one: one.key)
    assert splits.assign(frames, LidarData()) == found
    assert splits.assign(frames, LidarData(split_seed=1)) != found


def test_a_drive_stays_in_one_split() -> None:
    frames = [frame(n, f"drive {n // 7}") for n in range(100)]
    found = splits.assign(frames, LidarData())
    drives = [{one.sequence for one in some} for some in found.values()]
    assert all(drives)
    assert sum(map(len, drives)) == len(set().union(*drives)) == 15


def test_a_given_split_is_kept_and_the_rest_is_drawn() -> None:
    given = [frame(n, split="test") for n in range(5)]
    free = [frame(n) for n in range(5, 25)]
    found = splits.assign([*given, *free], LidarData())
    assert keys(found["test"]) == keys(given)
    assert len(found["validation"]) == 2
    assert len(found["train"]) == 18


def test_without_a_given_test_the_given_validation_measures() -> None:
    train = [frame(n, split="train") for n in range(20)]
    validation = [frame(n, split="validation") for n in range(20, 30)]
    found = splits.assign([*train, *validation], LidarData())
    assert keys(found["test"]) == keys(validation)
    assert len(found["validation"]) == 3
    assert keys(found["train"]) < keys(train)


def test_a_drive_on_both_sides_of_a_given_split_is_not_trained_on() -> None:
    frames = [frame(0, "a", "train"), frame(1, "a", "test"), frame(2, "b", "train"), frame(3, "c")]
    found = splits.assign(frames, LidarData())
    assert keys(found["test"]) == {"000000", "000001"}
