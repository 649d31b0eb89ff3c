from __future__ import annotations

import io
import random
import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

from pegboard.errors import DataError
from pegboard.records import Array
from pegboard_medical import dicom
from pegboard_medical.nifti import read_nifti
from pegboard_medical.volumes import oriented, resize

PLANTED = "Planted^Jane"
SERIES = "1.2.826.0.1.3680043.8.498.1"
SHAPE = (12, 16)
STEP = 2.5


def plane(number: int, shape: tuple[int, int] = SHAPE) -> Array:
    """Return stored values (H, W) that differ from slice to slice and along both axes."""
    row, column = np.mgrid[: shape[0], : shape[1]]
    return (1000 * number + 10 * row + column).astype(np.uint16)


def a_slice(number: int, series: str = SERIES, **changes: Any) -> Dataset:
    """Return an axial CT slice at `number` steps above -100 mm."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset.SOPClassUID = uid.CTImageStorage
    dataset.SOPInstanceUID = f"{series}.{number + 1}"
    dataset.StudyInstanceUID = f"{SERIES}.99"
    dataset.SeriesInstanceUID = series
    dataset.FrameOfReferenceUID = f"{SERIES}.98"
    dataset.PatientName = PLANTED
    dataset.PatientID = "planted-4711"
    dataset.Modality = "CT"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    # Numbers that mean nothing, as some scanners write them.
    dataset.InstanceNumber = 1000 - 7 * number % 13
    dataset.ImagePositionPatient = [-50, -60, -100 + STEP * number]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing = [0.8, 0.6]
    dataset.SliceThickness = 5
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = 0
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    with_pixels(dataset, plane(number))
    for keyword, value in changes.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    return dataset


def with_pixels(dataset: Dataset, pixels: Array) -> Dataset:
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.PixelData = pixels.tobytes()
    return dataset


def save(folder: Path, datasets: Sequence[Dataset]) -> list[Path]:
    """Write slices under names in no order."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{number:03}.dcm" for number in range(len(datasets))]
    random.Random(0).shuffle(names)
    for name, dataset in zip(names, datasets, strict=True):
        dataset.save_as(folder / name, enforce_file_format=True)
    return [folder / name for name in names]


def the_series(folder: Path) -> dicom.Series:
    (series,) = dicom.group_series(folder.rglob("*.dcm"))
    return series


def findings(folder: Path, datasets: Sequence[Dataset]) -> list[Any]:
    save(folder, datasets)
    return dicom.series_findings(the_series(folder), "key")


# --- Series ---------------------------------------------------------------------------------------


def test_slices_are_ordered_by_position_not_by_name_or_number(tmp_path: Path) -> None:
    files = save(tmp_path, [a_slice(number) for number in range(6)])
    series = the_series(tmp_path)
    assert series.files == tuple(files) != tuple(sorted(files))
    assert np.allclose(series.positions, -100 + STEP * np.arange(6))
    volume = dicom.read_series(series)
    assert volume.modality == "ct"
    assert np.array_equal(volume.voxels[:, 0, 0], 1000 * np.arange(6) - 1024)
    assert not dicom.series_findings(series, "key")


def test_series_in_one_folder_are_told_apart_and_sorted_by_their_uid(tmp_path: Path) -> None:
    both = [
        a_slice(number, series) for number in range(4) for series in (SERIES + ".8", SERIES + ".7")
    ]
    save(tmp_path, both)
    found = dicom.group_series(tmp_path.iterdir())
    assert [series.uid for series in found] == [SERIES + ".7", SERIES + ".8"]
    assert [len(series.slices) for series in found] == [4, 4]


def test_position_and_spacing_are_kept(tmp_path: Path) -> None:
    save(tmp_path, [a_slice(number) for number in range(3)])
    volume = dicom.read_series(the_series(tmp_path))
    # Slices from their positions, not from the thickness; rows first.
    assert volume.spacing == pytest.approx((STEP, 0.8, 0.6))
    assert np.allclose(volume.affine @ [2, 3, 5, 1], [-50 + 5 * 0.6, -60 + 3 * 0.8, -95, 1])


