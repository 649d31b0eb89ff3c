"""Read the layouts that people keep scans in; all of them become `Frame`s.

No scan is read here before it is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pegboard.errors import DataError
from pegboard.records import Array, Split
from pegboard.splits import SPLIT_WORDS
from pegboard_lidar import kitti, nuscenes, scans
from pegboard_lidar.frames import UNKNOWN, Frame, Labels
from pegboard_lidar.settings import LidarData


def read_frames(data: LidarData) -> list[Frame]:
    """Find the frames under `data.path`.

    Returns:
        Frames with different keys, in the order of their keys.

    Raises:
        DataError: Nothing is there in the layout.
    """
    path = data.path
    if path is None or not path.exists():
        raise DataError("there is no data", where=str(path or "data.path"), remedy="mend data.path")
    name = detect(path) if data.layout == "auto" else data.layout
    layout = _LAYOUTS[name]
    frames = sorted(layout.read(path), key=lambda frame: frame.key)
    if not frames:
        raise DataError(
            f"there is no scan in the layout '{name}'",
            where=str(path),
            remedy=f"lay them out as {layout.words}, or mend data.layout",
        )
    return frames


def detect(path: Path) -> str:
    """Return the name of the layout that is there; what fits none is a folder of scans."""
    return next((name for name, layout in _LAYOUTS.items() if layout.fits(path)), "scans")


def read_points(frame: Frame, data: LidarData) -> Array:
    """Read the points of a frame, `data.sweeps` put together where the layout has sweeps.

    Returns:
        float32 (N, 4), NaN points included.

    Raises:
        DataError: A scan cannot be read.
    """
    if frame.tokens:
        return nuscenes.read_points(frame, data.sweeps)
    return scans.read_scan(frame.scan)


def read_frame_labels(frame: Frame, data: LidarData) -> Labels:
    """Read what is labelled in a frame: nothing where it has no labels.

    Raises:
        DataError: They are damaged, or the calibration that they need is.
    """
    if frame.tokens:
        return nuscenes.read_labels(frame)
    if frame.labels is None:
        return make_labels([], np.zeros((0, 7)))
    if frame.calibration is not None:
        return kitti.read_labels(frame.labels, kitti.read_calibration(frame.calibration))
    if frame.labels.suffix.lower() == ".json":
        return _read_json(frame.labels)
    return _read_text(frame.labels)


def make_labels(names: Sequence[str], boxes: Array, velocity: Array | None = None) -> Labels:
    """Return labels of which nobody said how they look in a picture."""
    count = len(names)
    return Labels(
        names=names,
        boxes=np.asarray(boxes, dtype=np.float64).reshape(count, 7),
        truncation=np.zeros(count),
        occlusion=np.full(count, UNKNOWN),
        pixels=np.full(count, np.nan),
        velocity=np.full((count, 2), np.nan) if velocity is None else velocity,
    )


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """One way to keep scans."""

    words: str
    """What it looks like."""
    fits: Callable[[Path], bool]
    """Whether it is there."""
    read: Callable[[Path], Iterator[Frame]]
    """Finds the frames."""


# --- KITTI ----------------------------------------------------------------------------------------


def _kitti_root(path: Path) -> Path:
    inner = path / "training"
    return inner if (inner / "velodyne").is_dir() else path


def _read_kitti(path: Path) -> Iterator[Frame]:
    root = _kitti_root(path)
    splits = _image_sets(path, root)
    drives = _drives(path, root)
    for scan in sorted((root / "velodyne").glob("*")):
        if scan.name.startswith(".") or not scans.is_scan(scan):
            continue
        key = scans.name_of(scan)
        labels = root / "label_2" / f"{key}.txt"
        calibration = root / "calib" / f"{key}.txt"
        is_labelled = labels.is_file()
        yield Frame(
            key=key,
            scan=scan,
            labels=labels if is_labelled else None,
            # Labels cannot be placed without one: an absent file is then an error of its own.
            calibration=calibration if is_labelled or calibration.is_file() else None,
            sequence=drives.get(key, ""),
            split=splits.get(key),
        )


def _image_sets(path: Path, root: Path) -> dict[str, Split]:
    """Read the splits of ImageSets; a frame in several belongs to the one that is read first."""
    splits: dict[str, Split] = {}
    for folder in dict.fromkeys(
        (root / "ImageSets", path / "ImageSets", path.parent / "ImageSets")
    ):
        # KITTI's own test.txt counts the frames of testing/ with the same numbers: read last.
        for word in ("train", "val", "validation", "test"):
            file = folder / f"{word}.txt"
            if file.is_file():
                for key in file.read_text(encoding="utf-8").split():
                    splits.setdefault(key, SPLIT_WORDS[word])
        if splits:
            break
    return splits


def _drives(path: Path, root: Path) -> dict[str, str]:
    """Read which drive each frame was taken from: the `mapping` folder of KITTI's devkit."""
    for folder in (root / "mapping", path / "mapping", path / "devkit" / "mapping"):
        order, lines = folder / "train_rand.txt", folder / "train_mapping.txt"
        if order.is_file() and lines.is_file():
            places = order.read_text(encoding="utf-8").replace(",", " ").split()
            drives = [line.split() for line in lines.read_text(encoding="utf-8").splitlines()]
            return {
                f"{number:06d}": drives[int(place) - 1][1]
                for number, place in enumerate(places)
                if int(place) <= len(drives) and len(drives[int(place) - 1]) > 1
            }
    return {}


