"""The network: its shapes, its losses, and that it learns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pegboard.batching import stack
from pegboard.records import Batch
from pegboard_medical.classification import augment, data
from pegboard_medical.classification.model import build, halved, mask_loss, measured
from pegboard_medical.classification.settings import ClassificationSettings


def settings(**tables: Any) -> ClassificationSettings:
    return ClassificationSettings.model_validate(tables)


def batch(shape: tuple[int, ...], *, known: float = 1.0) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return Batch(
        inputs={"image": torch.randn(4, *shape, generator=generator) * 300 - 500},
        targets={
            "label": torch.tensor([0, 1, 0, 1]),
            "mask": (torch.rand(4, *shape, generator=generator) > 0.9).float(),
            "has_mask": torch.full((4,), known),
        },
    )


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("size", [(16, 32, 32), (17, 19, 30)])
def test_any_size_gives_probabilities_and_finite_losses(
    dimensions: int, size: tuple[int, int, int]
) -> None:
    asked = settings(
        data={"size": size, "classes": ["a", "b", "c"]}, model={"dimensions": dimensions}
    )
    network = build(asked)
    seen = batch(size[3 - dimensions :])
    losses = network.losses(seen)
    assert set(losses) == {"loss", "decision", "mask"}
    assert all(torch.isfinite(loss) for loss in losses.values())
    outputs = network.eval()(seen.inputs["image"])
    assert outputs["probabilities"].shape == (4, 3)
    assert torch.allclose(outputs["probabilities"].sum(dim=1), torch.ones(4))
    assert torch.allclose(outputs["score"], outputs["probabilities"][:, 1:].sum(dim=1), atol=1e-6)


def test_the_large_network_is_densenet121_but_for_its_first_pooling() -> None:
    network = build(settings(model={"network": "densenet121", "mask_weight": 0.0}))
    assert network.encoder.widths == [256, 512, 1024, 1024]
    with torch.inference_mode():
        maps = network.eval().encoder(torch.zeros(1, 1, 16, 16, 16))
    assert [one.shape[-1] for one in maps] == [8, 4, 2, 1]


def test_without_masks_no_decoder_is_built() -> None:
    network = build(settings(model={"mask_weight": 0.0}))
    assert network.decoder is None
    assert set(network.losses(batch((16, 32, 32)))) == {"loss"}


def test_findings_without_a_mask_teach_no_outline() -> None:
    network = build(settings())
    assert float(network.losses(batch((16, 32, 32), known=0.0))["mask"].detach()) == 0.0
    assert float(network.losses(batch((16, 32, 32)))["mask"].detach()) > 0.1


def test_the_mask_loss_is_that_of_the_findings_with_a_mask() -> None:
    mask = torch.zeros(2, 16, 16)
    mask[:, 4:11, 4:11] = 1
    share = halved(mask[:, None])[:, 0]
    right, wrong = torch.logit(share, eps=1e-4), torch.logit(1 - share, eps=1e-4)
    both = torch.stack([right[0], wrong[1]])
    alone = mask_loss(right[:1], mask[:1], torch.ones(1))
    assert torch.allclose(mask_loss(right, mask, torch.ones(2)), alone)
    assert torch.allclose(mask_loss(both, mask, torch.tensor([1.0, 0.0])), alone)
    assert mask_loss(both, mask, torch.ones(2)) > alone + 1


def test_shares_of_a_voxel_are_learnt_as_they_are() -> None:
    mask = torch.zeros(1, 16, 16)
    mask[:, 4:11, 4:11] = 1
    share = halved(mask[:, None])[:, 0]
    losses = [
        float(mask_loss(torch.logit(some.clamp(0, 1), eps=1e-4), mask, torch.ones(1)))
        for some in (share, share.round(), (share > 0).float(), share * 0.8)
    ]
    assert losses[0] == min(losses)


def test_hounsfield_units_outside_the_window_change_nothing() -> None:
    network = build(settings()).eval()
    image = torch.full((1, 16, 32, 32), -1000.0)
    image[:, 6:10, 12:20, 12:20] = 400.0
    with torch.inference_mode():
        plain = network(image)["score"]
        beyond = network(torch.where(image > 0, 3000.0, -2000.0))["score"]
    assert torch.equal(plain, beyond)


def test_it_learns_small_from_large(written: ClassificationSettings) -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    train, test = (data.load(written, split) for split in ("train", "test"))
    network = build(written)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    for step in range(8):
        some = [train[(8 * step + place) % len(train)] for place in range(8)]
        seen = stack([augment.change(written, sample) for sample in some])
        loss = network.losses(seen)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # Its statistics lag behind after so few steps.
    seen = stack([test[index] for index in range(len(test))])
    with torch.inference_mode():
        score = network(seen.inputs["image"])["score"]
    positive = seen.targets["label"] == 1
    assert score[positive].min() > score[~positive].max()


@pytest.mark.parametrize("dimensions", [2, 3])
def test_size_brightness_and_sides_are_measured_where_the_finding_is(dimensions: int) -> None:
    shape = (16, 32, 32)[3 - dimensions :]
    coarse = tuple(side // 2 for side in shape)
    inside = torch.zeros(2, 1, *coarse)
    # A bar along the last axis, and one as thick that is twice as long.
    cut = (slice(3, 5),) * (dimensions - 1)
    inside[(0, 0, *cut, slice(4, 8))] = 1
    inside[(1, 0, *cut, slice(4, 12))] = 1
    image = torch.full((2, 1, *shape), -0.5)
    image[1] = 0.25
    short, long = measured(image, inside)
    thick = 2 ** (dimensions - 1)
    assert short[0] == pytest.approx(np.log(4 * thick + 1))
    assert long[0] == pytest.approx(np.log(8 * thick + 1))
    assert short[1] < -0.3
    assert long[1] > 0.2
    assert long[-1] > short[-1] + 1
    assert torch.allclose(long[3:-1], short[3:-1], atol=0.4)
