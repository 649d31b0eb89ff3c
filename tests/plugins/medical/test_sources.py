from __future__ import annotations

import csv
import shutil
import time
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset

from pegboard.errors import DataError, SettingsError
from pegboard.records import Array
from pegboard_medical.cases import Case
from pegboard_medical.nifti import write_nifti
from pegboard_medical.settings import ColumnSettings, SegmentationData
from pegboard_medical.sources import LISTED, on_grid, read_case, read_cases, read_mask, survey
from pegboard_medical.volumes import Volume, oriented

ROOT = "1.2.826.0.1.3680043.8.498"
PATIENT = "planted-4711"
AXIAL = np.array([[0, 0, 0.6, -50], [0, 0.8, 0, -60], [2.5, 0, 0, -100], [0, 0, 0, 1.0]])
SHAPE = (5, 6, 7)


def settings(path: Path, **changes: Any) -> SegmentationData:
    folder = changes.pop("folder", path.parent / "kept")
    return SegmentationData(path=path, folder=folder, **changes)


def a_volume(seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> Volume:
    voxels = np.random.default_rng(seed).integers(-1000, 400, shape).astype(np.int16)
    return Volume(voxels=voxels, affine=AXIAL)


def a_mask(shape: tuple[int, int, int] = SHAPE) -> Volume:
    voxels = np.zeros(shape, dtype=np.uint8)
    voxels[1:3, 2:5, 3:6] = 1
    voxels[1, 2, 3] = 2  # No symmetry hides a flip.
    return Volume(voxels=voxels, affine=AXIAL)


def save(path: Path, volume: Volume) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(path, volume)
    return path


def save_series(folder: Path, number: int, modality: str = "CT", patient: str = PATIENT) -> str:
    """Write `a_volume(number)` as a DICOM series; return its UID."""
    folder.mkdir(parents=True, exist_ok=True)
    series = f"{ROOT}.{number + 1}"
    for k, pixels in enumerate(a_volume(number).voxels):
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        dataset.SOPClassUID = uid.CTImageStorage
        dataset.SOPInstanceUID = f"{series}.{k + 1}"
        dataset.StudyInstanceUID = f"{ROOT}.999"
        dataset.SeriesInstanceUID = series
        dataset.FrameOfReferenceUID = f"{ROOT}.998"
        dataset.PatientID = patient
        dataset.Modality = modality
        dataset.ImagePositionPatient = [-50, -60, -100 + 2.5 * k]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.PixelSpacing = [0.8, 0.6]
        dataset.SliceThickness = 2.5
        dataset.Rows, dataset.Columns = pixels.shape
        dataset.SamplesPerPixel = 1
        dataset.PhotometricInterpretation = "MONOCHROME2"
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit = 15
        dataset.PixelRepresentation = 1
        dataset.PixelData = pixels.tobytes()
        dataset.save_as(folder / f"{series}.{9 - k}", enforce_file_format=True)
    return series


def names(cases: Iterable[Case], root: Path) -> list[tuple[str, str]]:
    """Return image and mask of each case as paths inside the data."""
    return [
        (
            case.files[0].relative_to(root).as_posix(),
            case.mask.relative_to(root).as_posix() if case.mask else "",
        )
        for case in cases
    ]


# --- NIfTI ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        (["imagesTr/a_0000.nii.gz"], ["labelsTr/a.nii.gz"]),
        (["imagesTr/a.nii.gz"], ["labelsTr/a.nii.gz"]),
        (["images/a.nii.gz"], ["labels/a.nii.gz"]),
        (["image/a.nii.gz"], ["nodule_mask/a.nii.gz"]),
        (["image/a.nii.gz"], ["mask/a.nii.gz"]),
        (["images/a.nii"], ["masks/a.nii.gz"]),
        (["Images/x/a.nii.gz"], ["Masks/x/a.nii.gz"]),
        (["x/images/a.nii.gz"], ["x/masks/a.nii.gz"]),
        (["x/a.nii.gz"], ["x/a_seg.nii.gz"]),
        (["a.nii.gz"], ["masks/a.nii.gz"]),
        (["a.nii.gz"], [""]),
    ],
)
def test_layouts_that_people_have_are_found(
    images: list[str], masks: list[str], tmp_path: Path
) -> None:
    root = tmp_path / "data"
    for name in (*images, *masks):
        if name:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
    cases = read_cases(settings(root))
    assert names(cases, root) == list(zip(images, masks, strict=True))
    assert {case.kind for case in cases} == {"nifti"}


