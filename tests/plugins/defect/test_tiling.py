from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import pytest

from pegboard.records import Array
from pegboard_defect.tiling import infer_tiled, places


class Brightness:
    """A predictor whose map is the picture itself, and which notes the shapes it is given."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        image = inputs["image"].astype(np.float32) / 255
        self.shapes.append(image.shape)
        score = image.max(axis=(1, 2, 3))
        return {
            "score": score,
            "map": image[..., 0],
            "probabilities": np.stack([1 - score, score], axis=1),
        }


@pytest.mark.parametrize("length", [64, 65, 100, 128, 1000])
def test_tiles_cover_an_axis_and_end_with_it(length: int) -> None:
    found = places(length, tile=64, overlap=0.25)
    covered = np.zeros(length, dtype=bool)
    for place in found:
        covered[place : place + 64] = True
    assert covered.all()
    assert found[-1] + 64 == length
    assert all(second - first <= 48 for first, second in pairwise(found))


def test_a_map_put_together_is_the_one_of_the_whole_picture() -> None:
    image = np.random.default_rng(0).integers(0, 256, (2, 150, 90, 1), dtype=np.uint8)
    outputs = infer_tiled(Brightness(), image, tile=64, overlap=0.3)
    assert outputs["map"].shape == (2, 150, 90)
    np.testing.assert_allclose(outputs["map"], image[..., 0] / 255, atol=1e-6)


def test_a_part_is_as_bad_as_its_worst_tile() -> None:
    image = np.zeros((1, 200, 200, 1), dtype=np.uint8)
    image[0, 190, 5] = 204
    outputs = infer_tiled(Brightness(), image, tile=64, overlap=0.25)
    assert outputs["score"][0] == pytest.approx(0.8)
    assert outputs["probabilities"][0].tolist() == pytest.approx([0.2, 0.8])


def test_the_predictor_sees_tiles_only_and_several_at_a_time() -> None:
    predictor = Brightness()
    infer_tiled(predictor, np.zeros((1, 300, 300, 3), np.uint8), tile=64, overlap=0.25)
    assert {shape[1:] for shape in predictor.shapes} == {(64, 64, 3)}
    assert max(shape[0] for shape in predictor.shapes) == 16


def test_a_picture_smaller_than_a_tile_is_continued_and_its_map_cut_back() -> None:
    outputs = infer_tiled(Brightness(), np.full((1, 20, 30, 1), 51, np.uint8), tile=64, overlap=0.1)
    assert outputs["map"].shape == (1, 20, 30)
    np.testing.assert_allclose(outputs["map"], 0.2, atol=1e-6)