def test_an_oblique_series_lies_where_its_slices_say(tmp_path: Path) -> None:
    row, column = np.array([0.8, 0.6, 0.0]), np.array([0.0, 0.0, -1.0])
    normal = np.cross(row, column)
    datasets = [
        a_slice(
            number,
            ImageOrientationPatient=[*row, *column],
            # The series runs against its normal.
            ImagePositionPatient=list(np.round(np.array([10, 20, 30]) - 3 * number * normal, 6)),
        )
        for number in range(4)
    ]
    save(tmp_path, datasets)
    volume = dicom.read_series(the_series(tmp_path))
    assert volume.voxels[0, 0, 0] == 3000 - 1024
    first = np.array([10, 20, 30]) - 9 * normal
    there = first + 2 * 3 * normal + 5 * 0.8 * column + 7 * 0.6 * row
    assert np.allclose((volume.affine @ [2, 5, 7, 1])[:3], there, atol=1e-5)
    assert np.allclose(volume.affine, dicom.affine_of(datasets[::-1]))


def test_slope_and_intercept_are_those_of_each_slice(tmp_path: Path) -> None:
    save(
        tmp_path,
        [a_slice(n, RescaleSlope=0.5 * (n + 1), RescaleIntercept=-10 * n) for n in range(3)],
    )
    volume = dicom.read_series(the_series(tmp_path))
    assert volume.voxels.dtype == np.float32
    for n in range(3):
        assert np.allclose(volume.voxels[n], plane(n) * 0.5 * (n + 1) - 10 * n)


def test_whole_numbers_stay_whole(tmp_path: Path) -> None:
    save(tmp_path, [a_slice(number) for number in range(2)])
    assert dicom.read_series(the_series(tmp_path)).voxels.dtype == np.int16


def test_signed_numbers_without_slope_are_read(tmp_path: Path) -> None:
    signed = a_slice(0, RescaleSlope=None, RescaleIntercept=None, PixelRepresentation=1)
    pixels = plane(0).astype(np.int16) - 500
    save(tmp_path, [with_pixels(signed, pixels)])
    assert np.array_equal(dicom.read_series(the_series(tmp_path)).voxels[0], pixels)


def test_a_single_slice_is_as_thick_as_it_says(tmp_path: Path) -> None:
    save(tmp_path, [a_slice(0)])
    volume = dicom.read_series(the_series(tmp_path))
    assert volume.spacing == pytest.approx((5.0, 0.8, 0.6))


def test_old_files_without_a_preamble_are_read(tmp_path: Path) -> None:
    for number in range(2):
        dataset = a_slice(number)
        del dataset.file_meta
        dataset.save_as(tmp_path / f"{number}", implicit_vr=True, little_endian=True)
    (series,) = dicom.group_series(tmp_path.iterdir())
    assert np.array_equal(dicom.read_series(series).voxels[1], plane(1).astype(int) - 1024)


def test_headers_are_read_without_pixels_and_names(tmp_path: Path) -> None:
    (file,) = save(tmp_path, [a_slice(0)])
    (header,) = dicom.read_headers([file, tmp_path]).values()
    assert "PixelData" not in header
    assert "PatientName" not in header


def test_an_enhanced_image_of_many_frames_is_a_volume(tmp_path: Path) -> None:
    dataset = a_slice(0, ImagePositionPatient=None, PixelSpacing=None, RescaleSlope=None)
    dataset.SOPClassUID = uid.EnhancedCTImageStorage
    frames = [2, 0, 1]
    with_pixels(dataset, np.stack([plane(number) for number in frames]))
    dataset.NumberOfFrames = 3
    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = dataset.ImageOrientationPatient
    measures.PixelSpacing = [0.8, 0.6]
    shared.PlaneOrientationSequence = [orientation]
    shared.PixelMeasuresSequence = [measures]
    dataset.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for number in frames:
        group, position, transformation = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [0, 0, STEP * number]
        transformation.RescaleSlope, transformation.RescaleIntercept = 1, -number
        group.PlanePositionSequence = [position]
        group.PixelValueTransformationSequence = [transformation]
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = groups
    save(tmp_path, [dataset])
    series = the_series(tmp_path)
    volume = dicom.read_series(series)
    assert len(series.files) == 1
    assert np.array_equal(dicom.affine_of([dataset]), volume.affine)
    assert volume.spacing == pytest.approx((STEP, 0.8, 0.6))
    for number in range(3):
        assert np.array_equal(volume.voxels[number], plane(number).astype(int) - number)


