from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

from pegboard.records import Finding, Split
from pegboard_defect.checks import Task, check
from pegboard_defect.parts import Part
from pegboard_defect.settings import DefectData
from pegboard_defect.splits import assign

SIZE = (48, 32)
SPLITS: tuple[Split, ...] = get_args(Split)


def with_data(**changes: Any) -> DefectData:
    usual = {"classes": ("good", "pit"), "size": SIZE[::-1], "fewest": 2}
    return DefectData(**{**usual, **changes})


def texture(seed: int, size: tuple[int, int] = SIZE) -> Image.Image:
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(40, 220, (8, 10), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)


def save(folder: Path, name: str, image: Image.Image) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / name)
    return folder / name


def mask(folder: Path, name: str, size: tuple[int, int] = SIZE, *, marked: bool = True) -> Path:
    image = Image.new("L", size)
    if marked:
        image.paste(255, (2, 2, 8, 8))
    return save(folder, name, image)


@pytest.fixture
def parts(tmp_path: Path) -> list[Part]:
    """Eighteen sound parts: in each split three good ones and three with pits and masks."""
    return [
        Part(
            image=save(tmp_path, f"{split}{number}.png", texture(100 * place + number)),
            key=f"{split}{number}.png",
            label="pit" if number % 2 else "good",
            mask=mask(tmp_path / "masks", f"{split}{number}.png") if number % 2 else None,
            has_mask=True,
            split=split,
        )
        for place, split in enumerate(SPLITS)
        for number in range(6)
    ]


def changed(parts: Sequence[Part], key: str, **facts: Any) -> list[Part]:
    from dataclasses import replace

    assert any(part.key == key for part in parts)
    return [replace(part, **facts) if part.key == key else part for part in parts]


def found(
    parts: Sequence[Part], data: DefectData | None = None, task: Task = "segment"
) -> list[Finding]:
    data = data or with_data()
    return check(data, Path("/data"), parts, assign(parts, data), task)


def the(level: str, findings: Sequence[Finding], words: str = "") -> Finding:
    """Return the only finding of a level, which has the words."""
    (finding,) = [one for one in findings if one.level == level]
    assert words in finding.what
    assert finding.where
    assert finding.remedy
    return finding


def whats(findings: Sequence[Finding], level: str) -> list[str]:
    return [finding.what for finding in findings if finding.level == level]


def test_of_sound_data_there_are_only_notes(parts: list[Part]) -> None:
    findings = found(parts)
    assert [(finding.level, finding.what, finding.where) for finding in findings] == [
        ("note", "6 pictures: good 3, pit 3", "train split"),
        ("note", "6 pictures: good 3, pit 3", "validation split"),
        ("note", "6 pictures: good 3, pit 3", "test split"),
        ("note", "18 pictures of 48 x 32", "/data"),
    ]


# --- Errors ---------------------------------------------------------------------------------------


