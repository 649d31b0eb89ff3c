"""De-identification: planted names are in no byte of what is written, and pictures stay."""

from __future__ import annotations

import gzip
import io
import logging
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import typer
from pydicom import Dataset, FileMetaDataset, dcmread
from pydicom.datadict import DicomDictionary, keyword_for_tag, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
)
from typer.testing import CliRunner

from pegboard.errors import DataError, PegboardError
from pegboard_medical.deidentify import (
    BURNED_IN,
    COPY,
    DAMAGED,
    HIDDEN_OVERLAY,
    IDS,
    NO_PICTURE,
    UNKNOWN,
    Action,
    Options,
    Summary,
    deidentify_files,
    deidentify_nifti,
    profile,
    register,
    without_comments,
)
from pegboard_medical.dicom import group_series
from pegboard_medical.dicom_seg import quiet, read_seg, seg_dataset

PATIENT = "Zwyntheria"
"""A word that is in no file by chance; so are all that are made of it."""
PIXELS = np.arange(12 * 10, dtype=np.int16).reshape(12, 10) - 40


def ct(number: int = 0, **values: Any) -> Dataset:
    """Return a slice of the one series of patient Zwyntheria."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = f"1.2.3.4.{number + 1}"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3.1", "1.2.3.2"
    dataset.FrameOfReferenceUID = "1.2.3.3"
    dataset.Modality, dataset.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.PatientName, dataset.PatientID = f"{PATIENT}^Anna", f"{PATIENT}-77"
    dataset.PatientBirthDate, dataset.PatientSex = "19561103", "F"
    dataset.StudyDate, dataset.StudyTime = "20240305", "101112"
    dataset.SeriesDate, dataset.AcquisitionDateTime = "20240306", "20240306081500.25+0100"
    dataset.AccessionNumber, dataset.StudyID, dataset.ReferringPhysicianName = "ACC8812", "1", ""
    dataset.SeriesNumber, dataset.InstanceNumber = 3, number + 1
    dataset.Manufacturer, dataset.ConvolutionKernel = "Roentgenwerk", "B30f"
    dataset.Rows, dataset.Columns = PIXELS.shape
    dataset.PixelSpacing, dataset.SliceThickness = [0.7, 0.7], 2.5
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.ImagePositionPatient = [0, 0, 2.5 * number]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 1
    dataset.RescaleIntercept, dataset.RescaleSlope = -1024, 1
    dataset.PixelData = (PIXELS + number).tobytes()
    with quiet():
        for keyword, value in values.items():
            setattr(dataset, keyword, value)
    return dataset


def write(dataset: Dataset, path: Path, *, preamble: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.preamble = preamble.ljust(128, b"\0")
    with quiet():
        dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., tuple[Summary, dict[str, bytes]]]:
    """Return a function that de-identifies a source and returns what came of it, by path."""
    count = iter(range(100))

    def call(source: Path, **options: bool) -> tuple[Summary, dict[str, bytes]]:
        target = tmp_path / f"out{next(count)}"
        secret = tmp_path / "secret"
        summary = deidentify_files(source, target, secret=secret, options=Options(**options))
        files = {
            file.relative_to(target).as_posix(): file.read_bytes()
            for file in target.rglob("*")
            if file.is_file()
        }
        return summary, files

    return call


def opened(files: dict[str, bytes]) -> list[Dataset]:
    datasets = [dcmread(io.BytesIO(content)) for content in files.values()]
    return sorted(datasets, key=lambda dataset: int(dataset.InstanceNumber))


def only(files: dict[str, bytes]) -> Dataset:
    (dataset,) = opened(files)
    return dataset


# --- The standard's table -------------------------------------------------------------------------

# Copied by hand from PS3.15, table E.1-1, column "Basic Prof.".
STANDARD = """
AccessionNumber Z | AcquisitionComments X | AcquisitionDate X/Z | AcquisitionDateTime X/Z/D
AcquisitionTime X/Z | AdmissionID X | AdditionalPatientHistory X | ContentDate Z/D
ContentTime Z/D | ContrastBolusAgent Z/D | DeviceSerialNumber X/Z/D
DigitalSignaturesSequence X | FrameOfReferenceUID U | ImageComments X | InstitutionAddress X
InstitutionName X/Z/D | IssuerOfPatientID X | OperatorsName X/Z/D | OriginalAttributesSequence X
OtherPatientIDs X | OtherPatientNames X | PatientAddress X | PatientAge X | PatientBirthDate Z
PatientComments X | PatientID Z/D | PatientMotherBirthName X | PatientName Z | PatientSex Z
PatientSize X | PatientWeight X | PerformingPhysicianName X | ProtocolName X/D
ReferencedImageSequence X/Z/U* | ReferencedSOPInstanceUID U | ReferringPhysicianName Z
RequestAttributesSequence X | RequestedProcedureDescription X/Z | RequestingPhysician X
RTPlanDate X/D | RTPlanLabel D | ROIName Z | SOPInstanceUID U | SeriesDate X/D
SeriesDescription X | SeriesInstanceUID U | SeriesTime X/D | SmokingStatus X
SourceImageSequence X/Z/U* | SpecimenIdentifier D | StationName X/Z/D | StructureSetDate Z
StudyDate Z | StudyDescription X | StudyID Z | StudyInstanceUID U | StudyTime Z
TimezoneOffsetFromUTC X
"""
MEANT = {
    "X": Action.REMOVE,
    "Z": Action.EMPTY,
    "U": Action.UID,
    "X/Z": Action.EMPTY,
    "X/Z/U*": Action.GO_IN,
}


@pytest.mark.parametrize("entry", re.split(r" *[|\n] *", STANDARD.strip()))
def test_the_librarys_table_is_the_standards(entry: str) -> None:
    keyword, code = entry.split()
    assert profile()[tag_for_keyword(keyword)] is MEANT.get(code, Action.REPLACE)


# --- Planted names --------------------------------------------------------------------------------

TEXT = ("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT")


def planted(vr: str) -> str:
    """Return the patient's name as a value of a kind; all of it fits into 16 letters."""
    return {"UR": f"http://{PATIENT}.invalid", "PN": f"{PATIENT}^X"}.get(vr, PATIENT)


