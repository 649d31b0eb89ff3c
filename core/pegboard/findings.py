"""Words of findings, and what leaks from split to split, for `check_data` of any domain."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from pegboard.errors import PegboardError
from pegboard.records import Finding, Split


def finding_of(error: PegboardError) -> Finding:
    """Return the finding that says what an error says."""
    return Finding(level="error", what=error.what, where=error.where, remedy=error.remedy)


def first_few(places: Iterable[str], most: int = 3) -> str:
    """Return the first few places and how many more there are."""
    named = list(places)
    more = f" and {len(named) - most:,} more" if len(named) > most else ""
    return ", ".join(named[:most]) + more


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: `1 box`, `2 boxes`, `1,000 series`."""
    if number == 1 or noun.endswith("series"):
        return f"{number:,} {noun}"
    return f"{number:,} {noun}{'es' if noun.endswith('x') else 's'}"


def copies_across(digests: Iterable[tuple[str, str]], places: Mapping[str, Split]) -> list[str]:
    """Return what is there twice, on both sides of a split: `a = b`.

    Args:
        digests: Of every record its content's digest and its key.
        places: The split of each key that is used.
    """
    alike: dict[str, list[str]] = defaultdict(list)
    for digest, key in digests:
        alike[digest].append(key)
    return [
        " = ".join(keys)
        for keys in alike.values()
        if len({places[key] for key in keys if key in places}) > 1
    ]


def separated(given: Iterable[tuple[str, Split | None]]) -> list[str]:
    """Return the groups whose members were given to different splits.

    Args:
        given: Of every record its group, empty where it stands alone, and the split it was given.
    """
    splits: dict[str, set[Split]] = defaultdict(set)
    for group, split in given:
        if group and split:
            splits[group].add(split)
    return [group for group, some_splits in splits.items() if len(some_splits) > 1]
