"""Momentum contrast: losses by hand, a slow network without gradient, a queue that rolls over."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pegboard.optimization import adamw_with_cosine
from pegboard.records import Batch, ExportRequest
from pegboard.targets import onnx
from pegboard_defect.backbones import build_backbone
from pegboard_defect.inputs import Pixels
from pegboard_defect.moco.deploy import signature
from pegboard_defect.moco.model import (
    Embedder,
    MocoNet,
    build,
    contrast,
    gathered,
    momentum_at,
    queue_loss,
    spread,
    steps_of,
    symmetric_loss,
)
from pegboard_defect.moco.settings import MocoData, MocoModel, MocoSettings, MocoTrain

DATA = MocoData(size=(32, 32))


def small(version: str = "v3", **changed: Any) -> MocoNet:
    torch.manual_seed(0)
    changed = {"data": DATA, "dim": 16, "hidden": 32, "queue": 24, **changed}
    backbone = build_backbone("tiny", 1, DATA.size)
    model = MocoNet(backbone, Pixels(1), version=version, **changed)
    model.normalise.mean.fill_(0.5)
    model.normalise.scale.fill_(4.0)
    model.total_steps.fill_(10)
    return model


def batch(count: int = 8, seed: int = 0) -> Batch:
    """Stripes of different width and direction: pictures that can be told apart."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:32, 0:32]
    waves = [
        np.sin(rows * generator.uniform(0.1, 1.5) + columns * generator.uniform(0.1, 1.5))
        for _ in range(count)
    ]
    image = (127 + 100 * np.stack(waves)).astype(np.uint8)[..., None]
    return Batch(inputs={"image": torch.from_numpy(image)}, targets={})


def trained(
    model: MocoNet, steps: int, first: int = 0, lr: float = 2e-3, fresh: bool = False
) -> list[float]:
    optimization = adamw_with_cosine(MocoTrain(lr=lr, warmup=0.0), model, 100)
    losses = []
    for step in range(first, first + steps):
        torch.manual_seed(step)
        loss = model.losses(batch(12, seed=step if fresh else 0))["loss"]
        optimization.optimizer.zero_grad()
        loss.backward()
        optimization.optimizer.step()
        losses.append(float(loss.detach()))
    return losses


# --- Losses ---------------------------------------------------------------------------------------


def test_contrast_is_info_nce_as_worked_out_by_hand() -> None:
    # Two queries along the axes; keys of length one at cosines 1, 0 and 0.6, 0.8.
    queries = torch.tensor([[2.0, 0.0], [0.0, 5.0]])
    keys = torch.tensor([[3.0, 0.0], [0.6, 0.8]])
    first = -math.log(math.exp(1 / 0.25) / (math.exp(1 / 0.25) + math.exp(0.6 / 0.25)))
    second = -math.log(math.exp(0.8 / 0.25) / (math.exp(0.0) + math.exp(0.8 / 0.25)))
    by_hand = 2 * 0.25 * (first + second) / 2
    assert contrast(queries, keys, 0, 0.25).item() == pytest.approx(by_hand, rel=1e-5)


def test_keys_of_other_processes_are_pictures_to_tell_apart() -> None:
    queries, keys = torch.eye(3)[:2], torch.eye(3)
    swapped = keys[[2, 0, 1]]  # This process's keys begin at place 1.
    alone = contrast(queries, keys[:2], 0, 0.2)
    assert contrast(queries, swapped, 1, 0.2) > alone
    assert contrast(queries, swapped, 0, 0.2) > contrast(queries, swapped, 1, 0.2)
    assert gathered(keys) == (keys, 0)


def test_the_loss_of_v3_is_the_mean_of_both_orders() -> None:
    generator = torch.Generator().manual_seed(0)
    q1, q2, k1, k2 = (torch.randn(5, 7, generator=generator) for _ in range(4))
    both = symmetric_loss([q1, q2], [(k1, 0), (k2, 0)], 0.2)
    # A query never meets the key of its own view.
    expected = (contrast(q1, k2, 0, 0.2) + contrast(q2, k1, 0, 0.2)) / 2
    assert torch.allclose(both, expected)
    assert not torch.allclose(both, contrast(q1, k1, 0, 0.2))


