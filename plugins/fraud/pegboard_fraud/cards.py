"""Card numbers are refused: in a request, in a list, in a table of transactions.

What looks like one is 13 to 19 digits with single spaces or dashes between them at most, that no
other digit touches, that pass Luhn's check (ISO/IEC 7812-1, annex B) and begin like a number that
an issuer of that length gives out:

    13 digits      4 (Visa)
    14             30, 36, 38, 39 (Diners Club)
    15             34, 37 (American Express), 1 (UATP; 1800 is JCB), 2131 (JCB)
    16 to 19       2 to 9

So a time in milliseconds, microseconds or nanoseconds (13, 16 or 19 digits that begin with 1) is
none, while one in ten 16-digit numbers that somebody drew is: put letters between digits of tokens.
A UUID is none either, whatever digits meet in it. A message names the place and never the value.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pegboard.errors import RequestError

SHORTEST, LONGEST = 13, 19
"""Digits of a card number."""

SPACES_AND_DASHES = "\u00a0\u2007\u2009\u202f\u2010\u2011\u2012\u2013\u2014\u2015\u2212 -"
"""What may stand between two digits of a card number, once."""

DIGITS = rf"\d(?:[{SPACES_AND_DASHES}]?\d){{{SHORTEST - 1}}}"
"""A regular expression that anything like a card number matches, and much else: a first look."""

UUID = r"^[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$"

_DIGITS, _UUID, _GROUP = re.compile(DIGITS), re.compile(UUID), re.compile(r"\d+")
_RUN = re.compile(rf"\d(?:[{SPACES_AND_DASHES}]?\d){{{SHORTEST - 1},}}")
_SHORT = 100
"""Characters of a text that is looked through in Python, which is ten times faster there."""

_DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)
"""What a digit counts in Luhn's sum in every second place from the right."""

_DEEPEST = 8
"""Steps that the name of a place has, at most."""

Bools = NDArray[np.bool_]


def refuse_card_numbers(payload: Any) -> None:
    """Look at every string, key and number of a request, however deeply nested.

    Raises:
        RequestError: Something looks like a card number. It names the place, never the value.
    """
    # A list of what is still to be seen instead of recursion: depth is the sender's choice.
    pending: list[tuple[Any, Any]] = [(payload, None)]
    while pending:
        value, place = pending.pop()
        if isinstance(value, str | int | float):  # First, because nearly all values are.
            if looks_like_card_number(value):
                raise _refusal(_words(place))
        elif isinstance(value, Mapping):
            for key, item in value.items():
                if looks_like_card_number(key):
                    raise _refusal(f"a key of {_words(place)}")
                pending.append((item, (place, key)))
        elif isinstance(value, list | tuple):
            pending.extend((item, (place, index)) for index, item in enumerate(value))


def looks_like_card_number(value: Any) -> bool:
    """Say whether a string holds something like a card number, or a number is something like one.

    Of numbers only whole ones are looked at; of anything else the answer is no.
    """
    if not isinstance(value, str):
        # Compared first, because writing out a very long number takes long.
        possible = isinstance(value, int | float) and 1e12 <= value < 1e19 and value == int(value)
        return possible and _is_card_number(str(int(value)))
    if len(value) < SHORTEST or not _DIGITS.search(value) or _UUID.match(value):
        return False
    if len(value) <= _SHORT and value.isascii():
        return any(_is_card_number(digits) for digits in _joined_groups(value))
    return bool(len(card_numbers_in(value)))


def _joined_groups(text: str) -> Iterator[str]:
    """Digits that stand together, and those of neighbouring groups with one space or dash."""
    for run in _RUN.findall(text):
        groups = _GROUP.findall(run)
        for first in range(len(groups)):
            digits = ""
            for group in groups[first:]:
                digits += group
                if len(digits) > LONGEST:
                    break
                yield digits


def _is_card_number(digits: str) -> bool:
    if not _begins_like_one(digits):
        return False
    backwards = [int(digit) for digit in reversed(digits)]
    return (sum(backwards[::2]) + sum(_DOUBLED[digit] for digit in backwards[1::2])) % 10 == 0


def _begins_like_one(digits: str) -> bool:
    length = len(digits)
    if length == 13:
        return digits[0] == "4"
    if length == 14:
        return digits[:2] in ("30", "36", "38", "39")
    if length == 15:
        return digits[0] == "1" or digits[:2] in ("34", "37") or digits[:4] == "2131"
    return 16 <= length <= LONGEST and digits[0] >= "2"


