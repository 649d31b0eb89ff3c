"""Figures of the report: curves by class, by distance and by points, and the frames to look at."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from pegboard.plotting import PALETTE, drawing, short
from pegboard.records import Array, Evaluation, Figure, Rows, Thresholds
from pegboard_lidar import average_precision as ap
from pegboard_lidar import cloud_page, pictures
from pegboard_lidar.geometry import bev_iou, distances
from pegboard_lidar.metrics import (
    FOUND_METRES,
    MODERATE,
    Criterion,
    overlaps_of,
    unpacked,
)
from pegboard_lidar.settings import LidarSettings

LINES = ("-", "--", ":", "-.")
"""The model's, then those of the baselines; the colour is the class's."""

BANDS = (0.0, 15.0, 30.0, 45.0, 60.0)
"""Metres from the scanner at which bands begin."""

POINTS = (1, 5, 10, 20, 50, 100, 200)
"""Points in a true box at which bars begin."""

WORST = 4
"""Frames with the most mistakes that are shown."""

TYPICAL = 2
"""Frames about the median that can be turned beside them."""

WIDE = "<style>#{name} {{ grid-column: 1 / -1; }}</style>"
"""A row of the report's grid of its own: pictures need the width."""

COLORS = "Blue boxes are true, orange ones found."


def draw(settings: LidarSettings, evaluation: Evaluation) -> list[Figure]:
    """Draw model and baselines, then what the model made of single frames."""
    figures = [
        precision_recall(settings, evaluation),
        by_distance(settings, evaluation),
        by_points(settings, evaluation),
        *frames(settings, evaluation),
    ]
    return [figure for figure in figures if figure is not None]


# --- Curves ---------------------------------------------------------------------------------------


def precision_recall(settings: LidarSettings, evaluation: Evaluation) -> Figure | None:
    """Precision by recall of each class from above; nothing where no object counts."""
    drawn_any = False
    with drawing() as drawn:
        for one, style, place, name, color in _lines(settings, evaluation):
            curve = _curve(one.rows, name)
            if curve is None:
                continue
            drawn_any = True
            recall, precision, scores = curve
            label = _label(name, one, place)
            drawn.axes.plot(recall, precision, color=color, linestyle=style, label=label)
            above = scores >= one.thresholds.get(f"score_{name}", 0.0)
            if above.any():
                last = int(np.flatnonzero(above)[-1])
                drawn.axes.plot(recall[last], precision[last], "o", color=color, markersize=6)
        drawn.axes.set(xlim=(0, 1.02), ylim=(0, 1.04), xlabel="recall", ylabel="precision")
        drawn.axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    overlaps = ", ".join(f"{overlaps_of(name)[0]:g} for {name}" for name in settings.data.classes)
    return (
        Figure(
            name="precision_recall",
            title="What is found, and how much of it is there",
            caption="Up and to the right is better. An object of moderate difficulty is found where the "
            f"boxes overlap enough from above ({overlaps}). The dot is the score that the validation "
            "split chose; dashed lines are baselines.",
            content=drawn.svg,
        )
        if drawn_any
        else None
    )


def _lines(
    settings: LidarSettings, evaluation: Evaluation
) -> Iterator[tuple[Evaluation, str, int, str, str]]:
    """Yield model and baselines with their line, and every class with its place and colour."""
    for number, one in enumerate((evaluation, *evaluation.baselines)):
        for place, name in enumerate(settings.data.classes):
            yield one, LINES[number % len(LINES)], place, name, PALETTE[place % len(PALETTE)]


def _label(name: str, one: Evaluation, place: int) -> str:
    """A dollar sign in a name is not the beginning of a formula."""
    return f"{short(name)}, {one.name}".replace("$", r"\$")


