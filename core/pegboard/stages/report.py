"""Report: one HTML file with figures, and a model card, from what the other stages left."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from pegboard.bundle import Bundle, Candidate, read_bundle
from pegboard.evaluation import is_better
from pegboard.files import atomic_write
from pegboard.journal import read_journal
from pegboard.plotting import drawing
from pegboard.progress import Progress
from pegboard.records import Evaluation, Figure, MetricValue
from pegboard.runs import Run
from pegboard.stages.evaluate import read_evaluation

NOTHING = "-"


def run(run: Run, progress: Progress) -> dict[str, Any]:
    """Write `report.html` and `MODEL_CARD.md`."""
    board, settings = run.project.board, run.project.settings
    evaluation = read_evaluation(run)
    bundle = read_bundle(run.bundle)
    with progress.task("draw figures"):
        figures = [
            *board.collect("draw", settings=settings, evaluation=evaluation),
            *learning_curve(run, evaluation.headline.name),
        ]
    facts = gather(run, evaluation, bundle)
    environment = _environment()
    atomic_write(
        run.report_file,
        environment.get_template("report.html.j2").render(facts=facts, figures=figures),
    )
    atomic_write(
        run.model_card_file, environment.get_template("MODEL_CARD.md.j2").render(facts=facts)
    )
    return {"report": str(run.report_file), "figures": len(figures)}


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pegboard.reporting", "."),
        autoescape=jinja2.select_autoescape(["html.j2", "html"]),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters["picture"] = picture
    return environment


def picture(content: str | bytes) -> Markup:
    """Put a figure's content into the page: HTML as it is, a PNG as a data address."""
    if isinstance(content, str):
        return Markup(content)  # Written by a plugin, which runs as us anyway.
    encoded = base64.b64encode(content).decode()
    return Markup('<img alt="" src="data:image/png;base64,{}">').format(encoded)


# --------------------------------------------------------------------------- facts


def gather(run: Run, evaluation: Evaluation, bundle: Bundle) -> dict[str, Any]:
    """Collect everything that the two documents say, as they say it."""
    chosen = bundle.chosen()
    speeds = json.loads(run.benchmark_file.read_text(encoding="utf-8"))
    return {
        "title": f"{run.project.folder.name}: {bundle.solution}",
        "subtitle": f"Run {run.folder.name}, bundle of {bundle.created}",
        "solution": bundle.solution,
        "tiles": _tiles(evaluation, chosen, speeds),
        "count": len(next(iter(evaluation.rows.values()), ())),
        "columns": [evaluation.name, *(baseline.name for baseline in evaluation.baselines)],
        "metrics": _metric_rows(evaluation),
        "baselines": json.loads(run.evaluation_file.read_text(encoding="utf-8"))["baselines"],
        "thresholds": dict(evaluation.thresholds),
        "candidates": [_candidate_row(bundle, candidate) for candidate in bundle.candidates],
        "chosen": chosen.name,
        "speeds": _speed_rows(speeds),
        "served": _served_rows(speeds),
        "machine": f"{speeds['machine']['processor']}, {speeds['machine']['system']}",
        "findings": json.loads(run.check_file.read_text(encoding="utf-8")),
        "stages": [(name, f"{stage['seconds']:.1f}") for name, stage in run.stages().items()],
        "versions": ", ".join(f"{name} {version}" for name, version in bundle.versions.items()),
        "settings": json.dumps(run.facts()["settings"], indent=2, ensure_ascii=False),
        "inputs": bundle.signature.inputs,
        "outputs": bundle.signature.outputs,
    }


def _tiles(
    evaluation: Evaluation, chosen: Candidate, speeds: Mapping[str, Any]
) -> list[dict[str, str]]:
    headline = evaluation.headline
    tiles = [
        {
            "name": title_of(headline.name),
            "value": number(headline.value),
            "note": interval_of(headline) or "test split",
        }
    ]
    for baseline in evaluation.baselines:
        tiles.append(
            {
                "name": f"{baseline.name}, the same",
                "value": number(baseline.headline.value),
                "note": interval_of(baseline.headline) or "test split",
            }
        )
    served = speeds["candidates"][chosen.name]
    flipped = chosen.measured.get("flipped_decisions")
    tiles.append(
        {
            "name": "exported model",
            "value": chosen.status,
            "note": f"{chosen.name}, decisions flipped: {share(flipped)}",
        }
    )
    tiles.append(
        {
            "name": "a request, p99",
            "value": duration(served["p99_ms"]),
            "note": f"the model alone {duration(served['model_p50_ms'])}",
        }
    )
    return tiles


