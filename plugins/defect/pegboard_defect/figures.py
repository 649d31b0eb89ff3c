"""Figures of the inspection report: the trade-off, where mistakes are, and the pictures to see."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

from pegboard.errors import DataError
from pegboard.plotting import PALETTE, Drawing, confusion_table, drawing, short
from pegboard.records import Array, Evaluation, Figure, Rows, Thresholds
from pegboard_defect.metrics import escape_and_overkill, rejected, trade_off
from pegboard_defect.settings import DefectSettings

GOOD, DEFECT, GREY = PALETTE[0], PALETTE[1], PALETTE[5]

MOST_BARS = 12
"""Lots that are drawn, those with the most mistakes first."""

SHOWN = 6
"""Pictures of each kind of mistake."""

UNCERTAIN = 12
"""Least certain pictures that are shown."""

THUMBNAIL = 160
"""Longest side of a picture in the report, in pixels."""

RAMP = np.array([[0, 0, 4], [120, 28, 109], [237, 105, 37], [252, 255, 164]], dtype=np.float64)
"""Colours of a heat map from cold to hot, told apart in grey as well."""


def draw(settings: DefectSettings, evaluation: Evaluation) -> list[Figure]:
    """Draw the curves of model and baselines, then where the model's own mistakes are."""
    rows, thresholds = evaluation.rows, evaluation.thresholds
    figures = [
        trade_off_curve(evaluation),
        scores(rows, thresholds),
        by_class(settings, rows, thresholds),
        by_lot(rows, thresholds),
        confusion(settings, rows),
        worst_mistakes(settings, rows, thresholds),
        least_certain(settings, rows, thresholds),
    ]
    return [figure for figure in figures if figure is not None]


# --- Curves ---------------------------------------------------------------------------------------


def trade_off_curve(evaluation: Evaluation) -> Figure:
    """Escapes against overkill at every threshold; the chosen ones are marked."""
    with drawing() as drawn:
        for one in (evaluation, *evaluation.baselines):
            _, escaped, overkill = trade_off(one.rows)
            (line,) = drawn.axes.plot(overkill, escaped, label=one.name)
            chosen = escape_and_overkill(one.rows, one.thresholds)
            drawn.axes.plot(
                chosen[1],
                chosen[0],
                marker="o",
                markersize=7,
                color=line.get_color(),
                clip_on=False,
            )
        _use_root_scale(drawn)
        drawn.axes.set(
            xlabel="overkill (share of good parts that are rejected)",
            ylabel="escapes (share of defects that pass)",
        )
        drawn.axes.legend()
    return Figure(
        name="trade_off",
        title="What passes and what is rejected in vain",
        caption="Down and to the left is better. Every point of a curve is a threshold; the dot is "
        "the one that was chosen on the validation split. Both axes are stretched near 0.",
        content=drawn.svg,
    )


def _use_root_scale(drawn: Drawing) -> None:
    ticks = (0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1)
    labels = [f"{100 * tick:g} %" for tick in ticks]
    drawn.axes.set_xscale("function", functions=(_root, np.square))
    drawn.axes.set_yscale("function", functions=(_root, np.square))
    drawn.axes.set_xticks(ticks, labels)
    drawn.axes.set_yticks(ticks, labels)
    drawn.axes.set(xlim=(0, 1), ylim=(0, 1))


def _root(value: Array) -> Array:
    # Matplotlib asks outside the axes as well.
    return np.sqrt(np.maximum(value, 0))


def scores(rows: Rows, thresholds: Thresholds, bins: int = 40) -> Figure:
    """How the scores of good and defective parts lie about the threshold."""
    edges = np.linspace(0, 1, bins + 1)
    with drawing() as drawn:
        for value, name, color in ((0, "good", GOOD), (1, "defective", DEFECT)):
            count, _ = np.histogram(rows["score"][rows["defective"] == value], edges)
            drawn.axes.stairs(count, edges, color=color, linewidth=1.8)
            drawn.axes.stairs(count, edges, color=color, fill=True, alpha=0.35, label=name)
        threshold = min(thresholds["defect"], 1.0)
        drawn.axes.axvline(threshold, color=GREY, linestyle=":", label="threshold")
        drawn.axes.set_yscale("symlog", linthresh=1)
        drawn.axes.yaxis.set_major_formatter("{x:.0f}")
        drawn.axes.set(xlim=(0, 1), ylim=(0, None), xlabel="score", ylabel="pictures (logarithmic)")
        # Above the axes: every corner may be full of bars.
        drawn.axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3)
    return Figure(
        name="scores",
        title="How far good and defective parts lie apart",
        caption="Good parts to the right of the dotted line are rejected, defective ones to the "
        "left of it pass.",
        content=drawn.svg,
    )


# --- Classes and lots -----------------------------------------------------------------------------


