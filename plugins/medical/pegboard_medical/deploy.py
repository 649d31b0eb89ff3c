"""Between the wire and the graph: a series in, structures in its own space out."""

from __future__ import annotations

import base64
import binascii
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pegboard.errors import DataError, RequestError
from pegboard.records import Array, Predictor, Signature, TensorSpec, Thresholds
from pegboard_medical.intensities import outside_of, scale_of, scaled
from pegboard_medical.masks import components, mask_of, without_small
from pegboard_medical.settings import SegmentationSettings
from pegboard_medical.volumes import (
    Spacing,
    Volume,
    orientation_of,
    oriented,
    resize,
    resized_shape,
)
from pegboard_medical.windows import Windows, axes_of, infer_windows

if TYPE_CHECKING:
    from pydicom import Dataset

    from pegboard_medical.dicom import Series

REMEDY = 'send {"nifti": "<.nii.gz as base64>"} or {"dicom": "<zip of one series as base64>"}'


def signature(settings: SegmentationSettings) -> Signature:
    """A volume in; probabilities of the structures and their volumes out."""
    data, model = settings.data, settings.model
    axes = ("depth", "height", "width")
    is_ct = data.modality == "ct"
    return Signature(
        inputs=(
            TensorSpec(
                name="image",
                dtype="float32",
                shape=("batch", *axes),
                low=-1000.0 if is_ct else 0.0,
                high=1000.0,
                unit="HU" if is_ct else "",
                description="Voxels by slice, row and column, towards head, back and left.",
            ),
            TensorSpec(
                name="spacing",
                dtype="float32",
                shape=("batch", 3),
                low=0.5,
                high=3.0,
                unit="mm",
                infer_only=True,
                description="From voxel to voxel along the three axes.",
            ),
        ),
        outputs=(
            TensorSpec(
                name="probabilities",
                dtype="float32",
                shape=("batch", len(data.classes), *axes),
                low=0.0,
                high=1.0,
                description="Of each structure at each voxel; the rest to one is background.",
            ),
            TensorSpec(
                name="volume_ml",
                dtype="float32",
                shape=("batch", len(data.classes)),
                low=0.0,
                unit="ml",
                channels=data.classes,
                infer_only=True,
                description="Of each structure.",
            ),
        ),
        request={"nifti": base64.b64encode(_example(settings)).decode()},
        window=dict(zip(axes, model.patch, strict=True)),
    )


def _example(settings: SegmentationSettings) -> bytes:
    """Return a small volume: a bright ball in a grey one."""
    from pegboard_medical.nifti import nifti_bytes

    depth, height, width = np.mgrid[-8:8, -8:8, -8:8]
    ball = depth**2 + height**2 + width**2 < 16
    inside, outside = (40, -850) if settings.data.modality == "ct" else (300, 100)
    voxels = np.where(ball, inside, outside).astype(np.int16)
    return nifti_bytes(Volume(voxels=voxels, affine=np.diag([2.0, 2.0, 2.0, 1.0])[_AXES]))


_AXES = [2, 1, 0, 3]
"""A diagonal of (slice, row, column) -> (x, y, z)."""

# --- Requests -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Received:
    """A series as it came."""

    volume: Volume
    """Its voxels on their own grid."""
    sources: Sequence[Dataset] = ()
    """The DICOM files in order of position, without pixels; empty for NIfTI."""


def receive(payload: Any, *, pixels: bool = True) -> Received:
    """Read the series of a request.

    Args:
        payload: `{"nifti": ...}` or `{"dicom": ...}`.
        pixels: Whether voxels are wanted; without them `volume` holds zeros.

    Raises:
        RequestError: It cannot be read. Nothing of its content is repeated.
    """
    if not isinstance(payload, Mapping):
        raise RequestError("the request is no object", where="request", remedy=REMEDY)
    if set(payload) not in ({"nifti"}, {"dicom"}):
        raise RequestError(
            "the request holds neither 'nifti' nor 'dicom' alone", where="request", remedy=REMEDY
        )
    field = next(iter(payload))
    content = _decoded(payload[field], field)
    try:
        return _read_nifti(content) if field == "nifti" else _read_dicom(content, pixels)
    except DataError as error:
        raise RequestError(error.what, where=f"'{field}'", remedy=error.remedy) from None


def _decoded(text: Any, field: str) -> bytes:
    if not isinstance(text, str):
        raise RequestError(f"'{field}' is no text", where=f"'{field}'", remedy=REMEDY)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(f"'{field}' is not base64", where=f"'{field}'", remedy=REMEDY) from None


def _read_nifti(content: bytes) -> Received:
    from pegboard_medical.nifti import volume_from_bytes

    return Received(volume=volume_from_bytes(content))


def _read_dicom(content: bytes, pixels: bool) -> Received:
    from pegboard_medical.dicom import group_series, unpacked

    with tempfile.TemporaryDirectory() as folder:
        inside = unpacked(content, Path(folder)).rglob("*")
        every = group_series(sorted(path for path in inside if path.is_file()))
        volumes = [series for series in every if series.is_volume]
        if len(volumes) != 1:
            raise DataError(f"the zip holds {len(volumes)} series", remedy="send one at a time")
        return received_of(volumes[0], pixels=pixels)


