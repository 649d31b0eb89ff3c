"""Splits and samples."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pegboard.batching import stack
from pegboard.errors import DataError
from pegboard.progress import SilentProgress
from pegboard.records import Split
from pegboard_clip import data
from pegboard_clip.layouts import Pair, Source
from pegboard_clip.settings import ClipData, ClipSettings
from pegboard_clip.splits import assign
from pegboard_clip.tokenizer import tokenizer_of, trained_file

Make = Callable[..., ClipSettings]
Write = Callable[..., None]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def write_table(path: Path, rows: Sequence[Sequence[str]], header: str = "image,caption") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([header.split(","), *rows])
    return path


def pairs_of(names: Sequence[str], split: Any = "", turns: int = 2) -> list[Pair]:
    return [
        Pair(image=Source(Path(name)), caption=f"{name} {turn}", key=name, split=split)
        for name in names
        for turn in range(turns)
    ]


def keys(splits: dict[Split, list[Pair]]) -> dict[str, set[str]]:
    return {split: {pair.key for pair in some} for split, some in splits.items()}


# --- Splits ---------------------------------------------------------------------------------------

NAMES = [f"{number}.png" for number in range(40)]


def test_all_captions_of_a_picture_stay_together() -> None:
    found = keys(assign(pairs_of(NAMES), ClipData(validation_share=0.25, test_share=0.1)))
    assert {split: len(some) for split, some in found.items()} == {
        "train": 26,
        "validation": 10,
        "test": 4,
    }
    assert sum(map(len, found.values())) == len(set.union(*found.values()))


def test_the_order_of_the_pairs_changes_no_split() -> None:
    pairs = pairs_of(NAMES)
    one, other = assign(pairs, ClipData()), assign(pairs[::-1], ClipData())
    assert keys(one) == keys(other)
    assert keys(one) != keys(assign(pairs, ClipData(split_seed=1)))


def test_given_splits_are_kept_and_missing_ones_are_taken_of_train() -> None:
    pairs = [*pairs_of(NAMES[:30], "train"), *pairs_of(NAMES[30:], "validation")]
    found = keys(assign(pairs, ClipData(test_share=0.2)))
    assert found["validation"] == set(NAMES[30:]) and len(found["test"]) == 6


def test_pictures_without_a_split_are_taken_before_those_of_train() -> None:
    pairs = [*pairs_of(NAMES[:30], "train"), *pairs_of(NAMES[30:])]
    found = keys(assign(pairs, ClipData(validation_share=0.2, test_share=0.2)))
    assert set(NAMES[:30]) <= found["train"]
    assert len(found["validation"]) == len(found["test"]) == 2


def test_a_picture_in_two_splits_goes_to_the_one_that_measures() -> None:
    pairs = [*pairs_of(["a"], "test"), *pairs_of(["a", "b"], "train"), *pairs_of(["c"], "val")]
    pairs[-2:] = pairs_of(["c"], "validation")
    assert keys(assign(pairs, ClipData()))["test"] == {"a"}


def test_pictures_with_the_same_bytes_are_never_separated(
    tmp_path: Path, write_pictures: Write
) -> None:
    write_pictures(tmp_path, NAMES)
    for number in range(0, 40, 2):
        (tmp_path / NAMES[number]).write_bytes((tmp_path / NAMES[number + 1]).read_bytes())
    pairs = [
        Pair(image=Source(tmp_path / name), caption=name, key=name) for name in reversed(NAMES)
    ]
    settings = ClipData(validation_share=0.3, test_share=0.3)
    for some in keys(assign(pairs, settings)).values():
        assert {int(name[:-4]) ^ 1 for name in some} == {int(name[:-4]) for name in some}


def test_a_copy_of_a_picture_with_a_split_follows_it(tmp_path: Path, write_pictures: Write) -> None:
    write_pictures(tmp_path, NAMES[:10])
    (tmp_path / "copy.png").write_bytes((tmp_path / "0.png").read_bytes())
    names = [*NAMES[:10], "copy.png"]
    pairs = [
        Pair(
            image=Source(tmp_path / name),
            caption=name,
            key=name,
            split="test" if name == "0.png" else "",
        )
        for name in names
    ]
    assert keys(assign(pairs, ClipData()))["test"] == {"0.png", "copy.png"}


# --- The embedded scenes --------------------------------------------------------------------------


def test_the_embedded_splits_share_no_picture(tiny: ClipSettings) -> None:
    found = keys(data.splits_of(tiny.data))
    assert {split: len(some) for split, some in found.items()} == {
        "train": 48,
        "validation": 8,
        "test": 8,
    }


def test_preparing_again_makes_nothing_again(tiny: ClipSettings) -> None:
    files = [data.source(tiny.data), trained_file(tiny)]
    before = [path.stat().st_mtime_ns for path in files]
    assert data.prepare(tiny, SilentProgress()) == [files[0].parent]
    assert [path.stat().st_mtime_ns for path in files] == before


def test_other_settings_make_another_set(make: Make) -> None:
    asked = [{}, {"languages": ("zh",)}, {"tiny": True}, {"test_share": 0.2}, {"scenes": 8}]
    places = {data.source(make(**one).data) for one in asked}
    assert len(places) == len(asked)


def test_the_users_columns_do_not_reach_the_embedded_table(make: Make) -> None:
    settings = make(tiny=True, caption_column="text", layout="coco", languages=("zh",))
    data.prepare(settings, SilentProgress())
    assert len(data.load(settings, "train")) == 48 * 2


# --- Samples --------------------------------------------------------------------------------------


def test_a_sample_has_its_picture_tokens_and_numbers(tiny: ClipSettings) -> None:
    dataset = data.load(tiny, "test")
    sample = dataset[7]
    assert sample.inputs["image"].shape == (72, 72, 3)
    assert sample.inputs["image"].dtype == np.uint8
    tokens = sample.inputs["tokens"]
    caption = dataset.captions[sample.targets["caption_id"]]
    assert np.array_equal(tokens, tokenizer_of(tiny)([caption])[0]) and tokens.dtype == np.int64
    assert caption == dataset.pairs[7].caption
    assert dataset.image_keys[sample.targets["image_id"]] == sample.key == dataset.pairs[7].key
    assert sample.targets["row"] == 7


def test_samples_stack_into_a_batch(tiny: ClipSettings) -> None:
    dataset = data.load(tiny, "train")
    batch = stack([dataset[index] for index in range(6)])
    assert batch.inputs["image"].shape == (6, 72, 72, 3)
    assert batch.inputs["tokens"].shape == (6, 77)
    assert batch.targets["image_id"].tolist() == [0, 0, 0, 0, 1, 1]


def test_an_epoch_has_one_pair_of_every_picture_and_captions_take_turns(
    tiny: ClipSettings,
) -> None:
    dataset = data.load(tiny, "train")
    epochs = [dataset.epoch_indices(epoch, seed=3) for epoch in range(4)]
    for chosen in epochs:
        assert sorted(dataset.image_ids[chosen]) == list(range(48))
    assert sorted(np.concatenate(epochs)) == list(range(len(dataset)))
    assert np.array_equal(epochs[1], dataset.epoch_indices(1, seed=3))
    assert not np.array_equal(epochs[1], dataset.epoch_indices(1, seed=4))


def test_turns_are_taken_where_captions_do_not_follow_their_picture(
    make: Make, tmp_path: Path, write_pictures: Write
) -> None:
    write_pictures(tmp_path, ["a.png", "b.png"])
    rows = [("a.png", "one"), ("b.png", "two"), ("a.png", "three"), ("a.png", "two")]
    table = write_table(
        tmp_path / "t.csv", [(*row, "train") for row in rows], "image,caption,split"
    )
    settings = make(path=table)
    data.prepare(settings, SilentProgress())
    dataset = data.load(settings, "train")
    chosen = {tuple(dataset.epoch_indices(epoch, seed=0)) for epoch in range(3)}
    assert chosen == {(0, 1), (2, 1), (3, 1)}
    # A caption that two pictures share is one caption.
    assert dataset.captions == ["one", "two", "three"]
    assert dataset.caption_ids.tolist() == [0, 1, 2, 1]


def test_pictures_beyond_the_memory_are_read_again(
    make: Make, tmp_path: Path, write_pictures: Write
) -> None:
    names = [f"{number}.png" for number in range(4)]
    write_pictures(tmp_path, names)
    table = write_table(
        tmp_path / "t.csv", [(name, name, "train") for name in names], "image,caption,split"
    )
    # A megabyte holds three pictures of 333 pixels.
    settings = make(
        path=table, cache_mb=1, test_share=0, validation_share=0, model={"image_size": 333}
    )
    data.prepare(settings, SilentProgress())
    dataset = data.load(settings, "train")
    first = [dataset[index].inputs["image"].copy() for index in range(4)]
    for name in names:
        (tmp_path / name).unlink()
    assert all(np.array_equal(dataset[i].inputs["image"], first[i]) for i in range(3))
    with pytest.raises(DataError, match=r"missing.*3.png"):
        dataset[3]


def test_labels_are_those_of_the_settings_or_of_the_column(
    make: Make, tmp_path: Path, write_pictures: Write
) -> None:
    write_pictures(tmp_path, ["a.png"])
    rows = [("a.png", word, "train", word) for word in ("dog", "cat", "")]
    table = write_table(tmp_path / "t.csv", rows, "image,caption,split,label")
    for labels, expected in (((), [1, 0]), (("dog", "cow"), [0, -1])):
        settings = make(path=table, labels=labels)
        data.prepare(settings, SilentProgress())
        dataset = data.load(settings, "train")
        # The pair without a caption is left out.
        assert [int(dataset[i].targets["label"]) for i in range(len(dataset))] == expected
        assert dataset.labels == (labels or ("cat", "dog"))


def test_preparing_names_the_pictures_so_that_a_change_is_noticed(
    make: Make, tmp_path: Path, write_pictures: Write
) -> None:
    write_pictures(tmp_path / "photos", ["a.png", "b.png"])
    table = write_table(tmp_path / "captions.csv", [("a.png", "x"), ("b.png", "y"), ("b.png", "z")])
    files = data.prepare(make(path=tmp_path), SilentProgress())
    assert files == [table, tmp_path / "photos" / "a.png", tmp_path / "photos" / "b.png"]


def test_other_captions_give_another_vocabulary(
    make: Make, tmp_path: Path, write_pictures: Write
) -> None:
    write_pictures(tmp_path, NAMES)
    table = write_table(tmp_path / "t.csv", [(name, "red circle") for name in NAMES])
    settings = make(path=table)
    data.prepare(settings, SilentProgress())
    before = trained_file(settings).read_bytes()
    write_table(table, [(name, "一颗星星") for name in NAMES])
    os.utime(table, ns=(1, 1))
    data.prepare(settings, SilentProgress())
    assert trained_file(settings).read_bytes() != before
    assert tokenizer_of(settings).knows("星星")


def test_an_empty_split_is_refused(make: Make, tmp_path: Path, write_pictures: Write) -> None:
    write_pictures(tmp_path, ["a.png"])
    settings = make(path=write_table(tmp_path / "t.csv", [("a.png", "x")]))
    data.prepare(settings, SilentProgress())
    with pytest.raises(DataError, match="the test split has no pair"):
        data.load(settings, "test")


def test_noto_emoji_is_loaded(make: Make, emoji: Path) -> None:
    settings = make(path=emoji / "captions.csv", label_column="base_concept")
    data.prepare(settings, SilentProgress())
    dataset = data.load(settings, "test")
    assert (len(dataset), len(dataset.image_keys)) == (406, 406)
    # White around the picture, not what lies under the transparency.
    assert dataset[0].inputs["image"][0, 0].tolist() == [255, 255, 255]
