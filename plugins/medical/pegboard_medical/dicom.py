"""DICOM series: told apart by their UID, put in order by position, read into volumes.

Neither file names nor instance numbers say where a slice lies; its position and orientation do. No
error names a patient or a file.
"""

from __future__ import annotations

import hashlib
import io
import stat
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pegboard.errors import DataError
from pegboard.files import atomic_path
from pegboard.records import Array, Finding
from pegboard_medical.volumes import Volume

SUFFIXES = (".dcm", ".dicom", ".ima")
"""A file so called that is no DICOM is damaged."""
OTHER_SUFFIXES = (
    *(".bmp", ".csv", ".doc", ".docx", ".gif", ".htm", ".html", ".inf", ".ini", ".jpeg", ".jpg"),
    *(".js", ".json", ".log", ".md", ".pdf", ".png", ".py", ".tsv", ".txt", ".xls", ".xlsx"),
    *(".xml", ".yaml", ".yml", ".zip"),
)
OTHER_NAMES = ("DICOMDIR", "LICENSE", "README", "VERSION", "LOCKFILE", "Thumbs.db")
"""What else lies beside DICOM files, without being any."""

SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
"""Screenshots and reports, of whatever modality; enhanced kinds begin with it too."""

IRREGULAR = 0.01
"""Share of the median step by which steps may differ."""
IRREGULAR_MM = 0.01
"""Millimetres by which they may differ anyhow: positions are written with few digits."""
GAP = 0.2
"""Steps by which a gap may miss a whole number and still be missing slices."""
TILT = 0.5
"""Degrees from which on slices do not lie upright over one another."""
DIRECTION = 1e-3
"""Differences of direction cosines below this are rounding."""

LARGEST_ARCHIVE = 32 * 2**30
"""Bytes that an archive may hold."""
MOST_FILES = 200_000
"""Files that it may hold."""
LARGEST_RATIO = 1000
"""How much smaller than its content deflate makes a file at best; more is a bomb."""

_TAGS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "PatientID",
    "Modality",
    "ImageType",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
    "GantryDetectorTilt",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "ReferencedSeriesSequence",
]

# --- Records --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Slice:
    """One slice: a file, or a frame of one."""

    file: Path
    frame: int = 0
    uid: str = ""
    """SOPInstanceUID of its file."""
    position: tuple[float, ...] = ()
    """ImagePositionPatient: millimetres of its first voxel's centre; empty: not said."""
    orientation: tuple[float, ...] = ()
    """ImageOrientationPatient: directions of rows and columns, six numbers; empty: not said."""
    spacing: tuple[float, ...] = ()
    """PixelSpacing: millimetres from row to row and from column to column; empty: not said."""
    thickness: float = 0.0
    """Millimetres to the next slice, as the file says it; used where there is no other slice."""
    tilt: float = 0.0
    """GantryDetectorTilt, degrees."""
    shape: tuple[int, int] = (0, 0)
    """Rows and columns."""
    colours: int = 1


