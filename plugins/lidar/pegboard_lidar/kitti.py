"""KITTI's files: calibration, labels and results.

Their format is described in the devkit of A. Geiger, P. Lenz and R. Urtasun, "Are we ready for
Autonomous Driving? The KITTI Vision Benchmark Suite", CVPR 2012. Labels are in the frame of the
rectified camera (x to the right, y down, z ahead); here they become boxes in the scanner's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pegboard.errors import DataError
from pegboard.records import Array
from pegboard_lidar import boxes as geometry
from pegboard_lidar.frames import UNKNOWN, Labels

IGNORED = "DontCare"
"""The class of regions of the picture where nothing is labelled."""

PICTURE = (1242, 375)
"""Width and height of KITTI's pictures; single ones are a few pixels smaller."""

_COLUMNS = 15
"""Of a line of labels; results have the score as one more."""

_CLOSEST = 0.1
"""Metres in front of the camera where the picture of a box begins."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How the scanner and the left colour camera stand to one another."""

    projection: Array
    """P2 (3, 4): from the rectified camera's frame to pixels."""
    rectification: Array
    """R0_rect (3, 3): from the camera's frame to the rectified one."""
    scanner_to_camera: Array
    """Tr_velo_to_cam (3, 4)."""

    @property
    def matrix(self) -> Array:
        """(4, 4): from the scanner's frame to the rectified camera's."""
        rectification, scanner_to_camera = np.eye(4), np.eye(4)
        rectification[:3, :3] = self.rectification
        scanner_to_camera[:3] = self.scanner_to_camera
        return rectification @ scanner_to_camera

    def to_camera(self, points: Array) -> Array:
        """Return points (N, 3) of the scanner's frame in the rectified camera's."""
        return _moved(points, self.matrix)

    def to_scanner(self, points: Array) -> Array:
        """Return points (N, 3) of the rectified camera's frame in the scanner's."""
        return _moved(points, np.linalg.inv(self.matrix))

    def project(self, points: Array) -> tuple[Array, Array]:
        """Return where points (N, 3) of the scanner's frame are in the picture.

        Returns:
            Pixels (N, 2) to the right and down, NaN for points that are not in front of the
            camera, and depths (N,) in metres.
        """
        return self._pixels(self.to_camera(points))

    def _pixels(self, points: Array) -> tuple[Array, Array]:
        """Project points (N, 3) of the rectified camera's frame."""
        across, down, depth = _moved(points, self.projection).T
        in_front = np.where(depth > 0, depth, np.nan)
        return np.stack([across / in_front, down / in_front], axis=-1), depth


def _moved(points: Array, matrix: Array) -> Array:
    points = np.asarray(points, dtype=np.float64)[:, :3]
    return points @ matrix[:3, :3].T + matrix[:3, 3]


# --- Calibration ----------------------------------------------------------------------------------


def read_calibration(path: Path) -> Calibration:
    """Read a calibration file.

    Raises:
        DataError: It is not there, or lacks a matrix.
    """
    numbers = {}
    for line in _lines(path, "calibration"):
        key, *values = line.replace(":", " ").split() or [""]
        numbers[key] = values
    return Calibration(
        projection=_matrix(numbers, ("P2",), (3, 4), path),
        # The second names are those of KITTI's tracking benchmark.
        rectification=_matrix(numbers, ("R0_rect", "R_rect"), (3, 3), path),
        scanner_to_camera=_matrix(numbers, ("Tr_velo_to_cam", "Tr_velo_cam"), (3, 4), path),
    )


def calibration_text(calibration: Calibration) -> str:
    """Return the content of a calibration file."""
    matrices = {
        "P2": calibration.projection,
        "R0_rect": calibration.rectification,
        "Tr_velo_to_cam": calibration.scanner_to_camera,
    }
    return "".join(
        f"{name}: {' '.join(f'{number:.12e}' for number in np.ravel(matrix))}\n"
        for name, matrix in matrices.items()
    )


def _lines(path: Path, noun: str) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        absent = isinstance(error, FileNotFoundError)
        raise DataError(
            f"there is no {noun} file" if absent else f"the {noun} file cannot be read",
            where=str(path),
            remedy="put it there" if absent else "replace it",
        ) from error