def test_the_loss_of_v2_is_one_key_against_the_queue_as_worked_out_by_hand() -> None:
    query, key = torch.tensor([[1.0, 0.0]]), torch.tensor([[4.0, 3.0]])
    queue = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    weights = [math.exp(cosine / 0.5) for cosine in (0.8, 0.0, -1.0)]
    by_hand = -math.log(weights[0] / sum(weights))
    assert queue_loss(query, key, queue, 0.5).item() == pytest.approx(by_hand, rel=1e-5)


def test_spread_is_zero_when_all_is_one_and_about_one_when_nothing_is_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    assert spread(torch.ones(50, 8) * torch.rand(50, 1, generator=generator)) < 1e-5
    assert spread(torch.randn(500, 32, generator=generator)) == pytest.approx(1.0, abs=0.02)


# --- The slow network -----------------------------------------------------------------------------


def test_momentum_rises_from_the_first_to_one_along_half_a_cosine() -> None:
    assert momentum_at(0.9, 0, 100) == pytest.approx(0.9)
    assert momentum_at(0.9, 50, 100) == pytest.approx(0.95)
    assert momentum_at(0.9, 100, 100) == momentum_at(0.9, 130, 100) == 1.0
    momenta = [momentum_at(0.9, step, 100) for step in range(101)]
    assert momenta == sorted(momenta)
    assert small("v2", momentum=0.9).momentum_now() == 0.9


@pytest.mark.parametrize("version", ["v3", "v2"])
def test_the_slow_network_gets_no_gradient_and_is_no_parameter(version: str) -> None:
    model = small(version)
    model.losses(batch())["loss"].backward()
    assert not [name for name, _ in model.named_parameters() if name.startswith("slow")]
    assert not any(buffer.requires_grad for buffer in model.buffers())
    lacking = [name for name, p in model.named_parameters() if p.grad is None]
    assert lacking == []


def test_the_slow_network_follows_by_the_momentum_at_the_next_step() -> None:
    model = small(momentum=0.9)
    before = {name: value.clone() for name, value in model.slow.tensors().items()}
    trained(model, 1)
    fast = dict(model.encoder.named_parameters())
    name = "backbone.layer1.0.conv1.weight"
    # The step that was taken has not been followed yet, so that a resumed run is the same.
    assert torch.equal(model.slow.tensors()[name], before[name])
    assert not torch.equal(fast[name], before[name])
    momentum = momentum_at(0.9, 1, 10)
    expected = momentum * before[name] + (1 - momentum) * fast[name].detach()
    model.losses(batch())
    assert torch.allclose(model.slow.tensors()[name], expected, atol=1e-7)
    assert model.step == 2


def test_the_slow_network_has_batch_statistics_of_its_own() -> None:
    model = small("v2")  # Its two networks see one view each.
    name = "backbone.bn1.running_mean"
    model.losses(batch())
    slow, fast = model.slow.tensors()[name], model.encoder.get_buffer(name)
    assert slow.abs().sum() > 0
    assert not torch.equal(slow, fast)


@pytest.mark.parametrize("version", ["v3", "v2"])
def test_all_that_is_remembered_between_steps_is_in_the_state(version: str) -> None:
    model, resumed = small(version), small(version)
    trained(model, 2)
    resumed.load_state_dict(copy.deepcopy(model.state_dict()))
    # The optimiser is the core's to keep; here both begin a new one.
    for one in (model, resumed):
        trained(one, 1, first=2)
    for name, value in model.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_evaluation_moves_nothing() -> None:
    model = small("v2").eval()
    before = copy.deepcopy(model.state_dict())
    model.losses(batch())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


# --- The queue ------------------------------------------------------------------------------------


def test_the_queue_rolls_over() -> None:
    model = small("v2", queue=5)
    first, second, third = (functional.normalize(torch.randn(2, 16), dim=1) for _ in range(3))
    for keys in (first, second, third):
        model._remember(keys)
    assert torch.equal(model.queue, torch.stack([third[1], first[1], *second, third[0]]))
    assert model.next == 1
    many = functional.normalize(torch.randn(8, 16), dim=1)
    model._remember(many)
    assert {row.numpy().tobytes() for row in model.queue} == {
        row.numpy().tobytes() for row in many[3:]
    }


