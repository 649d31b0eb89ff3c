"""`pegboard prequential`: the whole life again and again, as time would have brought it.

Prequential evaluation (Dawid, JRSS A 1984; for cards Dal Pozzolo et al., IEEE TNNLS 2018): train on
what was known, measure on what came next, move on. Each fold is an ordinary run that ends earlier,
so nothing is trained or measured by a second path.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from pegboard.files import write_json
from pegboard.lifecycle import open_run, run_stages
from pegboard.logs import new_progress
from pegboard.progress import Progress
from pegboard.project import Project, open_project
from pegboard.records import Evaluation
from pegboard_fraud.settings import FraudSettings

FOLDER = "prequential"
"""Where the folds' runs and the result lie in a project."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One metric of one model over all folds and seeds."""

    model: str
    """`model`, or the baseline's name."""
    metric: str
    """The metric's name."""
    mean: float
    """Over folds and seeds."""
    deviation: float
    """Standard deviation over the folds of the means over seeds."""
    folds: tuple[float, ...]
    """The means over seeds, the latest fold first."""


def evaluate_prequentially(
    project: Project, *, folds: int, seeds: int, progress: Progress
) -> list[Measured]:
    """Train and measure on `folds` successive test periods, each with `seeds` seeds.

    Returns:
        Every metric of the model and of its baselines; also kept in `prequential/result.json`.
    """
    evaluations: dict[tuple[int, int], Evaluation] = {}
    for fold, until in enumerate(test_ends(project, folds)):
        for seed in range(seeds):
            progress.say(f"fold {fold + 1} of {folds}, until {until}, seed {seed}")
            evaluations[fold, seed] = _evaluated(project, until, seed, progress)
    result = list(summarise(evaluations))
    write_json(project.folder / FOLDER / "result.json", [vars(row) for row in result])
    return result


def test_ends(project: Project, folds: int) -> list[date]:
    """Return the last test day of every fold, the latest first, one test period apart."""
    # It brings torch, and `pegboard --help` imports this module to know the command.
    from pegboard_fraud.data import last_test_day

    settings = project.settings
    if not isinstance(settings, FraudSettings):
        raise TypeError(f"these are no fraud settings: {type(settings)}")
    latest = last_test_day(settings)
    return [latest - timedelta(days=fold * settings.data.test_days) for fold in range(folds)]


def _evaluated(project: Project, until: date, seed: int, progress: Progress) -> Evaluation:
    from pegboard.stages.evaluate import read_evaluation

    overrides = [*project.overrides, f"data.test_until={until}", f"train.seed={seed}"]
    run = open_run(open_project(project.folder, overrides), progress, place=FOLDER)
    run_stages(run, "evaluate", progress)
    return read_evaluation(run)


def summarise(evaluations: dict[tuple[int, int], Evaluation]) -> Iterable[Measured]:
    """Average over seeds, then over folds."""
    values: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (fold, _), evaluation in evaluations.items():
        for one in (evaluation, *evaluation.baselines):
            for metric in one.metrics:
                value = np.nan if metric.value is None else metric.value
                values[one.name, metric.name][fold].append(value)
    for (model, metric_name), by_fold in values.items():
        means = [float(np.mean(of_seeds)) for of_seeds in by_fold.values()]
        yield Measured(
            model=model,
            metric=metric_name,
            mean=float(np.mean(means)),
            deviation=float(np.std(means)),
            folds=tuple(means),
        )


def register(app: typer.Typer) -> None:
    """Add `prequential` to the command line."""

    @app.command()
    def prequential(
        overrides: Annotated[
            list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings.")
        ] = None,
        folds: Annotated[int, typer.Option(help="Successive test periods.")] = 4,
        seeds: Annotated[int, typer.Option(help="Trainings of each.")] = 1,
        project: Annotated[Path, typer.Option(help="The project's folder.")] = Path(),
    ) -> None:
        """Train and measure on successive test periods, labels delayed as in life."""
        opened = open_project(project, overrides or ())
        measured = evaluate_prequentially(opened, folds=folds, seeds=seeds, progress=new_progress())
        typer.echo(as_text(measured))


def as_text(measured: Sequence[Measured]) -> str:
    """Lay the means out as a table: a row a metric, a column a model, mean and deviation."""
    models = list(dict.fromkeys(row.model for row in measured))
    cells = {(row.metric, row.model): f"{row.mean:.4f} ± {row.deviation:.4f}" for row in measured}
    metrics = list(dict.fromkeys(row.metric for row in measured))
    width = max(len(metric) for metric in metrics)
    lines = [" " * width + "".join(f"{model:>20}" for model in models)]
    for metric in metrics:
        row = "".join(f"{cells.get((metric, model), '-'):>20}" for model in models)
        lines.append(f"{metric:<{width}}{row}")
    return "\n".join(lines)
