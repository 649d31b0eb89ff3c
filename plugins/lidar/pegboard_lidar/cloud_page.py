"""A piece of a page that turns clouds in the browser: one canvas, no library, no network."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np

from pegboard.records import Array
from pegboard_lidar import boxes as shapes

PLACE = "/*CLOUDS*/[]"
"""Of the template, what the clouds are written over."""

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
  body {{ margin: 0; background: #10141a; font: 16px system-ui, sans-serif; }}
  .cloud canvas {{ height: calc(100vh - 3rem) !important; max-height: none !important; }}
</style>
{snippet}
</html>
"""

_LIMIT = np.iinfo(np.int16).max
"""Centimetres that a point may be away along an axis."""


@dataclass(frozen=True, kw_only=True)
class Cloud:
    """A scan to be turned."""

    key: str
    """Names it in the list."""
    points: Array
    """(N, >=3), in metres."""
    true: Array = field(default_factory=lambda: np.zeros((0, 7)))
    """Boxes (M, 7)."""
    true_names: Sequence[str] = ()
    """What stands at them; nothing where it is shorter."""
    found: Array = field(default_factory=lambda: np.zeros((0, 7)))
    """Boxes (D, 7)."""
    found_names: Sequence[str] = ()
    """What stands at them; nothing where it is shorter."""


def cloud_html(clouds: Sequence[Cloud]) -> str:
    """Return the HTML of a canvas with a list of clouds, at least one; it may stand in any page."""
    told = json.dumps([_told(cloud) for cloud in clouds], separators=(",", ":"), allow_nan=False)
    template = (files("pegboard_lidar") / "cloud.html").read_text(encoding="utf-8")
    # A name with "</script>" must not end the script.
    return template.strip().replace(PLACE, told.replace("<", "\\u003c"))


def page(clouds: Sequence[Cloud], title: str) -> str:
    """Return a whole page of it."""
    return PAGE.format(title=escape(title), snippet=cloud_html(clouds))


def _told(cloud: Cloud) -> Mapping[str, Any]:
    return {
        "key": cloud.key,
        "points": base64.b64encode(_centimetres(cloud.points).tobytes()).decode(),
        "true": _boxes(cloud.true, cloud.true_names),
        "found": _boxes(cloud.found, cloud.found_names),
    }


def _centimetres(points: Array) -> Array:
    """Return the points that are near enough to be told in int16 (N, 3), little-endian."""
    xyz = np.asarray(points)[:, :3] * 100.0
    is_near = (np.abs(xyz) <= _LIMIT).all(axis=1)  # NaN is not.
    return np.rint(xyz[is_near]).astype("<i2")


def _boxes(boxes: Array, names: Sequence[str]) -> list[Mapping[str, Any]]:
    corners = shapes.corners(boxes).round(2).tolist()
    every = [*names, *[""] * (len(corners) - len(names))]
    return [{"name": name, "corners": some} for name, some in zip(every, corners, strict=True)]
