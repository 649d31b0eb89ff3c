"""Find pictures that are in the data more than once: as they are, or changed a little.

Exact duplicates have the same pixels. Near duplicates are found on thumbnails, which survive
JPEG, a change of size, brightness or contrast, and are tried in all eight turns and mirrorings. A
shifted or cropped copy is not found.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pegboard.errors import DataError
from pegboard_defect.images import read_image, to_array

Floats = NDArray[np.float32]

SIDE = 32
"""Of a thumbnail."""

CONTRAST = 0.2
"""Standard deviation that every thumbnail is brought to, as a share of the grey range."""

FLATTEST = 0.5 / 255
"""Pictures with less contrast are all alike; only exact duplicates of them are looked for."""

PEAK = 2.5
"""Largest difference at any place, as a multiple of the largest mean: a small defect is a
difference at one place, and good and defective parts on one fixture are no duplicates."""

SHARED = 0.9
"""Smallest correlation after what all pictures have in common, such as light, is taken away."""

ENOUGH = 10
"""Pictures, from how many on it is known what all have in common."""

MOST = 16
"""Near duplicates of one picture that are looked at, the nearest first."""

_FREQUENCIES = 12
_ROWS = 1024


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two pictures that are the same."""

    one: str
    """Key of the first picture, in the order they were given."""
    other: str
    """Key of the second."""
    exact: bool
    """Whether every pixel is equal; otherwise they are near duplicates."""
    difference: float
    """Mean absolute difference as a share of the grey range, at equal brightness and contrast."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Fingerprint:
    """What is kept of a picture to compare it by."""

    key: str
    """The part's key."""
    digest: str
    """SHA-256 of mode, size and pixels."""
    thumbnail: Floats = field(repr=False)
    """(32, 32) grey, mean 0, standard deviation 1; all 0 for a picture without contrast."""


def find(pictures: Iterable[tuple[str, Path]], near: float) -> list[Pair]:
    """Return the duplicates among pictures, given as key and file; unreadable ones are left out.

    See `compare`.
    """
    fingerprints = []
    for key, path in pictures:
        try:
            fingerprints.append(fingerprint(key, read_image(path)))
        except DataError:
            continue
    return compare(fingerprints, near)


def fingerprint(key: str, image: Image.Image) -> Fingerprint:
    """Return the fingerprint of a decoded picture."""
    content = hashlib.sha256(f"{image.mode} {image.size} ".encode())
    content.update(image.tobytes())
    grey = Image.fromarray(to_array(image, "grey")[:, :, 0]).convert("F")
    # In floats: the fine structure of a plain surface is less than one grey level.
    small = np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.HAMMING), dtype=np.float32) / 255
    small = small - small.mean()
    deviation = float(small.std())
    thumbnail = small / deviation if deviation >= FLATTEST else np.zeros_like(small)
    return Fingerprint(key=key, digest=content.hexdigest(), thumbnail=thumbnail)


def compare(fingerprints: Sequence[Fingerprint], near: float) -> list[Pair]:
    """Return the duplicates among fingerprints.

    Of several equal pictures each is paired with the first; near duplicates are looked for among
    those first ones.

    Args:
        fingerprints: Of N pictures; 20,000 take some seconds.
        near: Largest difference of near duplicates, as a share of the grey range; 0 looks for
            exact ones only.

    Returns:
        Pairs, the exact ones first, then by difference.
    """
    groups: dict[str, list[Fingerprint]] = defaultdict(list)
    for one in fingerprints:
        groups[one.digest].append(one)
    exact = [
        Pair(one=first.key, other=other.key, exact=True, difference=0.0)
        for first, *others in groups.values()
        for other in others
    ]
    if near <= 0.0:
        return exact
    firsts = [first for first, *_ in groups.values() if first.thumbnail.any()]
    return exact + sorted(_compare_near(firsts, near), key=lambda pair: pair.difference)


def _compare_near(fingerprints: Sequence[Fingerprint], near: float) -> Iterator[Pair]:
    if len(fingerprints) < 2:
        return
    thumbnails = np.stack([one.thumbnail for one in fingerprints])
    common = np.zeros((SIDE, SIDE), dtype=np.float32)
    if len(thumbnails) >= ENOUGH:
        common = np.median(thumbnails, axis=0)
    for ones, others in _candidates(thumbnails, near):
        difference, peak, shared = _measure(thumbnails[ones], thumbnails[others], common)
        same = (difference < near) & (peak < PEAK * near) & (shared > SHARED)
        for row in np.flatnonzero(same):
            yield Pair(
                one=fingerprints[ones[row]].key,
                other=fingerprints[others[row]].key,
                exact=False,
                difference=float(difference[row]),
            )


