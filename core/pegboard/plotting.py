"""Figures for reports: one look for every domain, as inline SVG."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from pegboard.records import Array

PALETTE = ("#0b5fa5", "#d1603d", "#3f8f5f", "#8a63a8", "#a58a2c", "#5f6b76")
"""The model first, baselines after it; told apart in grey and by colour-blind readers."""

LONGEST = 28
"""Letters of a name that are drawn."""

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
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        # Names in scripts that Matplotlib's font lacks: the browser, which sets the text, has them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        canvas = Canvas(figsize=(width, height), layout="constrained")
        drawn = Drawing(canvas.subplots())
        yield drawn
        drawn.svg = as_svg(canvas)


def short(name: str) -> str:
    """Return a name that fits beside an axis."""
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"


def confusion_table(label: Array, predicted: Array, classes: Sequence[str]) -> str:
    """Draw what each of K classes is taken for, as an `<svg>` element; dark is a large share.

    Args:
        label: (N,), the place of each record's class.
        predicted: (N,), the place of the class that it is taken for.
        classes: Their K names.
    """
    names, count = [short(name) for name in classes], len(classes)
    table = np.bincount(label * count + predicted, minlength=count**2).reshape(count, count)
    share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    size = 1.9 + 0.55 * count
    with drawing(width=max(6.4, size + 0.8), height=size) as drawn:
        drawn.axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for (row, column), number in np.ndenumerate(table):
            color = "white" if share[row, column] > 0.5 else "#1d2630" if number else "#b9c0c7"
            drawn.axes.text(column, row, str(number), ha="center", va="center", color=color)
        places = np.arange(count)
        drawn.axes.set_xticks(
            places, names, rotation=35, ha="right", rotation_mode="anchor", parse_math=False
        )
        # A dollar sign in a name is not the beginning of a formula.
        drawn.axes.set_yticks(places, names, parse_math=False)
        drawn.axes.set(xlabel="named by the model", ylabel="true class")
        drawn.axes.grid(visible=False)
    return drawn.svg


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