def _curve(rows: Rows, name: str) -> tuple[Array, Array, Array] | None:
    """Return recall, precision and score from the surest detection on; None without objects."""
    objects = float(rows[f"objects:{name}"][:, MODERATE].sum())
    if not objects:
        return None
    criterion = Criterion(kind="bev", limit=overlaps_of(name)[0])
    scores, matched = rows[f"scores:{name}"], rows[criterion.column(name)][:, :, MODERATE]
    there = scores >= 0
    thresholds = np.unique(scores[there].astype(np.float64))[::-1]
    hits, false = ap.counts_at(scores[there].astype(np.float64), matched[there], thresholds)
    told = hits + false > 0  # What is ignored before the first that counts says nothing.
    hits, false = hits[told], false[told]
    return hits / objects, hits / (hits + false), thresholds[told]


# --- Bars -----------------------------------------------------------------------------------------


def by_distance(settings: LidarSettings, evaluation: Evaluation) -> Figure | None:
    """Average precision of each class in bands of the distance."""
    ends = [*BANDS[1:], np.inf]
    names = [f"{low:g}-{high:g}" for low, high in zip(BANDS, BANDS[1:], strict=False)]
    svg = _draw_bands(
        settings,
        evaluation,
        [*names, f"over {BANDS[-1]:g}"],
        lambda rows, place, name: [
            distance_ap(rows, place, overlaps_of(name)[0], low, high)
            for low, high in zip(BANDS, ends, strict=True)
        ],
        xlabel="metres from the scanner",
        ylabel="average precision (BEV)",
    )
    return svg and Figure(
        name="by_distance",
        title="How far it sees",
        caption="Average precision (R40) of objects of moderate difficulty in a band of distances, "
        "from above; what is found outside of the band does not count. A gap: there is no such "
        "object.",
        content=svg,
    )


def _draw_bands(
    settings: LidarSettings,
    evaluation: Evaluation,
    bands: Sequence[str],
    values: Callable[[Rows, int, str], Sequence[float]],
    *,
    xlabel: str,
    ylabel: str,
) -> str | None:
    """Draw a value of every class in every band; nothing where none is defined."""
    drawn_any = False
    places = np.arange(len(bands))
    with drawing() as drawn:
        for one, style, place, name, color in _lines(settings, evaluation):
            line = np.array(values(one.rows, place, name))
            if not np.isfinite(line).any():
                continue
            drawn_any = True
            label = _label(name, one, place)
            drawn.axes.plot(places, line, "o", linestyle=style, color=color, label=label)
        drawn.axes.set_xticks(places, bands)
        drawn.axes.set(ylim=(0, 1.04), xlabel=xlabel, ylabel=ylabel)
        drawn.axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    return drawn.svg if drawn_any else None


def distance_ap(rows: Rows, label: int, overlap: float, low: float, high: float) -> float:
    """Return the average precision of a class from above in a band of distances; NaN without.

    Args:
        rows: Of an evaluation.
        label: Place of the class.
        overlap: That finding an object takes.
        low: Metres at which the band begins.
        high: Metres at which it ends.
    """
    scores, matched, objects = [], [], 0.0
    for frame in _frames_of(rows):
        ours, theirs = frame.labels == label, frame.true_labels == label
        counts = ap.counted(frame.true_difficulty[theirs])
        true, found = frame.true_boxes[theirs], frame.boxes[ours]
        counts &= _is_between(true, low, high)[:, None]
        ignore = np.repeat(~_is_between(found, low, high)[:, None], counts.shape[1], axis=1)
        some = frame.scores[ours].astype(np.float64)
        changes = ap.match_by_overlap(bev_iou(found, true), some, counts, overlap, ignore)
        objects += float(counts[:, MODERATE].sum())
        scores.append(some)
        matched.append(changes[:, MODERATE])
    if not objects:
        return float("nan")
    return ap.r40(
        ap.precision_by_definition(np.concatenate(scores), np.concatenate(matched), objects)
    )


