"""Look at scans and labels before anything is trained on them: what would spoil a model.

Every scan is read once. Whether labels lie where the objects are, which a calibration of another
day or a swap of left and right breaks, is told by the scanner's rays: those towards the middle of
an object that is not hidden end on it, neither before nor behind.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import numpy as np

from pegboard.errors import DataError
from pegboard.findings import copies_across, counted, first_few, separated
from pegboard.records import Array, Finding, Split
from pegboard_lidar import boxes as geometry
from pegboard_lidar import kitti, layouts
from pegboard_lidar.frames import Frame, Labels
from pegboard_lidar.settings import LidarData

Splits = Mapping[Split, Sequence[Frame]]

NAMED = 10
"""Places that a finding names; of the others it says how many there are."""

FEWEST = 10
"""Objects of a class below which a split teaches or measures little."""

SIZES = (0.1, 40.0)
"""Metres between which the sides of real objects are; a tram is 35 m long."""

FEWEST_RAYS = 5
"""Rays towards the objects of a frame below which they prove nothing."""

LEAST_HITS = 0.5
"""Share of them that ends on the objects; on KITTI's frames it is 0.8 to 1."""

LEAST_SEEN = 0.005
"""Share of a scan's points that are in the picture; of a whole turn it is about 0.15."""

_HIDDEN = 2
"""Occlusion from which an object may hide behind others."""

_NEAR = 60.0
"""Metres within which some rays go towards an object."""

_SKEW = 0.01
"""Largest deviation from a rotation; calibrations are written with six digits and more."""


