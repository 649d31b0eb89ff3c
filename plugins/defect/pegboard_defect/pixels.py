"""What a heat map is worth, pixel by pixel, from counts that one picture can be summed up in.

A test split has hundreds of millions of pixels, and a bootstrap draws it a hundred times over. So
`tabulate` keeps of each picture how many pixels have which map value, in bins; every number here
follows from sums of those columns over the rows. `tests/plugins/defect/test_pixels.py` holds them
to 0.002 of the exact ones. A map whose values are all within a hundredth of one another has too few
bins for that.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from pegboard.records import Array, Rows

BINS = 512
"""Bins of map values."""

LOGIT = 16.0
"""Logits beyond which map values are not told apart: nearer to 0 or 1 than 1e-7."""

FALSE_POSITIVES = 0.3
"""Share of good pixels up to which regions are counted (Bergmann et al., CVPR 2019)."""

EIGHT = np.ones((3, 3), dtype=np.int64)
"""Pixels that touch at a corner belong to one region."""


LOW = np.float32(1 / (1 + np.exp(LOGIT)))
HIGH = np.float32(1 / (1 + np.exp(-LOGIT)))


def _scale(value: Array) -> Array:
    """Where map values lie between the first bin's start, 0, and the last one's end, 1.

    Half of the scale is even in the value and half in its logit: a sigmoid's output crowds at both
    ends, where good and defective pixels have to be told apart at false positive rates below one
    in a thousand; a distance's lies anywhere.
    """
    # Unlike clip these turn a NaN, which has no bin, into the lowest value.
    inside = np.fmin(np.fmax(value, LOW), HIGH)
    logit = np.log(inside) - np.log(1 - inside)
    scaled: Array = (inside + logit / (2 * LOGIT) + 0.5) / 2
    return scaled


def bins_of(values: Array) -> Array:
    """Return each map value's bin, from 0 to BINS - 1."""
    scaled = _scale(np.asarray(values, dtype=np.float32))
    bins: Array = np.minimum(scaled * BINS, BINS - 1).astype(np.intp)
    return bins


