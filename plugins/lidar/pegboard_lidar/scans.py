"""Read and write scans in the formats that people keep them in; NumPy and small readers alone.

A scan is float32 (N, 4): x, y, z in metres and reflectance from 0 to 1, which is 0 where a file has
none. Points that are NaN, as organised clouds have them, are kept: `finite` drops them.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pegboard.errors import DataError
from pegboard.files import atomic_write
from pegboard.records import Array

REFLECTANCE = ("reflectance", "reflectivity", "intensity", "scalar_intensity", "i")
"""What files call it, in small letters; the first that is there is taken."""

_REPLACE = "replace the file, or take it out of the data"


def read_scan(path: Path) -> Array:
    """Read a scan in the format that its name says.

    Returns:
        float32 (N, 4).

    Raises:
        DataError: It cannot be read, is damaged, or its ending is none of `FORMATS`.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"the scan cannot be read: {error.strerror}", where=str(path), remedy="mend data.path"
        ) from error
    return scan_from_bytes(content, format_of(path), where=str(path))


def scan_from_bytes(content: bytes, scan_format: str, *, where: str = "the request") -> Array:
    """Read a scan from the content of a file.

    Args:
        content: Of the file.
        scan_format: One of `FORMATS`.
        where: Named in an error.

    Returns:
        float32 (N, 4).

    Raises:
        DataError: It is damaged, or there is no such format.
    """
    if scan_format not in FORMATS:
        raise DataError(
            f"'{scan_format}' is no format of scans",
            where=where,
            remedy=f"use one of {', '.join(FORMATS)}",
        )
    try:
        return FORMATS[scan_format](content)
    except _DamagedError as error:
        raise DataError(str(error), where=where, remedy=error.remedy) from error


def format_of(path: Path) -> str:
    """Return the format that a name's ending says, or the ending itself: `pcd.bin`, `ply`."""
    name = path.name.lower()
    known = (ending for ending in sorted(FORMATS, key=len)[::-1] if name.endswith("." + ending))
    return next(known, path.suffix.lower().lstrip("."))


def name_of(path: Path) -> str:
    """Return a scan's name without the ending of its format."""
    return path.name[: -len(format_of(path)) - 1] or path.name


def is_scan(path: Path) -> bool:
    """Whether a name has the ending of a scan."""
    return format_of(path) in FORMATS


def write_bin(path: Path, points: Array) -> None:
    """Write points (N, 4) as KITTI does, atomically: float32 x, y, z and reflectance."""
    atomic_write(path, np.ascontiguousarray(points, dtype="<f4").tobytes())


def finite(points: Array) -> Array:
    """Return the points all of whose numbers are finite."""
    return points[np.isfinite(points).all(axis=1)]


class _DamagedError(Exception):
    """A file does not hold what its format promises."""

    def __init__(self, what: str, remedy: str = _REPLACE) -> None:
        super().__init__(what)
        self.remedy = remedy


# --- Columns --------------------------------------------------------------------------------------


def _from_columns(columns: Mapping[str, Array]) -> Array:
    """Put named columns together; which of them there are is told by their names."""
    by_name = {name.lower(): column for name, column in columns.items()}
    absent = [axis for axis in "xyz" if axis not in by_name]
    if absent:
        raise _DamagedError(
            f"its points have no {', '.join(absent)} but {', '.join(by_name) or 'nothing'}",
            "name the fields x, y, z",
        )
    points = np.zeros((len(by_name["x"]), 4), dtype=np.float32)
    for place, axis in enumerate("xyz"):
        points[:, place] = by_name[axis]
    name = next((name for name in REFLECTANCE if name in by_name), None)
    if name:
        points[:, 3] = _scaled(by_name[name])
    return points


def _scaled(values: Array) -> Array:
    """Scale reflectance to 0..1: whole numbers by their type, others by the largest of them.

    Floats are 0..1 or, as PCL's drivers write them, what a byte or two bytes hold.
    """
    if values.dtype.kind in "iu":
        return values / np.iinfo(values.dtype).max
    known = values[np.isfinite(values)]
    largest = known.max() if known.size else 0.0
    return values / (1.0 if largest <= 1.0 else 255.0 if largest <= 255.0 else 65535.0)


# --- Raw floats -----------------------------------------------------------------------------------


