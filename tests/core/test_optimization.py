"""The core's own optimiser and schedule."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from pegboard.optimization import adamw_with_cosine, warmup_cosine
from pegboard.settings import TrainSettings


def test_the_rate_rises_to_its_peak_and_falls_to_zero() -> None:
    rates = [warmup_cosine(step, warmup=10, total=100) for step in range(101)]
    assert rates[0] == pytest.approx(1 / 11)
    assert rates[10] == max(rates) == 1.0
    assert all(a < b for a, b in pairwise(rates[:11]))
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == 0.0


def test_training_of_one_step_has_a_rate() -> None:
    assert warmup_cosine(0, warmup=0, total=1) == 1.0
    assert math.isfinite(warmup_cosine(5, warmup=0, total=0))


def test_vectors_do_not_decay_and_frozen_parameters_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    model[2].weight.requires_grad_(False)
    train = TrainSettings(lr=0.5, weight_decay=0.1, warmup=0.0)
    optimization = adamw_with_cosine(train, model, total_steps=10)
    decayed, undecayed = optimization.optimizer.param_groups
    assert [p.shape for p in decayed["params"]] == [(4, 3)]
    assert (decayed["weight_decay"], undecayed["weight_decay"]) == (0.1, 0.0)
    assert all(p.ndim == 1 for p in undecayed["params"]) and len(undecayed["params"]) == 4
    assert decayed["lr"] == 0.5


def test_the_schedule_moves_the_rate_of_every_group() -> None:
    model = nn.Linear(3, 1)
    optimization = adamw_with_cosine(TrainSettings(lr=1.0, warmup=0.5), model, total_steps=4)
    rates = []
    for _ in range(4):
        rates.append([group["lr"] for group in optimization.optimizer.param_groups])
        model(torch.zeros(1, 3)).sum().backward()
        optimization.optimizer.step()
        optimization.schedule.step()
    assert rates == [[pytest.approx(r)] * 2 for r in (1 / 3, 2 / 3, 1.0, 0.5)]