def touch(root: Path, *files: str) -> None:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_only_first_channels_of_nnunet_are_cases_and_numbers_elsewhere_are_cases(
    tmp_path: Path,
) -> None:
    touch(tmp_path / "a", *(f"imagesTr/x_{n}.nii.gz" for n in ("0000", "0001")), "labelsTr/x.nii")
    found = survey(settings(tmp_path / "a"))
    assert names(found.cases, tmp_path / "a") == [("imagesTr/x_0000.nii.gz", "labelsTr/x.nii")]
    assert found.channels == 1
    touch(tmp_path / "b", *(f"images/x_{n}.nii.gz" for n in ("0000", "0001")))
    assert len(survey(settings(tmp_path / "b")).cases) == 2


def test_the_test_folder_of_nnunet_tests_where_it_is_outlined(tmp_path: Path) -> None:
    root = tmp_path / "data"
    touch(root, "imagesTr/a.nii.gz", "imagesTs/b.nii.gz", "imagesTs/c.nii.gz")
    touch(root, "labelsTr/a.nii.gz", "labelsTs/b.nii.gz")
    cases = read_cases(settings(root))
    assert [case.split for case in cases] == [None, "test", None]


def test_masks_without_an_image_are_kept_in_mind(tmp_path: Path) -> None:
    root = tmp_path / "data"
    touch(root, "images/a.nii.gz", "labels/a.nii.gz", "labels/b.nii.gz")
    assert survey(settings(root)).stray_masks == (root / "labels/b.nii.gz",)


def test_hidden_files_are_no_cases(tmp_path: Path) -> None:
    root = tmp_path / "data"
    touch(root, "images/a.nii.gz", "images/._a.nii.gz", ".cache/images/b.nii.gz")
    assert len(read_cases(settings(root))) == 1


def test_a_single_file_is_a_case(tmp_path: Path) -> None:
    path = save(tmp_path / "Jane.nii.gz", a_volume())
    (case,) = read_cases(settings(path))
    assert np.array_equal(read_case(case).voxels, a_volume().voxels)


def test_no_file_is_opened_to_list_a_thousand(tmp_path: Path) -> None:
    root = tmp_path / "data"
    touch(root, *(f"{part}/{n}.nii.gz" for part in ("images", "labels") for n in range(1000)))
    data = settings(root)
    before = time.perf_counter()
    cases = read_cases(data)  # They are empty: opening one would be an error.
    assert len(cases) == 1000
    assert time.perf_counter() - before < 10


# --- Keys and patients ----------------------------------------------------------------------------


def test_keys_stay_when_the_data_moves_and_order_does_not_depend_on_them(tmp_path: Path) -> None:
    touch(tmp_path / "one", *(f"images/Jane_{n}.nii.gz" for n in range(9)))
    kept = tmp_path / "kept"
    first = read_cases(settings(tmp_path / "one", folder=kept))
    shutil.move(tmp_path / "one", tmp_path / "two")
    second = read_cases(settings(tmp_path / "two", folder=kept))
    assert [case.key for case in first] == [case.key for case in second]
    other = read_cases(settings(tmp_path / "two", folder=tmp_path / "other"))
    assert not {case.key for case in first} & {case.key for case in other}
    assert names(other, tmp_path / "two") == names(second, tmp_path / "two")
    assert names(other, tmp_path / "two") == sorted(names(other, tmp_path / "two"))


def test_a_pattern_says_whose_a_file_is(tmp_path: Path) -> None:
    root = tmp_path / "data"
    touch(root, *(f"images/{name}.nii.gz" for name in ("P1_a", "P1_b", "P2_a", "other")))
    found = survey(settings(root, patient_pattern=r"(P\d)_"))
    patients = [case.patient for case in found.cases]
    assert patients[0] == patients[1] != patients[2]
    assert patients[3] == found.cases[3].key
    assert found.unnamed == 1
    assert not any("P1" in patient for patient in patients)


