from __future__ import annotations

import random
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pegboard.records import Split
from pegboard_defect.parts import Part
from pegboard_defect.settings import DefectData
from pegboard_defect.splits import assign, unlabelled

DATA = DefectData(classes=("good", "scratch"))


def part(key: str, label: str | None = "good", **facts: Any) -> Part:
    return Part(image=Path("/data", key), key=key, label=label, **facts)


def many(count: int, rare: int = 0) -> list[Part]:
    return [
        part(f"{number:04}.png", "scratch" if number < rare else "good") for number in range(count)
    ]


def keys(splits: dict[Split, list[Part]]) -> dict[str, list[str]]:
    return {split: [part.key for part in parts] for split, parts in splits.items()}


def sizes(splits: dict[Split, list[Part]]) -> list[int]:
    return [len(splits[split]) for split in ("train", "validation", "test")]


def test_the_shares_are_kept_in_every_class() -> None:
    splits = assign(many(400, rare=40), DATA)
    assert sizes(splits) == [240, 60, 100]
    rare = [sum(part.label == "scratch" for part in parts) for parts in splits.values()]
    assert rare == [24, 6, 10]


def test_every_labelled_part_is_in_one_split_in_its_order() -> None:
    parts = many(60, rare=9)
    splits = assign(parts, DATA)
    assert sorted(key for some in keys(splits).values() for key in some) == [p.key for p in parts]
    for some in keys(splits).values():
        assert some == sorted(some)


def test_the_same_seed_gives_the_same_splits_in_any_order() -> None:
    parts = many(90, rare=30)
    shuffled = random.Random(1).sample(parts, len(parts))
    first, again = assign(parts, DATA), assign(shuffled, DATA)
    assert {split: set(some) for split, some in keys(first).items()} == {
        split: set(some) for split, some in keys(again).items()
    }
    other = assign(parts, DATA.model_copy(update={"split_seed": 1}))
    assert keys(other) != keys(first)
    assert sizes(other) == sizes(first)


@settings(max_examples=25, deadline=None)
@given(
    pictures=st.lists(
        st.tuples(st.integers(0, 12), st.sampled_from(["good", "scratch", None])), max_size=60
    ),
    seed=st.integers(0, 5),
)
def test_no_part_is_on_two_sides(pictures: list[tuple[int, str | None]], seed: int) -> None:
    parts = [
        part(f"{number}.png", label, part=f"p{group}" if group else "")
        for number, (group, label) in enumerate(pictures)
    ]
    splits = assign(parts, DATA.model_copy(update={"split_seed": seed}))
    where: dict[str, set[str]] = defaultdict(set)
    for split, some in splits.items():
        for one in some:
            if one.part:
                where[one.part].add(split)
    assert all(len(places) == 1 for places in where.values())
    assert sum(sizes(splits)) == sum(one.label is not None for one in parts)


def test_groups_of_unlike_size_come_near_the_shares() -> None:
    generator = random.Random(0)
    parts = [
        part(f"{group}-{view}.png", label, part=f"p{group}")
        for group in range(120)
        for label in [generator.choice(["good", "good", "scratch"])]
        for view in range(generator.randint(1, 8))
    ]
    total = Counter(one.label for one in parts)
    splits = assign(parts, DATA)
    for split, share in (("train", 0.6), ("validation", 0.15), ("test", 0.25)):
        counts = Counter(one.label for one in splits[split])  # type: ignore[index]
        for label in total:
            assert counts[label] / total[label] == pytest.approx(share, abs=0.02)


def test_unlabelled_parts_take_no_part() -> None:
    parts = [part("a.png", None), part("b.png"), part("c.png", None)]
    assert [one.key for one in unlabelled(parts)] == ["a.png", "c.png"]
    assert sum(sizes(assign(parts, DATA))) == 1
    assert sizes(assign([], DATA)) == [0, 0, 0]


def test_given_splits_are_kept() -> None:
    given_splits: tuple[Split, ...] = ("train", "validation", "test")
    parts = [part(f"{n}.png", split=given_splits[n % 3]) for n in range(9)]
    splits = assign(parts, DATA)
    assert all(one.split == split for split, some in splits.items() for one in some)


def test_a_missing_validation_split_is_taken_from_train() -> None:
    train = [part(f"a{n:03}.png", split="train") for n in range(100)]
    test = [part(f"b{n:03}.png", split="test") for n in range(30)]
    splits = assign(train + test, DATA)
    assert sizes(splits) == [85, 15, 30]
    assert splits["test"] == test


def test_with_train_alone_given_both_others_are_taken_from_it() -> None:
    assert sizes(assign([part(f"{n}.png", split="train") for n in range(100)], DATA)) == [
        60,
        15,
        25,
    ]


def test_parts_without_a_split_are_divided_before_given_ones_are_touched() -> None:
    train = [part(f"a{n:03}.png", split="train") for n in range(50)]
    free = [part(f"b{n:03}.png") for n in range(100)]
    splits = assign(train + free, DATA)
    assert sizes(splits) == [110, 15, 25]
    assert set(keys(splits)["train"]) >= {one.key for one in train}


def test_a_picture_without_a_split_follows_the_other_pictures_of_its_part() -> None:
    parts = [
        part("a.png", part="p", split="test"),
        part("b.png", part="p"),
        *(part(f"{n}.png") for n in range(20)),
    ]
    assert {"a.png", "b.png"} <= set(keys(assign(parts, DATA))["test"])


def test_a_given_split_that_separates_a_part_is_left_as_it_is() -> None:
    parts = [
        part("a.png", part="p", split="test"),
        part("b.png", part="p", split="train"),
        *(part(f"{n}.png", split="train") for n in range(40)),
    ]
    for seed in range(5):
        splits = keys(assign(parts, DATA.model_copy(update={"split_seed": seed})))
        assert "a.png" in splits["test"]
        assert "b.png" in splits["train"]


def test_a_single_picture_of_a_class_is_trained_on() -> None:
    splits = assign(many(40, rare=1), DATA)
    assert [one.label for one in splits["train"]].count("scratch") == 1
