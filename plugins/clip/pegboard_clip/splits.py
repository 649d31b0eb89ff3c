"""Which pictures train, which choose the checkpoint and which measure: whole pictures."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from pegboard.errors import DataError
from pegboard.files import digest_of
from pegboard.findings import separated
from pegboard.records import Split
from pegboard.splits import SPLITS
from pegboard_clip.layouts import Pair, Source
from pegboard_clip.settings import ClipData

Units = Mapping[str, Sequence[Pair]]
"""Pairs by what must not be separated: their picture, or its group."""


def assign(pairs: Iterable[Pair], data: ClipData) -> dict[Split, list[Pair]]:
    """Say which split each pair belongs to.

    A split that the data gives is kept; a picture that is given to several goes to the one that
    must not have been trained on. Where the data gives no validation or no test split,
    `data.validation_share` and `data.test_share` are taken of the pictures without a given split,
    and of the train split where there are none. All captions of a picture stay together, and so do
    pictures with the same bytes.

    Args:
        pairs: All pairs.
        data: The settings; the same `split_seed` gives the same splits in any order of the pairs.

    Returns:
        Lists that share no picture, each in the order of `pairs`.
    """
    pairs = list(pairs)
    units = _units(pairs)
    places = {
        name: max((pair.split for pair in some if pair.split), key=SPLITS.index)
        for name, some in units.items()
        if any(pair.split for pair in some)
    }
    shares = {
        "validation": data.validation_share * ("validation" not in places.values()),
        "test": data.test_share * ("test" not in places.values()),
    }
    free = units.keys() - places.keys()
    if not free and any(shares.values()):
        free = {name for name, split in places.items() if split == "train"}
        places = {name: split for name, split in places.items() if split != "train"}
    if free:
        places |= _divided(units, free, places, shares, data.split_seed)
    return {split: [pair for pair in pairs if places[_unit(pair)] == split] for split in SPLITS}


def _unit(pair: Pair) -> str:
    return pair.group or pair.key


def _units(pairs: Iterable[Pair]) -> Units:
    units: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        units[_unit(pair)].append(pair)
    return units


def _divided(
    units: Units,
    free: Iterable[str],
    given: Mapping[str, Split],
    shares: Mapping[str, float],
    seed: int,
) -> dict[str, Split]:
    """Place the free units: copies where their originals are, the rest by shares."""
    clusters: dict[str, list[str]] = defaultdict(list)
    root_of = _together(units)
    for name in sorted(free):
        clusters[root_of[name]].append(name)
    held: dict[str, Split] = {}
    for name, split in given.items():
        root = root_of[name]
        held[root] = max(split, held.get(root, split), key=SPLITS.index)
    # Sorted by a digest, the order is random and the same wherever a unit stands in the file.
    loose = sorted(clusters.keys() - held.keys(), key=lambda root: digest_of([seed, root]))
    total = sum(len(clusters[root]) for root in loose)
    for split in ("validation", "test"):
        wanted = max(round(shares[split] * total), int(shares[split] > 0 and len(loose) > 2))
        taken = 0
        while loose and taken < wanted:
            root = loose.pop()
            held[root] = split
            taken += len(clusters[root])
    return {name: held.get(root, "train") for root, names in clusters.items() for name in names}


def _together(units: Units) -> dict[str, str]:
    """Return for each unit the first of all those that share a picture's bytes with it."""
    root_of = {name: name for name in units}

    def root(name: str) -> str:
        while root_of[name] != name:
            name = root_of[name]
        return name

    sources = {pair.image: name for name, some in units.items() for pair in some}
    for alike in copies(sources):
        first, *others = sorted({root(sources[source]) for source in alike})
        root_of |= dict.fromkeys(others, first)
    return {name: root(name) for name in units}


def copies(sources: Iterable[Source]) -> list[list[Source]]:
    """Return the pictures that have the same bytes; only those of equal length are read."""
    by_length: dict[int, list[Source]] = defaultdict(list)
    for source in dict.fromkeys(sources):
        length = length_of(source)
        if length is not None:
            by_length[length].append(source)
    by_digest: dict[str, list[Source]] = defaultdict(list)
    for some in by_length.values():
        if len(some) > 1:
            for source in some:
                by_digest[_digest(source)].append(source)
    return [some for some in by_digest.values() if len(some) > 1]


def length_of(source: Source) -> int | None:
    """Return how many bytes a picture has; None where it is missing."""
    if source.length >= 0:
        return source.length
    try:
        return source.path.stat().st_size
    except OSError:
        return None


def _digest(source: Source) -> str:
    try:
        return hashlib.sha256(source.read()).hexdigest()
    except DataError:  # The check says what is wrong; here it is a copy of nothing.
        return repr(source)


def separated_pictures(pairs: Iterable[Pair]) -> list[str]:
    """Return the pictures whose captions the data gives to different splits."""
    return separated((_unit(pair), pair.split or None) for pair in pairs)
