"""This project's settings and hooks, on a few generated scenes: `pytest` takes seconds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from pegboard.lifecycle import open_run, run_stages
from pegboard.progress import SilentProgress
from pegboard.project import Project, open_project
from pegboard.records import AnswerEvent, Array, Sample

HERE = Path(__file__).resolve().parents[1]
SETTINGS = """
solution = "lidar"
[data]
tiny = true
range = [0, -40, -3, 72, 40, 1]
[model]
pillar = 1.0
features = 4
channels = [4, 4, 4]
[train]
epochs = 1
max_steps = 2
devices = 1
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A small project with the hooks of this one; your scans and runs are not touched."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "pegboard.toml").write_text(SETTINGS)
    shutil.copy(HERE / "hooks.py", folder)
    return open_project(folder)


def test_the_settings_of_this_project_are_valid() -> None:
    project = open_project(HERE)
    assert not project.board.quarantined
    assert not project.board.unknown_hooks()


def two_posts() -> Sample:
    """Return a scan of two posts, 40 degrees apart, and a box around each."""
    boxes = np.array([[10, 0, 0, 1, 1, 2, 0], [8, 6.7, 0, 1, 1, 2, 0]], dtype=np.float32)
    steps = np.linspace(-0.3, 0.3, 5)
    cloud = [[x + dx, y + dy, 0, 0] for x, y in boxes[:, :2] for dx in steps for dy in steps]
    targets = {
        "boxes": boxes,
        "labels": np.array([1, 2]),
        "velocity": np.full((2, 2), np.nan, dtype=np.float32),
    }
    return Sample(inputs={"points": np.array(cloud, dtype=np.float32)}, targets=targets)


def test_the_chain_hides_a_part_of_some_scans_and_what_is_no_longer_seen(project: Project) -> None:
    sample = two_posts()
    implementations = project.board.hook.augment.get_hookimpls()
    ours = next(one.function for one in implementations if one.plugin_name == "hooks.py")
    np.random.seed(1)
    changed = [ours(sample) for _ in range(300)]
    dirty = [one for one in changed if len(one.inputs["points"]) < 50]
    assert 10 <= len(dirty) <= 50
    assert {len(one.targets["boxes"]) for one in dirty} == {1, 2}
    for one in dirty:
        left: Array = one.inputs["points"]
        near = [np.abs(left[:, :2] - box[:2]).max(axis=1) < 0.4 for box in one.targets["boxes"]]
        assert all(seen.sum() >= 3 for seen in near)
        assert len(one.targets["labels"]) == len(one.targets["boxes"])


def maps(*middles: tuple[float, float]) -> dict[str, Array]:
    """Return what `infer` says of cars, 4 x 2 m and heading ahead, in cells of 1 m."""
    heat = np.zeros((1, 3, 72, 80), dtype=np.float32)
    boxes = np.zeros((1, 10, 72, 80), dtype=np.float32)
    boxes[:, 3:6] = np.log([4, 2, 1.5])[:, None, None]
    boxes[:, [6, 8]] = 1.0  # Cosines of the heading and of twice the heading.
    for x, y in middles:
        row, column = int(x), int(y + 40)
        heat[0, 0, row, column] = 0.9
        boxes[0, :2, row, column] = x - row - 0.5, y + 40 - column - 0.5
    return {"heat": heat, "boxes": boxes}


@pytest.mark.parametrize(
    ("middles", "told"),
    [
        ([], []),
        ([(20.0, 8.0)], []),
        ([(60.0, 0.0)], []),
        ([(30.0, 0.0), (12.0, -2.4), (20.0, 3.0)], ["Car in 10.0 m", "Car in 28.0 m"]),
    ],
)
def test_the_wrapper_says_what_stands_in_the_way(
    project: Project, middles: list[tuple[float, float]], told: list[str]
) -> None:
    (answer,) = project.board.hook.encode_answer(
        settings=project.settings, outputs=maps(*middles), thresholds={}, request=None
    )
    assert len(answer["objects"]) == len(middles)
    assert answer["in_the_way"] == told


def test_the_notification_keeps_a_line_of_every_answer(project: Project) -> None:
    event = AnswerEvent(solution="lidar", count=1, seconds=0.04321, target="onnx/fp32")
    project.board.hook.after_answer(settings=project.settings, event=event)
    (line,) = (project.settings.serve.folder / "answers.jsonl").read_text().splitlines()
    kept = json.loads(line)
    assert kept.pop("time").endswith("Z")
    assert kept == {"model": "onnx/fp32", "scans": 1, "milliseconds": 43.2}


def test_it_trains_with_these_hooks(project: Project) -> None:
    run_stages(open_run(project, SilentProgress()), "train", SilentProgress())
    assert list(project.folder.glob("runs/*/checkpoints/*"))
