from __future__ import annotations

import base64
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pegboard.errors import RequestError
from pegboard.records import Array
from pegboard_medical import deploy
from pegboard_medical.nifti import nifti_bytes, volume_from_bytes
from pegboard_medical.settings import SegmentationData, SegmentationModel, SegmentationSettings
from pegboard_medical.volumes import Volume

SETTINGS = SegmentationSettings(
    data=SegmentationData(spacing=(2.0, 2.0, 2.0)),
    model=SegmentationModel(patch=(16, 16, 16)),
)


def bright(inputs: Mapping[str, Array]) -> dict[str, Any]:
    """Find whatever is brighter than water: a model that needs no training."""
    return {"probabilities": (inputs["image"] > 0)[:, None].astype(np.float32)}


def scan(affine: Array) -> Volume:
    """Air with a block of 12 x 10 x 8 voxels near one corner."""
    voxels = np.full((30, 40, 50), -800, dtype=np.int16)
    voxels[5:17, 6:16, 7:15] = 100
    return Volume(voxels=voxels, affine=affine)


OBLIQUE = np.array(
    [[0.05, 0.1, 0.9, -40.0], [0.1, 1.2, -0.07, 25.0], [2.4, -0.1, 0.03, 7.0], [0, 0, 0, 1.0]]
)
SAGITTAL = np.array(
    [[-2.0, 0, 0, 10.0], [0, 0, 1.0, 0.0], [0, -1.5, 0, 5.0], [0, 0, 0, 1.0]], dtype=np.float64
)


@pytest.mark.parametrize("affine", [OBLIQUE, SAGITTAL], ids=["oblique", "sagittal"])
def test_a_mask_comes_back_on_the_grid_it_was_asked_of(affine: Array) -> None:
    volume = scan(affine)
    request = {"nifti": base64.b64encode(nifti_bytes(volume)).decode()}
    inputs = deploy.decode(SETTINGS, request)
    outputs = deploy.infer(SETTINGS, bright, inputs)
    answer = deploy.encode(SETTINGS, outputs, {}, request)[0]
    mask = volume_from_bytes(base64.b64decode(answer["nifti"]))
    assert mask.voxels.shape == volume.voxels.shape
    np.testing.assert_allclose(mask.affine, affine, atol=1e-4)
    true = volume.voxels > 0
    dice = 2 * (mask.voxels.astype(bool) & true).sum() / (mask.voxels.sum() + true.sum())
    # Two grids between: the block's faces may move by a part of a voxel.
    assert dice > 0.75
    assert answer["decision"] == "nodule"
    assert answer["lesions"] == {"nodule": 1}
    expected = mask.voxels.sum() * volume.voxel_ml
    assert answer["volume_ml"]["nodule"] == pytest.approx(expected, rel=5e-3)


def test_without_a_request_there_is_an_answer_without_a_mask() -> None:
    outputs = deploy.infer(SETTINGS, bright, deploy.inputs_of(scan(OBLIQUE)))
    answer = deploy.encode(SETTINGS, outputs, {}, None)[0]
    assert set(answer) == {"decision", "volume_ml"}


def test_nothing_found_is_said() -> None:
    empty = scan(OBLIQUE).like(np.full((30, 40, 50), -800, dtype=np.int16))
    outputs = deploy.infer(SETTINGS, bright, deploy.inputs_of(empty))
    assert deploy.encode(SETTINGS, outputs, {}, None)[0] == {
        "decision": "nothing found",
        "volume_ml": {"nodule": 0.0},
    }


def test_the_model_sees_its_own_spacing_and_windows_alone() -> None:
    seen = []

    def note(inputs: Mapping[str, Array]) -> dict[str, Any]:
        seen.append(inputs)
        return bright(inputs)

    deploy.infer(SETTINGS, note, deploy.inputs_of(scan(np.diag([1.0, 1.0, 1.0, 1.0]))))
    assert all(set(inputs) == {"image"} for inputs in seen)
    assert {inputs["image"].shape[1:] for inputs in seen} == {(16, 16, 16)}


def test_a_predictor_of_whole_volumes_gets_one() -> None:
    class Whole:
        whole = True

        def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Any]:
            assert inputs["image"].shape == (1, 30, 40, 50)
            assert inputs["spacing"].shape == (1, 3)
            return bright(inputs)

    inputs = deploy.inputs_of(scan(np.diag([1.0, 1.0, 1.0, 1.0])[[2, 1, 0, 3]]))
    assert deploy.infer(SETTINGS, Whole(), inputs)["probabilities"].any()


def test_small_regions_are_dropped_where_asked() -> None:
    model = SETTINGS.model.model_copy(update={"smallest_mm3": 5000.0})
    settings = SETTINGS.model_copy(update={"model": model})
    outputs = deploy.infer(settings, bright, deploy.inputs_of(scan(OBLIQUE)))
    assert outputs["volume_ml"].tolist() == [[0.0]]


def test_a_zipped_series_comes_back_as_a_dicom_seg(test_data: Path) -> None:
    from pydicom import dcmread

    files = sorted((test_data / "medical" / "msd_hippocampus" / "dicom_crops" / "study1").iterdir())
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as stream:
        for number, file in enumerate(files):
            stream.write(file, f"any/name{len(files) - number}.bin")
    request = {"dicom": base64.b64encode(archive.getvalue()).decode()}
    data = SETTINGS.data.model_copy(update={"modality": "mr", "spacing": (0.0, 0.0, 0.0)})
    settings = SETTINGS.model_copy(update={"data": data})
    outputs = deploy.infer(settings, bright, deploy.decode(settings, request))
    answer = deploy.encode(settings, outputs, {}, request)[0]
    segmentation = dcmread(io.BytesIO(base64.b64decode(answer["dicom_seg"])))
    source = dcmread(files[0], stop_before_pixels=True)
    assert segmentation.Modality == "SEG"
    assert segmentation.StudyInstanceUID == source.StudyInstanceUID
    referenced = segmentation.ReferencedSeriesSequence[0].SeriesInstanceUID
    assert referenced == source.SeriesInstanceUID


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        ([], "no object"),
        ({}, "neither 'nifti' nor 'dicom' alone"),
        ({"nifti": "AAAA", "dicom": "AAAA"}, "neither 'nifti' nor 'dicom' alone"),
        ({"nifti": 7}, "'nifti' is no text"),
        ({"nifti": "not base64!"}, "is not base64"),
        ({"nifti": "U0VDUkVU"}, "'nifti'"),
        ({"dicom": "U0VDUkVU"}, "'dicom'"),
    ],
)
def test_a_bad_request_is_one_sentence_that_repeats_nothing(payload: Any, words: str) -> None:
    with pytest.raises(RequestError) as caught:
        deploy.decode(SETTINGS, payload)
    assert words in str(caught.value)
    assert "SECRET" not in str(caught.value)


def test_a_zip_of_two_series_is_refused(test_data: Path) -> None:
    folder = test_data / "medical" / "msd_hippocampus" / "dicom_crops"
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as stream:
        for number, file in enumerate(sorted(folder.rglob("*.dcm"))):
            stream.write(file, str(number))
    with pytest.raises(RequestError, match=r"holds 3 series.*one at a time"):
        deploy.decode(SETTINGS, {"dicom": base64.b64encode(archive.getvalue()).decode()})