@dataclass(frozen=True, kw_only=True)
class Series:
    """The slices of one SeriesInstanceUID, in order of position."""

    uid: str
    study_uid: str
    patient: str
    """PatientID as it is in the files: only to be hashed."""
    modality: str
    """`ct`, `mr`, or what else the files say, in small letters."""
    slices: tuple[Slice, ...]
    """Along the normal of the first one's plane."""
    is_volume: bool = True
    """False for localisers, screenshots and reports."""
    copies: int = 0
    """Files that are there twice, by SOPInstanceUID, and were left out."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files in order of position, each once."""
        return tuple(dict.fromkeys(one.file for one in self.slices))

    @cached_property
    def positions(self) -> Array:
        """float64 (slices,): millimetres along the normal; empty where a slice does not say."""
        if not all(one.position and one.orientation for one in self.slices):
            return np.zeros(0)
        normal = normal_of(self.slices[0].orientation)
        return np.array([one.position for one in self.slices]) @ normal


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What a set of files holds."""

    series: tuple[Series, ...]
    """Of images, sorted by UID."""
    segmentations: Mapping[str, Path]
    """DICOM-SEG file by the UID of the series that it refers to; of several the first."""
    further: tuple[Path, ...]
    """DICOM-SEG files of a series that has one already."""
    unreadable: tuple[Path, ...]
    """Files that should be DICOM and cannot be read."""


# --- Headers --------------------------------------------------------------------------------------


def is_dicom(path: Path) -> bool:
    """Say whether a file begins as DICOM files do; old ones begin with the first element."""
    try:
        with path.open("rb") as stream:
            start = stream.read(132)
    except OSError:
        return False
    # Group 8, little endian, and one of the elements that come first.
    return start[128:] == b"DICM" or (start[:2] == b"\x08\0" and start[3:4] == b"\0")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep pydicom from printing values, which may name a patient, in warnings."""
    from pydicom.config import disable_value_validation

    with disable_value_validation(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read_header(file: Path) -> Any:
    """Return the dataset of a file without its pixels, only what geometry needs; None: no DICOM."""
    import pydicom

    if not is_dicom(file):
        return None
    try:
        with quiet():
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_TAGS, force=True)
            # Values are parsed when they are first looked at: now, while errors are caught.
            for element in header:
                str(element.value)
    except Exception:  # Of a damaged file pydicom raises whatever its bytes lead to.
        return None
    return header if header.get("SeriesInstanceUID") and header.get("SOPClassUID") else None


def read_headers(files: Iterable[Path]) -> dict[Path, Any]:
    """Return the header of each file that is DICOM."""
    headers = ((file, read_header(file)) for file in files)
    return {file: header for file, header in headers if header is not None}


def group_series(files: Iterable[Path]) -> list[Series]:
    """Return the image series that files belong to, sorted by UID; other files are left out."""
    return list(scan(files).series)


def scan(files: Iterable[Path]) -> Scan:
    """Read the headers of files and say what they hold; unchanged files are not read again."""
    paths = sorted(files)
    members = {file: member for file in paths if (member := _look(file)) is not None}
    by_series: dict[str, list[_Member]] = defaultdict(list)
    segmentations: dict[str, Path] = {}
    further: list[Path] = []
    for file, member in members.items():
        for uid in member.refers_to:
            if segmentations.setdefault(uid, file) != file:
                further.append(file)
        if member.slices:
            by_series[member.series].append(member)
    folders = {file.parent for file in members}
    return Scan(
        series=tuple(_joined(uid, by_series[uid]) for uid in sorted(by_series)),
        segmentations=segmentations,
        further=tuple(further),
        unreadable=tuple(
            file for file in paths if file not in members and _should_be_dicom(file, folders)
        ),
    )


@dataclass(frozen=True, kw_only=True)
class _Member:
    """What a file says of its series."""

    series: str
    study: str
    patient: str
    modality: str
    is_volume: bool
    slices: tuple[Slice, ...]
    """Empty where it holds no image."""
    refers_to: tuple[str, ...]
    """UIDs of the series that a DICOM-SEG is of."""


def _look(file: Path) -> _Member | None:
    try:
        state = file.stat()
    except OSError:
        return None
    return _member(file, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=2**17)
def _member(file: Path, size: int, changed: int) -> _Member | None:
    """Read a header; a file of another size or time of change is read anew."""
    header = read_header(file)
    try:
        return None if header is None else _described(file, header)
    except (AttributeError, IndexError, TypeError, ValueError):  # Values of a wrong kind.
        return None


def _described(file: Path, header: Any) -> _Member:
    is_mask = header.SOPClassUID == SEGMENTATION
    kinds = np.atleast_1d(header.get("ImageType") or "")
    has_image = not is_mask and bool(header.get("Rows") and header.get("Columns"))
    referred = (header.get("ReferencedSeriesSequence") or ()) if is_mask else ()
    return _Member(
        series=str(header.SeriesInstanceUID),
        study=str(header.get("StudyInstanceUID") or ""),
        patient=str(header.get("PatientID") or ""),
        modality=str(header.get("Modality") or "").lower(),
        is_volume=not any(str(kind).upper() == "LOCALIZER" for kind in kinds)
        and not str(header.SOPClassUID).startswith(SECONDARY_CAPTURE),
        slices=tuple(slices_of(file, header)) if has_image else (),
        refers_to=tuple(str(one.get("SeriesInstanceUID")) for one in referred),
    )


