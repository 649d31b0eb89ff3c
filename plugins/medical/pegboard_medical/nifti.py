"""NIfTI files, read and written.

NIfTI has axes (i, j, k) and positions in RAS; a `Volume` has (k, j, i) and LPS, as DICOM.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pegboard.errors import DataError
from pegboard.files import atomic_write
from pegboard.records import Array
from pegboard_medical.volumes import Volume

SUFFIXES = (".nii", ".nii.gz")
LARGEST = 2**31
"""Voxels of a volume; a damaged header can claim any number."""
TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_REVERSED = [2, 1, 0, 3]
"""Columns of an affine, or back: (i, j, k, 1) as (k, j, i, 1)."""
_HEADERS = {348: "Nifti1Image", 540: "Nifti2Image"}
"""Which class of nibabel reads a file, by the header's first number."""
_STORED = (np.uint8, np.int16, np.int32, np.float32)
"""Types that every viewer reads, the smallest first."""


def is_nifti(path: Path) -> bool:
    """Say whether a file is called as NIfTI files are."""
    return path.name.lower().endswith(SUFFIXES)


def stem_of(path: Path) -> str:
    """Return a NIfTI file's name without `.nii` or `.nii.gz`."""
    name = path.name
    for suffix in reversed(SUFFIXES):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def read_nifti(path: Path) -> Volume:
    """Read a volume.

    Raises:
        DataError: It cannot be read, has not three dimensions, or its voxels have no size. The
            path, which may name a patient, is not in it.
    """
    with _readable(), path.open("rb") as stream:
        return _volume_of(stream)


def volume_from_bytes(data: bytes) -> Volume:
    """Read a volume from the bytes of a `.nii` or `.nii.gz` file.

    Raises:
        DataError: As `read_nifti`.
    """
    with _readable():
        return _volume_of(io.BytesIO(data))


def nifti_bytes(volume: Volume) -> bytes:
    """Return the bytes of a `.nii.gz` file; the same for equal volumes."""
    nibabel = _nibabel()
    voxels = np.transpose(_storable(volume.voxels))
    affine = TO_LPS @ volume.affine[:, _REVERSED]
    image = nibabel.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner", strip_shears=True)
    return gzip.compress(image.to_bytes(), compresslevel=6, mtime=0)


def write_nifti(path: Path, volume: Volume) -> None:
    """Write a volume as `.nii.gz`, atomically."""
    atomic_write(path, nifti_bytes(volume))


# --- Inside ---------------------------------------------------------------------------------------


def _nibabel() -> Any:
    """Return the library, which is heavy and says no types."""
    import nibabel

    return nibabel


@contextmanager
def _readable() -> Iterator[None]:
    """Turn what a damaged file raises into an error that does not say the file's name."""
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError, ImageDataError
    from nibabel.wrapstruct import WrapStructError

    of_header = (ImageFileError, HeaderDataError, ImageDataError, WrapStructError)
    of_file = (OSError, EOFError, zlib.error)
    try:
        yield
    except (*of_header, *of_file, ValueError, KeyError, OverflowError, MemoryError):
        raise DataError(
            "a NIfTI file cannot be read", remedy="replace it, or take it out of the data"
        ) from None


def _volume_of(stream: Any) -> Volume:
    packed = stream.read(2) == b"\x1f\x8b"
    stream.seek(0)
    plain = gzip.GzipFile(fileobj=stream) if packed else stream
    first = plain.read(4)
    plain.seek(0)
    kind = _HEADERS.get(int.from_bytes(first, "little")) or _HEADERS.get(
        int.from_bytes(first, "big")
    )
    if kind is None:
        raise ValueError("no NIfTI header")
    image = getattr(_nibabel(), kind).from_stream(plain)
    shape = image.shape
    if len(shape) > 3 and set(shape[3:]) == {1}:
        shape = shape[:3]
    if len(shape) != 3 or 0 in shape:
        raise DataError(
            f"a NIfTI file has the shape {' x '.join(map(str, shape))}",
            remedy="give volumes of three dimensions, one file each",
        )
    if np.prod(shape, dtype=float) > LARGEST:
        raise ValueError("more voxels than any scanner makes")
    affine = (TO_LPS @ image.affine)[:, _REVERSED]
    # The determinant says zero too where two axes are one.
    if not np.isfinite(affine).all() or not abs(np.linalg.det(affine[:3, :3])) > 1e-9:
        raise DataError(
            "the voxels of a NIfTI file have no size", remedy="mend its header: sform and pixdim"
        )
    voxels = np.asanyarray(image.dataobj).reshape(shape)
    if voxels.dtype.kind not in "biuf":
        raise ValueError("colours or complex numbers")
    if voxels.dtype == np.float64:
        voxels = voxels.astype(np.float32)
    native = voxels.astype(voxels.dtype.newbyteorder("="), copy=False)
    return Volume(voxels=np.transpose(native), affine=affine)


def _storable(voxels: Array) -> Array:
    """Return voxels in the smallest common type that holds them exactly; floats as float32."""
    if voxels.dtype.kind == "f":
        return voxels.astype(np.float32)
    if voxels.dtype in _STORED:
        return voxels
    low, high = (int(voxels.min()), int(voxels.max())) if voxels.size else (0, 0)
    for kind in _STORED[:-1]:
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return voxels.astype(kind)
    return voxels.astype(np.float32)
