from __future__ import annotations

from pathlib import Path

import pytest

from pegboard.errors import SettingsError
from pegboard.records import Split
from pegboard.splits import SPLITS
from pegboard_medical.cases import Case
from pegboard_medical.settings import SegmentationData
from pegboard_medical.splits import assign


def case(number: int, patient: str = "", label: str = "", split: Split | None = None) -> Case:
    return Case(
        key=f"{number:04d}",
        kind="nifti",
        files=(Path(f"{number}.nii.gz"),),
        patient=patient,
        label=label,
        split=split,
    )


def test_cases_of_one_patient_stay_together_and_none_is_lost() -> None:
    cases = [case(number, patient=f"p{number // 3}") for number in range(60)]
    splits = assign(cases, SegmentationData())
    where = {one.key: split for split in SPLITS for one in splits[split]}
    assert len(where) == 60
    for first in range(0, 60, 3):
        assert len({where[f"{number:04d}"] for number in range(first, first + 3)}) == 1
    assert len(splits["test"]) == 12


def test_every_case_tests_in_exactly_one_fold() -> None:
    cases = [case(number) for number in range(53)]
    tested = [
        one.key
        for fold in range(5)
        for one in assign(cases, SegmentationData(folds=5, fold=fold))["test"]
    ]
    assert sorted(tested) == [one.key for one in cases]


def test_labels_come_in_the_same_proportion() -> None:
    cases = [
        case(number, label="malignant" if number % 4 == 0 else "benign") for number in range(80)
    ]
    for split, share in (("test", 0.25), ("train", 0.25)):
        part = assign(cases, SegmentationData())[split]  # type: ignore[index]  # A loop's literal.
        malignant = sum(one.label == "malignant" for one in part)
        assert malignant / len(part) == pytest.approx(share, abs=0.02)


def test_a_given_split_is_kept_and_counts_for_the_whole_patient() -> None:
    cases = [
        case(0, patient="a", split="train"),
        case(1, patient="a", split="test"),
        case(2, patient="b", split="validation"),
        *(case(number) for number in range(3, 20)),
    ]
    splits = assign(cases, SegmentationData())
    assert [one.key for one in splits["test"]] == ["0000", "0001"]
    assert [one.key for one in splits["validation"]] == ["0002"]


def test_keys_do_not_decide_so_a_new_secret_changes_no_split() -> None:
    numbers = range(40)
    one = assign([case(number) for number in numbers], SegmentationData())
    cases = [
        Case(key=f"{97 * number % 1000:03x}", kind="nifti", files=(Path(f"{number}.nii.gz"),))
        for number in numbers
    ]
    other = assign(cases, SegmentationData())
    for split in SPLITS:
        assert [c.files for c in one[split]] == [c.files for c in other[split]]


def test_a_fold_that_is_not_there_is_an_error() -> None:
    with pytest.raises(SettingsError, match=r"no fold 5 of 5.*take 0 to 4"):
        assign([case(0)], SegmentationData(folds=5, fold=5))
