"""The three splits, what people call them, and what is kept in memory of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from pegboard.records import Split

Item = TypeVar("Item")

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
"""In the order of the life of a model."""

SPLIT_WORDS: Mapping[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
"""What people call them, in small letters: in folders, file names and columns."""

CACHE_BYTES = 2_000_000_000
"""What is kept in memory of a split."""


class Kept(Generic[Item]):
    """What was read of each place of a split, kept in memory where all of it fits.

    Args:
        count: Places.
        each: Bytes of each.
    """

    def __init__(self, count: int, each: int) -> None:
        self._fits = count * each <= CACHE_BYTES
        self._items: dict[int, Item] = {}

    def get(self, place: int, read: Callable[[int], Item]) -> Item:
        """Return what lies at a place, read if it is not there yet."""
        if not self._fits:
            return read(place)
        if place not in self._items:
            self._items[place] = read(place)
        return self._items[place]
