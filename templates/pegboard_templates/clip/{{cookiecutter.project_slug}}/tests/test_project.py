"""This project's settings and hooks, on a few generated scenes: `pytest` takes seconds."""

from __future__ import annotations

import base64
import shutil
from pathlib import Path

import numpy as np
import pytest
from pegboard.lifecycle import open_run, run_stages
from pegboard.progress import SilentProgress
from pegboard.project import Project, open_project
from pegboard.records import Sample
from PIL import Image

HERE = Path(__file__).resolve().parents[1]
SETTINGS = """
solution = "clip"
[data]
tiny = true
[model]
image_size = 32
vocabulary_size = 300
[train]
epochs = 1
batch_size = 8
max_steps = 2
devices = 1
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A small project with the hooks of this one; your pictures and runs are not touched."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "pegboard.toml").write_text(SETTINGS)
    shutil.copy(HERE / "hooks.py", folder)
    return open_project(folder)


def test_the_settings_of_this_project_are_valid() -> None:
    project = open_project(HERE)
    assert not project.board.quarantined
    assert not project.board.unknown_hooks()


def test_the_chain_lays_a_faint_watermark_on_some_pictures(project: Project) -> None:
    grey = np.full((72, 72, 3), 128, dtype=np.uint8)
    sample = Sample(inputs={"image": grey, "tokens": np.array([1, 2])})
    implementations = project.board.hook.augment.get_hookimpls()
    ours = next(one.function for one in implementations if one.plugin_name == "hooks.py")
    np.random.seed(1)
    pictures = [ours(sample).inputs["image"] for _ in range(300)]
    marked = [picture for picture in pictures if (picture != grey).any()]
    assert 10 <= len(marked) <= 50
    for picture in marked:
        assert picture.shape == grey.shape and picture.dtype == np.uint8
        assert np.abs(picture.astype(int) - 128).max() <= 40
        assert (picture != grey).any(axis=2).mean() < 0.2
    assert (grey == 128).all()


def test_the_wrapper_adds_embeddings_in_bytes(project: Project) -> None:
    vector = np.random.default_rng(0).normal(size=(1, 256))
    vector = (vector / np.linalg.norm(vector)).astype(np.float32)
    (answer,) = project.board.hook.encode_answer(
        settings=project.settings,
        outputs={"image_embedding": vector},
        thresholds={},
        request=None,
    )
    assert np.allclose(answer["image_embedding"], vector[0], atol=1e-5)
    assert "text_embedding_int8" not in answer
    code = np.frombuffer(base64.b64decode(answer["image_embedding_int8"]), np.int8).astype(float)
    assert code @ vector[0] / np.linalg.norm(code) > 0.999


def test_the_check_names_captions_that_a_camera_wrote(project: Project, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    table = tmp_path / "captions.csv"
    table.write_text("image,caption\n1.png,IMG_0001.JPG\n1.png,a black square\n1.png,dsc 17\n")
    data = project.settings.data.model_copy(update={"path": table, "tiny": False})
    implementations = project.board.hook.check_data.get_hookimpls()
    ours = next(one.function for one in implementations if one.plugin_name == "hooks.py")
    (finding,) = ours(project.settings.model_copy(update={"data": data}))
    assert finding.level == "warning"
    assert finding.what.startswith("2 captions")
    table.write_text("image,caption\n1.png,a black square of 8 pixels\n")
    assert ours(project.settings.model_copy(update={"data": data})) == []


def test_it_trains_with_these_hooks(project: Project) -> None:
    run_stages(open_run(project, SilentProgress()), "train", SilentProgress())
    assert list(project.folder.glob("runs/*/checkpoints/*"))
