from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset

from pegboard.records import Array, Finding
from pegboard_medical.checks import check
from pegboard_medical.nifti import write_nifti
from pegboard_medical.settings import SegmentationData, VolumeData
from pegboard_medical.sources import LISTED, read_cases
from pegboard_medical.splits import assign
from pegboard_medical.volumes import Volume

ROOT = "1.2.826.0.1.3680043.8.498"
AXIAL = np.array([[0, 0, 0.6, -50], [0, 0.8, 0, -60], [2.5, 0, 0, -100], [0, 0, 0, 1.0]])
SHAPE = (5, 6, 7)
CASES = 30
NOISE = b"\x00\xffnoise" * 20
PLANTED = "Planted"
"""In every path, PatientID and name: never in a finding."""


def voxels(number: int) -> Array:
    return np.random.default_rng(number).integers(-1000, 400, SHAPE).astype(np.int16)


def labels(number: int) -> Array:
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[1:3, 2:4, 3:5] = 1
    mask[3, 4, number % 7] = 2
    return mask


def save(path: Path, array: Array, affine: Array = AXIAL) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(path, Volume(voxels=array, affine=affine))


def save_series(root: Path, number: int, **changes: Any) -> list[Path]:
    """Write a DICOM series of the voxels of a number, and its mask; return the slices' files."""
    series = f"{ROOT}.{number + 1}"
    folder = root / f"{PLANTED}{number}"
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for k, pixels in enumerate(voxels(number)):
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        dataset.SOPClassUID = uid.CTImageStorage
        dataset.SOPInstanceUID = f"{series}.{k + 1}"
        dataset.StudyInstanceUID = f"{ROOT}.999"
        dataset.SeriesInstanceUID = series
        dataset.PatientName = f"{PLANTED}^{number}"
        dataset.PatientID = f"{PLANTED}{number}"
        dataset.Modality = "CT"
        dataset.ImagePositionPatient = [-50, -60, -100 + 2.5 * k]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.PixelSpacing = [0.8, 0.6]
        dataset.Rows, dataset.Columns = pixels.shape
        dataset.SamplesPerPixel = 1
        dataset.PhotometricInterpretation = "MONOCHROME2"
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit = 15
        dataset.PixelRepresentation = 1
        dataset.PixelData = pixels.tobytes()
        for keyword, value in changes.items():
            setattr(dataset, keyword, value)
        files.append(folder / f"{PLANTED}{k}.dcm")
        dataset.save_as(files[-1], enforce_file_format=True)
    save(root / "masks" / f"{series}.nii.gz", labels(number))
    return files


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty NIfTI images with masks, and eight DICOM series of eight patients with masks."""
    root: Path = tmp_path_factory.mktemp("sound")
    for number in range(CASES):
        save(image(root / "folder", number), voxels(number))
        save(mask(root / "folder", number), labels(number))
    for number in range(8):
        save_series(root / "study", number)
    return root


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """Images and masks that a test may change."""
    return shutil.copytree(sound / "folder", tmp_path / PLANTED)


@pytest.fixture
def study(sound: Path, tmp_path: Path) -> Path:
    """Series that a test may change."""
    return shutil.copytree(sound / "study", tmp_path / PLANTED)


def image(root: Path, number: int) -> Path:
    return root / "images" / f"{PLANTED}{number:02}.nii.gz"


def mask(root: Path, number: int) -> Path:
    return root / "labels" / f"{PLANTED}{number:02}.nii.gz"


def found(path: Path, **changes: Any) -> list[Finding]:
    usual = {"classes": ("body", "tail"), "folder": path.parent / "kept", "validation_share": 0.25}
    data = SegmentationData(path=path, **{**usual, **changes})
    cases = read_cases(data)
    findings = check(data, cases, assign([case for case in cases if case.mask], data))
    assert not [one for one in findings if PLANTED in f"{one.what}{one.where}{one.remedy}"]
    assert not [one for one in findings if ROOT in f"{one.what}{one.where}{one.remedy}"]
    assert all(one.where and one.remedy for one in findings)
    levels = [("error", "warning", "note").index(one.level) for one in findings]
    assert levels == sorted(levels)
    return findings


def the(level: str, findings: Sequence[Finding], words: str) -> Finding:
    """Return the only finding of a level that has the words."""
    (finding,) = [one for one in findings if one.level == level and words in one.what]
    return finding


def levels(findings: Sequence[Finding]) -> set[str]:
    return {one.level for one in findings}


def key_of(path: Path, kept: Path) -> str:
    """Return what the list of keys calls a file."""
    lines = (kept / LISTED).read_text().splitlines()
    (line,) = [line for line in lines if f"{path}," in line or line.endswith(f",{path}")]
    return line.partition(",")[0]


# --- Nothing wrong --------------------------------------------------------------------------------


def test_sound_volumes_give_one_note_that_counts_them(folder: Path) -> None:
    (note,) = found(folder)
    assert note.level == "note"
    assert note.what == (
        "30 cases of 30 patients, 5 x 6 x 7 voxels of 2.5 x 0.8 x 0.6 mm; "
        "train 18, validation 6, test 6"
    )


def test_sound_series_warn_only_of_being_few(study: Path) -> None:
    findings = found(study)
    assert "too few cases: 1 patient in the" not in the("warning", findings, "too few").what
    assert "error" not in levels(findings)


# --- Damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["image", "mask"])
def test_noise_in_place_of_a_nifti_file_is_an_error(kind: str, folder: Path) -> None:
    path = {"image": image, "mask": mask}[kind](folder, 3)
    path.write_bytes(NOISE)
    error = the("error", found(folder), f"1 {kind} cannot be used")
    assert error.where == key_of(path, folder.parent / "kept")


def test_noise_in_place_of_a_slice_is_an_error(study: Path) -> None:
    path = next(study.rglob(f"{PLANTED}2.dcm"))
    path.write_bytes(NOISE)
    findings = found(study)
    error = the("error", findings, "1 DICOM file cannot be read")
    assert error.where == key_of(path, study.parent / "kept")
    the("error", findings, "1 missing slice, between -97.50 and -92.50 mm")


def test_noise_in_place_of_the_last_slice_is_an_error(study: Path) -> None:
    next(study.rglob(f"{PLANTED}4.dcm")).write_bytes(NOISE)
    findings = found(study)
    the("error", findings, "1 DICOM file cannot be read")
    the("error", findings, "1 mask cannot be used: the mask (5 x 6 x 7 of")


def test_noise_in_place_of_a_table_beside_the_volumes_is_an_error(study: Path) -> None:
    (study / "nodules.csv").write_text("uid,Größe\n", encoding="latin-1")
    assert "error" not in levels(found(study))
    (study / "nodules.csv").write_bytes(NOISE)
    error = the("error", found(study), "1 table beside the volumes damaged")
    assert error.where == key_of(study / "nodules.csv", study.parent / "kept")


def test_pixels_cut_short_are_an_error(study: Path) -> None:
    path = next(study.rglob(f"{PLANTED}2.dcm"))
    path.write_bytes(path.read_bytes()[:-20])
    the("error", found(study), "1 image cannot be used: file 3 of 5 of a series cannot be read")


def test_voxels_that_are_no_numbers_are_an_error(folder: Path) -> None:
    spoilt = voxels(3).astype(np.float32)
    spoilt[0, 0, 0] = np.nan
    save(image(folder, 3), spoilt)
    the("error", found(folder), "1 image cannot be used: some voxels are not finite")


def test_an_image_of_one_value_is_a_warning(folder: Path) -> None:
    save(image(folder, 3), np.full(SHAPE, -1000, np.int16))
    the("warning", found(folder), "1 image with one value everywhere")


def test_a_file_whose_folder_vanished_is_an_error(folder: Path) -> None:
    data = SegmentationData(path=folder, folder=folder.parent / "kept")
    cases = read_cases(data)
    image(folder, 3).unlink()
    the("error", check(data, cases, assign(cases, data)), "1 image cannot be used")


# --- Series ---------------------------------------------------------------------------------------


def test_what_is_wrong_with_a_series_is_said_with_its_key(study: Path) -> None:
    save_series(study, 3, GantryDetectorTilt=10)
    warning = the("warning", found(study), "gantry tilt")
    assert warning.where == key_of(study / f"{PLANTED}3", study.parent / "kept")


def test_what_many_series_have_is_not_said_of_each(study: Path) -> None:
    for number in range(8):
        save_series(study, number, GantryDetectorTilt=10 + number)
    tilted = [one for one in found(study) if "gantry tilt" in one.what]
    assert len(tilted) == 4
    assert tilted[-1].what.startswith("5 series more as the one before")


def test_a_series_without_spacing_is_said_once(study: Path) -> None:
    save_series(study, 3, PixelSpacing=[0, 0])
    errors = [one for one in found(study) if one.level == "error"]
    assert [one.what for one in errors] == ["5 of 5 slices have a pixel spacing of zero"]


def test_another_modality_is_an_error_where_nothing_fits_and_else_a_warning(study: Path) -> None:
    save_series(study, 3, Modality="MR")
    the("warning", found(study), "wrong modality: 1 series not ct, not read: mr 1")
    for number in range(8):
        save_series(study, number, Modality="PT")
    error = the("error", found(study), "wrong modality: no series is ct, there are pt 8")
    assert "data.modality" in error.remedy


def test_localisers_are_noted(study: Path) -> None:
    save_series(study, 3, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    the("note", found(study), "1 series of localisers or screenshots: not read")


def test_a_folder_that_mixes_series_is_noted(study: Path) -> None:
    for file in (study / f"{PLANTED}3").iterdir():
        file.rename(study / f"{PLANTED}2" / f"x{file.name}")
    findings = found(study)
    the("note", findings, "mixed series in 1 folder")
    assert "error" not in levels(findings)


def test_a_table_that_lists_another_modality_is_an_error(study: Path) -> None:
    save_series(study, 3, Modality="MR")
    rows = [f"{PLANTED}{number},masks/{ROOT}.{number + 1}.nii.gz" for number in range(8)]
    (study / "cases.csv").write_text("\n".join(["image,mask", *rows]))
    the("error", found(study / "cases.csv"), "wrong modality: 1 case not ct but mr")


def test_images_that_are_no_hounsfield_units_are_a_warning(folder: Path) -> None:
    assert not [one for one in found(folder) if one.level == "warning"]
    for number in range(20):
        save(image(folder, number), np.abs(voxels(number)))
    the("warning", found(folder), "20 images not like ct: no voxel is below -200")
    assert "warning" not in levels(found(folder, modality="mr"))


# --- Masks ----------------------------------------------------------------------------------------


def test_masks_on_another_grid_are_an_error(folder: Path) -> None:
    moved = AXIAL.copy()
    moved[2, 3] += 2.5
    save(mask(folder, 3), labels(3), moved)
    save(mask(folder, 4), labels(4)[:-1])
    findings = [one for one in found(folder) if one.level == "error"]
    assert sum(int(one.what.split()[0]) for one in findings) == 2
    assert all("does not lie on the grid of its image" in one.what for one in findings)


def test_values_beyond_the_classes_are_an_error(folder: Path) -> None:
    spoilt = labels(3)
    spoilt[0, 0, :2] = (7, 9)
    save(mask(folder, 3), spoilt)
    the("error", found(folder), "1 mask with unknown values 7, 9: data.classes has 2")


def test_an_empty_mask_is_a_warning_and_nothing_else_an_error(folder: Path) -> None:
    save(mask(folder, 3), np.zeros(SHAPE, np.uint8))
    the("warning", found(folder), "1 empty mask")
    for number in range(CASES):
        save(mask(folder, number), np.zeros(SHAPE, np.uint8))
    errors = [one for one in found(folder) if one.level == "error"]
    assert [one.what for one in errors] == ["30 empty masks: nothing is outlined"]


def test_a_class_that_is_nowhere_outlined_is_an_error(folder: Path) -> None:
    findings = found(folder, classes=("body", "tail", "head"))
    the("error", findings, "no voxel of 'head' in the masks of the train split")
    the("warning", findings, "no voxel of 'head' in the masks of the test split")


def test_cases_without_masks_are_noted_and_none_with_one_is_an_error(folder: Path) -> None:
    mask(folder, 3).unlink()
    the("note", found(folder), "1 case without a mask: not used")
    for number in range(CASES):
        mask(folder, number).unlink(missing_ok=True)
    errors = [one.what for one in found(folder) if one.level == "error"]
    assert errors == ["none of 30 cases has a mask"]


def test_a_mask_without_an_image_is_a_warning(folder: Path) -> None:
    image(folder, 3).unlink()
    the("warning", found(folder), "1 mask without an image")


def test_classification_needs_no_masks(folder: Path) -> None:
    data = VolumeData(path=folder / "images", folder=folder.parent / "kept")
    cases = read_cases(data)
    findings = check(data, cases, assign(cases, data))
    assert "error" not in levels(findings)


# --- Splits ---------------------------------------------------------------------------------------


def a_table(folder: Path, splits: Sequence[str], patients: Sequence[str]) -> Path:
    rows = [
        f"{image(folder, n)},{mask(folder, n)},{patient},{split}"
        for n, (split, patient) in enumerate(zip(splits, patients, strict=True))
    ]
    path = folder / "cases.csv"
    path.write_text("\n".join(["image,mask,patient,split", *rows]))
    return path


SPLITS = ["train"] * 18 + ["validation"] * 6 + ["test"] * 6


def test_a_patient_in_two_given_splits_is_a_warning(folder: Path) -> None:
    patients = [f"{PLANTED}{n}" for n in range(CASES)]
    assert levels(found(a_table(folder, SPLITS, patients))) == {"note"}
    patients[0] = patients[-1]
    the("warning", found(a_table(folder, SPLITS, patients)), "separate the cases of 1 patient")


def test_a_split_without_a_case_is_an_error(folder: Path) -> None:
    table = a_table(folder, ["test"] * CASES, [f"P{n}" for n in range(CASES)])
    findings = found(table)
    the("error", findings, "there is no case in the train split")
    the("error", findings, "there is no case in the validation split")


def test_few_patients_are_a_warning_however_many_cases(folder: Path) -> None:
    patients = [f"P{n}" if split == "train" else split for n, split in enumerate(SPLITS)]
    warning = the("warning", found(a_table(folder, SPLITS, patients)), "too few cases")
    assert warning.what == (
        "too few cases: 1 patient in the validation split, 1 patient in the test split"
    )


def test_one_image_on_both_sides_of_a_split_is_a_warning(folder: Path) -> None:
    save(image(folder, 29), voxels(0))
    table = a_table(folder, SPLITS, [f"P{n}" for n in range(CASES)])
    warning = the("warning", found(table), "1 image in more than one split")
    assert " = " in warning.where


def test_a_pattern_that_finds_no_patient_is_a_warning(folder: Path) -> None:
    the(
        "warning",
        found(folder, patient_pattern=r"(\w+2\d)\.nii"),
        "finds no patient for 20 cases",
    )


# --- Real data ------------------------------------------------------------------------------------


def test_real_volumes_are_sound(test_data: Path, tmp_path: Path) -> None:
    """Every twelfth hippocampus."""
    source = test_data / "medical" / "msd_hippocampus"
    for kind in ("images", "labels"):
        (tmp_path / "data" / kind).mkdir(parents=True)
        for file in sorted((source / kind).iterdir())[::12]:
            (tmp_path / "data" / kind / file.name).symlink_to(file)
    classes = ("anterior", "posterior")
    findings = found(tmp_path / "data", modality="mr", classes=classes)
    assert "error" not in levels(findings)
    the("note", findings, "22 cases of 22 patients")
