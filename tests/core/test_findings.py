"""Words of findings, and what leaks from split to split."""

from __future__ import annotations

from pegboard.findings import copies_across, counted, first_few, separated


def test_the_first_few_places_are_named_and_the_others_counted() -> None:
    assert first_few(["a", "b"]) == "a, b"
    assert first_few("abcde") == "a, b, c and 2 more"
    assert first_few("abcde", most=4) == "a, b, c, d and 1 more"


def test_nouns_follow_their_number() -> None:
    words = [counted(1, "box"), counted(2, "box"), counted(1000, "scan"), counted(3, "series")]
    assert words == ["1 box", "2 boxes", "1,000 scans", "3 series"]


def test_copies_count_where_a_split_lies_between() -> None:
    digests = [("x", "a"), ("x", "b"), ("y", "c"), ("y", "d"), ("z", "e"), ("z", "unused")]
    places = {"a": "train", "b": "test", "c": "train", "d": "train", "e": "train"}
    assert copies_across(digests, places) == ["a = b"]


def test_a_group_that_was_given_two_splits_is_named() -> None:
    given = [("one", "train"), ("one", "test"), ("two", "train"), ("two", None), ("", "test")]
    assert separated(given) == ["one"]
