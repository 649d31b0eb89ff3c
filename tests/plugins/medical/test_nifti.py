from __future__ import annotations

import gzip
import stat
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from pegboard.errors import DataError
from pegboard_medical.nifti import nifti_bytes, read_nifti, volume_from_bytes, write_nifti
from pegboard_medical.privacy import SECRET, pseudonym
from pegboard_medical.volumes import Volume, orientation_of, oriented


def an_oblique_volume(dtype: Any = np.int16) -> Volume:
    turn = np.radians(20)
    affine = np.array(
        [
            [0.0, -0.7 * np.sin(turn), 0.9 * np.cos(turn), -50.0],
            [0.0, 0.7 * np.cos(turn), 0.9 * np.sin(turn), 12.5],
            [3.0, 0.0, 0.0, 400.0],
            [0.0, 0.0, 0.0, 1.0],
        ]
    )
    voxels = np.random.default_rng(0).integers(0, 200, (4, 5, 6)).astype(dtype)
    return Volume(voxels=voxels, affine=affine)


def save(path: Path, voxels: Any, affine: Any) -> Path:
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)  # type: ignore[no-untyped-call, attr-defined]
    return path


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    volume = an_oblique_volume()
    write_nifti(tmp_path / "volume.nii.gz", volume)
    read = read_nifti(tmp_path / "volume.nii.gz")
    assert np.array_equal(read.voxels, volume.voxels)
    assert read.voxels.dtype == np.int16
    assert np.allclose(read.affine, volume.affine, atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["volume.nii.gz"]


def test_axes_and_positions_become_those_of_dicom(tmp_path: Path) -> None:
    # NIfTI: (i, j, k), towards right, front and head.
    voxels = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    affine[:3, 3] = (10, 20, 30)
    volume = read_nifti(save(tmp_path / "ras.nii", voxels, affine))
    assert volume.voxels.shape == (4, 3, 2)
    assert volume.voxels[3, 2, 1] == voxels[1, 2, 3]
    assert volume.spacing == (4.0, 3.0, 2.0)
    assert np.allclose(volume.affine @ [3, 2, 1, 1], [-12, -26, 42, 1])


def test_the_written_file_lies_where_nibabel_says(tmp_path: Path) -> None:
    volume = an_oblique_volume()
    write_nifti(tmp_path / "volume.nii.gz", volume)
    image: Any = nibabel.load(tmp_path / "volume.nii.gz")  # type: ignore[attr-defined]
    x, y, z, _ = volume.affine @ [1, 2, 3, 1]
    assert np.allclose(image.affine @ [3, 2, 1, 1], [-x, -y, z, 1], atol=1e-4)
    assert image.header.get_xyzt_units()[0] == "mm"
    # Readers differ in which of the two they take.
    assert np.allclose(image.get_qform(), image.get_sform(), atol=1e-4)


def test_scaled_numbers_are_given_in_their_unit(tmp_path: Path) -> None:
    image: Any = nibabel.Nifti1Image(np.ones((2, 2, 2), np.int16), np.eye(4))  # type: ignore[no-untyped-call]
    image.header.set_slope_inter(2.0, -1000.0)
    data = bytearray(image.to_bytes())
    data[112:120] = np.array([2.0, -1000.0], "<f4").tobytes()
    (tmp_path / "scaled.nii").write_bytes(data)
    volume = read_nifti(tmp_path / "scaled.nii")
    assert volume.voxels.dtype == np.float32
    assert (volume.voxels == -998).all()


def test_equal_volumes_give_equal_bytes_without_a_name_or_a_time() -> None:
    first, second = nifti_bytes(an_oblique_volume()), nifti_bytes(an_oblique_volume())
    assert first == second
    assert first[3] == 0  # gzip: no name,
    assert first[4:8] == b"\0\0\0\0"  # and no time.
    header = gzip.decompress(first)[:348]
    assert header[148:252].strip(b"\0") == b""  # Description and file of the header.


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [
        (bool, np.uint8),
        (np.uint8, np.uint8),
        (np.int64, np.uint8),
        (np.uint16, np.uint8),
        (np.float64, np.float32),
    ],
)
def test_numbers_are_stored_in_a_type_that_every_viewer_reads(dtype: Any, stored: Any) -> None:
    volume = an_oblique_volume(dtype)
    read = volume_from_bytes(nifti_bytes(volume))
    assert read.voxels.dtype == stored
    assert np.array_equal(read.voxels, volume.voxels.astype(stored))


def test_plain_and_packed_bytes_are_read() -> None:
    packed = nifti_bytes(an_oblique_volume())
    for data in (packed, gzip.decompress(packed)):
        assert np.array_equal(volume_from_bytes(data).voxels, an_oblique_volume().voxels)


