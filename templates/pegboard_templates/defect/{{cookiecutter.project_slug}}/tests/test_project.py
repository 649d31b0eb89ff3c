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
from pegboard.records import Sample

HERE = Path(__file__).resolve().parents[1]
SETTINGS = """
solution = "defect"
[data]
tiny = true
size = [64, 64]
[train]
epochs = 1
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


def test_the_chain_puts_little_dust_on_training_pictures(project: Project) -> None:
    clean = np.full((64, 64, 1), 128, dtype=np.uint8)
    sample = Sample(inputs={"image": clean}, targets={"mask": np.zeros((64, 64), np.uint8)})
    implementations = project.board.hook.augment.get_hookimpls()
    ours = next(one.function for one in implementations if one.plugin_name == "hooks.py")
    np.random.seed(1)
    changed = [ours(sample).inputs["image"] for _ in range(20)]
    specks = [int((image != clean).sum()) for image in changed]
    assert 0 < max(specks) <= 6
    assert (clean == 128).all()


def test_the_wrapper_says_which_lane_a_part_goes_to(project: Project) -> None:
    outputs = {
        "score": np.array([0.01, 0.51, 0.95], dtype=np.float32),
        "map": np.zeros((3, 64, 64), dtype=np.float32),
    }
    answers = project.board.hook.encode_answer(
        settings=project.settings,
        outputs=outputs,
        thresholds={"defect": 0.5, "pixel": 0.5},
        request=None,
    )
    assert [answer["lane"] for answer in answers] == ["pass", "reinspect", "scrap"]


def test_the_notification_keeps_a_line_of_every_stage(project: Project) -> None:
    run_stages(open_run(project, SilentProgress()), "train", SilentProgress())
    lines = (project.folder / "audit.jsonl").read_text().splitlines()
    assert [json.loads(line)["stage"] for line in lines] == ["prepare", "check", "train"]
