"""Between the wire and the graph: a finding's volume in, its kind out."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from pegboard.errors import DataError, RequestError
from pegboard.records import Array, Predictor, Signature, TensorSpec, Thresholds
from pegboard_medical.classification.findings import image_of, shape_of
from pegboard_medical.classification.settings import ClassificationSettings
from pegboard_medical.volumes import Volume

MOST_FINDINGS = 64
"""In one request."""

REMEDY = 'send {"image": "<.nii.gz as base64>"}'


def signature(settings: ClassificationSettings) -> Signature:
    """The box around a finding in; score and class probabilities out."""
    data = settings.data
    is_ct = data.modality == "ct"
    return Signature(
        inputs=(
            TensorSpec(
                name="image",
                dtype="float32",
                shape=("batch", *shape_of(settings)),
                low=-1000.0 if is_ct else -3.0,
                high=1000.0 if is_ct else 3.0,
                unit="HU" if is_ct else "",
                description="The box around the finding, by slice, row and column, towards head, "
                "back and left, data.spacing apart.",
            ),
        ),
        outputs=(
            TensorSpec(
                name="score",
                dtype="float32",
                shape=("batch",),
                low=0.0,
                high=1.0,
                description=f"Probability that it is not {data.classes[0]}.",
            ),
            TensorSpec(
                name="probabilities",
                dtype="float32",
                shape=("batch", len(data.classes)),
                low=0.0,
                high=1.0,
                channels=data.classes,
                description="Probability of each class; they add up to one.",
            ),
        ),
        request={"image": _example(data.modality)},
    )


@lru_cache
def _example(modality: str) -> str:
    """Return a small volume as base64: a ball in what surrounds it."""
    from pegboard_medical.nifti import nifti_bytes

    depth, height, width = np.mgrid[-8:8, -16:16, -16:16]
    ball = (2 * depth) ** 2 + height**2 + width**2 < 36
    inside, outside = (30, -850) if modality == "ct" else (300, 100)
    affine = np.zeros((4, 4))
    # Columns: slice, row, column; rows: x, y, z.
    affine[[2, 1, 0, 3], [0, 1, 2, 3]] = (2.0, 1.0, 1.0, 1.0)
    voxels = np.where(ball, inside, outside).astype(np.int16)
    return base64.b64encode(nifti_bytes(Volume(voxels=voxels, affine=affine))).decode()


# --- Requests -------------------------------------------------------------------------------------


def decode(settings: ClassificationSettings, payload: Any) -> dict[str, Array]:
    """Read the findings of a request.

    Args:
        settings: The project's settings.
        payload: `{"image": "<.nii.gz as base64>"}`, or `{"images": [...]}` for several; the finding
            lies in the middle of each volume.

    Raises:
        RequestError: Names the volume that is wrong. Its content is not repeated.
    """
    if not isinstance(payload, Mapping):
        raise RequestError("the request is no object", where="request", remedy=REMEDY)
    if set(payload) not in ({"image"}, {"images"}):
        raise RequestError(
            "the request holds neither 'image' nor 'images' alone", where="request", remedy=REMEDY
        )
    if "image" in payload:
        volumes = [_volume(payload["image"], "'image'")]
    else:
        texts = payload["images"]
        if not isinstance(texts, Sequence) or isinstance(texts, str):
            raise RequestError("'images' is no list", where="'images'", remedy=REMEDY)
        if not 1 <= len(texts) <= MOST_FINDINGS:
            raise RequestError(
                f"there are {len(texts)} volumes",
                where="'images'",
                remedy=f"send 1 to {MOST_FINDINGS}",
            )
        volumes = [_volume(text, f"images[{place}]") for place, text in enumerate(texts)]
    return {"image": np.stack([image_of(settings, volume) for volume in volumes])}


def _volume(text: Any, where: str) -> Volume:
    from pegboard_medical.nifti import volume_from_bytes

    if not isinstance(text, str) or not text:
        raise RequestError("the volume is no text", where=where, remedy=REMEDY)
    try:
        volume = volume_from_bytes(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        raise RequestError("the volume is not base64", where=where, remedy=REMEDY) from None
    except DataError as error:
        raise RequestError(error.what, where=where, remedy=error.remedy) from None
    if not np.isfinite(volume.voxels).all():
        raise RequestError(
            "the volume holds numbers that are not finite", where=where, remedy="remove them"
        )
    return volume


# --- Inference ------------------------------------------------------------------------------------


def infer(
    settings: ClassificationSettings, predictor: Predictor, inputs: Mapping[str, Array]
) -> Mapping[str, Array]:
    """Judge findings, and their mirror images where asked; the mean counts."""
    image = inputs["image"]
    last = image.ndim - 1
    views = ((), (last,), (last - 1,), (last - 1, last)) if settings.model.mirrored else ((),)
    seen = [predictor({"image": np.ascontiguousarray(np.flip(image, axes))}) for axes in views]
    return {name: np.mean([view[name] for view in seen], axis=0) for name in seen[0]}


def encode(
    settings: ClassificationSettings, outputs: Mapping[str, Array], thresholds: Thresholds
) -> list[dict[str, Any]]:
    """Say decision, score and probabilities of each finding.

    The decision is a class: the first below the threshold, else the likeliest of the others.
    """
    classes = settings.data.classes
    answers = []
    for score, probabilities in zip(outputs["score"], outputs["probabilities"], strict=True):
        reached = np.float32(score) >= np.float32(thresholds["positive"])
        place = 1 + int(np.argmax(probabilities[1:])) if reached else 0
        answers.append(
            {
                "decision": classes[place],
                "score": round(float(score), 6),
                "probabilities": {
                    name: round(float(value), 6)
                    for name, value in zip(classes, probabilities, strict=True)
                },
            }
        )
    return answers