def test_the_newer_format_and_the_other_byte_order_are_read(tmp_path: Path) -> None:
    voxels = np.arange(8, dtype=np.int16).reshape(2, 2, 2)
    second: Any = nibabel.Nifti2Image(voxels, np.eye(4))  # type: ignore[no-untyped-call]
    assert np.array_equal(volume_from_bytes(second.to_bytes()).voxels, voxels.T)
    header = nibabel.Nifti1Header(endianness=">")  # type: ignore[no-untyped-call]
    header.set_data_dtype(np.int16)  # type: ignore[no-untyped-call]
    big: Any = nibabel.Nifti1Image(voxels, np.eye(4), header)  # type: ignore[no-untyped-call]
    read = volume_from_bytes(big.to_bytes())
    assert np.array_equal(read.voxels, voxels.T)
    assert read.voxels.dtype.isnative


def test_a_single_frame_in_time_is_a_volume_and_more_are_not(tmp_path: Path) -> None:
    one = save(tmp_path / "one.nii", np.ones((2, 3, 4, 1), np.int16), np.eye(4))
    assert read_nifti(one).voxels.shape == (4, 3, 2)
    many = save(tmp_path / "many.nii", np.ones((2, 3, 4, 5), np.int16), np.eye(4))
    with pytest.raises(DataError, match="2 x 3 x 4 x 5"):
        read_nifti(many)


def test_voxels_without_a_size_are_refused() -> None:
    data = bytearray(gzip.decompress(nifti_bytes(an_oblique_volume())))
    data[280:296] = bytes(16)  # No x at all.
    with pytest.raises(DataError, match="no size"):
        volume_from_bytes(bytes(data))


@pytest.mark.parametrize("name", ["Jane_Doe_1970.nii.gz", "Jane_Doe_1970.nii"])
@pytest.mark.parametrize("damage", ["noise", "empty", "short", "absent"])
def test_a_damaged_file_is_an_error_that_does_not_name_it(
    tmp_path: Path, name: str, damage: str
) -> None:
    path = tmp_path / name
    whole = nifti_bytes(an_oblique_volume())
    whole = whole if name.endswith(".gz") else gzip.decompress(whole)
    if damage != "absent":
        kinds = {"noise": b"\x00\xffnoise" * 20, "empty": b"", "short": whole[: len(whole) // 2]}
        path.write_bytes(kinds[damage])
    with pytest.raises(DataError) as caught:
        read_nifti(path)
    assert "Jane" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_a_header_that_claims_more_than_memory_is_refused_before_it_is_read() -> None:
    data = bytearray(gzip.decompress(nifti_bytes(an_oblique_volume())))
    data[40:48] = np.array([3, 30000, 30000, 30000], "<i2").tobytes()
    with pytest.raises(DataError, match="cannot be read"):
        volume_from_bytes(gzip.compress(bytes(data)))


def test_colours_are_refused(tmp_path: Path) -> None:
    colours = np.zeros((2, 2, 2), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    path = save(tmp_path / "colours.nii", colours, np.eye(4))
    with pytest.raises(DataError, match="cannot be read"):
        read_nifti(path)


def test_a_real_image_and_its_labels_lie_over_one_another(test_data: Path) -> None:
    folder = test_data / "medical" / "msd_hippocampus"
    image = read_nifti(folder / "images" / "hippocampus_001.nii.gz")
    labels = read_nifti(folder / "labels" / "hippocampus_001.nii.gz")
    assert image.voxels.shape == labels.voxels.shape == (35, 51, 35)
    assert np.array_equal(image.affine, labels.affine)
    # The head of the hippocampus (1) lies in front of its tail (2): y grows to the back.
    turned = oriented(labels)
    front, back = (np.argwhere(turned.voxels == label)[:, 1].mean() for label in (1, 2))
    assert front < back
    turn = orientation_of(image.affine)
    assert np.array_equal(turn.undo(oriented(image).voxels), image.voxels)


def test_a_real_image_survives_writing(test_data: Path) -> None:
    folder = test_data / "medical" / "lidc_nodule_vois" / "image"
    volume = read_nifti(min(folder.iterdir()))
    again = volume_from_bytes(nifti_bytes(volume))
    assert np.array_equal(again.voxels, volume.voxels)
    assert np.allclose(again.affine, volume.affine, atol=1e-4)


# --- Pseudonyms -----------------------------------------------------------------------------------


def test_a_pseudonym_stays_in_a_folder_and_differs_in_another(tmp_path: Path) -> None:
    first = pseudonym("Jane Doe", tmp_path / "one")
    assert first == pseudonym("Jane Doe", tmp_path / "one")
    assert first != pseudonym("Jane Do", tmp_path / "one")
    assert first != pseudonym("Jane Doe", tmp_path / "other")
    assert len(first) == 12
    assert set(first) <= set("0123456789abcdef")


def test_only_the_owner_reads_the_secret(tmp_path: Path) -> None:
    pseudonym("Jane Doe", tmp_path)
    secret = tmp_path / SECRET
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [SECRET]
    before = pseudonym("Jane Doe", tmp_path)
    secret.write_bytes(b"x" * 32)
    assert pseudonym("Jane Doe", tmp_path) != before


def test_a_damaged_secret_is_named(tmp_path: Path) -> None:
    (tmp_path / SECRET).write_bytes(b"short")
    with pytest.raises(DataError, match="32 bytes"):
        pseudonym("Jane Doe", tmp_path)
