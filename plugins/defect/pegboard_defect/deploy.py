"""Between the wire and the graph: a picture in, a decision with its place out."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pegboard.errors import RequestError
from pegboard.records import Array, Predictor, Signature, TensorSpec, Thresholds
from pegboard_defect.images import as_png, channels_of, decode_base64, prepared, region_of
from pegboard_defect.settings import DefectSettings
from pegboard_defect.tiling import infer_tiled

MOST_PICTURES = 64
"""In one request."""
REGIONS = 10
"""The largest ones of a part that an answer names."""
FEWEST_PIXELS = 4
"""Smaller regions are not named."""


def outputs_of(settings: DefectSettings) -> tuple[str, ...]:
    """Name what the deployable returns."""
    every = ("score", "map", "probabilities")
    return every[:2] if settings.model.task == "anomaly" else every


def signature(settings: DefectSettings) -> Signature:
    """A picture in; score, map and class probabilities out."""
    data = settings.data
    axes: tuple[int | str, int | str] = ("height", "width") if data.tile else data.size
    specs = {
        "score": TensorSpec(
            name="score",
            dtype="float32",
            shape=("batch",),
            low=0.0,
            high=1.0,
            description="How sure it is that the part is defective.",
        ),
        "map": TensorSpec(
            name="map",
            dtype="float32",
            shape=("batch", *axes),
            low=0.0,
            high=1.0,
            description="The same for every place of the picture.",
        ),
        "probabilities": TensorSpec(
            name="probabilities",
            dtype="float32",
            shape=("batch", len(data.classes)),
            low=0.0,
            high=1.0,
            channels=data.classes,
            description="Probability of each class; they add up to one.",
        ),
    }
    return Signature(
        inputs=(
            TensorSpec(
                name="image",
                dtype="uint8",
                shape=("batch", *axes, channels_of(data)),
                low=0,
                high=255,
                description="The picture, grey or red, green, blue.",
            ),
        ),
        outputs=tuple(specs[name] for name in outputs_of(settings)),
        request={"image": base64.b64encode(as_png(example_picture(data.size))).decode()},
        window={"height": data.tile, "width": data.tile} if data.tile else {},
    )


def example_picture(size: tuple[int, int]) -> Array:
    """Return a smooth surface with a scratch, uint8 (H, W): an example that is small as PNG."""
    height, width = size
    rows, columns = np.mgrid[0:height, 0:width]
    surface = 120 + 40 * rows // height + 20 * columns // width
    scratch = np.abs(rows - height * 0.3 - 0.4 * columns) < max(1, height / 100)
    return np.where(scratch, 30, surface).astype(np.uint8)


def decode(settings: DefectSettings, payload: Any) -> dict[str, Array]:
    """Read the pictures of a request.

    Args:
        settings: The project's settings.
        payload: `{"image": "<PNG or JPEG as base64>"}`, or `{"images": [...]}` for several.

    Raises:
        RequestError: Names the picture that is wrong. Its content is not repeated.
    """
    remedy = 'send {"image": "<PNG or JPEG as base64>"}'
    if not isinstance(payload, Mapping):
        raise RequestError("the request is no object", where="request", remedy=remedy)
    unknown = next((name for name in payload if name not in ("image", "images")), None)
    if unknown is not None:
        raise RequestError("there is an unknown field", where="request", remedy=remedy)
    if "images" in payload:
        texts = payload["images"]
        if not isinstance(texts, Sequence) or isinstance(texts, str) or "image" in payload:
            raise RequestError("'images' is no list", where="'images'", remedy=remedy)
        if not 1 <= len(texts) <= MOST_PICTURES:
            raise RequestError(
                f"there are {len(texts)} pictures",
                where="'images'",
                remedy=f"send 1 to {MOST_PICTURES}",
            )
        pictures = [decode_base64(text, f"images[{i}]") for i, text in enumerate(texts)]
    else:
        pictures = [decode_base64(payload.get("image"), "'image'")]
    return {"image": np.stack([prepared(picture, settings.data) for picture in pictures])}


MIRRORED: tuple[tuple[int, ...], ...] = ((), (1,), (2,), (1, 2))
"""Axes that a batch of pictures (B, H, W, C) is flipped along, one after another."""


def infer(
    settings: DefectSettings, predictor: Predictor, inputs: Mapping[str, Array]
) -> Mapping[str, Array]:
    """Run the predictor on whole pictures or on tiles, and on their mirror images where asked.

    Nothing outside the region counts.
    """
    data, image = settings.data, inputs["image"]
    views = MIRRORED if settings.model.mirrored else MIRRORED[:1]
    seen = [_infer_flipped(settings, predictor, image, axes) for axes in views]
    outputs = dict(seen[0])
    if len(seen) > 1:
        outputs = {name: np.mean([view[name] for view in seen], axis=0) for name in outputs}
    inside = region_of(data)
    if inside is not None:
        outputs["map"] = outputs["map"] * inside
    return outputs


def _infer_flipped(
    settings: DefectSettings, predictor: Predictor, image: Array, axes: tuple[int, ...]
) -> Mapping[str, Array]:
    """Run the predictor on flipped pictures; the map is flipped back."""
    data = settings.data
    flipped = np.flip(image, axes) if axes else image
    if data.tile:
        outputs = infer_tiled(predictor, flipped, tile=data.tile, overlap=data.overlap)
    else:
        outputs = dict(predictor({"image": np.ascontiguousarray(flipped)}))
    if axes:
        outputs["map"] = np.flip(outputs["map"], axes)
    return outputs


def encode(
    settings: DefectSettings, outputs: Mapping[str, Array], thresholds: Thresholds
) -> list[dict[str, Any]]:
    """Say decision, score, class and place of each part."""
    count = len(outputs["score"])
    return [
        _answer(settings, {name: array[index] for name, array in outputs.items()}, thresholds)
        for index in range(count)
    ]


def _answer(
    settings: DefectSettings, outputs: Mapping[str, Array], thresholds: Thresholds
) -> dict[str, Any]:
    score = float(outputs["score"])
    rejected = score >= thresholds["defect"]
    answer: dict[str, Any] = {"decision": "reject" if rejected else "accept"}
    answer["score"] = round(score, 6)
    if "probabilities" in outputs:
        probabilities = outputs["probabilities"]
        classes = settings.data.classes
        # Of a rejected part the most probable defect, even where `good` is more probable still.
        first = 1 if rejected else 0
        answer["class"] = classes[first + int(np.argmax(probabilities[first:]))]
        answer["probabilities"] = {
            name: round(float(value), 6) for name, value in zip(classes, probabilities, strict=True)
        }
    answer["regions"] = regions(outputs["map"], thresholds["pixel"]) if rejected else []
    return answer


def regions(where: Array, threshold: float) -> list[dict[str, Any]]:
    """Return the largest connected regions of a map (H, W), the largest first.

    Returns:
        `box` [left, top, right, bottom] and `area`, as shares of the picture's sides and of its
        area, and `score`, the map's largest value there.
    """
    height, width = where.shape
    found: list[dict[str, Any]] = []
    for rows, columns in _components(where >= threshold):
        if len(rows) < FEWEST_PIXELS:
            continue
        box = [columns.min() / width, rows.min() / height]
        box += [(columns.max() + 1) / width, (rows.max() + 1) / height]
        found.append(
            {
                "box": [round(float(side), 4) for side in box],
                "area": round(len(rows) / where.size, 6),
                "score": round(float(where[rows, columns].max()), 4),
            }
        )
    return sorted(found, key=lambda region: -region["area"])[:REGIONS]


def _components(binary: Array) -> list[tuple[Array, Array]]:
    """Return rows and columns of each 4-connected region of a mask (H, W).

    Runs of each row are joined with the runs above them: a server has no SciPy.
    """
    padded = np.pad(binary.astype(np.int8), ((0, 0), (1, 1)))
    row, edge = np.nonzero(np.diff(padded, axis=1))
    # Edges alternate: a run begins, a run ends.
    rows, begins, ends = row[::2], edge[::2], edge[1::2]
    parent = list(range(len(rows)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = parent[parent[run]]
            run = parent[run]
        return run

    above = 0
    for run in range(len(rows)):
        while above < run and (
            rows[above] < rows[run] - 1
            or (rows[above] == rows[run] - 1 and ends[above] <= begins[run])
        ):
            above += 1
        other = above
        while other < run and rows[other] == rows[run] - 1 and begins[other] < ends[run]:
            parent[root(other)] = root(run)
            other += 1
    groups: dict[int, list[int]] = {}
    for run in range(len(rows)):
        groups.setdefault(root(run), []).append(run)
    return [
        (
            np.concatenate([np.full(ends[run] - begins[run], rows[run]) for run in runs]),
            np.concatenate([np.arange(begins[run], ends[run]) for run in runs]),
        )
        for runs in groups.values()
    ]
