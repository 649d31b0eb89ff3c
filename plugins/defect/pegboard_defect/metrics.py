"""What an inspector is worth: ranking, escapes and overkill, what mistakes cost, and places.

Every metric is a pure function of the rows of an evaluation, one row a picture, see `tabulate`. It
is NaN where it is not defined. A picture is rejected where its score reaches the threshold
`defect`; an escape is a defective one that is not, overkill a good one that is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import numpy as np

from pegboard import ranking
from pegboard.records import Array, Batch, Metric, Rows, Thresholds
from pegboard_defect import pixels
from pegboard_defect.images import peaks, region_of
from pegboard_defect.settings import DefectSettings

SIDE = 32
"""Height and width of the coarse map that a row keeps."""

REJECTED_GOOD = 0.01
"""Share of good parts that is rejected where the validation split has no defective one."""

MARKED_GOOD = 0.001
"""Share of good pixels that is marked where the validation split has no defective one."""

UNDECIDED = 0.5
"""The threshold where nothing can be learnt from the rows."""


# --- Rows -----------------------------------------------------------------------------------------


def tabulate(
    settings: DefectSettings, batch: Batch, outputs: Mapping[str, Array]
) -> dict[str, Array]:
    """Keep what metrics and figures need of a batch of B pictures.

    Returns:
        `score` (B,) float32; `defective` (B,) 0 or 1; `label` and `predicted` (B,), class indices;
        `lot`, `part`, `key` (B,) text; `heat` (B, 32, 32) uint8, the map's largest values; and the
        counts of `pixels.pixel_columns`. A picture without a part is one of its own. Where the
        model names no class, `predicted` is 1 from a score of 0.5 on.
    """
    targets = batch.targets
    score = np.asarray(outputs["score"], dtype=np.float32)
    defective = np.asarray(targets["defective"]) >= 0.5
    keys = np.array(list(batch.keys), dtype=str)
    part = _text(targets, "part", len(score))
    return {
        "score": score,
        "defective": defective.astype(np.int64),
        "label": classes_of(np.asarray(targets["label"]), defective),
        "predicted": _predicted(outputs, score),
        "lot": _text(targets, "lot", len(score)),
        "part": np.where(part == "", keys, part),
        "key": keys,
        **_map_columns(settings, targets, outputs, defective),
    }


def classes_of(label: Array, defective: Array) -> Array:
    """Return class indices (B,): the likeliest defect of what is defective, else 0."""
    classes: Array = np.where(defective, 1 + label[:, 1:].argmax(axis=1), 0)
    return classes


def _predicted(outputs: Mapping[str, Array], score: Array) -> Array:
    if "probabilities" in outputs:
        predicted: Array = np.asarray(outputs["probabilities"]).argmax(axis=1)
        return predicted
    return (score >= UNDECIDED).astype(np.int64)


def _text(targets: Mapping[str, Any], name: str, count: int) -> Array:
    return np.array(list(targets.get(name, [""] * count)), dtype=str)


def _map_columns(
    settings: DefectSettings,
    targets: Mapping[str, Any],
    outputs: Mapping[str, Array],
    defective: Array,
) -> dict[str, Array]:
    if "map" not in outputs:  # A baseline may say that without saying where.
        heat = np.zeros((len(defective), SIDE, SIDE), dtype=np.uint8)
        return {"heat": heat, **pixels.empty_columns(len(defective))}
    values = np.asarray(outputs["map"], dtype=np.float32)
    # A good part has no defective pixel, whether or not someone has drawn an empty mask of it.
    known = (np.asarray(targets["has_mask"]) > 0) | ~defective
    counts = pixels.pixel_columns(
        values, np.asarray(targets["mask"]), known, region_of(settings.data)
    )
    return {"heat": coarse(values), **counts}


def coarse(maps: Array) -> Array:
    """Return the largest value of each of 32 x 32 places, as uint8: a small defect stays seen."""
    return np.asarray((peaks(maps, SIDE) * 255).round().clip(0, 255), dtype=np.uint8)


# --- The list -------------------------------------------------------------------------------------


def build(settings: DefectSettings) -> list[Metric]:
    """Return the metrics of the task, the headline first."""
    if settings.model.task == "segment":
        return [_iou(), _pixel_f1(), _aupro(), _roc_auc(), *_mistakes()]
    if settings.model.task == "anomaly":
        return [_roc_auc(headline=True), _aupro(), _pixel_auroc(), _f1(), *_mistakes()]
    return [
        _roc_auc(headline=True),
        _ranked("average_precision", average_precision, "Mean precision over all recalls."),
        _ranked("accuracy", accuracy, "Share decided right at a score of 0.5.", unit="share"),
        *([_balanced_accuracy()] if len(settings.data.classes) > 2 else []),
        *_mistakes(),
        _cost(settings),
        *([_pixel_auroc()] if settings.model.mask_weight else []),
    ]


def _metric(
    name: str,
    compute: Callable[[Rows, Thresholds], float],
    description: str,
    *,
    direction: Literal["higher", "lower"] = "higher",
    headline: bool = False,
    unit: str = "",
) -> Metric:
    """A metric whose interval draws the pictures of a part together."""
    return Metric(
        name=name,
        compute=compute,
        direction=direction,
        headline=headline,
        unit=unit,
        group="part",
        description=description,
    )


def _ranked(name: str, compute: Callable[[Rows], float], description: str, **more: Any) -> Metric:
    """A metric that needs no threshold."""
    return _metric(name, lambda rows, thresholds: compute(rows), description, **more)


def _roc_auc(*, headline: bool = False) -> Metric:
    description = "How often a defective part scores above a good one."
    return _ranked("roc_auc", roc_auc, description, headline=headline)


def _balanced_accuracy() -> Metric:
    description = "Share of each class that is named right, mean over classes."
    return _ranked("balanced_accuracy", balanced_accuracy, description, unit="share")


def _mistakes() -> list[Metric]:
    return [
        _metric(
            "escape_rate",
            lambda rows, thresholds: escape_and_overkill(rows, thresholds)[0],
            "Share of defective parts that pass at the threshold.",
            direction="lower",
            unit="share",
        ),
        _metric(
            "overkill_rate",
            lambda rows, thresholds: escape_and_overkill(rows, thresholds)[1],
            "Share of good parts that are rejected at the threshold.",
            direction="lower",
            unit="share",
        ),
    ]


def _cost(settings: DefectSettings) -> Metric:
    return _metric(
        "cost",
        partial(cost, settings),
        "What the mistakes at the threshold cost on a hundred parts like these.",
        direction="lower",
    )


def _f1() -> Metric:
    return _metric("f1", f1, "Harmonic mean of precision and recall at the threshold.")


def _pixel_auroc() -> Metric:
    description = "How often a defective pixel lies above a good one, where masks are known."
    return _ranked("pixel_auroc", pixels.pixel_auroc, description)


def _aupro() -> Metric:
    return _ranked(
        "aupro",
        pixels.aupro,
        "Mean share of a defect's region that is marked while up to 30 % of good pixels are.",
    )


def _iou() -> Metric:
    return _metric(
        "iou",
        lambda rows, thresholds: pixels.iou(rows, thresholds["pixel"]),
        "Pixels marked and defective, as a share of those that are either.",
        headline=True,
    )


def _pixel_f1() -> Metric:
    return _metric(
        "pixel_f1",
        lambda rows, thresholds: pixels.pixel_f1(rows, thresholds["pixel"]),
        "Harmonic mean of precision and recall of the marked pixels.",
    )


# --- Ranking --------------------------------------------------------------------------------------


def trade_off(rows: Rows) -> tuple[Array, Array, Array]:
    """Return every threshold that can be told apart, ascending, and what it lets pass and rejects.

    Returns:
        Thresholds (T,), escape rates (T,) from 0 to 1, overkill rates (T,) from 1 to 0: the first
        threshold rejects every part, the last one none. Rates are NaN without such parts.
    """
    return ranking.rates_at_thresholds(rows["score"], rows["defective"] == 1)


def roc_auc(rows: Rows) -> float:
    """Area under the curve of found defects over overkill; NaN without good or defective parts."""
    return ranking.roc_auc(rows["score"], rows["defective"] == 1)


def average_precision(rows: Rows) -> float:
    """Sum of precision times gain in recall over all thresholds, without interpolation."""
    return ranking.average_precision(rows["score"], rows["defective"] == 1)


# --- Decisions ------------------------------------------------------------------------------------


def rejected(rows: Rows, thresholds: Thresholds) -> Array:
    """Return which rows (N,) are rejected."""
    reached: Array = rows["score"] >= np.float32(thresholds["defect"])
    return reached


def escape_and_overkill(rows: Rows, thresholds: Thresholds) -> tuple[float, float]:
    """Return the share of defective parts that pass and of good ones that are rejected."""
    reached, defective = rejected(rows, thresholds), rows["defective"] == 1
    return _mean(~reached[defective]), _mean(reached[~defective])


def _mean(values: Array) -> float:
    return float(values.mean()) if len(values) else np.nan


def accuracy(rows: Rows) -> float:
    """Share of parts told good or defective rightly at a score of 0.5."""
    return _mean((rows["score"] >= UNDECIDED) == (rows["defective"] == 1))


def balanced_accuracy(rows: Rows) -> float:
    """Share of a class that is named right, mean over the classes that occur."""
    right, label = rows["predicted"] == rows["label"], rows["label"]
    return _mean(np.array([right[label == one].mean() for one in np.unique(label)]))


def f1(rows: Rows, thresholds: Thresholds) -> float:
    """Harmonic mean of precision and recall of rejecting defective parts."""
    reached, defective = rejected(rows, thresholds), rows["defective"] == 1
    if not defective.any():
        return np.nan
    return float(2 * (reached & defective).sum() / (reached.sum() + defective.sum()))


def escape_costs(settings: DefectSettings, rows: Rows) -> Array:
    """Return what it costs if a row passes (N,): by its class, and nothing if it is good."""
    model = settings.model
    costs = [model.escape_costs.get(name, model.escape_cost) for name in settings.data.classes]
    by_row: Array = np.array(costs)[rows["label"]] * (rows["defective"] == 1)
    return by_row


def cost(settings: DefectSettings, rows: Rows, thresholds: Thresholds) -> float:
    """What escapes and overkill cost, on a hundred parts."""
    reached = rejected(rows, thresholds)
    overkill = settings.model.overkill_cost * (rows["defective"] == 0)
    return 100 * _mean(np.where(reached, overkill, escape_costs(settings, rows)))


# --- Thresholds -----------------------------------------------------------------------------------


def choose_thresholds(settings: DefectSettings, rows: Rows) -> dict[str, float]:
    """Choose `defect`, which a part's score has to reach, and `pixel`, the same for its map.

    `pixel` marks pixels with the highest F1. Where the validation split of an anomaly project has
    good parts only, `defect` rejects about 1 % of them (with fewer than a hundred, the one that
    looks worst) and `pixel` marks 0.1 % of their pixels. Without good or without defective parts
    there is nothing else to go by, and it is 0.5.
    """
    defective = rows["defective"] == 1
    if defective.any() and not defective.all():
        defect = _choose_defect(settings, rows)
    elif settings.model.task == "anomaly" and not defective.any() and len(defective):
        defect = float(np.float32(np.quantile(rows["score"], 1 - REJECTED_GOOD)))
    else:
        defect = UNDECIDED
    return {"defect": defect, "pixel": _choose_pixel(settings, rows)}


def _choose_defect(settings: DefectSettings, rows: Rows) -> float:
    if settings.model.threshold == "escape":
        return limited_threshold(rows, settings.model.escape_limit)
    return cheapest_threshold(settings, rows)


def cheapest_threshold(settings: DefectSettings, rows: Rows) -> float:
    """The threshold at which the mistakes on the rows cost least; of several the lowest."""
    overkill_costs = settings.model.overkill_cost * (rows["defective"] == 0)
    return ranking.cheapest_threshold(rows["score"], escape_costs(settings, rows), overkill_costs)


def limited_threshold(rows: Rows, limit: float) -> float:
    """The highest threshold at which at most a share `limit` of the defective parts passes."""
    return ranking.limited_threshold(rows["score"], rows["defective"] == 1, limit)


def _choose_pixel(settings: DefectSettings, rows: Rows) -> float:
    if settings.model.task == "anomaly" and not rows["pixels_defect"].any():
        return pixels.quiet_threshold(rows, MARKED_GOOD)
    return pixels.best_threshold(rows)
