"""Stages: in order, once for the same inputs, told to whoever listens."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pegboard.errors import DataError, PegboardError
from pegboard.lifecycle import STAGES, open_run, prepare, run_stages, stage_key
from pegboard.progress import SilentProgress
from pegboard.project import open_project
from pegboard.runs import runs_of

MakeProject = Callable[..., Path]
QUIET = SilentProgress()

LISTENER = """
from pathlib import Path
from pegboard import hookimpl

LOG = Path(__file__).with_name("log.txt")

def note(text):
    with LOG.open("a") as stream:
        stream.write(text + "\\n")

@hookimpl
def before_stage(event):
    note(f"before_stage {event.stage}")

@hookimpl
def after_stage(event):
    note(f"after_stage {event.stage} {sorted(event.facts)}")

@hookimpl
def on_stage_error(event, error):
    note(f"on_stage_error {event.stage} {type(error).__name__}")
"""


def test_a_stage_that_is_done_is_not_done_again(make_project: MakeProject) -> None:
    project = open_project(make_project(hooks=LISTENER))
    run = open_run(project, QUIET)
    run_stages(run, "check", QUIET)
    first = run.check_file.stat().st_mtime_ns
    facts = run_stages(run, "check", QUIET)
    assert run.check_file.stat().st_mtime_ns == first
    assert facts == {"check": {"error": 0, "warning": 0, "note": 0}}


def test_a_stage_is_done_again_when_what_it_left_is_gone(make_project: MakeProject) -> None:
    run = open_run(open_project(make_project()), QUIET)
    run_stages(run, "check", QUIET)
    run.check_file.unlink()
    run_stages(run, "check", QUIET)
    assert run.check_file.exists()


def test_again_does_a_stage_again(make_project: MakeProject) -> None:
    run = open_run(open_project(make_project()), QUIET)
    run_stages(run, "check", QUIET)
    first = run.check_file.stat().st_mtime_ns
    run_stages(run, "check", QUIET, again=True)
    assert run.check_file.stat().st_mtime_ns > first


def test_listeners_are_told_of_every_stage(make_project: MakeProject) -> None:
    project = open_project(make_project(hooks=LISTENER))
    run_stages(open_run(project, QUIET), "check", QUIET)
    assert (project.folder / "log.txt").read_text().splitlines() == [
        "before_stage prepare",
        "after_stage prepare ['paths']",
        "before_stage check",
        "after_stage check ['error', 'note', 'warning']",
    ]


def test_listeners_are_told_of_an_error_and_the_stage_stays_undone(
    make_project: MakeProject,
) -> None:
    project = open_project(make_project(hooks=LISTENER))
    (path,) = prepare(project, QUIET)
    np.savez(path, x=np.full((8, 4), np.nan, np.float32), label=np.zeros(8, np.float32))
    run = open_run(project, QUIET)
    with pytest.raises(DataError, match=r"8 rows hold NaN \(row 0\); remove them\."):
        run_stages(run, "check", QUIET)
    assert "on_stage_error check DataError" in (project.folder / "log.txt").read_text()
    assert "check" not in run.stages()
    (finding,) = json.loads(run.check_file.read_text())
    assert finding["level"] == "error"


def test_the_same_settings_and_data_find_the_same_run(make_project: MakeProject) -> None:
    folder = make_project()
    first = open_run(open_project(folder), QUIET)
    assert open_run(open_project(folder), QUIET).folder == first.folder
    assert open_run(open_project(folder, ["train.devices=2"]), QUIET).folder == first.folder
    assert open_run(open_project(folder, ["deploy.golden=8"]), QUIET).folder == first.folder


@pytest.mark.parametrize("change", ["train.epochs=9", "model.hidden=5", "train.seed=1"])
def test_other_settings_make_a_run_of_their_own(make_project: MakeProject, change: str) -> None:
    folder = make_project()
    first = open_run(open_project(folder), QUIET)
    other = open_run(open_project(folder, [change]), QUIET)
    assert other.folder != first.folder
    assert len(runs_of(folder)) == 2


def test_other_data_or_hooks_make_a_run_of_their_own(make_project: MakeProject) -> None:
    folder = make_project()
    first = open_run(open_project(folder), QUIET)
    np.savez(folder / "data" / "toy.npz", x=np.zeros((9, 4)), label=np.zeros(9))
    second = open_run(open_project(folder), QUIET)
    (folder / "hooks.py").write_text("from pegboard import hookimpl\n")
    third = open_run(open_project(folder), QUIET)
    assert len({first.folder, second.folder, third.folder}) == 3


def test_two_processes_cannot_work_on_one_run(make_project: MakeProject) -> None:
    run = open_run(open_project(make_project()), QUIET)
    with run.locked(), pytest.raises(PegboardError, match="another process is at work"):
        run_stages(run, "check", QUIET)


def test_a_run_keeps_its_resolved_settings_with_paths_of_the_project(
    make_project: MakeProject,
) -> None:
    run = open_run(open_project(make_project(), ["train.lr=0.5"]), QUIET)
    settings = run.facts()["settings"]
    assert settings["train"]["lr"] == 0.5
    assert settings["data"]["folder"] == "data"


def test_a_stage_depends_on_the_settings_it_reads_and_on_the_stages_before(
    make_project: MakeProject,
) -> None:
    folder = make_project()
    run = open_run(open_project(folder), QUIET)
    other = open_run(open_project(folder, ["deploy.golden=8"]), QUIET)
    keys = {name: (stage_key(run, s), stage_key(other, s)) for name, s in STAGES.items()}
    changed = [name for name, (mine, theirs) in keys.items() if mine != theirs]
    assert changed == ["export", "compress", "verify", "benchmark", "report"]


@pytest.mark.slow
def test_the_same_command_on_two_nodes_trains_one_run_together(make_project: MakeProject) -> None:
    folder = make_project()
    prepare(open_project(folder), QUIET)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "pegboard.cli.main", "train", "train.nodes=2"]
    environment = os.environ | {"PEGBOARD_RENDEZVOUS": f"127.0.0.1:{port}"}
    nodes = [
        subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    ended = [(node.communicate(timeout=120)[1], node.returncode) for node in nodes]
    assert [code for _, code in ended] == [0, 0], ended
    (run,) = runs_of(folder)
    assert json.loads((run / "stages.json").read_text())["train"]["facts"]["world_size"] == 2


@pytest.mark.slow
def test_all_stages_end_with_a_report_and_a_second_time_do_nothing(
    make_project: MakeProject,
) -> None:
    project = open_project(make_project(hooks=LISTENER))
    run = open_run(project, QUIET)
    facts = run_stages(run, "report", QUIET)
    assert list(facts) == list(STAGES)
    for stage in STAGES.values():
        assert all((run.folder / left).exists() for left in stage.leaves)
    log = (project.folder / "log.txt").read_text()
    assert run_stages(run, "report", QUIET) == facts
    assert (project.folder / "log.txt").read_text() == log
