"""Large pictures through a model that sees tiles: cut with overlap, run, put together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from pegboard.records import Array, Predictor

TILES_AT_ONCE = 16
"""Tiles in one call of the predictor: what fits into the caches and into memory."""


def infer_tiled(
    predictor: Predictor, image: Array, *, tile: int, overlap: float
) -> dict[str, Array]:
    """Run a predictor over tiles of pictures.

    A part is as bad as its worst tile. Where tiles overlap the map is their mean, weighted by the
    distance from the tile's edge, where a network knows least.

    Args:
        predictor: Takes `image` (B, tile, tile, C).
        image: uint8 (B, H, W, C); a side shorter than a tile is continued with its edge.
        tile: Side of a tile in pixels.
        overlap: Share of a tile that the next one repeats.

    Returns:
        `score` (B,), `map` (B, H, W) and, where the predictor gives them, `probabilities` (B, K)
        of the worst tile.
    """
    records = [_infer_one(predictor, one, tile, overlap) for one in image]
    return {name: np.stack([record[name] for record in records]) for name in records[0]}


def places(length: int, tile: int, overlap: float) -> list[int]:
    """Return where tiles begin along an axis: evenly spaced, the last one ending with the axis."""
    if length <= tile:
        return [0]
    step = max(1, int(tile * (1 - overlap)))
    count = -(-(length - tile) // step) + 1
    return [int(place) for place in np.linspace(0, length - tile, count).round()]


def _infer_one(predictor: Predictor, image: Array, tile: int, overlap: float) -> dict[str, Array]:
    height, width = image.shape[:2]
    padded = _padded(image, tile)
    corners = [
        (top, left)
        for top in places(padded.shape[0], tile, overlap)
        for left in places(padded.shape[1], tile, overlap)
    ]
    weight = _weight(tile)
    total = np.zeros(padded.shape[:2], dtype=np.float32)
    weights = np.zeros_like(total)
    scores: list[Array] = []
    probabilities: list[Array] = []
    for (top, left), outputs in zip(corners, _run(predictor, padded, corners, tile), strict=True):
        place = (slice(top, top + tile), slice(left, left + tile))
        total[place] += weight * outputs["map"]
        weights[place] += weight
        scores.append(outputs["score"])
        probabilities += [outputs["probabilities"]] if "probabilities" in outputs else []
    worst = int(np.argmax(scores))
    found = {"score": scores[worst], "map": (total / weights)[:height, :width]}
    if probabilities:
        found["probabilities"] = probabilities[worst]
    return found


def _run(
    predictor: Predictor, image: Array, corners: list[tuple[int, int]], tile: int
) -> Iterator[Mapping[str, Array]]:
    """Yield the outputs of each tile, run several at a time."""
    for first in range(0, len(corners), TILES_AT_ONCE):
        some = corners[first : first + TILES_AT_ONCE]
        tiles = np.stack([image[top : top + tile, left : left + tile] for top, left in some])
        outputs = predictor({"image": tiles})
        for index in range(len(some)):
            yield {name: values[index] for name, values in outputs.items()}


def _padded(image: Array, tile: int) -> Array:
    missing = [max(0, tile - length) for length in image.shape[:2]]
    if not any(missing):
        return image
    return np.pad(image, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")


def _weight(tile: int) -> Array:
    """Return float32 (tile, tile), rising linearly from every edge to the middle."""
    ramp = 1 - np.abs(np.linspace(-1, 1, tile + 2)[1:-1])
    return np.outer(ramp, ramp).astype(np.float32)
