"""Average precision as KITTI and as nuScenes define it, exact on any draw of the frames.

Written over the array API standard: torch tensors and NumPy arrays alike, in float64.

An evaluation counts hits and false detections at score thresholds, and KITTI matches anew at each
of them, without the detections below. What a threshold changes in a frame does not depend on other
frames, so that a frame is matched once, at each of its own scores (`match_by_overlap`,
`match_by_distance`), and what is kept of a detection is by how much hits and false ones change when
the threshold falls to its score. Summed over frames from the highest score on, that gives the
counts at any threshold, as if the frames had been matched there (`counts_at`).

Sources: Geiger, Lenz and Urtasun, "Are we ready for Autonomous Driving? The KITTI Vision Benchmark
Suite", CVPR 2012, with its development kit (`evaluate_object_3d_offline`); Simonelli et al.,
"Disentangling Monocular 3D Object Detection", ICCV 2019, for R40; Caesar et al., "nuScenes",
CVPR 2020, with `nuscenes-devkit` 1.2.
"""

from __future__ import annotations

import math
from typing import Any

from array_api_compat import array_namespace, device

Array = Any
"""A NumPy array or a torch tensor; what comes back is of the same kind."""

LEVELS = ("easy", "moderate", "hard")
"""KITTI's difficulties; each counts the objects of those before it too."""

SMALLEST_PIXELS = (40.0, 25.0, 25.0)
"""Height of a detection in the picture, by level, below which it is ignored."""

CANDIDATE, HIT, FALSE = range(3)
"""Columns of what a match tells of a detection: whether its score is one of those that KITTI takes
its thresholds from, and by how much the hits and the false detections change at its score."""

SAMPLES = 41
"""Recalls at which KITTI looks at the precision: 0, 1/40, ..., 1."""

SMALLEST = 0.1
"""Recall and precision up to which nuScenes counts nothing."""


def counted(difficulty: Array) -> Array:
    """Return whether objects (M,) count at each level (M, 3), by their difficulty 0, 1, 2 or -1.

    Those that do not count are ignored: finding one is neither a hit nor false.
    """
    xp = array_namespace(difficulty)
    level = xp.arange(len(LEVELS), device=device(difficulty))
    is_counted: Array = (difficulty[:, None] >= 0) & (difficulty[:, None] <= level)
    return is_counted


def ignored(pixels: Array) -> Array:
    """Return whether detections of a height in the picture (D,) are ignored at each level."""
    xp = array_namespace(pixels)
    is_low: Array = pixels[:, None] < xp.asarray(
        SMALLEST_PIXELS, dtype=xp.float64, device=device(pixels)
    )
    return is_low


# --- Matching a frame -----------------------------------------------------------------------------


def match_by_overlap(
    overlaps: Array, scores: Array, counts: Array, smallest: float, ignore: Array | None = None
) -> Array:
    """Match the detections of a class in a frame as KITTI does, at each of their scores.

    Args:
        overlaps: Intersection over union (D, M) of detections and objects, in the objects' order:
            those of the class, and of the classes beside it that are ignored (Van of Car).
        scores: (D,).
        counts: Whether an object counts at each of L levels, bool (M, L), see `counted`.
        smallest: The overlap that a match exceeds.
        ignore: Whether a detection is ignored at each level, bool (D, L), see `ignored`; None: none
            is.

    Returns:
        float64 (D, L, 3): candidate, hit and false, as the columns above say. Regions where nothing
        is labelled (DontCare) have no box in space and play no part, as in KITTI's.
    """
    xp = array_namespace(overlaps, scores)
    order = xp.argsort(scores, descending=True, stable=True)
    overlaps, scores = overlaps[order, :], scores[order]
    if ignore is None:
        matched = _match_levels(overlaps, scores, counts, smallest, xp.zeros_like(scores) > 0)
    else:
        levels = range(counts.shape[1])
        matched = xp.concat(
            [
                _match_levels(overlaps, scores, counts[:, i : i + 1], smallest, ignore[order, i])
                for i in levels
            ],
            axis=1,
        )
    return matched[xp.argsort(order, stable=True), ...]


