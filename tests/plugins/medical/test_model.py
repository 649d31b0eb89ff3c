from __future__ import annotations

import pytest
import torch

from pegboard.records import Batch
from pegboard_medical.model import HounsfieldWindow, build
from pegboard_medical.settings import SegmentationData, SegmentationModel, SegmentationSettings

NETWORKS = ("unet", "attention_unet", "segresnet", "dynunet")


def settings(network: str = "unet", **data: object) -> SegmentationSettings:
    return SegmentationSettings(
        data=SegmentationData.model_validate({"classes": ("a", "b"), **data}),
        model=SegmentationModel.model_validate(
            {"network": network, "channels": 8, "levels": 3, "patch": (16, 16, 16)}
        ),
    )


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_learns_to_tell_bright_from_dark(network: str) -> None:
    torch.manual_seed(0)
    model = build(settings(network))
    image = torch.full((2, 16, 16, 16), -900.0)
    mask = torch.zeros(2, 16, 16, 16, dtype=torch.uint8)
    image[:, 4:12, 4:12, 4:8], mask[:, 4:12, 4:12, 4:8] = 0.0, 1
    image[:, 4:12, 4:12, 8:12], mask[:, 4:12, 4:12, 8:12] = 300.0, 2
    batch = Batch(inputs={"image": image}, targets={"mask": mask})
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(25):
        loss = model.losses(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("network", NETWORKS)
def test_it_answers_the_probability_of_each_structure(network: str) -> None:
    model = build(settings(network)).eval()
    found = model(torch.randn(3, 16, 16, 16) * 500)["probabilities"]
    assert found.shape == (3, 2, 16, 16, 16)
    assert (found >= 0).all()
    assert (found.sum(dim=1) <= 1 + 1e-5).all()


def test_hounsfield_units_are_cut_to_the_window() -> None:
    window = HounsfieldWindow(-1000.0, 400.0)
    seen = window(torch.tensor([-3000.0, -1000.0, -300.0, 400.0, 3000.0]))
    assert seen.tolist() == [-1.0, -1.0, 0.0, 1.0, 1.0]


def test_an_mr_comes_scaled_and_is_left_alone() -> None:
    model = build(settings(modality="mr"))
    image = torch.randn(1, 16, 16, 16) * 9
    assert torch.equal(model.normalise(image), image)


def test_attention_gates_are_what_attention_unet_adds() -> None:
    names = [name for name, _ in build(settings("attention_unet")).named_modules()]
    assert any("attention" in name for name in names)