def _should_be_dicom(file: Path, folders: set[Path]) -> bool:
    """Say whether a file that is no DICOM was meant to be: by its name, or by its neighbours."""
    suffix = file.suffix.lower()
    if suffix in SUFFIXES:
        return True
    other = suffix in OTHER_SUFFIXES or file.name in OTHER_NAMES
    return not other and file.parent in folders


def _joined(uid: str, members: Sequence[_Member]) -> Series:
    unique: dict[str, _Member] = {}
    for member in members:
        first = member.slices[0]
        unique.setdefault(first.uid or str(first.file), member)
    return Series(
        uid=uid,
        study_uid=members[0].study,
        patient=members[0].patient,
        modality=members[0].modality,
        slices=tuple(_ordered([one for member in unique.values() for one in member.slices])),
        is_volume=members[0].is_volume,
        copies=len(members) - len(unique),
    )


def slices_of(file: Path, header: Any) -> Iterator[Slice]:
    """Yield the slices of a file: one, or the frames of an enhanced image."""
    frames = header.get("PerFrameFunctionalGroupsSequence")
    if not frames:
        count = int(header.get("NumberOfFrames") or 1)
        for frame in range(count):
            # Frames without groups say no place of their own.
            yield _slice(file, frame, header, [header] if count == 1 else [])
        return
    shared = list(header.get("SharedFunctionalGroupsSequence") or ())[:1]
    for number, frame in enumerate(frames):
        yield _slice(
            file, number, header, [*_groups(frame), *(g for s in shared for g in _groups(s))]
        )


def _shared(dataset: Any) -> list[Any]:
    """Return what holds for all frames of an enhanced image."""
    return [
        group
        for item in dataset.get("SharedFunctionalGroupsSequence") or ()
        for group in _groups(item)
    ]


def _groups(item: Any) -> list[Any]:
    """Return the single items of the sequences in a functional group."""
    return [element.value[0] for element in item if element.VR == "SQ" and element.value]


def _slice(file: Path, frame: int, header: Any, places: Sequence[Any]) -> Slice:
    def number(keyword: str) -> float:
        values = _numbers(_first(places, keyword), 1)
        return values[0] if values else 0.0

    return Slice(
        file=file,
        frame=frame,
        uid=str(header.get("SOPInstanceUID") or ""),
        position=_numbers(_first(places, "ImagePositionPatient"), 3),
        orientation=_numbers(_first(places, "ImageOrientationPatient"), 6),
        spacing=_numbers(_first(places, "PixelSpacing"), 2),
        thickness=abs(number("SpacingBetweenSlices")) or abs(number("SliceThickness")),
        tilt=number("GantryDetectorTilt"),
        shape=(int(header.Rows), int(header.Columns)),
        colours=int(header.get("SamplesPerPixel") or 1),
    )


def _first(places: Sequence[Any], keyword: str) -> Any:
    return next((place.get(keyword) for place in places if keyword in place), None)


def _numbers(value: Any, count: int) -> tuple[float, ...]:
    """Return finite numbers, as many as there have to be, or none."""
    if value is None or value == "":
        return ()
    values = value if isinstance(value, Iterable) and not isinstance(value, str) else [value]
    try:
        numbers = tuple(float(number) for number in values)
    except (TypeError, ValueError):
        return ()
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else ()


# --- Geometry -------------------------------------------------------------------------------------


def normal_of(orientation: Sequence[float]) -> Array:
    """Return the direction (3,) in which slices of an orientation lie over one another."""
    normal: Array = np.cross(orientation[:3], orientation[3:])
    length = float(np.linalg.norm(normal))
    return normal / length if length > 0 else normal


def _ordered(slices: Sequence[Slice]) -> list[Slice]:
    if not all(one.position and one.orientation for one in slices):
        return list(slices)
    normal = normal_of(slices[0].orientation)
    # Slices at one position stay in the order of their UIDs, whatever the files are called.
    return sorted(slices, key=lambda one: (float(np.dot(one.position, normal)), one.uid, one.frame))


