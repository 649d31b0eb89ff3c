"""From folders, archives and tables to cases: which image, whose, and with which mask.

No voxel is read here before `read_case`: of NIfTI files only the names count, of DICOM files the
headers.
"""

from __future__ import annotations

import csv
import io
import itertools
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pegboard.errors import DataError, SettingsError
from pegboard.files import atomic_write
from pegboard.records import Array, Split
from pegboard.splits import SPLIT_WORDS
from pegboard_medical import dicom
from pegboard_medical.cases import Case
from pegboard_medical.nifti import is_nifti, read_nifti, stem_of
from pegboard_medical.privacy import pseudonym
from pegboard_medical.settings import VolumeData
from pegboard_medical.volumes import Volume, orientation_of, oriented

LISTED = "cases.csv"
"""In the data's folder: which key stands for which file. It never leaves the project."""

MASK_FOLDERS = (
    "labelstr",
    "labelsts",
    "labels",
    "label",
    "masks",
    "mask",
    "nodule_mask",
    "nodule_masks",
    "segmentations",
    "segmentation",
)
"""What people call the folder of the masks, in small letters."""
IMAGE_FOLDERS = ("imagestr", "imagests", "images", "image")
"""What they call the folder of the images beside it."""
MASK_ENDINGS = ("_mask", "_seg", "_label", "_labels")
"""What they add to an image's name where its mask lies beside it."""
FIRST_CHANNEL = re.compile(r"_0000$")
"""What nnU-Net adds to an image's name."""
CHANNEL = re.compile(r"_\d{4}$")
TABLES = (".csv", ".tsv")
TOLERANCE = 0.5
"""Voxels by which a mask may lie beside its image: files round their numbers."""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """All that is known of the data before a voxel is read."""

    layout: str
    """`dicom`, `nifti` or `csv`."""
    cases: tuple[Case, ...]
    """Sorted by path or UID."""
    series: tuple[dicom.Series, ...] = ()
    """All image series of a DICOM folder, those that became no case too."""
    folders: int = 0
    """Folders that hold files of more than one image series."""
    unreadable: tuple[Path, ...] = ()
    """Files that should be DICOM and are not."""
    stray_masks: tuple[Path, ...] = ()
    """Masks that belong to no image."""
    further_masks: tuple[Path, ...] = ()
    """DICOM-SEG files of series that have a mask already."""
    damaged_tables: tuple[Path, ...] = ()
    """CSV files beside the volumes that hold no text."""
    channels: int = 0
    """Images of further channels (`_0001`), which are not read."""
    unnamed: int = 0
    """Files that `data.patient_pattern` finds no patient in."""


def read_cases(data: VolumeData) -> list[Case]:
    """List the cases, and write which key stands for which file to `data.folder/cases.csv`.

    Args:
        data: `data.path` is where they are.

    Returns:
        Cases sorted by path or SeriesInstanceUID, so that keys, which differ from project to
        project, change no order. Cases without a mask are among them.

    Raises:
        DataError: There is nothing, or it lies in no known layout.
        SettingsError: `data.patient_pattern` is no regular expression with a group.
    """
    found = survey(data)
    _write_list(found, data.folder)
    return list(found.cases)


def read_case(case: Case) -> Volume:
    """Read the image.

    Raises:
        DataError: It cannot be read; the case is named by its key.
    """
    with_key = _named(case)
    try:
        if case.kind == "nifti":
            return read_nifti(case.files[0])
        series = dicom.group_series(case.files)
        if not series:
            raise DataError("the series cannot be read", remedy="replace its files")
        return dicom.read_series(series[0])
    except DataError as error:
        raise with_key(error) from None


def read_mask(case: Case, image: Volume, classes: Sequence[str] = ()) -> Array:
    """Read the mask.

    Args:
        case: It has one.
        image: What `read_case` gave.
        classes: A DICOM-SEG whose segments are all called like these is read by name.

    Returns:
        uint8 (D, H, W) on the image's own grid: 0 background, k + 1 class k.

    Raises:
        DataError: It cannot be read, its numbers are no labels, or it lies on another grid.
    """
    if case.mask is None:
        raise DataError("the case has no mask", where=case.key, remedy="outline it")
    try:
        if is_nifti(case.mask):
            return on_grid(read_nifti(case.mask), image)
        return _read_seg(case.mask, case, image, classes)
    except DataError as error:
        raise _named(case)(error) from None


