"""Figures of the pretraining report: what few labels give, and how pictures lie to one another.

What a caption says of a gain is computed from the rows: where its interval holds zero, no gain was
measured, and that is what it says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from pegboard.plotting import PALETTE, STYLE, as_svg, drawing
from pegboard.records import Array, Evaluation, Figure, Rows
from pegboard_defect.moco import metrics
from pegboard_defect.moco.settings import MocoSettings

LABELS = (1, 2, 5, 10, 20, 50, 100)
"""Labels a class that the curves are drawn at, as far as there are so many."""
DRAWS = 5
"""Choices of pictures behind each point."""
RESAMPLES = 1000
"""Bootstrap samples behind the interval of a gain."""
POINTS = 800
"""Pictures of a panel, at most."""


def draw(settings: MocoSettings, evaluation: Evaluation) -> list[Figure]:
    """Draw the trained network, and beside it the random one and the user's."""
    figures = [directions(settings, evaluation)]
    counts = label_counts(evaluation.rows)
    return [few_labels(evaluation, counts), *figures] if counts else figures


# --- Gains ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Gain:
    """How much more one network gets right than another, on the same pictures."""

    name: str
    """The other network."""
    difference: float
    """Of the shares that are right."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end of it."""


def gains(evaluation: Evaluation) -> list[Gain]:
    """Compare the trained network with each other one by a paired bootstrap over parts."""
    return [
        gain(evaluation.rows, baseline.rows, baseline.name) for baseline in evaluation.baselines
    ]


def gain(rows: Rows, of_other: Rows, name: str) -> Gain:
    """Compare two networks on the same pictures: k-NN, or retrieval where nothing is labelled.

    Args:
        rows: Of the one.
        of_other: Of the other, in the same order.
        name: What the other is called.
    """
    right, label, group = _right(rows)
    of_other_right, _, _ = _right(of_other)
    difference = right.astype(np.float64) - of_other_right
    _, place = np.unique(group, return_inverse=True)
    count = place.max(initial=-1) + 1
    generator = np.random.default_rng(0)
    drawn = generator.multinomial(count, np.full(count, 1 / max(1, count)), size=RESAMPLES)
    low, high = np.percentile(_balanced(difference, label, drawn[:, place]), [2.5, 97.5])
    (exact,) = _balanced(difference, label, np.ones((1, len(label))))
    return Gain(name=name, difference=float(exact), low=float(low), high=float(high))


def _right(rows: Rows) -> tuple[Array, Array, Array]:
    """Return whether each picture is found or named right, its class and its part, each (N,)."""
    kept = metrics.labelled(rows)
    if len(np.unique(kept["label"])) >= 2:
        return metrics.knn_predictions(kept) == kept["label"], kept["label"], kept["group"]
    found, views = metrics.retrieved(rows)
    return found, np.zeros(len(found)), views["group"]


def _balanced(difference: Array, label: Array, weight: Array) -> Array:
    """Return means over classes (R,) of differences (N,), weighed (R, N)."""
    means = []
    for one in np.unique(label):
        of_class = weight[:, label == one]
        with np.errstate(invalid="ignore"):  # A class that a sample does not hold has no mean.
            means.append(of_class @ difference[label == one] / of_class.sum(axis=1))
    averaged: Array = np.nanmean(means, axis=0)
    return averaged


def in_words(one: Gain) -> str:
    """Say what was measured, and no more."""
    numbers = f"{one.difference:+.3f}, 95 % interval {one.low:+.3f} to {one.high:+.3f}"
    if one.low > 0:
        return f"Better than {one.name} ({numbers})."
    if one.high < 0:
        return f"Worse than {one.name} ({numbers})."
    return f"No gain over {one.name} was measured ({numbers})."


def verdict(evaluation: Evaluation) -> str:
    """Say of each comparison what was measured."""
    return " ".join(in_words(one) for one in gains(evaluation))


# --- Few labels -----------------------------------------------------------------------------------


def label_counts(rows: Rows) -> list[int]:
    """Return the numbers of labels a class that leave as many parts of each class to ask about."""
    kept = metrics.labelled(rows)
    classes = np.unique(kept["label"])
    if len(classes) < 2:
        return []
    parts = [len(np.unique(kept["group"][kept["label"] == one])) for one in classes]
    return [count for count in LABELS if 2 * count <= min(parts)]


