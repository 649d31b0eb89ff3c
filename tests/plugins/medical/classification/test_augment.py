"""Training findings are placed otherwise, and stay what they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pegboard.records import Sample
from pegboard_medical.classification.augment import change, placement
from pegboard_medical.classification.settings import ClassificationData, ClassificationSettings

from .conftest import ball

NOTHING = {
    "mirror": False,
    "rotation": 0.0,
    "tilt": 0.0,
    "scale": 0.0,
    "shift": 0.0,
    "brightness": 0.0,
    "noise": 0.0,
}


def settings(**data: Any) -> ClassificationSettings:
    return ClassificationSettings(data=ClassificationData(**data))


def sample(radius: float = 6.0) -> Sample:
    inside = ball((16, 32, 32), radius, (2.0, 1.0, 1.0)).astype(np.float32)
    return Sample(
        inputs={"image": inside * 900 - 850},
        targets={"mask": inside, "has_mask": np.float32(1), "label": np.int64(1)},
        key="one",
    )


def test_nothing_is_changed_where_nothing_is_asked_for() -> None:
    before = sample()
    after = change(settings(**NOTHING), before)
    assert np.allclose(after.inputs["image"], before.inputs["image"])
    assert np.allclose(after.targets["mask"], before.targets["mask"])


def test_a_finding_and_its_mask_are_moved_alike_and_keep_their_size() -> None:
    before = sample()
    asked = settings(**{**NOTHING, "mirror": True, "rotation": 180.0, "tilt": 20.0, "shift": 3.0})
    for seed in range(10):
        np.random.seed(seed)
        after = change(asked, before)
        image, mask = after.inputs["image"], after.targets["mask"]
        assert image.dtype == mask.dtype == np.float32
        assert np.allclose(image, mask * 900 - 850, atol=0.1)
        assert mask.sum() == pytest.approx(before.targets["mask"].sum(), rel=0.03)
    assert before.inputs["image"].min() == -850  # The one that is kept in memory.


def test_sizes_change_as_little_as_the_settings_say() -> None:
    data = ClassificationData(**{**NOTHING, "scale": 0.1})
    for seed in range(50):
        np.random.seed(seed)
        matrix, _ = placement(data, (16, 32, 32), np.array([2.0, 1.0, 1.0]))
        assert (np.diag(matrix) >= 1 / 1.1 - 1e-9).all()
        assert (np.diag(matrix) <= 1.1 + 1e-9).all()


def test_a_turn_is_one_in_millimetres_and_not_in_voxels() -> None:
    data = ClassificationData(**{**NOTHING, "rotation": 180.0, "tilt": 90.0})
    step = np.array([2.0, 1.0, 0.5])
    for seed in range(20):
        np.random.seed(seed)
        matrix, offset = placement(data, (16, 32, 64), step)
        turn = matrix * step[:, None] / step[None, :]
        assert np.allclose(turn @ turn.T, np.eye(3))
        middle = (np.array([16, 32, 64]) - 1) / 2
        assert np.allclose(matrix @ middle + offset, middle)


def test_brightness_and_noise_are_shares_of_the_window() -> None:
    flat = Sample(
        inputs={"image": np.zeros((16, 32, 32), dtype=np.float32)},
        targets={"has_mask": np.float32(0)},
    )
    np.random.seed(0)
    brighter = change(settings(**{**NOTHING, "brightness": 0.1}), flat).inputs["image"]
    assert np.ptp(brighter) == 0
    assert 0 < abs(brighter[0, 0, 0]) <= 140
    noisy = change(settings(**{**NOTHING, "noise": 0.01}), flat).inputs["image"]
    assert 0 < noisy.std() <= 14.5


def test_pictures_are_changed_too() -> None:
    asked = ClassificationSettings.model_validate({"model": {"dimensions": 2}})
    picture = Sample(
        inputs={"image": np.random.default_rng(0).random((32, 32), dtype=np.float32)},
        targets={"mask": np.zeros((32, 32), dtype=np.float32), "has_mask": np.float32(1)},
    )
    np.random.seed(0)
    after = change(asked, picture)
    assert after.inputs["image"].shape == after.targets["mask"].shape == (32, 32)
    assert not np.allclose(after.inputs["image"], picture.inputs["image"])
