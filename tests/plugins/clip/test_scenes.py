"""The generated scenes: what they hold back, and what a bag of words makes of them."""

from __future__ import annotations

import csv
import itertools
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pegboard.progress import SilentProgress
from pegboard_clip.captions import BACKGROUNDS, COLOURS, SHAPES, captions
from pegboard_clip.drawing import SIDE, draw
from pegboard_clip.scenes import FAMILY, Scene, Things, describe, is_held_out, write_scenes

SEED = 20261126


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return describe(4000, seed=SEED)


def of_split(scenes: list[Scene], split: str) -> list[Scene]:
    return [scene for scene in scenes if scene.split == split]


# --- Which scenes ---------------------------------------------------------------------------------


def test_a_bag_of_words_finds_the_picture_in_a_third_of_the_cases(scenes: list[Scene]) -> None:
    # It knows every word of every picture, and cannot tell pictures with the same words apart:
    # among n of them its R@1 is 1/n. Nine families in ten have four such pictures.
    test = of_split(scenes, "test")
    bags = Counter(scene.words for scene in test)
    recall = np.mean([1 / bags[scene.words] for scene in test])
    assert recall == pytest.approx(0.325)


def test_no_colour_of_a_shape_in_the_test_split_was_trained_on_where_it_is_held_out(
    scenes: list[Scene],
) -> None:
    trained = {
        (things.colour, things.shape)
        for scene in scenes
        if scene.split != "test"
        for things in scene.things
    }
    for scene in of_split(scenes, "test"):
        pairs = {(things.colour, things.shape) for things in scene.things}
        assert pairs - trained
    assert not any(is_held_out(*pair) for pair in trained)
    assert len(trained) == len(COLOURS) * len(SHAPES) * 2 / 3


def test_every_word_of_the_test_split_was_trained_on(scenes: list[Scene]) -> None:
    words = {
        split: {word for scene in of_split(scenes, split) for word in scene.words}
        for split in ("train", "test")
    }
    assert words["test"] <= words["train"]
    assert {*COLOURS, *SHAPES, *BACKGROUNDS} <= words["train"]


def test_no_caption_of_the_test_split_fits_two_scenes(scenes: list[Scene]) -> None:
    # Size and background are not told: a caption that lacks them is true of any.
    test = of_split(scenes, "test")
    told = {
        (scene.relation, *((t.colour, t.shape, t.count) for t in scene.things)) for scene in test
    }
    assert len(told) == len(test)


def test_a_family_has_the_same_words_in_four_ways(scenes: list[Scene]) -> None:
    test = of_split(scenes, "test")
    families = [test[i : i + FAMILY] for i in range(0, len(test), FAMILY)]
    bound = [family for family in families if family[0].second is not None]
    assert len(bound) == 0.9 * len(families)
    for family in bound:
        assert len({scene.words for scene in family}) == 1
        assert len({(scene.first, scene.second) for scene in family}) == FAMILY


def test_the_splits_have_the_shares_that_are_asked_for() -> None:
    scenes = describe(400, seed=1, validation_share=0.2, test_share=0.3)
    counts = Counter(scene.split for scene in scenes)
    assert counts == {"train": 200, "validation": 80, "test": 120}
    assert not of_split(describe(40, seed=1, test_share=0.0), "test")


def test_the_same_seed_gives_the_same_scenes() -> None:
    assert describe(64, seed=1) == describe(64, seed=1) != describe(64, seed=2)


def test_a_scene_with_one_shape_has_its_label(scenes: list[Scene]) -> None:
    labels = Counter(scene.label for scene in of_split(scenes, "test"))
    assert set(labels) == {*SHAPES, ""} and labels[""] == 0.6 * 400


# --- Captions -------------------------------------------------------------------------------------

TWO = Scene(
    first=Things(shape="circle", colour="orange"),
    second=Things(shape="cross", colour="blue", count=2, size="large"),
    relation="beside",
    background="striped",
    split="train",
)


def said(scene: Scene, language: str) -> set[str]:
    return {
        caption
        for seed in range(200)
        for caption in captions(scene, language, 2, np.random.default_rng(seed))
    }


def test_english_captions_vary_and_agree_in_number() -> None:
    found = said(TWO, "en")
    assert "an orange circle left of two large blue crosses on a striped background" in found
    assert "two big blue crosses right of an orange circle on a striped background" in found
    assert len(found) > 80


def test_chinese_captions_vary_and_count_with_classifiers() -> None:
    stars = Scene(
        first=Things(shape="circle", colour="red", count=2),
        second=Things(shape="star", colour="blue"),
        relation="beside",
        background="plain",
        split="train",
    )
    found = said(stars, "zh")
    assert "一颗蓝色星星左边的两个红色圆形" in found
    assert "两个红色圆形在一个蓝色星星的左边" in found


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("relation", ["beside", "above", "inside"])
def test_no_caption_is_said_of_the_scene_the_other_way_round(language: str, relation: str) -> None:
    one, other = Things(shape="circle", colour="red"), Things(shape="square", colour="red")
    both = [
        Scene(first=a, second=b, relation=relation, background="plain", split="train")
        for a, b in itertools.permutations((one, other))
    ]
    assert not said(both[0], language) & said(both[1], language)


