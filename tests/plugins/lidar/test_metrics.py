"""Metrics: what a row keeps, worked cases, what is ignored, and what is not defined."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pegboard.evaluation import join_rows, measure
from pegboard.records import Batch
from pegboard_lidar import data, metrics
from pegboard_lidar.layouts import read_frames
from pegboard_lidar.settings import LidarSettings

Array = Any
CAR, PEDESTRIAN = 0, 1
SIZES = ((4.0, 1.8, 1.5), (0.8, 0.6, 1.8), (1.8, 0.6, 1.7))


def settings(**model: Any) -> LidarSettings:
    return LidarSettings.model_validate({"model": {"objects": 10, **model}})


def box(x: float, y: float = 0.0, *, label: int = CAR) -> tuple[float, ...]:
    return (x, y, -0.8, *SIZES[label], 0.0)


def frame(
    true: Sequence[tuple[tuple[float, ...], str, int]] = (),
    found: Sequence[tuple[tuple[float, ...], float, int]] = (),
    *,
    key: str = "k",
    sequence: str = "",
    points: Array | None = None,
    one: LidarSettings | None = None,
    projection: Array | None = None,
) -> dict[str, Array]:
    """One row: objects (box, name, difficulty) and what is found (box, score, label)."""
    one = one or settings()
    places = {name: place for place, name in enumerate(one.data.classes)}
    listed = np.full((1, max(1, len(found)), 9), -1.0, dtype=np.float32)
    for place, (shape, score, label) in enumerate(found):
        listed[0, place] = (*shape, score, label)
    # One more of each than there are, as a batch fills frames up.
    boxes, labels = torch.ones(1, len(true) + 1, 7), torch.full((1, len(true) + 1), -2)
    for place, (shape, name, _) in enumerate(true):
        boxes[0, place], labels[0, place] = torch.tensor(shape), places.get(name, -1)
    batch = Batch(
        inputs={"points": torch.from_numpy(np.zeros((1, 5, 4)) if points is None else points)},
        targets={
            "boxes": boxes,
            "labels": labels,
            "names": [[name for _, name, _ in true]],
            "difficulty": [np.array([difficulty for *_, difficulty in true], dtype=np.int64)],
            "sequence": [sequence],
            "projection": [np.full((3, 4), np.nan) if projection is None else projection],
        },
        keys=[key],
    )
    return metrics.tabulate(one, batch, {"found": listed})


def value(rows: dict[str, Array], name: str, **thresholds: float) -> float:
    (metric,) = [metric for metric in metrics.build(settings()) if metric.name == name]
    return metric.compute(rows, thresholds)


def many(count: int = 5, *, shift: float = 0.0, extra: Any = ()) -> dict[str, Array]:
    """Frames with a car each that is found `shift` metres ahead of where it is."""
    return join_rows(
        [
            frame(
                [(box(10), "Car", 0)], [(box(10 + shift), 0.9 - 0.01 * t, CAR), *extra], key=str(t)
            )
            for t in range(count)
        ]
    )


# --- Numbers --------------------------------------------------------------------------------------


def test_a_perfect_detector_reaches_one() -> None:
    rows = many(41)
    for name in ("map", "bev_ap_Car_0.5", "bev_ap_Car_0.7", "3d_ap_Car_0.7", "3d_ap_r11_Car_0.7"):
        assert value(rows, name) == 1
    for name in ("centre_map", "centre_ap_Car"):
        assert value(rows, name) == pytest.approx(1)
    assert value(rows, "recall_Car") == value(rows, "precision_Car") == 1


def test_few_cars_can_reach_one_as_well() -> None:
    assert value(many(3), "bev_ap_Car_0.7") == value(many(1), "3d_ap_r11_Car_0.5") == 1


def test_cars_found_a_metre_off_are_found_at_the_looser_overlap_alone() -> None:
    # Ahead by 1 m of 4 they overlap by 3 / 5; nuScenes' 1 m is not reached, 2 and 4 m are.
    rows = many(shift=1.001)
    assert (value(rows, "bev_ap_Car_0.5"), value(rows, "bev_ap_Car_0.7")) == (1, 0)
    assert value(rows, "centre_ap_Car") == pytest.approx(2 / 4)
    assert value(rows, "recall_Car") == value(rows, "precision_Car") == 0


def test_the_headline_is_the_mean_over_the_classes_that_occur() -> None:
    walker = (box(20, label=PEDESTRIAN), "Pedestrian", 0)
    rows = join_rows([many(), *(frame([walker], key=f"w{t}") for t in range(2))])
    assert value(rows, "bev_ap_Pedestrian_0.5") == 0
    assert np.isnan(value(rows, "bev_ap_Cyclist_0.5"))
    assert value(rows, "map") == 0.5
    headlines = [metric.name for metric in metrics.build(settings()) if metric.headline]
    assert headlines == ["map"]


def test_a_class_is_not_found_by_another() -> None:
    rows = frame([(box(10), "Car", 0)], [(box(10), 0.9, PEDESTRIAN)])
    assert value(rows, "recall_Car") == 0
    assert np.isnan(value(rows, "precision_Car"))
    assert value(rows, "precision_Pedestrian") == 0


def test_without_objects_nothing_is_defined() -> None:
    rows = frame()
    assert all(np.isnan(metric.compute(rows, {})) for metric in metrics.build(settings()))
    assert np.isnan(value(frame([], [(box(10), 0.9, CAR)]), "bev_ap_Car_0.5"))


def test_only_what_is_moderate_or_easier_counts() -> None:
    true = [(box(10 * (level + 1)), "Car", level) for level in (0, 1, 2)] + [(box(50), "Car", -1)]
    rows = frame(true, [(shape, 0.9, CAR) for shape, *_ in true])
    assert rows["objects:Car"].tolist() == [[1, 2, 3]]
    assert value(rows, "recall_Car") == value(rows, "precision_Car") == 1
    # What is harder is neither missed,
    rows = frame(true, [(shape, 0.9, CAR) for shape, *_ in true[:2]])
    assert value(rows, "recall_Car") == 1
    # nor right.
    rows = frame(true, [(shape, 0.9, CAR) for shape, *_ in true[2:]])
    assert value(rows, "recall_Car") == 0
    assert np.isnan(value(rows, "precision_Car"))


def test_a_van_that_is_taken_for_a_car_is_neither_right_nor_wrong() -> None:
    for name, precision in (("Van", np.nan), ("Person_sitting", 0.0)):
        rows = frame([(box(10), name, 0)], [(box(10), 0.9, CAR)])
        assert rows["objects:Car"].tolist() == [[0, 0, 0]]
        assert value(rows, "precision_Car") == pytest.approx(precision, nan_ok=True)


def test_what_is_too_low_in_the_picture_is_not_false() -> None:
    # A pinhole of 700 pixels that looks ahead: 1.5 m are 26 pixels at 40 m, and 15 at 68 m.
    projection = np.array([[600.0, -700, 0, 0], [180, 0, -700, 0], [1, 0, 0, 0]])
    heights = metrics.picture_heights(
        np.array([box(42), box(70), box(10, -40), box(-10), box(1)]), projection
    )
    np.testing.assert_allclose(heights[:2], [27.3, 15.9], atol=1)
    # Beside the picture; behind the camera; around it.
    np.testing.assert_allclose(heights[2:], [0, 375, 375])
    found = [(box(42), 0.9, CAR), (box(70), 0.8, CAR)]
    assert value(frame([], found), "precision_Car") == 0
    rows = frame([], found, projection=projection)
    matched = rows["matched:bev_0.5:Car"][0, :2, :, 2]
    np.testing.assert_array_equal(matched, [[0, 1, 1], [0, 0, 0]])


def test_the_labels_of_real_frames_find_themselves(test_data: Path) -> None:
    one = LidarSettings.model_validate({"data": {"path": test_data / "lidar/kitti_object_mini"}})
    samples = data.FrameDataset([f for f in read_frames(one.data) if f.labels], one.data)
    tables = []
    for sample in samples:
        boxes, labels = sample.targets["boxes"], sample.targets["labels"]
        scores = np.linspace(0.9, 0.5, len(boxes))[:, None]
        found = np.concatenate([boxes, scores, labels[:, None]], axis=1)[labels >= 0]
        batch = data.collate([sample])
        tables.append(metrics.tabulate(one, batch, {"found": found[None].astype(np.float32)}))
    rows = join_rows(tables)
    assert rows["objects:Car"][:, 1].sum() == 3
    for name in ("map", "3d_ap_Car_0.7", "recall_Car", "precision_Car"):
        assert value(rows, name) == 1
    rows["matched:centre_1:Car"][:, :, :, 1] = 0
    assert value(rows, "recall_Car") == 0


# --- Thresholds -----------------------------------------------------------------------------------


def test_the_chosen_score_is_the_one_of_the_best_f1() -> None:
    rows = many(20, extra=[(box(60), 0.3, CAR)])
    chosen = metrics.choose_thresholds(settings(), rows)
    # The least sure car has 0.9 - 0.19; the false ones lie below.
    assert chosen["score_Car"] == pytest.approx(0.71)
    assert chosen["score_Pedestrian"] == settings().model.smallest_score
    assert value(rows, "precision_Car") == 0.5
    assert value(rows, "precision_Car", **chosen) == value(rows, "recall_Car", **chosen) == 1
    assert value(rows, "recall_Car", score_Car=0.8) == pytest.approx(11 / 20)


# --- Rows -----------------------------------------------------------------------------------------


def test_a_row_keeps_the_surest_objects_and_all_columns_are_as_long() -> None:
    found = [(box(5 * place), 0.1 + 0.05 * place, CAR) for place in range(14)]
    rows = frame([(box(10), "Car", 1), (box(20), "Van", 0)], found, key="000007")
    assert {len(column) for column in rows.values()} == {1}
    np.testing.assert_allclose(rows["scores"][0], 0.75 - 0.05 * np.arange(10), rtol=1e-6)
    np.testing.assert_allclose(rows["boxes"][0, 0], box(65), rtol=1e-6)
    np.testing.assert_allclose(rows["true_boxes"][0, :2], [box(10), box(20)], rtol=1e-6)
    assert np.isnan(rows["true_boxes"][0, 2:]).all()
    assert rows["true_labels"][0, :2].tolist() == [CAR, -1]
    assert rows["true_difficulty"][0, :3].tolist() == [1, 0, -1]
    assert rows["key"].tolist() == rows["sequence"].tolist() == ["000007"]
    assert frame(sequence="drive 5")["sequence"].tolist() == ["drive 5"]


def test_a_row_keeps_some_points_of_what_is_looked_at() -> None:
    generator = np.random.default_rng(0)
    points = np.zeros((1, 12000, 4), dtype=np.float32)
    points[0, :, :3] = generator.uniform((-70, -40, -3), (70, 40, 1), (12000, 3))
    points[0, 11000:] = np.nan
    cloud = metrics.unpacked(frame(points=points)["cloud"][0])
    assert cloud.shape == (metrics.CLOUD, 3)
    ahead = points[0, points[0, :, 0] >= 0, :3]
    nearest = np.abs(ahead[None] - cloud[:50, None]).max(axis=-1).min(axis=1)
    assert nearest.max() <= 0.0051
    few = metrics.unpacked(frame(points=points[:, 10990:])["cloud"][0])
    assert 0 < len(few) < 10


def test_a_drive_that_is_drawn_twice_counts_twice() -> None:
    hit = frame([(box(10), "Car", 0)], [(box(10), 0.9, CAR)], key="a", sequence="1")
    miss = frame([(box(10), "Car", 0)], key="b", sequence="2")
    (recall,) = [one for one in metrics.build(settings()) if one.name == "recall_Car"]
    assert recall.group == "sequence"
    rows = join_rows([hit, miss])
    measured = measure(recall, rows, {}, resamples=50)
    assert (measured.value, measured.low, measured.high) == (0.5, 0.0, 1.0)
    assert value(join_rows([hit, hit, miss]), "recall_Car") == pytest.approx(2 / 3)


def test_names_are_safe_in_files() -> None:
    one = LidarSettings.model_validate({"data": {"classes": ["traffic cone/big"]}})
    names = [metric.name for metric in metrics.build(one)]
    assert "bev_ap_traffic_cone_big_0.5" in names
    assert len(names) == len(set(names))
