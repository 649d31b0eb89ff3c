"""Evaluate: the trained model and its baselines on the test split, by the same path."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from pegboard import evaluation
from pegboard.evaluation import ModulePredictor
from pegboard.files import atomic_path, write_json
from pegboard.progress import Progress
from pegboard.records import Baseline, Evaluation, MetricValue, Predictor, Rows
from pegboard.runs import Run
from pegboard.weights import load_trained


def run(run: Run, progress: Progress) -> dict[str, Any]:
    """Measure model and baselines; leave `evaluation.json` and the rows behind it."""
    board, settings = run.project.board, run.project.settings
    deployable = board.hook.build_deployable(settings=settings, model=load_trained(run))
    model = _evaluated(run, ModulePredictor(deployable), "model", progress)
    baselines = [
        _evaluated(run, _fitted(run, baseline, progress), baseline.name, progress)
        for baseline in board.collect("build_baselines", settings=settings)
    ]
    write_evaluation(run, model, baselines)
    return {metric.name: metric.value for metric in model.metrics}


def _fitted(run: Run, baseline: Baseline, progress: Progress) -> Predictor:
    hook, settings = run.project.board.hook, run.project.settings
    with progress.task(f"fit the baseline {baseline.name}"):
        return baseline.fit(
            hook.load_split(settings=settings, split="train"),
            hook.load_split(settings=settings, split="validation"),
        )


def _evaluated(run: Run, predictor: Predictor, name: str, progress: Progress) -> Evaluation:
    """Choose thresholds on the validation split, then measure on the test split."""
    board, settings = run.project.board, run.project.settings
    validation = board.hook.load_split(settings=settings, split="validation")
    batches = evaluation.batches_of(board, settings, validation, settings.train.evaluated_at_once)
    rows: Rows = evaluation.tabulated(
        board, settings, predictor, progress.track(batches, f"{name} on validation", len(batches))
    )
    rows = evaluation.completed(board, settings, predictor, rows)
    return evaluation.evaluate(
        board,
        settings,
        predictor,
        board.hook.load_split(settings=settings, split="test"),
        name=name,
        split="test",
        thresholds=board.hook.choose_thresholds(settings=settings, rows=rows),
        progress=progress,
    )


def write_evaluation(run: Run, model: Evaluation, baselines: list[Evaluation]) -> None:
    """Keep an evaluation: numbers in JSON, rows in NumPy's own format."""
    descriptions = {
        baseline.name: baseline.description
        for baseline in run.project.board.collect("build_baselines", settings=run.project.settings)
    }
    with atomic_path(run.rows_file) as temporary:
        columns = {
            f"{evaluation.name}/{name}": column
            for evaluation in (model, *baselines)
            for name, column in evaluation.rows.items()
        }
        np.savez_compressed(temporary, allow_pickle=False, **columns)
    write_json(
        run.evaluation_file,
        {
            **_tables(model),
            "baselines": [
                {**_tables(baseline), "description": descriptions[baseline.name]}
                for baseline in baselines
            ],
        },
    )


def _tables(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "name": evaluation.name,
        "split": evaluation.split,
        "count": len(next(iter(evaluation.rows.values()), ())),
        "thresholds": {name: float(value) for name, value in evaluation.thresholds.items()},
        "metrics": [asdict(metric) for metric in evaluation.metrics],
    }


def read_evaluation(run: Run) -> Evaluation:
    """Read back what `write_evaluation` kept."""
    tables = json.loads(run.evaluation_file.read_text(encoding="utf-8"))
    with np.load(run.rows_file, allow_pickle=False) as rows:
        columns = {name: rows[name] for name in rows.files}
    baselines = [_evaluation(baseline, columns) for baseline in tables["baselines"]]
    return _evaluation(tables, columns, baselines)


def _evaluation(
    tables: Mapping[str, Any], columns: Mapping[str, Any], baselines: list[Evaluation] | None = None
) -> Evaluation:
    prefix = f"{tables['name']}/"
    return Evaluation(
        name=tables["name"],
        split=tables["split"],
        rows={
            name.removeprefix(prefix): column
            for name, column in columns.items()
            if name.startswith(prefix)
        },
        thresholds=tables["thresholds"],
        metrics=[MetricValue(**metric) for metric in tables["metrics"]],
        baselines=baselines or (),
    )
