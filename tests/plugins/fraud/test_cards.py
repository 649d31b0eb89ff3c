"""Card numbers are found wherever they stand, what only resembles them passes, no digit is told."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pegboard.errors import DataError, PegboardError, RequestError
from pegboard_fraud.cards import card_numbers_in, look_like_card_numbers, looks_like_card_number
from pegboard_fraud.cards import refuse_card_numbers as refuse
from pegboard_fraud.data import check
from pegboard_fraud.deploy import decode, signature
from pegboard_fraud.identifiers import FILE, VARIABLE, Identifiers, load_identifiers
from pegboard_fraud.settings import FraudData, FraudServe, FraudSettings
from pegboard_fraud.transactions import check_transactions, read_transactions

CARD = "4111111111111111"
TEST_CARDS = [
    "4111111111111111",  # What the networks publish for tests.
    "4222222222222",
    "5555555555554444",
    "2223003122003222",
    "378282246310005",
    "6011111111111117",
    "3530111333300000",
    "30569309025904",
    "6304000000000000",
    "4000000000000000006",
]


def check_digit(digits: str) -> str:
    """Luhn, the other way round than in the code: from the left, by weights."""
    weights = [2 if (len(digits) - place) % 2 else 1 for place in range(len(digits))]
    total = sum(sum(divmod(int(d) * w, 10)) for d, w in zip(digits, weights, strict=True))
    return str(-total % 10)


PREFIXES = [(13, "4"), (14, "30"), (14, "36"), (14, "38"), (14, "39"), (15, "34"), (15, "37")]
PREFIXES += [(15, "1800"), (15, "2131"), (15, "1")]
PREFIXES += [(length, digit) for length in (16, 17, 18, 19) for digit in "23456789"]


@st.composite
def card_numbers(draw: st.DrawFn) -> str:
    length, prefix = draw(st.sampled_from(PREFIXES))
    rest = draw(
        st.text("0123456789", min_size=length - 1 - len(prefix), max_size=length - 1 - len(prefix))
    )
    return prefix + rest + check_digit(prefix + rest)


@st.composite
def written(draw: st.DrawFn) -> Any:
    """A card number as it may stand in a request: with separators, in a text, as a number."""
    digits = draw(card_numbers())
    if draw(st.booleans()) and draw(st.booleans()):
        return int(digits)
    marks = draw(st.lists(st.sampled_from(["", "", "", " ", "-"]), min_size=20, max_size=20))
    text = "".join(digit + mark for digit, mark in zip(digits, marks, strict=False)).rstrip(" -")
    before = draw(st.sampled_from(["", "card ", "x", "2018-08-14 ", "12-", "é", "-", "\n"]))
    return before + text + draw(st.sampled_from(["", ".", "y", " 01/27", " cvv", "\t1"]))


@st.composite
def payloads(draw: st.DrawFn) -> Any:
    """One of them somewhere in a nest of harmless values."""
    value = draw(written())
    harmless = st.one_of(
        st.none(), st.booleans(), st.sampled_from(["c7", 12.5, 1534237290, [], {}])
    )
    for _ in range(draw(st.integers(0, 6))):
        others = draw(st.lists(harmless, max_size=3))
        place = draw(st.integers(0, 2))
        if place == 0:
            value = [*others, value, *others]
        elif place == 1 or not isinstance(value, str):
            value = {"a": others, "customer": value, "b": others}
        else:
            value = {"a": others, value: "c7"}
    return value


@settings(max_examples=300, deadline=None)
@given(card_numbers(), payloads())
def test_every_card_number_at_every_place_is_refused_and_not_repeated(
    digits: str, payload: Any
) -> None:
    assert looks_like_card_number(digits)
    with pytest.raises(RequestError, match="looks like a card number") as error:
        refuse(payload)
    assert sum(character.isdigit() for character in str(error.value)) <= 6  # Of indices at most.


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from(["4", "111111", "0", "55", "3", " ", "-", "x", "1", "378282246310005"])
    )
)
def test_the_search_in_long_texts_agrees_with_the_one_in_short_ones(parts: list[str]) -> None:
    text = "".join(parts)[:100]
    assert looks_like_card_number(text) == bool(len(card_numbers_in(text)))
    assert look_like_card_numbers(["", text, CARD]).tolist()[1:] == [
        looks_like_card_number(text),
        True,
    ]


@pytest.mark.parametrize("card", TEST_CARDS)
def test_published_test_numbers_are_found_and_one_digit_off_is_not(card: str) -> None:
    assert looks_like_card_number(card)
    assert looks_like_card_number(int(card))
    assert looks_like_card_number(f"id {card[:4]}-{card[4:8]} {card[8:]}")
    assert not looks_like_card_number(card[:-1] + str((int(card[-1]) + 1) % 10))


@pytest.mark.parametrize(
    "harmless",
    [
        1534237290123,  # Milliseconds, and all that follow them up to the year 2033.
        "1534237290123",
        1534237290123456,
        "2018-08-14T09:01:30.123456+00:00",
        "2018-08-14 09:01:30",
        "20180814090130",
        "550e8400-e29b-41d4-a716-446655440000",
        "41111111111111110",  # In a longer run of digits.
        "4111  1111 1111 1111",  # Two spaces.
        "4111.1111.1111.1111",
        "411111111111",
        "00000000000000",
        12.5,
        4111111111111111.5,
        float("nan"),
        float("inf"),
        True,
        None,
        10**4000,
        b"4111111111111111",
    ],
)
def test_what_is_no_card_number_passes(harmless: Any) -> None:
    refuse({"transactions": [{"time": harmless}]})


@pytest.mark.parametrize("start", [10**12, 17 * 10**11, 1999999990000])
def test_no_time_in_milliseconds_is_taken_for_a_card(start: int) -> None:
    assert not any(looks_like_card_number(start + step) for step in range(10_000))


def test_digits_of_other_scripts_count() -> None:
    full_width = CARD.translate({ord(str(digit)): 0xFF10 + digit for digit in range(10)})
    assert looks_like_card_number(full_width)
    assert looks_like_card_number("4111\u20111111\u00a01111\u20131111")


@pytest.mark.parametrize(
    ("payload", "place"),
    [
        ({"transactions": [{"customer": CARD}]}, "(transactions[0].customer)"),
        (
            {"transactions": [{"a": 1}, {"note": {"more": ["", CARD]}}]},
            "(transactions[1].note.more[1])",
        ),
        ({"history": [{CARD: 1}]}, "(a key of history[0])"),
        ({CARD: 1}, "(a key of the request)"),
        ([[int(CARD)]], "([0][0])"),
        (CARD, "(the request)"),
        ({"john smith 1970": CARD}, "((a field))"),
    ],
)
def test_the_place_is_named(payload: Any, place: str) -> None:
    with pytest.raises(RequestError) as error:
        refuse(payload)
    assert place in str(error.value)


def test_depth_is_no_way_around() -> None:
    deep: Any = CARD
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(RequestError) as error:
        refuse({"transactions": deep})
    assert len(str(error.value)) < 200


def test_a_very_long_text_is_looked_through_quickly() -> None:
    assert not looks_like_card_number("7" * 3_000_000)
    assert looks_like_card_number("1-" * 500_000 + CARD)


def test_predict_refuses_cards_before_anything_else() -> None:
    request = signature(FraudSettings()).request | {"comment": f"paid with {CARD}"}
    with pytest.raises(RequestError, match=r"looks like a card number \(comment\)"):
        decode(FraudSettings(), request)


# --- The table ------------------------------------------------------------------------------------


def table(path: Path, **columns: list[Any]) -> Path:
    rows = {
        "id": ["a", "b", "c"],
        "time": [86_400, 86_401, 86_402],
        "customer": ["x", "y", "x"],
        "terminal": ["m", "m", "m"],
        "amount": [1.0, 2.0, 3.0],
        "label": [0, 1, 0],
    }
    pl.DataFrame(rows | columns).write_csv(path)
    return path


@pytest.mark.parametrize(
    ("column", "values", "count", "row"),
    [
        ("customer", ["x", CARD, CARD], "2 rows", 3),
        ("customer", [int(CARD)] * 3, "3 rows", 2),
        ("terminal", ["m", "m", "4111-1111 11111111"], "1 row", 4),
        ("id", ["a", "b", f"order {CARD}!"], "1 row", 4),
    ],
)
def test_check_names_column_row_and_count_of_card_numbers(
    tmp_path: Path, column: str, values: list[Any], count: str, row: int
) -> None:
    path = table(tmp_path / "t.csv", **{column: values})
    found = [each for each in check_transactions(path) if "card number" in each.what]
    assert [each.level for each in found] == ["error"]
    assert f"the column '{column}'" in found[0].what
    assert found[0].what.endswith(f"in {count}")
    assert found[0].where.endswith(f"row {row}")
    assert "1111" not in str(found)


def test_a_file_with_card_numbers_is_not_read(tmp_path: Path) -> None:
    path = table(tmp_path / "t.csv", customer=[CARD, "y", "z"])
    with pytest.raises(DataError, match="looks like a card number in 1 row"):
        read_transactions(path)
    settings = FraudSettings(data=FraudData(path=path))
    assert any("card number" in finding.what for finding in check(settings))


def test_the_column_is_named_as_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    pl.read_csv(table(path, customer=[CARD, "y", "z"])).rename({"customer": "kunde"}).write_csv(
        path
    )
    columns = {role: role for role in ("id", "time", "terminal", "amount", "label")}
    found = list(check_transactions(path, columns | {"customer": "kunde"}))
    assert "the column 'kunde' (customer)" in found[0].what


def test_long_identifiers_that_are_no_cards_pass(tmp_path: Path) -> None:
    uuids = [f"550e8400-e29b-41d4-a716-44665544000{digit}" for digit in range(3)]
    path = table(tmp_path / "t.csv", id=uuids, customer=["1534237290123"] * 3)
    assert not [each for each in check_transactions(path) if each.level == "error"]


# --- Hashes ---------------------------------------------------------------------------------------


def of(folder: Path, **serve: Any) -> FraudSettings:
    return FraudSettings(serve=FraudServe(folder=folder, **serve))


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


def test_a_hash_depends_on_key_and_value_and_on_nothing_else() -> None:
    one, other = Identifiers(b"k" * 16), Identifiers(b"l" * 16)
    assert one.hashed("c7") == Identifiers(b"k" * 16).hashed("c7")
    assert len({one.hashed("c7"), one.hashed("c8"), other.hashed("c7")}) == 3
    assert one.hashed("c7") == one.hashed("c7")  # Hashing leaves no trace in the object.
    assert all(len(one.hashed(value)) == 32 for value in ("", "é", "\ud800", "x" * 10_000))


def test_a_long_key_counts_in_its_whole_length() -> None:
    assert Identifiers(b"k" * 100).hashed("c7") != Identifiers(b"k" * 99 + b"l").hashed("c7")


def test_the_key_comes_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "0123456789abcdef")
    assert load_identifiers(of(tmp_path)).hashed("c7") == Identifiers(b"0123456789abcdef").hashed(
        "c7"
    )
    assert not (tmp_path / FILE).exists()


def test_a_short_key_is_refused_and_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "hunter2")
    with pytest.raises(PegboardError, match="shorter than 16 characters") as error:
        load_identifiers(of(tmp_path))
    assert "hunter2" not in str(error.value)


def test_without_one_a_key_is_made_once_for_its_owner_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = load_identifiers(of(tmp_path / "new"))
    path = tmp_path / "new" / FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "PEGBOARD_IDENTIFIER_KEY" in caplog.text
    assert path.read_text() not in caplog.text
    assert load_identifiers(of(tmp_path / "new")).hashed("c7") == first.hashed("c7")
    assert len(caplog.records) == 1
    assert os.listdir(tmp_path / "new") == [FILE]  # noqa: PTH208 - nothing temporary is left.


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    load_identifiers(of(tmp_path))
    (tmp_path / FILE).chmod(0o640)
    with pytest.raises(PegboardError, match="can be read by others"):
        load_identifiers(of(tmp_path))


def test_a_truncated_key_is_refused(tmp_path: Path) -> None:
    load_identifiers(of(tmp_path))
    (tmp_path / FILE).write_text("")
    with pytest.raises(PegboardError, match="damaged"):
        load_identifiers(of(tmp_path))


def test_a_shared_state_needs_the_key(tmp_path: Path) -> None:
    with pytest.raises(PegboardError, match="servers share"):
        load_identifiers(of(tmp_path, state="redis://localhost/0"))
    assert not (tmp_path / FILE).exists()


def test_a_server_on_trial_leaves_what_is_shared_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from pegboard_fraud.online import LocalState, open_state

    settings = of(tmp_path, state="redis://localhost/0", trial=True)
    load_identifiers(settings)
    assert (tmp_path / FILE).exists()
    assert not caplog.records
    assert isinstance(open_state(settings, tmp_path / "state"), LocalState)
