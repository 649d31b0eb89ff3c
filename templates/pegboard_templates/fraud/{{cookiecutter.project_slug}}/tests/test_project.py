"""This project's settings and hooks, on a small simulated data set: `pytest` takes seconds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from pegboard.lifecycle import open_run, run_stages
from pegboard.progress import SilentProgress
from pegboard.project import Project, open_project

HERE = Path(__file__).resolve().parents[1]
REVIEWS = 5
SETTINGS = f"""
solution = "fraud"
[data]
tiny = true
[model]
alerts_per_day = {REVIEWS}
[train]
epochs = 1
max_steps = 5
devices = 1
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A small project with the hooks of this one; your data and runs are not touched."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "pegboard.toml").write_text(SETTINGS)
    shutil.copy(HERE / "hooks.py", folder)
    return open_project(folder)


def test_the_settings_of_this_project_are_valid() -> None:
    project = open_project(HERE)
    assert not project.board.quarantined
    assert not project.board.unknown_hooks()


def test_the_override_asks_for_no_more_reviews_than_the_team_can_do(project: Project) -> None:
    losses = np.linspace(10, 1000, 40)
    rows = {"day": np.repeat([1, 2], 20), "expected_loss": losses}
    thresholds = project.board.hook.choose_thresholds(settings=project.settings, rows=rows)
    assert (losses >= thresholds["review"]).sum() == 2 * REVIEWS


def test_the_wrapper_says_who_reviews(project: Project) -> None:
    outputs = {
        "probability": np.array([0.001, 0.5, 0.9], dtype=np.float32),
        "expected_loss": np.array([0.1, 20.0, 90_000.0], dtype=np.float32),
    }
    answers = project.board.hook.encode_answer(
        settings=project.settings, outputs=outputs, thresholds={"review": 3.0}, request=None
    )
    assert [answer["queue"] for answer in answers] == [None, "standard", "senior"]


def test_the_notification_keeps_a_line_of_every_stage(project: Project) -> None:
    run_stages(open_run(project, SilentProgress()), "train", SilentProgress())
    lines = (project.folder / "audit.jsonl").read_text().splitlines()
    assert [json.loads(line)["stage"] for line in lines] == ["prepare", "check", "train"]
