"""What a model sees of a finding: millimetres kept, the middle in the middle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pegboard_medical.classification.findings import fitted, image_of, mask_of, shape_of
from pegboard_medical.classification.settings import ClassificationSettings
from pegboard_medical.intensities import AIR
from pegboard_medical.volumes import Spacing, Volume

from .conftest import ball, volume_of


def settings(**data: Any) -> ClassificationSettings:
    model = {"dimensions": data.pop("dimensions", 3)}
    return ClassificationSettings.model_validate({"data": data, "model": model})


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.5, 0.7, 0.7), (0.6, 0.9, 0.9)])
def test_a_ball_keeps_its_millilitres_whatever_the_scanner_s_spacing(spacing: Spacing) -> None:
    asked = settings(spacing=(2.0, 1.0, 1.0))
    depth, height, width = (round(40 / step) for step in spacing)
    inside = ball((depth, height, width), 9.0, spacing)
    seen = mask_of(asked, volume_of(inside.astype(np.uint8), spacing))
    assert seen.shape == shape_of(asked) == (16, 32, 32)
    assert seen.sum() * 2.0 == pytest.approx(4 / 3 * np.pi * 9**3, rel=0.05)
    middle = np.array([np.average(axis, weights=seen) for axis in np.indices(seen.shape)])
    assert np.abs(middle - (np.array(seen.shape) - 1) / 2).max() < 0.6


def test_beyond_a_small_volume_lies_air() -> None:
    seen = image_of(settings(), volume_of(np.full((4, 10, 10), 40, dtype=np.int16)))
    assert seen.dtype == np.float32
    assert seen[0, 0, 0] == AIR
    # 4 mm are two slices of 2 mm, in the middle of sixteen.
    assert (seen == 40).sum() == 2 * 10 * 10
    assert (seen[7:9, 11:21, 11:21] == 40).all()


def test_what_lies_far_from_the_middle_changes_nothing() -> None:
    voxels = np.random.default_rng(0).integers(-1000, 400, (90, 120, 130)).astype(np.int16)
    near = voxels[10:-10, 20:-20, 20:-20]
    whole = image_of(settings(), volume_of(voxels, (2.0, 0.8, 0.8)))
    part = image_of(settings(), volume_of(near, (2.0, 0.8, 0.8)))
    assert np.array_equal(whole, part)


def test_a_volume_that_lies_otherwise_is_turned_first() -> None:
    voxels = np.random.default_rng(0).integers(-1000, 400, (16, 32, 32)).astype(np.int16)
    upright = volume_of(voxels, (2.0, 1.0, 1.0))
    affine = upright.affine.copy()
    affine[:3, 0] *= -1
    lying = Volume(voxels=voxels[::-1], affine=affine)
    assert np.array_equal(image_of(settings(), lying), image_of(settings(), upright))


def test_of_two_dimensions_the_middle_slice_is_seen() -> None:
    voxels = np.zeros((5, 40, 40), dtype=np.int16)
    voxels[2] = 100
    seen = image_of(settings(dimensions=2), volume_of(voxels, (5.0, 1.0, 1.0)))
    assert seen.shape == (32, 32)
    assert (seen == 100).all()


def test_a_flat_volume_is_a_picture_whichever_way_it_lies() -> None:
    picture = np.random.default_rng(0).integers(0, 100, (32, 32)).astype(np.int16)
    asked = settings(dimensions=2, spacing=(0.0, 0.0, 0.0))
    axial = image_of(asked, volume_of(picture[None]))
    coronal = image_of(asked, volume_of(picture[:, None]))
    assert np.array_equal(axial, picture)
    assert np.array_equal(coronal, picture)


def test_an_mr_is_seen_in_deviations_from_its_mean() -> None:
    voxels = np.random.default_rng(0).normal(300, 50, (16, 32, 32)).astype(np.float32)
    asked = settings(modality="mr", spacing=(1.0, 1.0, 1.0))
    seen, doubled = (image_of(asked, volume_of(factor * voxels)) for factor in (1, 2))
    assert abs(float(seen.mean())) < 0.02
    assert float(seen.std()) == pytest.approx(1, abs=0.02)
    assert np.allclose(seen, doubled, atol=1e-4)


def test_fitting_cuts_and_fills_evenly() -> None:
    cut = fitted(np.arange(5.0)[None, None], (1, 1, 3), 0.0)
    filled = fitted(np.ones((1, 1, 3)), (1, 3, 5), 9.0)
    assert cut.tolist() == [[[1, 2, 3]]]
    assert filled.tolist() == [[[9] * 5, [9, 1, 1, 1, 9], [9] * 5]]
