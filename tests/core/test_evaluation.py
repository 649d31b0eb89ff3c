"""Evaluation: rows, metrics and their confidence intervals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pegboard import hookimpl
from pegboard.batching import columns_of
from pegboard.errors import PluginError
from pegboard.evaluation import (
    ModulePredictor,
    evaluate,
    is_better,
    join_rows,
    measure,
    metrics_of,
)
from pegboard.progress import SilentProgress
from pegboard.project import open_project
from pegboard.records import Batch, Metric, MetricValue

MakeProject = Callable[..., Path]


def mean_of(name: str, **more: Any) -> Metric:
    return Metric(
        name="mean", compute=lambda rows, _: float(rows[name].mean()), direction="higher", **more
    )


def test_tabulate_keeps_what_has_one_number_per_record() -> None:
    batch = Batch(
        inputs={"x": torch.zeros(3, 4)},
        targets={"label": torch.tensor([0.0, 1.0, 1.0]), "mask": torch.zeros(3, 2, 2)},
    )
    outputs = {"probability": np.array([0.1, 0.2, 0.3]), "map": np.zeros((3, 5))}
    assert set(columns_of(batch, outputs)) == {"label", "probability"}


def test_rows_of_batches_are_joined_in_order() -> None:
    rows = join_rows([{"a": np.array([1, 2])}, {"a": np.array([3])}])
    assert rows["a"].tolist() == [1, 2, 3]
    assert join_rows([]) == {}


def test_a_confidence_interval_holds_the_value_and_shrinks_with_more_rows() -> None:
    generator = np.random.default_rng(0)
    widths = []
    for count in (100, 10_000):
        rows = {"a": generator.normal(size=count)}
        value = measure(mean_of("a"), rows, {}, resamples=200)
        assert value.value is not None and value.low is not None and value.high is not None
        assert value.low < value.value < value.high
        widths.append(value.high - value.low)
    # The width of a mean's interval falls with the root of the count: here ten times.
    assert widths[0] / widths[1] == pytest.approx(10, rel=0.3)


def test_rows_of_a_group_are_resampled_together() -> None:
    # Ten groups of a hundred equal rows: as rows they look certain, as groups they are not.
    group = np.repeat(np.arange(10), 100)
    rows = {"a": np.random.default_rng(1).normal(size=10)[group], "patient": group}
    alone = measure(mean_of("a"), rows, {}, resamples=200)
    together = measure(mean_of("a", group="patient"), rows, {}, resamples=200)
    assert together.high - together.low > 5 * (alone.high - alone.low)  # type: ignore[operator]


def test_a_metric_that_counts_groups_keeps_its_value_within_its_interval() -> None:
    rows = {"a": np.ones(500), "card": np.arange(500)}
    metric = Metric(
        name="cards",
        compute=lambda rows, _: float(len(np.unique(rows["card"]))),
        direction="higher",
        group="card",
    )
    value = measure(metric, rows, {}, resamples=20)
    assert (value.low, value.value, value.high) == (500, 500, 500)


def test_a_metric_that_is_not_defined_is_none() -> None:
    value = measure(mean_of("a"), {"a": np.array([np.nan])}, {}, resamples=5)
    assert (value.value, value.low, value.high) == (None, None, None)


@pytest.mark.parametrize(
    ("direction", "first", "second", "better"),
    [
        ("higher", 2.0, 1.0, True),
        ("lower", 2.0, 1.0, False),
        ("higher", 1.0, None, True),
        ("higher", None, 1.0, False),
        ("higher", 1.0, 1.0, False),
    ],
)
def test_better_follows_the_direction_and_a_number_beats_none(
    direction: Any, first: float | None, second: float | None, better: bool
) -> None:
    values = [MetricValue(name="m", value=v, direction=direction) for v in (first, second)]
    assert is_better(values[0], values[1]) is better


def test_there_is_exactly_one_headline_metric(make_project: MakeProject) -> None:
    project = open_project(make_project())

    class Second:
        @hookimpl
        def build_metrics(self) -> list[Metric]:
            return [mean_of("a", headline=True)]

    project.board.manager.register(Second())
    with pytest.raises(PluginError, match="there are 2 headline metrics"):
        metrics_of(project.board, project.settings)


def test_a_plugin_adds_a_metric_after_the_headline(make_project: MakeProject) -> None:
    project = open_project(make_project())

    class Extra:
        @hookimpl
        def build_metrics(self) -> list[Metric]:
            return [mean_of("label")]

    project.board.manager.register(Extra())
    names = [metric.name for metric in metrics_of(project.board, project.settings)]
    assert names == ["accuracy", "mean"]


def test_any_predictor_goes_through_infer_and_tabulate(make_project: MakeProject) -> None:
    project = open_project(make_project())
    hook, settings = project.board.hook, project.settings

    class Doubled:
        @hookimpl(wrapper=True)
        def infer(self) -> Any:
            outputs = yield
            return {"probability": outputs["probability"] * 0 + 1.0}

        @hookimpl(wrapper=True)
        def tabulate(self) -> Any:
            rows = yield
            return {**rows, "seen": np.ones(len(rows["label"]))}

    project.board.manager.register(Doubled())
    settings.data.folder.mkdir()
    hook.prepare_data(settings=settings, progress=SilentProgress())
    model = hook.build_model(settings=settings, train_data=None)
    evaluation = evaluate(
        project.board,
        settings,
        ModulePredictor(hook.build_deployable(settings=settings, model=model)),
        hook.load_split(settings=settings, split="test"),
        name="model",
        split="test",
        thresholds={},
        progress=SilentProgress(),
        resamples=0,
    )
    assert (evaluation.rows["probability"] == 1).all()
    assert evaluation.rows["seen"].sum() == 60
    assert evaluation.headline.value == pytest.approx(evaluation.rows["label"].mean())
