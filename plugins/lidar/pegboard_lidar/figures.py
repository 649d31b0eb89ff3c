"""Figures of the report: precision and recall, distance, and the frames to look at."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from pegboard.plotting import PALETTE, Drawing, drawing, short
from pegboard.records import Array, Evaluation, Figure, Rows, Thresholds
from pegboard_lidar import average_precision as ap
from pegboard_lidar import metrics, pictures
from pegboard_lidar.cloud_page import Cloud, cloud_html
from pegboard_lidar.frames import IGNORED
from pegboard_lidar.geometry import distances
from pegboard_lidar.metrics import FOUND_METRES, MODERATE, Criterion
from pegboard_lidar.settings import LidarSettings

WORST = 6
"""Frames with the most misses and false objects that are shown."""

TYPICAL = 2
"""Frames about the median that can be turned beside them."""

RING = 10.0
"""Metres of distance that are counted together."""

LINES = ("-", "--", ":", "-.")
"""Of the model and its baselines."""

WIDE = "<style>#{name} {{ grid-column: 1 / -1; }}</style>"
"""A row of the report's grid of its own: pictures and tables need the width."""


def draw(settings: LidarSettings, evaluation: Evaluation) -> list[Figure]:
    """Draw model and baselines, then what the model made of single frames."""
    names = settings.data.classes
    pairs = [pair(names, evaluation.rows, evaluation.thresholds, i) for i in _frames(evaluation)]
    order = np.argsort([-one.mistakes for one in pairs], kind="stable")
    figures = [
        precision_recall(settings, evaluation),
        recall_by_distance(settings, evaluation),
        difficulties(settings, evaluation),
        errors(settings, evaluation, pairs),
    ]
    if len(order):
        figures += [
            worst(settings, evaluation.rows, [pairs[place] for place in order[:WORST]]),
            as_seen(settings, evaluation.rows, pairs[order[0]]),
            turning(settings, evaluation.rows, [pairs[place] for place in _chosen(order)]),
        ]
    return [figure for figure in figures if figure is not None]


def _frames(evaluation: Evaluation) -> range:
    return range(len(evaluation.rows["key"]))