def infested() -> Dataset:
    """Return a slice with the patient's name in everything that can hold text."""
    dataset = ct()
    essential = ("SpecificCharacterSet", "Modality", "PhotometricInterpretation", "ImageType")
    skipped = (*essential, "BurnedInAnnotation", "PatientIdentityRemoved")
    with quiet():
        for tag, (vr, _, _, _, keyword) in DicomDictionary.items():
            if vr in TEXT and keyword and tag >> 16 > 2 and keyword not in skipped:
                dataset.add(DataElement(tag, vr, planted(vr)))
        dataset.CodingSchemeUID = f"1.2.{PATIENT}"  # No UID: somebody's text.
        dataset.EncapsulatedDocument = PATIENT.encode() * 2
        dataset.ICCProfile = dataset.DataSetTrailingPadding = PATIENT.encode() * 2
        dataset.add(DataElement(0x00091010, "LO", PATIENT))
        block = dataset.private_block(0x0011, f"{PATIENT} 1", create=True)
        block.add_new(1, "UN", PATIENT.encode())
        dataset.add(DataElement(0x60003000, "OW", PATIENT.encode()))
        dataset.add(DataElement(0x60000010, "US", 1))
        dataset.add(DataElement(0x60000022, "LO", PATIENT))
        dataset.add(DataElement(0x50002500, "LO", PATIENT))
        deep, item = Dataset(), Dataset()
        for target in (deep, item):
            target.PatientName = target.CodeMeaning = target.Manufacturer = PATIENT
            target.TextValue = target.OperatorsName = PATIENT
            target.add(DataElement(0x00131010, "LO", PATIENT))
        item.PurposeOfReferenceCodeSequence = [deep]
        for keyword in ("SourceImageSequence", "DerivationCodeSequence", "ContentSequence"):
            setattr(dataset, keyword, [item])
        dataset.SharedFunctionalGroupsSequence = [item]
    # Longer than its picture.
    dataset.PixelData = PIXELS.tobytes() + PATIENT.encode()
    dataset.file_meta.SourceApplicationEntityTitle = PATIENT
    dataset.file_meta.ImplementationVersionName = PATIENT
    dataset.file_meta.PrivateInformationCreatorUID = "1.2.3"
    dataset.file_meta.PrivateInformation = PATIENT.encode()
    return dataset


