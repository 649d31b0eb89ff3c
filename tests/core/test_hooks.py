"""Each kind of hook is called as its specification says: first result, all, or chain."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer

from pegboard import hookimpl, hookspecs
from pegboard.board import Board
from pegboard.project import Project, open_project
from pegboard.records import (
    AnswerEvent,
    Baseline,
    Batch,
    Figure,
    Finding,
    Route,
    Sample,
    Target,
)

MakeProject = Callable[..., Path]


@pytest.fixture
def project(make_project: MakeProject) -> Project:
    return open_project(make_project())


def hang(project: Project, *plugins: object) -> Board:
    for plugin in plugins:
        project.board.manager.register(plugin)
    return project.board


FIRST_RESULT = {
    "settings_type": (),
    "prepare_data": ("settings", "progress"),
    "load_split": ("settings", "split"),
    "draw_sample": ("settings", "sample"),
    "collate": ("settings", "samples"),
    "build_model": ("settings", "train_data"),
    "compute_loss": ("settings", "model", "batch"),
    "build_optimizer": ("settings", "model", "total_steps"),
    "tabulate": ("settings", "batch", "outputs"),
    "complete_rows": ("settings", "predictor", "rows"),
    "choose_thresholds": ("settings", "rows"),
    "signature": ("settings",),
    "build_deployable": ("settings", "model"),
    "decode_request": ("settings", "payload"),
    "encode_answer": ("settings", "outputs", "thresholds", "request"),
    "infer": ("settings", "predictor", "inputs"),
}


@pytest.mark.parametrize("name", FIRST_RESULT)
def test_of_a_first_result_hook_the_last_registered_answers_and_none_passes_on(
    project: Project, name: str
) -> None:
    def answering(value: object) -> object:
        return type("Plugin", (), {name: staticmethod(hookimpl(lambda: value))})()

    board = hang(project, answering("first"), answering("second"), answering(None))
    arguments = dict.fromkeys(FIRST_RESULT[name])
    assert getattr(board.hook, name)(**arguments) == "second"
    assert hookspecs.HOOKS[name].call == "first result"


def test_every_hook_is_covered_by_a_kind_that_is_tested_here() -> None:
    calls = {name: facts.call for name, facts in hookspecs.HOOKS.items()}
    assert {name for name, call in calls.items() if call == "first result"} == set(FIRST_RESULT)
    assert [name for name, call in calls.items() if call == "chain"] == ["augment"]


def test_answers_of_all_are_collected_in_the_order_of_registration(project: Project) -> None:
    def finding(what: str) -> Finding:
        return Finding(level="note", what=what, where="here", remedy="none")

    class One:
        @hookimpl
        def check_data(self) -> list[Finding]:
            return [finding("a"), finding("b")]

    class Two:
        @hookimpl
        def check_data(self) -> list[Finding]:
            return [finding("c")]

    project.settings.data.folder.mkdir()
    project.board.hook.prepare_data(settings=project.settings, progress=None)
    board = hang(project, One(), Two())
    found = board.collect("check_data", settings=project.settings)
    assert [one.what for one in found] == ["a", "b", "c"]


def test_plugins_add_baselines_targets_figures_and_routes(project: Project) -> None:
    class Extra:
        @hookimpl
        def build_baselines(self) -> list[Baseline]:
            return [Baseline(name="coin", fit=lambda train, validation: dict)]

        @hookimpl
        def deploy_targets(self) -> list[Target]:
            return [
                Target(
                    name="abacus",
                    unavailable=lambda: "no beads; buy some",
                    export=lambda request: request.folder,
                    load=lambda path, signature: dict,
                )
            ]

        @hookimpl
        def draw(self) -> list[Figure]:
            return [Figure(name="f", title="F", caption="", content="<svg/>")]

        @hookimpl
        def register_routes(self) -> list[Route]:
            async def take(body: object) -> None:
                del body

            return [Route(path="/feedback", handler=take)]

    board, settings = hang(project, Extra()), project.settings
    names = [baseline.name for baseline in board.collect("build_baselines", settings=settings)]
    assert names == ["sum of columns", "coin"]
    names = [target.name for target in board.collect("deploy_targets")]
    assert names == ["onnx", "openvino", "torch", "abacus"]
    routes = board.collect("register_routes", settings=settings, service=None)
    assert [route.path for route in routes] == ["/feedback"]
    evaluation = type("Evaluation", (), {"rows": {"label": [1]}})()
    figures = board.collect("draw", settings=settings, evaluation=evaluation)
    assert [figure.name for figure in figures] == ["score", "f"]


def test_augment_is_a_chain_in_the_order_of_registration(project: Project) -> None:
    class Double:
        @hookimpl
        def augment(self, sample: Sample) -> Sample:
            return Sample(inputs={"x": sample.inputs["x"] * 2})

    class AddOne:
        @hookimpl
        def augment(self, settings: Any, sample: Sample) -> Sample:
            assert settings.solution == "toy"
            return Sample(inputs={"x": sample.inputs["x"] + 1})

    assert not project.board.augments
    board = hang(project, Double(), AddOne())
    assert board.augments
    changed = board.augment(project.settings, Sample(inputs={"x": np.array([3.0])}))
    assert changed.inputs["x"].tolist() == [7.0]


def test_a_wrapper_changes_what_the_rest_answered(project: Project) -> None:
    class Wrapper:
        @hookimpl(wrapper=True)
        def encode_answer(self) -> Any:
            answers = yield
            return [{**answer, "desk": 2} for answer in answers]

    board = hang(project, Wrapper())
    answers = board.hook.encode_answer(
        settings=project.settings,
        outputs={"probability": np.array([0.9])},
        thresholds={"positive": 0.5},
        request=None,
    )
    assert answers == [{"score": 0.9, "decision": "yes", "desk": 2}]


def test_the_core_answers_for_a_solution_that_says_nothing(project: Project) -> None:
    hook, settings = project.board.hook, project.settings
    samples = [Sample(inputs={"x": np.arange(2.0)}, targets={"y": 1}, key=str(i)) for i in (1, 2)]
    batch = hook.collate(settings=settings, samples=samples)
    assert isinstance(batch, Batch)
    assert batch.inputs["x"].shape == (2, 2)
    assert hook.collate(settings=settings, samples=batch) is batch
    assert hook.infer(settings=settings, predictor=lambda i: {"o": i["x"]}, inputs={"x": 1}) == {
        "o": 1
    }
    module = torch.nn.Linear(4, 1)
    built = hook.build_optimizer(settings=settings, model=module, total_steps=10)
    assert built.optimizer.param_groups[0]["weight_decay"] == settings.train.weight_decay


def test_notifications_reach_everyone(project: Project) -> None:
    heard: list[str] = []

    class Listener:
        @hookimpl
        def after_answer(self, event: AnswerEvent) -> None:
            heard.append(f"answer {event.count}")

        @hookimpl
        def register_commands(self, app: typer.Typer) -> None:
            heard.append("commands")

    board = hang(project, Listener(), Listener())
    event = AnswerEvent(solution="toy", count=3, seconds=0.1, target="onnx/fp32")
    board.hook.after_answer(settings=project.settings, event=event)
    board.hook.register_commands(app=typer.Typer())
    assert heard == ["answer 3", "answer 3", "commands", "commands"]
