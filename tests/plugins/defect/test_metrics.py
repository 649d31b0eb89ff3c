"""Metrics against hand-computed cases and scikit-learn."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    roc_auc_score,
)

from pegboard.evaluation import join_rows, measure
from pegboard.records import Batch
from pegboard_defect import metrics, pixels
from pegboard_defect.settings import DefectSettings

CLASSES = ("good", "scratch", "crack")


def settings(**model: Any) -> DefectSettings:
    return DefectSettings.model_validate({"data": {"classes": CLASSES}, "model": model})


def rows(score: Any, label: Any, **columns: Any) -> dict[str, Any]:
    label = np.asarray(label)
    keys = [f"{index}.png" for index in range(len(label))]
    return {
        "score": np.asarray(score, dtype=np.float32),
        "label": label,
        "defective": (label > 0).astype(int),
        "predicted": label,
        "key": np.array(keys),
        "part": np.array(keys),
        "lot": np.full(len(label), ""),
        **pixels.empty_columns(len(label)),
        **{name: np.asarray(column) for name, column in columns.items()},
    }


def drawn(count: int = 3000, digits: int = 2) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    label = generator.integers(0, 3, count)
    # Rounded, so that there are ties.
    score = generator.random(count) * 0.7 + (label > 0) * generator.random(count) * 0.3
    return rows(np.round(score, digits), label, predicted=generator.integers(0, 3, count))


# Good: 0.1 0.3 0.5, scratches: 0.4 0.9, a crack: 0.2.
SIX = rows([0.1, 0.3, 0.5, 0.4, 0.9, 0.2], [0, 0, 0, 1, 1, 2])


# --- Rows -----------------------------------------------------------------------------------------


def batch(**targets: Any) -> Batch:
    mask = torch.zeros(3, 64, 48, dtype=torch.uint8)
    mask[1, 10:12, 20:30] = 1
    known: dict[str, Any] = {
        "label": torch.tensor([[1.0, 0, 0], [0, 0, 1.0], [0.5, 0.5, 0]]),
        "defective": torch.tensor([0.0, 1.0, 0.5]),
        "mask": mask,
        "has_mask": torch.tensor([0.0, 1.0, 0.0]),
        "lot": ["L1", "", "L2"],
        "part": ["P1", "", ""],
    }
    return Batch(
        inputs={"image": torch.zeros(3, 64, 48, 1, dtype=torch.uint8)},
        targets=known | targets,
        keys=["a.png", "b.png", "c.png"],
    )


def outputs() -> dict[str, Any]:
    heat = np.zeros((3, 64, 48), dtype=np.float32)
    heat[1, 11, 24] = 0.8
    return {
        "score": np.array([0.1, 0.9, 0.4], dtype=np.float32),
        "map": heat,
        "probabilities": np.array([[0.9, 0.1, 0], [0.1, 0.7, 0.2], [0.6, 0.4, 0]]),
    }


def test_a_batch_becomes_a_row_a_picture() -> None:
    table = metrics.tabulate(settings(), batch(), outputs())
    assert {len(column) for column in table.values()} == {3}
    assert table["defective"].tolist() == [0, 1, 1]
    # At a probability of 0.5 it is defective, so its class is not that of good parts.
    assert table["label"].tolist() == [0, 2, 1]
    assert table["predicted"].tolist() == [0, 1, 0]
    assert table["lot"].tolist() == ["L1", "", "L2"]


def test_a_picture_without_a_part_is_one_of_its_own() -> None:
    table = metrics.tabulate(settings(), batch(), outputs())
    assert table["part"].tolist() == ["P1", "b.png", "c.png"]


def test_good_parts_count_as_pictures_without_a_defective_pixel() -> None:
    table = metrics.tabulate(settings(), batch(), outputs())
    assert table["pixels_good"].sum(axis=1).tolist() == [64 * 48, 64 * 48 - 20, 0]
    assert table["pixels_defect"].sum(axis=1).tolist() == [0, 20, 0]


def test_a_small_hot_spot_is_seen_in_the_coarse_map() -> None:
    heat = metrics.tabulate(settings(), batch(), outputs())["heat"]
    assert heat.shape == (3, 32, 32)
    assert heat.dtype == np.uint8
    assert np.argwhere(heat).tolist() == [[1, 11 // 2, 24 * 32 // 48]]
    assert heat.max() == round(0.8 * 255)


@pytest.mark.parametrize("size", [(32, 32), (20, 45), (131, 64)])
def test_a_map_of_any_size_becomes_coarse(size: tuple[int, int]) -> None:
    maps = np.random.default_rng(0).random((2, *size), dtype=np.float32)
    heat = metrics.coarse(maps)
    assert heat.shape == (2, 32, 32)
    assert heat.max() == round(float(maps.max()) * 255)


def test_pixels_outside_the_inspected_region_are_not_counted(tmp_path: Any) -> None:
    Image.fromarray(np.full((64, 48), 255, np.uint8) * (np.arange(48) < 12)).save(
        tmp_path / "region.png"
    )
    one = settings()
    data = one.data.model_copy(update={"region": tmp_path / "region.png", "size": (64, 48)})
    table = metrics.tabulate(one.model_copy(update={"data": data}), batch(), outputs())
    assert table["pixels_good"].sum(axis=1).tolist() == [64 * 12, 64 * 12, 0]


def test_what_says_no_class_and_no_place_has_rows_too() -> None:
    table = metrics.tabulate(settings(), batch(), {"score": outputs()["score"]})
    assert table["predicted"].tolist() == [0, 1, 0]
    assert not table["heat"].any()
    assert np.isnan(pixels.pixel_auroc(table))


def test_tables_of_batches_can_be_joined() -> None:
    table = metrics.tabulate(settings(), batch(), outputs())
    named = metrics.tabulate(settings(), batch(lot=["a much longer lot"] * 3), outputs())
    assert join_rows([table, named])["lot"].tolist()[2:4] == ["L2", "a much longer lot"]


# --- Ranking --------------------------------------------------------------------------------------


def test_ranking_metrics_equal_scikit_learns_with_ties() -> None:
    table = drawn()
    expected = roc_auc_score(table["defective"], table["score"])
    assert metrics.roc_auc(table) == pytest.approx(expected, rel=1e-9)
    expected = average_precision_score(table["defective"], table["score"])
    assert metrics.average_precision(table) == pytest.approx(expected, rel=1e-9)


def test_ranking_by_hand() -> None:
    # Of the nine pairs 0.4 beats two good ones, 0.9 three, 0.2 one.
    assert metrics.roc_auc(SIX) == pytest.approx(6 / 9)
    # Found at 0.9 with precision 1, at 0.4 with 2/3, at 0.2 with 3/5.
    assert metrics.average_precision(SIX) == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)


def test_the_trade_off_goes_from_rejecting_all_to_rejecting_none() -> None:
    thresholds, escape, overkill = metrics.trade_off(SIX)
    assert (escape[0], overkill[0]) == (0, 1)
    assert (escape[-1], overkill[-1]) == (1, 0)
    assert (np.diff(thresholds) > 0).all()
    np.testing.assert_allclose(escape, np.array([0, 0, 1, 1, 2, 2, 3]) / 3)
    np.testing.assert_allclose(overkill, np.array([3, 2, 2, 1, 1, 0, 0]) / 3)
    np.testing.assert_allclose(thresholds, [0.05, 0.15, 0.25, 0.35, 0.45, 0.7, 0.95], rtol=1e-6)


@pytest.mark.parametrize("digits", [1, 7])
def test_each_threshold_of_the_trade_off_does_what_it_says(digits: int) -> None:
    table = drawn(400, digits)
    # Neighbours with no float32 between them, and the ends of the range.
    one = np.float32(0.25)
    table["score"][:4] = [one, np.nextafter(one, np.float32(1)), 0, 1]
    for threshold, escape, overkill in zip(*metrics.trade_off(table), strict=True):
        assert metrics.escape_and_overkill(table, {"defect": float(threshold)}) == (
            escape,
            overkill,
        )


# --- Decisions ------------------------------------------------------------------------------------


def test_escapes_and_overkill_are_counted_at_the_threshold() -> None:
    # 0.4 is reached by 0.4 itself: the crack escapes, the good part at 0.5 is rejected.
    assert metrics.escape_and_overkill(SIX, {"defect": 0.4}) == (1 / 3, 1 / 3)
    assert metrics.escape_and_overkill(SIX, {"defect": 0.0}) == (0, 1)


def test_accuracy_is_taken_at_one_half() -> None:
    # Right: the good parts at 0.1 and 0.3, and the scratch at 0.9.
    assert metrics.accuracy(SIX) == 3 / 6


def test_f1_is_that_of_rejecting() -> None:
    table = drawn()
    expected = f1_score(table["defective"], table["score"] >= 0.5)
    assert metrics.f1(table, {"defect": 0.5}) == pytest.approx(expected)


def test_balanced_accuracy_is_the_mean_over_classes() -> None:
    table = rows(np.zeros(6), [0, 0, 0, 0, 1, 2], predicted=[0, 0, 0, 1, 1, 0])
    assert metrics.balanced_accuracy(table) == pytest.approx((3 / 4 + 1 + 0) / 3)
    table = drawn()
    expected = balanced_accuracy_score(table["label"], table["predicted"])
    assert metrics.balanced_accuracy(table) == pytest.approx(expected)


def test_cost_is_what_mistakes_cost_on_a_hundred_parts() -> None:
    one = settings(escape_cost=10, escape_costs={"crack": 40}, overkill_cost=2)
    # At 0.45 a scratch and a crack escape and one good part is rejected.
    assert metrics.cost(one, SIX, {"defect": 0.45}) == pytest.approx(100 * (10 + 40 + 2) / 6)


# --- Thresholds -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("costs", "expected"),
    [
        # Escapes 1 each, overkill 1 each: 3 2 3 2 3 2 3 from the lowest threshold to the highest.
        ({"escape_cost": 1, "overkill_cost": 1}, 0.15),
        # An escape costs 3: 3 2 5 4 7 6 9.
        ({"escape_cost": 3, "overkill_cost": 1}, 0.15),
        # Overkill costs 3: 9 6 7 4 5 2 3.
        ({"escape_cost": 1, "overkill_cost": 3}, 0.7),
        # A crack may pass: 6 4 4.1 2.1 3.1 1.1 2.1.
        ({"escape_cost": 1, "escape_costs": {"crack": 0.1}, "overkill_cost": 2}, 0.7),
        # So may a scratch: 6 4 5 3 3.1 1.1 1.2.
        ({"escape_cost": 1, "escape_costs": {"scratch": 0.1}, "overkill_cost": 2}, 0.7),
        # Overkill costs a hundred times as much: 30 20 20.1 10.1 10.2 0.2 0.3.
        ({"escape_cost": 0.1, "overkill_cost": 10}, 0.7),
    ],
)
def test_by_cost_mistakes_cost_least(costs: dict[str, Any], expected: float) -> None:
    chosen = metrics.choose_thresholds(settings(**costs), SIX)
    assert chosen["defect"] == pytest.approx(expected, rel=1e-6)


def test_by_cost_no_other_threshold_is_cheaper() -> None:
    one = settings(escape_cost=7, escape_costs={"crack": 3}, overkill_cost=2)
    table = drawn()
    best = metrics.cost(one, table, metrics.choose_thresholds(one, table))
    every = [metrics.cost(one, table, {"defect": t}) for t in np.linspace(0, 1.001, 300)]
    assert best <= min(every) + 1e-9


def test_where_defects_stand_apart_the_threshold_is_midway() -> None:
    table = rows([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 2])
    assert metrics.choose_thresholds(settings(), table)["defect"] == pytest.approx(0.5)


def test_where_every_part_is_rejected_even_the_surest_good_one_is() -> None:
    table = rows([0.0, 0.0, 1.0], [0, 1, 0])
    chosen = metrics.choose_thresholds(settings(escape_cost=100), table)
    assert metrics.rejected(table, chosen).all()
    chosen = metrics.choose_thresholds(settings(escape_cost=1, overkill_cost=100), table)
    assert not metrics.rejected(table, chosen).any()


@pytest.mark.parametrize(
    ("limit", "expected"), [(0.0, 0.15), (0.3, 0.15), (1 / 3, 0.35), (0.5, 0.35), (0.7, 0.7)]
)
def test_by_escapes_it_is_the_highest_that_keeps_the_limit(limit: float, expected: float) -> None:
    one = settings(threshold="escape", escape_limit=limit)
    assert metrics.choose_thresholds(one, SIX)["defect"] == pytest.approx(expected, rel=1e-6)


def test_a_tie_of_defects_that_would_break_the_limit_is_rejected_whole() -> None:
    table = rows([0.1, 0.4, 0.4, 0.4, 0.9], [0, 1, 1, 2, 2])
    one = settings(threshold="escape", escape_limit=0.3)
    chosen = metrics.choose_thresholds(one, table)
    assert metrics.escape_and_overkill(table, chosen) == (0, 0)


@pytest.mark.parametrize("label", [0, 1])
def test_without_good_or_without_defective_parts_it_is_one_half(label: int) -> None:
    table = rows(np.linspace(0, 0.3, 9), np.full(9, label))
    expected = {"defect": 0.5, "pixel": 0.5}
    assert metrics.choose_thresholds(settings(), table) == expected
    assert metrics.choose_thresholds(settings(threshold="escape"), table) == expected


def test_a_project_of_good_parts_rejects_one_in_a_hundred() -> None:
    table = rows(np.linspace(0, 0.3, 1000), np.zeros(1000, int))
    heat = np.linspace(0, 0.2, 10_000, dtype=np.float32).reshape(1, 100, 100)
    table |= {
        name: np.repeat(column, 1000, axis=0)
        for name, column in pixels.pixel_columns(heat, heat < 0, np.ones(1)).items()
    }
    chosen = metrics.choose_thresholds(settings(task="anomaly"), table)
    assert metrics.escape_and_overkill(table, chosen)[1] == pytest.approx(0.01)
    # A bin is a three-hundredth wide here.
    assert (heat >= chosen["pixel"]).mean() <= 0.001 < (heat >= chosen["pixel"] - 1 / 300).mean()


def test_thresholds_survive_json_and_compare_alike_in_both_precisions() -> None:
    score = np.nextafter(np.float32(0.3), np.float32(1))
    table = rows([0.3, score], [0, 1])
    chosen = metrics.choose_thresholds(settings(), table)
    back = json.loads(json.dumps(chosen))["defect"]
    for precision in (np.float32, np.float64):
        assert (table["score"].astype(precision) >= back).tolist() == [False, True]


# --- The list -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "headline"), [("classify", "roc_auc"), ("segment", "iou"), ("anomaly", "roc_auc")]
)
def test_each_task_has_one_headline_and_names_each_metric_once(task: str, headline: str) -> None:
    built = metrics.build(settings(task=task))
    assert [metric.name for metric in built if metric.headline] == [headline]
    assert len({metric.name for metric in built}) == len(built)
    assert {metric.group for metric in built} == {"part"}
    lower = {metric.name for metric in built if metric.direction == "lower"}
    assert lower == {"escape_rate", "overkill_rate"} | ({"cost"} if task == "classify" else set())


@pytest.mark.parametrize("task", ["classify", "segment", "anomaly"])
def test_each_metric_has_a_value_and_an_interval(task: str) -> None:
    generator = np.random.default_rng(0)
    masks = (generator.random((40, 16, 16)) < 0.1) * (np.arange(40) % 2)[:, None, None]
    maps = (0.6 * generator.random(masks.shape) + 0.4 * masks).astype(np.float32)
    table = rows(generator.random(40), np.arange(40) % 2) | pixels.pixel_columns(
        maps, masks, np.ones(40)
    )
    one = settings(task=task)
    chosen = metrics.choose_thresholds(one, table)
    for metric in metrics.build(one):
        value = measure(metric, table, chosen, resamples=5)
        assert value.value is not None, metric.name
        assert value.low is not None, metric.name


@pytest.mark.parametrize("label", [0, 1])
def test_with_one_kind_of_parts_a_metric_is_a_number_or_not_defined(label: int) -> None:
    table = rows([0.2, 0.7], [label, label])
    for task in ("classify", "segment", "anomaly"):
        values = {
            m.name: m.compute(table, {"defect": 0.5, "pixel": 0.5})
            for m in metrics.build(settings(task=task))
        }
        assert np.isnan(values["roc_auc"])
        assert np.isnan(values["escape_rate"]) == (label == 0)
        assert np.isnan(values["overkill_rate"]) == (label == 1)
