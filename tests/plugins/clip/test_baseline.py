from __future__ import annotations

import numpy as np

from pegboard.records import Array, Sample
from pegboard_clip import baseline

COLOURS = ((200, 30, 30), (30, 160, 30), (40, 40, 220), (220, 210, 40))
START, END = 98, 99


class Pairs:
    """Plain colours whose caption says the colour among words that say nothing."""

    def __init__(self, count: int, seed: int) -> None:
        self.generator = np.random.default_rng(seed)
        self.colour = self.generator.integers(0, len(COLOURS), count)

    def __len__(self) -> int:
        return len(self.colour)

    def __getitem__(self, index: int) -> Sample:
        colour = int(self.colour[index])
        image = np.array(COLOURS[colour]) + self.generator.integers(-25, 25, (16, 16, 3))
        tokens = np.zeros(12, dtype=np.int64)
        words = [*self.generator.integers(20, 60, 4), colour + 1]
        tokens[:7] = [START, *words, END]
        return Sample(inputs={"image": image.clip(0, 255).astype(np.uint8), "tokens": tokens})


def stacked(pairs: Pairs) -> dict[str, Array]:
    samples = [pairs[index].inputs for index in range(len(pairs))]
    return {name: np.stack([one[name] for one in samples]) for name in ("image", "tokens")}


def test_words_find_the_colours_they_went_with() -> None:
    predictor = baseline.fit(Pairs(400, 0), Pairs(10, 1))  # type: ignore[arg-type]
    test = Pairs(60, 2)
    found = predictor(stacked(test))
    nearest = (found["text_embedding"] @ found["image_embedding"].T).argmax(axis=1)
    assert np.mean(test.colour[nearest] == test.colour) > 0.95
    np.testing.assert_allclose(np.linalg.norm(found["image_embedding"], axis=1), 1, atol=1e-5)


def test_one_side_is_embedded_without_the_other() -> None:
    predictor = baseline.fit(Pairs(100, 0), Pairs(10, 1))  # type: ignore[arg-type]
    assert set(predictor({"tokens": stacked(Pairs(3, 2))["tokens"]})) == {"text_embedding"}


def test_a_token_that_was_never_met_counts_for_nothing() -> None:
    table = baseline.counts(np.array([[3, 5, 5, 0], [7, 0, 0, 0]]), np.array([3, 5]))
    assert table.tolist() == [[1, 2], [0, 0]]
