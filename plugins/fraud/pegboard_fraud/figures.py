"""Figures of the fraud report: ranking, calibration, money and days."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import precision_recall_curve

from pegboard.plotting import drawing
from pegboard.records import Array, Evaluation, Figure, Rows
from pegboard_fraud.deploy import score_to_threshold
from pegboard_fraud.settings import FraudSettings


def draw(settings: FraudSettings, evaluation: Evaluation) -> list[Figure]:
    """Draw the model, and where it helps the baselines beside it."""
    return [
        ranking(evaluation),
        calibration(evaluation),
        costs(settings, evaluation),
        days(settings, evaluation),
    ]


def ranking(evaluation: Evaluation) -> Figure:
    """Precision against recall."""
    with drawing() as drawn:
        for one in (evaluation, *evaluation.baselines):
            precision, recall, _ = precision_recall_curve(
                one.rows["label"], one.rows["probability"]
            )
            drawn.axes.plot(recall, precision, label=one.name)
        drawn.axes.set(
            xlabel="recall (share of frauds found)",
            ylabel="precision (share of alerts that are fraud)",
            xlim=(0, 1),
            ylim=(0, 1.02),
        )
        drawn.axes.legend()
    return Figure(
        name="ranking",
        title="How well it ranks",
        caption="Up and to the right is better. Read off how many alerts would be false at the "
        "recall you need.",
        content=drawn.svg,
    )


def calibration(evaluation: Evaluation, bins: int = 12) -> Figure:
    """Predicted probability against the share of frauds, in bins of equal count at the top."""
    with drawing() as drawn:
        for one in (evaluation, *evaluation.baselines):
            predicted, observed = reliability(one.rows, bins)
            drawn.axes.plot(predicted, observed, marker="o", markersize=4, label=one.name)
        limits = (1e-4, 1.0)
        drawn.axes.plot(limits, limits, color="#5f6b76", linewidth=1, linestyle=":")
        drawn.axes.set(
            xscale="log",
            yscale="log",
            xlim=limits,
            ylim=limits,
            xlabel="mean predicted probability",
            ylabel="share of frauds",
        )
        drawn.axes.legend()
    return Figure(
        name="calibration",
        title="Whether a probability means what it says",
        caption="On the dotted line, of the transactions with a predicted 1 % every hundredth is "
        "fraud. Bins without any fraud are not drawn.",
        content=drawn.svg,
    )


def reliability(rows: Rows, bins: int) -> tuple[Array, Array]:
    """Return mean prediction and share of frauds in bins that are even on a logarithmic scale."""
    probability = np.clip(rows["probability"], 1e-4, 1.0)
    edges = np.geomspace(1e-4, 1.0, bins + 1)
    place = np.clip(np.searchsorted(edges, probability, side="right") - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    frauds = np.bincount(place, weights=rows["label"], minlength=bins)
    total = np.bincount(place, weights=probability, minlength=bins)
    kept = frauds > 0
    return total[kept] / count[kept], frauds[kept] / count[kept]


def costs(settings: FraudSettings, evaluation: Evaluation) -> Figure:
    """What a day costs at every number of reviews."""
    currency = settings.data.currency
    with drawing() as drawn:
        for one in (evaluation, *evaluation.baselines):
            reviews, cost = cost_curve(settings, one.rows)
            drawn.axes.plot(reviews, cost, label=one.name)
        chosen = score_to_threshold(settings, evaluation.rows) >= evaluation.thresholds["review"]
        drawn.axes.axvline(
            chosen.sum() / _day_count(evaluation.rows), color="#5f6b76", linestyle=":"
        )
        drawn.axes.set(
            xlabel="reviews a day",
            ylabel=f"fraud losses and reviews, {currency} a day",
            ylim=(0, None),
        )
        drawn.axes.legend()
    return Figure(
        name="costs",
        title="What it costs to review more or less",
        caption=f"Losses to missed fraud plus {settings.model.review_cost:g} {currency} a review. "
        "The dotted line is the threshold, chosen on the validation days.",
        content=drawn.svg,
    )


def cost_curve(settings: FraudSettings, rows: Rows, points: int = 200) -> tuple[Array, Array]:
    """Return reviews a day and cost a day, from no review to ten times the frauds."""
    order = np.argsort(-score_to_threshold(settings, rows), kind="stable")
    lost = rows["label"] * rows["amount"]
    saved = np.concatenate([[0.0], np.cumsum(lost[order])])
    most = min(len(order), max(50, 10 * int(rows["label"].sum())))
    reviews = np.unique(np.linspace(0, most, points).astype(int))
    cost = lost.sum() - saved[reviews] + settings.model.review_cost * reviews
    days = _day_count(rows)
    return reviews / days, cost / days


def _day_count(rows: Rows) -> int:
    return len(np.unique(rows["day"]))


def days(settings: FraudSettings, evaluation: Evaluation) -> Figure:
    """Money lost, found and reviewed in vain, day by day."""
    rows = evaluation.rows
    reviewed = score_to_threshold(settings, rows) >= evaluation.thresholds["review"]
    every, place = np.unique(rows["day"], return_inverse=True)
    lost = rows["label"] * rows["amount"]
    found = np.bincount(place, weights=lost * reviewed)
    missed = np.bincount(place, weights=lost * ~reviewed)
    with drawing() as drawn:
        dates = [str(np.datetime64(int(day), "D"))[5:] for day in every]
        drawn.axes.bar(dates, found, label="stopped")
        drawn.axes.bar(dates, missed, bottom=found, label="lost")
        drawn.axes.set(ylabel=f"fraud, {settings.data.currency} a day")
        drawn.axes.tick_params(axis="x", rotation=90 if len(dates) > 10 else 0)
        drawn.axes.grid(axis="x", visible=False)
        drawn.axes.legend()
    return Figure(
        name="days",
        title="Day by day",
        caption="Fraud that the chosen threshold stops and that it lets pass. A share that falls "
        "from day to day says that the world has moved on.",
        content=drawn.svg,
    )
