"""Queries: terms with signs, vectors, warnings and labels."""

from __future__ import annotations

import numpy as np
import pytest
from colours import COLOURS, ColourEncoder
from PIL import Image

from pegboard.errors import RequestError
from pegboard_clip.search import parse, query_vector, warnings_of

ENCODER = ColourEncoder()


def read(query: str) -> list[str]:
    return [("+" if term.sign > 0 else "-") + term.text for term in parse(query)]


@pytest.mark.parametrize(
    ("query", "terms"),
    [
        ("red  apple", ["+red apple"]),
        ("apple + green - leaf", ["+apple", "+green", "-leaf"]),
        ("apple +green -leaf", ["+apple", "+green", "-leaf"]),
        ("- leaf", ["-leaf"]),
        ("+ apple", ["+apple"]),
        ("a t-shirt, C++ and 3-4", ["+a t-shirt, C++ and 3-4"]),
        ("one- two", ["+one- two"]),
        ('"red - green" + leaf', ["+red - green", "+leaf"]),
        ('a "red - green" leaf', ["+a red - green leaf"]),
        ('12" - 6"', ['+12"', '-6"']),
        ('"apple"-leaf', ["+apple", "-leaf"]),
        ("“红 + 绿”－叶子", ["+红 + 绿", "-叶子"]),  # noqa: RUF001
        ("红苹果+绿色-叶子", ["+红苹果", "+绿色", "-叶子"]),
        ("apple＋leaf", ["+apple", "+leaf"]),  # noqa: RUF001
        ("apple − leaf", ["+apple", "-leaf"]),  # noqa: RUF001
    ],
)
def test_a_query_is_read_as_its_author_meant_it(query: str, terms: list[str]) -> None:
    assert read(query) == terms


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("", "a term of the query is empty"),
        ("  ", "a term of the query is empty"),
        ("apple +", "a term of the query is empty"),
        ("apple + - leaf", "a term of the query is empty"),
        ("+ - leaf", "a term of the query is empty"),
        ('""', "a term of the query is empty"),
        ('"red - green', "a quotation mark is not closed"),
        ("a" * 1001, "1001 letters"),
        (" + ".join("abcdefghijklmnopq"), "17 terms"),
    ],
)
def test_a_query_that_asks_for_nothing_is_refused(query: str, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        parse(query)


def test_terms_are_added_and_taken_away_as_unit_vectors() -> None:
    apple, green, leaf = ENCODER.texts(["apple", "green", "blue"])
    expected = apple + green - leaf
    found = query_vector(ENCODER, "apple + green - blue")
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=1e-6)
    assert found.dtype == np.float32 and np.linalg.norm(found) == pytest.approx(1)


def test_terms_that_cancel_out_are_refused() -> None:
    with pytest.raises(RequestError, match="cancel out"):
        query_vector(ENCODER, "apple - red")


def test_a_picture_asks_for_what_it_shows() -> None:
    picture = Image.new("RGB", (50, 30), COLOURS["green"])
    vector = query_vector(ENCODER, picture)
    assert vector.argmax() == list(COLOURS).index("green") and vector.shape == (6,)


def test_a_script_that_the_vocabulary_does_not_know_is_said_once() -> None:
    assert warnings_of(ENCODER, "苹果 + 叶子 + sky") == ["The vocabulary does not know Chinese."]
    assert warnings_of(ENCODER, "apple") == []
