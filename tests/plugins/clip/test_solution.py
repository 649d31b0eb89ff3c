"""The solution from the pictures to the server: what is trained, exported and answered fits."""

from __future__ import annotations

import base64
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pegboard.bundle import read_bundle, write_manifest
from pegboard.evaluation import ModulePredictor, batches_of, completed, tabulated
from pegboard.files import sha256_of
from pegboard.lifecycle import open_run, run_stages
from pegboard.progress import SilentProgress
from pegboard.project import open_project
from pegboard.runs import Run
from pegboard.serving.process import running_server
from pegboard.stages.evaluate import read_evaluation
from pegboard.weights import load_trained
from pegboard_clip import figures
from pegboard_clip.deploy import UNKNOWN_SCRIPT
from pegboard_clip.encoder import model_of, open_encoder
from pegboard_clip.index import Index, refresh
from pegboard_clip.search import query_vector

pytestmark = pytest.mark.slow

SETTINGS = """solution = "clip"

[data]
folder = "{data}"
tiny = true
prompts = ["{{}}", "a picture of a {{}}"]

[model]
{model}

[train]
epochs = {epochs}
batch_size = 16
devices = 1
{train}

[deploy]
golden = 4
reference = 32
"""


def begun(folder: Path, data: Path, *, model: str = "", train: str = "", epochs: int = 1) -> Run:
    folder.mkdir(parents=True)
    text = SETTINGS.format(data=data, model=model, train=train, epochs=epochs)
    (folder / "pegboard.toml").write_text(text)
    return open_run(open_project(folder), SilentProgress())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def verified(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Run:
    run = begun(tmp_path_factory.mktemp("clip") / "project", data, epochs=2)
    run_stages(run, "verify", SilentProgress())
    return run


def test_the_exported_pair_ranks_as_torch_does(verified: Run) -> None:
    board, settings = verified.project.board, verified.project.settings
    bundle = read_bundle(verified.bundle)
    folder = bundle.folder / bundle.candidate("onnx/fp32").file
    assert {path.name for path in folder.iterdir()} == {"image", "text", "parts.json"}
    model = load_trained(verified)
    deployable = board.hook.build_deployable(settings=settings, model=model)
    dataset = board.hook.load_split(settings=settings, split="test")
    found = []
    for predictor in (
        ModulePredictor(deployable),
        bundle.load_predictor(board.collect("deploy_targets"), bundle.candidate("onnx/fp32")),
    ):
        # Batches of five, and a last one that is smaller: both axes are dynamic.
        rows = tabulated(board, settings, predictor, batches_of(board, settings, dataset, 5))
        found.append(completed(board, settings, predictor, rows))
    for name in ("text_rank", "image_rank", "found"):
        np.testing.assert_array_equal(found[0][name], found[1][name])


def test_a_bundle_embeds_without_the_project_that_made_it(verified: Run, tmp_path: Path) -> None:
    encoder = open_encoder(tmp_path, verified.bundle)
    dataset: Any = verified.project.board.hook.load_split(
        settings=verified.project.settings, split="test"
    )
    images = np.stack([dataset.image(number) for number in range(3)])
    assert images.shape[1:] == (encoder.size, encoder.size, 3)
    texts = encoder.texts(["a red circle", "一颗蓝色星星"])
    for vectors, count in ((encoder.images(images), 3), (texts, 2)):
        assert vectors.shape == (count, encoder.dimension)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    # Its captions were in both languages; Greek was never met.
    assert encoder.warning("红色 red") == ""
    assert encoder.warning("ερυθρός") == UNKNOWN_SCRIPT
    carried = read_bundle(verified.bundle).carried["model.vocabulary"]
    assert sha256_of(verified.bundle / carried) == sha256_of(
        next(verified.project.settings.data.folder.glob("vocabulary-*.json"))
    )


def test_the_same_model_keeps_its_index_and_another_does_not(verified: Run, tmp_path: Path) -> None:
    """Written again, with other measurements, the bundle is another; what it embeds is the same."""
    folder = Path(shutil.copytree(verified.bundle, tmp_path / "bundle"))
    first = open_encoder(tmp_path, folder).model
    before = read_bundle(folder)
    after = write_manifest(replace(before, created="2030-01-01T00:00:00Z"))
    assert after.version != before.version
    assert open_encoder(tmp_path, folder).model == first
    assert model_of(after, after.candidate("torch/fp32")) != first


def test_the_gallery_searches_with_the_model_that_the_server_has_open(
    verified: Run, tmp_path: Path
) -> None:
    """The server's batches give what the bundle gives alone, by words and by a picture."""
    encoder = open_encoder(tmp_path, verified.bundle)
    dataset: Any = verified.project.board.hook.load_split(
        settings=verified.project.settings, split="test"
    )
    (tmp_path / "pictures").mkdir()
    for number in range(6):
        Image.fromarray(dataset.image(number)).save(tmp_path / "pictures" / f"{number}.png")
    with Index.create(
        tmp_path / "index", model=encoder.model, dimension=encoder.dimension
    ) as index:
        refresh(index, tmp_path / "pictures", encoder, SilentProgress())
        words = query_vector(encoder, "red circle - blue star")
        expected = [match.name for match in index.search(words, 6)]
    picture = base64.b64encode((tmp_path / "pictures" / "4.png").read_bytes()).decode()
    command = ("--bundle", verified.bundle, f"serve.index={tmp_path / 'index'}")
    with running_server(*command, folder=tmp_path, log=tmp_path / "log") as server:
        found = server.ask("POST", "/search", {"q": "red circle - blue star"}).json()
        assert [match["file"] for match in found["matches"]] == expected
        found = server.ask("POST", "/search", {"image": picture}).json()
        assert found["matches"][0]["file"] == "4.png"
        counted = server.ask("GET", "/metrics").body.decode()
        assert re.search(r"pegboard_batch_records_count[^ ]* [2-9]", counted), counted
        assert server.stop() == 0


def test_the_report_shows_queries_with_their_pictures(verified: Run) -> None:
    settings: Any = verified.project.settings
    drawn = {one.name: one for one in figures.draw(settings, read_evaluation(verified))}
    assert {"text_to_image_recall", "image_to_text_recall", "worst_queries"} <= set(drawn)
    worst = str(drawn["worst_queries"].content)
    assert worst.count("rank ") == min(figures.WORST, len(read_evaluation(verified).rows["label"]))
    assert "data:image/jpeg;base64," in worst and "3px solid #3f8f5f" in worst


# --- Fine-tuning ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(verified: Run) -> Path:
    return verified.weights_file


def tuned(folder: Path, data: Path, checkpoint: Path, *, model: str = "", train: str = "") -> Run:
    run = begun(folder, data, model=f'weights = "{checkpoint}"\n{model}', train=train)
    run_stages(run, "train", SilentProgress())
    return run


def test_interpolated_weights_lie_between_the_checkpoint_and_the_fine_tuned_ones(
    tmp_path: Path, data: Path, checkpoint: Path
) -> None:
    whole = load_file(tuned(tmp_path / "whole", data, checkpoint).weights_file)
    train = 'interpolation = 0.25\nkeep = "last"'
    part = load_file(tuned(tmp_path / "part", data, checkpoint, train=train).weights_file)
    first = load_file(checkpoint)
    name = "text_projection"
    assert (whole[name] - first[name]).abs().max() > 1e-4
    expected = first[name] + 0.25 * (whole[name] - first[name])
    torch.testing.assert_close(part[name], expected)


def test_the_report_has_the_checkpoint_beside_the_fine_tuned_model(
    tmp_path: Path, data: Path, checkpoint: Path, verified: Run
) -> None:
    run = tuned(tmp_path / "tuned", data, checkpoint)
    run_stages(run, "evaluate", SilentProgress())
    baselines = {one.name: one for one in read_evaluation(run).baselines}
    assert list(baselines) == ["checkpoint", "words_and_colours"]
    # What began is what was measured where it was trained.
    before = read_evaluation(verified).headline.value
    assert baselines["checkpoint"].headline.value == pytest.approx(before)


def test_a_locked_image_tower_stays_as_the_checkpoint_has_it(
    tmp_path: Path, data: Path, checkpoint: Path
) -> None:
    run = tuned(tmp_path / "locked", data, checkpoint, model="locked = true")
    first, after = load_file(checkpoint), load_file(run.weights_file)
    assert first.keys() == after.keys()
    images = [name for name in first if name.startswith("visual.")]
    assert all(torch.equal(first[name], after[name]) for name in images)
    assert not torch.equal(first["text_projection"], after["text_projection"])