def _raw(content: bytes, columns: int) -> Array:
    each = 4 * columns
    if len(content) % each:
        like = {4: 5, 5: 4}[columns]
        remedy = _REPLACE
        if len(content) % (4 * like) == 0:
            ending = {4: ".bin", 5: ".pcd.bin"}[like]
            remedy = f"it may have {like} numbers a point: then let its name end in {ending}"
        raise _DamagedError(
            f"{len(content):,} bytes are no whole number of points of {columns} float32", remedy
        )
    return np.frombuffer(content, dtype="<f4").reshape(-1, columns).astype(np.float32)


def _read_kitti(content: bytes) -> Array:
    return _raw(content, 4)


def _read_nuscenes(content: bytes) -> Array:
    """Read x, y, z, intensity from 0 to 255 and the ring, which is dropped."""
    points = _raw(content, 5)[:, :4].copy()
    points[:, 3] /= 255.0
    return points


# --- PCD ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _PcdHeader:
    """What a PCD file says of itself before its points."""

    dtype: np.dtype[np.void]
    """One point; fields of several numbers have a shape, padding has made-up names."""
    points: int
    storage: str
    """ascii, binary or binary_compressed."""
    size: int
    """Bytes of the header."""


def _read_pcd(content: bytes) -> Array:
    """Read https://pointclouds.org/documentation/tutorials/pcd_file_format.html."""
    header = _pcd_header(content)
    body = content[header.size :]
    if header.storage == "ascii":
        return _from_columns(_pcd_text(body, header))
    if header.storage == "binary":
        needed = header.points * header.dtype.itemsize
        if len(body) < needed:
            raise _DamagedError(f"it is cut off: {len(body):,} bytes of points, not {needed:,}")
        table = np.frombuffer(body, dtype=header.dtype, count=header.points)
        return _from_columns({name: table[name] for name in _scalars(header.dtype)})
    return _from_columns(_pcd_columns(_pcd_unpacked(body, header), header))


def _pcd_header(content: bytes) -> _PcdHeader:
    words: dict[str, list[str]] = {}
    start = 0
    while "DATA" not in words:
        end = content.find(b"\n", start)
        if end < 0 or end - start > 10_000:
            raise _DamagedError("it has no PCD header: there is no line DATA")
        key, *values = content[start:end].decode("latin-1").split() or [""]
        words[key.upper()] = values
        start = end + 1
    try:
        names = words.get("FIELDS") or words["COLUMNS"]
        kinds = [
            kind.lower() + size for kind, size in zip(words["TYPE"], words["SIZE"], strict=True)
        ]
        counts = [int(count) for count in words.get("COUNT", ["1"] * len(names))]
        sizes = words["WIDTH"] + words["HEIGHT"]
        points = int(words["POINTS"][0]) if "POINTS" in words else int(sizes[0]) * int(sizes[1])
        fields = [
            # Names of padding may repeat, those of a dtype may not.
            (name if names.count(name) == 1 and name != "_" else f"_{place}", "<" + kind, (count,))
            if count > 1
            else (name if names.count(name) == 1 and name != "_" else f"_{place}", "<" + kind)
            for place, (name, kind, count) in enumerate(zip(names, kinds, counts, strict=True))
        ]
        dtype = np.dtype(fields)
        storage = words["DATA"][0].lower()
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise _DamagedError(f"its PCD header is damaged: {error}") from error
    if storage not in ("ascii", "binary", "binary_compressed") or points < 0:
        raise _DamagedError(f"its PCD header is damaged: DATA {storage}, POINTS {points}")
    return _PcdHeader(dtype=dtype, points=points, storage=storage, size=start)


def _scalars(dtype: np.dtype[np.void]) -> list[str]:
    return [name for name in dtype.names or () if not dtype[name].shape]


def _pcd_text(body: bytes, header: _PcdHeader) -> dict[str, Array]:
    if not header.points:
        return {name: np.zeros(0) for name in _scalars(header.dtype)}
    widths = [int(np.prod(header.dtype[name].shape)) for name in header.dtype.names or ()]
    firsts = dict(zip(header.dtype.names or (), np.cumsum([0, *widths]), strict=False))
    lines = body.split(b"\n", header.points)[: header.points]
    if len(lines) < header.points or not lines[-1].strip():
        raise _DamagedError(f"it is cut off: there are not {header.points:,} lines of points")
    names = [
        name for name in _scalars(header.dtype) if name.lower() in ("x", "y", "z", *REFLECTANCE)
    ]
    try:
        table = np.loadtxt(lines, usecols=[firsts[name] for name in names], ndmin=2)
    except (ValueError, IndexError) as error:
        raise _DamagedError(f"its points are not numbers: {error}") from error
    return {
        name: column.astype(header.dtype[name]) if header.dtype[name].kind in "iu" else column
        for name, column in zip(names, table.T, strict=True)
    }