def received_of(series: Series, *, pixels: bool = True) -> Received:
    """Read a DICOM series with what an answer has to refer to.

    Raises:
        DataError: Its slices do not make a volume.
    """
    from pydicom import dcmread

    from pegboard_medical.dicom import affine_of, quiet, read_series

    with quiet():
        sources = [dcmread(file, stop_before_pixels=True, force=True) for file in series.files]
    if pixels:
        return Received(volume=read_series(series), sources=sources)
    # What is answered has the grid of the series and none of its grey.
    shape = (len(series.slices), *series.slices[0].shape)
    volume = Volume(
        voxels=np.zeros(shape, dtype=np.uint8),
        affine=affine_of(sources),
        modality=series.modality,
    )
    return Received(volume=volume, sources=sources)


def decode(settings: SegmentationSettings, payload: Any) -> dict[str, Array]:
    """Read the series of a request as the signature's inputs."""
    return inputs_of(receive(payload).volume)


def inputs_of(volume: Volume) -> dict[str, Array]:
    """Return a volume as the signature's inputs, a batch of one."""
    turned = oriented(volume)
    return {
        "image": np.ascontiguousarray(turned.voxels, dtype=np.float32)[None],
        "spacing": np.array(turned.spacing, dtype=np.float32)[None],
    }


# --- Inference ------------------------------------------------------------------------------------


def infer(
    settings: SegmentationSettings, predictor: Predictor, inputs: Mapping[str, Array]
) -> Mapping[str, Array]:
    """Bring volumes to the model's grid, run windows of them and bring back what is found.

    A predictor with an attribute `whole`, as a baseline's, is given the volume as it is.
    """
    records = [
        _infer_one(settings, predictor, image, spacing)
        for image, spacing in zip(inputs["image"], inputs["spacing"], strict=True)
    ]
    return {name: np.stack([record[name] for record in records]) for name in records[0]}


def _infer_one(
    settings: SegmentationSettings, predictor: Predictor, image: Array, spacing: Array
) -> dict[str, Array]:
    depth, height, width = (float(step) for step in spacing)
    sides: Spacing = (depth, height, width)
    if getattr(predictor, "whole", False):
        found = predictor({"image": image[None], "spacing": spacing[None]})["probabilities"][0]
    else:
        found = _probabilities(settings, predictor, image, sides)
    mask = without_small(mask_of(found), sides, settings.model.smallest_mm3)
    counts = np.bincount(mask.ravel(), minlength=len(found) + 1)[1:]
    millilitres = counts * (depth * height * width / 1000)
    return {"probabilities": found, "volume_ml": millilitres.astype(np.float32)}


def _probabilities(
    settings: SegmentationSettings, predictor: Predictor, image: Array, spacing: Spacing
) -> Array:
    """Return float32 (K, D, H, W) on the grid of `image`."""
    data, model = settings.data, settings.model
    grid = resized_shape(image.shape, spacing, data.spacing)
    scale = scale_of(image, data.modality)
    windows = Windows(
        shape=model.patch,
        overlap=model.overlap,
        at_once=model.windows,
        skip_below=model.skip_below,
        mirrored=axes_of(model.symmetric) if model.mirrored else (),
    )
    seen = scaled(resize(image, grid), scale)
    outside = float(scaled(np.array(outside_of(scale)), scale))
    found = infer_windows(predictor, seen, windows, outside=outside)
    if grid == image.shape:
        return found
    return np.stack([resize(one, image.shape) for one in found])


# --- Answers --------------------------------------------------------------------------------------


def encode(
    settings: SegmentationSettings,
    outputs: Mapping[str, Array],
    thresholds: Thresholds,
    request: Any,
) -> list[dict[str, Any]]:
    """Say which structures were found, how large they are and, to a request, where.

    The mask goes back as it came: to NIfTI as NIfTI on the same grid, to DICOM as a DICOM-SEG that
    refers to the series.
    """
    received = None if request is None else receive(request, pixels=False)
    return [
        _answer(settings, {name: array[index] for name, array in outputs.items()}, received)
        for index in range(len(outputs["probabilities"]))
    ]


def _answer(
    settings: SegmentationSettings, outputs: Mapping[str, Array], received: Received | None
) -> dict[str, Any]:
    classes = settings.data.classes
    volumes = dict(zip(classes, outputs["volume_ml"], strict=True))
    found = [name for name, millilitres in volumes.items() if millilitres > 0]
    answer: dict[str, Any] = {
        "decision": ", ".join(found) or "nothing found",
        "volume_ml": {name: round(float(value), 4) for name, value in volumes.items()},
    }
    if received is None:
        return answer
    mask = placed_mask(settings, outputs["probabilities"], received.volume)
    if settings.model.lesions:
        answer["lesions"] = {
            name: components(mask == label)[1] for label, name in enumerate(classes, start=1)
        }
    answer |= _as_it_came(mask, received, classes)
    return answer


def placed_mask(settings: SegmentationSettings, probabilities: Array, volume: Volume) -> Array:
    """Return the mask uint8 (D, H, W) of a volume on its own grid.

    Args:
        settings: The project's settings.
        probabilities: (K, D, H, W) as `infer` returned them, turned as models see.
        volume: As it was read.
    """
    turned = oriented(volume)
    mask = without_small(mask_of(probabilities), turned.spacing, settings.model.smallest_mm3)
    return np.ascontiguousarray(orientation_of(volume.affine).undo(mask))


def _as_it_came(mask: Array, received: Received, classes: Sequence[str]) -> dict[str, str]:
    if received.sources:
        from pegboard_medical.dicom_seg import seg_bytes

        if not mask.any():
            return {}
        return {"dicom_seg": base64.b64encode(seg_bytes(mask, received.sources, classes)).decode()}
    from pegboard_medical.nifti import nifti_bytes

    return {"nifti": base64.b64encode(nifti_bytes(received.volume.like(mask))).decode()}
