"""Figures of the segmentation report: overlap, volumes, lesions, and the cases to look at."""

from __future__ import annotations

import base64
from html import escape

import numpy as np

from pegboard.plotting import PALETTE, Drawing, drawing, short
from pegboard.records import Array, Evaluation, Figure, Rows
from pegboard_medical import lesions, planes
from pegboard_medical.metrics import unpacked
from pegboard_medical.settings import SegmentationSettings

GREY = PALETTE[5]

WORST = 6
"""Cases with the least overlap that are shown."""

TYPICAL = 3
"""Cases of middling overlap that are shown."""

TRUE, FOUND, BOTH = (70, 190, 255), (255, 150, 0), (255, 255, 255)
"""Colours of outlines: the true one, the one found, and where they coincide."""

WIDE = 20.0
"""Largest volume over smallest from which on axes are logarithmic."""


def draw(settings: SegmentationSettings, evaluation: Evaluation) -> list[Figure]:
    """Draw model and baselines, then what the model made of single cases."""
    figures = [
        overlap(settings, evaluation),
        volumes(settings, evaluation.rows),
        free_response(settings, evaluation) if settings.model.lesions else None,
        cases(settings, evaluation.rows),
    ]
    return [figure for figure in figures if figure is not None]


# --- Numbers --------------------------------------------------------------------------------------


def overlap(settings: SegmentationSettings, evaluation: Evaluation) -> Figure:
    """Dice of every case, by structure; model and baselines beside one another."""
    names = settings.data.classes
    every = (evaluation, *evaluation.baselines)
    thickness = 0.8 / len(every)
    with drawing(height=1.5 + 0.45 * len(names) * len(every)) as drawn:
        for number, one in enumerate(every):
            color = PALETTE[number % len(PALETTE)]
            for place, name in enumerate(names):
                middle = place + (number + 0.5) * thickness - 0.4
                _draw_strip(drawn, one.rows[f"dice:{name}"], middle, thickness, color)
            drawn.axes.plot([], [], "o", color=color, label=one.name)
        # A dollar sign in a name is not the beginning of a formula.
        drawn.axes.set_yticks(range(len(names)), [short(name) for name in names], parse_math=False)
        drawn.axes.set(xlim=(-0.02, 1.02), ylim=(len(names) - 0.5, -0.5), xlabel="Dice")
        drawn.axes.grid(axis="y", visible=False)
        drawn.axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    return Figure(
        name="overlap",
        title="How well found and true structures overlap",
        caption="Every dot is a case, the bar the median; to the right is better. Dots far to the "
        "left of the others are the cases to look at below.",
        content=drawn.svg,
    )


def _draw_strip(drawn: Drawing, values: Array, middle: float, thickness: float, color: str) -> None:
    """Draw defined values as dots along a line, their median as a bar across it."""
    defined = np.sort(values[np.isfinite(values)])
    if not len(defined):
        return
    # Neighbours in value are set apart; the golden ratio never repeats itself.
    shift = ((np.arange(len(defined)) * 0.618) % 1 - 0.5) * 0.6 * thickness
    drawn.axes.plot(
        defined, middle + shift, "o", color=color, markersize=4, alpha=0.5, markeredgewidth=0
    )
    drawn.axes.vlines(
        np.median(defined),
        middle - 0.42 * thickness,
        middle + 0.42 * thickness,
        color="#1d2630",
        linewidth=2.5,
        zorder=3,
    )