def _match_levels(
    overlaps: Array, scores: Array, counts: Array, smallest: float, ignore: Array
) -> Array:
    """Match detections by falling score, of which all levels ignore the same (D,)."""
    xp = array_namespace(overlaps)
    near = overlaps > smallest
    # Candidates: an object takes the surest detection, ignored or not.
    taken = _taken(xp.where(near, scores[:, None], -math.inf), xp.ones_like(scores[None, :]) > 0)
    candidates = _count(xp, taken[0, :, :].T & ~ignore[:, None], counts)
    # At a threshold: the one that overlaps most; an ignored one only where there is no other.
    last = -1.0 - xp.arange(len(scores), dtype=xp.float64, device=device(scores))
    wish = xp.where(ignore[:, None], last[:, None], overlaps)
    above = scores[None, :] >= scores[:, None]
    taken = _taken(xp.where(near, wish, -math.inf), above)
    hits = _count(xp, xp.any(taken & ~ignore, axis=2), counts)
    false = above & ~xp.any(taken, axis=1) & ~ignore
    false_of_levels = xp.broadcast_to(xp.sum(false, axis=1)[:, None], hits.shape)
    return xp.stack([candidates, _changes(xp, hits), _changes(xp, false_of_levels)], axis=-1)


def _taken(wish: Array, above: Array) -> Array:
    """Let each object in turn take, of the detections that are left, the one that it wishes most.

    Args:
        wish: (D, M), -inf where a detection is none for an object.
        above: Which detections there are, for each of T thresholds, bool (T, D).

    Returns:
        Which detections are taken by which object, bool (T, M, D).
    """
    xp = array_namespace(wish)
    places = xp.arange(wish.shape[0], device=device(wish))
    taken = xp.zeros((above.shape[0], *wish.T.shape), dtype=xp.bool, device=device(wish))
    if not wish.shape[0]:
        return taken
    free = above
    for index in range(wish.shape[1]):
        wishes = xp.where(free, wish[:, index], -math.inf)
        best = xp.argmax(wishes, axis=1, keepdims=True)
        is_taken = (places == best) & (wishes > -math.inf)
        taken[:, index, :] = is_taken
        free = free & ~is_taken
    return taken


def _count(xp: Any, found: Array, counts: Array) -> Array:
    """How many found objects (T, M) count at each level (T, L)."""
    return xp.astype(found, xp.float64) @ xp.astype(counts, xp.float64)


def _changes(xp: Any, values: Array) -> Array:
    """By how much values (T, L) change from the threshold above; from 0 at the highest."""
    values = xp.astype(values, xp.float64)
    return values - xp.concat([xp.zeros_like(values[:1, :]), values[:-1, :]], axis=0)


def match_by_distance(
    distances: Array, scores: Array, counts: Array, largest: float, ignore: Array | None = None
) -> Array:
    """Match the detections of a class in a frame as nuScenes does: the surest chooses first.

    A detection takes the nearest object that is left, if that is nearer than `largest`. Objects
    that do not count are KITTI's: nuScenes has none.

    Args:
        distances: Of the middles of detections and objects, seen from above, in metres (D, M).
        scores: (D,).
        counts: Whether an object counts at each of L levels, bool (M, L), see `counted`.
        largest: Metres.
        ignore: Whether a detection without an object is ignored at each level, bool (D, L); None:
            it is false.

    Returns:
        float64 (D, L, 3), as `match_by_overlap` returns it; a hit is a candidate.
    """
    xp = array_namespace(distances, scores)
    rows, left = distances.tolist(), list(range(distances.shape[1]))
    chosen = [-1] * len(rows)
    for index in xp.argsort(scores, descending=True, stable=True).tolist():
        nearest = min(left, key=rows[index].__getitem__, default=-1)
        if nearest >= 0 and rows[index][nearest] < largest:
            chosen[index] = nearest
            left.remove(nearest)
    objects = xp.arange(len(counts), device=device(distances))
    taken = xp.asarray(chosen, dtype=objects.dtype, device=device(distances))[:, None] == objects
    hits = _count(xp, taken, counts)
    false = xp.broadcast_to(~xp.any(taken, axis=1)[:, None], hits.shape)
    false = false if ignore is None else false & ~ignore
    return xp.stack([hits, hits, xp.astype(false, xp.float64)], axis=-1)