def on_grid(mask: Volume, image: Volume) -> Array:
    """Bring a mask's axes to the order of its image's; no voxel is interpolated.

    Returns:
        uint8, of the image's shape.

    Raises:
        DataError: Its numbers are no labels, or it lies on another grid.
    """
    labels = _labels(mask.voxels)
    if fits(mask, image):
        return labels
    turned, target = oriented(mask.like(labels)), oriented(image)
    if not fits(turned, target):
        raise DataError(
            f"the mask ({_size(mask)}) does not lie on the grid of its image ({_size(image)})",
            remedy="draw it on the image itself, or resample it to the image's grid",
        )
    return np.ascontiguousarray(orientation_of(image.affine).undo(turned.voxels))


def fits(mask: Volume, image: Volume) -> bool:
    """Say whether two volumes have one grid: the corners within half a voxel of one another."""
    if mask.voxels.shape != image.voxels.shape:
        return False
    depth, height, width = (length - 1 for length in image.voxels.shape)
    corners = np.array(
        [[k, j, i, 1.0] for k in (0, depth) for j in (0, height) for i in (0, width)]
    )
    apart = np.linalg.inv(image.affine) @ (mask.affine - image.affine) @ corners.T
    return bool(np.abs(apart[:3]).max() <= TOLERANCE)


# --- Layouts --------------------------------------------------------------------------------------


def survey(data: VolumeData) -> Survey:
    """Return the cases, and what else is there.

    Raises:
        DataError: There is nothing, or it lies in no known layout.
        SettingsError: `data.patient_pattern` is no regular expression with a group.
    """
    pattern = _compile(data.patient_pattern)
    root = data.path
    if root is None or not root.exists():
        # Not the path itself: people name folders after patients.
        raise DataError("there are no volumes", where="data.path", remedy="correct it")
    if root.is_file() and root.suffix.lower() == ".zip":
        root = dicom.unpacked(root, data.folder)
    layout = detect(root) if data.layout == "auto" else data.layout
    found = _READERS[layout](root, data)
    if root.is_dir():
        tables = (path for path in files_under(root) if path.suffix.lower() in TABLES)
        found = replace(found, damaged_tables=tuple(path for path in tables if _is_noise(path)))
    if not found.cases and not found.series and not found.unreadable:
        raise DataError(
            f"there is no volume in the layout '{layout}'",
            where="data.path",
            remedy="correct it, or data.layout",
        )
    return _with_patients(found, root, pattern, data)


def detect(root: Path) -> str:
    """Return the layout: `csv` for a table, `dicom` or `nifti` by what a folder holds.

    Raises:
        DataError: Neither DICOM nor NIfTI is there.
    """
    if root.is_file():
        if root.suffix.lower() in TABLES:
            return "csv"
        return "nifti" if is_nifti(root) else "dicom"
    files = files_under(root)
    volumes = [path for path in files if is_nifti(path)]
    # Folders of images and labels are meant, whatever else lies beside them.
    if any(_role(path, root) == "image" for path in volumes):
        return "nifti"
    if any(dicom.is_dicom(path) for path in files if not is_nifti(path)):
        return "dicom"
    if volumes:
        return "nifti"
    raise DataError(
        "there are neither DICOM nor NIfTI files",
        where="data.path",
        remedy="give a folder or zip that holds some, or a CSV file that lists them",
    )


def _is_noise(path: Path) -> bool:
    """Say whether a table holds no text: zeros, other than those of UTF-16."""
    with path.open("rb") as stream:
        start = stream.read(4096)
    return b"\0" in start and not start.startswith((b"\xff\xfe", b"\xfe\xff"))


def files_under(root: Path) -> list[Path]:
    """Return all files under a folder, or the file itself, without hidden ones, sorted."""
    if root.is_file():
        return [root]
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(path for path in found if path.is_file())


