"""Read nuScenes' tables, its scans put together of several sweeps, and its labels.

The tables are described on https://www.nuscenes.org/nuscenes#data-format (H. Caesar et al.,
"nuScenes: A multimodal dataset for autonomous driving", CVPR 2020). Its scanner looks along y with
x to the right; here, as everywhere, x is ahead and y to the left.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from pegboard.errors import DataError
from pegboard.records import Array, Split
from pegboard.splits import SPLIT_WORDS
from pegboard_lidar import boxes as geometry
from pegboard_lidar import scans
from pegboard_lidar.frames import UNKNOWN, Frame, Labels

Row = Mapping[str, Any]

NAMES: Mapping[str, str] = {
    "movable_object.barrier": "barrier",
    "vehicle.bicycle": "bicycle",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.car": "car",
    "vehicle.construction": "construction_vehicle",
    "vehicle.motorcycle": "motorcycle",
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
    "movable_object.trafficcone": "traffic_cone",
    "vehicle.trailer": "trailer",
    "vehicle.truck": "truck",
}
"""Names of the detection benchmark by category; other categories keep their own."""

SCANNER = "LIDAR_TOP"

CLOSE = 1.0
"""Metres around the scanner, along and across, where sweeps see the car that carries them."""

LONGEST = 1.5
"""Seconds between two labels of an object that still tell its velocity."""

_AXES = np.array([[0.0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
"""From nuScenes' scanner (x to the right, y ahead) to ours."""

_TABLES = (
    "sample",
    "sample_data",
    "calibrated_sensor",
    "ego_pose",
    "sample_annotation",
    "instance",
    "category",
    "sensor",
    "scene",
)


def _numbers(*ranges: int | tuple[int, int]) -> frozenset[str]:
    pairs = [one if isinstance(one, tuple) else (one, one) for one in ranges]
    return frozenset(f"scene-{n:04d}" for low, high in pairs for n in range(low, high + 1))


_VALIDATION = {
    "v1.0-mini": _numbers(103, 916),
    "v1.0-trainval": _numbers(
        *(3, (12, 18), (35, 36), (38, 39), (92, 110), 221, (268, 278), (329, 332), (344, 346)),
        *((519, 524), (552, 565), (625, 627), (629, 630), (632, 638), (770, 771), 775, (777, 778)),
        *((780, 784), (794, 800), 802, (904, 917), (919, 931), (962, 963), (966, 969)),
        *((971, 972), (1059, 1073)),
    ),
}
"""Scenes of the official validation split, which the tables do not tell; the others train."""


def tables_folder(path: Path) -> Path | None:
    """Return the folder of the tables, which may be `path` itself; None where there is none.

    Raises:
        DataError: There are several, as of v1.0-mini and v1.0-trainval.
    """
    if (path / "sample_data.json").is_file():
        return path
    found = sorted(path.glob("v1.0-*/sample_data.json")) if path.is_dir() else []
    if len(found) > 1:
        raise DataError(
            f"there are tables of {', '.join(file.parent.name for file in found)}",
            where=str(path),
            remedy=f"set data.path to one of these folders, as {found[-1].parent}",
        )
    return found[0].parent if found else None


def read_frames(path: Path) -> Iterator[Frame]:
    """Find the labelled scans (key frames) of the scenes that are there.

    Splits are those of `splits.json` beside the tables, as nuScenes' devkit reads it, else the
    official ones. Scenes of which no scan is there were not downloaded, and are left out.

    Raises:
        DataError: A table is missing or damaged.
    """
    folder = tables_folder(path)
    if folder is None:
        return
    tables = _load(folder)
    splits = _splits(folder)
    scenes: dict[str, list[Row]] = defaultdict(list)
    for row in tables.scans.values():
        if row["is_key_frame"]:
            scenes[tables.scene_of[row["sample_token"]]].append(row)
    for scene, rows in scenes.items():
        if not any((folder.parent / row["filename"]).is_file() for row in rows):
            continue
        for number, row in enumerate(sorted(rows, key=lambda row: int(row["timestamp"]))):
            yield Frame(
                key=f"{scene}-{number:03d}",
                scan=folder.parent / row["filename"],
                labels=folder / "sample_annotation.json" if tables.annotations else None,
                sequence=scene,
                seconds=row["timestamp"] * 1e-6,
                split=splits.get(scene) if splits else _official_split(folder.name, scene),
                tokens={"tables": str(folder), "sample_data": row["token"]},
            )