def test_without_a_pattern_every_file_is_a_patient_of_its_own(tmp_path: Path) -> None:
    root = tmp_path / "data"
    touch(root, "images/a.nii.gz", "images/b.nii.gz")
    cases = read_cases(settings(root))
    assert [case.patient for case in cases] == [case.key for case in cases]


@pytest.mark.parametrize("pattern", ["(", "P1"])
def test_a_pattern_without_sense_is_named(pattern: str, tmp_path: Path) -> None:
    touch(tmp_path / "data", "images/a.nii.gz")
    with pytest.raises(SettingsError, match=r"data\.patient_pattern"):
        read_cases(settings(tmp_path / "data", patient_pattern=pattern))


def test_the_list_of_keys_is_written_only_when_it_changes(tmp_path: Path) -> None:
    root = tmp_path / "data"
    touch(root, "images/Jane.nii.gz", "labels/Jane.nii.gz")
    data = settings(root)
    (case,) = read_cases(data)
    path = data.folder / LISTED
    rows = list(csv.reader(path.read_text().splitlines()))
    assert rows == [
        ["key", "path", "mask"],
        [case.key, str(root / "images/Jane.nii.gz"), str(root / "labels/Jane.nii.gz")],
    ]
    inode = path.stat().st_ino
    read_cases(data)
    assert path.stat().st_ino == inode
    touch(root, "images/June.nii.gz")
    read_cases(data)
    assert len(path.read_text().splitlines()) == 3


