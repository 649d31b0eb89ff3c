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
from dataclasses import dataclass

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
"""Candidates of a scan that are looked at, the surest first."""

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
    box = bounding_box(probability >= FLOOR)
    if box is None:
        return marked, np.zeros(0)
    # A view: what is written into it is written into `marked`.
    scores = _mark(probability[box], marked[box], fewest)
    return marked, np.array(scores)


def _mark(probability: Array, marked: Array, fewest: float) -> list[float]:
    numbered, count = components(probability >= FLOOR)
    boxes = ndimage.find_objects(numbered)
    peaks = ndimage.maximum(probability, numbered, np.arange(1, count + 1))
    queue = [(-float(peak), region) for region, peak in enumerate(peaks, start=1)]
    heapq.heapify(queue)
    islands: dict[int, _Island] = {}
    scores: list[float] = []
    while queue and len(scores) < MOST:
        peak, region = heapq.heappop(queue)
        if region not in islands:
            box = boxes[region - 1]
            heights = np.where(numbered[box] == region, probability[box], 0)
            islands[region] = _Island(heights=heights, taken=np.zeros(heights.shape, dtype=bool))
        taken = islands[region].take()
        if taken is not None and taken.sum() >= fewest:
            scores.append(-peak)
            marked[boxes[region - 1]][taken] = len(scores)
        rest = float(islands[region].heights.max())
        if rest >= FLOOR:
            heapq.heappush(queue, (-rest, region))
    return scores


@dataclass(frozen=True, kw_only=True)
class _Island:
    """A connected region of the map above the floor, and what was cut out of it."""

    heights: Array
    """What is left of it; 0 where it was cut."""
    taken: Array
    """What was cut."""

    def take(self) -> Array | None:
        """Cut out what belongs to the highest peak; None where that is the slope of another."""
        place = np.unravel_index(self.heights.argmax(), self.heights.shape)
        numbered, _ = components(self.heights >= REACH * self.heights[place])
        inside: Array = numbered == numbered[place]
        beside = self.taken.any() and ndimage.binary_dilation(inside, TOUCHING)
        is_slope = bool((beside & self.taken).any())
        self.heights[inside] = 0
        self.taken[inside] = True
        return None if is_slope else inside


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
