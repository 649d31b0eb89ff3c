"""Rotated boxes: overlap seen from above and in space, and non-maximum suppression.

Written over the array API standard, so that one implementation runs on torch tensors, for losses
and evaluation, and on NumPy arrays, where a server has no torch. Everything is computed in float64.

A box is `(x, y, z, length, width, height, yaw)`, as `frames.py` says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from array_api_compat import array_namespace, device

Array = Any
"""A NumPy array or a torch tensor; what comes back is of the same kind."""

_CORNERS = ((0.5, 0.5), (-0.5, 0.5), (-0.5, -0.5), (0.5, -0.5))
"""In lengths and widths, counter-clockwise, the front left one first."""


def _rectangle(xp: Any, size: Array, yaw: Array) -> tuple[Array, Array]:
    """The corners' x and y, each (P, 4), of rectangles (P, 2) about the origin."""
    unit = xp.asarray(_CORNERS, dtype=xp.float64, device=device(size))
    along, across = size[:, :1] * unit[:, 0], size[:, 1:] * unit[:, 1]
    cosine, sine = xp.cos(yaw)[:, None], xp.sin(yaw)[:, None]
    return cosine * along - sine * across, sine * along + cosine * across


def _float64(boxes: Array) -> tuple[Any, Array]:
    xp = array_namespace(boxes)
    return xp, xp.astype(boxes, xp.float64)


# --- Overlap of pairs -----------------------------------------------------------------------------


def intersection(boxes: Array, others: Array) -> Array:
    """Return the area (P,) that boxes (P, 7) share with others (P, 7), seen from above.

    In the frame of the other box that one is the region |x| <= a, |y| <= b, so that by Green's
    theorem the shared area is the integral of -clamp(y, -b, b) dx along the part of the box's
    outline with |x| <= a. An edge is straight: the integral is a sum of trapezoids between the
    places where it meets the region's sides. It changes continuously with both boxes, whatever is
    parallel, touches or coincides, and so needs neither tolerances nor sorted corners.
    """
    xp, boxes = _float64(boxes)
    _, others = _float64(others)
    x, y = _seen_from(xp, boxes, others)
    limit_x, limit_y = xp.abs(others[:, 3:4]) / 2, xp.abs(others[:, 4:5]) / 2
    x_next, y_next = xp.roll(x, -1, axis=1), xp.roll(y, -1, axis=1)
    x_from, x_to = _clamp(xp, x, limit_x), _clamp(xp, x_next, limit_x)
    slope = _ratio(xp, y_next - y, x_next - x)
    # A clipped end lies on the edge; an end that is inside stays exactly where it is.
    y_from = xp.where(x_from == x, y, y + slope * (x_from - x))
    y_to = xp.where(x_to == x_next, y_next, y_next + slope * (x_to - x_next))
    area = -xp.sum((x_to - x_from) * _mean_of_clamped(xp, y_from, y_to, limit_y), axis=1)
    smaller = xp.minimum(_area(xp, boxes), _area(xp, others))
    return xp.minimum(xp.maximum(area, xp.zeros_like(area)), smaller)


def _seen_from(xp: Any, boxes: Array, others: Array) -> tuple[Array, Array]:
    """The corners' x and y, each (P, 4), of boxes in the frames of others."""
    offset = boxes[:, :2] - others[:, :2]
    cosine, sine = xp.cos(others[:, 6]), xp.sin(others[:, 6])
    x, y = _rectangle(xp, xp.abs(boxes[:, 3:5]), boxes[:, 6] - others[:, 6])
    return (
        x + (cosine * offset[:, 0] + sine * offset[:, 1])[:, None],
        y + (cosine * offset[:, 1] - sine * offset[:, 0])[:, None],
    )


def _mean_of_clamped(xp: Any, start: Array, end: Array, limit: Array) -> Array:
    """The mean of clamp(value, -limit, limit) while value goes evenly from start to end."""
    change = end - start
    meets = [_share(xp, _ratio(xp, side - start, change)) for side in (-limit, limit)]
    first, second = xp.minimum(*meets), xp.maximum(*meets)
    begin, finish = _clamp(xp, start, limit), _clamp(xp, end, limit)
    # Between the two it is not clamped, before and after it is: three straight pieces.
    at_first = _clamp(xp, start + first * change, limit)
    at_second = _clamp(xp, start + second * change, limit)
    return (
        first * (begin + at_first)
        + (second - first) * (at_first + at_second)
        + (1 - second) * (at_second + finish)
    ) / 2


def _clamp(xp: Any, values: Array, limit: Array) -> Array:
    return xp.minimum(xp.maximum(values, -limit), limit)