def _turn(degrees: float) -> Array:
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[cos, -sin, 0, 0], [sin, cos, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


_TURNS = {
    "with left and right exchanged": np.diag([1.0, -1.0, 1.0, 1.0]),
    "turned by a half": _turn(180),
    "turned by a quarter to the left": _turn(90),
    "turned by a quarter to the right": _turn(-90),
}
"""The mistakes that calibrations and converters make most."""


@dataclass(frozen=True, kw_only=True)
class _Look:
    """What one look at a frame's files showed."""

    frame: Frame
    problem: str = ""
    """Why the scan cannot be used."""
    points: int = 0
    """Points all of whose numbers are finite."""
    broken: int = 0
    """The others."""
    in_range: int = 0
    """Points within `data.range`."""
    digest: str = ""
    """Equal for equal points."""
    label_problem: DataError | None = None
    """Why the labels cannot be used."""
    calibration_problem: str = ""
    """Why the calibration cannot be one."""
    names: Sequence[str] = ()
    boxes: Array = field(default_factory=lambda: np.zeros((0, 7)))
    counts: Array = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Points in each box."""
    displaced: str = ""
    """How it shows that the labels do not lie on the objects."""
    is_judged: bool = False
    """Whether there was enough to tell that."""

    def places(self, chosen: Array) -> Iterator[str]:
        """Name boxes (M,): the frame, the object's number and its class."""
        for place in np.flatnonzero(chosen).tolist():
            yield f"{self.frame.key} object {place + 1} ({self.names[place]})"


def check(data: LidarData, frames: Sequence[Frame], splits: Splits) -> list[Finding]:
    """Return what is noticed in the data, the errors first.

    Args:
        data: The settings.
        frames: What `read_frames` gave.
        splits: What `splits.assign` made of those that are used.
    """
    looks = [_look(frame, data) for frame in frames]
    findings = [
        *_check_scans(looks, data),
        *_check_label_files(looks),
        *_check_boxes(looks, data),
        *_check_calibrations(looks),
        *_check_classes(looks, data, splits),
        *_check_splits(frames, splits),
        *_check_copies(looks, splits),
        *_note_counts(looks, splits),
    ]
    return sorted(findings, key=lambda found: ("error", "warning", "note").index(found.level))


# --- One look at each frame -----------------------------------------------------------------------


def _look(frame: Frame, data: LidarData) -> _Look:
    try:
        read = layouts.read_points(frame, data)
    except DataError as error:
        return _Look(frame=frame, problem=error.what)
    is_sound = np.isfinite(read).all(axis=1)
    points = read[is_sound]
    low, high = np.array(data.range[:3]), np.array(data.range[3:])
    looked = _Look(
        frame=frame,
        points=len(points),
        broken=int(len(read) - len(points)),
        in_range=int(((points[:, :3] >= low) & (points[:, :3] <= high)).all(axis=1).sum()),
        digest=hashlib.blake2b(read.tobytes()).hexdigest(),
    )
    try:
        labels = layouts.read_frame_labels(frame, data)
    except DataError as error:
        return replace(looked, label_problem=error)
    counts = geometry.points_in_boxes(points, labels.boxes).sum(axis=1)
    displaced, is_judged = _displaced(points, labels, counts)
    return replace(
        looked,
        calibration_problem=_calibration_problem(frame, points),
        names=labels.names,
        boxes=labels.boxes,
        counts=counts,
        displaced=displaced,
        is_judged=is_judged,
    )


def _calibration_problem(frame: Frame, points: Array) -> str:
    if frame.calibration is None or frame.tokens:
        return ""
    try:
        calibration = kitti.read_calibration(frame.calibration)
    except DataError as error:
        return error.what
    rotations = {
        "R0_rect": calibration.rectification,
        "Tr_velo_to_cam": calibration.scanner_to_camera[:, :3],
    }
    for name, rotation in rotations.items():
        if np.abs(rotation @ rotation.T - np.eye(3)).max() > _SKEW:
            return f"{name} is no rotation"
        if np.linalg.det(rotation) < 0:
            return f"{name} exchanges left and right: it is no rotation but a reflection"
    pixels, _ = calibration.project(points[::4])
    middle = calibration.projection[:2, 2]
    seen = (np.abs(pixels - middle) <= middle).all(axis=1)
    if len(seen) and seen.mean() < LEAST_SEEN:
        return f"{seen.mean():.1%} of the points are in the picture"
    return ""


def _displaced(points: Array, labels: Labels, counts: Array) -> tuple[str, bool]:
    """Tell whether labels lie elsewhere than the objects.

    Returns:
        How it shows, empty where it does not; and whether there was enough to tell.
    """
    sizes = labels.boxes[:, 3:6]
    usable = np.isfinite(labels.boxes).all(axis=1) & (sizes > 0).all(axis=1)
    usable &= labels.occlusion < _HIDDEN
    if not len(points) or not usable.any():
        return "", False
    seen = labels.boxes[usable]
    before, hits, behind = _rays(points, seen).T
    # Whatever stands before an object of which nobody said that it is in full view may hide it.
    misses = behind.sum() + before[labels.occlusion[usable] == 0].sum()
    rays = int(hits.sum() + misses)
    total = int(counts[usable].sum())
    if rays >= FEWEST_RAYS and hits.sum() < LEAST_HITS * rays:
        found = f"{int(hits.sum())} of {rays} rays towards its objects end on them"
    elif not (total or before.any() or behind.any()) and np.hypot(*seen[:, :2].T).min() < _NEAR:
        found = "the scanner looked at none of its objects"
    else:
        return "", rays >= FEWEST_RAYS or total > 0
    return found + _better_turn(points, seen, total), True


def _rays(points: Array, boxes: Array) -> Array:
    """Count the rays towards the middles of boxes (M, 7): int64 (M, 3).

    The columns are those that end before a box, on it and behind it.
    """
    distance = np.linalg.norm(points[:, :3], axis=1)
    direction = points[:, :3] / np.maximum(distance, 1e-6)[:, None]
    counts = np.zeros((len(boxes), 3), dtype=np.int64)
    for row, box in zip(counts, boxes, strict=True):
        away = float(np.linalg.norm(box[:3]))
        # A ball inside the box: no ray through it passes the box by.
        sine = 0.35 * min(box[3:6]) / max(away, 1e-6)
        if sine >= 1:
            continue  # The scanner is inside.
        towards = direction @ (box[:3] / away).astype(np.float32) >= np.sqrt(1 - sine**2)
        beyond = distance[towards] - away
        reach = max(box[3:5]) / 2
        row[:] = (beyond < -reach).sum(), (np.abs(beyond) <= reach).sum(), (beyond > reach).sum()
    return counts


def _better_turn(points: Array, boxes: Array, total: int) -> str:
    """Say which mistake explains where boxes lie, if one does."""
    held = {
        words: int(geometry.points_in_boxes(points, geometry.transformed(boxes, turn)).sum())
        for words, turn in _TURNS.items()
    }
    words = max(held, key=lambda word: held[word])
    if held[words] < max(3 * total, 20):
        return ""
    return f"; {words} they would hold {held[words]:,} points instead of {total:,}"


# --- Words ----------------------------------------------------------------------------------------


_some = partial(first_few, most=NAMED)


def _keys(looks: Iterable[_Look]) -> str:
    return _some(look.frame.key for look in looks)


# --- Scans ----------------------------------------------------------------------------------------


def _check_scans(looks: Sequence[_Look], data: LidarData) -> Iterator[Finding]:
    by_problem: dict[str, list[_Look]] = defaultdict(list)
    for look in looks:
        if look.problem:
            by_problem[look.problem].append(look)
    # Problems with numbers in them are all different: the commonest is told.
    broken = sorted(by_problem.items(), key=lambda item: -len(item[1]))
    if broken:
        some = [look for _, members in broken for look in members]
        others = "; others are alike" if len(broken) > 1 else ""
        yield Finding(
            level="error",
            what=f"{counted(len(some), 'scan')} cannot be used: {broken[0][0]}{others}",
            where=_keys(some),
            remedy="replace them, or take them out of the data",
        )
    sound = [look for look in looks if not look.problem]
    empty = [look for look in sound if not look.points]
    if empty:
        yield Finding(
            level="error",
            what=f"{counted(len(empty), 'scan')} empty: there is no point in it",
            where=_keys(empty),
            remedy="replace them, or take them out of the data",
        )
    nan = [look for look in sound if look.broken]
    if nan:
        count = sum(look.broken for look in nan)
        yield Finding(
            level="warning",
            what=f"{counted(count, 'point')} not finite (NaN) in {counted(len(nan), 'scan')}",
            where=_some(f"{look.frame.key} ({look.broken:,})" for look in nan),
            remedy="none is needed where the scanner marks missing returns so: they are left out",
        )
    outside = [look for look in sound if look.points and not look.in_range]
    if outside:
        yield Finding(
            level="error" if len(outside) == len(sound) else "warning",
            what=f"{counted(len(outside), 'scan')} without a point in data.range",
            where=_keys(outside),
            remedy=f"mend data.range, which is {list(data.range)} in metres, or replace them",
        )


# --- Labels ---------------------------------------------------------------------------------------


def _check_label_files(looks: Sequence[_Look]) -> Iterator[Finding]:
    by_words: dict[str, list[DataError]] = defaultdict(list)
    for look in looks:
        if look.label_problem:
            # The line's number is in `where` already.
            words = " ".join(
                "N" if word.isdigit() else word for word in look.label_problem.what.split()
            )
            by_words[words].append(look.label_problem)
    for problems in by_words.values():
        several = f" (in {len(problems):,} files)" if len(problems) > 1 else ""
        yield Finding(
            level="error",
            what=f"{problems[0].what}{several}",
            where=_some(problem.where for problem in problems),
            remedy=problems[0].remedy,
        )
    bare = [look for look in looks if look.frame.labels is None]
    if bare:
        yield Finding(
            level="error" if len(bare) == len(looks) else "note",
            what=f"{counted(len(bare), 'scan')} without labels"
            + ("" if len(bare) == len(looks) else ": not used"),
            where=_keys(bare),
            remedy="label them, or leave them out",
        )


def _check_boxes(looks: Sequence[_Look], data: LidarData) -> Iterator[Finding]:
    kinds: tuple[tuple[Literal["error", "warning", "note"], str, str], ...] = (
        ("error", "with numbers that are not finite", "mend these labels"),
        ("error", "of no size: a side is 0 or negative", "mend these labels"),
        (
            "warning",
            f"smaller than {SIZES[0]:g} m or larger than {SIZES[1]:g} m",
            "mend these labels",
        ),
        ("note", "outside data.range: not looked for", "widen data.range, if they are meant"),
        ("warning", "without a point", "take them out, or see whether labels and scans belong"),
    )
    places: list[list[str]] = [[] for _ in kinds]
    total = 0
    for look in looks:
        total += len(look.names)
        for found, chosen in zip(places, _box_problems(look, data), strict=True):
            found += look.places(chosen)
    for (level, words, remedy), found in zip(kinds, places, strict=True):
        if found:
            all_outside = level == "note" and len(found) == total
            yield Finding(
                level="error" if all_outside else level,
                what=f"{counted(len(found), 'box')} of {total:,} {words}",
                where=_some(found),
                remedy=remedy,
            )


def _box_problems(look: _Look, data: LidarData) -> list[Array]:
    """Return for each kind of problem the boxes (M,) that have it; each box has one at most."""
    boxes, sizes = look.boxes, look.boxes[:, 3:6]
    low, high = np.array(data.range[:3]), np.array(data.range[3:])
    problems = [
        ~np.isfinite(boxes).all(axis=1),
        (sizes <= 0).any(axis=1),
        ((sizes < SIZES[0]) | (sizes > SIZES[1])).any(axis=1),
        # Ranges are cut close to the ground and the roofs: up and down does not count.
        ((boxes[:, :2] < low[:2]) | (boxes[:, :2] > high[:2])).any(axis=1),
        (look.counts == 0) & np.isin(np.array(look.names, dtype=str), data.classes),
    ]
    seen = np.zeros(len(boxes), dtype=bool)
    for problem in problems:
        problem &= ~seen
        seen |= problem
    return problems


def _check_calibrations(looks: Sequence[_Look]) -> Iterator[Finding]:
    by_problem: dict[str, list[_Look]] = defaultdict(list)
    for look in looks:
        if look.calibration_problem:
            by_problem[look.calibration_problem].append(look)
    for problem, some in by_problem.items():
        yield Finding(
            level="error",
            what=f"{counted(len(some), 'calibration')} cannot be right: {problem}",
            where=_keys(some),
            remedy="use the calibration of the day that the scan was taken",
        )
    displaced = [look for look in looks if look.displaced and not look.calibration_problem]
    if not displaced:
        return
    judged = sum(look.is_judged for look in looks)
    files = any(look.frame.calibration for look in displaced)
    yield Finding(
        # Of single frames the labels may be wrong; of most it is the calibration or the converter.
        level="error" if len(displaced) > judged / 2 else "warning",
        what=f"the labels of {len(displaced):,} of {counted(judged, 'scan')} do not lie on the "
        f"objects: in {displaced[0].frame.key} {displaced[0].displaced}",
        where=_keys(displaced),
        remedy="use the calibration of the day that the scan was taken"
        if files
        else "give boxes in the scanner's frame: x ahead, y to the left, z up, from their middle",
    )


# --- Classes and splits ---------------------------------------------------------------------------


def _check_classes(looks: Sequence[_Look], data: LidarData, splits: Splits) -> Iterator[Finding]:
    objects = {look.frame.key: Counter(look.names) for look in looks}
    total = sum(objects.values(), Counter())
    if not total:
        return
    other = {name: count for name, count in total.items() if name not in data.classes}
    if other:
        listed = ", ".join(f"{name} {count:,}" for name, count in sorted(other.items()))
        yield Finding(
            level="note" if len(other) < len(total) else "error",
            what=f"labels of classes that data.classes lacks: {listed}",
            where="data.classes",
            remedy="add those that are to be found"
            + (f"; it has {', '.join(data.classes)}" if len(other) == len(total) else ""),
        )
    for split, some in splits.items():
        counts = sum((objects.get(frame.key, Counter()) for frame in some), Counter())
        few = {name: counts[name] for name in data.classes if counts[name] < FEWEST}
        if few and some:
            listed = ", ".join(f"{name} {count}" for name, count in few.items())
            yield Finding(
                level="warning",
                what=f"fewer than {FEWEST} objects of a class: {listed}",
                where=f"{split} split",
                remedy="label more of them, or take them out of data.classes; so few teach and "
                "measure little",
            )


def _check_splits(frames: Sequence[Frame], splits: Splits) -> Iterator[Finding]:
    if any(splits.values()):
        for split, some in splits.items():
            if not some:
                yield Finding(
                    level="error",
                    what=f"there is no scan in the {split} split",
                    where=f"{split} split",
                    remedy="add scans of more drives, or mend the given splits or the shares of "
                    "[data]",
                )
    apart = separated((frame.sequence, frame.split) for frame in frames)
    if apart:
        yield Finding(
            level="warning",
            what=f"the given splits separate the scans of {counted(len(apart), 'drive')}; they are "
            "kept in the one that measures",
            where=_some(apart),
            remedy="give all scans of a drive one split",
        )


def _check_copies(looks: Sequence[_Look], splits: Splits) -> Iterator[Finding]:
    """Find scans that are there twice, on both sides of a split: the leak that flatters most."""
    places = {frame.key: split for split, some in splits.items() for frame in some}
    digests = ((look.digest, look.frame.key) for look in looks if look.points)
    across = copies_across(digests, places)
    if across:
        yield Finding(
            level="warning",
            what=f"{counted(len(across), 'scan')} in more than one split",
            where=_some(across),
            remedy="keep one of each: the test flatters the model",
        )


def _note_counts(looks: Sequence[_Look], splits: Splits) -> Iterator[Finding]:
    sound = [look for look in looks if look.points]
    if not sound:
        return
    points = [look.points for look in sound]
    drives = len({look.frame.sequence for look in looks if look.frame.sequence})
    of_drives = f" of {counted(drives, 'drive')}" if drives else ""
    yield Finding(
        level="note",
        what=f"{counted(len(looks), 'scan')}{of_drives}, {min(points):,} to "
        f"{max(points):,} points, {counted(sum(len(look.names) for look in sound), 'object')}; "
        + ", ".join(f"{split} {len(some):,}" for split, some in splits.items()),
        where="data.path",
        remedy="none is needed",
    )
