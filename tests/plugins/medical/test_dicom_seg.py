"""DICOM segmentations: there and back on real MR series and on an oblique CT."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, FileMetaDataset, dcmread
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from pegboard.errors import DataError
from pegboard.records import Array
from pegboard_medical.dicom_seg import kind_of, quiet, read_seg, seg_bytes, seg_dataset

CLASSES = ("anterior", "posterior")
NAME = "Holden^James"


def oblique(
    *, slices: int = 9, rows: int = 20, columns: int = 24, patient: str = NAME
) -> list[Dataset]:
    """Return a CT series that is tilted about two axes, in order of position."""
    turn, tilt = np.radians(25), np.radians(-15)
    across = np.array([np.cos(turn), np.sin(turn), 0.0])
    down = np.array([-np.sin(turn) * np.cos(tilt), np.cos(turn) * np.cos(tilt), np.sin(tilt)])
    normal = np.cross(across, down)
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    made = []
    for number in range(slices):
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SOPClassUID = CTImageStorage
        dataset.SOPInstanceUID = generate_uid()
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
        dataset.FrameOfReferenceUID = frame
        dataset.Modality = "CT"
        dataset.PatientName, dataset.PatientID = patient, "ROCI-7"
        dataset.PatientBirthDate, dataset.PatientSex = "23150312", "M"
        dataset.StudyDate, dataset.StudyTime, dataset.AccessionNumber = "20260101", "120000", "A9"
        dataset.InstanceNumber = slices - number
        dataset.Rows, dataset.Columns = rows, columns
        dataset.PixelSpacing = [0.7, 0.9]
        dataset.SliceThickness = 2.5
        dataset.ImageOrientationPatient = [round(float(x), 9) for x in (*across, *down)]
        place = np.array([-30.0, 12.0, 80.0]) + 2.5 * number * normal
        dataset.ImagePositionPatient = [round(float(x), 6) for x in place]
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit, dataset.PixelRepresentation = 15, 1
        dataset.RescaleIntercept, dataset.RescaleSlope = 0, 1
        dataset.PixelData = np.zeros((rows, columns), dtype=np.int16).tobytes()
        made.append(dataset)
    return made


def real_series(test_data: Path, study: str = "study1") -> list[Dataset]:
    folder = test_data / "medical" / "msd_hippocampus" / "dicom_crops" / study
    if not folder.is_dir():
        pytest.skip(f"no DICOM series at {folder}")
    datasets = [dcmread(file) for file in folder.glob("*.dcm")]
    return sorted(datasets, key=lambda dataset: float(dataset.ImagePositionPatient[2]))


def speckled(sources: Sequence[Dataset], labels: int) -> Array:
    """Return a mask with every label, no two slices alike, and empty first and last slices."""
    generator = np.random.default_rng(3)
    shape = (len(sources), sources[0].Rows, sources[0].Columns)
    mask = generator.integers(0, labels + 1, shape).astype(np.uint8)
    mask[[0, -1]] = 0
    return mask


def again(dataset: Dataset) -> Dataset:
    """Return a dataset as a reader of its file sees it."""
    stream = BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return dcmread(BytesIO(stream.getvalue()))


# --- There and back -------------------------------------------------------------------------------


@pytest.mark.parametrize("study", ["study1", "study2", "study3"])
def test_a_mask_of_a_real_series_comes_back_voxel_for_voxel(test_data: Path, study: str) -> None:
    sources = real_series(test_data, study)
    mask = speckled(sources, 2)
    back = read_seg(seg_bytes(mask, sources, CLASSES), sources, CLASSES)
    assert back.dtype == np.uint8
    np.testing.assert_array_equal(back, mask)


def test_a_mask_of_an_oblique_series_comes_back_voxel_for_voxel() -> None:
    sources = oblique()
    mask = speckled(sources, 3)
    back = read_seg(seg_bytes(mask, sources, ("a", "b", "c")), sources, ("a", "b", "c"))
    np.testing.assert_array_equal(back, mask)


def test_the_order_of_the_sources_is_the_order_of_the_mask() -> None:
    sources = oblique()
    mask = speckled(sources, 2)
    segmentation = again(seg_dataset(mask, sources, CLASSES))
    np.testing.assert_array_equal(read_seg(segmentation, sources[::-1], CLASSES), mask[::-1])
    written_backwards = again(seg_dataset(mask[::-1], sources[::-1], CLASSES))
    np.testing.assert_array_equal(read_seg(written_backwards, sources, CLASSES), mask)


def test_a_file_is_read_like_its_dataset(tmp_path: Path) -> None:
    sources = oblique()
    mask = speckled(sources, 2)
    file = tmp_path / "mask.dcm"
    file.write_bytes(seg_bytes(mask, sources, CLASSES))
    np.testing.assert_array_equal(read_seg(file, sources, CLASSES), mask)


def test_every_frame_refers_to_the_instance_that_it_lies_on() -> None:
    sources = oblique()
    mask = np.zeros((9, 20, 24), dtype=np.uint8)
    mask[2, 5:9, 5:9] = 1
    mask[6, 1:4, 2:9] = 2
    segmentation = again(seg_dataset(mask, sources, CLASSES))
    found = {}
    for frame in segmentation.PerFrameFunctionalGroupsSequence:
        number = frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        source = frame.DerivationImageSequence[0].SourceImageSequence[0]
        place = frame.PlanePositionSequence[0].ImagePositionPatient
        found[number] = (source.ReferencedSOPInstanceUID, [float(x) for x in place])
    assert found == {
        1: (sources[2].SOPInstanceUID, [float(x) for x in sources[2].ImagePositionPatient]),
        2: (sources[6].SOPInstanceUID, [float(x) for x in sources[6].ImagePositionPatient]),
    }
    assert segmentation.FrameOfReferenceUID == sources[0].FrameOfReferenceUID
    assert segmentation.StudyInstanceUID == sources[0].StudyInstanceUID
    referred = segmentation.ReferencedSeriesSequence[0]
    assert referred.SeriesInstanceUID == sources[0].SeriesInstanceUID


def test_what_refers_to_no_instance_is_matched_by_position() -> None:
    sources = oblique()
    mask = speckled(sources, 1)
    segmentation = again(seg_dataset(mask, sources, ("nodule",)))
    for frame in segmentation.PerFrameFunctionalGroupsSequence:
        del frame.DerivationImageSequence
    del segmentation.ReferencedSeriesSequence
    np.testing.assert_array_equal(read_seg(segmentation, sources, ("nodule",)), mask)
    np.testing.assert_array_equal(read_seg(segmentation, sources[::-1]), mask[::-1])


def test_headers_without_pixels_suffice_to_read() -> None:
    sources = oblique()
    mask = speckled(sources, 2)
    segmentation = seg_dataset(mask, sources, CLASSES)
    for source in sources:
        del source.PixelData
    np.testing.assert_array_equal(read_seg(segmentation, sources, CLASSES), mask)


# --- Segments -------------------------------------------------------------------------------------


def test_a_structure_without_a_voxel_is_left_out_and_the_others_keep_their_labels() -> None:
    sources = oblique()
    mask = np.where(speckled(sources, 1) > 0, 3, 0).astype(np.uint8)
    classes = ("liver", "spleen", "liver_tumour")
    segmentation = again(seg_dataset(mask, sources, classes))
    assert [item.SegmentLabel for item in segmentation.SegmentSequence] == ["liver_tumour"]
    np.testing.assert_array_equal(read_seg(segmentation, sources, classes), mask)
    assert read_seg(segmentation, sources).max() == 1  # Unknown names: their own numbers.


def test_an_empty_mask_lists_every_structure_with_empty_frames() -> None:
    sources = oblique()
    mask = np.zeros((9, 20, 24), dtype=np.uint8)
    segmentation = again(seg_dataset(mask, sources, CLASSES))
    assert [item.SegmentLabel for item in segmentation.SegmentSequence] == list(CLASSES)
    np.testing.assert_array_equal(read_seg(segmentation, sources, CLASSES), mask)


def test_segments_say_what_they_are_who_found_them_and_their_colour() -> None:
    sources = oblique()
    segmentation = again(seg_dataset(speckled(sources, 2), sources, CLASSES, version="v-7"))
    first, second = segmentation.SegmentSequence
    assert first.SegmentAlgorithmType == "AUTOMATIC"
    identification = first.SegmentationAlgorithmIdentificationSequence[0]
    assert (identification.AlgorithmName, identification.AlgorithmVersion) == ("Pegboard", "v-7")
    assert first.RecommendedDisplayCIELabValue != second.RecommendedDisplayCIELabValue


@pytest.mark.parametrize(
    ("name", "code", "modifier"),
    [
        ("nodule", "27925004", None),
        ("Lung nodules", "27925004", None),
        ("lungs", "39607008", None),
        ("hippocampus", "5366008", None),
        ("anterior_hippocampus", "5366008", "255549009"),
        ("posterior", "123037004", "255551008"),
        ("kidney-left", "64033007", "7771000"),
        ("liver_tumour", "108369006", None),
        ("class 7", "123037004", None),
    ],
)
def test_names_of_structures_are_coded(name: str, code: str, modifier: str | None) -> None:
    kind = kind_of(name)
    assert kind.type[0] == code
    assert (kind.modifier[0] if kind.modifier else None) == modifier


def test_the_modifier_of_a_code_is_written() -> None:
    sources = oblique()
    segmentation = again(seg_dataset(speckled(sources, 2), sources, CLASSES))
    coded = segmentation.SegmentSequence[1].SegmentedPropertyTypeCodeSequence[0]
    assert coded.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Posterior"


def test_a_seed_makes_the_identifiers_repeat() -> None:
    sources = oblique()
    mask = speckled(sources, 2)

    def uid(of: Array, seed: str) -> str:
        return str(seg_dataset(of, sources, CLASSES, seed=seed).SOPInstanceUID)

    assert uid(mask, "a") == uid(mask, "a")
    other = mask.copy()
    other[4, 4, 4] = (other[4, 4, 4] + 1) % 3
    assert len({uid(mask, "a"), uid(mask, "b"), uid(other, "a"), uid(mask, ""), uid(mask, "")}) == 5


# --- The patient ----------------------------------------------------------------------------------


def test_the_object_belongs_to_the_patient_and_nothing_of_it_is_logged(
    caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    sources = oblique(patient="Holden")  # Without a caret highdicom warns, with the name.
    with quiet():
        for source in sources:
            source.PatientSex = "male"  # It refuses what is not M, F or O.
            source.AccessionNumber = "an accession number longer than sixteen"
    with caplog.at_level(logging.DEBUG):
        segmentation = seg_dataset(speckled(sources, 2), sources, CLASSES)
        read_seg(segmentation, sources, CLASSES)
    assert segmentation.PatientName == "Holden"
    assert segmentation.PatientID == "ROCI-7"
    assert segmentation.PatientBirthDate == "23150312"
    assert segmentation.StudyDate == "20260101"
    assert "Holden" not in caplog.text and "accession" not in caplog.text
    assert not recwarn.list
    assert sources[0].StudyDate == "20260101" and sources[0].PatientSex == "male"


# --- Mistakes -------------------------------------------------------------------------------------


def lacking(keyword: str) -> list[Dataset]:
    sources = oblique()
    del sources[3][keyword]
    return sources


@pytest.mark.parametrize(
    ("sources", "mask", "words"),
    [
        (oblique(), np.zeros((9, 24, 20), np.uint8), "9 x 24 x 20 voxels"),
        (oblique(), np.full((9, 20, 24), 3, np.uint8), "label 3"),
        (lacking("FrameOfReferenceUID"), np.ones((9, 20, 24), np.uint8), "FrameOfReferenceUID"),
        (lacking("ImagePositionPatient"), np.ones((9, 20, 24), np.uint8), "no segmentation can"),
        ([*oblique()[:8], *oblique()[8:]], np.ones((9, 20, 24), np.uint8), "one series"),
        ([], np.ones((9, 20, 24), np.uint8), "needs the series"),
    ],
)
def test_what_does_not_fit_is_said(sources: list[Dataset], mask: Array, words: str) -> None:
    with pytest.raises(DataError, match=words) as raised:
        seg_dataset(mask, sources, CLASSES)
    assert NAME not in str(raised.value) and "Holden" not in str(raised.value)


def test_a_segmentation_of_another_series_is_refused() -> None:
    sources = oblique()
    segmentation = seg_dataset(speckled(sources, 2), sources, CLASSES)
    with pytest.raises(DataError, match="not of this series"):
        read_seg(segmentation, oblique(), CLASSES)


@pytest.mark.parametrize("content", [b"nothing", oblique()[0]])
def test_what_is_no_segmentation_is_refused(content: Any) -> None:
    with pytest.raises(DataError, match="no DICOM segmentation"):
        read_seg(content, oblique())


def test_segments_that_overlap_are_refused() -> None:
    sources = oblique()
    mask = speckled(sources, 2)
    segmentation = again(seg_dataset(mask, sources, CLASSES))
    for frame in segmentation.PerFrameFunctionalGroupsSequence:
        place = frame.FrameContentSequence[0].DimensionIndexValues
        if frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber == 2:
            source = frame.DerivationImageSequence[0].SourceImageSequence[0]
            # Each frame of the second segment is said to lie on the next slice.
            at = [s.SOPInstanceUID for s in sources].index(source.ReferencedSOPInstanceUID)
            source.ReferencedSOPInstanceUID = sources[at + 1].SOPInstanceUID
        assert place
    with pytest.raises(DataError, match="overlaps"):
        read_seg(segmentation, sources, CLASSES)


def test_a_series_without_slice_thickness_gets_a_segmentation(test_data: Path) -> None:
    folder = test_data / "medical" / "msd_hippocampus" / "dicom_crops" / "study1"
    sources = [dcmread(file) for file in sorted(folder.iterdir())]
    sources.sort(key=lambda one: float(one.ImagePositionPatient[2]))
    for source in sources:
        source.SliceThickness = None
    mask = np.zeros((len(sources), sources[0].Rows, sources[0].Columns), dtype=np.uint8)
    mask[3:5, 10:20, 10:20] = 1
    again = read_seg(seg_dataset(mask, sources, ["nodule"]), sources)
    np.testing.assert_array_equal(again, mask)
    assert sources[0].SliceThickness is None