def card_numbers_in(text: str) -> NDArray[np.int64]:
    """Find where in a text something like a card number begins; any text of N characters in O(N).

    Returns:
        Positions of first digits, not sorted.
    """
    if not text.isascii():
        text = text.translate(_plain())
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    places = np.flatnonzero((codes >= ord("0")) & (codes <= ord("9")))
    digits = (codes[places] - ord("0")).astype(np.int64)
    run, begins, ends = _groups(codes, places)
    sums = _luhn_sums(digits)
    found = [
        places[_windows(digits, length, sums, run, begins, ends)]
        for length in range(SHORTEST, min(LONGEST, len(digits)) + 1)
    ]
    return np.concatenate([np.empty(0, np.int64), *found])


def _groups(
    codes: NDArray[np.uint32], places: NDArray[np.int64]
) -> tuple[NDArray[np.int64], Bools, Bools]:
    """Each digit's run, and whether it begins and ends a group of a run; a group has no gap."""
    gap = np.diff(places)
    between = codes[places[:-1] + 1]  # Where the gap is 2: the only character between two digits.
    joined = (gap == 2) & ((between == ord(" ")) | (between == ord("-")))
    run = np.append(0, np.cumsum((gap > 1) & ~joined))[: len(places)]
    apart = gap > 1
    return run, np.append(True, apart)[: len(places)], np.append(apart, True)[-len(places) :]


def _luhn_sums(digits: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Running sums with every odd digit doubled, and with every even one. Each (N + 1,)."""
    doubled = np.array(_DOUBLED)[digits]
    odd = np.arange(len(digits)) % 2 == 1
    return [np.append(0, np.cumsum(np.where(odd == even, digits, doubled))) for even in (0, 1)]


def _windows(
    digits: NDArray[np.int64],
    length: int,
    sums: list[NDArray[np.int64]],
    run: NDArray[np.int64],
    begins: Bools,
    ends: Bools,
) -> NDArray[np.int64]:
    """The digits at which a card number of that length begins."""
    starts = np.flatnonzero(begins[: len(digits) - length + 1])
    last = starts + length - 1
    starts = starts[ends[last] & (run[last] == run[starts])]
    first, second = digits[starts], digits[starts + 1]
    if length == 13:
        starts = starts[first == 4]
    elif length == 14:
        starts = starts[(first == 3) & np.isin(second, (0, 6, 8, 9))]
    elif length == 15:
        jcb = (first == 2) & (second == 1) & (digits[starts + 2] == 3) & (digits[starts + 3] == 1)
        starts = starts[(first == 1) | ((first == 3) & np.isin(second, (4, 7))) | jcb]
    else:
        starts = starts[first >= 2]
    last = starts + length - 1
    # The last digit is not doubled: it is the check digit.
    total = np.where(
        last % 2 == 0, sums[0][last + 1] - sums[0][starts], sums[1][last + 1] - sums[1][starts]
    )
    return np.asarray(starts[total % 10 == 0], np.int64)


@lru_cache(maxsize=1)
def _plain() -> dict[int, str]:
    """Every script's digits as ASCII, every space and dash as a dash; made where it is needed."""
    digits = (code for code in range(128, sys.maxunicode + 1) if chr(code).isdecimal())
    return {code: str(int(chr(code))) for code in digits} | dict.fromkeys(
        map(ord, SPACES_AND_DASHES), "-"
    )


def look_like_card_numbers(texts: Sequence[str]) -> Bools:
    """Say of each of many texts whether it holds something like a card number. (N,)."""
    found = np.zeros(len(texts), np.bool_)
    for first in range(0, len(texts), 50_000):  # So that memory stays bounded.
        part = texts[first : first + 50_000]
        opening = np.cumsum([0, *(len(text) + 1 for text in part)])
        # A line feed joins no digits.
        positions = card_numbers_in("\n".join(part))
        found[first + np.searchsorted(opening, positions, side="right") - 1] = True
    return found


def _refusal(where: str) -> RequestError:
    return RequestError(
        "this looks like a card number", where=where, remedy="send a token in its place"
    )


def _words(place: Any) -> str:
    """Name a place as `transactions[0].customer`."""
    steps: list[str] = []
    while place is not None:
        place, step = place
        steps.append(f"[{step}]" if isinstance(step, int) else f".{_name(step)}")
    steps.reverse()
    more = "..." if len(steps) > _DEEPEST else ""
    return "".join(steps[:_DEEPEST]).removeprefix(".") + more or "the request"


def _name(key: Any) -> str:
    """The name of a field, unless it may be a value."""
    plain = isinstance(key, str) and key.isidentifier() and len(key) <= 32
    return key if plain and sum(map(str.isdigit, key)) <= 4 else "(a field)"
