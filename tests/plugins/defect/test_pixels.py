"""Binned pixel metrics against exact ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import f1_score, jaccard_score, roc_auc_score

from pegboard_defect import pixels


def close(expected: float) -> Any:
    return pytest.approx(expected, abs=2e-3, rel=0)


SCALES: dict[str, Callable[[Any], Any]] = {
    "even": lambda z: np.clip(0.5 + 0.15 * z, 0, 1),
    "sigmoid": lambda z: 1 / (1 + np.exp(-3 * z)),
    "crowded at 0": lambda z: 1 / (1 + np.exp(8 - 5 * z)),
    "crowded at 1": lambda z: 1 / (1 + np.exp(-8 - 3 * z)),
    "coarse": lambda z: np.clip((0.5 + 0.15 * z).round(1), 0, 1),
}


def drawn(scale: str, seed: int = 0) -> tuple[Any, Any]:
    """Four pictures of 40 x 40, three of them with a few rectangles."""
    generator = np.random.default_rng(seed)
    masks = np.zeros((4, 40, 40), dtype=np.uint8)
    for picture in (0, 1, 2):
        for _ in range(3):
            y, x = generator.integers(0, 32, 2)
            height, width = generator.integers(1, 9, 2)
            masks[picture, y : y + height, x : x + width] = 1
    maps = SCALES[scale](generator.normal(size=masks.shape) + 1.2 * masks).astype(np.float32)
    return maps, masks


def exact_aupro(maps: Any, masks: Any, limit: float = 0.3) -> float:
    thresholds = np.unique(maps)[::-1]
    regions = []
    for one, mask in zip(maps, masks, strict=True):
        label, count = ndimage.label(mask, np.ones((3, 3)))
        regions += [one[label == index + 1] for index in range(count)]

    def reached(values: Any) -> Any:
        return 1 - np.searchsorted(np.sort(values), thresholds) / len(values)

    rate = np.append(0, reached(maps[masks == 0]))
    found = np.append(0, np.mean([reached(region) for region in regions], axis=0))
    inside = rate < limit
    return float(
        np.trapezoid(
            np.append(found[inside], np.interp(limit, rate, found)), np.append(rate[inside], limit)
        )
        / limit
    )


def columns(maps: Any, masks: Any, inside: Any = None) -> dict[str, Any]:
    return pixels.pixel_columns(maps, masks, np.ones(len(maps)), inside)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("scale", SCALES)
def test_ranking_is_that_of_the_single_pixels(scale: str, seed: int) -> None:
    maps, masks = drawn(scale, seed)
    rows = columns(maps, masks)
    expected = roc_auc_score(masks.ravel(), maps.ravel())
    assert pixels.pixel_auroc(rows) == close(expected)
    assert pixels.aupro(rows) == close(exact_aupro(maps, masks))
    assert pixels.aupro(rows, 0.05) == close(exact_aupro(maps, masks, 0.05))


@pytest.mark.parametrize("scale", SCALES)
def test_at_a_threshold_the_marked_pixels_are_counted(scale: str) -> None:
    maps, masks = drawn(scale)
    rows = columns(maps, masks)
    for threshold in (0.5, pixels.best_threshold(rows)):
        marked, true = maps.ravel() >= np.float32(threshold), masks.ravel()
        expected = f1_score(true, marked)
        assert pixels.pixel_f1(rows, threshold) == close(expected)
        expected = jaccard_score(true, marked)
        assert pixels.iou(rows, threshold) == close(expected)


@pytest.mark.parametrize("scale", SCALES)
def test_no_threshold_is_better_than_the_best(scale: str) -> None:
    maps, masks = drawn(scale)
    rows = columns(maps, masks)
    best = pixels.pixel_f1(rows, pixels.best_threshold(rows))
    every = []
    for threshold in np.quantile(maps, np.arange(0, 1, 0.02)):
        marked = maps >= threshold
        every.append(2 * masks[marked].sum() / (marked.sum() + masks.sum()))
    # A bin holds a few of the 200 defective pixels.
    assert best > max(every) - 0.01


def test_between_two_values_the_best_threshold_is_in_the_middle() -> None:
    masks = np.zeros((1, 8, 8), dtype=np.uint8)
    masks[0, :2] = 1
    rows = columns(np.where(masks, 0.8, 0.2), masks)
    assert pixels.best_threshold(rows) == pytest.approx(0.5, abs=0.01)
    assert pixels.iou(rows, pixels.best_threshold(rows)) == 1.0


def test_a_region_counts_as_much_as_any_other() -> None:
    # Regions of one pixel and of nine; the large one is found first, before any good pixel.
    masks = np.zeros((1, 10, 10), dtype=np.uint8)
    masks[0, 0, 0] = masks[0, 3:6, 3:6] = 1
    maps = np.full((1, 10, 10), 0.3)
    maps[0, 3:6, 3:6] = 0.9
    maps[0, 0, 0] = 0.1
    rows = columns(maps, masks)
    assert rows["regions"].tolist() == [2]
    assert rows["overlap"].sum() == pytest.approx(2)
    # Found from the start: 1 of 2 regions. The other would cost every good pixel.
    assert pixels.aupro(rows) == pytest.approx(0.5)
    assert pixels.pixel_auroc(rows) == pytest.approx(0.9)


def test_pixels_that_touch_at_a_corner_are_one_region() -> None:
    masks = np.eye(6, dtype=np.uint8)[None]
    assert columns(np.zeros((1, 6, 6)), masks)["regions"].tolist() == [1]


def test_where_the_mask_is_not_known_nothing_is_counted() -> None:
    maps, masks = drawn("even")
    rows = pixels.pixel_columns(maps, masks, np.array([1, 0, 1, 0]))
    whole = columns(maps, masks)
    for name, column in rows.items():
        assert not column[[1, 3]].any()
        np.testing.assert_array_equal(column[[0, 2]], whole[name][[0, 2]])


def test_pixels_outside_the_region_are_not_counted() -> None:
    maps, masks = drawn("even")
    inside = np.zeros((40, 40), dtype=np.uint8)
    inside[:, :20] = 1
    for name, column in columns(maps, masks, inside).items():
        np.testing.assert_array_equal(column, columns(maps[:, :, :20], masks[:, :, :20])[name])


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_threshold_that_a_map_value_equals_is_reached(value: float) -> None:
    masks = np.zeros((1, 4, 4), dtype=np.uint8)
    masks[0, 0] = 1
    maps = np.where(masks, value, value / 2)
    rows = columns(maps, masks)
    assert pixels.pixel_f1(rows, value) == (0.4 if value == 0 else 1.0)


def test_a_value_reaches_the_edges_up_to_its_bin() -> None:
    generator = np.random.default_rng(0)
    spread = 1 / (1 + np.exp(-6 * generator.normal(size=5000)))
    values = np.r_[generator.random(5000), spread, pixels.EDGES].astype(np.float32)
    expected = np.searchsorted(pixels.EDGES[1:], values, side="right")
    np.testing.assert_array_equal(pixels.bins_of(values), expected)
    assert pixels.EDGES[0] == 0
    assert pixels.EDGES[pixels.BINS // 2] == 0.5


def test_a_value_that_is_no_number_counts_as_cold() -> None:
    assert pixels.bins_of(np.array([np.nan, 0.0, 1.0])).tolist() == [0, 0, pixels.BINS - 1]


def test_without_defective_pixels_there_is_nothing_to_measure() -> None:
    maps, masks = drawn("even")
    rows = columns(maps, np.zeros_like(masks))
    for value in (pixels.pixel_auroc(rows), pixels.aupro(rows), pixels.iou(rows, 0.5)):
        assert np.isnan(value)
    assert pixels.best_threshold(rows) == 0.5


def test_a_quiet_threshold_marks_few_good_pixels() -> None:
    maps = np.linspace(0, 1, 10_000, dtype=np.float32).reshape(1, 100, 100)
    rows = columns(maps, np.zeros_like(maps))
    marked = (maps >= pixels.quiet_threshold(rows, 0.05)).mean()
    assert 0.045 < marked <= 0.05
    assert pixels.quiet_threshold(pixels.empty_columns(3), 0.05) == 0.5
