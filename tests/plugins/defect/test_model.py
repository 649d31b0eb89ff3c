from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pegboard.batching import stack
from pegboard.records import ExportRequest
from pegboard.targets import onnx
from pegboard_defect import data
from pegboard_defect.deploy import outputs_of, signature
from pegboard_defect.inputs import Normalise, OrientedGradients, Pixels
from pegboard_defect.model import (
    InspectionNet,
    Inspector,
    Layout,
    build,
    mask_loss,
    mix,
)
from pegboard_defect.settings import DefectModel, DefectSettings


@pytest.fixture
def dataset(generated: DefectSettings) -> data.InspectionDataset:
    return data.load(generated, "train")


def test_outputs_are_probabilities_and_a_map_of_the_pictures_size(
    generated: DefectSettings, dataset: data.InspectionDataset
) -> None:
    model = build(generated, dataset).eval()
    outputs = model(torch.randint(0, 256, (3, 48, 48, 1), dtype=torch.uint8))
    assert outputs["probabilities"].shape == (3, 5)
    torch.testing.assert_close(outputs["probabilities"].sum(dim=1), torch.ones(3))
    torch.testing.assert_close(outputs["score"], 1 - outputs["probabilities"][:, 0])
    assert outputs["map"].shape == (3, 48, 48)
    assert 0 <= outputs["map"].min() <= outputs["map"].max() <= 1


def test_brightness_is_measured_on_the_training_pictures(dataset: data.InspectionDataset) -> None:
    normalise = Normalise(Pixels(1))
    normalise.fit(dataset)
    pixels = torch.stack(
        [torch.from_numpy(dataset[i].inputs["image"]) for i in range(len(dataset))]
    )
    normal = normalise(pixels)
    assert normal.shape == (len(dataset), 1, 48, 48)
    assert normal.mean().abs() < 0.01
    assert (normal.std() - 1).abs() < 0.01


def test_gradients_say_which_way_edges_run_and_not_how_bright_it_is() -> None:
    seen = OrientedGradients(1, 4, positions=True)
    rows = torch.arange(64)
    stripes = (128 + 60 * torch.sin(rows * 0.8)).to(torch.uint8)
    upright = stripes[None, :].expand(64, -1)[None, :, :, None]
    lying = upright.transpose(1, 2)
    strength, cosine2, *_ = seen(upright)[0, :, 4:-4, 4:-4]
    assert seen(upright).shape == (1, 9, 16, 16)
    assert (cosine2 / strength).mean() > 0.9
    _, other, *_ = seen(lying)[0, :, 4:-4, 4:-4]
    torch.testing.assert_close(other, -cosine2.T)
    # At 0.3 times the contrast the floor under the measure counts a little.
    faint = (upright.float() * 0.3).to(torch.uint8)
    torch.testing.assert_close(
        seen(faint)[0, 0].mean(), seen(upright)[0, 0].mean(), rtol=0.15, atol=0
    )