def test_unreadable_pictures_are_counted_and_a_few_are_named(parts: list[Part]) -> None:
    whole = parts[0].image.read_bytes()
    for number, part in enumerate(parts[:5]):
        part.image.write_bytes(whole[: len(whole) // 2] if number else b"")
    parts[4].image.unlink()
    error = the("error", found(parts), "5 pictures cannot be read")
    assert error.where == "train0.png, train1.png, train2.png and 2 more"


def test_an_unreadable_mask_is_an_error(parts: list[Part]) -> None:
    assert parts[1].mask is not None
    parts[1].mask.write_bytes(b"no picture")
    assert the("error", found(parts), "1 mask cannot be read").where == "train1.png"


def test_a_mask_of_another_size_than_its_picture_is_an_error(parts: list[Part]) -> None:
    assert parts[1].mask is not None
    mask(parts[1].mask.parent, parts[1].mask.name, size=(24, 16))
    assert the("error", found(parts), "1 mask of another size").where == "train1.png"


def test_an_outline_out_of_its_picture_is_of_another_size(parts: list[Part]) -> None:
    inside = ((0.0, -0.5), (48.5, 0.0), (48.0, 32.0))
    outside = ((0.0, 0.0), (96.0, 0.0), (96.0, 64.0))
    sound = changed(parts, "train1.png", mask=None, polygons=(inside,))
    assert whats(found(sound), "error") == []
    broken = changed(parts, "train1.png", mask=None, polygons=(inside, outside))
    the("error", found(broken), "1 mask of another size")


def test_unknown_classes_come_with_the_line_to_paste(parts: list[Part]) -> None:
    strange = changed(changed(parts, "train0.png", label="bent"), "test0.png", label='5" dent')
    error = the("error", found(strange), "2 pictures of classes that are not in data.classes")
    assert error.where == "train0.png, test0.png"
    assert 'classes = ["good", "pit", "5\\" dent", "bent"]' in error.remedy


def test_the_good_class_is_guessed_by_its_name(parts: list[Part]) -> None:
    data = with_data(classes=("good", "scratch", "pit"))
    called = [
        one
        for part in parts
        for one in changed([part], part.key, label={"good": "OK"}.get(str(part.label), part.label))
    ]
    unknown, none = [one for one in found(called, data) if one.level == "error"]
    assert 'classes = ["OK", "pit"]' in unknown.remedy
    assert "no good part" in none.what


def test_data_without_a_good_part_is_an_error(parts: list[Part]) -> None:
    data = with_data(classes=("fine", "pit", "good"))
    assert "there is no good part: no picture of the class 'fine'" in whats(
        found(parts, data), "error"
    )


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_that_a_split_lacks_is_an_error(parts: list[Part], split: str) -> None:
    for number in (1, 3, 5):
        parts = changed(parts, f"{split}{number}.png", label="good", mask=None)
    findings = found(parts, task="classify")
    assert the("error", findings, f"no picture of 'pit' in the {split} split")


def test_an_anomaly_model_needs_good_parts_to_train_and_any_defect_to_test(
    parts: list[Part],
) -> None:
    data = with_data(classes=("good", "scratch", "pit"))
    for number in (1, 3, 5):
        parts = changed(parts, f"train{number}.png", label="good", mask=None)
    assert whats(found(parts, data, "anomaly"), "error") == []
    for number in (1, 3, 5):
        parts = changed(parts, f"test{number}.png", label="good", mask=None)
    the("error", found(parts, data, "anomaly"), "'any defect' in the test split")


def test_an_empty_split_is_an_error(parts: list[Part]) -> None:
    data = with_data(validation_share=0.0)
    rest = [part for part in parts if part.split != "validation"]
    the("error", found(rest, data), "no picture in the validation split")


def test_segmentation_without_masks_is_an_error(parts: list[Part]) -> None:
    bare = [one for part in parts for one in changed([part], part.key, mask=None, has_mask=False)]
    assert whats(found(bare), "error") == [
        "no defect in the train split has a mask, which the task 'segment' needs",
        "no defect in the test split has a mask, which the task 'segment' needs",
    ]
    assert whats(found(bare, task="classify"), "error") == []


def test_a_region_that_is_not_there_is_an_error(parts: list[Part], tmp_path: Path) -> None:
    region = tmp_path / "region.png"
    finding = the(
        "error", found(parts, with_data(region=region)), "data.region: the picture is missing"
    )
    assert finding.where == str(region)


def test_tiles_of_defects_without_a_mask_are_a_warning(parts: list[Part]) -> None:
    bare = [one for part in parts for one in changed([part], part.key, mask=None, has_mask=False)]
    tiled = found(bare, with_data(tile=32), task="classify")
    warnings = [what for what in whats(tiled, "warning") if "tile" in what]
    assert warnings == [
        "3 defective pictures without a mask to cut tiles from: a tile without the defect counts "
        "as defective"
    ]
    for data, task in ((with_data(tile=32), "anomaly"), (with_data(), "classify")):
        assert not [
            what for what in whats(found(bare, data, task=task), "warning") if "tile" in what
        ]
    masked = whats(found(parts, with_data(tile=32), task="classify"), "warning")
    assert not [what for what in masked if "tile" in what]


def test_data_without_a_label_is_one_error(parts: list[Part]) -> None:
    bare = [one for part in parts for one in changed([part], part.key, label=None)]
    the("error", found(bare), "none of 18 pictures has a label")


def test_a_label_contrary_to_the_probability_is_an_error(parts: list[Part]) -> None:
    said = changed(changed(parts, "train0.png", probability=0.8), "train1.png", probability=0.8)
    assert the("error", found(said), "1 label contrary").where == "train0.png"


def test_equal_pictures_with_different_labels_are_an_error(parts: list[Part]) -> None:
    save(parts[1].image.parent, parts[1].key, texture(0))
    error = the("error", found(parts), "1 picture more than once in the data")
    assert error.where == "train0.png (good) and train1.png (pit)"


# --- Warnings -------------------------------------------------------------------------------------


def test_classes_with_few_pictures_are_a_warning(parts: list[Part]) -> None:
    fewer = [part for part in parts if part.key != "train1.png"]
    warning = the("warning", found(fewer, with_data(fewest=9)), "fewer than 9 pictures of 'pit'")
    assert warning.where == "pit: 8"


def test_equal_pictures_across_splits_are_a_warning(parts: list[Part]) -> None:
    for number in (0, 2, 4):
        save(parts[0].image.parent, f"test{number}.png", texture(number))
    save(parts[0].image.parent, "train5.png", texture(3))  # Within a split it does no harm.
    for near in (0.0, 0.02):
        warning = the("warning", found(parts, with_data(duplicates=near)), "3 pairs of equal")
        assert warning.where.startswith("train0.png (train) and test0.png (test), train2.png")


def test_nearly_equal_pictures_across_splits_are_a_warning(parts: list[Part]) -> None:
    copy = Image.fromarray((np.asarray(texture(0)) * 0.9).astype(np.uint8))
    save(parts[0].image.parent, "test0.png", copy.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    warning = the("warning", found(parts), "1 pair of nearly equal pictures in different splits")
    assert warning.where == "train0.png (train) and test0.png (test)"
    assert whats(found(parts, with_data(duplicates=0.0)), "warning") == []


def test_given_splits_that_separate_a_part_are_a_warning(parts: list[Part]) -> None:
    same = changed(changed(parts, "train0.png", part="p7"), "test0.png", part="p7")
    same = changed(changed(same, "train2.png", part="p8"), "train4.png", part="p8")
    warning = the("warning", found(same), "the given splits separate the pictures of 1 part")
    assert warning.where == "p7"


def test_a_pattern_that_finds_no_part_is_a_warning(parts: list[Part]) -> None:
    data = with_data(part_pattern=r"train(\d)")
    named = [one for part in parts for one in changed([part], part.key, part="p")]
    some = changed(changed(named, "test0.png", part=""), "test1.png", part="")
    warnings = [one for one in found(some, data) if "part_pattern" in one.what]
    assert [one.where for one in warnings] == ["test0.png, test1.png"]


def test_a_mask_contrary_to_the_label_is_a_warning(parts: list[Part]) -> None:
    folder = parts[0].image.parent / "masks"
    black = mask(folder, "black.png", marked=False)
    said = changed(parts, "train1.png", mask=black)
    said = changed(said, "train0.png", mask=mask(folder, "marked.png"))
    said = changed(said, "train2.png", mask=black)
    warning = the("warning", found(said), "2 masks contrary to the label")
    assert warning.where == "train0.png, train1.png"


def test_mixed_colour_modes_are_a_warning(parts: list[Part]) -> None:
    folder = parts[0].image.parent
    save(folder, "train0.png", texture(0).convert("RGB"))
    save(folder, "train1.png", texture(1).convert("RGBA"))
    wide = Image.fromarray(np.asarray(texture(2)).astype(np.uint16) * 200)
    save(folder, "train2.png", wide)
    warning = the("warning", found(parts), "mixed colour modes: grey 15")
    assert warning.what == "mixed colour modes: grey 15, colour 1, alpha 1, 16 bit 1"
    assert warning.where == "train0.png, train1.png, train2.png"


def test_pictures_of_another_shape_are_a_warning(parts: list[Part]) -> None:
    save(parts[0].image.parent, "train0.png", texture(0, (100, 100)))
    save(parts[0].image.parent, "train2.png", texture(2, (100, 60)))
    warning = the("warning", found(parts), "1 picture of another shape than data.size (48 x 32)")
    assert warning.where == "train0.png"


def test_pictures_smaller_than_the_model_sees_are_a_warning(parts: list[Part]) -> None:
    findings = found(parts, with_data(size=(34, 51)))
    warning = the("warning", findings, "18 pictures smaller than data.size (51 x 34), such as 48")
    assert warning.where == "train0.png, train1.png, train2.png and 15 more"


def test_a_validation_split_without_defects_is_a_warning(parts: list[Part]) -> None:
    for number in (1, 3, 5):
        parts = changed(parts, f"validation{number}.png", label="good", mask=None)
    the("warning", found(parts), "not both good and defective parts in the validation split")


# --- Notes ----------------------------------------------------------------------------------------


def test_unlabelled_pictures_are_counted(parts: list[Part]) -> None:
    some = changed(changed(parts, "train0.png", label=None), "train2.png", label=None)
    notes = {one.what: one.where for one in found(some) if one.level == "note"}
    assert notes["2 pictures without a label"] == "train0.png, train2.png"
    assert "4 pictures: good 1, pit 3" in notes


def test_sizes_are_summed_up(parts: list[Part]) -> None:
    save(parts[0].image.parent, "train0.png", texture(0, (60, 40)))
    assert whats(found(parts), "note")[-1] == (
        "18 pictures of 2 sizes from 48 x 32 to 60 x 40, most often 48 x 32"
    )


def test_errors_come_first(parts: list[Part]) -> None:
    parts[0].image.write_bytes(b"no picture")
    levels = [one.level for one in found(parts, with_data(fewest=20))]
    assert levels == sorted(levels, key=["error", "warning", "note"].index)
    assert set(levels) == {"error", "warning", "note"}