# --- Folders of scans -----------------------------------------------------------------------------


def _read_scans(path: Path) -> Iterator[Frame]:
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    root = path.parent if path.is_file() else path
    found = [file for file in files if scans.is_scan(file) and not _is_hidden(file, root)]
    names = [(file.parent.relative_to(root) / scans.name_of(file)).as_posix() for file in found]
    folders = {file.parent for file in found}
    for file, name in zip(found, names, strict=True):
        inner = file.parent.relative_to(root)
        split = SPLIT_WORDS.get(inner.parts[0].lower()) if inner.parts else None
        alone = len(folders) == 1 or (split is not None and len(inner.parts) == 1)
        yield Frame(
            # Scans of one name in two formats are two frames.
            key=name if names.count(name) == 1 else file.relative_to(root).as_posix(),
            scan=file,
            labels=_labels_beside(file),
            sequence="" if alone or not inner.parts else inner.as_posix(),
            split=split,
        )


def _is_hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts)


def _labels_beside(scan: Path) -> Path | None:
    beside = (scan.with_name(scans.name_of(scan) + suffix) for suffix in (".json", ".txt"))
    return next((file for file in beside if file.is_file()), None)


def _read_json(path: Path) -> Labels:
    try:
        items = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"the labels are no JSON: {error}", where=str(path), remedy="replace the file"
        ) from error
    if not isinstance(items, list):
        raise _no_label("the file", path, "")
    read = [_json_object(item, number, path) for number, item in enumerate(items, 1)]
    return make_labels(
        [name for name, _, _ in read],
        np.array([box for _, box, _ in read]),
        np.array([velocity for _, _, velocity in read]).reshape(-1, 2),
    )


def _json_object(item: Any, number: int, path: Path) -> tuple[str, Array, Array]:
    try:
        if not isinstance(item, Mapping) or not isinstance(item["class"], str):
            raise ValueError
        box = np.array(item["box"], dtype=np.float64).reshape(7)
        velocity = np.array(item.get("velocity") or [np.nan, np.nan], dtype=np.float64).reshape(2)
    except (KeyError, TypeError, ValueError) as error:
        raise _no_label(f"item {number}", path, f" item {number}") from error
    return item["class"], box, velocity


def _read_text(path: Path) -> Labels:
    names, boxes = [], []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            "the labels cannot be read", where=str(path), remedy="replace the file"
        ) from error
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        try:
            boxes.append(np.array(words[1:], dtype=np.float64).reshape(7))
        except ValueError as error:
            raise _no_label(f"line {number}", path, f":{number}") from error
        names.append(words[0])
    return make_labels(names, np.array(boxes))


def _no_label(thing: str, path: Path, place: str) -> DataError:
    if path.suffix.lower() == ".json":
        remedy = 'write [{"class": "Car", "box": [x, y, z, length, width, height, yaw]}]'
    else:
        remedy = (
            "write 'class x y z length width height yaw'; set data.layout to kitti for KITTI's own"
        )
    return DataError(f"{thing} of the labels is none", where=f"{path}{place}", remedy=remedy)


_LAYOUTS: Mapping[str, _Layout] = {
    "kitti": _Layout(
        words="training/velodyne, training/label_2 and training/calib",
        fits=lambda path: (_kitti_root(path) / "velodyne").is_dir(),
        read=_read_kitti,
    ),
    "nuscenes": _Layout(
        words="samples, sweeps and a folder of tables as v1.0-mini",
        fits=lambda path: nuscenes.tables_folder(path) is not None,
        read=nuscenes.read_frames,
    ),
    "scans": _Layout(
        words=f"a folder of files ending in {', '.join(scans.FORMATS)}",
        fits=lambda path: False,  # What nothing else fits.
        read=_read_scans,
    ),
}
