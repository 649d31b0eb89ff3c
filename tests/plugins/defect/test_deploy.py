from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from pegboard.errors import RequestError
from pegboard.records import Array
from pegboard.signatures import validate
from pegboard_defect import deploy
from pegboard_defect.images import as_png
from pegboard_defect.settings import DefectData, DefectModel, DefectSettings

SETTINGS = DefectSettings(data=DefectData(size=(48, 64), classes=("good", "scratch", "pit")))
THRESHOLDS = {"defect": 0.4, "pixel": 0.5}


def png(array: Array) -> str:
    return base64.b64encode(as_png(array)).decode()


def outputs(score: float, where: Array | None = None) -> dict[str, Array]:
    found = np.zeros((1, 48, 64), np.float32) if where is None else where[None]
    probabilities = np.array([[1 - score, score * 0.3, score * 0.7]], np.float32)
    return {"score": np.array([score], np.float32), "map": found, "probabilities": probabilities}


def test_a_picture_of_any_size_and_mode_becomes_what_the_model_sees() -> None:
    for mode in ("L", "RGB", "RGBA", "P", "1", "I;16", "CMYK"):
        image = Image.new("L", (200, 90), 100)
        buffer = io.BytesIO()
        image.convert("I").convert("I;16").save(buffer, "PNG") if mode == "I;16" else (
            image.convert(mode).save(buffer, "TIFF" if mode == "CMYK" else "PNG")
        )
        payload = {"image": base64.b64encode(buffer.getvalue()).decode()}
        decoded = deploy.decode(SETTINGS, payload)
        validate(decoded, deploy.signature(SETTINGS))


def test_a_data_url_as_browsers_send_it_is_read() -> None:
    text = "data:image/png;base64," + png(np.full((48, 64), 7, np.uint8))
    assert (deploy.decode(SETTINGS, {"image": text})["image"] == 7).all()