def _read_nifti_layout(root: Path, data: VolumeData) -> Survey:
    volumes = [path for path in files_under(root) if is_nifti(path)]
    root = root.parent if root.is_file() else root
    roles = {path: _role(path, root) for path in volumes}
    with_folders = "image" in roles.values()
    masks = {_place(path, root): path for path in volumes if roles[path] == "mask"}
    images = {_place(path, root): path for path in volumes if roles[path] != "mask"}
    if with_folders:
        # Beside a folder of images, other NIfTI files are something else.
        images = {place: path for place, path in images.items() if roles[path] == "image"}
    channels = [place for place in images if _is_further_channel(place, images, masks)]
    for place in channels:
        del images[place]
    beside = {
        place: images[folder, stem + ending]
        for place in images
        for folder, stem in [place]
        for ending in MASK_ENDINGS
        if (folder, stem + ending) in images
    }
    taken = set(beside.values())
    cases = []
    for (folder, stem), path in images.items():
        if path in taken:
            continue
        mask = masks.pop((folder, stem), None)
        if mask is None:
            mask = masks.pop((folder, FIRST_CHANNEL.sub("", stem)), None)
        if mask is None:
            mask = beside.get((folder, stem))
        cases.append(
            Case(
                key=_key(path, root, data),
                kind="nifti",
                files=(path,),
                mask=mask,
                # nnU-Net's test folder, where somebody has outlined it.
                split="test" if mask is not None and folder.endswith("ts") else None,
            )
        )
    return Survey(
        layout="nifti",
        cases=tuple(cases),
        stray_masks=tuple(masks.values()),
        channels=len(channels),
    )


def _role(path: Path, root: Path) -> str:
    """Say what a NIfTI file is by the folders it lies in: `image`, `mask` or empty."""
    folders = [part.lower() for part in path.relative_to(root).parts[:-1]]
    for folder in reversed(folders):
        if folder in MASK_FOLDERS:
            return "mask"
        if folder in IMAGE_FOLDERS:
            return "image"
    return ""


def _place(path: Path, root: Path) -> tuple[str, str]:
    """Return the folders and the name that an image and its mask have in common."""
    *folders, _ = path.relative_to(root).parts
    for place in reversed(range(len(folders))):
        name = folders[place].lower()
        if name in MASK_FOLDERS or name in IMAGE_FOLDERS:
            folders[place] = name[-2:] if name.endswith(("tr", "ts")) else ""
            break
    return "/".join(folders), stem_of(path)


def _is_further_channel(
    place: tuple[str, str],
    images: Mapping[tuple[str, str], Path],
    masks: Mapping[tuple[str, str], Path],
) -> bool:
    """Say whether an image is nnU-Net's `_0001`; elsewhere that is the number of a case."""
    folder, stem = place
    channel = CHANNEL.search(stem)
    return (
        channel is not None
        and channel[0] != "_0000"
        and folder.endswith(("tr", "ts"))
        and place not in masks
        and (folder, stem[: channel.start()] + "_0000") in images
    )


def _read_dicom_layout(root: Path, data: VolumeData) -> Survey:
    files = files_under(root)
    volumes = {stem_of(path): path for path in files if is_nifti(path)}
    scan = dicom.scan([path for path in files if not is_nifti(path)])
    masks = {**scan.segmentations, **volumes}
    cases = [
        Case(
            key=pseudonym(series.uid, data.folder),
            kind="dicom",
            files=series.files,
            patient=pseudonym(series.patient, data.folder) if series.patient else "",
            mask=masks.get(series.uid),
        )
        for series in scan.series
        if series.is_volume and series.modality == data.modality
    ]
    known = {series.uid for series in scan.series}
    folders: dict[Path, set[str]] = defaultdict(set)
    for series in scan.series:
        for file in series.files:
            folders[file.parent].add(series.uid)
    return Survey(
        layout="dicom",
        cases=tuple(cases),
        series=scan.series,
        folders=sum(len(uids) > 1 for uids in folders.values()),
        unreadable=scan.unreadable,
        further_masks=scan.further,
        stray_masks=tuple(path for uid, path in masks.items() if uid not in known),
    )