def _affine(slices: Sequence[Slice]) -> Array:
    first, last = slices[0], slices[-1]
    if len(slices) > 1:
        step = (np.array(last.position) - np.array(first.position)) / (len(slices) - 1)
    else:
        step = normal_of(first.orientation) * (first.thickness or 1.0)
    affine = np.eye(4)
    affine[:3, 0] = step
    # A column index moves along a row: by the first direction and the second spacing.
    affine[:3, 1] = np.array(first.orientation[3:]) * first.spacing[0]
    affine[:3, 2] = np.array(first.orientation[:3]) * first.spacing[1]
    affine[:3, 3] = first.position
    return affine


def affine_of(datasets: Sequence[Any]) -> Array:
    """Return where the voxels of slices in order of position lie.

    Args:
        datasets: Headers or whole datasets, one a slice; or one with many frames, in any order.

    Returns:
        float64 (4, 4): (slice, row, column, 1) -> millimetres (x, y, z, 1), LPS.

    Raises:
        DataError: One says no place.
    """
    slices = [one for dataset in datasets for one in slices_of(Path(), dataset)]
    if not all(one.position and one.orientation and one.spacing for one in slices):
        raise DataError("a slice says no position, orientation or spacing")
    return _affine(_ordered(slices) if len(datasets) == 1 else slices)


# --- What is wrong with a series ------------------------------------------------------------------


def series_findings(series: Series, key: str) -> list[Finding]:
    """Return what is wrong with the geometry of a series.

    An error is what would put voxels in a wrong place; such a series is not read.

    Args:
        series: It has a slice.
        key: Names it.
    """
    unplaced = list(_unplaced(series, key))
    if unplaced:
        return unplaced
    mixed = list(_mixed(series, key))
    if mixed:
        return mixed
    return [*_copied(series, key), *_steps(series, key), *_tilted(series, key)]


def _unplaced(series: Series, key: str) -> Iterator[Finding]:
    total = len(series.slices)
    for words, count in (
        ("no position", sum(not one.position for one in series.slices)),
        ("no orientation", sum(not _is_plane(one.orientation) for one in series.slices)),
        ("no pixel spacing", sum(not one.spacing for one in series.slices)),
        (
            "a pixel spacing of zero",
            sum(bool(one.spacing) and min(one.spacing) <= 0 for one in series.slices),
        ),
        ("colours", sum(one.colours != 1 for one in series.slices)),
    ):
        if count:
            yield Finding(
                level="error",
                what=f"{count} of {total} slices have {words}",
                where=key,
                remedy="export the series again from the scanner or PACS, or take it out",
            )


def _is_plane(orientation: Sequence[float]) -> bool:
    if not orientation:
        return False
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    return bool(np.allclose(lengths, 1, atol=0.01) and abs(row @ column) < 0.01)


def _mixed(series: Series, key: str) -> Iterator[Finding]:
    first = series.slices[0]
    for words, count in (
        ("size", len({one.shape for one in series.slices})),
        (
            "orientation",
            1
            + sum(
                not np.allclose(one.orientation, first.orientation, atol=DIRECTION)
                for one in series.slices
            ),
        ),
        (
            "pixel spacing",
            1
            + sum(
                not np.allclose(one.spacing, first.spacing, rtol=DIRECTION) for one in series.slices
            ),
        ),
    ):
        if count > 1:
            yield Finding(
                level="error",
                what=f"slices of more than one {words} in a series",
                where=key,
                remedy="take out those that do not belong, such as a localiser",
            )


def _copied(series: Series, key: str) -> Iterator[Finding]:
    if series.copies:
        yield Finding(
            level="warning",
            what=f"{_count(series.copies, 'file')} of a series twice; each is read once",
            where=key,
            remedy="remove the copies",
        )