# --- Compression ----------------------------------------------------------------------------------


def lossless_jpeg(pixels: Array) -> bytes:
    """Encode uint16 (H, W) by the lossless process with first-order prediction (ITU-T T.81, H).

    Nobody packages an encoder; this one gives each of the 17 categories a code of five bits.
    """
    values = pixels.astype(np.int64)
    predicted = np.empty_like(values)
    predicted[:, 1:] = values[:, :-1]
    predicted[1:, 0] = values[:-1, 0]
    predicted[0, 0] = 1 << 15
    differences = (values - predicted + (1 << 15)) % (1 << 16) - (1 << 15)
    bits = []
    for difference in differences.ravel().tolist():
        category = abs(difference).bit_length()
        bits.append(f"{category:05b}")
        if 0 < category < 16:
            low = difference if difference > 0 else difference + (1 << category) - 1
            bits.append(f"{low:0{category}b}")
    stream = "".join(bits)
    stream += "1" * (-len(stream) % 8)
    scan = int(stream, 2).to_bytes(len(stream) // 8, "big").replace(b"\xff", b"\xff\x00")
    height, width = pixels.shape
    frame = bytes([0, 11, 16, *divmod(height, 256), *divmod(width, 256), 1, 1, 0x11, 0])
    table = bytes([0, 36, 0, 0, 0, 0, 0, 17, *[0] * 11, *range(17)])
    start = bytes([0, 8, 1, 1, 0, 1, 0, 0])
    head = b"\xff\xd8\xff\xc3" + frame + b"\xff\xc4" + table + b"\xff\xda" + start
    return head + scan + b"\xff\xd9"


def smooth(shape: tuple[int, int] = (48, 64)) -> Array:
    """Return stored values of a disc on a ramp, as 16 bits."""
    row, column = np.mgrid[: shape[0], : shape[1]]
    disc = (row - shape[0] / 2) ** 2 + (column - shape[1] / 2) ** 2 < 150
    return (900 + 3 * row + 2 * column + 300 * disc).astype(np.uint16)


def by_pydicom(syntax: str) -> Callable[[Dataset, Array], None]:
    def compress(dataset: Dataset, pixels: Array) -> None:
        with_pixels(dataset, pixels)
        dataset.compress(syntax, generate_instance_uid=False)

    return compress


def by_hand(syntax: str, encode: Callable[[Array], bytes]) -> Callable[[Dataset, Array], None]:
    def compress(dataset: Dataset, pixels: Array) -> None:
        with_pixels(dataset, pixels)
        dataset.PixelData = encapsulate([encode(pixels)])
        dataset["PixelData"].VR = "OB"
        dataset.file_meta.TransferSyntaxUID = syntax

    return compress


@pytest.mark.parametrize(
    "compress",
    [
        pytest.param(by_pydicom(uid.RLELossless), id="RLE"),
        pytest.param(by_pydicom(uid.JPEGLSLossless), id="JPEG-LS"),
        pytest.param(by_pydicom(uid.JPEG2000Lossless), id="JPEG 2000"),
        pytest.param(by_hand(uid.JPEGLosslessSV1, lossless_jpeg), id="JPEG lossless, first order"),
        pytest.param(by_hand(uid.JPEGLossless, lossless_jpeg), id="JPEG lossless"),
    ],
)
def test_compressed_slices_are_read_exactly(
    compress: Callable[[Dataset, Array], None], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    planes = [smooth(), rng.integers(0, 65536, (48, 64)).astype(np.uint16)]
    datasets = [a_slice(number) for number in range(2)]
    for dataset, pixels in zip(datasets, planes, strict=True):
        compress(dataset, pixels)
        assert dataset.file_meta.TransferSyntaxUID.is_compressed
    save(tmp_path, datasets)
    volume = dicom.read_series(the_series(tmp_path))
    assert np.array_equal(volume.voxels, np.stack(planes).astype(int) - 1024)


def test_baseline_jpeg_is_read_nearly(tmp_path: Path) -> None:
    def encode(pixels: Array) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "jpeg", quality=95)
        return stream.getvalue()

    pixels = (smooth() // 8).astype(np.uint8)
    dataset = a_slice(0, BitsAllocated=8, BitsStored=8, HighBit=7, RescaleIntercept=0)
    by_hand(uid.JPEGBaseline8Bit, encode)(dataset, pixels)
    save(tmp_path, [dataset])
    read = dicom.read_series(the_series(tmp_path)).voxels[0]
    assert np.abs(read.astype(int) - pixels).mean() < 1.5


# --- What is wrong --------------------------------------------------------------------------------


def test_missing_slices_are_counted_and_placed(tmp_path: Path) -> None:
    (found,) = findings(tmp_path, [a_slice(number) for number in (0, 1, 4, 5, 6, 8)])
    assert found.level == "error"
    assert found.what == ("3 missing slices, between -97.50 and -90.00 mm, -85.00 and -80.00 mm")
    with pytest.raises(DataError, match="3 missing slices"):
        dicom.read_series(the_series(tmp_path))


def test_two_slices_at_one_position_are_an_error(tmp_path: Path) -> None:
    double = a_slice(2, SOPInstanceUID=f"{SERIES}.77")
    (found,) = findings(tmp_path, [*(a_slice(number) for number in range(4)), double])
    assert found.level == "error"
    assert found.what.startswith("1 doubled slice: at one position with another, first at -95.00")


def test_a_copied_file_is_read_once(tmp_path: Path) -> None:
    files = save(tmp_path, [a_slice(number) for number in range(4)])
    shutil.copy(files[1], tmp_path / "copy.dcm")
    series = the_series(tmp_path)
    (found,) = dicom.series_findings(series, "key")
    assert found.level == "warning"
    assert found.what.startswith("1 file of a series twice")
    assert dicom.read_series(series).voxels.shape[0] == 4


@pytest.mark.parametrize(("off", "level"), [(0.2, "warning"), (3.7, "error")])
def test_irregular_steps_are_an_error_where_they_move_a_slice_to_another(
    off: float, level: str, tmp_path: Path
) -> None:
    datasets = [
        a_slice(n, ImagePositionPatient=[0, 0, STEP * n + (off if n >= 4 else 0)]) for n in range(8)
    ]
    (found,) = findings(tmp_path, datasets)
    assert found.level == level
    assert f"irregular spacing: steps of 2.50 to {STEP + off:.2f} mm" in found.what


def test_rounded_positions_are_regular(tmp_path: Path) -> None:
    datasets = [a_slice(n, ImagePositionPatient=[0, 0, round(0.7 * n / 3, 2)]) for n in range(12)]
    assert not findings(tmp_path, datasets)


def test_a_tilted_gantry_is_seen_in_the_positions(tmp_path: Path) -> None:
    slope = np.tan(np.radians(12))
    datasets = [a_slice(n, ImagePositionPatient=[0, STEP * n * slope, STEP * n]) for n in range(4)]
    (found,) = findings(tmp_path, datasets)
    assert found.level == "warning"
    assert "askew over one another by 12.0 degrees" in found.what
    # The voxels are placed rightly all the same.
    volume = dicom.read_series(the_series(tmp_path))
    assert np.allclose((volume.affine @ [3, 0, 0, 1])[:3], [0, 3 * STEP * slope, 3 * STEP])


def test_a_tilted_gantry_is_read_from_the_header(tmp_path: Path) -> None:
    (found,) = findings(tmp_path, [a_slice(n, GantryDetectorTilt=-12.5) for n in range(4)])
    assert "the files say 12.5" in found.what


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"PixelSpacing": None}, "1 of 4 slices have no pixel spacing"),
        ({"PixelSpacing": [0, 0]}, "1 of 4 slices have a pixel spacing of zero"),
        ({"PixelSpacing": ""}, "1 of 4 slices have no pixel spacing"),
        ({"ImagePositionPatient": None}, "1 of 4 slices have no position"),
        ({"ImageOrientationPatient": None}, "1 of 4 slices have no orientation"),
        ({"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]}, "1 of 4 slices have no orientation"),
        ({"SamplesPerPixel": 3}, "1 of 4 slices have colours"),
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, "more than one orientation"),
        ({"PixelSpacing": [0.8, 0.7]}, "more than one pixel spacing"),
        ({"Rows": 10}, "more than one size"),
    ],
)
def test_slices_that_make_no_volume_are_an_error(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    datasets = [a_slice(0), a_slice(1), a_slice(2, **changes), a_slice(3)]
    (found,) = findings(tmp_path, datasets)
    assert found.level == "error"
    assert words in found.what
    with pytest.raises(DataError, match=words):
        dicom.read_series(the_series(tmp_path))


def test_localisers_and_screenshots_are_no_volumes(tmp_path: Path) -> None:
    save(
        tmp_path,
        [
            a_slice(0),
            a_slice(0, SERIES + ".5", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]),
            a_slice(0, SERIES + ".6", SOPClassUID=uid.SecondaryCaptureImageStorage),
        ],
    )
    assert [one.is_volume for one in dicom.group_series(tmp_path.iterdir())] == [True, False, False]