def _metric_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    every = (evaluation, *evaluation.baselines)
    rows = []
    for index, metric in enumerate(evaluation.metrics):
        values = [one.metrics[index] for one in every]
        best = best_of(values)
        rows.append(
            {
                "name": title_of(metric.name) + (f" ({metric.unit})" if metric.unit else ""),
                "note": metric.description,
                "cells": [
                    {
                        "value": number(value.value),
                        "interval": interval_of(value),
                        "best": value is best and len(values) > 1,
                    }
                    for value in values
                ],
            }
        )
    return rows


def best_of(values: Sequence[MetricValue]) -> MetricValue | None:
    """Return the better of several values of one metric; None where none is defined."""
    best = reduce(lambda one, other: other if is_better(other, one) else one, values)
    return None if best.value is None else best


def _candidate_row(bundle: Bundle, candidate: Candidate) -> dict[str, Any]:
    return {
        "name": candidate.name,
        "chosen": candidate.name == bundle.chosen_name,
        "status": candidate.status,
        "good": candidate.status == "verified",
        "reason": candidate.reason,
        "error": scientific(candidate.measured.get("tensor_error")),
        "drop": number(candidate.measured.get("test_drop")),
        "flipped": share(candidate.measured.get("flipped_decisions")),
        "size": f"{bundle.size_of(candidate) / 1e3:,.0f} kB",
    }


def _speed_rows(speeds: Mapping[str, Any]) -> list[dict[str, Any]]:
    times = ("model_p50_ms", "p50_ms", "p95_ms", "p99_ms")
    return [
        {
            "name": name,
            "cells": [
                *(duration(figures[key]) for key in times),
                f"{figures['throughput']:,.0f}",
                f"{figures['memory_mb']:,.0f} MB",
            ],
        }
        for name, figures in speeds["candidates"].items()
    ]


def _served_rows(speeds: Mapping[str, Any]) -> list[dict[str, Any]]:
    times = [f"{whose}p{p}_ms" for whose in ("", "bare_") for p in ("50", "99", "99.9")]
    return [
        {
            "path": path,
            "cells": [
                f"{figures['rate']:,.4g}",
                *(duration(figures[key]) for key in times),
                f"{figures['failed']:,} of {figures['requests']:,}",
            ],
        }
        for path, figures in speeds["server"].items()
    ]


# --------------------------------------------------------------------------- words


def title_of(name: str) -> str:
    """Write a metric's name as words."""
    return name.replace("_", " ")


def number(value: float | None) -> str:
    """Write a number with the digits that matter."""
    if value is None:
        return NOTHING
    if value and (abs(value) < 1e-3 or abs(value) >= 1e5):
        return f"{value:.3g}"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:,.1f}"


def scientific(value: float | None) -> str:
    """Write an error."""
    return NOTHING if value is None else f"{value:.1e}"


def duration(milliseconds: float) -> str:
    """Write a time in the unit that suits it."""
    if milliseconds < 1:
        return f"{1000 * milliseconds:.3g} µs"
    return f"{milliseconds:.3g} ms"


def share(value: float | None) -> str:
    """Write a share in percent."""
    return NOTHING if value is None else f"{100 * value:.3g} %"


def interval_of(value: MetricValue) -> str:
    """Write a confidence interval."""
    if value.low is None or value.high is None:
        return ""
    return f"{number(value.low)} to {number(value.high)}"


# --------------------------------------------------------------------------- the core's figure


def learning_curve(run: Run, headline: str) -> list[Figure]:
    """Draw loss and headline metric over the epochs; nothing of a model that was only fitted."""
    lines = read_journal(run.progress_file)
    epochs = [line for line in lines if line["kind"] == "epoch"]
    if not epochs:
        return []
    with drawing() as drawn:
        numbers = [event["epoch"] + 1 for event in epochs]
        drawn.axes.plot(numbers, [event["losses"]["loss"] for event in epochs], label="train loss")
        drawn.axes.set(xlabel="epoch", ylabel="train loss", ylim=(0, None))
        drawn.axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        second = drawn.axes.twinx()
        second.plot(
            numbers,
            [event["metrics"].get(headline) for event in epochs],
            color="#d1603d",
            marker="o",
            markersize=3,
        )
        second.set_ylabel(f"{title_of(headline)}, validation", color="#d1603d")
        second.grid(visible=False)
    caption = (
        "Training loss and the headline metric on the validation split. A metric that "
        "falls while the loss still falls is overfitting: fewer epochs or more data."
    )
    return [Figure(name="learning", title="How it learnt", caption=caption, content=drawn.svg)]