def _steps(series: Series, key: str) -> Iterator[Finding]:
    positions = series.positions
    if len(positions) < 2:
        return
    steps = np.diff(positions)
    doubled = steps < IRREGULAR_MM
    if doubled.any():
        yield Finding(
            level="error",
            what=f"{_count(int(doubled.sum()), 'doubled slice')}: at one position with another, "
            f"first at {positions[1:][doubled][0]:.2f} mm",
            where=key,
            remedy="keep one of each, or separate the phases or echoes",
        )
        return
    median = float(np.median(steps))
    missing = np.rint(steps / median) - 1
    is_gap = (missing >= 1) & (np.abs(steps / median - np.rint(steps / median)) <= GAP)
    if is_gap.any():
        places = ", ".join(
            f"{low:.2f} and {high:.2f} mm"
            for (low, high), gap in zip(pairwise(positions), is_gap, strict=True)
            if gap
        )
        yield Finding(
            level="error",
            what=f"{_count(int(missing[is_gap].sum()), 'missing slice')}, between {places}",
            where=key,
            remedy="export the whole series again, or take it out",
        )
        return
    apart = float(np.abs(steps - median).max())
    if apart > max(IRREGULAR * median, IRREGULAR_MM) + 1e-6:  # Sums of decimals are not exact.
        even = np.linspace(positions[0], positions[-1], len(positions))
        off = float(np.abs(positions - even).max())
        yield Finding(
            # Voxels are placed by the mean step; beyond half of one they are in another slice.
            level="error" if off > median / 2 else "warning",
            what=f"irregular spacing: steps of {steps.min():.2f} to {steps.max():.2f} mm; slices "
            f"lie up to {off:.2f} mm from where even steps put them",
            where=key,
            remedy="export a reconstruction with even steps",
        )


def _tilted(series: Series, key: str) -> Iterator[Finding]:
    first, last = series.slices[0], series.slices[-1]
    told = max((abs(one.tilt) for one in series.slices), default=0.0)
    seen = 0.0
    if len(series.slices) > 1:
        step = np.array(last.position) - np.array(first.position)
        length = float(np.linalg.norm(step))
        upright = float(step @ normal_of(first.orientation)) / length if length else 1.0
        seen = float(np.degrees(np.arccos(np.clip(upright, -1, 1))))
    if told > 0.01 or seen > TILT:
        yield Finding(
            level="warning",
            what=f"gantry tilt: slices lie askew over one another by {seen:.1f} degrees"
            + (f", the files say {told:.1f}" if told else ""),
            where=key,
            remedy="export an untilted reconstruction; distances across slices are a little wrong",
        )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


# --- Voxels ---------------------------------------------------------------------------------------


def read_series(series: Series) -> Volume:
    """Read the slices of a series into a volume, in the scanner's units (HU of a CT).

    Raises:
        DataError: A file cannot be read, or the slices do not make a volume.
    """
    errors = [one for one in series_findings(series, "") if one.level == "error"]
    if errors:
        raise DataError(errors[0].what, remedy=errors[0].remedy)
    planes = _planes(series)
    if any(plane.dtype.kind == "f" for plane in planes):
        planes = [plane.astype(np.float32) for plane in planes]
    return Volume(voxels=np.stack(planes), affine=_affine(series.slices), modality=series.modality)


def _planes(series: Series) -> list[Array]:
    """Read the slices, each file once."""
    frames: dict[Path, Array] = {}
    planes = []
    numbers = {file: number for number, file in enumerate(series.files, 1)}
    for one in series.slices:
        if one.file not in frames:
            if len(series.files) == len(series.slices):
                frames.clear()  # One frame a file: nothing to keep.
            try:
                frames[one.file] = _read_frames(one.file)
            except Exception:  # Decoders raise whatever damaged bytes lead to, with file names.
                raise DataError(
                    f"file {numbers[one.file]} of {len(numbers)} of a series cannot be read",
                    remedy="replace it, or take the series out of the data",
                ) from None
        plane = frames[one.file][one.frame]
        if plane.shape != one.shape:
            raise DataError("a slice has another size than it says", remedy="replace the series")
        planes.append(plane)
    return planes


def _read_frames(file: Path) -> Array:
    """Return the frames (N, H, W) of a file, slope and intercept applied."""
    import pydicom

    with quiet():
        dataset = pydicom.dcmread(file, force=True)
        if "TransferSyntaxUID" not in dataset.file_meta:
            dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
        return pixels_of(dataset)