def _candidates(
    thumbnails: Floats, near: float
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Give pairs of rows that may be near duplicates, turned or mirrored, some at a time."""
    described = _describe(thumbnails)
    squares = (described**2).sum(axis=1)
    # The root mean square of a duplicate's difference is at most about twice its mean.
    limit = SIDE**2 * (2 * near / CONTRAST) ** 2
    for start in range(0, len(described), _ROWS):
        rows = described[start : start + _ROWS]
        distances = squares[start : start + _ROWS, None] + squares[None, start:]
        distances -= 2 * rows @ described[start:].T
        distances[np.tril_indices(len(rows))] = np.inf
        ones, others = _nearest(distances, limit)
        for first in range(0, len(ones), _ROWS):
            some = slice(first, first + _ROWS)
            yield ones[some] + start, others[some] + start


def _nearest(distances: Floats, limit: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return row and column of what is within the limit, at most `MOST` in a row."""
    crowded = np.flatnonzero((distances < limit).sum(axis=1) > MOST)
    if len(crowded):
        kept = np.partition(distances[crowded], MOST - 1, axis=1)[:, MOST - 1 : MOST]
        distances[crowded] = np.where(distances[crowded] <= kept, distances[crowded], np.inf)
    ones, others = np.nonzero(distances < limit)
    return ones, others


def _describe(thumbnails: Floats) -> Floats:
    """Return numbers that are the same however a picture is turned or mirrored: (N, 143).

    Mirroring changes signs of a picture's cosine coefficients and a quarter turn swaps their axes
    as well, so the absolute values of (u, v) and (v, u), in order of size, stay. Their distance is
    never larger than that of the pictures themselves: no pair is missed.
    """
    index = np.arange(SIDE)
    cosines = np.cos(np.pi * np.arange(_FREQUENCIES)[:, None] * (2 * index + 1) / (2 * SIDE))
    cosines *= np.sqrt(2 / SIDE)
    cosines[0] /= np.sqrt(2)
    basis = cosines.astype(np.float32)
    size = np.abs(basis @ thumbnails @ basis.T)
    swapped = size.transpose(0, 2, 1)
    upper = np.triu_indices(_FREQUENCIES)
    strictly = np.triu_indices(_FREQUENCIES, 1)
    larger = np.maximum(size, swapped)[:, upper[0], upper[1]]
    smaller = np.minimum(size, swapped)[:, strictly[0], strictly[1]]
    # The first is the mean, which is 0 of every thumbnail.
    return np.concatenate([larger[:, 1:], smaller], axis=1)


def _measure(ones: Floats, others: Floats, common: Floats) -> tuple[Floats, Floats, Floats]:
    """Return mean and largest difference, and the correlation beyond `common`, of M pairs.

    Args:
        ones: Thumbnails (M, 32, 32).
        others: Thumbnails (M, 32, 32), tried in all eight turns and mirrorings.
        common: Thumbnail (32, 32) of what all pictures have in common.
    """
    mean = np.full(len(ones), np.inf, dtype=np.float32)
    peak, shared = mean.copy(), np.zeros_like(mean)
    for turned in _turns(others):
        difference = np.abs(ones - turned).reshape(len(ones), -1) * CONTRAST
        here = difference.mean(axis=1)
        better = here < mean
        mean[better] = here[better]
        peak[better] = difference[better].max(axis=1)
        shared[better] = _correlate(ones[better] - common, turned[better] - common)
    return mean, peak, shared


def _turns(thumbnails: Floats) -> Iterator[Floats]:
    for mirrored in (thumbnails, thumbnails[:, :, ::-1]):
        for quarters in range(4):
            yield np.rot90(mirrored, quarters, axes=(1, 2))


def _correlate(ones: Floats, others: Floats) -> Floats:
    scale = np.sqrt((ones**2).sum(axis=(1, 2)) * (others**2).sum(axis=(1, 2)))
    product: Floats = (ones * others).sum(axis=(1, 2)) / np.maximum(scale, 1e-6)
    return product