def volumes(settings: SegmentationSettings, rows: Rows) -> Figure | None:
    """Volumes found against true ones; nothing where no case has a structure."""
    names = settings.data.classes
    pairs = [(rows[f"true_ml:{name}"], rows[f"volume_ml:{name}"]) for name in names]
    both = np.concatenate([np.stack(pair)[:, np.isfinite(pair[0])] for pair in pairs], axis=1)
    positive = both[both > 0]
    if not len(positive):
        return None
    low, high = float(positive.min()), float(positive.max())
    is_wide = high > WIDE * low
    ends = (low / 2, high * 1.6) if is_wide else (0.0, high * 1.05)
    with drawing(width=5.4, height=4.4) as drawn:
        drawn.axes.plot(ends, ends, color=GREY, linestyle=":", label="equal")
        for number, (name, (true, found)) in enumerate(zip(names, pairs, strict=True)):
            drawn.axes.plot(
                # What is not there, or not found, has no logarithm: it lies on the axis.
                np.maximum(true, ends[0]),
                np.maximum(found, ends[0]),
                "o",
                color=PALETTE[number % len(PALETTE)],
                alpha=0.6,
                markersize=5,
                markeredgewidth=0,
                clip_on=False,
                label=short(name).replace("$", r"\$"),
            )
        if is_wide:
            drawn.axes.set_xscale("log")
            drawn.axes.set_yscale("log")
            for axis in (drawn.axes.xaxis, drawn.axes.yaxis):
                axis.set_major_formatter("{x:g}")
        drawn.axes.set(xlim=ends, ylim=ends, xlabel="true volume (ml)", ylabel="found volume (ml)")
        drawn.axes.set_aspect("equal")
        drawn.axes.legend()
    caption = "Every dot is a case. Above the dotted line too much is marked, below it too little."
    if is_wide:
        caption += (
            " Both axes are logarithmic; dots on the lower edge are missed, those on the left one"
            " marked where nothing is."
        )
    return Figure(
        name="volumes",
        title="How large structures are found to be",
        caption=caption,
        content=drawn.svg,
    )


def free_response(settings: SegmentationSettings, evaluation: Evaluation) -> Figure | None:
    """Recall of lesions by false ones a case; nothing where there are no lesions."""
    names = settings.data.classes
    drawn_any = False
    ticks = np.array(lesions.RATES)
    rates = 2 ** np.linspace(-3, 3, 200)
    with drawing() as drawn:
        for number, one in enumerate((evaluation, *evaluation.baselines)):
            for kind, name in enumerate(names):
                line = _read_curve(one.rows, name, rates)
                if line is None:
                    continue
                drawn_any = True
                label = one.name if len(names) == 1 else f"{one.name}, {short(name)}"
                color = PALETTE[number % len(PALETTE)]
                drawn.axes.plot(
                    rates,
                    line,
                    color=color,
                    linestyle=("-", "--", ":", "-.")[kind % 4],
                    label=label.replace("$", r"\$"),
                )
                _mark_answer(drawn, one.rows, name, color)
        drawn.axes.set_xscale("log", base=2)
        drawn.axes.set_xticks(ticks, ["1/8", "1/4", "1/2", "1", "2", "4", "8"])
        drawn.axes.set(xlim=(1 / 8, 8), ylim=(0, 1.02))
        drawn.axes.set(xlabel="false lesions a case", ylabel="lesions found (share)")
        if drawn_any:
            drawn.axes.legend(loc="lower right")
    if not drawn_any:
        return None
    return Figure(
        name="free_response",
        title="Lesions found, and what else is marked",
        caption="Up and to the left is better: every point of a curve is a score that a region has "
        "to reach (FROC). A dot is what the mask itself marks; on an edge of the picture it lies "
        "at that edge or beyond. A lesion counts as found from an intersection over union of "
        f"{lesions.OVERLAP:g} on.",
        content=drawn.svg,
    )


def _read_curve(rows: Rows, name: str, rates: Array) -> Array | None:
    false, recall = lesions.curve(
        rows[f"found_at:{name}"], rows[f"false_at:{name}"], rows[f"lesions:{name}"]
    )
    return lesions.recall_at(false, recall, rates) if np.isfinite(recall).all() else None


def _mark_answer(drawn: Drawing, rows: Rows, name: str, color: str) -> None:
    there = np.nansum(rows[f"lesions:{name}"])
    cases = int(np.isfinite(rows[f"lesions:{name}"]).sum())
    false = np.nansum(rows[f"false:{name}"]) / cases
    recall = np.nansum(rows[f"found:{name}"]) / there
    place = float(np.clip(false, 1 / 8, 8))
    drawn.axes.plot(place, recall, "o", color=color, markersize=7, clip_on=False)