def _matrix(
    numbers: Mapping[str, Sequence[str]], names: Sequence[str], shape: tuple[int, int], path: Path
) -> Array:
    values = next((numbers[name] for name in names if name in numbers), None)
    try:
        if values is not None:
            matrix = np.array(values, dtype=np.float64).reshape(shape)
            if np.isfinite(matrix).all():
                return matrix
    except ValueError:
        pass
    found = "is not there" if values is None else f"is not {shape[0]} x {shape[1]} numbers"
    raise DataError(
        f"the matrix {names[0]} of the calibration {found}",
        where=str(path),
        remedy="replace the file by the one of the scan's day",
    )


# --- Labels ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Objects:
    """The lines of a label file, as they stand there."""

    names: Sequence[str]
    """K classes, DontCare among them."""
    values: Array
    """float64 (K, 14): truncation, occlusion, alpha, left, top, right, bottom, height, width,
    length, x, y, z, rotation about y."""

    @property
    def is_object(self) -> Array:
        """Which are not DontCare: bool (K,)."""
        return np.array([name != IGNORED for name in self.names], dtype=bool)


def read_objects(path: Path) -> Objects:
    """Read the lines of a label file.

    Raises:
        DataError: It is not there, or a line of it is not KITTI's; the line is named.
    """
    names, values = [], []
    for number, line in enumerate(_lines(path, "label"), 1):
        words = line.split()
        if not words:
            continue
        try:
            if len(words) not in (_COLUMNS, _COLUMNS + 1):
                raise ValueError
            values.append([float(word) for word in words[1:_COLUMNS]])
        except ValueError as error:
            raise DataError(
                f"line {number} is no label of KITTI: a class and 14 numbers",
                where=f"{path}:{number}",
                remedy="mend the line",
            ) from error
        names.append(words[0])
    return Objects(names=names, values=np.array(values, dtype=np.float64).reshape(-1, 14))


def read_labels(path: Path, calibration: Calibration) -> Labels:
    """Read the labels of a frame.

    Returns:
        Boxes in the scanner's frame; `pixels` is NaN for objects without a region of the picture.

    Raises:
        DataError: As `read_objects`.
    """
    objects = read_objects(path)
    known = objects.values[objects.is_object]
    region = known[:, 3:7]
    has_region = (region[:, 2] > region[:, 0]) & (region[:, 3] > region[:, 1])
    occlusion = known[:, 1].astype(np.int64)
    return Labels(
        names=[name for name in objects.names if name != IGNORED],
        boxes=_to_scanner(known[:, 7:14], calibration),
        truncation=np.maximum(known[:, 0], 0.0),
        occlusion=np.where((occlusion < 0) | (occlusion > 3), UNKNOWN, occlusion),
        pixels=np.where(has_region, region[:, 3] - region[:, 1], np.nan),
        velocity=np.full((len(known), 2), np.nan),
        ignored=objects.values[~objects.is_object][:, 3:7],
    )


def _to_scanner(values: Array, calibration: Calibration) -> Array:
    """Turn height, width, length, x, y, z of the bottom and rotation (M, 7) into boxes (M, 7)."""
    height, width, length, x, y, z, rotation = values.T
    middle = calibration.to_scanner(np.stack([x, y - height / 2, z], axis=-1))
    heading = np.stack([np.cos(rotation), np.zeros_like(rotation), -np.sin(rotation)], axis=-1)
    # As a row times the matrix: the inverse of a rotation is its transpose.
    ahead, left, _ = (heading @ calibration.matrix[:3, :3]).T
    sizes = np.stack([length, width, height, np.arctan2(left, ahead)], axis=-1)
    return np.concatenate([middle, sizes], axis=-1)


def _to_camera(boxes: Array, calibration: Calibration) -> Array:
    """Undo `_to_scanner`."""
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 7)
    x, y, z = calibration.to_camera(boxes[:, :3]).T
    length, width, height, yaw = boxes[:, 3:].T
    heading = np.stack([np.cos(yaw), np.sin(yaw), np.zeros_like(yaw)], axis=-1)
    right, _, ahead = (heading @ calibration.matrix[:3, :3].T).T
    rotation = np.arctan2(-ahead, right)
    return np.stack([height, width, length, x, y + height / 2, z, rotation], axis=-1)


