"""Figures for reports: one look for every domain, as inline SVG."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

PALETTE = ("#0b5fa5", "#d1603d", "#3f8f5f", "#8a63a8", "#a58a2c", "#5f6b76")
"""The model first, baselines after it; told apart in grey and by colour-blind readers."""

STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#5f6b76",
    "axes.grid": True,
    "axes.prop_cycle": cycler(color=PALETTE),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 10.0,
    "grid.color": "#e3e6ea",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    # Text stays text: smaller, and searchable in the report.
    "svg.fonttype": "none",
    # The same figure gives the same bytes.
    "svg.hashsalt": "pegboard",
}


class Drawing:
    """A canvas that turns into SVG when its block is left."""

    def __init__(self, axes: Axes) -> None:
        self.axes = axes
        self.svg = ""


@contextmanager
def drawing(*, width: float = 6.4, height: float = 3.8) -> Iterator[Drawing]:
    """Give axes to draw on; afterwards `svg` holds the picture.

    Args:
        width: In inches.
        height: In inches.
    """
    with mpl.rc_context(STYLE):
        canvas = Canvas(figsize=(width, height), layout="constrained")
        drawn = Drawing(canvas.subplots())
        yield drawn
        drawn.svg = as_svg(canvas)


def as_svg(canvas: Canvas) -> str:
    """Return a figure as an `<svg>` element that scales with the page."""
    buffer = io.StringIO()
    canvas.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    element = text[text.index("<svg") :]
    # Fixed sizes in points would overflow a narrow page; the view box keeps the proportions.
    return re.sub(r'<svg([^>]*?) width="[^"]*"', r"<svg\1", element, count=1).replace(
        ' height="', ' data-height="', 1
    )
