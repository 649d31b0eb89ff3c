"""Fraud on the handbook's data: our network beside XGBoost and LightGBM, fold by fold.

    make bench-fraud

Each regime is an ordinary project whose `hooks.py` adds LightGBM as a second baseline; the folds
are those of `pegboard prequential`. Published best on the week's protocol (Le Borgne et al., 2022):
average precision 0.694, card precision@100 0.304, on four folds of which the first trains from
2018-07-25 and the last from 2018-08-15.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np

from pegboard.lifecycle import open_run, run_stages
from pegboard.logs import new_progress
from pegboard.progress import Progress
from pegboard.project import Project, open_project
from pegboard_fraud.commands import FOLDER, as_text, evaluate_prequentially

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "bench-results" / "fraud"

COMMON = """solution = "fraud"

[data]
path = "{path}"
protocol = "handbook"
test_days = 7
test_until = 2018-09-04
{days}

[data.columns]
id = "TRANSACTION_ID"
time = "TX_DATETIME"
customer = "CUSTOMER_ID"
terminal = "TERMINAL_ID"
amount = "TX_AMOUNT"
label = "TX_FRAUD"

[train]
keep = "last"
devices = 1
{train}
"""

REGIMES = {
    "week": {"days": "train_days = 7", "train": ""},
    "long": {"days": "train_from = 2018-05-01", "train": "epochs = 8\nbatch_size = 1024"},
}
"""One week of training days, as published; and all days since the first has a month of past."""

HOOKS = '''"""LightGBM as a second baseline; both are fitted once a fold: no seed changes them."""

from __future__ import annotations

import lightgbm
import numpy as np

from pegboard import hookimpl
from pegboard.records import Baseline
from pegboard_fraud.features import AMOUNT


@hookimpl(wrapper=True)
def build_baselines(settings):
    answers = yield
    lgbm = Baseline(name="lightgbm", fit=fit, description=f"LightGBM {lightgbm.__version__}")
    return [[lgbm], *answers] if settings.train.seed == 0 else []


def fit(train, validation):
    model = lightgbm.LGBMClassifier(
        n_estimators=200, learning_rate=0.05, num_leaves=31, min_child_samples=20,
        colsample_bytree=0.5, max_bin=4095, n_jobs=1, verbose=-1, random_state=0,
    )
    model.fit(train.features, train.labels)

    def predict(inputs):
        probability = model.booster_.predict(inputs["features"], num_threads=1)
        return {
            "probability": probability.astype(np.float32),
            "expected_loss": probability * inputs["features"][:, AMOUNT],
        }

    return predict
'''


def main() -> None:
    """Run the regimes that are asked for and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--regimes", nargs="+", choices=REGIMES, default=list(REGIMES))
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    for regime in asked.regimes:
        project = make_project(regime)
        measured = evaluate_prequentially(
            project, folds=asked.folds, seeds=asked.seeds, progress=new_progress()
        )
        print(f"\n{regime}: {asked.folds} folds x {asked.seeds} seeds, mean and spread over folds")
        print(as_text(measured))
        print(f"training: {training_seconds(project):.1f} CPU seconds on average, data included")
    print(latency(make_project("week"), new_progress()))


def make_project(regime: str) -> Project:
    """Write the project of a regime, or take up the one that is there."""
    data = Path(os.environ.get("PEGBOARD_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    path = (data / "fraud" / "fdh_simulated" / "transactions.csv.gz").resolve()
    folder = RESULTS / regime
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pegboard.toml").write_text(COMMON.format(path=path, **REGIMES[regime]))
    (folder / "hooks.py").write_text(HOOKS)
    return open_project(folder)


def training_seconds(project: Project) -> float:
    """Return the mean CPU time of the trainings of a project."""
    stages = [json.loads(p.read_text()) for p in (project.folder / FOLDER).glob("*/stages.json")]
    return float(np.mean([stage["train"]["facts"]["cpu_seconds"] for stage in stages]))


def latency(project: Project, progress: Progress) -> str:
    """Export the week's model and say what one row takes."""
    run = open_run(project, progress)
    facts = run_stages(run, "benchmark", progress)["benchmark"]
    return (
        f"\nthe model alone, one row through {facts['chosen']}: "
        f"p50 {1000 * facts['model_p50_ms']:.1f} µs, CPU {1000 * facts['model_cpu_ms']:.1f} µs"
    )


if __name__ == "__main__":
    main()