def pixels_of(dataset: Any) -> Array:
    """Return the frames (N, H, W) of a dataset, decompressed, slope and intercept applied.

    Integers where slope and intercept are whole, else float32.
    """
    from pydicom.pixels.processing import apply_modality_lut

    stored = dataset.pixel_array
    stored = stored[None] if stored.ndim == 2 else stored
    if dataset.get("ModalityLUTSequence"):
        return np.asarray(apply_modality_lut(stored, dataset), dtype=np.float32)
    groups = dataset.get("PerFrameFunctionalGroupsSequence")
    if not groups:
        return _rescaled(stored, [dataset])
    shared = _shared(dataset)
    frames = [
        _rescaled(frame, [*_groups(group), *shared])
        for frame, group in zip(stored, groups, strict=True)
    ]
    return np.stack(frames)


def _rescaled(stored: Array, places: Sequence[Any]) -> Array:
    slope = float(_number(places, "RescaleSlope", 1.0))
    intercept = float(_number(places, "RescaleIntercept", 0.0))
    if stored.dtype.kind == "f" or not (slope.is_integer() and intercept.is_integer()):
        return (stored * slope + intercept).astype(np.float32)
    changed = stored.astype(np.int64) * int(slope) + int(intercept)
    small = np.iinfo(np.int16)
    fits = small.min <= changed.min() and changed.max() <= small.max
    return changed.astype(np.int16 if fits else np.int32)


def _number(places: Sequence[Any], keyword: str, usual: float) -> float:
    value = _first(places, keyword)
    return usual if value is None or value == "" else float(value)


# --- Archives -------------------------------------------------------------------------------------


def unpacked(source: Path | bytes, folder: Path, *, largest: int = LARGEST_ARCHIVE) -> Path:
    """Unpack a zip archive, once, and return the folder of its files.

    Args:
        source: The archive or its bytes.
        folder: Where its folder is made.
        largest: Bytes that it may hold.

    Raises:
        DataError: It is damaged or encrypted, holds too much, or a name in it leads out of it.
    """
    if isinstance(source, bytes):
        digest = hashlib.sha256(source).hexdigest()
    else:
        state = source.stat()
        said = f"{source.absolute()} {state.st_size} {state.st_mtime_ns}"
        digest = hashlib.sha256(said.encode()).hexdigest()
    target = folder / f"unpacked-{digest[:12]}"
    if target.is_dir():
        return target
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with zipfile.ZipFile(stream) as archive, atomic_path(target) as temporary:
            temporary.mkdir()
            _unpack(archive, temporary, largest)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError):
        raise DataError(
            "the zip archive is damaged or encrypted", remedy="pack it again, without a password"
        ) from None
    except OSError as error:
        if isinstance(error.filename, str | None):
            raise DataError("the zip archive cannot be unpacked", remedy="pack it again") from None
        raise
    return target


def _unpack(archive: zipfile.ZipFile, folder: Path, largest: int) -> None:
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    if len(entries) > MOST_FILES:
        raise DataError(
            f"the zip archive holds {len(entries):,} files, more than {MOST_FILES:,}",
            remedy="give a folder",
        )
    left = largest
    for number, entry in enumerate(entries, 1):
        where = f"file {number} of the archive"
        target = folder / _inside(entry, where)
        if entry.file_size > LARGEST_RATIO * max(entry.compress_size, 1) + 2**20:
            raise _too_large(where)
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(entry) as packed, target.open("xb") as plain:
            # Counted as it comes: the archive's own table may lie.
            while chunk := packed.read(min(2**20, left + 1)):
                left -= len(chunk)
                if left < 0:
                    raise _too_large(where)
                plain.write(chunk)


def _inside(entry: zipfile.ZipInfo, where: str) -> PurePosixPath:
    """Return the name of an entry, if it stays inside the archive's folder."""
    name = PurePosixPath(entry.filename.replace("\\", "/"))
    leads_out = name.is_absolute() or ".." in name.parts or ":" in name.parts[0]
    if leads_out or stat.S_ISLNK(entry.external_attr >> 16):
        raise DataError(
            "a name in the zip archive leads out of it, or is a link",
            where=where,
            remedy="pack plain files",
        )
    return name


def _too_large(where: str) -> DataError:
    return DataError("the zip archive holds too much", where=where, remedy="give a folder")
