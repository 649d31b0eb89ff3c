"""Between the wire and the graph: a scan in, objects out. Nothing here needs Open3D or torch."""

from __future__ import annotations

import base64
import binascii
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from pegboard.errors import DataError, RequestError
from pegboard.records import Array, Predictor, Signature, TensorSpec, Thresholds
from pegboard_lidar.decoding import BOX_CHANNELS, VELOCITY, Detections, detect
from pegboard_lidar.grid import pillars_of
from pegboard_lidar.scans import finite, scan_from_bytes
from pegboard_lidar.settings import LidarSettings

REMEDY = (
    'send {"points": [[x, y, z, reflectance], ...]} or {"scan": "<file as base64>", "format": '
    '"bin"}, the format being bin, pcd, ply, las, laz or npy'
)


def signature(settings: LidarSettings) -> Signature:
    """A scan in; maps of the objects' middles and boxes out."""
    data, cells = settings.data, pillars_of(settings)
    reach = float(np.abs(data.range).max())
    channels = VELOCITY.stop if settings.model.velocity else BOX_CHANNELS
    return Signature(
        inputs=(
            TensorSpec(
                name="points",
                dtype="float32",
                shape=("batch", "points", 4),
                channels=("x", "y", "z", "reflectance"),
                channel_units=("m", "m", "m", ""),
                channel_ranges=(
                    (data.range[0], data.range[3]),
                    (data.range[1], data.range[4]),
                    (data.range[2], data.range[5]),
                    (0.0, 1.0),
                ),
                # Scanners write NaN where nothing came back; to the graph it is outside.
                finite=False,
                description=f"As the scanner sent them, within {reach:g} m: x ahead, y to the "
                "left, z up.",
            ),
        ),
        outputs=(
            TensorSpec(
                name="heat",
                dtype="float32",
                shape=("batch", len(data.classes), cells.rows, cells.columns),
                low=0.0,
                high=1.0,
                description="Of each class, how surely an object has its middle in a cell.",
            ),
            TensorSpec(
                name="boxes",
                dtype="float32",
                shape=("batch", channels, cells.rows, cells.columns),
                description="The box of the object in each cell; 'pegboard_lidar.decoding' says "
                "how it is written.",
            ),
        ),
        request={"points": _example().tolist()},
        is_single=True,
    )


def _example() -> Array:
    """Return points of the back of a car, 10 m ahead."""
    across, up = np.meshgrid(np.linspace(-0.8, 0.8, 9), np.linspace(-1.5, -0.3, 5))
    away = 10 + 0.4 * np.maximum(up + 0.8, 0)
    points = np.stack([away, across, up, np.full_like(up, 0.3)], axis=-1).reshape(-1, 4)
    rounded: Array = points.round(3)
    return rounded


# --- Requests -------------------------------------------------------------------------------------


def decode(settings: LidarSettings, payload: Any) -> dict[str, Array]:
    """Read the scan of a request; points that are not finite are left out.

    Raises:
        RequestError: It cannot be read.
    """
    points = finite(_received(payload))
    if not len(points):
        raise RequestError("the scan has no point", where="request", remedy="send one with points")
    return {"points": np.ascontiguousarray(points, dtype=np.float32)[None]}


def _received(payload: Any) -> Array:
    if not isinstance(payload, Mapping):
        raise RequestError("the request is no object", where="request", remedy=REMEDY)
    if set(payload) == {"points"}:
        return _listed(payload["points"])
    if set(payload) == {"scan", "format"}:
        return _file(payload["scan"], payload["format"])
    raise RequestError(
        "the request holds neither 'points' nor 'scan' and 'format'", where="request", remedy=REMEDY
    )


def _listed(rows: Any) -> Array:
    try:
        points = _numbers(rows)
    except (TypeError, ValueError, OverflowError):
        points = np.zeros(0)
    if points.ndim != 2 or points.shape[1] not in (3, 4):
        raise RequestError("'points' is no list of points", where="'points'", remedy=REMEDY)
    return np.pad(points, ((0, 0), (0, 4 - points.shape[1])))


def _numbers(rows: Any) -> Array:
    """Return rows as float32; null is NaN, as a number that float32 has not is infinite."""
    array = np.array(rows)
    if array.dtype.kind not in "iufO":  # Asked for floats, NumPy would also read text.
        raise TypeError
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def _file(text: Any, scan_format: Any) -> Array:
    if not isinstance(text, str) or not isinstance(scan_format, str):
        raise RequestError("'scan' or 'format' is no text", where="'scan'", remedy=REMEDY)
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise RequestError("'scan' is not base64", where="'scan'", remedy=REMEDY) from None
    try:
        return scan_from_bytes(content, scan_format, where="'scan'")
    except DataError as error:
        raise RequestError(error.what, where="'scan'", remedy=error.remedy) from None


# --- Inference ------------------------------------------------------------------------------------


def infer(predictor: Predictor, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Run the scans of a batch one by one: they differ in length, and NaN pads the shorter."""
    records = [predictor({"points": points}) for points in inputs["points"]]
    return {name: np.stack([record[name] for record in records]) for name in records[0]}


# --- Answers --------------------------------------------------------------------------------------


def encode(
    settings: LidarSettings, outputs: Mapping[str, Array], thresholds: Thresholds
) -> list[dict[str, Any]]:
    """Say which objects were found above their class's score, and where."""
    count = len(next(iter(outputs.values())))
    return [
        _answer(
            settings,
            reported(settings, {name: array[index] for name, array in outputs.items()}, thresholds),
        )
        for index in range(count)
    ]


def reported(
    settings: LidarSettings, outputs: Mapping[str, Array], thresholds: Thresholds
) -> Detections:
    """Return the objects of one scan above the scores that the validation split chose."""
    found = detect(settings, outputs)
    least = np.array([thresholds.get(f"score_{name}", 0.0) for name in settings.data.classes])
    return found.at(found.scores >= least[found.labels])


def _answer(settings: LidarSettings, found: Detections) -> dict[str, Any]:
    names = [settings.data.classes[label] for label in found.labels]
    counts = Counter(names)
    objects: list[dict[str, Any]] = [
        {
            "class": name,
            "score": round(float(score), 4),
            "box": dict(zip(_BOX, (round(float(value), 3) for value in box), strict=True)),
        }
        for name, score, box in zip(names, found.scores, found.boxes, strict=True)
    ]
    if found.velocity is not None:
        for one, velocity in zip(objects, found.velocity, strict=True):
            one["velocity"] = [round(float(value), 2) for value in velocity]
    words = [f"{counts[name]} {name}" for name in settings.data.classes if counts[name]]
    return {"decision": ", ".join(words) or "nothing found", "objects": objects}


_BOX = ("x", "y", "z", "length", "width", "height", "yaw")