# --- DICOM ----------------------------------------------------------------------------------------


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A folder with three series in no order, one of them of an MR, and two masks."""
    root = tmp_path / "study"
    save_series(root / "b" / "deep", 2)
    save_series(root / "a", 1)
    save_series(root / "a", 3, modality="MR")
    for number in (1, 2):
        save(root / "masks" / f"{ROOT}.{number + 1}.nii.gz", a_mask())
    return root


def test_series_are_cases_with_the_masks_named_like_them(study: Path) -> None:
    data = settings(study)
    cases = read_cases(data)
    assert [case.kind for case in cases] == ["dicom", "dicom"]
    assert cases[0].patient == cases[1].patient
    for number, case in enumerate(cases, 1):
        volume = read_case(case)
        assert np.array_equal(volume.voxels, a_volume(number).voxels)
        assert np.allclose(volume.affine, AXIAL)
        assert np.array_equal(read_mask(case, volume), a_mask().voxels)
    text = "".join(f"{case.key} {case.patient}" for case in cases)
    assert ROOT not in text
    assert PATIENT not in text


def test_series_of_another_modality_are_told_and_left_out(study: Path) -> None:
    found = survey(settings(study, modality="mr"))
    assert len(found.cases) == 1
    assert len(found.series) == 3
    assert found.folders == 1


def test_a_zip_is_read_like_the_folder_in_it(study: Path, tmp_path: Path) -> None:
    shutil.make_archive(str(tmp_path / "packed"), "zip", study)
    kept = tmp_path / "kept"
    packed = read_cases(settings(tmp_path / "packed.zip", folder=kept))
    plain = read_cases(settings(study, folder=kept))
    assert [case.key for case in packed] == [case.key for case in plain]
    assert all(case.mask is not None for case in packed)


def test_a_segmentation_object_in_the_tree_is_the_mask_of_its_series(study: Path) -> None:
    import pydicom

    from pegboard_medical.dicom_seg import seg_dataset

    (case, _) = read_cases(settings(study))
    shutil.rmtree(study / "masks")
    headers = [pydicom.dcmread(file) for file in case.files]
    # The first class is missing from it, so that its numbers are not the classes'.
    mask = np.where(a_mask().voxels == 2, 2, 0).astype(np.uint8)
    seg_dataset(mask, headers, ("body", "nodule")).save_as(study / "b" / "seg.dcm")
    (first, second) = read_cases(settings(study))
    assert first.mask == study / "b" / "seg.dcm"
    assert second.mask is None
    volume = read_case(first)
    assert np.array_equal(read_mask(first, volume, ("body", "nodule")), mask)
    assert np.array_equal(read_mask(first, volume), mask > 0)


def test_a_damaged_slice_is_kept_in_mind_and_listed(study: Path) -> None:
    data = settings(study)
    (case, _) = read_cases(data)
    case.files[2].write_bytes(b"\x00\xffnoise" * 20)
    assert survey(data).unreadable == (case.files[2],)
    with pytest.raises(DataError, match=f"missing slice.*{case.key}"):
        read_case(read_cases(data)[0])
    assert str(case.files[2]) in (data.folder / LISTED).read_text()


# --- Tables ---------------------------------------------------------------------------------------


def a_table(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(rows) + "\n")
    return path


def test_a_table_says_what_it_knows(study: Path) -> None:
    save(study / "c.nii.gz", a_volume())
    mask = f"masks/{ROOT}.3.nii.gz"
    table = a_table(
        study / "cases.csv",
        "image,mask,label,patient,split",
        "c.nii.gz,,benign,Jane,train",
        f"b/deep,{mask},malign,,val",
    )
    deep, nifti = read_cases(settings(table))
    assert (deep.kind, deep.label, deep.split) == ("dicom", "malign", "validation")
    assert deep.mask == study / mask
    assert deep.patient  # By the header.
    assert (nifti.kind, nifti.label, nifti.split, nifti.mask) == ("nifti", "benign", "train", None)
    assert nifti.patient not in ("Jane", deep.patient, nifti.key)
    assert np.array_equal(read_case(deep).voxels, a_volume(2).voxels)


def test_a_table_may_call_its_columns_otherwise(tmp_path: Path) -> None:
    save(tmp_path / "c.nii.gz", a_volume())
    table = a_table(tmp_path / "t.csv", "Datei;Klasse", "c.nii.gz;gut")
    columns = ColumnSettings(image="Datei", label="Klasse")
    (case,) = read_cases(settings(table, columns=columns))
    assert case.label == "gut"


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["file", "Jane.nii.gz"], "no column 'image'"),
        (["image"], "no rows"),
        (["image,label", ",benign"], r"names no image \(row 2\)"),
        (["image", "Jane.nii.gz", "June.nii.gz"], r"not there \(row 3\)"),
        (["image,mask", "Jane.nii.gz,June.nii.gz"], r"a mask .* not there \(row 2\)"),
        (["image", "Jane.nii.gz", "Jane.nii.gz"], r"twice, in row 2 too \(row 3\)"),
        (["image,split", "Jane.nii.gz,Jane"], r"unknown split \(row 2\)"),
        (["image", "empty"], r"0 DICOM series \(row 2\)"),
    ],
)
def test_what_is_wrong_in_a_table_is_said_by_row_and_not_by_name(
    rows: list[str], words: str, tmp_path: Path
) -> None:
    save(tmp_path / "Jane.nii.gz", a_volume())
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=words) as caught:
        read_cases(settings(a_table(tmp_path / "t.csv", *rows)))
    assert "Jane" not in str(caught.value)


@pytest.mark.parametrize("content", [b"\x00\xffnoise" * 20, b'image\n"open', b""])
def test_a_damaged_table_is_an_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(DataError, match="table"):
        read_cases(settings(tmp_path / "t.csv"))


# --- Nothing there --------------------------------------------------------------------------------


def test_what_is_not_there_is_said_without_its_name(tmp_path: Path) -> None:
    (tmp_path / "Jane" / "images").mkdir(parents=True)
    (tmp_path / "Jane" / "notes.txt").write_text("nothing")
    with zipfile.ZipFile(tmp_path / "Jane.zip", "w") as archive:
        archive.writestr("notes.txt", "nothing")
    for name in ("Jane", "Jane.zip", "Jane_absent"):
        with pytest.raises(DataError, match=r"data\.path") as caught:
            read_cases(settings(tmp_path / name))
        assert "Jane" not in str(caught.value)


# --- Masks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("flips", [(0,), (1,), (2,), (0, 1, 2)])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_a_mask_stored_in_another_order_of_axes_is_brought_to_its_image(
    flips: tuple[int, ...], order: tuple[int, int, int]
) -> None:
    mask = a_mask()
    affine = mask.affine.copy()
    for axis in flips:
        affine[:3, 3] += affine[:3, axis] * (SHAPE[axis] - 1)
        affine[:3, axis] *= -1
    stored = Volume(
        voxels=np.flip(mask.voxels, flips).transpose(order),
        affine=affine[:, [*order, 3]],
    )
    assert np.array_equal(on_grid(stored, a_volume()), mask.voxels)


def moved(by: Array) -> Volume:
    affine = AXIAL.copy()
    affine[:3, 3] += by
    return Volume(voxels=a_mask().voxels, affine=affine)


def test_less_than_half_a_voxel_is_rounding() -> None:
    assert np.array_equal(on_grid(moved(np.array([0.25, 0.35, -1.2])), a_volume()), a_mask().voxels)
    for by in ([0.35, 0, 0], [0, 0.45, 0], [0, 0, 1.3]):
        with pytest.raises(DataError, match="does not lie on the grid"):
            on_grid(moved(np.array(by)), a_volume())


def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(DataError, match=r"5 x 6 x 8 of 2.5 x 0.8 x 0.6 mm"):
        on_grid(a_mask((5, 6, 8)), a_volume())


@pytest.mark.parametrize(
    ("value", "dtype"), [(0.5, np.float32), (-1, np.int16), (300, np.int16), (np.nan, np.float32)]
)
def test_numbers_that_are_no_labels_are_refused(value: float, dtype: Any) -> None:
    voxels = a_mask().voxels.astype(dtype)
    voxels[0, 0, 0] = value
    with pytest.raises(DataError, match="no labels"):
        on_grid(Volume(voxels=voxels, affine=AXIAL), a_volume())


def test_whole_numbers_of_any_type_are_labels() -> None:
    for dtype in (np.float32, np.int32, np.uint16):
        stored = Volume(voxels=a_mask().voxels.astype(dtype), affine=AXIAL)
        labels = on_grid(stored, a_volume())
        assert labels.dtype == np.uint8
        assert np.array_equal(labels, a_mask().voxels)


def test_a_mask_that_cannot_be_read_is_named_by_its_case(tmp_path: Path) -> None:
    root = tmp_path / "data"
    save(root / "images" / "Jane.nii.gz", a_volume())
    (root / "labels").mkdir()
    (root / "labels" / "Jane.nii.gz").write_bytes(b"noise")
    (case,) = read_cases(settings(root))
    with pytest.raises(DataError, match=case.key) as caught:
        read_mask(case, read_case(case))
    assert "Jane" not in str(caught.value)


# --- Real data ------------------------------------------------------------------------------------


def test_real_folders_are_read_whole(test_data: Path, tmp_path: Path) -> None:
    medical = test_data / "medical"
    # DICOM crops lie beside images/ and labels/.
    hippocampus = read_cases(settings(medical / "msd_hippocampus", folder=tmp_path / "a"))
    assert len(hippocampus) == 260
    assert all(case.mask for case in hippocampus)
    nodules = read_cases(
        settings(
            medical / "lidc_nodule_vois",
            folder=tmp_path / "b",
            patient_pattern=r"(LIDC-IDRI-\d+)",
        )
    )
    assert len(nodules) == 994
    assert all(case.mask for case in nodules)
    assert len({case.patient for case in nodules}) == 551
    for case in (*hippocampus[::90], *nodules[::300]):
        volume = read_case(case)
        mask = read_mask(case, volume)
        assert mask.shape == volume.voxels.shape
        assert mask.any()


def test_real_series_are_cases(test_data: Path, tmp_path: Path) -> None:
    path = test_data / "medical" / "msd_hippocampus" / "dicom_crops"
    cases = read_cases(settings(path, folder=tmp_path, modality="mr"))
    assert [len(case.files) for case in cases] == [32, 40, 35]
    assert len({case.patient for case in cases}) == 3
    assert oriented(read_case(cases[0])).voxels.shape == (32, 51, 35)