def _edges() -> Array:
    """Smallest float32 of each bin (BINS,), found by bisection: rounding is `bins_of`'s own."""
    # Bit patterns of positive numbers ascend as the numbers do.
    low = np.zeros(BINS, dtype=np.uint32)
    high = np.full(BINS, np.float32(1).view(np.uint32))
    while (low < high).any():
        middle = (low + high) // 2
        reached = bins_of(middle.view(np.float32)) >= np.arange(BINS)
        low, high = np.where(reached, low, middle + 1), np.where(reached, middle, high)
    edges = high.view(np.float32)
    # Rounding takes the number below in as well, which is no threshold that anyone sets.
    edges[BINS // 2] = 0.5
    return edges


EDGES = _edges()
"""Smallest map value of each bin (BINS,), ascending, 0.5 among them: the thresholds that can be
told apart."""


# --- Counting -------------------------------------------------------------------------------------


def pixel_columns(
    maps: Array, masks: Array, has_mask: Array, inside: Array | None = None
) -> dict[str, Array]:
    """Sum up pictures for the rows of an evaluation.

    Args:
        maps: (B, H, W), map values between 0 and 1.
        masks: (B, H, W), 1 where a pixel is defective, else 0.
        has_mask: (B,), whether the mask is known; where it is not, a picture has zeros.
        inside: (H, W), 1 where pixels are inspected at all and counted; None: everywhere.

    Returns:
        `pixels_good` and `pixels_defect` (B, BINS) uint32, how many pixels have a map value in
        each bin; `overlap` (B, BINS) float32, over the regions of the mask the sum of the share of
        the region's pixels in each bin; `regions` (B,) int32, how many regions it has.
    """
    every = np.ones(maps.shape[1:], dtype=bool) if inside is None else inside > 0
    columns = empty_columns(len(maps))
    for index in np.flatnonzero(has_mask):
        bins, mask = bins_of(maps[index]), every & (masks[index] > 0)
        good = bins[every & ~mask]
        columns["pixels_good"][index] = np.bincount(good, minlength=BINS)
        if mask.any():
            _count_defect(columns, int(index), bins, mask)
    return columns


def empty_columns(count: int) -> dict[str, Array]:
    """Return the columns of pictures whose masks are not known."""
    return {
        "pixels_good": np.zeros((count, BINS), dtype=np.uint32),
        "pixels_defect": np.zeros((count, BINS), dtype=np.uint32),
        "overlap": np.zeros((count, BINS), dtype=np.float32),
        "regions": np.zeros(count, dtype=np.int32),
    }


def _count_defect(columns: dict[str, Array], index: int, bins: Array, mask: Array) -> None:
    labels, columns["regions"][index] = ndimage.label(mask, structure=EIGHT)
    bins, region = bins[mask], labels[mask]
    share = 1 / np.bincount(region)[region]
    columns["pixels_defect"][index] = np.bincount(bins, minlength=BINS)
    columns["overlap"][index] = np.bincount(bins, weights=share, minlength=BINS)


def _reached(rows: Rows, name: str) -> Array:
    """Sum a column over rows, then from each bin upwards: (BINS,), what reaches that edge."""
    total: Array = rows[name].sum(axis=0, dtype=np.float64)
    return np.cumsum(total[::-1])[::-1]


def _bin_of(threshold: float) -> int:
    """The first bin whose values all reach a threshold, the last one at most."""
    return min(int(np.searchsorted(EDGES, np.float32(threshold))), BINS - 1)


# --- Ranking --------------------------------------------------------------------------------------


def pixel_auroc(rows: Rows) -> float:
    """How often a defective pixel has a higher map value than a good one; NaN without either."""
    good, defect = _reached(rows, "pixels_good"), _reached(rows, "pixels_defect")
    if not good[0] or not defect[0]:
        return np.nan
    return _area(good, defect) / float(good[0] * defect[0])


def aupro(rows: Rows, limit: float = FALSE_POSITIVES) -> float:
    """Mean share of a region that is found, over false positive rates from 0 to `limit`.

    Small regions count as much as large ones (Bergmann et al., MVTec AD, CVPR 2019). NaN without a
    region or a good pixel.
    """
    good, overlap = _reached(rows, "pixels_good"), _reached(rows, "overlap")
    regions = int(rows["regions"].sum())
    if not good[0] or not regions:
        return np.nan
    rate = np.append(0, good[::-1] / good[0])
    found = np.append(0, overlap[::-1] / regions)
    inside = rate < limit
    at_limit = np.interp(limit, rate, found)
    area = np.trapezoid(np.append(found[inside], at_limit), np.append(rate[inside], limit))
    return float(area / limit)


def _area(false: Array, true: Array) -> float:
    """Area under a curve that is given from the highest count to the lowest, 0 left out."""
    return float(np.trapezoid(np.append(0, true[::-1]), np.append(0, false[::-1])))


# --- At a threshold -------------------------------------------------------------------------------


def pixel_f1(rows: Rows, threshold: float) -> float:
    """Harmonic mean of precision and recall over all pixels; NaN without a defective one."""
    return float(_f1(rows)[_bin_of(threshold)])


def iou(rows: Rows, threshold: float) -> float:
    """Jaccard index over all pixels of the rows: found and defective, of found or defective.

    NaN without a defective pixel.
    """
    score = pixel_f1(rows, threshold)
    return score / (2 - score)


def best_threshold(rows: Rows) -> float:
    """The map value of highest `pixel_f1`, in the middle where several are; 0.5 without masks."""
    score = _f1(rows)
    if np.isnan(score[0]):
        return 0.5
    best = np.flatnonzero(score == score.max())
    return float(EDGES[best[len(best) // 2]])


def quiet_threshold(rows: Rows, share: float) -> float:
    """The smallest map value that at most `share` of the good pixels reach; 0.5 without any."""
    good = _reached(rows, "pixels_good")
    if not good[0]:
        return 0.5
    quiet = np.flatnonzero(good <= share * good[0])
    return float(EDGES[quiet[0]]) if len(quiet) else float(EDGES[-1])


def _f1(rows: Rows) -> Array:
    """F1 at each edge (BINS,)."""
    good, defect = _reached(rows, "pixels_good"), _reached(rows, "pixels_defect")
    if not defect[0]:
        return np.full(BINS, np.nan)
    f1: Array = 2 * defect / (good + defect + defect[0])
    return f1
