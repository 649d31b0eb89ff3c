"""Figures of the classification report: what is found at what price, honesty, and the mistakes."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from html import escape

import numpy as np

from pegboard.plotting import PALETTE, confusion_table, drawing
from pegboard.records import Array, Evaluation, Figure, Rows, Sample, Thresholds
from pegboard_medical import planes
from pegboard_medical.classification.metrics import (
    acted_on,
    calibration_error,
    found_and_spared,
    pictures,
    reliability,
    roc_auc,
    trade_off,
)
from pegboard_medical.classification.settings import ClassificationSettings

GREY = PALETTE[5]

SHOWN = 6
"""Findings of each kind of mistake."""


def draw(settings: ClassificationSettings, evaluation: Evaluation) -> list[Figure]:
    """Draw the curves of model and baselines, then where the model's own mistakes are."""
    rows, thresholds = evaluation.rows, evaluation.thresholds
    figures = [
        operating_curve(evaluation),
        reliability_diagram(evaluation),
        confusion(settings, rows),
        worst_mistakes(settings, rows, thresholds),
    ]
    return [figure for figure in figures if figure is not None]


# --- Curves ---------------------------------------------------------------------------------------


def operating_curve(evaluation: Evaluation) -> Figure:
    """Sensitivity against false alarms at every threshold; the chosen ones are marked."""
    with drawing(width=5.4, height=4.6) as drawn:
        for one in (evaluation, *evaluation.baselines):
            _, found, alarmed = trade_off(one.rows)
            label = f"{one.name}, area {roc_auc(one.rows):.3f}"
            (line,) = drawn.axes.plot(alarmed, found, label=label)
            sensitivity, specificity = found_and_spared(one.rows, one.thresholds)
            drawn.axes.plot(
                1 - specificity,
                sensitivity,
                marker="o",
                markersize=7,
                color=line.get_color(),
                clip_on=False,
            )
        drawn.axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="a coin")
        drawn.axes.set(
            xlim=(0, 1),
            ylim=(0, 1),
            xlabel="share of harmless findings that is acted on",
            ylabel="share of positive findings that is found",
        )
        drawn.axes.legend(loc="lower right")
    return Figure(
        name="operating_curve",
        title="What is found, and at which price",
        caption="Up and to the left is better. Every point of a curve is a threshold; the dot is "
        "the one that was chosen on the validation split.",
        content=drawn.svg,
    )


def reliability_diagram(evaluation: Evaluation) -> Figure:
    """What comes true of scores alike, by bins."""
    with drawing(width=5.4, height=4.6) as drawn:
        drawn.axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="what is said comes true")
        for one in (evaluation, *evaluation.baselines):
            score, share, count = reliability(one.rows)
            label = f"{one.name}, error {calibration_error(one.rows):.3f}"
            (line,) = drawn.axes.plot(score, share, label=label)
            sizes = 20 + 180 * count / max(1, count.sum())
            drawn.axes.scatter(score, share, s=sizes, color=line.get_color(), clip_on=False)
        drawn.axes.set(
            xlim=(0, 1),
            ylim=(0, 1),
            xlabel="mean score",
            ylabel="share that is positive",
        )
        drawn.axes.legend(loc="upper left")
    return Figure(
        name="reliability",
        title="Whether scores can be taken for probabilities",
        caption="Findings in bins of alike scores; the larger a dot, the more there are. Below the "
        "dotted line the score says too much, above it too little.",
        content=drawn.svg,
    )


def confusion(settings: ClassificationSettings, rows: Rows) -> Figure | None:
    """What each class is taken for; nothing where there are but two."""
    if len(settings.data.classes) < 3:
        return None
    return Figure(
        name="confusion",
        title="What is taken for what",
        caption="Findings of each true class, by the class that the model finds likeliest; dark is "
        "a large share of the row.",
        content=confusion_table(rows["label"], rows["predicted"], settings.data.classes),
    )


# --- Pictures -------------------------------------------------------------------------------------


def worst_mistakes(settings: ClassificationSettings, rows: Rows, thresholds: Thresholds) -> Figure:
    """The positive findings of lowest and the harmless ones of highest score, decided wrong."""
    reached, positive = acted_on(rows, thresholds), rows["positive"] == 1
    order = np.argsort(rows["score"], kind="stable")
    missed = order[(positive & ~reached)[order]][:SHOWN]
    alarmed = order[(~positive & reached)[order]][::-1][:SHOWN]
    chosen = [int(index) for index in (*missed, *alarmed)]
    return Figure(
        name="worst_mistakes",
        title="The worst mistakes",
        caption="Positive findings that are missed with the lowest scores, then harmless ones that "
        "are acted on with the highest: axial, coronal and sagittal slices through the middle of "
        "what the model sees. cases.csv in the data's folder says which file a key stands for."
        if chosen
        else "Every finding of the test split is decided right.",
        # A row of the report's grid of its own: pictures need the width.
        content="<style>#worst_mistakes { grid-column: 1 / -1; }</style>"
        '<div style="display: grid; gap: 1rem; margin: .5rem 0;'
        ' grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr))">'
        + "".join(_tiles(settings, rows, chosen))
        + "</div>",
    )


def _tiles(settings: ClassificationSettings, rows: Rows, chosen: Sequence[int]) -> Iterator[str]:
    classes = settings.data.classes
    for index in chosen:
        true, positive = classes[rows["label"][index]], rows["positive"][index]
        verdict = "missed" if positive else "acted on in vain"
        yield (
            f'<div><img alt="{verdict}" style="width: 100%; image-rendering: auto" '
            f'src="data:image/png;base64,{_encoded(rows["picture"][index])}">'
            '<div style="font-size: .85rem; line-height: 1.4; overflow-wrap: anywhere">'
            f'<b class="bad">{verdict}</b>, score {rows["score"][index]:.3f}<br>'
            f"true: {escape(true)}<br><small>{escape(str(rows['key'][index]))}</small>"
            "</div></div>"
        )


def _encoded(picture: Array) -> str:
    """Return slices uint8 (P, h, w) beside one another, as a PNG in base64."""
    return base64.b64encode(planes.png_of(_beside(picture))).decode()


def _beside(slices: Array) -> Array:
    """uint8 (P, h, w) -> (h, w', 3)."""
    return planes.beside([np.repeat(one[:, :, None], 3, axis=2) for one in slices])


def sample_picture(settings: ClassificationSettings, sample: Sample) -> Array:
    """Return the middle slices of a sample as uint8 (h, w, 3)."""
    return _beside(pictures(settings, sample.inputs["image"]))