# --- Damage and privacy ---------------------------------------------------------------------------


def test_noise_in_place_of_a_file_is_told_from_files_that_are_something_else(
    tmp_path: Path,
) -> None:
    files = save(tmp_path, [a_slice(number) for number in range(4)])
    files[2].write_bytes(b"\x00\xffnoise" * 20)
    (tmp_path / "README.txt").write_text("Nothing here")
    (tmp_path / "IM0007").write_bytes(b"noise")
    found = dicom.scan(tmp_path.iterdir())
    assert set(found.unreadable) == {files[2], tmp_path / "IM0007"}


def test_headers_are_read_again_when_a_file_changes(tmp_path: Path) -> None:
    files = save(tmp_path, [a_slice(number) for number in range(2)])
    assert len(the_series(tmp_path).slices) == 2
    files[0].write_bytes(b"noise" * 100)
    assert len(the_series(tmp_path).slices) == 1


@pytest.mark.parametrize("length", [300, 500, -60])
def test_a_file_cut_short_gives_an_error_without_its_name(length: int, tmp_path: Path) -> None:
    files = save(tmp_path / PLANTED, [a_slice(number) for number in range(3)])
    series = the_series(tmp_path)
    files[1].write_bytes(files[1].read_bytes()[:length])
    with pytest.raises(DataError) as caught:
        dicom.read_series(series)
    assert "file 2 of 3 of a series cannot be read" in str(caught.value)
    assert "Planted" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_no_damage_to_a_header_escapes_as_another_error(tmp_path: Path) -> None:
    (file,) = save(tmp_path, [a_slice(0)])
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(150):
        data = bytearray(whole)
        for place in rng.integers(132, len(whole) - 400, 4):
            data[place] = rng.integers(256)
        file.write_bytes(data)
        dicom._member.cache_clear()
        for series in dicom.group_series([file]):
            dicom.series_findings(series, "key")
            try:
                dicom.read_series(series)
            except DataError as error:
                assert "Planted" not in str(error)