def read_points(frame: Frame, sweeps: int) -> Array:
    """Read a scan and the sweeps before it, moved to where the scanner is at its time.

    Of several sweeps the points on the car itself are left out.

    Returns:
        float32 (N, 4); the scan's own points come first.

    Raises:
        DataError: A sweep cannot be read.
    """
    tables = _load(Path(frame.tokens["tables"]))
    latest = tables.scans[frame.tokens["sample_data"]]
    to_scanner = tables.to_scanner(latest)
    row: Row | None = latest
    parts: list[Array] = []
    while row is not None and len(parts) < sweeps:
        points = scans.read_scan(tables.folder.parent / row["filename"])
        if sweeps > 1:
            points = points[(np.abs(points[:, :2]) >= CLOSE).any(axis=1)]
        matrix = to_scanner @ tables.to_world(row) if parts else _AXES
        points[:, :3] = points[:, :3] @ matrix[:3, :3].T + matrix[:3, 3]
        parts.append(points)
        row = tables.scans.get(row["prev"])
    return np.concatenate(parts)


def read_labels(frame: Frame) -> Labels:
    """Read what is labelled in a frame, with velocities from the labels before and after.

    Raises:
        DataError: A table is missing or damaged.
    """
    tables = _load(Path(frame.tokens["tables"]))
    row = tables.scans[frame.tokens["sample_data"]]
    rows = tables.of_sample.get(row["sample_token"], [])
    to_scanner = tables.to_scanner(row)
    count = len(rows)
    velocity = np.array([tables.velocity(one) for one in rows]).reshape(count, 3)
    return Labels(
        names=[tables.name_of[one["instance_token"]] for one in rows],
        boxes=geometry.transformed(np.array([_box(one) for one in rows]), to_scanner),
        truncation=np.zeros(count),
        occlusion=np.full(count, UNKNOWN),
        pixels=np.full(count, np.nan),
        velocity=(velocity @ to_scanner[:3, :3].T)[:, :2],
    )


# --- Tables ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Tables:
    """What is needed of the tables, by token."""

    folder: Path
    scans: Mapping[str, Row]
    """sample_data of the scanner."""
    calibrations: Mapping[str, Row]
    poses: Mapping[str, Row]
    annotations: Mapping[str, Row]
    of_sample: Mapping[str, Sequence[Row]]
    """Annotations of each sample."""
    name_of: Mapping[str, str]
    """Class of each instance."""
    scene_of: Mapping[str, str]
    """Name of the scene of each sample."""
    seconds: Mapping[str, float]
    """Of each sample."""

    def to_world(self, scan: Row) -> Array:
        """Return the matrix (4, 4) from nuScenes' scanner to the world."""
        on_car = _pose(self.calibrations[scan["calibrated_sensor_token"]])
        return _pose(self.poses[scan["ego_pose_token"]]) @ on_car

    def to_scanner(self, scan: Row) -> Array:
        """Return the matrix (4, 4) from the world to our scanner."""
        return _AXES @ np.linalg.inv(self.to_world(scan))

    def velocity(self, annotation: Row) -> Array:
        """Return the velocity (3,) in the world, as the devkit does: NaN where it is not known."""
        first = self.annotations.get(annotation["prev"], annotation)
        last = self.annotations.get(annotation["next"], annotation)
        took = self.seconds[last["sample_token"]] - self.seconds[first["sample_token"]]
        both = first is not annotation and last is not annotation
        if took <= 0 or took > LONGEST * (2 if both else 1):
            return np.full(3, np.nan)
        moved: Array = np.subtract(last["translation"], first["translation"])
        return moved / took