def test_a_step_puts_its_keys_into_the_queue_after_they_were_compared() -> None:
    model = small("v2")
    before = model.queue.clone()
    model.losses(batch(8))["loss"].backward()
    assert not torch.equal(model.queue[:8], before[:8])
    assert torch.equal(model.queue[8:], before[8:])
    assert torch.allclose(model.queue.norm(dim=1), torch.ones(24), atol=1e-5)


# --- Training -------------------------------------------------------------------------------------


EASY = DATA.model_copy(update={"min_crop": 1.0, "turns": "none", "light": 0.0, "blur": 0.0})


def test_a_few_steps_of_v3_lower_the_loss_on_pictures_that_can_be_told_apart() -> None:
    losses = trained(small(data=EASY), 12, lr=1e-2)
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])


def test_a_few_steps_of_v2_do_once_its_queue_holds_keys_and_no_noise() -> None:
    # Always other pictures: those that come again would be in the queue themselves.
    model = small("v2", data=EASY, momentum=0.8, queue=96)
    losses = trained(model, 18, lr=1e-2, fresh=True)
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[8:11])


def test_half_precision_gives_a_loss_of_single_precision() -> None:
    model = small()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model.losses(batch())
    assert losses["loss"].dtype == torch.float32
    losses["loss"].backward()
    assert losses["loss"].item() == pytest.approx(small().losses(batch())["loss"].item(), rel=0.1)


# --- Settings and deployment ----------------------------------------------------------------------


def settings(**model: Any) -> MocoSettings:
    changed = {"input": "pixels", "dim": 16, "hidden": 32, **model}
    return MocoSettings(data=DATA, model=MocoModel(**changed))


@pytest.mark.parametrize("version", ["v3", "v2"])
@pytest.mark.parametrize("backbone", ["tiny", "vit_tiny"])
def test_shapes_follow_from_the_settings_alone(version: str, backbone: str) -> None:
    table = settings(version=version, backbone=backbone)
    one, other = build(table, None), build(table, None)
    other.load_state_dict(one.state_dict())
    spec = signature(table).outputs[0]
    inputs = {
        name: torch.from_numpy(array) for name, array in signature(table).example(batch=3).items()
    }
    found: dict[str, Tensor] = Embedder(one).eval()(**inputs)
    assert found["embedding"].shape == (3, spec.shape[1])
    assert torch.equal(found["embedding"], Embedder(other).eval()(**inputs)["embedding"])


def test_a_backbone_may_be_given_gradients_as_in_defect() -> None:
    table = settings(input="gradients", cell=2, backbone="tiny")
    model = build(table, None)
    assert model.encoder.backbone.get_parameter("conv1.weight").shape[1] == 9
    model.losses(batch())["loss"].backward()
    assert model.embed(batch().inputs["image"]).shape == (8, 128)


def test_only_v3_freezes_the_patches_of_a_transformer() -> None:
    frozen = [
        build(settings(version=version, backbone="vit_tiny"), None)
        .encoder.backbone.get_parameter("patch_embed.proj.weight")
        .requires_grad
        for version in ("v3", "v2")
    ]
    assert frozen == [False, True]


def test_the_number_of_steps_is_the_cores() -> None:
    def steps(pictures: int, **train: Any) -> int:
        return steps_of(MocoSettings(train=MocoTrain(batch_size=10, **train)), pictures)

    assert steps(57, epochs=3) == 15
    assert steps(7, epochs=3) == 3
    assert steps(57, epochs=3, max_steps=4) == 4


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["tiny", "vit_tiny"])
def test_the_exported_graph_equals_torch_at_any_batch_size(backbone: str, tmp_path: Path) -> None:
    table = settings(backbone=backbone)
    embedder = Embedder(build(table, None)).eval()
    (target,) = onnx.deploy_targets()
    request = ExportRequest(deployable=embedder, signature=signature(table), folder=tmp_path)
    predictor = target.load(target.export(request), signature(table))
    for count in (1, 5):
        inputs = signature(table).example(seed=count, batch=count)
        expected = embedder(torch.from_numpy(inputs["image"]))["embedding"].detach().numpy()
        assert np.allclose(predictor(inputs)["embedding"], expected, rtol=1e-3, atol=1e-4)