def test_wrong_values_are_not_quoted_in_warnings(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    datasets = [a_slice(n, GantryDetectorTilt="12345678", PatientID="4" * 60) for n in range(2)]
    for file in save(tmp_path, datasets):
        data = file.read_bytes().replace(b"12345678", b"planted!").replace(b"4" * 60, b"\xff" * 60)
        file.write_bytes(data)
    (series,) = dicom.group_series(tmp_path.iterdir())
    assert not dicom.series_findings(series, "key")
    assert dicom.read_series(series).voxels.shape == (2, *SHAPE)
    assert not list(recwarn)


# --- Archives -------------------------------------------------------------------------------------


def an_archive(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def test_an_archive_is_unpacked_once(tmp_path: Path) -> None:
    save(tmp_path / "in", [a_slice(number) for number in range(3)])
    content = {f"a/b/{path.name}": path.read_bytes() for path in (tmp_path / "in").iterdir()}
    archive = an_archive(tmp_path / "study.zip", content)
    folder = dicom.unpacked(archive, tmp_path / "out")
    assert len(the_series(folder).slices) == 3
    first = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert dicom.unpacked(archive, tmp_path / "out") == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == first
    sent = dicom.unpacked(archive.read_bytes(), tmp_path / "sent")
    assert len(the_series(sent).slices) == 3


@pytest.mark.parametrize("name", ["../out.dcm", "/out.dcm", "a/../../out.dcm", "..\\out.dcm"])
def test_a_name_that_leads_out_of_the_archive_is_refused(name: str, tmp_path: Path) -> None:
    archive = an_archive(tmp_path / "evil.zip", {"good.dcm": b"x", name: b"y"})
    with pytest.raises(DataError, match="leads out of it"):
        dicom.unpacked(archive, tmp_path / "deep" / "folder")
    assert not list(tmp_path.rglob("out.dcm"))
    assert not list((tmp_path / "deep" / "folder").iterdir())


def test_a_link_in_an_archive_is_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link.dcm")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match="is a link"):
        dicom.unpacked(tmp_path / "link.zip", tmp_path / "out")


def test_an_archive_that_holds_too_much_is_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    archive = an_archive(tmp_path / "large.zip", {f"{n}": rng.bytes(4000) for n in range(5)})
    with pytest.raises(DataError, match="too much"):
        dicom.unpacked(archive, tmp_path / "out", largest=15_000)
    assert not list((tmp_path / "out").iterdir())
    dicom.unpacked(archive, tmp_path / "out", largest=20_000)


def test_what_an_archive_says_of_its_size_is_not_believed(tmp_path: Path) -> None:
    path = an_archive(tmp_path / "lie.zip", {"a": bytes(3_000_000)})
    data = bytearray(path.read_bytes())
    # The size in the table at the end, which is believed by who does not count.
    place = data.rindex(b"PK\x01\x02") + 24
    data[place : place + 4] = (100).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(DataError):
        dicom.unpacked(path, tmp_path / "out", largest=1_000_000)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("damage", ["noise", "short"])
def test_a_damaged_archive_is_an_error_without_its_name(damage: str, tmp_path: Path) -> None:
    path = an_archive(tmp_path / "Jane_Doe.zip", {"a.dcm": np.random.default_rng(0).bytes(9000)})
    whole = path.read_bytes()
    path.write_bytes(b"\x00\xffnoise" * 20 if damage == "noise" else whole[:5000])
    with pytest.raises(DataError, match="damaged") as caught:
        dicom.unpacked(path, tmp_path / "out")
    assert "Jane" not in str(caught.value)


# --- Real series ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("study", "shape"), [(1, (32, 51, 35)), (2, (35, 48, 36)), (3, (40, 50, 34))]
)
def test_real_series_are_read_in_order(
    study: int, shape: tuple[int, int, int], test_data: Path
) -> None:
    folder = test_data / "medical" / "msd_hippocampus" / "dicom_crops" / f"study{study}"
    series = the_series(folder)
    # By name, 10.dcm comes before 2.dcm.
    assert [path.stem for path in series.files] == [str(n + 1) for n in range(shape[0])]
    volume = dicom.read_series(series)
    assert volume.voxels.shape == shape
    assert volume.modality == "mr"
    assert volume.spacing == (1.0, 1.0, 1.0)
    assert not dicom.series_findings(series, "key")
    last = pydicom.dcmread(series.files[-1])
    assert np.array_equal(volume.voxels[-1], last.pixel_array)


def test_real_series_lie_as_the_volumes_that_a_model_is_trained_on(test_data: Path) -> None:
    """Their rows run to the patient's back, those of the NIfTI files to the front."""
    folder = test_data / "medical" / "msd_hippocampus"

    def normal(voxels: Array) -> Array:
        same = resize(voxels.astype(np.float64), (36, 50, 36))
        return (same - same.mean()) / same.std()

    files = sorted((folder / "images").iterdir())[:40]
    atlas = np.mean([normal(oriented(read_nifti(file)).voxels) for file in files], axis=0)
    for study in (1, 2, 3):
        volume = dicom.read_series(the_series(folder / "dicom_crops" / f"study{study}"))
        turned = normal(np.clip(oriented(volume).voxels, 0, np.percentile(volume.voxels, 99)))
        likeness = {
            flips: float((np.flip(turned, flips) * atlas).mean())
            for flips in ((), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2))
        }
        assert max(likeness, key=lambda flips: likeness[flips]) == ()
        assert likeness[()] > 0.4