def few_label_curve(rows: Rows, counts: Sequence[int]) -> tuple[Array, Array]:
    """Return mean and deviation over `DRAWS` of the accuracy with so many labels a class."""
    kept = metrics.labelled(rows)
    scores = [[_with_labels(kept, count, draw) for draw in range(DRAWS)] for count in counts]
    return np.mean(scores, axis=1), np.std(scores, axis=1)


def _with_labels(rows: Rows, count: int, draw: int) -> float:
    """Fit logistic regression to `count` pictures a class, each of another part."""
    generator = np.random.default_rng((draw, count))
    shuffled = generator.permutation(len(rows["label"]))
    # Of each part the first row of the shuffled ones.
    _, first = np.unique(rows["group"][shuffled], return_index=True)
    one_each = shuffled[np.sort(first)]
    known = np.concatenate(
        [one_each[rows["label"][one_each] == one][:count] for one in np.unique(rows["label"])]
    )
    asked = ~np.isin(rows["group"], rows["group"][known])
    embedding, label = rows["embedding"], rows["label"]
    predicted = metrics.probe(embedding[known], label[known], embedding[asked])
    return metrics.balanced_accuracy(label[asked], predicted)


def few_labels(evaluation: Evaluation, counts: Sequence[int]) -> Figure:
    """Accuracy against labels a class."""
    with drawing() as drawn:
        for one in (evaluation, *evaluation.baselines):
            mean, deviation = few_label_curve(one.rows, counts)
            drawn.axes.errorbar(
                counts, mean, yerr=deviation, marker="o", markersize=4, capsize=3, label=one.name
            )
        drawn.axes.set(
            xscale="log",
            xticks=counts,
            xticklabels=[str(count) for count in counts],
            xlabel="labels a class",
            ylabel="accuracy, mean over classes",
        )
        drawn.axes.minorticks_off()
        drawn.axes.legend()
    return Figure(
        name="few_labels",
        title="What few labels give",
        caption="Logistic regression on the embeddings of so many test pictures a class, asked "
        f"about the others; mean and deviation over {DRAWS} choices, the same for all networks. "
        f"By nearest neighbours, on all labels: {verdict(evaluation)}",
        content=drawn.svg,
    )


# --- Directions -----------------------------------------------------------------------------------


def directions(settings: MocoSettings, evaluation: Evaluation) -> Figure:
    """Embeddings along their two main directions, a panel a network."""
    every = (evaluation, *evaluation.baselines)
    with mpl.rc_context(STYLE):
        canvas = Canvas(figsize=(3.2 * len(every), 3.4), layout="constrained")
        panels = canvas.subplots(1, len(every), squeeze=False)[0]
        for axes, one in zip(panels, every, strict=True):
            _scatter(axes, one, settings.data.classes)
        svg = as_svg(canvas)
    found = "" if label_counts(evaluation.rows) else f" Other views found again: {_found(every)}"
    return Figure(
        name="directions",
        title="How pictures lie to one another",
        caption="The two main directions of the embeddings; pictures that the network takes for "
        f"alike lie together.{found}",
        content=svg,
    )


def _found(every: Sequence[Evaluation]) -> str:
    if not (every[0].rows["view"] == 1).any():
        return "not measured."
    return verdict(every[0])


def _scatter(axes: Axes, one: Evaluation, classes: Sequence[str]) -> None:
    rows = metrics.pictures(one.rows)
    kept = np.linspace(0, len(rows["view"]) - 1, min(POINTS, len(rows["view"]))).astype(int)
    places, label = main_directions(rows["embedding"])[kept], rows["label"][kept]
    for place, value in enumerate(np.unique(label)):
        name = classes[value] if value >= 0 else "no label"
        color = PALETTE[place % len(PALETTE)] if value >= 0 else "#5f6b76"
        x, y = places[label == value].T
        axes.scatter(x, y, s=6, linewidths=0, color=color, label=name)
    axes.set(title=one.name, xticks=[], yticks=[])
    axes.legend(markerscale=2, fontsize=7)


def main_directions(embedding: Array) -> Array:
    """Return embeddings of length one along their two main directions: (N, F) -> (N, 2)."""
    unit = metrics.unit_length(embedding)
    centred = unit - unit.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    projected: Array = centred @ axes[:2].T
    # One number has one direction.
    return np.pad(projected, ((0, 0), (0, 2 - projected.shape[1])))