# --- Pictures -------------------------------------------------------------------------------------


def cases(settings: SegmentationSettings, rows: Rows) -> Figure | None:
    """The cases of least and of middling overlap; nothing where none is defined."""
    score = case_scores(settings, rows)
    order = np.argsort(score, kind="stable")[: int(np.isfinite(score).sum())]
    if not len(order):
        return None
    worst = order[:WORST]
    rest = order[WORST:]
    # About the median of all, as far as they are not among the worst.
    first = int(np.clip(len(order) // 2 - TYPICAL // 2 - WORST, 0, max(0, len(rest) - TYPICAL)))
    typical = rest[first : first + TYPICAL]
    tiles = [_tile(settings, rows, int(index), "worst") for index in worst]
    tiles += [_tile(settings, rows, int(index), "typical") for index in typical]
    return Figure(
        name="cases",
        title="The worst and the typical cases",
        caption="Axial, coronal and sagittal slices through the largest structure, head up, the "
        "patient's left on the right. Blue is the true outline, orange the one found, white "
        "where they coincide. First the cases of least Dice, then those about the median.",
        # A row of the report's grid of its own: pictures need the width.
        content="<style>#cases { grid-column: 1 / -1; }</style>"
        '<div style="display: grid; gap: 1rem; margin: .5rem 0;'
        ' grid-template-columns: repeat(auto-fill, minmax(22rem, 1fr))">'
        + "".join(tiles)
        + "</div>",
    )


def case_scores(settings: SegmentationSettings, rows: Rows) -> Array:
    """Return the mean Dice of each case over its structures, (N,); NaN where none is defined."""
    dice = np.stack([rows[f"dice:{name}"] for name in settings.data.classes])
    defined = np.isfinite(dice)
    count = defined.sum(axis=0)
    total = np.where(defined, dice, 0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _tile(settings: SegmentationSettings, rows: Rows, index: int, kind: str) -> str:
    style = "width: 100%; image-rendering: pixelated"
    encoded = base64.b64encode(planes.png_of(picture_of(rows, index))).decode()
    lines = [_line(settings, rows, name, index) for name in settings.data.classes]
    bold = f'<b class="bad">{kind}</b>' if kind == "worst" else f"<b>{kind}</b>"
    return (
        f'<div><img alt="{kind} case" style="{style}" src="data:image/png;base64,{encoded}">'
        f'<div style="font-size: .85rem; line-height: 1.4; overflow-wrap: anywhere">'
        f"{bold} {'<br>'.join(lines)}<br>"
        f"<small>{escape(str(rows['key'][index]))}, {rows['picture_mm'][index]:.0f} mm wide</small>"
        "</div></div>"
    )


def _line(settings: SegmentationSettings, rows: Rows, name: str, index: int) -> str:
    def number(column: str) -> float:
        return float(rows[f"{column}:{name}"][index])

    dice, distance = number("dice"), number("hd95")
    words = [
        f"{escape(name)}: Dice {dice:.2f}" if np.isfinite(dice) else f"{escape(name)}: not there",
        f"HD95 {distance:.1f} mm" if np.isfinite(distance) else "no HD95",
        f"{number('volume_ml'):.2f} of {number('true_ml'):.2f} ml",
    ]
    if settings.model.lesions:
        words.append(
            f"{number('found'):.0f} of {number('lesions'):.0f} lesions, {number('false'):.0f} false"
        )
    return ", ".join(words)


def picture_of(rows: Rows, index: int) -> Array:
    """Draw a case's three planes with outlines, uint8 (h, w, 3)."""
    true, found = (unpacked(rows[f"{name}_outline"][index]) for name in ("true", "found"))
    drawn = []
    for seen, ours, theirs in zip(rows["picture"][index], found, true, strict=True):
        picture = np.repeat(seen[..., None], 3, axis=2)
        picture[theirs] = TRUE
        picture[ours] = FOUND
        picture[ours & theirs] = BOTH
        drawn.append(picture)
    return planes.beside(drawn)
