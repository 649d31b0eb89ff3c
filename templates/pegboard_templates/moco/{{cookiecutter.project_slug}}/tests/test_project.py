"""This project's settings and hooks, on a few generated pictures: `pytest` takes seconds."""

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
SETTINGS = """
solution = "moco"
[data]
tiny = true
size = [64, 64]
[train]
epochs = 2
batch_size = 16
max_steps = 2
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


def test_the_override_answers_embeddings_of_length_one(project: Project) -> None:
    outputs = {"embedding": np.array([[3.0, 4.0], [0.0, 0.0]], dtype=np.float32)}
    answers = project.board.hook.encode_answer(
        settings=project.settings, outputs=outputs, thresholds={}, request=None
    )
    assert [answer["embedding"] for answer in answers] == [[0.6, 0.8], [0.0, 0.0]]


def test_the_notification_keeps_a_line_of_every_epoch(project: Project) -> None:
    run_stages(open_run(project, SilentProgress()), "train", SilentProgress())
    lines = [json.loads(line) for line in (project.folder / "epochs.jsonl").open()]
    assert [line["epoch"] for line in lines] == [1]
    assert {"loss", "knn_accuracy", "embedding_spread"} <= lines[0].keys()
