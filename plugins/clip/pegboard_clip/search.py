"""From words and pictures to a vector: terms that are added and taken away, and warnings."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pegboard.errors import RequestError
from pegboard_clip.images import fitted

if TYPE_CHECKING:
    from PIL import Image

    from pegboard.records import Array
    from pegboard_clip.index import Encoder

MOST_LETTERS = 1000
MOST_TERMS = 16

_OPERATORS = {"+": 1, "＋": 1, "-": -1, "－": -1, "−": -1}  # noqa: RUF001
_QUOTES = {'"': '"', "“": "”", "「": "」"}
_UNSPACED = "[぀-ヿ㐀-鿿豈-﫿가-힯]"
"""Letters of scripts that write no spaces, or after which none is written before an operator."""
_NOTHING = "write words, such as: red apple - leaf"


@dataclass(frozen=True, kw_only=True)
class Term:
    """A part of a query."""

    text: str
    """What is embedded."""
    sign: int = 1
    """1: more of it; -1: less of it."""


def parse(text: str) -> list[Term]:
    """Read a query's terms.

    `+` adds a term and `-` takes one away: `apple + green - leaf`, or `apple +green -leaf`. They
    are operators at the beginning of a word only, so `t-shirt`, `C++` and `3-4` are words; after a
    Chinese, Japanese or Korean letter or a quotation mark they are operators, too, as are the wide
    ones of those keyboards. A phrase in quotation marks ("...", or as Chinese has them) is one term
    whatever is in it.

    Raises:
        RequestError: There is no term, an operator has none after it, a quotation mark is not
            closed, or the query is too long.
    """
    if len(text) > MOST_LETTERS:
        raise RequestError(
            f"the query has {len(text)} letters, more than {MOST_LETTERS}",
            where="q",
            remedy="write a sentence",
        )
    terms: list[Term] = []
    words, sign = "", 1
    place = 0
    while place < len(text):
        letter = text[place]
        if letter in _QUOTES and not words[-1:].strip():
            end = text.find(_QUOTES[letter], place + 1)
            if end < 0:
                raise RequestError(
                    "a quotation mark is not closed", where="q", remedy=f"add {_QUOTES[letter]}"
                )
            words += text[place + 1 : end]
            place = end
        elif letter in _OPERATORS and _begins(text, place):
            if words.strip() or terms:
                terms.append(_term(words, sign))
            elif place and text[:place].strip():
                raise _nothing()
            words, sign = "", _OPERATORS[letter]
        else:
            words += letter
        place += 1
    terms.append(_term(words, sign))
    if len(terms) > MOST_TERMS:
        raise RequestError(
            f"the query has {len(terms)} terms, more than {MOST_TERMS}",
            where="q",
            remedy="put words that belong together into one",
        )
    return terms


def _begins(text: str, place: int) -> bool:
    """Whether an operator stands at the beginning of a word, or is a wide one."""
    before = text[place - 1 : place] if place else ""
    if text[place] in "＋－":  # noqa: RUF001
        return True
    is_free = not before.strip() or before in _QUOTES.values()
    return is_free or re.match(_UNSPACED, before) is not None


def _term(words: str, sign: int) -> Term:
    text = " ".join(words.split())
    if not text:
        raise _nothing()
    return Term(text=text, sign=sign)


def _nothing() -> RequestError:
    return RequestError("a term of the query is empty", where="q", remedy=_NOTHING)


def query_vector(encoder: Encoder, query: str | Image.Image) -> Array:
    """Return what a query asks for, float32 (D,) of unit length.

    The embeddings of a text's terms are of unit length; they are added or taken away and the sum is
    brought to unit length again. That is a direction in the space of pictures and not a filter: `-
    leaf` ranks pictures with leaves lower and keeps none out.

    Args:
        encoder: Embeds.
        query: A text, see `parse`, or a picture of mode RGB.

    Raises:
        RequestError: The text has no terms, or they cancel out.
    """
    if not isinstance(query, str):
        vector: Array = encoder.images(fitted(query, encoder.size)[None])[0]
        return vector
    terms = parse(query)
    vectors = encoder.texts([term.text for term in terms])
    total = np.array([term.sign for term in terms], dtype=np.float32) @ vectors
    length = float(np.linalg.norm(total))
    if length < 1e-4:
        raise RequestError(
            "the terms of the query cancel out", where="q", remedy="take one of them away"
        )
    return np.asarray(total / length, dtype=np.float32)


def warnings_of(encoder: Encoder, query: str) -> list[str]:
    """Return what a user should know of a query's words, each sentence once."""
    found = (encoder.warning(term.text) for term in parse(query))
    return [sentence for sentence in dict.fromkeys(found) if sentence]