def test_several_pictures_make_one_batch_in_order() -> None:
    texts = [png(np.full((48, 64), value, np.uint8)) for value in (10, 20, 30)]
    image = deploy.decode(SETTINGS, {"images": texts})["image"]
    assert image[:, 0, 0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize(
    "payload",
    [
        None,
        [],
        {},
        {"image": 7},
        {"image": ""},
        {"image": "not base64!"},
        {"image": base64.b64encode(b"GIF89a nonsense").decode()},
        {"images": []},
        {"images": "text"},
        {"images": ["", ""]},
        {"images": ["x"] * 65},
        {"image": png(np.zeros((4, 4), np.uint8)), "path": "/etc/passwd"},
    ],
)
def test_a_bad_request_is_one_sentence_without_its_content(payload: object) -> None:
    with pytest.raises(RequestError) as caught:
        deploy.decode(SETTINGS, payload)
    assert "nonsense" not in str(caught.value)
    assert "passwd" not in str(caught.value)


def test_a_truncated_picture_is_refused() -> None:
    whole = as_png(np.random.default_rng(0).integers(0, 255, (48, 64), dtype=np.uint8))
    with pytest.raises(RequestError, match="cannot be read"):
        deploy.decode(SETTINGS, {"image": base64.b64encode(whole[: len(whole) // 2]).decode()})


def test_an_accepted_part_has_a_class_and_no_region() -> None:
    (answer,) = deploy.encode(SETTINGS, outputs(0.1), THRESHOLDS)
    assert (answer["decision"], answer["class"], answer["regions"]) == ("accept", "good", [])


def test_a_rejected_part_is_named_a_defect_even_where_good_is_more_probable() -> None:
    (answer,) = deploy.encode(SETTINGS, outputs(0.45), THRESHOLDS)
    assert (answer["decision"], answer["class"]) == ("reject", "pit")


def test_regions_are_boxes_in_shares_of_the_picture_the_largest_first() -> None:
    where = np.zeros((48, 64), np.float32)
    where[12:24, 16:32] = 0.8
    where[40:44, 60:64] = 0.9
    (answer,) = deploy.encode(SETTINGS, outputs(0.9, where), THRESHOLDS)
    first, second = answer["regions"]
    assert first == {"box": [0.25, 0.25, 0.5, 0.5], "area": 0.0625, "score": 0.8}
    assert second["box"] == [0.9375, 0.8333, 1.0, 0.9167]
    json.dumps(answer)


@pytest.mark.parametrize("seed", range(20))
def test_regions_are_those_that_scipy_finds(seed: int) -> None:
    binary = np.random.default_rng(seed).random((23, 31)) < 0.2 + 0.03 * seed
    labelled, count = ndimage.label(binary)
    expected = {
        frozenset(zip(*map(np.ndarray.tolist, np.nonzero(labelled == index)), strict=True))
        for index in range(1, count + 1)
    }
    found = {
        frozenset(zip(rows.tolist(), columns.tolist(), strict=True))
        for rows, columns in deploy._components(binary)
    }
    assert found == expected


def test_an_anomaly_model_answers_without_classes() -> None:
    settings = DefectSettings(model=DefectModel(task="anomaly"))
    names = [spec.name for spec in deploy.signature(settings).outputs]
    assert names == ["score", "map"]
    found = {"score": np.array([0.9], np.float32), "map": np.ones((1, 8, 8), np.float32)}
    (answer,) = deploy.encode(settings, found, THRESHOLDS)
    assert "class" not in answer
    assert answer["regions"][0]["area"] == 1


def test_tiled_settings_take_pictures_of_any_size_and_their_model_tiles() -> None:
    settings = DefectSettings(data=DefectData(tile=64, size=(480, 640)))
    signature = deploy.signature(settings)
    assert signature.inputs[0].shape == ("batch", "height", "width", 1)
    assert signature.windowed().inputs[0].shape == ("batch", 64, 64, 1)
    assert signature.windowed().outputs[1].shape == ("batch", 64, 64)
    validate({"image": np.zeros((1, 70, 3000, 1), np.uint8)}, signature)


def test_nothing_outside_the_region_counts(tmp_path: object) -> None:
    from pathlib import Path

    path = Path(str(tmp_path)) / "region.png"
    inside = np.zeros((48, 64), np.uint8)
    inside[:, :32] = 255
    Image.fromarray(inside).save(path)
    settings = DefectSettings(data=DefectData(size=(48, 64), region=path))
    image = deploy.decode(settings, {"image": png(np.full((48, 64), 200, np.uint8))})["image"]
    assert (image[:, :, :32] == 200).all()
    assert not image[:, :, 32:].any()

    def everywhere(inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {"score": np.ones(1, np.float32), "map": np.ones((1, 48, 64), np.float32)}

    found = deploy.infer(settings, everywhere, {"image": image})["map"]
    assert found[:, :, :32].all()
    assert not found[:, :, 32:].any()


def test_mirrored_views_are_averaged_and_their_maps_turned_back() -> None:
    settings = DefectSettings(data=DefectData(size=(48, 64)), model=DefectModel(mirrored=True))
    image = np.random.default_rng(0).integers(0, 256, (2, 48, 64, 1), dtype=np.uint8)
    seen = []

    def top_left(inputs: Mapping[str, Array]) -> dict[str, Array]:
        seen.append(inputs["image"])
        assert inputs["image"].flags.c_contiguous
        return {
            "score": inputs["image"][:, 0, 0, 0] / np.float32(255),
            "map": inputs["image"][..., 0] / np.float32(255),
        }

    found = deploy.infer(settings, top_left, {"image": image})
    corners = image[:, [0, 0, -1, -1], [0, -1, 0, -1], 0]
    assert len(seen) == 4
    np.testing.assert_allclose(found["score"], corners.mean(axis=1) / 255, rtol=1e-5)
    np.testing.assert_allclose(found["map"], image[..., 0] / 255, rtol=1e-5)
