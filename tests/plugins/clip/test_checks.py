"""What the check finds in data that would spoil a model, or flatter it."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pegboard.progress import SilentProgress
from pegboard.records import Finding
from pegboard_clip import data
from pegboard_clip.settings import ClipSettings

Make = Callable[..., ClipSettings]
Write = Callable[..., None]
NAMES = [f"{number}.png" for number in range(60)]


@dataclass
class Table:
    """A table of pictures that a test changes."""

    folder: Path
    rows: list[list[str]]
    make: Make

    def check(self, model: dict[str, Any] | None = None, **given: Any) -> list[Finding]:
        path = self.folder / "captions.csv"
        with path.open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows([["image", "caption", "split", "label"], *self.rows])
        given = {"path": path, "validation_share": 0.0, **given}
        settings = self.make(model=model, **given)
        try:
            data.prepare(settings, SilentProgress())
        except Exception as error:  # What prepare refuses, the check says, too.
            assert type(error).__name__ == "DataError"
        return data.check(settings)


@pytest.fixture
def table(tmp_path: Path, make: Make, write_pictures: Write) -> Table:
    write_pictures(tmp_path, NAMES, size=(80, 80))
    splits = ["train"] * 40 + ["validation"] * 10 + ["test"] * 10
    rows = [[name, f"number {name}", split, ""] for name, split in zip(NAMES, splits, strict=True)]
    return Table(tmp_path, rows, make)


def found(findings: Sequence[Finding], words: str) -> Finding:
    some = [finding for finding in findings if words in finding.what]
    assert len(some) == 1, [finding.what for finding in findings]
    return some[0]


def silent(findings: Sequence[Finding], words: str) -> bool:
    return not any(words in finding.what for finding in findings)


def test_sound_data_get_their_counts_alone(tiny: ClipSettings) -> None:
    [finding] = data.check(tiny)
    assert finding.level == "note"
    assert finding.what.startswith("64 pictures with 256 captions, 7 labels; train 192,")


def test_missing_pictures_are_counted_and_the_first_are_named(table: Table) -> None:
    for name in NAMES[:5]:
        (table.folder / name).unlink()
    finding = found(table.check(), "missing")
    assert finding.what == "5 pictures of 60 missing" and finding.level == "error"
    assert finding.where == "0.png, 1.png, 2.png and 2 more" and "data.images" in finding.remedy


def test_unreadable_pictures_are_named(table: Table) -> None:
    content = (table.folder / "7.png").read_bytes()
    (table.folder / "7.png").write_bytes(content[: len(content) // 2])
    finding = found(table.check(), "cannot be used")
    assert (finding.level, finding.where) == ("error", "7.png")


def test_pictures_of_too_many_pixels_are_named(table: Table) -> None:
    Image.new("RGB", (90, 80)).save(table.folder / "3.png")
    assert "90 x 80 pixels" in found(table.check(pixels=6400), "cannot be used").what


def test_empty_captions_are_an_error(table: Table) -> None:
    table.rows[3][1] = " "
    finding = found(table.check(), "empty")
    assert (finding.level, finding.where) == ("error", "3.png")


def test_a_picture_in_two_splits_under_two_names_is_named(table: Table) -> None:
    (table.folder / "59.png").write_bytes((table.folder / "2.png").read_bytes())
    (table.folder / "1.png").write_bytes((table.folder / "0.png").read_bytes())  # Both in train.
    finding = found(table.check(), "the same in more than one split")
    assert (finding.level, finding.where) == ("warning", "2.png = 59.png")


def test_a_saved_again_and_smaller_copy_is_nearly_the_same(table: Table) -> None:
    with Image.open(table.folder / "2.png") as picture:
        picture.resize((76, 76), Image.Resampling.BICUBIC).save(table.folder / "59.jpg", quality=90)
    table.rows[59][0] = "59.jpg"
    findings = table.check()
    assert found(findings, "nearly the same").where == "2.png = 59.jpg"
    assert silent(findings, "picture the same")


@pytest.mark.slow
def test_different_pictures_are_not_nearly_the_same(emoji: Path, make: Make) -> None:
    settings = make(path=emoji)
    data.prepare(settings, SilentProgress())
    assert [finding.level for finding in data.check(settings)] == ["note"]


def test_captions_that_the_context_cuts_are_counted(table: Table) -> None:
    table.rows[4][1] = "a very long caption " * 30
    finding = found(table.check(model={"context": 16}), "cut after 16 tokens")
    assert finding.what.startswith("1 caption of 60") and finding.where == "4.png"


def test_captions_in_a_script_that_the_vocabulary_lacks_are_counted(table: Table) -> None:
    for row in table.rows[55:]:  # The vocabulary is learnt from the train split.
        row[1] = f"一颗星星{row[0]}"
    finding = found(table.check(), "has not met")
    assert finding.what.startswith("5 captions of 60") and finding.level == "warning"


def test_a_missing_vocabulary_is_a_finding_and_no_crash(table: Table) -> None:
    findings = table.check(model={"vocabulary": table.folder / "none.json"})
    assert found(findings, "no such file").level == "error"


def test_captions_that_pictures_share_are_noted(table: Table) -> None:
    for row in table.rows[:3]:
        row[1] = "a cat"
    finding = found(table.check(), "shared word for word")
    assert finding.where == "train split: 'a cat' (3)" and finding.level == "note"


def test_a_caption_twice_of_one_picture_is_not_shared(table: Table) -> None:
    table.rows.append(list(table.rows[0]))
    assert silent(table.check(), "shared")


def test_labels_that_are_not_listed_are_counted(table: Table) -> None:
    for row, label in zip(table.rows, ("cat", "dog", "dog"), strict=False):
        row[3] = label
    findings = table.check(labels=("cat", "cow"))
    assert found(findings, "data.labels lacks").where == "'dog' (2)"
    assert found(findings, "without a picture").where == "'cow'"


def test_pictures_smaller_than_the_model_sees_are_noted(table: Table) -> None:
    assert silent(table.check(), "fewer pixels")
    finding = found(table.check(model={"image_size": 96}), "fewer pixels")
    assert finding.what.startswith("60 pictures") and "80 x 80" in finding.what


def test_a_split_with_few_pictures_measures_little(table: Table) -> None:
    findings = table.check()
    assert found(findings, "in the test split").what.startswith("10 pictures")
    assert found(findings, "in the train split").what.startswith("40 pictures")


def test_a_split_without_pictures_is_an_error(table: Table) -> None:
    table.rows = table.rows[:50]
    assert found(table.check(test_share=0.0), "no pair in the test split").level == "error"


def test_captions_of_a_picture_in_two_splits_are_named(table: Table) -> None:
    table.rows.append(["0.png", "again", "test", ""])
    assert found(table.check(), "given to several splits").where == "0.png"


def test_data_that_cannot_be_read_are_one_error(table: Table) -> None:
    table.rows[0][2] = "trian"
    [finding] = table.check()
    assert (finding.level, finding.what) == ("error", "the split 'trian' is not known")