def by_class(settings: DefectSettings, rows: Rows, thresholds: Thresholds) -> Figure | None:
    """Escapes of each defect class; nothing where there is only one."""
    defective = rows["defective"] == 1
    present = [int(label) for label in np.unique(rows["label"][defective])]
    if len(present) < 2:
        return None
    passed = ~rejected(rows, thresholds)
    bars = []
    for label in present:
        among = defective & (rows["label"] == label)
        bars.append((settings.data.classes[label], int(passed[among].sum()), int(among.sum())))
    bars.sort(key=lambda bar: -bar[1] / bar[2])
    with drawing(height=1.2 + 0.4 * len(bars)) as drawn:
        _draw_bars(drawn, bars, DEFECT)
        drawn.axes.set(xlabel="escapes (share of the class's defects that pass)")
    return Figure(
        name="by_class",
        title="Which defects pass",
        caption="At the chosen threshold. A class that few parts have says little.",
        content=drawn.svg,
    )


def by_lot(rows: Rows, thresholds: Thresholds) -> Figure | None:
    """Escapes and overkill of each lot; nothing where there is only one."""
    names, place = np.unique(rows["lot"], return_inverse=True)
    if len(names) < 2:
        return None
    defective, reached = rows["defective"] == 1, rejected(rows, thresholds)
    escaped, defects = _counted(place, defective & ~reached), _counted(place, defective)
    killed, goods = _counted(place, ~defective & reached), _counted(place, ~defective)
    worst = np.argsort(-(escaped + killed), kind="stable")[:MOST_BARS]
    names = np.where(names == "", "no lot named", names)
    with drawing(height=1.4 + 0.55 * len(worst)) as drawn:
        for color, name, count, of, shift in (
            (DEFECT, "escapes", escaped, defects, -0.2),
            (GOOD, "overkill", killed, goods, 0.2),
        ):
            bars = [(str(names[lot]), int(count[lot]), int(of[lot])) for lot in worst]
            _draw_bars(drawn, bars, color, label=name, thickness=0.36, shift=shift)
        drawn.axes.set(xlabel="share of the lot's defective and of its good parts")
        drawn.axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    left_out = len(names) - len(worst)
    return Figure(
        name="by_lot",
        title="Which lots go wrong",
        caption="At the chosen threshold, the lots with the most mistakes first. A lot that stands "
        "out has another light, another supplier, or another defect."
        + (f" {left_out} lots with fewer mistakes are left out." if left_out else ""),
        content=drawn.svg,
    )


def _counted(place: Array, which: Array) -> Array:
    return np.bincount(place[which], minlength=int(place.max()) + 1)


def _draw_bars(
    drawn: Drawing,
    bars: Sequence[tuple[str, int, int]],
    color: str,
    *,
    label: str = "",
    thickness: float = 0.6,
    shift: float = 0.0,
) -> None:
    """Draw horizontal bars, each of a name, a count and what it is a share of, downwards."""
    places = np.arange(len(bars))
    shares = [100 * count / of if of else 0.0 for _, count, of in bars]
    drawn.axes.barh(places + shift, shares, thickness, color=color, label=label or None)
    for y, share, (_, count, of) in zip(places + shift, shares, bars, strict=True):
        text = f"{count} of {of}" if of else "none seen"
        drawn.axes.annotate(
            text, (share, y), (4, 0), textcoords="offset points", va="center", fontsize=8.5
        )
    # A dollar sign in a name is not the beginning of a formula.
    drawn.axes.set_yticks(places, [short(name) for name, _, _ in bars], parse_math=False)
    drawn.axes.set_ylim(len(bars) - 0.4, -0.6)
    most = max([drawn.axes.get_xlim()[1] / 1.2, *shares, 5.0])
    drawn.axes.set_xlim(0, 1.2 * most)
    drawn.axes.xaxis.set_major_formatter(lambda value, _: f"{value:.3g} %" if value <= 100 else "")
    drawn.axes.grid(axis="y", visible=False)


def confusion(settings: DefectSettings, rows: Rows) -> Figure | None:
    """What each class is taken for; nothing where the model names no classes."""
    if len(settings.data.classes) < 3 or settings.model.task == "anomaly":
        return None
    return Figure(
        name="confusion",
        title="What is taken for what",
        caption="Pictures of each true class, by the class that the model finds likeliest; dark is "
        "a large share of the row. Whether a part is rejected is up to the threshold.",
        content=confusion_table(rows["label"], rows["predicted"], settings.data.classes),
    )


# --- Pictures -------------------------------------------------------------------------------------


def worst_mistakes(settings: DefectSettings, rows: Rows, thresholds: Thresholds) -> Figure:
    """The defective parts of lowest and the good ones of highest score that are decided wrong."""
    reached, defective = rejected(rows, thresholds), rows["defective"] == 1
    order = np.argsort(rows["score"], kind="stable")
    escaped = order[(defective & ~reached)[order]][:SHOWN]
    killed = order[(~defective & reached)[order]][::-1][:SHOWN]
    chosen = [*escaped, *killed]
    return _gallery(
        settings,
        rows,
        thresholds,
        chosen,
        name="worst_mistakes",
        title="The worst mistakes",
        caption="Defective parts that pass with the lowest scores, then good ones that are "
        "rejected with the highest."
        if chosen
        else "Every part of the test split is decided right.",
    )