def _pcd_unpacked(body: bytes, header: _PcdHeader) -> bytes:
    packed, unpacked = (int(size) for size in np.frombuffer(body[:8].ljust(8, b"\0"), "<u4"))
    needed = header.points * header.dtype.itemsize
    if unpacked < needed or len(body) < 8 + packed:
        raise _DamagedError(
            f"it is cut off: {unpacked:,} bytes of points in {len(body):,}, not {needed:,}"
        )
    return _unpack_lzf(body[8 : 8 + packed], unpacked)


def _pcd_columns(body: bytes, header: _PcdHeader) -> dict[str, Array]:
    """Cut what is stored field after field, not point after point."""
    columns = {}
    start = 0
    for name in header.dtype.names or ():
        field = header.dtype[name]
        if not field.shape:
            columns[name] = np.frombuffer(body, dtype=field, count=header.points, offset=start)
        start += field.itemsize * header.points
    return columns


def _unpack_lzf(packed: bytes, size: int) -> bytes:
    """Undo the compression of liblzf: runs of literal bytes and references to what came before."""
    out = bytearray()
    place = 0
    try:
        while place < len(packed):
            control = packed[place]
            place += 1
            if control < 32:  # That many bytes and one as they are.
                out += packed[place : place + control + 1]
                place += control + 1
                continue
            length = control >> 5
            if length == 7:
                length += packed[place]
                place += 1
            start = len(out) - ((control & 31) << 8) - packed[place] - 1
            place += 1
            length += 2
            if start < 0:
                raise IndexError
            if start + length <= len(out):
                out += out[start : start + length]
            else:  # The run repeats itself.
                seed = out[start:]
                out += (seed * (length // len(seed) + 1))[:length]
    except IndexError:
        raise _DamagedError("its compressed points are damaged") from None
    if len(out) != size:
        raise _DamagedError(f"its compressed points are damaged: {len(out):,} bytes, not {size:,}")
    return bytes(out)


# --- Libraries ------------------------------------------------------------------------------------


def _read_ply(content: bytes) -> Array:
    import plyfile

    try:
        vertices = plyfile.PlyData.read(io.BytesIO(content))["vertex"].data
    except (plyfile.PlyParseError, KeyError, ValueError, UnicodeDecodeError) as error:
        raise _DamagedError(f"its PLY content is damaged: {_first_line(error)}") from error
    names = [name for name in vertices.dtype.names or () if vertices.dtype[name].kind in "iuf"]
    return _from_columns({name: vertices[name] for name in names})


def _read_las(content: bytes) -> Array:
    import laspy
    import lazrs

    problems = (laspy.errors.LaspyException, lazrs.LazrsError, ValueError, RuntimeError, EOFError)
    try:
        las = laspy.read(io.BytesIO(content))
    except problems as error:
        raise _DamagedError(f"its LAS content is damaged: {_first_line(error)}") from error
    if len(las.points) < las.header.point_count:
        raise _DamagedError(
            f"it is cut off: {len(las.points):,} of {las.header.point_count:,} points"
        )
    return _from_columns(
        {"x": las.x, "y": las.y, "z": las.z, "intensity": np.asarray(las.intensity)}
    )


def _read_numpy(content: bytes) -> Array:
    try:
        loaded = np.load(io.BytesIO(content), allow_pickle=False)
        points = loaded if isinstance(loaded, np.ndarray) else _only_array(loaded)
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise _DamagedError(f"its NumPy content is damaged: {_first_line(error)}") from error
    if points.ndim != 2 or points.shape[1] not in (3, 4) or points.dtype.kind not in "iuf":
        raise _DamagedError(
            f"its array is {points.dtype} {points.shape}",
            "store x, y, z or x, y, z and reflectance, a row each point",
        )
    return _from_columns(dict(zip(("x", "y", "z", "reflectance"), points.T, strict=False)))


def _only_array(archive: Mapping[str, Array]) -> Array:
    names = list(archive)
    if "points" in names:
        return archive["points"]
    if len(names) != 1:
        raise _DamagedError(
            f"it holds {len(names)} arrays and none is called points", "call one points"
        )
    return archive[names[0]]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


FORMATS: Mapping[str, Callable[[bytes], Array]] = {
    "bin": _read_kitti,
    "pcd.bin": _read_nuscenes,
    "pcd": _read_pcd,
    "ply": _read_ply,
    "las": _read_las,
    "laz": _read_las,
    "npy": _read_numpy,
    "npz": _read_numpy,
}
"""Formats by the endings of names."""
