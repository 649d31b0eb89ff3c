"""Any folder of pictures trains; what is labelled measures; what is tested stays apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pegboard.batching import stack
from pegboard.errors import DataError
from pegboard.progress import SilentProgress
from pegboard_defect.moco import data
from pegboard_defect.moco.settings import MocoData, MocoModel, MocoSettings

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write so many pictures into each folder; return what they all lie in."""

    def folders(counts: Mapping[str, int]) -> Path:
        generator = np.random.default_rng(0)
        for name, count in counts.items():
            (tmp_path / "parts" / name).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                image = Image.fromarray(generator.integers(0, 256, (40, 40), dtype=np.uint8))
                image.save(tmp_path / "parts" / name / f"p{index:02d}.png")
        return tmp_path / "parts"

    return folders


def settings(path: Path, **changed: Any) -> MocoSettings:
    table = MocoData(path=path, size=(32, 32), classes=("good", "bad"), **changed)
    return MocoSettings(data=table)


def test_a_plain_folder_is_read_whole_and_split_without_a_label(write: Write) -> None:
    table = settings(write({"": 40}))
    splits = data.splits_of(table)
    assert not data.is_labelled(table)
    assert {split: len(parts) for split, parts in splits.items()} == {
        "train": 24,
        "validation": 6,
        "test": 10,
    }
    assert {part.label for parts in splits.values() for part in parts} == {None}
    keys = [part.key for parts in splits.values() for part in parts]
    assert len(set(keys)) == 40


def test_folders_that_are_no_classes_say_nothing(write: Write, tmp_path: Path) -> None:
    table = settings(write({"monday": 12, "tuesday/late": 12, "": 3}))
    assert len(data.all_parts(table)) == 27
    assert not data.is_labelled(table)
    with pytest.raises(DataError, match=r"'monday' is not in data\.classes"):
        data.check(settings(tmp_path / "parts", labelled="yes"))


def test_known_classes_are_labels_and_what_has_none_trains(write: Write) -> None:
    table = settings(write({"good": 20, "bad": 20, "": 15, "later": 5}))
    splits = data.splits_of(table)
    assert data.is_labelled(table)
    without = [sum(part.label is None for part in parts) for parts in splits.values()]
    assert without == [20, 0, 0]
    assert [data.label_of(part, table.data) for part in splits["test"]].count(1) == 5
    assert len(splits["train"]) == 24 + 20


def test_labels_that_are_not_to_be_looked_at_are_not(write: Write) -> None:
    table = settings(write({"good": 20, "bad": 20}), labelled="no")
    assert {part.label for part in data.all_parts(table)} == {None}
    assert not data.is_labelled(table)
    assert len(data.load(table, "train")) == 24


def test_other_pictures_of_a_part_that_is_tested_do_not_train(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = settings(write({"good": 20, "bad": 20, "": 20}))
    parts = [replace(part, part=Path(part.key).stem) for part in data.all_parts(table)]
    monkeypatch.setattr(data, "all_parts", lambda settings: parts)
    splits = data.splits_of(table)
    names = {split: {part.part for part in chosen} for split, chosen in splits.items()}
    assert any(part.label is None for part in splits["train"])
    assert not names["train"] & (names["validation"] | names["test"])
    # Both pictures of a part have one number, so that neither is found by the other.
    test = data.load(table, "test")
    numbers = {part.part: group for part, group in zip(test.parts, test.groups, strict=True)}
    assert len(set(numbers.values())) == len(numbers) < len(test)


def test_a_sample_is_a_picture_with_what_is_known(write: Write) -> None:
    table = settings(write({"good": 20, "bad": 20}))
    test = data.load(table, "test")
    sample = test[3]
    assert sample.inputs["image"].shape == (32, 32, 1)
    assert sample.inputs["image"].dtype == np.uint8
    assert sample.targets["label"] == data.label_of(test.parts[3], table.data)
    assert sample.targets["view"] == 0
    batch = test.__getitems__([1, 3])
    expected = stack([test[1], test[3]])
    assert batch.keys == expected.keys
    for name, value in {**batch.inputs, **batch.targets}.items():
        assert torch.equal(value, {**expected.inputs, **expected.targets}[name]), name


def test_without_labels_every_measured_picture_has_another_view_that_never_changes(
    write: Write,
) -> None:
    table = settings(write({"": 40}))
    test, train = data.load(table, "test"), data.load(table, "train")
    assert (len(test), len(train)) == (20, 24)
    assert [test[i].targets["view"] for i in (0, 9, 10, 19)] == [0, 0, 1, 1]
    assert test[4].key == test[14].key
    assert not np.array_equal(test[4].inputs["image"], test[14].inputs["image"])
    torch.manual_seed(99)
    again = data.load(table, "test")
    assert np.array_equal(test[14].inputs["image"], again[14].inputs["image"])


def test_a_picture_that_cannot_be_read_is_an_error_that_names_it(write: Write) -> None:
    folder = write({"": 40})
    for index in range(8):
        (folder / f"p{index:02d}.png").write_bytes(b"noise")
    findings = data.check(settings(folder))
    errors = [finding for finding in findings if finding.level == "error"]
    assert len(errors) == data.NAMED + 1
    assert "p00.png" in errors[0].where or "p0" in errors[0].where
    assert errors[-1].what == "3 more pictures cannot be read"


def test_check_says_what_is_missing_and_what_labels_are_for(write: Write) -> None:
    folder = write({"": 40})
    findings = data.check(settings(folder, tile=32))
    assert [(finding.level, finding.what.split(" ")[0]) for finding in findings] == [
        ("warning", "only"),
        ("note", "none"),
        ("warning", "data.tile"),
    ]
    missed = data.check(settings(folder, labelled="yes", layout="classes"))
    assert [(finding.level, finding.what) for finding in missed] == [
        ("error", "there is no picture for the split validation and test"),
        ("error", "0 of 40 pictures have a label, to measure with and not to train"),
    ]
    assert missed[1].remedy == 'set data.labelled = "no"'


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no picture"):
        data.all_parts(settings(tmp_path))


def test_weights_to_compare_with_are_read_from_too(write: Write, tmp_path: Path) -> None:
    table = settings(write({"": 3}))
    checkpoint = tmp_path / "mine.safetensors"
    compared = table.model_copy(update={"model": MocoModel(checkpoint=checkpoint)})
    assert data.prepare(table, SilentProgress()) == [table.data.path]
    assert data.prepare(compared, SilentProgress()) == [table.data.path, checkpoint]