def _is_between(boxes: Array, low: float, high: float) -> Array:
    distance = np.hypot(boxes[:, 0], boxes[:, 1])
    between: Array = (distance >= low) & (distance < high)
    return between


def by_points(settings: LidarSettings, evaluation: Evaluation) -> Figure | None:
    """Recall of each class by the points that an object has; nothing where rows do not tell."""
    if "true_points" not in evaluation.rows:
        return None
    ends = [*POINTS[1:], np.iinfo(np.int64).max]
    names = [f"{low}-{high - 1}" for low, high in zip(POINTS, POINTS[1:], strict=False)]
    svg = _draw_bands(
        settings,
        evaluation,
        [*names, f"{POINTS[-1]} on"],
        lambda rows, place, name: [
            _recall(rows, place, low, high) for low, high in zip(POINTS, ends, strict=True)
        ],
        xlabel="points in the true box",
        ylabel="recall",
    )
    return svg and Figure(
        name="by_points",
        title="How few points it takes",
        caption=f"Share of all objects with so many points that have one found within "
        f"{FOUND_METRES:g} m, whatever its score.",
        content=svg,
    )


def _recall(rows: Rows, label: int, low: int, high: int) -> float:
    found, there = 0, 0
    for frame in _frames_of(rows):
        few = (frame.true_points >= low) & (frame.true_points < high)
        true = frame.true_boxes[few & (frame.true_labels == label)]
        apart = distances(frame.boxes[frame.labels == label], true)
        found += int((apart < FOUND_METRES).any(axis=0).sum())
        there += len(true)
    return found / there if there else float("nan")


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """What a row tells, without its padding."""

    boxes: Array
    scores: Array
    labels: Array
    true_boxes: Array
    true_labels: Array
    true_difficulty: Array
    true_points: Array


def _frames_of(rows: Rows) -> Iterator[_Frame]:
    for index in range(len(rows["key"])):
        yield _frame_of(rows, index)


def _frame_of(rows: Rows, index: int) -> _Frame:
    found = rows["scores"][index] >= 0
    true = np.isfinite(rows["true_boxes"][index, :, 0])
    points = rows["true_points"][index] if "true_points" in rows else np.zeros(len(true), int)
    return _Frame(
        boxes=rows["boxes"][index][found],
        scores=rows["scores"][index][found],
        labels=rows["labels"][index][found],
        true_boxes=rows["true_boxes"][index][true],
        true_labels=rows["true_labels"][index][true],
        true_difficulty=rows["true_difficulty"][index][true],
        true_points=points[true],
    )


# --- Frames ---------------------------------------------------------------------------------------