@pytest.mark.parametrize("options", [{}, {"shift_dates": True}, {"keep_uids": True}])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_the_patients_name_is_in_no_byte_of_what_is_written(
    tmp_path: Path,
    run: Callable[..., tuple[Summary, dict[str, bytes]]],
    options: dict[str, bool],
    syntax: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    dataset = infested()
    dataset.file_meta.TransferSyntaxUID = syntax
    source = tmp_path / f"{PATIENT} head" / PATIENT / f"{PATIENT}.dcm"
    write(dataset, source, preamble=PATIENT.encode())
    assert source.read_bytes().count(PATIENT.encode()) > 1500  # Planted indeed.
    with caplog.at_level(logging.DEBUG):
        summary, files = run(tmp_path / f"{PATIENT} head", **options)
    everything = b"".join(files.values()) + "".join(files).encode()
    assert PATIENT.lower().encode() not in everything.lower()
    assert PATIENT not in caplog.text and PATIENT not in " ".join(summary.lines())
    found = only(files)
    assert found.file_meta.TransferSyntaxUID == syntax
    np.testing.assert_array_equal(found.pixel_array, PIXELS)


def test_other_words_stay_only_where_they_describe_machine_method_or_code(
    tmp_path: Path, run: Callable[..., tuple[Summary, dict[str, bytes]]]
) -> None:
    dataset = ct()
    with quiet():
        for tag, (vr, _, _, _, keyword) in DicomDictionary.items():
            # What stands in names and numbers of a patient would be looked for everywhere.
            named = vr == "PN" or keyword in IDS
            if vr in TEXT and vr != "CS" and keyword and tag >> 16 > 2 and not named:
                dataset.add(DataElement(tag, vr, "Untoldword"))
    with quiet():
        write(dataset, tmp_path / "in" / "a.dcm")
    _, files = run(tmp_path / "in")
    kept = {element.keyword for element in only(files) if "Untoldword" in str(element.value)}
    assert {"Manufacturer", "ConvolutionKernel", "CodeMeaning"} <= kept
    assert not kept & {keyword_for_tag(tag) for tag in profile()}
    assert len(kept) < 45
    for word in ("Name", "Comment", "Address", "Notes"):
        told = {keyword for keyword in kept if word in keyword}
        assert told <= {
            "SequenceName",
            "PulseSequenceName",
            "ManufacturerModelName",
            "ReceiveCoilName",
            "TransmitCoilName",
            "EnergyWindowName",
            "MappingResourceName",
            "SegmentAlgorithmName",
            "AlgorithmName",
        }


def test_a_name_in_other_letters_is_found_too(
    tmp_path: Path, run: Callable[..., tuple[Summary, dict[str, bytes]]]
) -> None:
    dataset = ct(SpecificCharacterSet="ISO_IR 192", PatientName="Yamada^Tarou=山田^太郎")
    dataset.Manufacturer = "山田 病院"
    write(dataset, tmp_path / "in" / "a.dcm")
    _, files = run(tmp_path / "in")
    assert "山田".encode() not in b"".join(files.values())


# --- What stays -----------------------------------------------------------------------------------


def test_slices_stay_a_series_and_its_segmentation_still_lies_on_it(
    tmp_path: Path, run: Callable[..., tuple[Summary, dict[str, bytes]]]
) -> None:
    sources = [ct(number) for number in range(4)]
    for number, dataset in enumerate(sources):
        write(dataset, tmp_path / "in" / f"{number}.dcm")
    mask = np.random.default_rng(0).integers(0, 2, (4, *PIXELS.shape)).astype(np.uint8)
    write(seg_dataset(mask, sources, ("nodule",)), tmp_path / "in" / "mask.dcm")
    summary, files = run(tmp_path / "in")
    assert summary.written == 5 and not summary.left_out
    for name, content in files.items():
        (tmp_path / "flat").mkdir(exist_ok=True)
        (tmp_path / "flat" / name.replace("/", "_")).write_bytes(content)
    (series,) = group_series((tmp_path / "flat").iterdir())
    np.testing.assert_array_equal(series.positions, [0, 2.5, 5, 7.5])
    images = [dcmread(file) for file in series.files]
    for number, image in enumerate(images):
        np.testing.assert_array_equal(image.pixel_array, PIXELS + number)
    (segmentation,) = (one for one in map(io.BytesIO, files.values()) if b"SEG" in one.getvalue())
    np.testing.assert_array_equal(read_seg(dcmread(segmentation), images, ("nodule",)), mask)


def test_real_series_stay_whole(
    tmp_path: Path, test_data: Path, run: Callable[..., tuple[Summary, dict[str, bytes]]]
) -> None:
    folder = test_data / "medical" / "msd_hippocampus" / "dicom_crops" / "study1"
    if not folder.is_dir():
        pytest.skip(f"no DICOM series at {folder}")
    before = sorted(map(dcmread, folder.glob("*.dcm")), key=lambda one: int(one.InstanceNumber))
    summary, files = run(folder)
    after = opened(files)
    assert summary.written == len(after) == len(before)
    assert len({one.SeriesInstanceUID for one in after}) == 1
    for old, new in zip(before, after, strict=True):
        assert old.PixelData == new.PixelData
        assert old.ImagePositionPatient == new.ImagePositionPatient
    everything = b"".join(files.values())
    for told in (b"Avasarala", b"PGBM", b"20200119", b"DicomBrowser", b"290332099546120305394775"):
        assert told not in everything


def test_the_object_says_what_was_done_with_it(
    tmp_path: Path, run: Callable[..., tuple[Summary, dict[str, bytes]]]
) -> None:
    write(ct(), tmp_path / "in" / "a.dcm")
    found = only(run(tmp_path / "in")[1])
    assert found.PatientIdentityRemoved == "YES"
    assert found.LongitudinalTemporalInformationModified == "REMOVED"
    assert "PS3.15" in found.DeidentificationMethod
    assert codes(found) == ["113100"]
    changed = only(run(tmp_path / "in", shift_dates=True, keep_uids=True)[1])
    assert changed.LongitudinalTemporalInformationModified == "MODIFIED"
    assert codes(changed) == ["113100", "113107", "113110"]


def codes(dataset: Dataset) -> list[str]:
    return [item.CodeValue for item in dataset.DeidentificationMethodCodeSequence]


def test_a_patient_gets_one_name_as_long_as_the_secret_lives(
    tmp_path: Path, run: Callable[..., tuple[Summary, dict[str, bytes]]]
) -> None:
    write(ct(), tmp_path / "in" / "a.dcm")
    write(ct(PatientID="other"), tmp_path / "other" / "a.dcm")
    first, again = only(run(tmp_path / "in")[1]), only(run(tmp_path / "in")[1])
    assert first.PatientID == first.PatientName == again.PatientID
    assert first.SOPInstanceUID == again.SOPInstanceUID
    assert re.fullmatch(r"[0-9a-f]{12}", first.PatientID)
    assert only(run(tmp_path / "other")[1]).PatientID != first.PatientID
    (tmp_path / "secret" / ".pseudonym-key").unlink()
    assert only(run(tmp_path / "in")[1]).PatientID != first.PatientID


def test_uids_are_valid_new_and_kept_if_that_is_asked_for(
    tmp_path: Path, run: Callable[..., tuple[Summary, dict[str, bytes]]]
) -> None:
    write(ct(), tmp_path / "in" / "a.dcm")
    _, files = run(tmp_path / "in")
    found = only(files)
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
        assert found[keyword].value.is_valid and found[keyword].value.startswith("2.25.")
    assert found.SOPClassUID == CTImageStorage
    assert found.file_meta.MediaStorageSOPInstanceUID == found.SOPInstanceUID
    assert list(files) == [f"{found.SeriesInstanceUID}/{found.SOPInstanceUID}.dcm"]
    kept = only(run(tmp_path / "in", keep_uids=True)[1])
    assert (kept.SOPInstanceUID, kept.SeriesInstanceUID) == ("1.2.3.4.1", "1.2.3.2")


def test_dates_go_or_move_by_one_number_of_days(
    tmp_path: Path, run: Callable[..., tuple[Summary, dict[str, bytes]]]
) -> None:
    write(ct(), tmp_path / "in" / "a.dcm")
    gone = run(tmp_path / "in")[1]
    assert only(gone).StudyDate == "" and b"2024" not in b"".join(gone.values())
    moved = only(run(tmp_path / "in", shift_dates=True)[1])
    study, series = np.datetime64(day(moved.StudyDate)), np.datetime64(day(moved.SeriesDate))
    assert series - study == np.timedelta64(1, "D")
    assert study < np.datetime64("2024-03-05")
    assert moved.AcquisitionDateTime == f"{moved.SeriesDate}081500.25+0100"
    assert moved.StudyTime == "101112"
    assert moved.PatientBirthDate == ""


def day(text: str) -> str:
    return f"{text[:4]}-{text[4:6]}-{text[6:8]}"


# --- What is left out -----------------------------------------------------------------------------


def sr() -> Dataset:
    dataset = ct(SOPClassUID="1.2.840.10008.5.1.4.1.1.88.33", Modality="SR")
    del dataset.PixelData
    return dataset


def hidden() -> Dataset:
    dataset = ct()
    dataset.add(DataElement(0x60000010, "US", 12))
    dataset.add(DataElement(0x60000102, "US", 12))
    return dataset


@pytest.mark.parametrize(
    ("dataset", "why"),
    [
        (sr(), NO_PICTURE),
        (ct(SOPClassUID="1.2.840.10008.5.1.4.1.1.104.1"), NO_PICTURE),
        (ct(SOPClassUID="1.3.12.2.1107.5.9.1"), NO_PICTURE),
        (ct(BurnedInAnnotation="YES"), BURNED_IN),
        (ct(Modality="US"), BURNED_IN),
        (ct(SOPClassUID="1.2.840.10008.5.1.4.1.1.7"), BURNED_IN),
        (ct(Modality="XA", ImageType=["DERIVED", "SECONDARY"]), BURNED_IN),
        (hidden(), HIDDEN_OVERLAY),
    ],
)
def test_what_no_rule_can_clean_is_left_out(
    tmp_path: Path,
    run: Callable[..., tuple[Summary, dict[str, bytes]]],
    dataset: Dataset,
    why: str,
) -> None:
    write(dataset, tmp_path / "in" / f"{PATIENT}.dcm")
    write(ct(9), tmp_path / "in" / "fine.dcm")
    summary, files = run(tmp_path / "in")
    assert (summary.written, summary.left_out) == (1, {why: 1})
    assert len(files) == 1
    assert PATIENT not in " ".join(summary.lines())


@pytest.mark.parametrize(
    "values",
    [
        {"Modality": "US", "BurnedInAnnotation": "NO"},
        {"Modality": "XA", "ImageType": ["ORIGINAL", "PRIMARY"]},
    ],
)
def test_pictures_that_are_said_to_be_clean_are_taken(
    tmp_path: Path,
    run: Callable[..., tuple[Summary, dict[str, bytes]]],
    values: dict[str, Any],
) -> None:
    write(ct(**values), tmp_path / "in" / "a.dcm")
    assert run(tmp_path / "in")[0].written == 1


def test_pictures_with_text_are_taken_when_they_were_looked_at(
    tmp_path: Path, run: Callable[..., tuple[Summary, dict[str, bytes]]]
) -> None:
    write(ct(Modality="US"), tmp_path / "in" / "a.dcm")
    assert run(tmp_path / "in", keep_burned_in=True)[0].written == 1


def test_damaged_unknown_and_doubled_files_are_counted(
    tmp_path: Path, run: Callable[..., tuple[Summary, dict[str, bytes]]]
) -> None:
    file = write(ct(), tmp_path / "in" / "a.dcm")
    write(ct(), tmp_path / "in" / "b.dcm")
    (tmp_path / "in" / "half.dcm").write_bytes(file.read_bytes()[:-50])
    (tmp_path / "in" / f"{PATIENT}.txt").write_text(PATIENT)
    (tmp_path / "in" / "half.nii").write_bytes(b"\x5c\x01\0\0half")
    summary, _ = run(tmp_path / "in")
    assert summary.left_out == {COPY: 1, UNKNOWN: 1, DAMAGED: 2}


def test_a_damaged_value_that_goes_anyhow_does_no_harm(
    tmp_path: Path, run: Callable[..., tuple[Summary, dict[str, bytes]]]
) -> None:
    dataset = ct()
    dataset.PatientWeight = "70.25"
    file = write(dataset, tmp_path / "in" / "a.dcm")
    file.write_bytes(file.read_bytes().replace(b"70.25", b"heavy"))
    assert run(tmp_path / "in")[0].written == 1


def test_nothing_is_written_when_nothing_can_be_done(
    tmp_path: Path, run: Callable[..., tuple[Summary, dict[str, bytes]]]
) -> None:
    write(sr(), tmp_path / "in" / "a.dcm")
    with pytest.raises(DataError, match="nothing could be de-identified"):
        run(tmp_path / "in")
    assert not (tmp_path / "out0").exists()


# --- Archives and places --------------------------------------------------------------------------


def test_a_zip_archive_and_a_single_file_are_read_like_a_folder(
    tmp_path: Path, run: Callable[..., tuple[Summary, dict[str, bytes]]]
) -> None:
    file = write(ct(), tmp_path / "in" / "a.dcm")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(file, f"../../{PATIENT}.dcm")
        archive.writestr("notes.txt", PATIENT)
    packed, from_zip = run(tmp_path / "all.zip")
    assert packed.left_out == {UNKNOWN: 1}
    assert from_zip == run(file)[1] == run(tmp_path / "in")[1]


def test_places_that_do_not_suit_are_refused(tmp_path: Path) -> None:
    write(ct(), tmp_path / "in" / "a.dcm")
    full = tmp_path / "full"
    full.mkdir()
    (full / "b").touch()
    for source, destination, secret, words in (
        (tmp_path / "none", tmp_path / "out", tmp_path, "nothing to de-identify"),
        (tmp_path / "in", tmp_path / "in" / "out", tmp_path, "inside the other"),
        (tmp_path / "in", tmp_path, tmp_path, "inside the other"),
        (tmp_path / "in", full, tmp_path, "not an empty folder"),
        (tmp_path / "in", tmp_path / "out", tmp_path / "out", "given away"),
    ):
        with pytest.raises(PegboardError, match=words):
            deidentify_files(source, destination, secret=secret)
    assert not (tmp_path / "out").exists()


# --- Compressed pixels ----------------------------------------------------------------------------


def test_comments_inside_compressed_pixels_go_and_the_picture_stays(
    tmp_path: Path, run: Callable[..., tuple[Summary, dict[str, bytes]]]
) -> None:
    dataset = ct(BitsStored=12, HighBit=11, PixelRepresentation=0)
    picture = np.abs(PIXELS).astype(np.uint16)
    dataset.PixelData = picture.tobytes()
    dataset.compress(JPEGLSLossless)
    dataset.SOPInstanceUID = "1.2.3.4.1"
    (frame,) = generate_frames(dataset.PixelData, number_of_frames=1)
    comment = b"\xff\xfe" + (2 + len(PATIENT)).to_bytes(2, "big") + PATIENT.encode()
    dataset.PixelData = encapsulate([frame[:2] + comment + frame[2:]])
    file = write(dataset, tmp_path / "in" / "a.dcm")
    assert PATIENT.encode() in file.read_bytes().split(b"\xff\xd8\xff\xfe")[-1]
    _, files = run(tmp_path / "in")
    assert PATIENT.encode() not in b"".join(files.values())
    found = only(files)
    assert found.file_meta.TransferSyntaxUID == JPEGLSLossless
    np.testing.assert_array_equal(found.pixel_array, picture)


def test_comments_of_jpeg_2000_go_too_and_unknown_bytes_stay() -> None:
    siz = b"\xff\x51\x00\x04ab"
    comment = b"\xff\x64\x00\x08\x00\x01Anna"
    tile = b"\xff\x90\x00\x0arest"
    assert without_comments(b"\xff\x4f" + siz + comment + tile) == b"\xff\x4f" + siz + tile
    assert without_comments(b"whatever") == b"whatever"


# --- NIfTI ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("packed", [False, True])
def test_text_in_nifti_goes_and_every_voxel_stays(kind: Any, packed: bool) -> None:
    voxels = np.random.default_rng(1).integers(-99, 99, (5, 6, 7)).astype(np.int16)
    affine = np.array([[0, -2, 0, 4], [1.5, 0, 0, 5], [0, 0, 3, 6], [0, 0, 0, 1.0]])
    image = kind(voxels, affine)
    header = image.header
    for name in ("descrip", "aux_file", "intent_name", "db_name", "data_type"):
        if name in header.structarr.dtype.names:
            header[name] = PATIENT.encode()
    header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", PATIENT.encode()))
    header.set_slope_inter(2.0, 1.0)
    content = image.to_bytes() + PATIENT.encode()
    assert content.count(PATIENT.encode()) >= 4
    if packed:
        stream = io.BytesIO()
        with gzip.GzipFile(f"{PATIENT}.nii", "wb", fileobj=stream) as file:
            file.write(content)
        content = stream.getvalue()
    clean = deidentify_nifti(content)
    assert PATIENT.encode() not in clean and PATIENT.encode() not in gzip.decompress(clean)
    back = kind.from_bytes(gzip.decompress(clean))
    np.testing.assert_allclose(back.affine, affine)
    before = kind.from_bytes(gzip.decompress(content) if packed else content)
    np.testing.assert_array_equal(back.get_fdata(), before.get_fdata())
    assert deidentify_nifti(content) == clean


def test_an_image_and_its_mask_keep_one_name(
    tmp_path: Path, run: Callable[..., tuple[Summary, dict[str, bytes]]]
) -> None:
    content = nibabel.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.eye(4)).to_bytes()
    for name in (
        f"imagesTr/{PATIENT}_0000.nii.gz",
        f"labelsTr/{PATIENT}.nii.gz",
        f"{PATIENT}/1.2.3.2.nii.gz",
    ):
        file = tmp_path / "in" / name
        file.parent.mkdir(parents=True)
        file.write_bytes(gzip.compress(content))
    write(ct(), tmp_path / "in" / "a.dcm")
    _, files = run(tmp_path / "in")
    assert PATIENT not in "".join(files)
    (image,) = (name for name in files if name.startswith("imagesTr/"))
    (mask,) = (name for name in files if name.startswith("labelsTr/"))
    assert image.removeprefix("imagesTr/") == mask.removeprefix("labelsTr/").replace(
        ".nii.gz", "_0000.nii.gz"
    )
    (of_series,) = (name for name in files if re.search(r"/2\.25\.\d+\.nii\.gz$", name))
    (series,) = (name.split("/")[0] for name in files if name.endswith(".dcm"))
    assert of_series.endswith(f"/{series}.nii.gz")