@lru_cache(maxsize=2)
def _load(folder: Path) -> _Tables:
    """Read the tables; those of the full data set take a minute and some gigabytes."""
    tables = {name: _read_table(folder / f"{name}.json") for name in _TABLES}
    try:
        return _linked(folder, tables)
    except KeyError as error:
        raise DataError(
            f"the tables do not belong together: {error} is missing",
            where=str(folder),
            remedy="unpack the whole archive of the tables again",
        ) from error


def _linked(folder: Path, tables: Mapping[str, Mapping[str, Row]]) -> _Tables:
    scanners = {key for key, row in tables["sensor"].items() if row["channel"] == SCANNER}
    calibrations = {
        key: row
        for key, row in tables["calibrated_sensor"].items()
        if row["sensor_token"] in scanners
    }
    found = {
        key: row
        for key, row in tables["sample_data"].items()
        if row["calibrated_sensor_token"] in calibrations
    }
    of_sample: dict[str, list[Row]] = defaultdict(list)
    for row in tables["sample_annotation"].values():
        of_sample[row["sample_token"]].append(row)
    categories = {key: row["name"] for key, row in tables["category"].items()}
    return _Tables(
        folder=folder,
        scans=found,
        calibrations=calibrations,
        poses={
            row["ego_pose_token"]: tables["ego_pose"][row["ego_pose_token"]]
            for row in found.values()
        },
        annotations=tables["sample_annotation"],
        of_sample=of_sample,
        name_of={
            key: NAMES.get(categories[row["category_token"]], categories[row["category_token"]])
            for key, row in tables["instance"].items()
        },
        scene_of={
            key: tables["scene"][row["scene_token"]]["name"]
            for key, row in tables["sample"].items()
        },
        seconds={key: row["timestamp"] * 1e-6 for key, row in tables["sample"].items()},
    )


def _read_table(path: Path) -> dict[str, Row]:
    try:
        return {row["token"]: row for row in json.loads(path.read_bytes())}
    except (OSError, ValueError, KeyError, TypeError) as error:
        absent = isinstance(error, FileNotFoundError)
        raise DataError(
            f"nuScenes' table {path.stem} is {'not there' if absent else 'damaged'}",
            where=str(path),
            remedy="unpack the archive of the tables again",
        ) from error


def _splits(folder: Path) -> dict[str, Split]:
    path = folder / "splits.json"
    if not path.is_file():
        return {}
    try:
        named: Mapping[str, Sequence[str]] = json.loads(path.read_bytes())
        parts = {SPLIT_WORDS[name.split("_")[-1].lower()]: some for name, some in named.items()}
        return {scene: split for split, scenes in parts.items() for scene in scenes}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise DataError(
            "the splits are no lists of scenes",
            where=str(path),
            remedy='write {"train": ["scene-0001"], "val": [], "test": []}',
        ) from error


def _official_split(version: str, scene: str) -> Split | None:
    if version not in _VALIDATION:
        return None
    return "validation" if scene in _VALIDATION[version] else "train"


def _pose(row: Row) -> Array:
    """Return the matrix (4, 4) of a translation and a quaternion w, x, y, z."""
    matrix = np.eye(4)
    w, x, y, z = row["rotation"]
    matrix[:3, :3] = Rotation.from_quat([x, y, z, w]).as_matrix()
    matrix[:3, 3] = row["translation"]
    return matrix


def _box(annotation: Row) -> Array:
    """Return the box (7,) of an annotation in the world."""
    heading = _pose(annotation)[:3, 0]
    width, length, height = annotation["size"]
    yaw = np.arctan2(heading[1], heading[0])
    return np.array([*annotation["translation"], length, width, height, yaw])