def frames(settings: LidarSettings, evaluation: Evaluation) -> list[Figure]:
    """The worst frames from above, as the scanner sees one, in space, and to be turned."""
    rows = evaluation.rows
    if not len(rows["key"]):
        return []
    missed, false = mistakes(settings, rows, evaluation.thresholds)
    order = np.argsort(-(missed + false), kind="stable")
    worst = order[:WORST].tolist()
    middle = max(len(order) // 2, len(worst))
    typical = order[middle : middle + TYPICAL].tolist()
    shown = [_Shown(settings, evaluation, index) for index in worst]
    words = [f"{missed[index]} missed, {false[index]} false" for index in worst]
    return [
        Figure(
            name="worst_frames",
            title="The frames with the most mistakes",
            caption=f"From above, ahead is up. {COLORS} Counted as the chosen scores decide, within "
            f"{FOUND_METRES:g} m, objects of moderate difficulty; the others are drawn too.",
            content=_tiles("worst_frames", shown, words),
        ),
        Figure(
            name="range_image",
            title="As the scanner sees the first of them",
            caption="Azimuth across, elevation down; bright is near, black is where nothing came "
            "back.",
            content=pictures.png_of(shown[0].range_image()),
        ),
        Figure(
            name="in_space",
            title="The same in space",
            caption=f"From behind and above the scanner. {COLORS}",
            content=pictures.png_of(shown[0].perspective()),
        ),
        _cloud(settings, evaluation, worst + typical),
    ]


def mistakes(settings: LidarSettings, rows: Rows, thresholds: Thresholds) -> tuple[Array, Array]:
    """Return how many objects each frame misses, and how many it finds in vain, int64 (F,)."""
    missed = np.zeros(len(rows["key"]), dtype=np.int64)
    false = np.zeros_like(missed)
    column = Criterion(kind="centre", limit=FOUND_METRES).column
    for name in settings.data.classes:
        reported = rows[f"scores:{name}"] >= max(thresholds.get(f"score_{name}", 0.0), 0.0)
        matched = np.where(reported[..., None], rows[column(name)][:, :, MODERATE], 0)
        missed += rows[f"objects:{name}"][:, MODERATE] - matched[..., ap.HIT].sum(axis=1)
        false += matched[..., ap.FALSE].sum(axis=1)
    return missed, false


class _Shown:
    """A frame with what was reported in it.

    Args:
        settings: Of the project.
        evaluation: Of the model.
        index: Its row.
    """

    def __init__(self, settings: LidarSettings, evaluation: Evaluation, index: int) -> None:
        rows, names = evaluation.rows, settings.data.classes
        self.settings, self.key = settings, str(rows["key"][index])
        self.points = unpacked(rows["cloud"][index])
        self.heat = rows["heat"][index] / 255.0 if "heat" in rows else None
        frame = _frame_of(rows, index)
        least = np.array([evaluation.thresholds.get(f"score_{name}", 0.0) for name in names])
        reported = frame.scores >= least[frame.labels]
        counts = frame.true_labels >= 0
        self.found, self.true = frame.boxes[reported], frame.true_boxes[counts]
        self.true_names = [names[label] for label in frame.true_labels[counts]]
        self.found_names = [
            f"{names[label]} {score:.2f}"
            for label, score in zip(frame.labels[reported], frame.scores[reported], strict=True)
        ]

    def birds_eye(self) -> Array:
        return pictures.birds_eye(self.settings, self.points, self.true, self.found, heat=self.heat)

    def range_image(self) -> Array:
        # The cloud was thinned; so coarse, its cells have about a point each.
        return pictures.range_image(self.points, coarser=2.5)

    def perspective(self) -> Array:
        return pictures.perspective(self.settings, self.points, self.true, self.found)

    def view(self) -> cloud_page.View:
        return cloud_page.View(
            key=self.key,
            points=self.points,
            true=self.true,
            true_names=self.true_names,
            found=self.found,
            found_names=self.found_names,
        )


def _tiles(name: str, shown: Sequence[_Shown], words: Sequence[str]) -> str:
    tiles = "".join(_tile(one, said) for one, said in zip(shown, words, strict=True))
    return (
        WIDE.format(name=name) + '<div style="display: grid; gap: 1rem; margin: .5rem 0;'
        f' grid-template-columns: repeat(auto-fill, minmax(min(22rem, 100%), 1fr))">{tiles}</div>'
    )


def _tile(one: _Shown, said: str) -> str:
    encoded = base64.b64encode(pictures.png_of(one.birds_eye())).decode()
    return (
        f'<div><img alt="frame {escape(one.key)} from above: {said}" '
        f'src="data:image/png;base64,{encoded}">'
        f'<div style="font-size: .85rem; overflow-wrap: anywhere">{said} '
        f"<small>{escape(one.key)}</small></div></div>"
    )


def _cloud(settings: LidarSettings, evaluation: Evaluation, chosen: Sequence[int]) -> Figure:
    views = [_Shown(settings, evaluation, index).view() for index in chosen]
    return Figure(
        name="cloud",
        title="To be turned",
        caption=f"The frames with the most mistakes, then typical ones. {COLORS}",
        content=WIDE.format(name="cloud") + cloud_page.snippet(views),
    )