def label_lines(
    names: Sequence[str],
    boxes: Array,
    calibration: Calibration,
    *,
    scores: Array | None = None,
    truncation: Array | None = None,
    occlusion: Array | None = None,
    picture: tuple[int, int] = PICTURE,
) -> list[str]:
    """Return lines in KITTI's format.

    Args:
        names: M classes.
        boxes: (M, 7) in the scanner's frame.
        calibration: Of the frame.
        scores: (M,) of results: then objects outside the picture, which KITTI's server does not
            judge, are left out. Without it the lines are labels: all are kept, those outside with
            a region of -1.
        truncation: (M,), computed from the picture when left out.
        occlusion: (M,), unknown when left out.
        picture: Its width and height in pixels.
    """
    values = _to_camera(boxes, calibration)
    regions, outside = regions_of(boxes, calibration, picture)
    truncation = outside if truncation is None else truncation
    lines = []
    for place, (name, value, region) in enumerate(zip(names, values, regions, strict=True)):
        alpha = _wrapped(value[6] - np.arctan2(value[3], value[5]))
        if scores is not None and np.isnan(region).any():
            continue
        shown = np.where(np.isnan(region), -1.0, region)
        numbers = [f"{number:.2f}" for number in (alpha, *shown)]
        numbers += [f"{number:.4f}" for number in value]
        if scores is None:
            hidden = UNKNOWN if occlusion is None else int(occlusion[place])
            seen = [f"{truncation[place]:.2f}", str(hidden)]
        else:
            seen = ["-1", "-1"]
            numbers.append(f"{scores[place]:.4f}")
        lines.append(" ".join([name, *seen, *numbers]))
    return lines


def regions_of(
    boxes: Array, calibration: Calibration, picture: tuple[int, int] = PICTURE
) -> tuple[Array, Array]:
    """Return where boxes (M, 7) of the scanner's frame are in the picture.

    Returns:
        Left, top, right and bottom (M, 4), cut at the picture's border, NaN where nothing of a box
        is in it; and the share (M,) of the uncut region that lies outside.
    """
    all_corners = geometry.corners(boxes)
    regions = np.full((len(all_corners), 4), np.nan)
    outside = np.ones(len(all_corners))
    edge = np.array([picture[0] - 1.0, picture[1] - 1.0])
    for place, box_corners in enumerate(all_corners):
        camera = _in_front(calibration.to_camera(box_corners))
        if not len(camera):
            continue
        pixels, _ = calibration._pixels(camera)
        low, high = pixels.min(axis=0), pixels.max(axis=0)
        cut_low, cut_high = np.clip(low, 0.0, edge), np.clip(high, 0.0, edge)
        area = np.prod(cut_high - cut_low)
        if area > 0:
            regions[place] = [*cut_low, *cut_high]
            outside[place] = 1.0 - area / np.prod(high - low)
    return regions, outside


def _in_front(box_corners: Array) -> Array:
    """Cut a box (8, 3) of the camera's frame at a plane before the camera: corners (K, 3)."""
    depth = box_corners[:, 2]
    kept = [box_corners[depth > _CLOSEST]]
    edges = [(i, (i + 1) % 4) for i in range(4)]
    edges += [(i + 4, j + 4) for i, j in edges] + [(i, i + 4) for i in range(4)]
    for i, j in edges:
        if (depth[i] > _CLOSEST) != (depth[j] > _CLOSEST):
            share = (_CLOSEST - depth[i]) / (depth[j] - depth[i])
            kept.append((box_corners[i] + share * (box_corners[j] - box_corners[i]))[None])
    return np.concatenate(kept)


def _wrapped(angle: float) -> float:
    return float((angle + np.pi) % (2 * np.pi) - np.pi)


# --- Difficulty -----------------------------------------------------------------------------------

_LEVELS = ((40.0, 0, 0.15), (25.0, 1, 0.30), (25.0, 2, 0.50))
"""Least height in the picture, most occlusion, most truncation: easy, moderate, hard."""


def difficulty(labels: Labels) -> Array:
    """Return KITTI's difficulty of each object.

    Objects without a picture are judged by their occlusion alone; one that nobody said is none.

    Returns:
        int64 (M,): 0 easy, 1 moderate, 2 hard, -1 ignored.
    """
    levels = np.full(len(labels.names), -1, dtype=np.int64)
    if not len(levels):
        return levels
    unseen = np.isnan(labels.pixels)
    for level in (2, 1, 0):
        pixels, occlusion, truncation = _LEVELS[level]
        in_picture = (labels.pixels > pixels) & (labels.truncation <= truncation)
        levels[(labels.occlusion <= occlusion) & (unseen | in_picture)] = level
    return levels
