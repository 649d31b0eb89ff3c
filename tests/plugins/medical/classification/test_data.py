"""From a table to samples: labels, patients, masks, and what is wrong with them."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from pegboard.errors import DataError
from pegboard.progress import SilentProgress
from pegboard.records import Split
from pegboard_medical.classification import data
from pegboard_medical.classification.settings import ClassificationData, ClassificationSettings

from .conftest import write_findings, write_table

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def changed(folder: Path, **columns: dict[int, str]) -> ClassificationSettings:
    """Write findings and change single cells of their table, by column and row."""
    path = write_findings(folder, patients=12)
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for column, cells in columns.items():
        for place, text in cells.items():
            rows[place][column] = text
    write_table(path, rows)
    return ClassificationSettings(data=ClassificationData(path=path, folder=folder / "data"))


def errors(settings: ClassificationSettings) -> list[str]:
    return [found.what for found in data.check(settings) if found.level == "error"]


def test_patients_stay_on_one_side_and_every_split_has_both_kinds(
    written: ClassificationSettings,
) -> None:
    splits = data.splits_of(written.data)
    patients = [{case.patient for case in splits[split]} for split in SPLITS]
    assert sum(map(len, patients)) == len(set().union(*patients)) == 30
    assert sum(len(cases) for cases in splits.values()) == 60
    assert {case.label for case in splits["test"]} == {"benign", "malignant"}
    assert errors(written) == []


def test_a_sample_says_kind_outline_and_patient(written: ClassificationSettings) -> None:
    train = data.load(written, "train")
    for index, case in enumerate(train.cases):
        sample = train[index]
        assert sample.targets["label"] == (case.label == "malignant")
        assert sample.targets["has_mask"] == 1
        millilitres = sample.targets["mask"].sum() * 2 / 1000
        assert (millilitres > 0.5) == (case.label == "malignant")
        inside = sample.targets["mask"] > 0.99
        assert sample.inputs["image"][inside].mean() > -100
        assert sample.inputs["image"][sample.targets["mask"] == 0].mean() < -800
        assert "Patient" not in sample.key + str(sample.targets["patient"])


def test_without_weight_no_mask_is_read(written: ClassificationSettings) -> None:
    model = written.model.model_copy(update={"mask_weight": 0.0})
    sample = data.load(written.model_copy(update={"model": model}), "train")[0]
    assert sample.targets["has_mask"] == 0
    assert not sample.targets["mask"].any()


def test_findings_without_a_label_are_left_out_and_said(tmp_path: Path) -> None:
    settings = changed(tmp_path, label={0: "", 5: ""})
    assert sum(map(len, data.splits_of(settings.data).values())) == 22
    notes = [found for found in data.check(settings) if "no label" in found.what]
    assert [found.level for found in notes] == ["note"]


def test_an_unknown_label_is_an_error_that_does_not_repeat_it(tmp_path: Path) -> None:
    settings = changed(tmp_path, label={3: "Miller^Anna"})
    said = [found for found in data.check(settings) if found.level == "error"]
    assert len(said) == 1
    assert "not in data.classes" in said[0].what
    assert "Anna" not in str(said)
    with pytest.raises(DataError) as raised:
        for split in SPLITS:
            part = data.load(settings, split)
            [part[index] for index in range(len(part))]
    assert "Anna" not in str(raised.value)


def test_a_folder_without_labels_is_an_error(tmp_path: Path) -> None:
    write_findings(tmp_path / "cases", patients=2)
    (tmp_path / "cases" / "findings.csv").unlink()
    asked = ClassificationData(path=tmp_path / "cases", folder=tmp_path / "data")
    settings = ClassificationSettings(data=asked)
    assert "no finding has a label" in errors(settings)
    with pytest.raises(DataError, match="no finding with a label"):
        data.load(settings, "train")


def test_a_class_that_is_not_there_cannot_be_learnt(tmp_path: Path) -> None:
    settings = changed(tmp_path)
    classes = ("benign", "malignant", "scar")
    asked = settings.data.model_copy(update={"classes": classes})
    settings = settings.model_copy(update={"data": asked})
    assert errors(settings) == ["no finding of the train split is scar"]


@pytest.mark.parametrize("part", ["images/07.nii.gz", "masks/07.nii.gz", "findings.csv"])
def test_a_damaged_file_is_an_error(tmp_path: Path, part: str) -> None:
    settings = changed(tmp_path)
    (tmp_path / part).write_bytes(b"\x00\xffnoise" * 20)
    assert errors(settings)


def test_a_change_of_any_named_file_is_noticed(written: ClassificationSettings) -> None:
    paths = data.prepare(written, SilentProgress())
    assert paths[0] == written.data.path
    assert len(paths) == 1 + 2 * 60
    assert all(path.is_file() for path in paths)
