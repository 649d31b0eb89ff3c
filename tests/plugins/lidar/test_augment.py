"""A changed training scan stays true: points stay in their boxes, and nothing stands in another."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from pegboard.progress import SilentProgress
from pegboard.records import Sample
from pegboard_lidar import augment
from pegboard_lidar.augment import Scan
from pegboard_lidar.boxes import points_in_boxes, to_local
from pegboard_lidar.database import Objects, database_of, write_database
from pegboard_lidar.geometry import bev_iou
from pegboard_lidar.settings import LidarSettings

Array = Any
Small = Callable[..., LidarSettings]

BOXES = np.array(
    [
        [4.0, -4.0, -1.0, 4.0, 2.0, 1.5, 0.4],
        [9.0, 3.0, -1.0, 3.5, 1.6, 1.6, -2.0],
        [13.0, -3.0, -0.8, 0.8, 0.6, 1.8, 1.5],
    ],
    dtype=np.float32,
)
LABELS = np.array([0, 0, 1])


def filled(boxes: Array, each: int, generator: np.random.Generator) -> Array:
    """Return points (M * each, 4) well inside of boxes, so that no rounding moves one out."""
    clouds = []
    for box in boxes:
        local = generator.uniform(-0.45, 0.45, (each, 3)) * box[3:6]
        cos, sin = np.cos(box[6]), np.sin(box[6])
        x = box[0] + local[:, 0] * cos - local[:, 1] * sin
        y = box[1] + local[:, 0] * sin + local[:, 1] * cos
        clouds.append(np.stack([x, y, box[2] + local[:, 2], np.full(each, 0.5)], axis=-1))
    return np.concatenate(clouds).astype(np.float32)


def scene(boxes: Array = BOXES, ground: int = 400) -> Scan:
    """Return objects of 20 points each on a ground of points below them."""
    generator = np.random.default_rng(0)
    flat = generator.uniform([0, -8, -2.6, 0], [16, 8, -2.5, 1], (ground, 4)).astype(np.float32)
    return Scan(
        points=np.concatenate([filled(boxes, 20, generator), flat]),
        boxes=boxes.copy(),
        velocity=np.full((len(boxes), 2), [3.0, 1.0], dtype=np.float32),
    )


def counts(scan: Scan) -> list[int]:
    counted: list[int] = points_in_boxes(scan.points, scan.boxes).sum(axis=1).tolist()
    return counted


def local(scan: Scan) -> Array:
    """Return the first box's points as seen from that box."""
    return to_local(scan.points[:20], scan.boxes[0])


# --- The whole scan -------------------------------------------------------------------------------

WHOLE: dict[str, Callable[[Scan], None]] = {
    "mirror": augment.mirror,
    "turn": lambda scan: augment.turn(scan, 0.7),
    "turn back": lambda scan: augment.turn(scan, -2.5),
    "larger": lambda scan: augment.scale(scan, 1.05),
    "smaller": lambda scan: augment.scale(scan, 0.95),
}


@pytest.mark.parametrize("name", WHOLE)
def test_boxes_keep_their_points_whatever_is_done_to_the_scan(name: str) -> None:
    scan, before = scene(), scene()
    WHOLE[name](scan)
    assert counts(scan) == counts(before) == [20, 20, 20]
    assert not np.allclose(scan.boxes, before.boxes)
    np.testing.assert_array_equal(scan.points[:, 3], before.points[:, 3])
    assert scan.points.dtype == scan.boxes.dtype == scan.velocity.dtype == np.float32


def test_a_mirrored_object_heads_the_mirrored_way() -> None:
    scan, before = scene(), local(scene())
    augment.mirror(scan)
    np.testing.assert_allclose(local(scan), before * [1, -1, 1], atol=1e-5)
    assert scan.velocity[0].tolist() == [3.0, -1.0]


def test_a_turned_object_heads_and_moves_where_it_is_turned_to() -> None:
    scan, before = scene(), local(scene())
    augment.turn(scan, np.pi / 2)
    np.testing.assert_allclose(local(scan), before, atol=1e-5)
    np.testing.assert_allclose(scan.boxes[0, :2], [4.0, 4.0], atol=1e-5)  # Counter-clockwise.
    np.testing.assert_allclose(scan.velocity[0], [-1.0, 3.0], atol=1e-6)


def test_a_larger_scan_has_larger_objects_farther_away() -> None:
    scan, before = scene(), local(scene())
    augment.scale(scan, 1.1)
    np.testing.assert_allclose(local(scan), before * 1.1, atol=1e-5)
    np.testing.assert_allclose(scan.boxes[0, :6], BOXES[0, :6] * 1.1, rtol=1e-5)
    assert scan.boxes[0, 6] == BOXES[0, 6]


# --- Single objects -------------------------------------------------------------------------------


def collisions(boxes: Array) -> int:
    pairs = combinations(range(len(boxes)), 2)
    return sum(bool(bev_iou(boxes[[one]], boxes[[two]]) > 0) for one, two in pairs)