# --- The command ----------------------------------------------------------------------------------


@pytest.fixture
def command() -> Callable[..., Any]:
    app = typer.Typer()
    register(app)
    app.callback()(lambda: None)

    def call(*words: Any) -> Any:
        return CliRunner().invoke(app, ["deidentify", *map(str, words)])

    return call


def test_the_command_says_what_it_did_and_names_nobody(
    tmp_path: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(ct(), tmp_path / PATIENT / f"{PATIENT}.dcm")
    write(sr(), tmp_path / PATIENT / "report.dcm")
    ended = command(PATIENT, "out", "--shift-dates", "--table", "table.csv")
    assert ended.exit_code == 0, ended.output
    assert "1 file written" in ended.output and "1 file left out: documents" in ended.output
    assert PATIENT not in ended.output
    (file,) = (tmp_path / "out").rglob("*.dcm")
    assert dcmread(file).LongitudinalTemporalInformationModified == "MODIFIED"
    assert (tmp_path / "data" / ".pseudonym-key").is_file()
    table = (tmp_path / "table.csv").read_text()
    assert f"{PATIENT}.dcm,{file.relative_to(tmp_path / 'out').as_posix()}," in table
    assert (tmp_path / "table.csv").stat().st_mode & 0o077 == 0


def test_the_table_is_not_put_among_the_files(tmp_path: Path, command: Callable[..., Any]) -> None:
    file = write(ct(), tmp_path / "in" / "a.dcm")
    out = tmp_path / "out"
    ended = command(file, out, "--table", out / "t.csv", "--secret", tmp_path)
    assert isinstance(ended.exception, PegboardError) and not out.exists()
