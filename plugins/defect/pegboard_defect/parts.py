"""The records of an inspection: a picture of a part and what is known of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pegboard.records import Split

Polygon = tuple[tuple[float, float], ...]
"""Corners (x, y) in pixels of the picture as it lies on the disk."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One picture with its annotation."""

    image: Path
    """The picture's file, absolute."""
    key: str
    """Its path relative to the data, with `/`: what messages, reports and labels call it."""
    label: str | None = None
    """Its class; None where it is not known."""
    probability: float | None = None
    """Probability of a defect where that is given; the label follows from it at 0.5."""
    mask: Path | None = None
    """A picture that is not black where the defect is."""
    polygons: tuple[Polygon, ...] = ()
    """Outlines of defects, instead of a mask picture; a box is one of four corners."""
    has_mask: bool = False
    """Whether it is known where the defect is; true of a good part in data that has masks."""
    part: str = ""
    """The part that it shows; pictures of one part stay in one split. Empty: one of its own."""
    lot: str = ""
    """The lot that the part is of; empty: not known."""
    split: Split | None = None
    """Where the data says which split it belongs to."""
