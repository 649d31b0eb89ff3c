"""This project's settings and hooks, on a few generated findings: `pytest` takes seconds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from pegboard.lifecycle import open_run, run_stages
from pegboard.progress import SilentProgress
from pegboard.project import Project, open_project
from pegboard.records import Sample

HERE = Path(__file__).resolve().parents[1]
SETTINGS = """
solution = "medical-classification"
[data]
tiny = true
[train]
epochs = 1
max_steps = 2
devices = 1
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A small project with the hooks of this one; your patients and runs are not touched."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "pegboard.toml").write_text(SETTINGS)
    shutil.copy(HERE / "hooks.py", folder)
    return open_project(folder)


def test_the_settings_of_this_project_are_valid() -> None:
    project = open_project(HERE)
    assert not project.board.quarantined
    assert not project.board.unknown_hooks()


def test_the_chain_gives_half_of_a_ct_the_grain_of_a_low_dose_and_no_mr(project: Project) -> None:
    clean = np.full((16, 32, 32), -700, dtype=np.float32)
    sample = Sample(inputs={"image": clean}, targets={})
    implementations = project.board.hook.augment.get_hookimpls()
    ours = next(one.function for one in implementations if one.plugin_name == "hooks.py")
    np.random.seed(1)
    changed = [ours(project.settings, sample).inputs["image"] for _ in range(40)]
    grainy = [image - clean for image in changed if (image != clean).any()]
    assert 10 <= len(grainy) <= 30
    assert 30 < max(noise.std() for noise in grainy) < 66
    assert all(noise.dtype == np.float32 for noise in grainy)
    # Neighbours in the slice have some in common, slices have none.
    noise = max(grainy, key=np.std)
    assert np.corrcoef(noise[:, :, 1:].ravel(), noise[:, :, :-1].ravel())[0, 1] > 0.4
    assert abs(np.corrcoef(noise[1:].ravel(), noise[:-1].ravel())[0, 1]) < 0.1
    mr = project.settings.data.model_copy(update={"modality": "mr"})
    settings = project.settings.model_copy(update={"data": mr})
    assert all(ours(settings, sample) is sample for _ in range(20))


def test_the_wrapper_says_who_reads_a_finding(project: Project) -> None:
    score = np.array([0.01, 0.45, 0.95], dtype=np.float32)
    outputs = {"score": score, "probabilities": np.stack([1 - score, score], axis=1)}
    answers = project.board.hook.encode_answer(
        settings=project.settings, outputs=outputs, thresholds={"positive": 0.5}, request=None
    )
    assert [answer["reading"] for answer in answers] == ["routine", "two readers", "first"]


def test_the_notification_keeps_a_line_of_every_stage(project: Project) -> None:
    run_stages(open_run(project, SilentProgress()), "train", SilentProgress())
    lines = (project.folder / "audit.jsonl").read_text().splitlines()
    assert [json.loads(line)["stage"] for line in lines] == ["prepare", "check", "train"]
