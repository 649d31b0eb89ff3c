"""Filters are turned at an even pace; what is no filter is AdamW's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pegboard_lidar.model import PillarDetector, build
from pegboard_lidar.optimizer import FASTER, Muon, orthogonal
from pegboard_lidar.optimizer import build as build_optimizer
from pegboard_lidar.settings import LidarSettings, LidarTrain

Small = Callable[..., LidarSettings]


@pytest.mark.parametrize("shape", [(8, 40), (40, 8), (24, 60)])
def test_what_is_strong_and_what_is_weak_become_equally_strong(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    left, strengths, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    uneven = left @ torch.diag(strengths * torch.logspace(0, -1, len(strengths))) @ right
    turned = orthogonal(uneven)
    assert turned.shape == shape
    found = left.T @ turned @ right.T
    assert (found.diagonal() > 0.5).all()
    assert (found.diagonal() < 1.3).all()
    torch.testing.assert_close(found, torch.diag(found.diagonal()), atol=0.01, rtol=0)


def test_no_gradient_is_no_step() -> None:
    assert torch.equal(orthogonal(torch.zeros(4, 9)), torch.zeros(4, 9))


def test_convolutions_with_a_norm_behind_them_are_turned_and_nothing_else(small: Small) -> None:
    model = build(small())
    made = build_optimizer(LidarTrain(warmup=0.0), model, 10)
    turned, decaying, vectors = made.optimizer.param_groups
    assert {tuple(p.shape[2:]) for p in turned["params"]} == {(3, 3), (1, 1)}
    assert turned["lr"] == pytest.approx(FASTER * decaying["lr"])
    assert model.head[1].maps.weight in set(decaying["params"])
    assert all(p.ndim == 1 for p in vectors["params"])
    assert vectors["weight_decay"] == 0
    counted = sum(len(group["params"]) for group in made.optimizer.param_groups)
    assert counted == len(list(model.parameters()))


def test_vectors_move_as_with_adamw() -> None:
    torch.manual_seed(0)
    start, slopes = torch.randn(6), torch.randn(5, 6)
    moved: list[Tensor] = []
    for make in (
        lambda p: Muon([{"params": [p], "weight_decay": 0.1}], lr=0.1),
        lambda p: torch.optim.AdamW([p], lr=0.1, weight_decay=0.1),
    ):
        parameter = nn.Parameter(start.clone())
        optimizer = make(parameter)
        for slope in slopes:
            parameter.grad = slope.clone()
            optimizer.step()
        moved.append(parameter.detach())
    torch.testing.assert_close(moved[0], moved[1])


def test_what_is_taken_up_again_goes_on_as_if_never_left(small: Small) -> None:
    torch.manual_seed(0)
    slopes = [[torch.randn_like(p) for p in build(small()).parameters()] for _ in range(4)]

    def begun() -> tuple[PillarDetector, torch.optim.Optimizer]:
        torch.manual_seed(1)
        model = build(small())
        return model, build_optimizer(LidarTrain(), model, 10).optimizer

    def go_on(model: PillarDetector, optimizer: torch.optim.Optimizer, these: slice) -> None:
        for slope in slopes[these]:
            for parameter, one in zip(model.parameters(), slope, strict=True):
                parameter.grad = one.clone()
            optimizer.step()

    whole, optimizer = begun()
    go_on(whole, optimizer, slice(0, 4))
    first, optimizer = begun()
    go_on(first, optimizer, slice(0, 2))
    second, again = begun()
    second.load_state_dict(first.state_dict())
    again.load_state_dict(optimizer.state_dict())
    go_on(second, again, slice(2, 4))
    for one, other in zip(whole.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(one, other)