def _share(xp: Any, values: Array) -> Array:
    return xp.minimum(xp.maximum(values, xp.zeros_like(values)), xp.ones_like(values))


def _ratio(xp: Any, numerator: Array, denominator: Array) -> Array:
    """The quotient; 0 where nothing is divided by nothing, whose factor is zero anyway."""
    flat = denominator == 0
    return xp.where(flat, xp.zeros_like(numerator), numerator) / xp.where(
        flat, xp.ones_like(denominator), denominator
    )


def _area(xp: Any, boxes: Array) -> Array:
    return xp.abs(boxes[:, 3] * boxes[:, 4])


def bev_iou_of_pairs(boxes: Array, others: Array) -> Array:
    """Return the intersection over union (P,) of boxes and others, each (P, 7), from above."""
    xp, boxes = _float64(boxes)
    _, others = _float64(others)
    shared = intersection(boxes, others)
    return _ratio(xp, shared, _area(xp, boxes) + _area(xp, others) - shared)


def iou_of_pairs(boxes: Array, others: Array) -> Array:
    """Return the intersection over union (P,) of boxes and others, each (P, 7), in space."""
    xp, boxes = _float64(boxes)
    _, others = _float64(others)
    high, low = (
        [box[:, 2] + sign * xp.abs(box[:, 5]) / 2 for box in (boxes, others)] for sign in (1, -1)
    )
    height = xp.minimum(*high) - xp.maximum(*low)
    shared = intersection(boxes, others) * xp.maximum(height, xp.zeros_like(height))
    volumes = [_area(xp, box) * xp.abs(box[:, 5]) for box in (boxes, others)]
    return _ratio(xp, shared, volumes[0] + volumes[1] - shared)


# --- Overlap of all with all ----------------------------------------------------------------------


def bev_iou(boxes: Array, others: Array) -> Array:
    """Return the intersection over union (M, N) of boxes (M, 7) and others (N, 7) from above."""
    return _of_all(bev_iou_of_pairs, boxes, others)


def iou(boxes: Array, others: Array) -> Array:
    """Return the intersection over union (M, N) of boxes (M, 7) and others (N, 7) in space."""
    return _of_all(iou_of_pairs, boxes, others)


def distances(boxes: Array, others: Array) -> Array:
    """Return how far the middles of boxes (M, 7) and others (N, 7) are apart from above (M, N)."""
    xp, boxes = _float64(boxes)
    _, others = _float64(others)
    along, across = (boxes[:, None, axis] - others[None, :, axis] for axis in (0, 1))
    return xp.sqrt(along * along + across * across)


def _of_all(of_pairs: Callable[[Array, Array], Array], boxes: Array, others: Array) -> Array:
    xp, boxes = _float64(boxes)
    _, others = _float64(others)
    first, second = xp.nonzero(_near(boxes, others))
    overlaps = xp.zeros((len(boxes), len(others)), dtype=xp.float64, device=device(boxes))
    overlaps[first, second] = of_pairs(boxes[first, :], others[second, :])
    return overlaps


def _near(boxes: Array, others: Array) -> Array:
    """Whether the circumscribed circles meet (M, N): those of most of a scan's boxes do not."""
    xp = array_namespace(boxes, others)
    reach = _radius(xp, boxes)[:, None] + _radius(xp, others)[None, :]
    near: Array = distances(boxes, others) <= reach
    return near


def _radius(xp: Any, boxes: Array) -> Array:
    return xp.sqrt(boxes[:, 3] ** 2 + boxes[:, 4] ** 2) / 2


# --- Suppression ----------------------------------------------------------------------------------


def suppress(boxes: Array, scores: Array, overlap: float) -> Array:
    """Keep the best of boxes that overlap: greedy rotated non-maximum suppression.

    Args:
        boxes: (M, 7), all of one class.
        scores: (M,).
        overlap: Boxes that overlap a better one by more than this, seen from above, are dropped.

    Returns:
        Indices (K,) of those that stay, the best first; of equal scores, the first is better.
    """
    xp, boxes = _float64(boxes)
    order = xp.argsort(scores, descending=True, stable=True)
    ranked = boxes[order, :]
    better, worse = xp.nonzero(xp.triu(_near(ranked, ranked), k=1))
    clash = bev_iou_of_pairs(ranked[better, :], ranked[worse, :]) > overlap
    stays = [True] * len(boxes)
    # The pairs come in the order of the better one: whether it stays is known by then.
    for this, that in zip(better[clash].tolist(), worse[clash].tolist(), strict=True):
        stays[that] &= not stays[this]
    return order[xp.asarray(stays, dtype=xp.bool, device=device(boxes))]
