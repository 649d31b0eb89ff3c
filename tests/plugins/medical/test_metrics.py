"""Metrics: what a row keeps, worked cases, and what is not defined."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pegboard.evaluation import join_rows, measure
from pegboard.records import Batch
from pegboard_medical import lesions, metrics
from pegboard_medical.settings import SegmentationSettings

Array = Any
SHAPE = (16, 24, 24)


def settings(
    classes: Sequence[str] = ("nodule",), *, modality: str = "ct", **model: Any
) -> SegmentationSettings:
    return SegmentationSettings.model_validate(
        {"data": {"classes": classes, "modality": modality}, "model": model}
    )


def cube(first: tuple[int, int, int], side: int = 6, label: int = 1) -> Array:
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[tuple(slice(a, a + side) for a in first)] = label
    return mask


NOTHING = np.zeros(SHAPE, dtype=np.uint8)
THERE = cube((4, 6, 6))


def case(
    one: SegmentationSettings,
    true: Array,
    found: Array,
    *,
    spacing: tuple[float, float, float] = (1, 1, 1),
    known: bool = True,
    key: str = "k",
    patient: str = "p",
    sure: float = 0.9,
) -> dict[str, Array]:
    """One row: a case whose mask is `true` and of which `found` is said."""
    count = len(one.data.classes)
    labels = np.arange(1, count + 1)[:, None, None, None]
    batch = Batch(
        inputs={
            "image": torch.from_numpy(np.where(true > 0, 50.0, -850.0).astype(np.float32))[None],
            "spacing": torch.tensor([spacing], dtype=torch.float32),
        },
        targets={
            "mask": torch.from_numpy(true)[None],
            "has_mask": torch.tensor([float(known)]),
            "patient": [patient],
        },
        keys=[key],
    )
    probabilities = (sure * (found[None] == labels)).astype(np.float32)[None]
    return metrics.tabulate(one, batch, {"probabilities": probabilities})


def value(one: SegmentationSettings, rows: dict[str, Array], name: str) -> float:
    (metric,) = [metric for metric in metrics.build(one) if metric.name == name]
    return metric.compute(rows, {})


# --- Rows -----------------------------------------------------------------------------------------


def test_a_row_of_a_worked_case() -> None:
    # 216 voxels of 2 x 1 x 0.5 mm each; one row further: 180 of them in common.
    row = case(settings(), THERE, cube((4, 7, 6)), spacing=(2.0, 1.0, 0.5))
    assert row["dice:nodule"] == pytest.approx(180 / 216)
    assert row["hd95:nodule"] == pytest.approx(1.0)
    assert row["surface_dice:nodule"] == 1
    assert row["true_ml:nodule"] == row["volume_ml:nodule"] == pytest.approx(0.216)
    assert (row["lesions:nodule"], row["found:nodule"], row["false:nodule"]) == (1, 1, 0)


def test_candidates_are_counted_at_every_threshold() -> None:
    row = case(settings(), THERE, THERE | cube((9, 17, 17), side=4), sure=0.8)
    reached = lesions.THRESHOLDS <= 0.8
    np.testing.assert_array_equal(row["found_at:nodule"][0], reached)
    np.testing.assert_array_equal(row["false_at:nodule"][0], reached)


def test_what_is_missed_has_no_overlap_and_no_distance() -> None:
    for true, found in ((THERE, NOTHING), (NOTHING, THERE)):
        row = case(settings(), true, found)
        assert row["dice:nodule"] == row["surface_dice:nodule"] == 0
        assert np.isnan(row["hd95:nodule"])


def test_what_is_neither_there_nor_found_does_not_count() -> None:
    row = case(settings(), NOTHING, NOTHING)
    for column in ("dice", "hd95", "surface_dice"):
        assert np.isnan(row[f"{column}:nodule"])
    assert row["lesions:nodule"] == row["false:nodule"] == 0


def test_a_case_without_a_mask_says_only_what_was_found() -> None:
    row = case(settings(), NOTHING, THERE, known=False)
    assert row["volume_ml:nodule"] == pytest.approx(0.216)
    for column in ("dice", "surface_dice", "true_ml", "lesions", "found", "false_at"):
        assert np.isnan(row[f"{column}:nodule"]).all()


def test_small_regions_are_dropped_as_they_are_from_the_answer() -> None:
    found = THERE | cube((12, 20, 20), side=2)
    assert case(settings(), THERE, found)["false:nodule"] == 1
    row = case(settings(smallest_mm3=20.0), THERE, found)
    assert row["false:nodule"] == 0
    assert row["dice:nodule"] == 1
    assert row["false_at:nodule"].max() == 0


def test_structures_are_kept_apart() -> None:
    one = settings(("front", "back"), modality="mr", lesions=False)
    true = THERE | cube((4, 14, 6), label=2)
    row = case(one, true, cube((4, 14, 6), label=2))
    assert row["dice:front"] == 0
    assert row["dice:back"] == 1
    assert not any(name.startswith("lesions") for name in row)


def test_rows_hold_pictures_that_figures_are_drawn_from() -> None:
    row = case(settings(), THERE, cube((4, 7, 6)))
    side = metrics.SIDE
    assert row["picture"].shape == (1, 3, side, side)
    assert row["true_outline"].shape == (1, 3, side, side // 8)
    # No wider than the volume.
    assert row["picture_mm"] == pytest.approx(24)
    edge = metrics.unpacked(row["true_outline"][0])
    # A structure of 6 of 24 mm, outlined: 4 sides of 32 pixels.
    assert edge.sum(axis=(1, 2)).tolist() == [124] * 3
    # Tissue is brighter than lung, which is at 27 in this window; there is nothing beyond.
    assert row["picture"][0][edge].min() > 80
    assert np.unique(row["picture"][0])[[0, 1, -1]].tolist() == [0, 27, 191]


def test_a_case_without_a_patient_is_one_of_its_own() -> None:
    rows = join_rows([case(settings(), THERE, THERE, key=key, patient="") for key in "ab"])
    assert rows["patient"].tolist() == ["a", "b"]


def test_a_batch_of_two_gives_two_rows() -> None:
    one = settings()
    image = torch.zeros(2, *SHAPE)
    mask = torch.from_numpy(np.stack([THERE, NOTHING]))
    batch = Batch(
        inputs={"image": image, "spacing": torch.ones(2, 3)},
        targets={"mask": mask, "has_mask": torch.ones(2), "patient": ["a", "b"]},
        keys=["x", "y"],
    )
    probabilities = np.stack([THERE, NOTHING])[:, None].astype(np.float32)
    rows = metrics.tabulate(one, batch, {"probabilities": probabilities})
    assert {len(column) for column in rows.values()} == {2}
    np.testing.assert_array_equal(rows["dice:nodule"], [1, np.nan])


# --- Metrics --------------------------------------------------------------------------------------


def test_the_list_follows_the_task() -> None:
    lesion = ["lesion_recall", "lesion_precision", "froc"]
    common = ["hd95", "surface_dice", "volume_error"]
    names = [metric.name for metric in metrics.build(settings())]
    assert names == ["dice", *common, *lesion]
    several = metrics.build(settings(("a", "b"), lesions=False))
    assert [metric.name for metric in several] == ["dice", "dice_a", "dice_b", *common]
    assert [metric.name for metric in several if metric.headline] == ["dice"]
    assert {metric.group for metric in several} == {"patient"}


def test_dice_weighs_structures_alike() -> None:
    one = settings(("a", "b"), modality="mr", lesions=False)
    both = THERE | cube((4, 14, 6), label=2)
    rows = join_rows([case(one, both, both), case(one, THERE, NOTHING), case(one, THERE, NOTHING)])
    # a: 1, 0, 0; b: 1 and twice not there.
    assert value(one, rows, "dice_a") == pytest.approx(1 / 3)
    assert value(one, rows, "dice_b") == 1
    assert value(one, rows, "dice") == pytest.approx(2 / 3)


def test_lesions_are_pooled_over_cases() -> None:
    one = settings()
    two = THERE | cube((4, 16, 16))
    rows = join_rows(
        [
            case(one, two, THERE),
            case(one, THERE, THERE),
            case(one, NOTHING, THERE),
            case(one, NOTHING, THERE, known=False),
        ]
    )
    assert value(one, rows, "lesion_recall") == pytest.approx(2 / 3)
    assert value(one, rows, "lesion_precision") == pytest.approx(2 / 3)
    # One false region in three cases: up to there the curve rises evenly from none.
    rise = [2 / 3 * 3 * rate for rate in (1 / 8, 1 / 4)]
    assert value(one, rows, "froc") == pytest.approx(np.mean([*rise, *[2 / 3] * 5]))


def test_volume_error_is_a_share_of_the_true_volume() -> None:
    one = settings()
    rows = join_rows([case(one, THERE, cube((4, 6, 6), side=3)), case(one, NOTHING, THERE)])
    assert value(one, rows, "volume_error") == pytest.approx(1 - 27 / 216)


def test_nothing_known_is_not_defined() -> None:
    one = settings()
    rows = case(one, NOTHING, THERE, known=False)
    for metric in metrics.build(one):
        assert np.isnan(metric.compute(rows, {}))


def test_the_interval_draws_cases_of_a_patient_together() -> None:
    one = settings()
    rows = join_rows([case(one, THERE, THERE), case(one, THERE, NOTHING)] * 3)
    (dice, *_) = metrics.build(one)
    measured = measure(dice, rows, {}, resamples=20)
    # One patient only: whoever is drawn, it is the same.
    assert measured.value == measured.low == measured.high == 0.5


def test_no_threshold_is_chosen() -> None:
    assert metrics.choose_thresholds(settings(), {}) == {}


# --- Real labels ----------------------------------------------------------------------------------


def test_a_real_hippocampus_against_itself_moved_by_a_voxel(test_data: Path) -> None:
    import nibabel

    folder = test_data / "medical" / "msd_hippocampus" / "labels"
    if not folder.is_dir():
        pytest.skip("no hippocampus there")
    label = nibabel.load(sorted(folder.glob("*.nii.gz"))[0])
    true = np.asarray(label.dataobj).astype(np.uint8)
    one = settings(("anterior", "posterior"), modality="mr", lesions=False)
    batch = Batch(
        inputs={"image": torch.zeros(1, *true.shape), "spacing": torch.ones(1, 3)},
        targets={"mask": torch.from_numpy(true)[None], "has_mask": torch.ones(1)},
        keys=["real"],
    )
    found = np.stack([np.roll(true == label, 1, axis=0) for label in (1, 2)])
    rows = metrics.tabulate(one, batch, {"probabilities": found[None].astype(np.float32)})
    for name in ("anterior", "posterior"):
        assert 0.8 < rows[f"dice:{name}"][0] < 0.97
        assert rows[f"hd95:{name}"] == 1
        assert rows[f"surface_dice:{name}"] == 1
        assert 0.5 < rows[f"true_ml:{name}"][0] < 4
        assert rows[f"volume_ml:{name}"] == rows[f"true_ml:{name}"]