def test_shifted_objects_take_their_points_along_and_meet_no_other() -> None:
    close = BOXES.copy()
    close[1, [0, 1, 6]] = [3.25, -2.2, 0.4]  # A decimetre beside the first one.
    assert not collisions(close)
    np.random.seed(0)
    moved = 0
    for _ in range(30):
        scan = scene(close, ground=0)
        before = [to_local(scan.points[20 * i : 20 * i + 20], box) for i, box in enumerate(close)]
        augment.shift(scan, 0.5)
        assert not collisions(scan.boxes)
        assert counts(scan) == [20, 20, 20]
        for place, box in enumerate(scan.boxes):
            points = scan.points[20 * place : 20 * place + 20]
            np.testing.assert_allclose(to_local(points, box), before[place], atol=1e-5)
        moved += int((scan.boxes[:, :2] != close[:, :2]).any(axis=1).sum())
        np.testing.assert_array_equal(scan.boxes[:, 2:], close[:, 2:])
    assert 30 < moved < 90  # Some would have met another one.


def objects(boxes: Array, labels: Array) -> Objects:
    return Objects(
        boxes=boxes,
        labels=labels,
        points=filled(boxes, 7, np.random.default_rng(1)),
        starts=np.arange(len(boxes) + 1) * 7,
    )


OTHERS = np.array(
    [
        [4.5, -4.0, -1.0, 4.0, 2.0, 1.5, 0.0],  # Where a car stands already.
        [5.0, 5.0, -1.0, 4.0, 2.0, 1.5, 1.0],
        [5.5, 5.5, -1.0, 4.0, 2.0, 1.5, 1.0],  # Only one of these two fits.
        [13.0, 6.0, -0.8, 0.8, 0.6, 1.8, 1.5],
    ],
    dtype=np.float32,
)


def test_pasted_objects_bring_their_points_and_collide_with_nothing() -> None:
    for seed in range(10):
        np.random.seed(seed)
        scan = scene()
        augment.paste(scan, objects(OTHERS, np.array([0, 0, 0, 1])), (3, 1, 5))
        assert len(scan.boxes) == len(BOXES) + 2
        assert scan.pasted == [0, 1]
        assert not collisions(scan.boxes)
        assert counts(scan) == [20, 20, 20, 7, 7]
        assert np.isnan(scan.velocity[3:]).all()


def test_what_was_seen_where_an_object_is_pasted_is_hidden() -> None:
    scan = scene()
    behind = filled(OTHERS[[1]], 50, np.random.default_rng(3))
    scan.points = np.concatenate([scan.points, behind])
    np.random.seed(0)
    augment.paste(scan, objects(OTHERS[[1]], np.array([0])), (1,))
    assert counts(scan)[-1] == 7
    assert len(scan.points) == 3 * 20 + 400 + 7


# --- All of it ------------------------------------------------------------------------------------


def sample(scan: Scan) -> Sample:
    return Sample(
        inputs={"points": scan.points},
        targets={"boxes": scan.boxes, "labels": LABELS, "velocity": scan.velocity},
        key="000000",
    )


def test_settings_without_augmentation_change_nothing(small: Small) -> None:
    before = sample(scene())
    after = augment.augment(small(), before)
    np.testing.assert_array_equal(after.inputs["points"], before.inputs["points"])
    for name, value in after.targets.items():
        np.testing.assert_array_equal(value, before.targets[name])


def test_a_sample_that_is_kept_in_memory_is_not_changed_by_its_augmentation(small: Small) -> None:
    everything = {"flip": True, "rotation": 1.0, "scaling": 0.2, "noise": 0.5}
    before = sample(scene())
    for _ in range(5):
        augment.augment(small(augment=everything), before)
    untouched = sample(scene())
    np.testing.assert_array_equal(before.inputs["points"], untouched.inputs["points"])
    np.testing.assert_array_equal(before.targets["boxes"], untouched.targets["boxes"])


def test_objects_turned_out_of_the_range_are_dropped_with_their_labels(small: Small) -> None:
    settings = small(augment={"rotation": 1.5, "flip": True, "noise": 0.3})
    np.random.seed(0)
    lengths = set()
    for _ in range(40):
        after = augment.augment(settings, sample(scene()))
        boxes, labels = after.targets["boxes"], after.targets["labels"]
        lengths.add(len(boxes))
        assert len(boxes) == len(labels) == len(after.targets["velocity"])
        assert ((boxes[:, :2] >= [0, -8]) & (boxes[:, :2] < [16, 8])).all()
        xyz = after.inputs["points"][:, :3]
        assert ((xyz >= [0, -8, -3]) & (xyz < [16, 8, 1])).all()
        # The pedestrian is the only small one: labels stay with their boxes.
        assert ((boxes[:, 3] < 1) == (labels == 1)).all()
    assert lengths > {2, 3}


def test_objects_of_the_database_are_pasted_where_there_is_one(small: Small) -> None:
    settings = small(data={"scenes": 7}, augment={"pasted": (4, 4, 4)})
    database = database_of(settings.data)
    assert not database.exists()
    assert len(augment.augment(settings, sample(scene())).targets["boxes"]) == 3
    other = scene(OTHERS[[1, 3]])
    targets = {"boxes": OTHERS[[1, 3]], "labels": np.array([0, 1]), "velocity": other.velocity}
    write_database(
        database, [Sample(inputs={"points": other.points}, targets=targets)], SilentProgress()
    )
    after = augment.augment(settings, sample(scene()))
    assert after.targets["labels"].tolist() == [0, 0, 1, 0, 1]
    np.testing.assert_allclose(after.targets["boxes"][3:], OTHERS[[1, 3]])
