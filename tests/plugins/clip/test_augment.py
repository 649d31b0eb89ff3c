"""What training changes about a picture, and the sheet that shows it."""

from __future__ import annotations

import random

import numpy as np
import pytest

from pegboard.records import Sample
from pegboard_clip import augment as module
from pegboard_clip import data
from pegboard_clip.augment import augment, captioned, change, draw
from pegboard_clip.settings import AugmentSettings, ClipSettings

PICTURE = np.random.default_rng(0).integers(0, 256, (72, 72, 3), dtype=np.uint8)


def asked(**given: float | bool) -> AugmentSettings:
    return AugmentSettings.model_validate({"crop": 1.0, **given})


def test_nothing_is_changed_where_nothing_is_asked_for() -> None:
    assert np.array_equal(change(PICTURE, asked()), PICTURE)


def test_a_crop_keeps_the_share_that_is_asked_for() -> None:
    # A ramp tells what was cut off at each side, and by how much it was stretched.
    ramp = np.repeat(np.arange(0, 216, 3, dtype=np.uint8)[None, :, None], 72, axis=0)
    ramp = np.concatenate([ramp, ramp.swapaxes(0, 1), ramp], axis=2)
    shares = []
    for seed in range(200):
        random.seed(seed)
        cropped = change(ramp, asked(crop=0.5)).astype(float)
        across, down = np.ptp(cropped[36, :, 0]) / 213, np.ptp(cropped[:, 36, 1]) / 213
        assert 0.8 < across / down < 1.25
        shares.append(across * down)
    assert 0.46 < min(shares) < 0.56 and max(shares) > 0.9


def test_the_same_seed_changes_a_picture_alike_and_leaves_the_given_one() -> None:
    before = PICTURE.copy()
    changed = []
    for seed in (1, 1, 2):
        random.seed(seed)
        changed.append(change(PICTURE, asked(crop=0.6, flip=True, colour=0.3)))
    assert np.array_equal(changed[0], changed[1]) and not np.array_equal(changed[0], changed[2])
    assert np.array_equal(PICTURE, before)
    assert all(one.dtype == np.uint8 and one.shape == PICTURE.shape for one in changed)


def test_half_of_the_pictures_are_mirrored_where_that_is_asked_for() -> None:
    random.seed(0)
    mirrored = [
        np.array_equal(change(PICTURE, asked(flip=True)), PICTURE[:, ::-1]) for _ in "x" * 200
    ]
    assert 70 < sum(mirrored) < 130


def test_light_changes_by_the_factor_that_is_asked_for() -> None:
    random.seed(0)
    grey = np.full((8, 8, 3), 100, dtype=np.uint8)
    means = [change(grey, asked(colour=0.2)).mean() for _ in range(200)]
    assert 75 < min(means) < 85 and 118 < max(means) < 128


def test_a_sample_keeps_all_but_its_picture(tiny: ClipSettings) -> None:
    sample = data.load(tiny, "train")[0]
    random.seed(0)
    changed = augment(tiny, sample)
    assert not np.array_equal(changed.inputs["image"], sample.inputs["image"])
    assert changed.inputs["tokens"] is sample.inputs["tokens"]
    assert changed.targets == sample.targets and changed.key == sample.key


def test_the_sheet_shows_a_picture_with_its_caption(tiny: ClipSettings) -> None:
    dataset = data.load(tiny, "train")
    drawn = [draw(tiny, dataset[index]) for index in range(2)]
    assert drawn[0].shape[1:] == (144, 3) and drawn[0].shape[0] > 150
    assert (drawn[0][144:] < 128).any()
    # The same picture, another caption.
    height = min(len(one) for one in drawn)
    assert np.array_equal(drawn[0][:144], drawn[1][:144])
    assert not np.array_equal(drawn[0][144:height], drawn[1][144:height])


@pytest.mark.parametrize("caption", ["word " * 60, "x" * 500, "一颗星星", ""])
def test_any_caption_is_drawn(caption: str) -> None:
    assert captioned(PICTURE, caption).shape[1:] == (144, 3)


def test_letters_that_no_font_has_are_spelt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHINESE_FONTS", ())
    module._font.cache_clear()
    spelt, boxes = captioned(PICTURE, "星"), captioned(PICTURE, "\\u661f")
    module._font.cache_clear()
    assert np.array_equal(spelt, boxes)


def test_a_large_picture_keeps_its_size() -> None:
    assert captioned(np.zeros((224, 224, 3), dtype=np.uint8), "x").shape[1] == 224


def test_a_sample_of_any_split_of_numbers_is_a_sample() -> None:
    sample = Sample(inputs={"image": PICTURE, "tokens": np.zeros(3)}, key="a")
    assert augment(ClipSettings(), sample).key == "a"
