"""Figures of the report: how far down the right answer stands, and the queries to look at."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

from pegboard.errors import DataError
from pegboard.plotting import PALETTE, confusion_table, drawing
from pegboard.records import Array, Evaluation, Figure, Rows
from pegboard_clip.data import PairDataset, load
from pegboard_clip.metrics import RANKS, recall
from pegboard_clip.settings import ClipSettings

WORST, TYPICAL = 8, 8
"""Queries that are shown: those whose picture stands furthest down, and evenly spaced ones."""
DEEPEST = 50
"""The last rank of the curves."""
SIDE = 96
"""Pixels of a picture in the report."""
MOST_CLASSES = 24
"""Classes of a table that can still be read."""

WIDE = "<style>#{name} {{ grid-column: 1 / -1; }}</style>"
"""A row of the report's grid of its own: pictures need the width."""


def draw(settings: ClipSettings, evaluation: Evaluation) -> list[Figure]:
    """Draw the model beside its baselines, then single queries, then classes."""
    figures = [recall_curve(evaluation, column) for column in RANKS]
    try:
        data = load(settings, "test")
    except (DataError, OSError):  # The data may be gone by the time a report is written again.
        return figures
    order = np.argsort(-evaluation.rows["text_rank"], kind="stable")
    spaced = order[np.linspace(0, len(order) - 1, min(TYPICAL, len(order))).round().astype(int)]
    figures += [
        queries(
            data,
            evaluation.rows,
            order[:WORST],
            name="worst_queries",
            title="The captions that find their picture last",
            caption="Framed: the caption's own picture. Where others fit the caption as well, the "
            "data are to blame and not the model.",
        ),
        queries(
            data,
            evaluation.rows,
            spaced[::-1],
            name="queries",
            title="Captions from the best to the worst",
            caption="Evenly spaced by the rank of their own picture.",
        ),
    ]
    confusion = _confusion(data, evaluation.rows)
    return [*figures, confusion] if confusion else figures


# --- Curves ---------------------------------------------------------------------------------------


def recall_curve(evaluation: Evaluation, column: str) -> Figure:
    """Recall against the number of answers that are looked at, beside chance."""
    name, words = RANKS[column]
    pictures = len(np.unique(evaluation.rows["image_id"]))
    tops = np.arange(1, min(DEEPEST, pictures) + 1)
    with drawing() as drawn:
        for one, color in zip((evaluation, *evaluation.baselines), PALETTE, strict=False):
            shares = [100 * recall(one.rows[column], int(top)) for top in tops]
            drawn.axes.plot(tops, shares, label=one.name, color=color)
        chance = 100 * np.minimum(tops / pictures, 1)
        drawn.axes.plot(tops, chance, label="chance", color="#9aa3ad", linestyle=":")
        drawn.axes.set(xlabel="first answers", xlim=(1, max(2, tops[-1])), ylim=(0, 100))
        drawn.axes.set_ylabel(f"{words.split()[0]} found among them")
        drawn.axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
        drawn.axes.legend()
    direction = name.replace("_", " ")
    return Figure(
        name=f"{name}_recall",
        title=f"Recall, {direction}",
        caption=f"Share of {words} among the first answers, of all {pictures} pictures of the test "
        "split.",
        content=drawn.svg,
    )


# --- Queries --------------------------------------------------------------------------------------


def queries(
    data: PairDataset,
    rows: Rows,
    chosen: Sequence[int] | Array,
    *,
    name: str,
    title: str,
    caption: str,
) -> Figure:
    """Captions, each with the pictures that it found first and its own."""
    body = "".join(_query(data, rows, int(row)) for row in chosen)
    return Figure(name=name, title=title, caption=caption, content=WIDE.format(name=name) + body)


def _query(data: PairDataset, rows: Rows, row: int) -> str:
    own, rank = int(rows["image_id"][row]), int(rows["text_rank"][row])
    found = [int(image) for image in rows["found"][row]]
    pictures = [_picture(data, image, is_own=image == own) for image in found]
    if own not in found:
        pictures += [f"<span>… {rank}:</span>", _picture(data, own, is_own=True)]
    text = escape(data.captions[int(rows["caption_id"][row])])
    return (
        '<div style="display: flex; align-items: center; gap: 6px; margin: .4rem 0">'
        f'<div style="width: 16rem; flex: none">{text}<br><small>rank {rank}</small></div>'
        f"{''.join(pictures)}</div>"
    )


def _picture(data: PairDataset, image: int, *, is_own: bool) -> str:
    buffer = io.BytesIO()
    small = Image.fromarray(data.image(image))
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    small.save(buffer, format="JPEG", quality=85)
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    frame = "3px solid #3f8f5f" if is_own else "3px solid transparent"
    name = escape(data.image_keys[image])
    return (
        f'<img alt="{name}" title="{name}" style="border: {frame}; border-radius: 4px; '
        f'width: {SIDE // 16}rem" src="data:image/jpeg;base64,{encoded}">'
    )


# --- Classes --------------------------------------------------------------------------------------


def _confusion(data: PairDataset, rows: Rows) -> Figure | None:
    """What each class is taken for without having been trained for it; None without classes."""
    told = (rows["label_found"] >= 0) & (rows["label"] >= 0)
    if not told.any() or len(data.labels) > MOST_CLASSES:
        return None
    return Figure(
        name="zero_shot",
        title="Zero-shot: what is taken for what",
        caption="Pictures of each label, by the class whose prompts are most similar; dark is a "
        "large share of the row.",
        content=confusion_table(rows["label"][told], rows["label_found"][told], data.labels),
    )