@pytest.mark.parametrize("relation", ["beside", "above", "inside"])
def test_every_sentence_names_first_what_its_words_say(relation: str) -> None:
    scene = Scene(
        first=Things(shape="circle", colour="red"),
        second=Things(shape="square", colour="red"),
        relation=relation,
        background="plain",
        split="train",
    )
    forwards = ("left of", "to the left", "above", "over", "inside a", "inside one", "within")
    for caption in said(scene, "en"):
        if not caption.startswith(
            ("on the", "at the", "on a plain background on", "on a plain background at")
        ):
            is_first = caption.index("circle") < caption.index("square")
            assert is_first == any(word in caption for word in forwards), caption
    forwards_in_chinese = ("的左边\uff0c", "右边的", "上方", "下面的", "里面\uff0c")
    for caption in said(scene, "zh"):
        if "是一个" not in caption:
            is_first = caption.index("圆形") < caption.index("正方形")
            ends = f"{caption}\uff0c"
            assert is_first == any(word in ends for word in forwards_in_chinese), caption


# --- Pictures -------------------------------------------------------------------------------------


def test_things_lie_where_the_scene_says() -> None:
    for relation, axis in (("beside", 1), ("above", 0)):
        scene = Scene(
            first=Things(shape="circle", colour="black", count=2),
            second=Things(shape="square", colour="red", count=2),
            relation=relation,
            background="plain",
            split="train",
        )
        for seed in range(10):
            picture = draw(scene, np.random.default_rng(seed)).astype(int)
            red = (picture[:, :, 0] - picture[:, :, 1] > 90) & (picture[:, :, 2] < 90)
            black = picture.max(axis=2) < 70
            middles = [float(np.median(np.nonzero(where)[axis])) for where in (black, red)]
            assert middles[0] < middles[1], (relation, seed)


def test_any_things_fit_into_the_picture() -> None:
    for count, size, shape in itertools.product((1, 4), ("", "small", "large"), SHAPES):
        things = Things(shape=shape, colour="blue", count=count, size=size)
        for relation in ("beside", "above", "alone"):
            scene = Scene(
                first=things,
                second=None if relation == "alone" else things,
                relation=relation,
                background="plain",
                split="train",
            )
            assert draw(scene, np.random.default_rng(0)).shape == (SIDE, SIDE, 3)


def test_counting_colours_does_not_tell_a_family_apart() -> None:
    # Nor does it tell families from one another well: tints, light and strokes vary.
    scenes = describe(160, seed=3, test_share=0.5)
    test = of_split(scenes, "test")
    histograms = [
        [
            np.histogramdd(
                draw(scene, np.random.default_rng([turn, number])).reshape(-1, 3).astype(float),
                bins=(4, 4, 4),
                range=((0, 256),) * 3,
            )[0].ravel()
            for number, scene in enumerate(test)
        ]
        for turn in range(2)
    ]
    one, other = (np.sqrt(np.array(some)) for some in histograms)
    found = (one @ other.T).argmax(axis=1)
    assert (found == np.arange(len(test))).mean() < 0.25


# --- Files ----------------------------------------------------------------------------------------


def test_scenes_are_written_as_a_table(tmp_path: Path) -> None:
    described = describe(32, seed=5)
    folder = tmp_path / "scenes"
    write_scenes(folder, described, languages=("zh", "en"), seed=5, progress=SilentProgress())
    with (folder / "captions.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 4 * len(described)
    assert Counter(row["language"] for row in rows) == {"zh": 64, "en": 64}
    assert {row["image"] for row in rows} == {
        path.relative_to(folder).as_posix() for path in folder.glob("images/*")
    }
    assert {row["label"] for row in rows} <= {*SHAPES.values(), ""}
    with Image.open(folder / rows[0]["image"]) as picture:
        assert picture.size == (SIDE, SIDE)
        expected = draw(described[0], np.random.default_rng([5, 0]))
        assert np.array_equal(np.asarray(picture), expected)


def test_a_small_set_takes_less_than_a_second_of_the_processor(tmp_path: Path) -> None:
    began = time.process_time()
    described = describe(64, seed=SEED)
    write_scenes(
        tmp_path / "scenes", described, languages=("en",), seed=SEED, progress=SilentProgress()
    )
    assert time.process_time() - began < 1.0


def test_an_interruption_leaves_no_half_set(tmp_path: Path) -> None:
    class Interrupted(SilentProgress):
        def track(self, items, title, total=None):  # type: ignore[no-untyped-def]
            yield next(iter(items))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_scenes(
            tmp_path / "scenes",
            describe(32, seed=1),
            languages=("en",),
            seed=1,
            progress=Interrupted(),
        )
    assert not list(tmp_path.iterdir())
