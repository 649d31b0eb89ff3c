"""What a segmentation is worth: overlap, surfaces, volumes, and lesions one by one.

Every metric is a pure function of the rows of an evaluation, one row a case, see `tabulate`. It is
NaN where it is not defined. N cases, K structures, T thresholds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np

from pegboard.records import Array, Batch, Metric, Rows
from pegboard_medical import lesions, planes, surfaces
from pegboard_medical.masks import components, mask_of, without_small
from pegboard_medical.settings import SegmentationSettings
from pegboard_medical.volumes import Spacing

TOLERANCE_MM = 1.0
"""Surfaces nearer than this agree."""

SIDE = 128
"""Height and width of the pictures that a row keeps; a multiple of 8."""


# --- Rows -----------------------------------------------------------------------------------------


def tabulate(
    settings: SegmentationSettings, batch: Batch, outputs: Mapping[str, Array]
) -> dict[str, Array]:
    """Keep what metrics and figures need of a batch of B cases.

    Returns:
        `key` and `patient` (B,) text, and of each structure c, float (B,):

        - `dice:c`; `hd95:c` in mm; `surface_dice:c` at 1 mm; `volume_ml:c` found, `true_ml:c`.
        - With `model.lesions`, lesions as `lesions.py` counts them: `lesions:c` there are;
          `found:c` of them and `false:c` regions in vain by the mask; `found_at:c` and `false_at:c`
          (B, T) by candidates with a score of at least `lesions.THRESHOLDS`.

        For figures: `picture` uint8 (B, 3, 128, 128), slices through the largest structure;
        `true_outline` and `found_outline` uint8 (B, 3, 128, 16), one bit a pixel; `picture_mm`
        (B,), their width.

        A structure that is neither there nor found has a Dice of NaN and does not count. One that
        is missed, or found where it is not, has a Dice and a surface Dice of 0 and an HD95 of NaN,
        as no distance is defined. All is NaN for a case without a mask, but what was found.
    """
    cases = [
        _row(settings, batch, outputs["probabilities"][index], index) for index in range(len(batch))
    ]
    table = {name: np.array([case[name] for case in cases]) for name in cases[0]}
    keys = np.array(list(batch.keys), dtype=str)
    patient = np.array(list(batch.targets.get("patient", keys)), dtype=str)
    return {"key": keys, "patient": np.where(patient == "", keys, patient), **table}


def _row(
    settings: SegmentationSettings, batch: Batch, probabilities: Array, index: int
) -> dict[str, Any]:
    image = np.asarray(batch.inputs["image"][index])
    depth, height, width = (float(side) for side in batch.inputs["spacing"][index])
    spacing: Spacing = (depth, height, width)
    known = bool(batch.targets["has_mask"][index] > 0)
    true = np.asarray(batch.targets["mask"][index]) * known
    found = without_small(mask_of(probabilities), spacing, settings.model.smallest_mm3)
    row: dict[str, Any] = {}
    for label, name in enumerate(settings.data.classes, start=1):
        ours, theirs = found == label, true == label
        numbers = overlap_numbers(ours, theirs, spacing)
        if settings.model.lesions:
            fewest = settings.model.smallest_mm3 / float(np.prod(spacing))
            numbers |= lesion_numbers(ours, theirs, probabilities[label - 1], fewest)
        if not known:
            numbers = {
                column: value if column == "volume_ml" else np.full_like(value, np.nan)
                for column, value in numbers.items()
            }
        row |= {f"{column}:{name}": value for column, value in numbers.items()}
    return {**row, **_pictures(settings, image, true, found, spacing)}


def overlap_numbers(found: Array, true: Array, spacing: Spacing) -> dict[str, Array]:
    """Return `dice`, `hd95`, `surface_dice`, `volume_ml` and `true_ml` of masks (D, H, W)."""
    ours, theirs = int(found.sum()), int(true.sum())
    voxel_ml = float(np.prod(spacing)) / 1000
    measured = surfaces.distances(found, true, spacing)
    # One is empty and the other is not: nothing of their surfaces agrees.
    is_missed = bool(ours) != bool(theirs)
    numbers = {
        "dice": 2 * int((found & true).sum()) / (ours + theirs) if ours + theirs else np.nan,
        "hd95": surfaces.hd95(measured),
        "surface_dice": 0.0 if is_missed else surfaces.surface_dice(measured, TOLERANCE_MM),
        "volume_ml": ours * voxel_ml,
        "true_ml": theirs * voxel_ml,
    }
    return {name: np.array(value, dtype=np.float64) for name, value in numbers.items()}


def lesion_numbers(
    found: Array, true: Array, probability: Array, fewest: float
) -> dict[str, Array]:
    """Return `lesions`, `found`, `false`, `found_at` and `false_at` of one structure.

    Args:
        found: What the answer marks, bool (D, H, W).
        true: What is there.
        probability: (D, H, W).
        fewest: Voxels of the smallest region that the answer keeps.
    """
    regions, count = components(found)
    by_mask = lesions.match(true, regions, np.ones(count))
    by_score = lesions.match(true, *lesions.candidates(probability, fewest))
    found_at, false_at = by_score.counts(lesions.THRESHOLDS)
    numbers = {
        "lesions": len(by_mask.found),
        "found": (by_mask.found > 0).sum(),
        "false": len(by_mask.false),
        "found_at": found_at,
        "false_at": false_at,
    }
    return {name: np.array(value, dtype=np.float64) for name, value in numbers.items()}


def _pictures(
    settings: SegmentationSettings, image: Array, true: Array, found: Array, spacing: Spacing
) -> dict[str, Any]:
    view = planes.close_view(true if true.any() else found, spacing, SIDE)
    ends = settings.data.window if settings.data.modality == "ct" else planes.ends_of(image)
    return {
        "picture": np.stack(view.grey(image, ends)),
        "true_outline": _packed(view.labels(true)),
        "found_outline": _packed(view.labels(found)),
        "picture_mm": view.step * SIDE,
    }


def _packed(labels: Sequence[Array]) -> Array:
    return np.packbits(np.stack([planes.outline(one) for one in labels]), axis=-1)


# --- The list -------------------------------------------------------------------------------------


def build(settings: SegmentationSettings) -> list[Metric]:
    """Return the metrics, the headline first."""
    names = settings.data.classes
    each = [
        _metric(f"dice_{name}", partial(_column, "dice", [name]), f"Overlap of {name}.")
        for name in names
    ]
    return [
        _metric(
            "dice",
            partial(_column, "dice", names),
            "Twice what both masks share over what either has, mean over structures and cases.",
            headline=True,
        ),
        *(each if len(names) > 1 else []),
        _metric(
            "hd95",
            partial(_column, "hd95", names),
            "Distance that 95 % of the surfaces lie within, where something is there and found.",
            direction="lower",
            unit="mm",
        ),
        _metric(
            "surface_dice",
            partial(_column, "surface_dice", names),
            f"Share of both surfaces that lies within {TOLERANCE_MM:g} mm of the other.",
        ),
        _metric(
            "volume_error",
            partial(volume_error, names),
            "How far the volume is off, as a share of the true one.",
            direction="lower",
            unit="share",
        ),
        *(_lesion_metrics(names) if settings.model.lesions else []),
    ]


def _metric(
    name: str,
    compute: Callable[[Rows], float],
    description: str,
    *,
    direction: Literal["higher", "lower"] = "higher",
    headline: bool = False,
    unit: str = "",
) -> Metric:
    """A metric whose interval draws the cases of a patient together."""
    return Metric(
        name=name,
        compute=lambda rows, thresholds: compute(rows),
        direction=direction,
        headline=headline,
        unit=unit,
        group="patient",
        description=description,
    )


def _lesion_metrics(names: Sequence[str]) -> list[Metric]:
    return [
        _metric(
            "lesion_recall",
            lambda rows: recall_and_precision(names, rows)[0],
            "Share of lesions that the mask finds.",
            unit="share",
        ),
        _metric(
            "lesion_precision",
            lambda rows: recall_and_precision(names, rows)[1],
            "Share of what the mask marks that is a lesion.",
            unit="share",
        ),
        _metric(
            "froc",
            partial(froc, names),
            "Mean recall of lesions at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false ones a case.",
        ),
    ]


# --- Numbers --------------------------------------------------------------------------------------


def _mean(values: Array | Sequence[float]) -> float:
    """The mean of what is defined."""
    numbers = np.asarray(values, dtype=np.float64)
    defined = numbers[np.isfinite(numbers)]
    return float(defined.mean()) if len(defined) else np.nan


def _column(column: str, names: Sequence[str], rows: Rows) -> float:
    """The mean over cases, then over structures, so that a rare structure counts as much."""
    return _mean([_mean(rows[f"{column}:{name}"]) for name in names])


def volume_error(names: Sequence[str], rows: Rows) -> float:
    """The mean of |found - true| / true over cases that have the structure, then structures."""
    errors = []
    for name in names:
        true, found = rows[f"true_ml:{name}"], rows[f"volume_ml:{name}"]
        there = true > 0
        errors.append(_mean(np.abs(found[there] - true[there]) / true[there]))
    return _mean(errors)


def recall_and_precision(names: Sequence[str], rows: Rows) -> tuple[float, float]:
    """Lesions that the mask finds, as a share of all there are and of what it marks."""
    there, found, false = (
        float(sum(np.nansum(rows[f"{column}:{name}"]) for name in names))
        for column in ("lesions", "found", "false")
    )
    return (
        found / there if there else np.nan,
        found / (found + false) if found + false else np.nan,
    )


def froc(names: Sequence[str], rows: Rows) -> float:
    """The mean over structures of `lesions.froc`."""
    return _mean(
        [
            lesions.froc(
                rows[f"found_at:{name}"], rows[f"false_at:{name}"], rows[f"lesions:{name}"]
            )
            for name in names
        ]
    )


def choose_thresholds(settings: SegmentationSettings, rows: Rows) -> dict[str, float]:
    """Choose none: a voxel is what it most probably is."""
    return {}


def unpacked(outlines: Array) -> Array:
    """Return outlines (..., H, W / 8) of rows as bool (..., H, W)."""
    return np.unpackbits(outlines, axis=-1).astype(bool)
