from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pegboard import RequestError
from pegboard.records import Array
from pegboard.signatures import validate
from pegboard_clip import deploy
from pegboard_clip.settings import ClipData, ClipModel, ClipSettings
from pegboard_clip.tokenizer import train


@pytest.fixture
def settings(tmp_path: Path) -> ClipSettings:
    path = tmp_path / "vocabulary.json"
    train(["a red circle left of a blue star"] * 3, 320, path)
    model = ClipModel(vocabulary=path, vocabulary_size=320, image_size=24, width=8)
    return ClipSettings(data=ClipData(pixels=10_000), model=model)


def encoded(image: Image.Image, kind: str = "PNG") -> str:
    file = io.BytesIO()
    image.save(file, kind)
    return base64.b64encode(file.getvalue()).decode()


def test_the_example_request_fits_the_signature(settings: ClipSettings) -> None:
    signature = deploy.signature(settings)
    inputs = validate(deploy.decode(settings, signature.request), signature)
    assert inputs["image"].shape == (1, 24, 24, 3)
    assert inputs["tokens"].shape == (1, 77)
    assert inputs["image"][0, 12, 12].tolist() == [220, 40, 40]


def test_texts_and_pictures_come_alone_or_in_lists(settings: ClipSettings) -> None:
    signature = deploy.signature(settings)
    picture = encoded(Image.new("RGB", (50, 30), "blue"))
    for request, shapes in (
        ({"text": "red"}, {"tokens": (1, 77)}),
        ({"image": picture}, {"image": (1, 24, 24, 3)}),
        (
            {"image": [picture, picture], "text": ["red", "blue"]},
            {"image": (2, 24, 24, 3), "tokens": (2, 77)},
        ),
    ):
        inputs = validate(deploy.decode(settings, request), signature)
        assert {name: array.shape for name, array in inputs.items()} == shapes


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ({}, "holds more or less than 'text' and 'image'"),
        ("red", "holds more or less"),
        ({"txt": "red"}, "holds more or less"),
        ({"text": ""}, "'text' holds no text"),
        ({"text": [7]}, "'text' holds no text"),
        ({"text": []}, "'text' is empty"),
        ({"image": "???"}, "'image' is not base64"),
        ({"image": 7}, "'image' is not base64"),
        ({"image": base64.b64encode(b"no picture").decode()}, "'image'"),
        ({"image": encoded(Image.new("RGB", (200, 200)))}, "'image'"),
        (
            {"image": encoded(Image.new("RGB", (4, 4))), "text": ["a", "b"]},
            "there are 1 pictures and 2 texts",
        ),
    ],
)
def test_a_bad_request_is_refused_in_one_sentence(
    settings: ClipSettings, request_: Any, sentence: str
) -> None:
    with pytest.raises(RequestError) as caught:
        deploy.decode(settings, request_)
    assert sentence in str(caught.value) and caught.value.remedy


def test_texts_are_run_no_longer_than_the_longest() -> None:
    given = []

    def predictor(inputs: Mapping[str, Array]) -> dict[str, Array]:
        given.append(inputs["tokens"])
        return {"text_embedding": np.ones((len(inputs["tokens"]), 2), np.float32)}

    tokens = np.zeros((2, 77), dtype=np.int64)
    tokens[0, :4], tokens[1, :6] = (8, 1, 2, 9), (8, 1, 2, 3, 4, 9)
    deploy.infer(predictor, {"tokens": tokens})
    assert given[0].tolist() == tokens[:, :6].tolist()


def test_an_answer_says_how_similar_both_are_and_warns_of_an_unknown_script(
    settings: ClipSettings,
) -> None:
    outputs = {
        "image_embedding": np.array([[1, 0], [0, 1]], np.float32),
        "text_embedding": np.array([[0.6, 0.8], [0, 1]], np.float32),
    }
    answers = deploy.encode(settings, outputs, {"text": ["红色圆形", "red"], "image": ["", ""]})
    assert [answer["similarity"] for answer in answers] == [pytest.approx(0.6), 1.0]
    assert answers[0]["text_embedding"] == [0.6, 0.8]
    assert "script" in answers[0]["warning"] and "warning" not in answers[1]


def test_one_side_alone_is_answered_with_its_embedding(settings: ClipSettings) -> None:
    (answer,) = deploy.encode(settings, {"text_embedding": np.eye(2, dtype=np.float32)[:1]}, None)
    assert answer == {"text_embedding": [1.0, 0.0]}
