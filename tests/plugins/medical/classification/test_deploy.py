"""A finding in, its kind out; what serves it needs no torch."""

from __future__ import annotations

import base64
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from pegboard.errors import RequestError
from pegboard.records import Array
from pegboard.signatures import validate
from pegboard_medical.classification import deploy
from pegboard_medical.classification.settings import ClassificationSettings
from pegboard_medical.nifti import nifti_bytes

from .conftest import ball, volume_of


def settings(**tables: Any) -> ClassificationSettings:
    return ClassificationSettings.model_validate(tables)


def sent(radius: float = 5.0) -> str:
    voxels = np.where(ball((12, 30, 30), radius), 30, -850).astype(np.int16)
    return base64.b64encode(nifti_bytes(volume_of(voxels))).decode()


@pytest.mark.parametrize("modality", ["ct", "mr"])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_the_example_request_becomes_what_the_signature_says(
    modality: str, dimensions: int
) -> None:
    asked = settings(data={"modality": modality}, model={"dimensions": dimensions})
    signature = deploy.signature(asked)
    validate(deploy.decode(asked, signature.request), signature)
    assert len(signature.request["image"]) < 2000


def test_several_findings_make_a_batch_in_their_order() -> None:
    both = deploy.decode(settings(), {"images": [sent(3.0), sent(8.0)]})["image"]
    assert both.shape == (2, 16, 32, 32)
    assert (both[0] > -400).sum() < (both[1] > -400).sum()
    alone = deploy.decode(settings(), {"image": sent(8.0)})["image"]
    assert np.array_equal(both[1], alone[0])


@pytest.mark.parametrize(
    ("payload", "where"),
    [
        (None, "request"),
        ([], "request"),
        ({}, "request"),
        ({"image": sent(), "images": [sent()]}, "request"),
        ({"image": 3}, "'image'"),
        ({"image": "Miller^Anna"}, "'image'"),
        ({"image": base64.b64encode(b"Miller^Anna").decode()}, "'image'"),
        ({"images": sent()}, "'images'"),
        ({"images": []}, "'images'"),
        ({"images": [sent()] * 65}, "'images'"),
        ({"images": [sent(), "AAAA"]}, "images[1]"),
    ],
)
def test_what_is_no_finding_is_refused_and_not_repeated(payload: Any, where: str) -> None:
    with pytest.raises(RequestError) as refused:
        deploy.decode(settings(), payload)
    assert refused.value.where == where
    assert "Anna" not in str(refused.value)


def test_numbers_that_are_not_finite_are_refused() -> None:
    voxels = np.zeros((4, 8, 8), dtype=np.float32)
    voxels[0, 0, 0] = np.nan
    text = base64.b64encode(nifti_bytes(volume_of(voxels))).decode()
    with pytest.raises(RequestError, match="finite"):
        deploy.decode(settings(), {"image": text})


def corner(inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Judge by one corner, so that mirror images differ."""
    score = inputs["image"][(slice(None), *[0] * (inputs["image"].ndim - 1))]
    return {"score": score, "probabilities": np.stack([1 - score, score], axis=1)}


@pytest.mark.parametrize("dimensions", [2, 3])
def test_mirror_images_are_judged_too(dimensions: int) -> None:
    shape = (2, 16, 32, 32)[:1] + (16, 32, 32)[3 - dimensions :]
    image = np.random.default_rng(0).random(shape, dtype=np.float32)
    plain = settings(model={"mirrored": False, "dimensions": dimensions})
    both = settings(model={"dimensions": dimensions})
    assert np.array_equal(deploy.infer(plain, corner, {"image": image})["score"], corner_of(image))
    corners = [
        corner_of(np.flip(image, axes)) for axes in ((), (-1,), (-2,), (-2, -1))
    ]  # A slice is never turned upside down: above and below are told apart.
    mean = deploy.infer(both, corner, {"image": image})["score"]
    assert np.allclose(mean, np.mean(corners, axis=0))
    assert mean.dtype == np.float32


def corner_of(image: Array) -> Array:
    return corner({"image": image})["score"]


def test_an_answer_names_the_likeliest_class_on_its_side_of_the_threshold() -> None:
    asked = settings(data={"classes": ["none", "cyst", "tumour"]})
    outputs = {
        "score": np.array([0.2, 0.4], dtype=np.float32),
        "probabilities": np.array([[0.8, 0.1, 0.1], [0.6, 0.1, 0.3]], dtype=np.float32),
    }
    harmless, tumour = deploy.encode(asked, outputs, {"positive": 0.3})
    assert harmless["decision"] == "none"
    assert tumour == {
        "decision": "tumour",
        "score": 0.4,
        "probabilities": {"none": 0.6, "cyst": 0.1, "tumour": 0.3},
    }


def test_describing_and_serving_it_import_no_heavy_library() -> None:
    code = """
import sys
from pegboard_medical.classification import deploy, hooks
settings = hooks.settings_type()()
signature = hooks.signature(settings)
inputs = deploy.decode(settings, signature.request)
print(*sorted({"torch", "monai", "sklearn", "matplotlib"} & set(sys.modules)))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == ""