def test_a_flipped_picture_gives_flipped_gradients_with_the_sine_turned() -> None:
    seen = OrientedGradients(1, 4, positions=True)
    image = torch.randint(0, 256, (1, 48, 48, 1), dtype=torch.uint8)
    one, other = seen(image)[0], seen(image.flip(2))[0].flip(2)
    sign = torch.tensor([1, 1, -1, 1, -1, 1, 1, 1, 1.0])[:, None, None]
    torch.testing.assert_close(one, sign * other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("what", ["pixels", "gradients"])
def test_either_input_trains_and_answers(
    generated: DefectSettings, dataset: data.InspectionDataset, what: str
) -> None:
    table = DefectModel(input=what, cell=2, layout=5)
    settings = DefectSettings(data=generated.data, model=table)
    model = build(settings, dataset)
    batch = stack([dataset[index] for index in range(4)])
    assert model.losses(batch)["loss"].isfinite()  # type: ignore[operator]
    assert model.eval()(batch.inputs["image"])["map"].shape == (4, 48, 48)


def test_pictures_without_a_mask_train_the_decision_alone(
    generated: DefectSettings, dataset: data.InspectionDataset
) -> None:
    model = build(generated, dataset)
    batch = stack([dataset[index] for index in range(8)])
    known = model.losses(batch)  # type: ignore[operator]
    assert known["mask"] > 0
    batch.targets["has_mask"].zero_()
    unknown = model.losses(batch)  # type: ignore[operator]
    assert unknown["mask"] == 0
    torch.testing.assert_close(unknown["loss"], unknown["decision"])


def test_the_decision_does_not_touch_the_map(
    generated: DefectSettings, dataset: data.InspectionDataset
) -> None:
    model = build(generated, dataset)
    assert isinstance(model, InspectionNet)
    outputs = model(torch.randint(0, 256, (4, 48, 48, 1), dtype=torch.uint8))
    outputs["score"].sum().backward()
    assert model.decoder is not None
    assert all(parameter.grad is None for parameter in model.decoder.parameters())
    assert model.backbone.get_parameter("conv1.weight").grad is not None


def test_a_defect_of_one_pixel_is_not_lost_on_the_coarser_map() -> None:
    mask = torch.zeros(1, 64, 64, dtype=torch.uint8)
    mask[0, 17, 33] = 1
    mask = mask.float()
    right, wrong = torch.full((1, 1, 32, 32), -20.0), torch.full((1, 1, 32, 32), -20.0)
    right[0, 0, 8, 16] = 20.0
    wrong[0, 0, 8, 17] = 20.0
    known = torch.ones(1)
    assert mask_loss(right, mask, known) < 0.01
    assert mask_loss(wrong, mask, known) > 0.3


def test_without_masks_the_map_shows_what_the_decision_looks_at(
    generated: DefectSettings,
) -> None:
    settings = DefectSettings(
        data=generated.data, model=DefectModel(mask_weight=0, input="pixels", backbone="tiny")
    )
    model = build(settings, None).eval()
    assert isinstance(model, InspectionNet)
    image = torch.randint(0, 256, (1, 160, 160, 1), dtype=torch.uint8)
    features = model.backbone(model.normalise(image))[-1][0]
    liveliest = int(features.flatten(1).std(dim=1).argmax())
    with torch.no_grad():
        model.decision.weight.zero_()
        model.decision.bias.zero_()
        model.decision.weight[1, liveliest] = 5.0
    where = model(image)["map"]
    seen = features[liveliest].detach().flatten()
    shown = torch.nn.functional.adaptive_avg_pool2d(where, features.shape[1:]).detach().flatten()
    assert np.corrcoef(seen, shown)[0, 1] > 0.5


@pytest.mark.parametrize("task", ["classify", "segment"])
def test_a_few_steps_learn_a_batch(
    generated: DefectSettings, dataset: data.InspectionDataset, task: str
) -> None:
    torch.manual_seed(0)
    settings = DefectSettings(
        data=generated.data,
        model=DefectModel(task=task, dropout=0, input="pixels", backbone="tiny"),
    )
    model = build(settings, dataset)
    batch = stack([dataset[index] for index in range(12)])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss = model.losses(batch)["loss"]  # type: ignore[operator]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_a_frozen_backbone_does_not_learn(generated: DefectSettings) -> None:
    settings = DefectSettings(data=generated.data, model=DefectModel(freeze=True))
    model = build(settings, None)
    learning = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert learning == {"decoder", "decision"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "table",
    [
        DefectModel(input="pixels"),
        DefectModel(input="gradients", layout=5),
        DefectModel(input="gradients", words=12),
    ],
)
def test_the_exported_inspector_answers_as_the_trained_one(
    generated: DefectSettings, dataset: data.InspectionDataset, tmp_path: Path, table: DefectModel
) -> None:
    settings = DefectSettings(data=generated.data, model=table)
    deployable = Inspector(build(settings, dataset).eval(), outputs_of(generated))
    contract = signature(generated)
    path = onnx.export(ExportRequest(deployable=deployable, signature=contract, folder=tmp_path))
    predictor = onnx.load(path, contract)
    flat = {"image": np.full((1, 48, 48, 1), 90, np.uint8)}
    for inputs in (flat, contract.example(seed=1, batch=1), contract.example(seed=2, batch=5)):
        expected = deployable(torch.from_numpy(inputs["image"]))
        for name, found in predictor(inputs).items():
            np.testing.assert_allclose(found, expected[name].detach().numpy(), atol=1e-4)


def test_mixing_keeps_picture_and_label_in_one_proportion() -> None:
    torch.manual_seed(1)
    pictures = torch.arange(4.0)[:, None, None, None].expand(4, 1, 2, 2)
    labels = torch.eye(4)
    mixed, label = mix(1.0, pictures, labels)
    torch.testing.assert_close(label.sum(dim=1), torch.ones(4))
    torch.testing.assert_close(mixed[:, 0, 0, 0], (label * torch.arange(4.0)).sum(dim=1))
    assert not torch.equal(label, labels)


def test_mixed_training_has_a_gradient(
    generated: DefectSettings, dataset: data.InspectionDataset
) -> None:
    settings = DefectSettings(data=generated.data, model=DefectModel(mixup=0.3))
    model = build(settings, dataset)
    losses = model.losses(stack([dataset[index] for index in range(6)]))  # type: ignore[operator]
    losses["loss"].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_layout_tells_places_apart() -> None:
    torch.manual_seed(0)
    layout = Layout(1, 5, 2).eval()
    here, there = torch.zeros(1, 1, 23, 23), torch.zeros(1, 1, 23, 23)
    here[0, 0, 2, 2] = 100.0
    there[0, 0, 18, 18] = 100.0
    assert layout(here).shape == (1, 2)
    assert (layout(here) - layout(there)).abs().max() > 0.01


@pytest.mark.slow
def test_two_processes_learn_the_same_in_shards_as_with_whole_weights(
    make_project: Callable[..., Path], pegboard: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """Convolutions lie channel by channel in memory, which fully_shard refuses as it is."""
    learnt = []
    for strategy in ("fsdp", "ddp"):
        text = (
            'solution = "defect"\n[data]\ntiny = true\nsize = [48, 48]\n[train]\nepochs = 1\n'
            f'max_steps = 2\nbatch_size = 8\ndevices = 2\nstrategy = "{strategy}"\n'
        )
        folder = make_project(text, name=strategy)
        ended = pegboard("train", folder=folder)
        assert ended.returncode == 0, ended.stderr
        learnt.append(load_file(next(folder.glob("runs/*/weights.safetensors"))))
    for name, value in learnt[0].items():
        torch.testing.assert_close(value, learnt[1][name], atol=1e-3, rtol=1e-3)
