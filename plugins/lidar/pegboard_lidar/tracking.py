"""Which object of this scan is which of the last: tracking by distance of centres; NumPy alone.

As CenterPoint does (Yin, Zhou and Krähenbühl, "Center-based 3D Object Detection and Tracking", CVPR
2021, section 4.3): each known object is moved on by its velocity and takes the nearest detection of
its class. The velocity is the detector's, or else what the object's own way tells. Pairs are formed
from the nearest on, not from the surest detection on, which mistakes fewer objects that cross.

Positions must be in a frame that stands still, or the vehicle's own motion adds to everyone's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from pegboard.records import Array
from pegboard_lidar.decoding import Detections

SMOOTHING = 0.5
"""Share of a newly measured velocity in the estimate: a box jitters by decimetres."""


@dataclass(kw_only=True)
class Track:
    """An object that is followed."""

    identity: int
    """Its number, from 1; none is given twice."""
    label: int
    """Place in `data.classes`."""
    position: Array
    """float64 (2,), x and y when it was last seen, in metres."""
    velocity: Array
    """float64 (2,), metres a second."""
    seconds: float
    """When it was last seen."""
    count: int = 1
    """In how many scans it was seen."""

    def expected(self, seconds: float) -> Array:
        """Return where it should be at a time (2,)."""
        position: Array = self.position + self.velocity * (seconds - self.seconds)
        return position

    def see(self, position: Array, velocity: Array | None, seconds: float) -> None:
        """Take note of where it is, and of its velocity where the detector tells one."""
        passed = seconds - self.seconds
        if velocity is not None:
            self.velocity = velocity
        elif passed > 0:
            measured = (position - self.position) / passed
            # The first measurement has nothing to be smoothed with.
            share = SMOOTHING if self.count > 1 else 1.0
            self.velocity = self.velocity + share * (measured - self.velocity)
        self.position, self.seconds, self.count = position, seconds, self.count + 1


@dataclass(kw_only=True)
class Tracker:
    """Follows objects from scan to scan."""

    max_distance: Sequence[float]
    """Of each class, metres between where an object is expected and where it is found."""
    max_age: float = 1.0
    """Seconds for which an object that is not seen is remembered."""
    tracks: list[Track] = field(default_factory=list)
    """Those that are followed now."""
    _next: int = 1

    def update(self, detections: Detections, seconds: float) -> Array:
        """Take note of a scan.

        Args:
            detections: The D objects found in it.
            seconds: Its time; later than that of the scan before.

        Returns:
            int64 (D,), a number for each: that of the object that it is, or a new one.
        """
        self.tracks = [one for one in self.tracks if seconds - one.seconds <= self.max_age]
        positions = detections.boxes[:, :2].astype(np.float64)
        velocities = _velocities(detections)
        identities = np.zeros(len(positions), dtype=np.int64)
        pairs = self._pairs(positions, detections.labels, seconds)
        for track, found in pairs:
            track.see(positions[found], velocities[found], seconds)
            identities[found] = track.identity
        for found in np.flatnonzero(identities == 0).tolist():
            label = int(detections.labels[found])
            identities[found] = self._start(label, positions[found], velocities[found], seconds)
        return identities

    def _pairs(self, positions: Array, labels: Array, seconds: float) -> list[tuple[Track, int]]:
        """Tracks and places of the detections that continue them."""
        if not self.tracks or not len(positions):
            return []
        expected = np.stack([track.expected(seconds) for track in self.tracks])
        apart = np.linalg.norm(expected[:, None] - positions, axis=-1)
        known = np.array([track.label for track in self.tracks])
        limits = np.array(self.max_distance, dtype=np.float64)[known]
        apart[known[:, None] != labels] = np.inf
        apart[apart > limits[:, None]] = np.inf
        return [(self.tracks[row], column) for row, column in nearest_pairs(apart)]

    def _start(self, label: int, position: Array, velocity: Array | None, seconds: float) -> int:
        track = Track(
            identity=self._next,
            label=label,
            position=position,
            velocity=np.zeros(2) if velocity is None else velocity,
            seconds=seconds,
        )
        self.tracks.append(track)
        self._next += 1
        return track.identity


def _velocities(detections: Detections) -> list[Array | None]:
    """What the detector tells of each; None where it tells nothing."""
    if detections.velocity is None:
        return [None] * len(detections.boxes)
    velocities = detections.velocity.astype(np.float64)
    return [velocity if np.isfinite(velocity).all() else None for velocity in velocities]


def nearest_pairs(distances: Array) -> Iterator[tuple[int, int]]:
    """Yield rows and columns of (M, N) from the smallest distance on, each once; none at inf."""
    left = distances.copy()
    while left.size and np.isfinite(left.min()):
        row, column = (int(place) for place in np.unravel_index(left.argmin(), left.shape))
        yield row, column
        left[row], left[:, column] = np.inf, np.inf


# --- How well -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Followed:
    """The objects of one scan, or what a tracker says of them."""

    positions: Array
    """float64 (M, 2), x and y in metres."""
    identities: Array
    """int64 (M,)."""


@dataclass(frozen=True, kw_only=True)
class Mota:
    """What a tracker is worth (CLEAR MOT)."""

    objects: int
    """True ones, over all scans."""
    misses: int
    """Of them, not found."""
    false: int
    """Found, and not there."""
    switches: int
    """Found, as another one than before."""

    @property
    def mota(self) -> float:
        """1 less mistakes per true object, at most 1; NaN without objects."""
        mistakes = self.misses + self.false + self.switches
        return 1 - mistakes / self.objects if self.objects else np.nan


def mota(true: Sequence[Followed], found: Sequence[Followed], distance: float = 2.0) -> Mota:
    """Count misses, false objects and switched identities.

    As Bernardin and Stiefelhagen, "Evaluating Multiple Object Tracking Performance: The CLEAR MOT
    Metrics", 2008: an object stays with the track that it had while that is near enough; what is
    left is matched so that most are, at the least distance.

    Args:
        true: Of each scan, the objects of a class.
        found: Of the same scans, what the tracker says.
        distance: Metres within which one can be the other, 2 as nuScenes has it.
    """
    counts = dict.fromkeys(("objects", "misses", "false", "switches"), 0)
    last: dict[int, int] = {}
    for theirs, ours in zip(true, found, strict=True):
        matches = _matches(theirs, ours, last, distance)
        counts["objects"] += len(theirs.identities)
        counts["misses"] += len(theirs.identities) - len(matches)
        counts["false"] += len(ours.identities) - len(matches)
        counts["switches"] += sum(last.get(one, track) != track for one, track in matches.items())
        last |= matches
    return Mota(**counts)


def _matches(
    true: Followed, found: Followed, last: dict[int, int], distance: float
) -> dict[int, int]:
    """Which object is which track: true identities to found ones."""
    from scipy.optimize import linear_sum_assignment

    apart = np.linalg.norm(true.positions[:, None] - found.positions, axis=-1)
    before = np.array([last.get(int(one), 0) for one in true.identities])
    kept = (before[:, None] == found.identities) & (apart <= distance)
    # More than all distances together: as many stay, and as many are matched, as can be.
    far = 1 + distance * apart.size
    cost = np.where(apart <= distance, apart, far) - np.where(kept, far * apart.size, 0.0)
    pairs = zip(*linear_sum_assignment(cost), strict=True)
    return {
        int(true.identities[row]): int(found.identities[column])
        for row, column in pairs
        if apart[row, column] <= distance
    }