def _read_csv_layout(path: Path, data: VolumeData) -> Survey:
    return Survey(layout="csv", cases=tuple(_rows(path, data)))


_READERS: Mapping[str, Callable[[Path, VolumeData], Survey]] = {
    "nifti": _read_nifti_layout,
    "dicom": _read_dicom_layout,
    "csv": _read_csv_layout,
}


# --- Tables ---------------------------------------------------------------------------------------


def _rows(path: Path, data: VolumeData) -> Iterator[Case]:
    """Yield the cases of a CSV file, sorted by their images' paths."""
    rows = _read_table(path)
    columns = data.columns
    if rows and columns.image not in rows[0]:
        raise DataError(
            f"the table has no column '{columns.image}'",
            where="row 1",
            remedy="add it, or name the right one in data.columns.image",
        )
    seen: dict[str, int] = {}
    numbered = [(row.get(columns.image) or "", number, row) for number, row in enumerate(rows, 2)]
    for name, number, row in sorted(numbered, key=lambda one: one[:2]):
        where = f"row {number}"
        if not name:
            raise DataError("a row of the table names no image", where=where, remedy="name it")
        if name in seen:
            raise DataError(
                f"the table names an image twice, in row {seen[name]} too",
                where=where,
                remedy="keep one of the rows",
            )
        seen[name] = number
        yield _case_of(row, path.parent, data, where)


