"""Lesions one by one: which are found, what is marked in vain, and how sure the model was.

A lesion is a connected region of the true mask; voxels that share a corner belong together. It is
found where a region that was marked and the lesion have at least a tenth of what either covers in
common (intersection over union), the rule of PI-CAI (Saha et al., Lancet Oncology 25, 2024;
`min_overlap` of picai_eval). A region that finds no lesion is false; a second one that finds the
same lesion counts neither way, as in LUNA16. The rule of LUNA16 itself, a point within the radius,
is meant for detectors that give points. Any overlap at all would take a mask of the whole lung for
a perfect detector.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
from scipy import ndimage

from pegboard.records import Array
from pegboard_medical.masks import TOUCHING, components
from pegboard_medical.surfaces import bounding_box

OVERLAP = 0.1
"""Intersection over union from which on a lesion is found."""

REACH = 0.4
"""A candidate reaches down to this share of its peak."""

FLOOR = 0.05
"""Probabilities below this are no candidate."""

MOST = 50
"""Candidates of a scan that count, the surest."""

VOXELS = 2_000_000
"""Voxels of a scan that candidates are cut from, the surest: an untrained network marks it all."""

LOOKS = 300
"""Peaks and slopes of a map that are looked at, the highest first: a map of noise has no end."""

THRESHOLDS = (1 / (1 + np.exp(-np.arange(-3, 9.25, 0.5)))).astype(np.float32)
"""Scores, (T,) from 0.05 to 0.9999, that candidates are counted at: evenly spaced in log odds, as
networks trained on overlap are seldom unsure."""

RATES = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 8.0)
"""False regions a scan at which recall is read off (van Ginneken et al., Medical Image Analysis 14,
2010; LUNA16: Setio et al., Medical Image Analysis 42, 2017)."""


@dataclass(frozen=True, kw_only=True)
class Matched:
    """Lesions of a scan and what was marked in it."""

    found: Array
    """Score of the surest region that finds each lesion, (L,); -1 where none does."""
    false: Array
    """Scores of the regions that find none."""

    def counts(self, thresholds: Array) -> tuple[Array, Array]:
        """Return lesions found and false regions by regions from a score on, (T,) each."""
        found = (self.found[:, None] >= thresholds).sum(axis=0)
        return found, (self.false[:, None] >= thresholds).sum(axis=0)


def match(true: Array, marked: Array, scores: Array) -> Matched:
    """Say which lesions the marked regions find.

    Args:
        true: Binary mask (D, H, W).
        marked: Regions numbered from 1, (D, H, W).
        scores: Of each region, (M,).
    """
    numbered, lesions = components(true)
    hits = overlaps(numbered, lesions, marked, len(scores)) >= OVERLAP
    best = np.where(hits, scores, -1.0).max(axis=1, initial=-1.0)
    return Matched(found=best, false=scores[~hits.any(axis=0)])


def overlaps(numbered: Array, lesions: int, marked: Array, regions: int) -> Array:
    """Return intersection over union of lesions and regions, each numbered from 1: (L, M)."""
    box = bounding_box((numbered > 0) | (marked > 0))
    if box is None:
        return np.zeros((lesions, regions))
    ours, theirs = numbered[box].astype(np.int64).ravel(), marked[box].astype(np.int64).ravel()
    size = (lesions + 1) * (regions + 1)
    table = np.bincount(ours * (regions + 1) + theirs, minlength=size)
    table = table.reshape(lesions + 1, regions + 1)
    union = table[1:].sum(axis=1)[:, None] + table[:, 1:].sum(axis=0)[None] - table[1:, 1:]
    share: Array = table[1:, 1:] / union
    return share


# --- Candidates -----------------------------------------------------------------------------------


def candidates(probability: Array, fewest: float = 1.0) -> tuple[Array, Array]:
    """Cut a map into candidates: regions about a peak, scored by the probability there.

    From the highest peak on, each takes what is connected to it at `REACH` of its own height, so
    that a faint lesion is cut out as well as a sure one; what only touches an earlier one is its
    slope and no candidate (Bosma et al., Radiology: Artificial Intelligence 5(5), 2023: the dynamic
    threshold of report-guided annotation).

    Args:
        probability: float (D, H, W) of one structure.
        fewest: Smaller ones, in voxels, are dropped.

    Returns:
        Candidates numbered from 1, int32 (D, H, W), and their scores (M,), falling.
    """
    marked = np.zeros(probability.shape, dtype=np.int32)
    floor = FLOOR
    above = probability[probability >= floor]
    if len(above) > VOXELS:
        floor = float(np.partition(above, -VOXELS)[-VOXELS])
    box = bounding_box(probability >= floor)
    if box is None:
        return marked, np.zeros(0)
    # A view: what is written into it is written into `marked`.
    scores = _mark(np.where(probability[box] >= floor, probability[box], 0), marked[box], fewest)
    return marked, np.array(scores)


def _mark(probability: Array, marked: Array, fewest: float) -> list[float]:
    taken = np.zeros(probability.shape, dtype=bool)
    order = count()
    queue = [(-one.peak, next(order), one) for one in _islands(probability, (0, 0, 0))]
    heapq.heapify(queue)
    scores: list[float] = []
    for _ in range(LOOKS):
        if not queue or len(scores) == MOST:
            break
        _, _, island = heapq.heappop(queue)
        top = island.top()
        if not _touches(taken, island.box, top) and top.sum() >= fewest:
            scores.append(island.peak)
            marked[island.box][top] = len(scores)
        taken[island.box] |= top
        starts = [side.start for side in island.box]
        for rest in _islands(np.where(top, 0, island.heights), starts):
            heapq.heappush(queue, (-rest.peak, next(order), rest))
    return scores


@dataclass(frozen=True, kw_only=True)
class _Island:
    """A connected region of the map above the floor."""

    box: tuple[slice, ...]
    """Where it is."""
    heights: Array
    """The map in the box; 0 where it is not."""
    peak: float
    """Its largest value."""

    def top(self) -> Array:
        """Return what is connected to the peak at a share of its height."""
        place = np.unravel_index(self.heights.argmax(), self.heights.shape)
        numbered, _ = components(self.heights >= REACH * self.peak)
        inside: Array = numbered == numbered[place]
        return inside


def _islands(heights: Array, starts: Sequence[int]) -> Iterator[_Island]:
    """Split a map whose first voxel lies at `starts`; of very many islands the highest are kept."""
    numbered, regions = components(heights >= FLOOR)
    boxes = ndimage.find_objects(numbered)
    peaks = np.asarray(ndimage.maximum(heights, numbered, np.arange(1, regions + 1)))
    for index in np.argsort(-peaks, kind="stable")[:LOOKS].tolist():
        box = boxes[index]
        yield _Island(
            box=tuple(
                slice(first + side.start, first + side.stop)
                for first, side in zip(starts, box, strict=True)
            ),
            heights=np.where(numbered[box] == index + 1, heights[box], 0),
            peak=float(peaks[index]),
        )


def _touches(taken: Array, box: tuple[slice, ...], inside: Array) -> bool:
    """Say whether what is inside a box lies beside what is taken, or shares a corner with it."""
    around = tuple(slice(max(0, side.start - 1), side.stop + 1) for side in box)
    if not taken[around].any():
        return False
    room = [
        (side.start - wide.start, min(1, length - side.stop))
        for side, wide, length in zip(box, around, taken.shape, strict=True)
    ]
    grown = ndimage.binary_dilation(np.pad(inside, room), TOUCHING)
    return bool((grown & taken[around]).any())


# --- The curve ------------------------------------------------------------------------------------


def curve(found: Array, false: Array, lesions: Array) -> tuple[Array, Array]:
    """Return false regions a scan, rising, and recall at each threshold: (T,) and (T,).

    Args:
        found: Lesions found at each threshold, (N, T).
        false: False regions at each, (N, T).
        lesions: Lesions of each scan, (N,); NaN where it was not outlined.
    """
    known = np.isfinite(lesions)
    total = lesions[known].sum()
    if not total:
        return np.full(found.shape[1], np.nan), np.full(found.shape[1], np.nan)
    rates = false[known].sum(axis=0) / known.sum()
    recall = found[known].sum(axis=0) / total
    return rates[::-1], recall[::-1]


def froc(found: Array, false: Array, lesions: Array) -> float:
    """Return the mean recall at `RATES`; NaN without a lesion. Arguments as of `curve`.

    Between thresholds recall is interpolated linearly, below the first one down to no recall
    without false regions, and above the last one it stays, all as in LUNA16.
    """
    rates, recall = curve(found, false, lesions)
    if not np.isfinite(recall).all():
        return np.nan
    return float(np.mean(recall_at(rates, recall, np.array(RATES))))


def recall_at(rates: Array, recall: Array, wanted: Array) -> Array:
    """Read recall off a curve at other rates."""
    every, first = np.unique(rates, return_index=True)
    # Where several thresholds make the same false regions, the one that finds most.
    most = np.maximum.reduceat(recall, first)
    if every[0] > 0:
        every, most = np.append(0.0, every), np.append(0.0, most)
    read: Array = np.interp(wanted, every, most)
    return read