def _chosen(order: Array) -> Array:
    """The worst frames and those about the median, as far as they are not among the worst."""
    rest = order[WORST:]
    first = int(np.clip(len(order) // 2 - WORST, 0, max(0, len(rest) - TYPICAL)))
    return np.concatenate([order[:WORST], rest[first : first + TYPICAL]])


# --- What belongs together in a frame -------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """What is reported in a frame, and which true object each reported one is."""

    frame: int
    """Its row."""
    found: Array
    """Rows (D,) of `boxes` that reach the chosen score of their class."""
    partner: Array
    """Rows (D,) of `true_boxes`, -1 where there is none within 1 m."""
    wanted: Array
    """Rows of `true_boxes` that are of moderate difficulty or easier."""

    @property
    def missed(self) -> Array:
        """Rows of `true_boxes` that are wanted and not found."""
        return np.setdiff1d(self.wanted, self.partner)

    @property
    def false(self) -> Array:
        """Rows of `boxes` where nothing is."""
        return self.found[self.partner < 0]

    @property
    def mistakes(self) -> int:
        """How many objects are missed or false."""
        return len(self.missed) + len(self.false)


def pair(names: Sequence[str], rows: Rows, thresholds: Thresholds, frame: int) -> Pairs:
    """Pair what is reported in a frame with true objects: the surest takes the nearest first.

    A true object of no class that is looked for is a Van or its like: whoever finds it does no
    harm. As in `metrics.decided`, an object within 1 m is found.
    """
    chosen = np.array([thresholds.get(f"score_{name}", 0.0) for name in names])
    labels, scores = rows["labels"][frame], rows["scores"][frame]
    found = np.flatnonzero((labels >= 0) & (scores >= chosen[labels]))
    found = found[np.argsort(-scores[found], kind="stable")]
    true = np.flatnonzero(np.isfinite(rows["true_boxes"][frame]).all(axis=1))
    true_labels = rows["true_labels"][frame][true]
    away = distances(rows["boxes"][frame][found], rows["true_boxes"][frame][true])
    is_like = (labels[found, None] == true_labels) | (true_labels == IGNORED)
    away = np.where(is_like & (away < FOUND_METRES), away, np.inf)
    partner = np.full(len(found), -1)
    for place in range(len(found)):
        nearest = int(np.argmin(away[place])) if len(true) else -1
        if nearest >= 0 and np.isfinite(away[place, nearest]):
            partner[place] = true[nearest]
            away[:, nearest] = np.inf
    difficulty = rows["true_difficulty"][frame][true]
    is_wanted = (true_labels >= 0) & (difficulty >= 0) & (difficulty <= MODERATE)
    return Pairs(frame=frame, found=found, partner=partner, wanted=true[is_wanted])


# --- Numbers --------------------------------------------------------------------------------------


def _every(evaluation: Evaluation) -> list[Evaluation]:
    return [evaluation, *evaluation.baselines]


def precision_recall(settings: LidarSettings, evaluation: Evaluation) -> Figure | None:
    """Precision by recall of every class; nothing where no class is there."""
    recalls = np.linspace(0, 1, ap.SAMPLES)
    is_there = False
    with drawing(height=4.2) as drawn:
        for place, name in enumerate(settings.data.classes):
            criterion = Criterion(kind="bev", limit=metrics.overlaps_of(name)[0])
            for number, one in enumerate(_every(evaluation)):
                scores, matched, objects = metrics.matches_of(name, criterion, MODERATE, one.rows)
                if not objects:
                    continue
                is_there = True
                color = PALETTE[place % len(PALETTE)]
                drawn.axes.plot(
                    recalls,
                    ap.precision_by_definition(scores, matched, objects),
                    color=color,
                    linestyle=LINES[number % len(LINES)],
                    clip_on=False,
                )
                chosen = np.array([one.thresholds.get(f"score_{name}", 0.0)])
                (hits,), (false,) = ap.counts_at(scores, matched, chosen)
                if hits + false:
                    drawn.axes.plot(
                        hits / objects, hits / (hits + false), "o", color=color, clip_on=False
                    )
        drawn.axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
        _legend(drawn, settings.data.classes, _every(evaluation))
    if not is_there:
        return None
    limits = ", ".join(f"{name} {metrics.overlaps_of(name)[0]:g}" for name in settings.data.classes)
    return Figure(
        name="precision_recall",
        title="What is found, and what else is reported",
        caption="Up and to the right is better; the area is KITTI's moderate average precision "
        f"from above (overlaps: {limits}). A dot is the score from which on objects are reported.",
        content=drawn.svg,
    )


def _legend(drawn: Drawing, classes: Sequence[str], every: Sequence[Evaluation]) -> None:
    """Say what colours (classes) and dashes (model and baselines) mean, above the axes."""
    for place, name in enumerate(classes):
        # A dollar sign in a name is not the beginning of a formula.
        label = short(name).replace("$", r"\$")
        drawn.axes.plot([], [], color=PALETTE[place % len(PALETTE)], label=label)
    if len(every) > 1:
        for number, one in enumerate(every):
            style, label = LINES[number % len(LINES)], short(one.name).replace("$", r"\$")
            drawn.axes.plot([], [], color="#1d2630", linestyle=style, label=label)
    drawn.axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=min(5, len(classes) + len(every))
    )


def recall_by_distance(settings: LidarSettings, evaluation: Evaluation) -> Figure | None:
    """Recall of every class by distance from the scanner; nothing where no object counts."""
    is_there = False
    with drawing(height=4.2) as drawn:
        for number, one in enumerate(_every(evaluation)):
            there, found = _by_distance(settings.data.classes, one)
            for place in range(len(settings.data.classes)):
                rings = np.flatnonzero(there[place])
                if not len(rings):
                    continue
                is_there = True
                drawn.axes.plot(
                    (rings + 0.5) * RING,
                    found[place, rings] / there[place, rings],
                    marker="o",
                    markersize=4,
                    color=PALETTE[place % len(PALETTE)],
                    linestyle=LINES[number % len(LINES)],
                    clip_on=False,
                )
        drawn.axes.set(xlim=(0, None), ylim=(0, 1.02))
        drawn.axes.set(xlabel="distance from the scanner (m)", ylabel="objects found (share)")
        _legend(drawn, settings.data.classes, _every(evaluation))
    if not is_there:
        return None
    return Figure(
        name="recall_by_distance",
        title="How far it sees",
        caption=f"Share of objects of moderate difficulty that are found within {FOUND_METRES:g} m,"
        f" from the chosen score on; every dot is {RING:g} m of distance. Points grow few with the "
        "square of the distance.",
        content=drawn.svg,
    )


def _by_distance(classes: Sequence[str], one: Evaluation) -> tuple[Array, Array]:
    """Count objects, and those found, by class and ring (K, R)."""
    there: list[tuple[int, int, bool]] = []
    for frame in _frames(one):
        pairs = pair(classes, one.rows, one.thresholds, frame)
        missed = set(pairs.missed.tolist())
        for row in pairs.wanted.tolist():
            metres = np.hypot(*one.rows["true_boxes"][frame, row, :2])
            label = int(one.rows["true_labels"][frame, row])
            there.append((label, int(metres // RING), row not in missed))
    rings = max((ring for _, ring, _ in there), default=0) + 1
    counts = np.zeros((2, len(classes), rings))
    for label, ring, is_found in there:
        counts[:, label, ring] += (1, is_found)
    return counts[0], counts[1]


def difficulties(settings: LidarSettings, evaluation: Evaluation) -> Figure | None:
    """KITTI's table: average precision by difficulty; nothing where no object counts."""
    every = _every(evaluation)
    lines = []
    for name in settings.data.classes:
        for limit in metrics.overlaps_of(name):
            for kind in metrics.OVERLAP_KINDS:
                values = [
                    metrics.kitti(name, kind, limit, one.rows, level=level)
                    for one in every
                    for level in range(len(ap.LEVELS))
                ]
                if np.isfinite(values).any():
                    lines.append(
                        _row([f"{name}, {kind.upper()} {limit:g}", *map(_percent, values)])
                    )
    if not lines:
        return None
    width = len(ap.LEVELS)
    head = "<tr><th></th>" + "".join(
        f'<th class="number" colspan="{width}">{escape(one.name)}</th>' for one in every
    )
    levels = _row(["overlap", *[level for _ in every for level in ap.LEVELS]], "th")
    return Figure(
        name="difficulties",
        title="Average precision by difficulty",
        caption="KITTI's average precision at 40 recalls, in percent, by the overlap that finding "
        "an object takes: from above (BEV) or in space (3D). Easy objects are large in the picture "
        "and fully visible; each level counts those before it too.",
        content=WIDE.format(name="difficulties") + _table([f"{head}</tr>", levels, *lines]),
    )


def errors(
    settings: LidarSettings, evaluation: Evaluation, pairs: Sequence[Pairs]
) -> Figure | None:
    """How exactly what is found is placed; nothing where nothing is."""
    lines = []
    for label, name in enumerate(settings.data.classes):
        true, ours = _found_boxes(evaluation.rows, pairs, label)
        if len(true):
            turned = np.abs((ours[:, 6] - true[:, 6] + np.pi) % (2 * np.pi) - np.pi)
            # Of what is headed backwards, how far its axis is off.
            axis = np.minimum(turned, np.pi - turned)
            values = [
                f"{len(true):,}",
                f"{np.median(np.hypot(*(ours - true)[:, :2].T)):.2f}",
                f"{np.median(np.abs(ours - true)[:, 2]):.2f}",
                *(f"{np.median(np.abs(ours - true)[:, side]):.2f}" for side in (3, 4, 5)),
                f"{np.rad2deg(np.median(axis)):.1f}°",
                f"{100 * np.mean(turned > np.pi / 2):.0f} %",
            ]
            lines.append(_row([name, *values]))
    if not lines:
        return None
    head = ["", "found", "middle", "up", "length", "width", "height", "heading", "backwards"]
    return Figure(
        name="errors",
        title="How exactly what is found is placed",
        caption="Median errors, in metres, of the model's objects that are found within "
        f"{FOUND_METRES:g} m: of the middle from above and upwards, and of the sides. Heading is "
        "that of the box's axis; beside it, how many are headed backwards.",
        content=WIDE.format(name="errors") + _table([_row(head, "th"), *lines]),
    )


def _found_boxes(rows: Rows, pairs: Sequence[Pairs], label: int) -> tuple[Array, Array]:
    """True boxes of a class and those found for them, float64 (F, 7) both."""
    true, ours = [np.zeros((0, 7))], [np.zeros((0, 7))]
    for one in pairs:
        is_hit = one.partner >= 0
        found, partner = one.found[is_hit], one.partner[is_hit]
        of_class = rows["true_labels"][one.frame][partner] == label
        true.append(rows["true_boxes"][one.frame][partner[of_class]].astype(np.float64))
        ours.append(rows["boxes"][one.frame][found[of_class]].astype(np.float64))
    return np.concatenate(true), np.concatenate(ours)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}" if np.isfinite(value) else "-"


def _row(cells: Sequence[str], tag: str = "td") -> str:
    first, *rest = (escape(cell) for cell in cells)
    numbers = "".join(f'<{tag} class="number">{cell}</{tag}>' for cell in rest)
    return f"<tr><{tag}>{first}</{tag}>{numbers}</tr>"


def _table(lines: Sequence[str]) -> str:
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


# --- Pictures -------------------------------------------------------------------------------------


def worst(settings: LidarSettings, rows: Rows, pairs: Sequence[Pairs]) -> Figure:
    """Frames from above."""
    tiles = [_tile(settings, rows, one) for one in pairs]
    return Figure(
        name="frames",
        title="The frames with the most mistakes",
        caption="From above, ahead is up; a true object is blue, a found one orange, its score "
        "beside it; a line leads from the front. Missed are objects of moderate difficulty without "
        f"a found one within {FOUND_METRES:g} m; false ones have no object there.",
        content=WIDE.format(name="frames")
        + '<div style="display: grid; gap: 1rem; margin: .5rem 0;'
        ' grid-template-columns: repeat(auto-fill, minmax(min(22rem, 100%), 1fr))">'
        + "".join(tiles)
        + "</div>",
    )


def _tile(settings: LidarSettings, rows: Rows, one: Pairs) -> str:
    scene = _scene(settings, rows, one)
    picture = pictures.birds_eye(
        settings, scene.points, scene.true, scene.found, found_names=_scores(rows, one)
    )
    return (
        f"<div>{_image(picture, 'a frame from above')}"
        '<div style="font-size: .85rem; overflow-wrap: anywhere">'
        f"{len(one.missed)} missed, {len(one.false)} false, of {len(one.wanted)}<br>"
        f"<small>{escape(scene.key)}</small></div></div>"
    )


def _scores(rows: Rows, one: Pairs) -> list[str]:
    return [f"{score:.2f}" for score in rows["scores"][one.frame][one.found]]


def _scene(settings: LidarSettings, rows: Rows, one: Pairs) -> Cloud:
    """The points of a frame, what is true in it, and what is reported."""
    names = settings.data.classes
    true = np.flatnonzero(np.isfinite(rows["true_boxes"][one.frame]).all(axis=1))
    labels = rows["true_labels"][one.frame][true]
    found_names = [names[label] for label in rows["labels"][one.frame][one.found]]
    return Cloud(
        key=str(rows["key"][one.frame]),
        points=metrics.unpacked(rows["cloud"][one.frame]),
        true=rows["true_boxes"][one.frame][true],
        true_names=[names[label] if label >= 0 else "" for label in labels],
        found=rows["boxes"][one.frame][one.found],
        found_names=[
            f"{name} {score}" for name, score in zip(found_names, _scores(rows, one), strict=True)
        ],
    )


def _image(picture: Array, what: str) -> str:
    encoded = base64.b64encode(pictures.png_bytes(picture)).decode()
    return (
        f'<img alt="{what}" style="display: block; border-radius: .5rem" '
        f'src="data:image/png;base64,{encoded}">'
    )


def as_seen(settings: LidarSettings, rows: Rows, one: Pairs) -> Figure:
    """One frame as the scanner sees it, and in space."""
    scene = _scene(settings, rows, one)
    seen = _image(pictures.range_image(scene.points), "a range image")
    space = _image(
        pictures.perspective(settings, scene.points, scene.true, scene.found), "a scan in space"
    )
    return Figure(
        name="as_seen",
        title="The first of them as the scanner sees it",
        caption="Above its range image: azimuth across, elevation down, near is bright, black is "
        f"where nothing came back. Below the same from behind the scanner. {scene.key}, thinned to "
        f"{len(scene.points):,} points.",
        content=WIDE.format(name="as_seen")
        + f'<div style="display: grid; gap: .5rem; margin: .5rem 0">{seen}{space}</div>',
    )


def turning(settings: LidarSettings, rows: Rows, pairs: Sequence[Pairs]) -> Figure:
    """Clouds that can be turned."""
    clouds = [_scene(settings, rows, one) for one in pairs]
    return Figure(
        name="turning",
        title="To be turned",
        caption="The frames with the most mistakes, then typical ones. Blue is true, orange is "
        "found, with its score; points are coloured by height.",
        content=WIDE.format(name="turning") + cloud_html(clouds),
    )