# --- Counting over frames -------------------------------------------------------------------------


def counts_at(scores: Array, matched: Array, thresholds: Array) -> tuple[Array, Array]:
    """Return the hits and the false detections (T,) with a score of at least each threshold.

    Args:
        scores: float64 (K,), of the detections of all frames.
        matched: (K, 3), of one level, as the matches return it.
        thresholds: float64 (T,).
    """
    xp, scores, sums = _from_above(scores, matched)
    number = xp.searchsorted(-scores, -thresholds, side="right")
    sums = xp.concat([xp.zeros_like(sums[:1, :]), sums], axis=0) if len(sums) else _nothing(sums)
    reached = xp.take(sums, number, axis=0)
    return reached[:, HIT], reached[:, FALSE]


def _nothing(sums: Array) -> Array:
    xp = array_namespace(sums)
    return xp.zeros((1, sums.shape[1]), dtype=sums.dtype, device=device(sums))


def _from_above(scores: Array, matched: Array) -> tuple[Any, Array, Array]:
    """The scores from the highest on, and the running sums of what was matched."""
    xp = array_namespace(scores, matched)
    order = xp.argsort(scores, descending=True, stable=True)
    sums = xp.cumulative_sum(xp.astype(matched[order, :], xp.float64), axis=0)
    return xp, xp.astype(scores[order], xp.float64), sums


def _quotient(xp: Any, part: Array, whole: Array) -> Array:
    none = whole == 0
    return xp.where(none, 0.0, part) / xp.where(none, 1.0, whole)


def precision_at_recalls(scores: Array, matched: Array, objects: float) -> Array:
    """Return the precisions (41,) of KITTI's development kit at recalls 0, 1/40, ..., 1.

    Each is the largest at its recall or a higher one; 0 beyond the largest recall.

    Args:
        scores: (K,), of the detections of all frames.
        matched: (K, 3), of one level, as `match_by_overlap` returns it.
        objects: How many there are that count, at least 1.
    """
    xp = array_namespace(scores, matched)
    candidates = xp.sort(scores[matched[:, CANDIDATE] > 0], descending=True)
    chosen = xp.asarray(
        sampled(len(candidates), objects), dtype=xp.int64, device=device(candidates)
    )
    hits, false = counts_at(scores, matched, xp.astype(candidates[chosen], xp.float64))
    precision = xp.zeros(SAMPLES, dtype=xp.float64, device=device(candidates))
    precision[: len(chosen)] = _quotient(xp, hits, hits + false)
    later = xp.triu(xp.ones((SAMPLES, SAMPLES), dtype=xp.float64, device=device(candidates)))
    return xp.max(later * precision, axis=1)


def precision_by_definition(scores: Array, matched: Array, objects: float) -> Array:
    """Return the largest precision at a recall of at least 0, 1/40, ..., 1 (41,).

    This is what KITTI defines. Its development kit looks at as many scores as objects are found:
    all of n objects found and nothing false give a mean (R40) of (n - 1) / 40 where n is up to 40.
    From there on the two differ by little.

    Args:
        scores: (K,), of the detections of all frames.
        matched: (K, 3), of one level, as `match_by_overlap` returns it.
        objects: How many there are that count, at least 1.
    """
    xp = array_namespace(scores, matched)
    hits, false = counts_at(scores, matched, xp.astype(scores, xp.float64))
    sample = xp.arange(SAMPLES, dtype=xp.float64, device=device(hits))
    # Whole numbers: a recall that is just reached must not be missed by rounding.
    reached = hits[None, :] * (SAMPLES - 1) >= sample[:, None] * objects
    precision = xp.where(reached, _quotient(xp, hits, hits + false), 0.0)
    nothing = xp.zeros((SAMPLES, 1), dtype=xp.float64, device=device(hits))
    return xp.max(xp.concat([precision, nothing], axis=1), axis=1)


