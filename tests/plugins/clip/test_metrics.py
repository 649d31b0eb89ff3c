from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from pegboard.evaluation import measure
from pegboard.records import Array
from pegboard_clip import metrics
from pegboard_clip.settings import ClipModel, ClipSettings

LABELS = ("cat", "dog")


def rows_of(pictures: Any, texts: Any, owner: Any, label: Any = None) -> dict[str, Array]:
    """Rows as `tabulate` leaves them: a row a caption, its picture repeated."""
    owner = np.array(owner)
    return {
        "image_id": owner,
        "caption_id": np.arange(len(owner)),
        "label": np.full(len(owner), -1) if label is None else np.array(label)[owner],
        "image_embedding": np.array(pictures, dtype=np.float32)[owner],
        "text_embedding": np.array(texts, dtype=np.float32),
    }


def never(inputs: Mapping[str, Array]) -> dict[str, Array]:
    raise AssertionError("nothing is labelled")


def completed(rows: dict[str, Array]) -> Mapping[str, Array]:
    return metrics.complete_rows(ClipSettings(), never, rows, ())


def value(rows: Mapping[str, Array], name: str) -> float | None:
    metric = next(one for one in metrics.build() if one.name == name)
    return measure(metric, rows, {}).value


def test_ranks_are_counted_by_hand() -> None:
    # Two captions of picture 0, one of picture 1; the second caption of 0 points at picture 1.
    rows = completed(rows_of(np.eye(2), [[1, 0], [0.6, 0.8], [0.1, 0.9]], [0, 0, 1]))
    assert rows["text_rank"].tolist() == [1, 2, 1]
    # A picture has one rank, by its best caption; the row of its second caption has none.
    np.testing.assert_array_equal(rows["image_rank"], [1, np.nan, 1])
    assert rows["found"].tolist() == [[0, 1], [1, 0], [1, 0]]
    assert value(rows, "text_to_image_recall_at_1") == pytest.approx(2 / 3)
    assert value(rows, "text_to_image_recall_at_5") == 1.0
    assert value(rows, "image_to_text_recall_at_1") == 1.0
    assert value(rows, "text_to_image_median_rank") == 1.0
    assert value(rows, "mean_recall") == pytest.approx((2 / 3 + 5) / 6)


def test_a_model_that_finds_everything_alike_is_last_and_not_first() -> None:
    rows = completed(rows_of(np.ones((20, 4)), np.ones((20, 4)), range(20)))
    assert set(rows["text_rank"]) == {20} and set(rows["image_rank"]) == {20}
    assert value(rows, "mean_recall") == 0.0


def test_ranks_are_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    rows = rows_of(
        generator.normal(size=(30, 8)), generator.normal(size=(70, 8)), np.arange(70) % 30
    )
    whole = completed(rows)
    monkeypatch.setattr(metrics, "AT_ONCE", 7)
    pieces = completed(rows)
    for name, column in whole.items():
        np.testing.assert_array_equal(column, pieces[name])


def test_confidence_intervals_draw_queries_and_not_the_gallery() -> None:
    """Among the pictures of a draw alone, ranks would be better than they are."""
    generator = np.random.default_rng(1)
    pictures = generator.normal(size=(200, 16))
    texts = pictures + 1.5 * generator.normal(size=(200, 16))
    rows = completed(rows_of(pictures, texts, range(200)))
    metric = next(one for one in metrics.build() if one.name == "text_to_image_recall_at_1")
    found = measure(metric, rows, {}, resamples=200)
    assert found.value is not None and found.low is not None and found.high is not None
    assert 0.2 < found.value < 0.9
    assert abs((found.low + found.high) / 2 - found.value) < 0.02


def test_classes_are_told_by_the_mean_of_their_prompts(captions: ClipSettings) -> None:
    """A predictor that knows words: 'cat' is the first axis, 'dog' the second."""
    from pegboard_clip.tokenizer import tokenizer_of

    tokenizer = tokenizer_of(captions)
    axes = {name: set(tokenizer.pieces(f" {name}")) for name in LABELS}

    def predictor(inputs: Mapping[str, Array]) -> dict[str, Array]:
        found = [
            [float(bool(axes[name] & set(row.tolist()))) for name in LABELS]
            for row in inputs["tokens"]
        ]
        return {"text_embedding": np.array(found, dtype=np.float32) + 0.01}

    rows = rows_of([[1, 0], [0, 1], [0.9, 0.1]], np.eye(3)[:, :2], [0, 1, 2], label=[0, 1, 1])
    completed = metrics.complete_rows(captions, predictor, rows, LABELS)
    assert completed["label_found"].tolist() == [0, 1, 0]
    assert value(completed, "zero_shot_accuracy") == pytest.approx(2 / 3)
    # Captions 0 and 1 find pictures of their label first; the third is like no picture.
    assert completed["same_label"][:2].tolist() == [1.0, 1.0]


def test_without_labels_their_metrics_are_not_defined() -> None:
    rows = completed(rows_of(np.eye(3), np.eye(3), range(3)))
    assert value(rows, "zero_shot_accuracy") is None
    assert value(rows, "text_to_image_label_at_1") is None


def test_there_is_one_headline() -> None:
    assert [metric.name for metric in metrics.build() if metric.headline] == ["mean_recall"]


@pytest.fixture
def captions(tmp_path: Any) -> ClipSettings:
    """Settings with a vocabulary learnt from a few captions."""
    from pegboard_clip.tokenizer import train

    path = tmp_path / "vocabulary.json"
    train([f"a picture of a {name}" for name in LABELS for _ in range(5)], 300, path)
    return ClipSettings(model=ClipModel(vocabulary=path, vocabulary_size=300))