def least_certain(settings: DefectSettings, rows: Rows, thresholds: Thresholds) -> Figure:
    """The parts whose scores are nearest to the threshold."""
    distance = np.abs(rows["score"] - np.float32(thresholds["defect"]))
    return _gallery(
        settings,
        rows,
        thresholds,
        list(np.argsort(distance, kind="stable")[:UNCERTAIN]),
        name="least_certain",
        title="The least certain parts",
        caption="Scores nearest to the threshold, right or wrong: the first to have a second look "
        "at.",
    )


def _gallery(
    settings: DefectSettings,
    rows: Rows,
    thresholds: Thresholds,
    chosen: Sequence[int],
    *,
    name: str,
    title: str,
    caption: str,
) -> Figure:
    tiles = [_tile(settings, rows, thresholds, index) for index in chosen]
    there = [tile for tile in tiles if tile]
    gone = len(tiles) - len(there)
    if there:
        caption += " Beside each picture the same under its heat map."
    if gone:
        pictures = "1 picture is" if gone == 1 else f"{gone} pictures are"
        caption += f" {pictures} not there any more and left out."
    return Figure(
        name=name,
        title=title,
        caption=caption,
        # A row of the report's grid of its own: pictures need the width.
        content=f"<style>#{name} {{ grid-column: 1 / -1; }}</style>"
        '<div style="display: grid; gap: 1rem; margin: .5rem 0;'
        ' grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr))">'
        + "".join(there)
        + "</div>",
    )


def _tile(settings: DefectSettings, rows: Rows, thresholds: Thresholds, index: int) -> str:
    """One picture, plain and under its heat map, with what is known of it; empty if it is gone."""
    from pegboard_defect.data import picture_of

    key = str(rows["key"][index])
    try:
        picture = picture_of(settings, key)
    except (DataError, OSError):
        return ""
    plain = thumbnail(picture)
    heated = overlay(plain, rows["heat"][index], thresholds["pixel"])
    reached = bool(rejected(rows, thresholds)[index])
    return (
        f'<div><div style="display: flex; gap: 4px">{_img(plain, "picture")}'
        f"{_img(heated, 'heat map')}</div>"
        f'<div style="font-size: .85rem; line-height: 1.4; overflow-wrap: anywhere">'
        f"{_verdict(bool(rows['defective'][index]), reached)}, score {rows['score'][index]:.3f}<br>"
        f"{escape(_classes(settings, rows, index))}<br><small>{escape(_place(rows, index))}</small>"
        "</div></div>"
    )


def _verdict(defective: bool, reached: bool) -> str:
    if defective == reached:
        return f'<b class="good">{"rejected" if reached else "accepted"}, rightly</b>'
    return f'<b class="bad">{"escape" if defective else "overkill"}</b>'


def _classes(settings: DefectSettings, rows: Rows, index: int) -> str:
    classes = settings.data.classes
    true = f"true: {classes[rows['label'][index]]}"
    if settings.model.task == "anomaly":
        return true
    return f"{true}, predicted: {classes[rows['predicted'][index]]}"


def _place(rows: Rows, index: int) -> str:
    key, lot = str(rows["key"][index]), str(rows["lot"][index])
    return f"{key}, lot {lot}" if lot else key


def _img(picture: Array, alt: str) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=85)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    style = "width: calc(50% - 2px); object-fit: contain"
    return f'<img alt="{alt}" style="{style}" src="data:image/jpeg;base64,{encoded}">'


def thumbnail(picture: Array, side: int = THUMBNAIL) -> Array:
    """Return a picture (H, W, 1) or (H, W, 3) as uint8 (h, w, 3), no side longer than `side`."""
    image = Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture).convert("RGB")
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.asarray(image)


def overlay(picture: Array, heat: Array, threshold: float) -> Array:
    """Lay a heat map over a picture.

    Args:
        picture: (H, W, 3) uint8.
        heat: A coarse map of any size, uint8.
        threshold: The map value from which on a place counts as defective: there the colour is
            half as strong as it gets; below half of it there is none.

    Returns:
        (H, W, 3) uint8.
    """
    height, width = picture.shape[:2]
    fine = np.asarray(Image.fromarray(heat).resize((width, height), Image.Resampling.BILINEAR))
    strength = np.clip(fine / 255 / max(2 * threshold, 1 / 255), 0, 1)
    places = np.linspace(0, 1, len(RAMP))
    color = np.stack([np.interp(strength, places, channel) for channel in RAMP.T], axis=-1)
    share = 0.75 * np.clip(2 * strength[:, :, None] - 0.5, 0, 1)
    blended: Array = (picture * (1 - share) + color * share).round().astype(np.uint8)
    return blended