def sampled(candidates: int, objects: float) -> list[int]:
    """Choose the candidates, from the surest on, whose scores are KITTI's thresholds.

    The i-th has a recall of (i + 1) / objects. For each of the recalls 0, 1/40, ... the first one
    is chosen to which the next is not nearer; the last one always is.
    """
    chosen: list[int] = []
    recall, index = 0.0, 0
    while index < candidates:
        is_last = index == candidates - 1
        here, following = (index + 1) / objects, (index + 2) / objects
        if is_last or following - recall >= recall - here:
            chosen.append(index)
            recall += 1 / (SAMPLES - 1)
        index += 1
    return chosen


def r40(precision: Array) -> float:
    """Return the mean of KITTI's precisions (41,) at recalls 1/40 to 1."""
    return float(precision[1:].mean())


def r11(precision: Array) -> float:
    """Return the mean of KITTI's precisions (41,) at recalls 0, 0.1, ..., 1."""
    return float(precision[::4].mean())


def centre_average_precision(scores: Array, matched: Array, objects: float) -> float:
    """Return nuScenes' average precision of a class at a distance.

    The mean over recalls 0.11, 0.12, ..., 1 of how far the precision is above 0.1, as a share of
    what it can be. Between the recalls that occur it is interpolated; beyond them it is 0.

    Args:
        scores: (K,), of the detections of all frames.
        matched: (K, 3), of one level, as `match_by_distance` returns it.
        objects: How many there are that count, at least 1.
    """
    xp, _, sums = _from_above(scores, matched)
    hits, told = sums[:, HIT], sums[:, HIT] + sums[:, FALSE]
    # What is ignored before the first that counts says nothing.
    hits, told = hits[told > 0], told[told > 0]
    if not len(hits):
        return 0.0
    recall, precision = hits / objects, hits / told
    if recall[0] != 0:
        recall = xp.concat([xp.zeros_like(recall[:1]), recall])
        precision = xp.concat([precision[:1], precision])
    wanted = xp.arange(101, dtype=xp.float64, device=device(recall)) * 0.01
    above = _interpolated(xp, wanted, recall, precision)[round(100 * SMALLEST) + 1 :] - SMALLEST
    return float(xp.where(above > 0, above, 0.0).mean()) / (1 - SMALLEST)


def _interpolated(xp: Any, wanted: Array, places: Array, values: Array) -> Array:
    """Values at rising places, linear between them, 0 beyond the last: `numpy.interp`."""
    number = len(places)
    left = xp.searchsorted(places, wanted, side="right") - 1
    right = xp.where(left + 1 < number, left + 1, left)
    step = xp.take(places, right) - xp.take(places, left)
    slope = _quotient(xp, xp.take(values, right) - xp.take(values, left), step)
    inside = xp.take(values, left) + slope * (wanted - xp.take(places, left))
    return xp.where(wanted <= places[-1], inside, 0.0)


def best_threshold(scores: Array, matched: Array, objects: float) -> float:
    """Return the score from which on detections reach the best F1; NaN where none is a hit."""
    xp = array_namespace(scores, matched)
    thresholds = xp.astype(scores, xp.float64)
    hits, false = counts_at(scores, matched, thresholds)
    f1 = _quotient(xp, 2 * hits, hits + false + objects)
    if not len(f1) or not float(xp.max(f1)) > 0:
        return math.nan
    return float(thresholds[int(xp.argmax(f1))])
