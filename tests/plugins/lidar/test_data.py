"""Splits, samples and batches; and the objects that training pastes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pegboard.errors import DataError
from pegboard.progress import SilentProgress
from pegboard.records import Sample
from pegboard_lidar import data, kitti
from pegboard_lidar.boxes import points_in_boxes
from pegboard_lidar.database import database_of, read_database
from pegboard_lidar.frames import IGNORED, PADDING
from pegboard_lidar.scans import read_scan, write_bin
from pegboard_lidar.settings import LidarSettings

Small = Callable[..., LidarSettings]

CALIBRATION = """P2: 700 0 621 0 0 700 187.5 0 0 0 1 0
R0_rect: 1 0 0 0 1 0 0 0 1
Tr_velo_to_cam: 0 -1 0 0 0 0 -1 0 1 0 0 0
"""
PROJECTION = np.array([[621.0, -700, 0, 0], [187.5, 0, -700, 0], [1, 0, 0, 0]])


# --- The embedded scenes --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, small: Small) -> LidarSettings:
    """Return settings of the embedded data, which are prepared."""
    folder = tmp_path_factory.mktemp("tiny")
    settings = small(
        data={"folder": folder, "tiny": True, "range": (0, -40, -3, 72, 40, 1)},
        augment={"pasted": (2, 2, 2)},
    )
    data.prepare(settings, SilentProgress())
    return settings


@pytest.mark.slow
def test_the_splits_share_no_frame_and_hold_all_of_them(tiny: LidarSettings) -> None:
    keys = {split: {frame.key for frame in data.splits_of(tiny.data)[split]} for split in SPLITS}
    assert all(keys.values())
    assert sum(map(len, keys.values())) == len(set.union(*keys.values())) == data.TINY_SCENES


SPLITS: tuple[Any, ...] = ("train", "validation", "test")


@pytest.mark.slow
def test_preparing_again_makes_nothing_again(tiny: LidarSettings) -> None:
    assert_nothing_is_made_again(tiny)


def assert_nothing_is_made_again(settings: LidarSettings) -> None:
    files = [path for path in settings.data.folder.rglob("*") if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in files}
    assert database_of(settings.data) in before
    assert data.prepare(settings, SilentProgress()) == [data.source(settings.data)]
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.slow
def test_the_database_holds_the_objects_of_the_train_split_with_their_points(
    tiny: LidarSettings,
) -> None:
    objects = read_database(database_of(tiny.data))
    train = data.load(tiny, "train")
    labels = np.concatenate([train[place].targets["labels"] for place in range(len(train))])
    assert 0 < len(objects.labels) <= (labels >= 0).sum()
    for place, box in enumerate(objects.boxes):
        points = objects.points_of(place)
        assert len(points) >= 5
        assert points_in_boxes(points, box[None]).all()


def test_without_pasting_there_is_no_database(tmp_path: Path, small: Small) -> None:
    path = kitti_folder(tmp_path / "own")
    settings = small(data={"path": path, "folder": tmp_path / "data"})
    assert data.prepare(settings, SilentProgress()) == [path]
    assert not database_of(settings.data).exists()


# --- Samples --------------------------------------------------------------------------------------


def kitti_folder(path: Path, count: int = 6, *, at: float = 20.0) -> Path:
    """Write frames with a car ahead whose points get fewer from frame to frame."""
    for number in range(count):
        key = f"{number:06d}"
        ahead = np.linspace(at - 1.5, at + 1.5, 40 - number)
        car = np.stack([ahead, 0 * ahead, 0 * ahead - 0.9, 0 * ahead], axis=-1)
        beside = np.array([[1.0, 30.0, 0.0, 0.0], [-5.0, 0.0, 0.0, 0.0]])
        points = np.concatenate([car, beside, [[np.nan, 0, 0, 0]]])
        write_bin(path / "training" / "velodyne" / f"{key}.bin", points)
        car_line = f"Car 0 0 0 600 150 650 200 1.6 1.8 4 0 1.7 {at} -1.5708"
        van_line = "Van 0 0 0 600 150 650 200 2 2 5 -4 1.7 12 -1.5708"
        region = "DontCare -1 -1 -10 503 169 590 190 -1 -1 -1 -1000 -1000 -1000 -10"
        lines = "\n".join([car_line, van_line, region]) + "\n"
        for folder, text in (("label_2", lines), ("calib", CALIBRATION)):
            file = path / "training" / folder / f"{key}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    return path


@pytest.fixture
def own(tmp_path: Path, small: Small) -> Callable[..., LidarSettings]:
    path = kitti_folder(tmp_path / "own")

    def make(**settings: Any) -> LidarSettings:
        return small(
            data={
                "path": path,
                "folder": tmp_path / "data",
                "range": (0, -40, -3, 72, 40, 1),
                **settings,
            },
            augment={"pasted": (1, 0, 0)},
        )

    return make


def test_a_sample_is_what_the_camera_sees_and_what_is_labelled_there(own: Small) -> None:
    train = data.load(own(), "train")
    sample = train[0]
    points = sample.inputs["points"]
    assert points.dtype == np.float32
    assert points.shape == (40 - int(sample.key), 4)  # No NaN, none beside the car.
    targets = sample.targets
    np.testing.assert_allclose(targets["boxes"][0], [20, 0, -0.9, 4, 1.8, 1.6, 0], atol=1e-4)
    assert targets["names"] == ["Car", "Van"]
    # A van is so like a car that finding one is neither right nor wrong.
    assert targets["labels"].tolist() == [0, IGNORED]
    assert targets["difficulty"].tolist() == [0, 0]
    np.testing.assert_allclose(targets["projection"], PROJECTION)
    assert points_in_boxes(points, targets["boxes"])[0].all()


def test_the_whole_scan_is_taken_where_asked(own: Small) -> None:
    sample = data.load(own(picture_only=False), "train")[0]
    assert len(sample.inputs["points"]) == 42 - int(sample.key)


def test_objects_beyond_the_range_or_of_other_classes_are_no_targets(own: Small) -> None:
    sample = data.load(own(range=(0, -8, -3, 16, 8, 1)), "train")[0]
    assert sample.targets["names"] == ["Van"]
    sample = data.load(own(classes=("Pedestrian", "Van")), "train")[0]
    assert sample.targets["labels"].tolist() == [1]


def test_vans_are_no_neighbours_of_cars_where_both_are_looked_for(own: Small) -> None:
    sample = data.load(own(classes=("Car", "Van")), "train")[0]
    assert sample.targets["labels"].tolist() == [0, 1]


def test_a_split_without_a_frame_says_what_to_do(own: Small) -> None:
    with pytest.raises(DataError, match=r"validation split has no labelled frame.*shares"):
        data.load(own(validation_share=0.0), "validation")


def test_what_is_not_there_is_named(tmp_path: Path, small: Small) -> None:
    settings = small(data={"path": tmp_path / "nowhere"})
    with pytest.raises(DataError, match=r"there is no data .*nowhere"):
        data.prepare(settings, SilentProgress())
    (finding,) = data.check(settings)
    assert finding.level == "error"


def test_objects_are_cut_out_again_when_the_train_split_becomes_another(own: Small) -> None:
    settings = own()
    data.prepare(settings, SilentProgress())
    assert_nothing_is_made_again(settings)
    before = read_database(database_of(settings.data))
    train = [frame.key for frame in data.splits_of(settings.data)["train"]]
    # A frame of the train split goes; the objects of the others stay.
    assert settings.data.path
    (settings.data.path / "training" / "label_2" / f"{train[0]}.txt").unlink()
    data.prepare(settings, SilentProgress())
    left = [frame.key for frame in data.splits_of(settings.data)["train"]]
    after = read_database(database_of(settings.data))
    assert set(left) != set(train)
    assert len(before.boxes) == len(train)
    lengths = [len(after.points_of(place)) for place in range(len(after.boxes))]
    assert lengths == [40 - int(key) for key in left]


# --- The picture ----------------------------------------------------------------------------------


def test_in_the_picture_is_what_lies_within_its_edges() -> None:
    width, height = kitti.PICTURE
    calibration = PROJECTION.copy()
    inside, outside = [], []
    for depth in (0.5, 10.0, 70.0):
        for across, down in ((0.5, 0.5), (width - 0.5, height - 0.5), (width / 2, height / 2)):
            inside.append(_at(depth, across, down))
        for across, down in ((-0.5, 9), (width + 0.5, 9), (9, -0.5), (9, height + 0.5)):
            outside.append(_at(depth, across, down))
    outside += [[-10.0, 0, 0, 0], [0.0, 0, 0, 0], [0.0, 5, 1, 0]]
    assert data.in_picture(np.array(inside), calibration).all()
    assert not data.in_picture(np.array(outside), calibration).any()


def _at(depth: float, across: float, down: float) -> list[float]:
    return [depth, (621.0 - across) * depth / 700, (187.5 - down) * depth / 700, 0.0]


def test_a_real_frame_keeps_every_labelled_point(test_data: Path, small: Small) -> None:
    path = test_data / "lidar" / "kitti_object_mini"
    if not path.is_dir():
        pytest.skip(f"no KITTI frames at {path}")
    shares = {"test_share": 0.2, "validation_share": 0.2, "range": (0, -40, -3, 72, 40, 1)}
    whole = small(data={"path": path, "picture_only": False, **shares})
    seen = small(data={"path": path, **shares})
    for split in SPLITS:
        for one, other in zip(data.load(whole, split), data.load(seen, split), strict=True):
            share = len(other.inputs["points"]) / len(one.inputs["points"])
            assert 0.1 < share < 0.25  # 81 of 360 degrees, above the near ground.
            kept, all_of_them = (
                points_in_boxes(sample.inputs["points"], sample.targets["boxes"]).sum(axis=1)
                for sample in (other, one)
            )
            # A truncated object lies in the picture in part.
            assert (kept >= 0.9 * all_of_them).all()


# --- Batches --------------------------------------------------------------------------------------


def sample(points: int, objects: int, key: str) -> Sample:
    return Sample(
        inputs={"points": np.full((points, 4), points, dtype=np.float32)},
        targets={
            "boxes": np.full((objects, 7), objects, dtype=np.float32),
            "labels": np.arange(objects, dtype=np.int64),
            "velocity": np.full((objects, 2), 5.0, dtype=np.float32),
            "names": ["Car"] * objects,
        },
        key=key,
    )


def test_shorter_scans_are_continued_with_what_counts_for_nothing() -> None:
    batch = data.collate([sample(3, 0, "a"), sample(5, 2, "b")])
    points = batch.inputs["points"]
    assert points.shape == (2, 5, 4)
    assert points.dtype == torch.float32
    assert torch.isnan(points[0, 3:]).all()
    assert torch.isfinite(points[0, :3]).all() and torch.isfinite(points[1]).all()
    assert batch.targets["boxes"].shape == (2, 2, 7)
    assert batch.targets["labels"].tolist() == [[PADDING, PADDING], [0, 1]]
    assert torch.isnan(batch.targets["velocity"][0]).all()
    assert batch.targets["names"] == [[], ["Car", "Car"]]
    assert list(batch.keys) == ["a", "b"]


def test_a_batch_without_a_point_or_an_object_has_still_something_to_count_nothing_of() -> None:
    batch = data.collate([sample(0, 0, "a")])
    assert torch.isnan(batch.inputs["points"]).all()
    assert batch.inputs["points"].shape == (1, 1, 4)
    assert batch.targets["labels"].tolist() == [[PADDING]]


def test_kept_scans_are_read_once(own: Small) -> None:
    train = data.load(own(), "train")
    first = train[0]
    assert train.frames[0].labels
    scan = train.frames[0].scan
    np.testing.assert_array_equal(
        read_scan(scan)[: len(first.inputs["points"])], first.inputs["points"]
    )
    shutil.rmtree(scan.parent)
    assert train[0] is first