def _read_table(path: Path) -> list[dict[str, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        first = text.partition("\n")[0]
        delimiter = max(",;\t", key=first.count)
        rows = list(csv.DictReader(io.StringIO(text), delimiter=delimiter, strict=True))
    except (UnicodeDecodeError, csv.Error):
        raise DataError(
            "the table cannot be read", where="data.path", remedy="save it as CSV in UTF-8"
        ) from None
    if not rows:
        raise DataError("the table has no rows", where="data.path", remedy="list the volumes")
    # Cells beyond the header's lie under the key None.
    return [{k: (v or "").strip() for k, v in row.items() if k is not None} for row in rows]


def _case_of(row: Mapping[str, str], folder: Path, data: VolumeData, where: str) -> Case:
    columns = data.columns
    name = row[columns.image]
    image = _existing(folder / name, "an image", where)
    mask = row.get(columns.mask, "")
    patient = row.get(columns.patient, "")
    if is_nifti(image):
        case = Case(key=pseudonym(name, data.folder), kind="nifti", files=(image,))
    else:
        case = _dicom_case(image, data, where)
    if patient:
        case = replace(case, patient=pseudonym(patient, data.folder))
    return replace(
        case,
        mask=_existing(folder / mask, "a mask", where) if mask else None,
        label=row.get(columns.label, ""),
        split=_split_of(row.get(columns.split, ""), where),
    )


def _dicom_case(path: Path, data: VolumeData, where: str) -> Case:
    """Return the only series of a folder, a zip or a file."""
    if path.is_file() and path.suffix.lower() == ".zip":
        path = dicom.unpacked(path, data.folder)
    series = [one for one in dicom.group_series(files_under(path)) if one.is_volume]
    if len(series) != 1:
        raise DataError(
            f"a row of the table names a place with {len(series)} DICOM series",
            where=where,
            remedy="give every series a folder of its own",
        )
    return Case(
        key=pseudonym(series[0].uid, data.folder),
        kind="dicom",
        files=series[0].files,
        patient=pseudonym(series[0].patient, data.folder) if series[0].patient else "",
    )


def _existing(path: Path, noun: str, where: str) -> Path:
    if not path.exists():
        raise DataError(
            f"{noun} that the table names is not there", where=where, remedy="correct its path"
        )
    return path


def _split_of(word: str, where: str) -> Split | None:
    if not word:
        return None
    split = SPLIT_WORDS.get(word.lower())
    if split is None:
        raise DataError(
            "the table names an unknown split",
            where=where,
            remedy="write train, validation or test, or leave it empty",
        )
    return split


# --- Names ----------------------------------------------------------------------------------------


def _key(path: Path, root: Path, data: VolumeData) -> str:
    """Return the key of a NIfTI file: of its path in the data, so that a folder may be moved."""
    return pseudonym(path.relative_to(root).as_posix(), data.folder)


def _compile(pattern: str) -> re.Pattern[str] | None:
    if not pattern:
        return None
    remedy = r"write one with a group, such as '(patient\d+)'"
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise SettingsError(
            f"the pattern is no regular expression ({error})",
            where="data.patient_pattern",
            remedy=remedy,
        ) from None
    if not compiled.groups:
        raise SettingsError("the pattern has no group", where="data.patient_pattern", remedy=remedy)
    return compiled


def _with_patients(
    found: Survey, root: Path, pattern: re.Pattern[str] | None, data: VolumeData
) -> Survey:
    """Name the patient of each case that does not say it: by the pattern, or by the path."""
    base = root.parent if root.is_file() else root
    cases, unnamed = [], 0
    for case in found.cases:
        if not case.patient:
            match = pattern.search(_readable_path(case.files[0], base)) if pattern else None
            unnamed += pattern is not None and (match is None or not match[1])
            name = pseudonym(match[1], data.folder) if match and match[1] else case.key
            case = replace(case, patient=name)
        cases.append(case)
    return replace(found, cases=tuple(cases), unnamed=unnamed)


def _readable_path(path: Path, base: Path) -> str:
    try:
        return path.relative_to(base).as_posix()
    except ValueError:  # A table may name files elsewhere.
        return path.as_posix()


def _write_list(found: Survey, folder: Path) -> None:
    """Write the keys and paths, also of files that became no case, if they are not there yet."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["key", "path", "mask"])
    for case in found.cases:
        path = case.files[0] if case.kind == "nifti" else case.files[0].parent
        writer.writerow([case.key, path.as_posix(), case.mask.as_posix() if case.mask else ""])
    others = (found.unreadable, found.damaged_tables, found.stray_masks, found.further_masks)
    for path in itertools.chain(*others):
        writer.writerow([file_key(path, folder), path.as_posix(), ""])
    path = folder / LISTED
    if not path.is_file() or path.read_bytes() != text.getvalue().encode():
        atomic_write(path, text.getvalue())


def file_key(path: Path, folder: Path) -> str:
    """Return what a finding calls a file that became no case; `cases.csv` says its path."""
    return pseudonym(path.as_posix(), folder)


def _named(case: Case) -> Callable[[DataError], DataError]:
    """Return what adds a case's key to an error that says no place."""

    def add(error: DataError) -> DataError:
        where = f"{case.key}, {error.where}" if error.where else case.key
        return DataError(error.what, where=where, remedy=error.remedy)

    return add


# --- Masks ----------------------------------------------------------------------------------------


def _labels(voxels: Array) -> Array:
    """Return whole numbers from 0 to 255 as uint8."""
    labels = voxels.astype(np.uint8) if voxels.dtype == bool else voxels
    if labels.dtype != np.uint8:
        with np.errstate(invalid="ignore"):
            whole = np.rint(labels)
            sound = bool((np.abs(labels - whole) < 1e-3).all())
        if not sound or whole.min() < 0 or whole.max() > 255:
            raise DataError(
                "the mask has numbers that are no labels",
                remedy="write whole numbers: 0 background, 1 the first of data.classes",
            )
        labels = whole.astype(np.uint8)
    return labels


def _read_seg(path: Path, case: Case, image: Volume, classes: Sequence[str]) -> Array:
    import pydicom

    from pegboard_medical.dicom_seg import read_seg

    with dicom.quiet():
        try:
            headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in case.files]
        except Exception:  # As of any damaged file.
            raise DataError("the series cannot be read", remedy="replace its files") from None
    labels = _labels(np.asarray(read_seg(path, headers, classes)))
    if labels.shape != image.voxels.shape:
        raise DataError(
            "the DICOM-SEG does not lie on the grid of its image",
            remedy="draw it on the series itself",
        )
    return labels


def _size(volume: Volume) -> str:
    shape = " x ".join(map(str, volume.voxels.shape))
    return f"{shape} of {' x '.join(f'{side:.3g}' for side in volume.spacing)} mm"
