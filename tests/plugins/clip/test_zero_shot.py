from __future__ import annotations

import numpy as np
import pytest
from colours import ColourEncoder

from pegboard import RequestError
from pegboard_clip.zero_shot import label_vectors, prompts_of

ENCODER = ColourEncoder()


def test_a_class_is_put_into_each_prompt_and_behind_one_without_a_place() -> None:
    assert prompts_of("cat", ["a {} in snow", "this is a"]) == ["a cat in snow", "this is a cat"]


def test_a_label_is_the_mean_of_its_prompts() -> None:
    prompts = ("{}", "{} on snow")
    found = label_vectors(ENCODER, ["apple", "leaf"], prompts)
    mean = ENCODER.texts(["apple", "apple on snow"]).mean(axis=0)
    np.testing.assert_allclose(found[0], mean / np.linalg.norm(mean), atol=1e-6)
    assert found.shape == (2, 6) and found.dtype == np.float32


@pytest.mark.parametrize(
    ("labels", "words"), [([], "no labels"), (["cat", " "], "a label is empt")]
)
def test_labels_that_name_nothing_are_refused(labels: list[str], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        label_vectors(ENCODER, labels, ["a picture of {}"])
