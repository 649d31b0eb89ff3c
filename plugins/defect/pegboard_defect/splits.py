"""Which parts train, which choose the threshold and which measure: whole groups, all classes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pegboard.records import Split
from pegboard.splits import SPLITS
from pegboard_defect.parts import Part
from pegboard_defect.settings import DefectData

Group = tuple[str, str]
"""The name of a part, or the key of a picture that is a part of its own."""

Groups = Mapping[Group, Sequence[Part]]
"""Parts by what must not be separated."""


def assign(parts: Sequence[Part], data: DefectData) -> dict[Split, list[Part]]:
    """Say which split each labelled part belongs to.

    A split that the data gives is kept, even where it separates the pictures of one part. Where it
    gives no validation or no test split, `data.validation_share` and `data.test_share` are taken
    of the parts without a given split, and of the train split where there are none. Whole groups
    (`Part.part`) are taken, each class in the same proportion, as nearly as groups allow.

    Args:
        parts: All parts; unlabelled ones are left out.
        data: The settings; the same `split_seed` gives the same splits in any order of the parts.

    Returns:
        Lists that share no part, each in the order of `parts`.
    """
    labelled = [part for part in parts if part.label is not None]
    groups = _group(labelled)
    places: dict[str, Split] = {}
    for members in groups.values():
        places |= _keep(members)
    given = {part.split for part in labelled}
    shares = (
        0.0 if "validation" in given else data.validation_share,
        0.0 if "test" in given else data.test_share,
    )
    free = _without_split(groups)
    for name, split in _divide(free, shares, data.split_seed).items():
        places |= {part.key: split for part in free[name]}
    return {split: [part for part in labelled if places[part.key] == split] for split in SPLITS}


def unlabelled(parts: Iterable[Part]) -> list[Part]:
    """Return the parts of which nobody has said yet what they are."""
    return [part for part in parts if part.label is None]


def _group(parts: Iterable[Part]) -> dict[Group, list[Part]]:
    groups: dict[Group, list[Part]] = defaultdict(list)
    for part in sorted(parts, key=lambda part: part.key):
        groups[(part.part, "" if part.part else part.key)].append(part)
    return groups


def _keep(members: Sequence[Part]) -> dict[str, Split]:
    """Return the given splits of a group; a picture without one goes where the others are."""
    given = [part.split for part in members if part.split is not None]
    if not given:
        return {}
    # Among several, the one that must not have been trained on.
    rest: Split = max(given, key=SPLITS.index)
    return {part.key: part.split or rest for part in members}


def _without_split(groups: Groups) -> Groups:
    """Return the groups that validation and test may be taken from."""
    free = {name: some for name, some in groups.items() if not any(part.split for part in some)}
    return free or {
        name: some for name, some in groups.items() if all(part.split == "train" for part in some)
    }


def _divide(groups: Groups, shares: tuple[float, float], seed: int) -> dict[Group, Split]:
    """Give each group to the split that lacks most of what is in it, the largest groups first.

    A greedy form of stratified group splitting: of all splits the one is chosen that lowers the
    squared error of the classes' counts most, each class weighted by how rare it is.
    """
    counts = _count_classes(groups)
    if not len(counts):
        return {}
    total = counts.sum(axis=0)
    share = np.array([1.0 - sum(shares), *shares])
    missing = np.outer(share, total)
    weight = 1.0 / total.astype(np.float64) ** 2
    order = np.random.default_rng(seed).permutation(len(counts))
    order = order[np.argsort(-counts[order].sum(axis=1), kind="stable")]
    names = list(groups)
    places: dict[Group, Split] = {}
    for group in order:
        count = counts[group]
        # What adding `count` does to the squared error, up to what is the same for all splits.
        gain = ((2 * missing - count) * count * weight).sum(axis=1)
        gain[share <= 0.0] = -np.inf
        chosen = int(gain.argmax())
        missing[chosen] -= count
        places[names[group]] = SPLITS[chosen]
    return places


def _count_classes(groups: Groups) -> NDArray[np.int64]:
    """Return how many parts of each class each group has: (G, K)."""
    classes = sorted({str(part.label) for members in groups.values() for part in members})
    counts = np.zeros((len(groups), len(classes)), dtype=np.int64)
    for row, members in enumerate(groups.values()):
        for part in members:
            counts[row, classes.index(str(part.label))] += 1
    return counts
