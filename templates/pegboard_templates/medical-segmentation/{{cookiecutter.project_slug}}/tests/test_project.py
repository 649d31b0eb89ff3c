"""This project's settings and hooks, on a few generated volumes: `pytest` takes seconds."""

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
solution = "medical-segmentation"
[data]
tiny = true
[model]
channels = 4
levels = 2
patch = [16, 16, 16]
patches = 1
overlap = 0.0
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


def test_the_chain_lays_streaks_over_some_patches_and_not_over_an_mr(project: Project) -> None:
    clean = np.full((16, 24, 24), -700, dtype=np.float32)
    sample = Sample(inputs={"image": clean}, targets={"mask": np.zeros((16, 24, 24), np.uint8)})
    implementations = project.board.hook.augment.get_hookimpls()
    ours = next(one.function for one in implementations if one.plugin_name == "hooks.py")
    np.random.seed(1)
    changed = [ours(project.settings, sample).inputs["image"] for _ in range(200)]
    streaked = [image for image in changed if (image != clean).any()]
    assert 5 <= len(streaked) <= 40
    assert all(image.dtype == np.float32 for image in streaked)
    assert all(np.abs(image - clean).max() <= 250 for image in streaked)
    assert all((image[:, 0, 0] == clean[:, 0, 0]).any() for image in streaked)
    mr = project.settings.data.model_copy(update={"modality": "mr"})
    settings = project.settings.model_copy(update={"data": mr})
    assert all(ours(settings, sample) is sample for _ in range(50))


def balls(*radii: int) -> dict[str, Array]:
    """Return what `infer` says of nodules with these radii, in voxels of one millimetre."""
    depth, height, width = np.mgrid[-15:16, -15:16, -15 : 32 * len(radii) - 16]
    mask = np.zeros(depth.shape, dtype=bool)
    for place, radius in enumerate(radii):
        mask |= depth**2 + height**2 + (width - 32 * place) ** 2 < radius**2
    return {
        "probabilities": mask[None, None].astype(np.float32),
        "volume_ml": np.array([[mask.sum() / 1000]], dtype=np.float32),
    }


@pytest.mark.parametrize(
    ("radii", "reasons"),
    [
        ((4, 4, 4), []),
        ((4, 6), ["nodule: one is as large as a ball of 12 mm"]),
        (
            (15, 15, 15, 15),
            ["nodule: 56 ml are hardly possible", "nodule: one is as large as a ball of 30 mm"],
        ),
    ],
)
def test_the_wrapper_says_why_a_case_should_be_looked_at(
    project: Project, radii: tuple[int, ...], reasons: list[str]
) -> None:
    answers = project.board.hook.encode_answer(
        settings=project.settings, outputs=balls(*radii), thresholds={}, request=None
    )
    assert answers[0]["look_at"] == reasons


def test_the_notification_keeps_a_line_that_says_nothing_of_a_patient(project: Project) -> None:
    event = AnswerEvent(
        solution="medical-segmentation", count=1, seconds=12.345, target="onnx/fp32"
    )
    project.board.hook.after_answer(settings=project.settings, event=event)
    (line,) = (project.settings.serve.folder / "answers.jsonl").read_text().splitlines()
    kept = json.loads(line)
    assert kept.pop("time").endswith("Z")
    assert kept == {"model": "onnx/fp32", "cases": 1, "seconds": 12.35}


def test_it_trains_with_these_hooks(project: Project) -> None:
    run_stages(open_run(project, SilentProgress()), "train", SilentProgress())
    assert list(project.folder.glob("runs/*/checkpoints/*"))
