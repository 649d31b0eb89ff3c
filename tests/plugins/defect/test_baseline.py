"""The threshold baseline: honest where thresholds work, well behind on the embedded pictures."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from pegboard.records import Sample
from pegboard_defect import baseline, textures
from pegboard_defect.settings import DefectSettings

K = 3


class Pictures(Sequence[Sample]):
    """Grey noise; a defective picture has a spot that is brighter."""

    def __init__(self, seed: int, count: int, *, defective: float = 0.4, spot: float = 60) -> None:
        random = np.random.default_rng(seed)
        self.label = np.where(random.random(count) < defective, random.integers(1, K, count), 0)
        image = random.normal(120, 8, (count, 32, 32, 1))
        for each, kind in zip(image, self.label, strict=True):
            y, x = random.integers(2, 26, 2)
            each[y : y + 4, x : x + 4] += spot * bool(kind)
        self.image = image.clip(0, 255).astype(np.uint8)
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, index: Any) -> Any:
        self.asked.append(index)
        label = np.eye(K, dtype=np.float32)[self.label[index]]
        return Sample(
            inputs={"image": self.image[index]},
            targets={"label": label, "defective": np.float32(1 - label[0])},
        )


def area(predictor: Any, pictures: Pictures) -> float:
    score = predictor({"image": pictures.image})["score"]
    return baseline.roc_auc(score, pictures.label > 0)


def test_it_finds_bright_spots() -> None:
    predictor = baseline.fit_threshold(Pictures(0, 80), Pictures(1, 30), task="classify")
    test = Pictures(2, 80)
    assert area(predictor, test) > 0.98
    heat = predictor({"image": test.image})["map"]
    defective = np.flatnonzero(test.label)
    place = heat[defective].reshape(len(defective), -1).argmax(axis=1)
    bright = test.image[defective].reshape(len(defective), -1)
    assert (bright[np.arange(len(place)), place] > 150).mean() > 0.9


@pytest.mark.parametrize("task", ["classify", "segment", "anomaly"])
def test_it_answers_with_the_outputs_of_the_model(task: str) -> None:
    settings = DefectSettings.model_validate({"solution": "defect", "model": {"task": task}})
    (threshold,) = baseline.build(settings)
    assert threshold.name == "threshold"
    predictor = threshold.fit(Pictures(0, 60), Pictures(1, 30))
    outputs = predictor({"image": Pictures(2, 7).image})
    score, heat = outputs["score"], outputs["map"]
    assert (score.shape, heat.shape) == ((7,), (7, 32, 32))
    assert all(values.dtype == np.float32 for values in outputs.values())
    assert 0 <= heat.min() <= heat.max() <= 1
    assert np.all((score >= 0) & (score <= 1))
    assert ("probabilities" in outputs) == (task != "anomaly")
    if task != "anomaly":
        assert outputs["probabilities"].shape == (7, K)
        assert np.allclose(outputs["probabilities"].sum(axis=1), 1)
        assert np.allclose(outputs["probabilities"][:, 0], 1 - score)


def test_a_stronger_defect_scores_higher() -> None:
    predictor = baseline.fit_threshold(Pictures(0, 60), Pictures(1, 30), task="anomaly")
    images = [Pictures(5, 20, defective=1.0, spot=spot).image for spot in (30, 60, 90)]
    scores = np.stack([predictor({"image": image})["score"] for image in images])
    assert np.all(np.diff(scores, axis=0) > 0)


def test_most_good_pictures_score_below_a_half() -> None:
    predictor = baseline.fit_threshold(Pictures(0, 200), Pictures(1, 30), task="classify")
    score = predictor({"image": Pictures(2, 200, defective=0).image})["score"]
    assert 0.85 < (score < 0.5).mean() < 1


def test_without_defects_in_training_the_validation_pictures_choose() -> None:
    train, validation = Pictures(0, 60, defective=0), Pictures(1, 60)
    predictor = baseline.fit_threshold(train, validation, task="anomaly")
    assert isinstance(predictor, baseline.ThresholdPredictor)
    image, defective, _ = baseline.sampled(validation)
    assert predictor.choice == baseline.choose(image, defective)
    assert area(predictor, Pictures(2, 80)) > 0.98


def test_without_any_defect_it_still_answers() -> None:
    good = Pictures(0, 20, defective=0)
    predictor = baseline.fit_threshold(good, good, task="classify")
    outputs = predictor({"image": good.image})
    assert np.isfinite(outputs["score"]).all()
    assert np.allclose(outputs["probabilities"][:, 1], outputs["probabilities"][:, 2])


def test_classes_have_the_shares_that_they_have_in_training() -> None:
    label = np.eye(K)[[0, 1, 1, 1, 1, 2, 0]]
    assert np.allclose(baseline.shares_of(label), [5 / 7, 2 / 7])


def test_flat_pictures_do_not_divide_by_zero() -> None:
    flat = Pictures(0, 12)
    flat.image[:] = 90
    outputs = baseline.fit_threshold(flat, flat, task="classify")({"image": flat.image})
    assert all(np.isfinite(values).all() for values in outputs.values())


def test_colours_are_averaged() -> None:
    grey = Pictures(0, 4).image
    wide = np.repeat(grey, 3, axis=3)
    narrow = baseline.deviations(grey, 0.25, own=True)
    assert np.allclose(narrow, baseline.deviations(wide, 0.25, own=True))


def test_light_that_halves_every_picture_alike_is_divided_out() -> None:
    image = Pictures(0, 4).image // 2 * 2
    bright, dim = (baseline.deviations(light, 0.25, own=True) for light in (image, image // 2))
    assert np.allclose(bright, dim, atol=1e-3)
    assert baseline.deviations(image, 0.25, own=False).mean() > 5


def test_no_more_pictures_are_read_than_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baseline, "MOST_PICTURES", 30)
    train = Pictures(0, 100)
    baseline.fit_threshold(train, Pictures(1, 10), task="classify")
    assert len(train.asked) == len(set(train.asked)) == 30
    assert max(train.asked) == 99


def test_the_area_under_the_curve_counts_ties_as_half() -> None:
    score, defective = np.array([0.1, 0.4, 0.4, 0.9]), np.array([False, False, True, True])
    assert baseline.roc_auc(score, defective) == pytest.approx(3.5 / 4)
    assert np.isnan(baseline.roc_auc(score, defective & False))


def test_it_stays_well_behind_on_the_embedded_pictures() -> None:
    def drawn(seed: int, count: int) -> Pictures:
        random = np.random.default_rng(seed)
        lots, pictures = textures.draw_lots(random, tuple(textures.SURFACES)), Pictures(0, count)
        kinds = textures.draw_kinds(random, count, tuple(textures.DEFECTS))
        drawn = [
            textures.draw_part(random, lots[n % len(lots)], kind, (64, 64))[0][0]
            for n, kind in enumerate(kinds)
        ]
        pictures.image = np.stack(drawn)[:, :, :, None]
        pictures.label = np.array([int(kind is not None) for kind in kinds])
        return pictures

    predictor = baseline.fit_threshold(drawn(0, 60), drawn(1, 6), task="anomaly")
    assert area(predictor, drawn(2, 80)) < 0.9


def test_it_needs_no_torch() -> None:
    code = "import sys; from pegboard_defect import baseline; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
