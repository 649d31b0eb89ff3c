"""The network, its loss, and what is deployed of it. B recordings, C channels, T samples."""

from __future__ import annotations

import torch
from pegboard.records import Batch
from torch import Tensor, nn
from torch.nn import functional

from {{ cookiecutter.__package }}.data import Vibrations
from {{ cookiecutter.__package }}.settings import WearSettings


class WearNet(nn.Module):
    """Raw vibration to one logit: filters, their energy, and a verdict on the energies."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.spread: Tensor
        self.register_buffer("spread", torch.ones(()))
        self.filters = nn.Sequential(
            nn.Conv1d(1, channels, 15, stride=2, padding=7),
            nn.ReLU(),
            nn.Conv1d(channels, 2 * channels, 9, stride=2, padding=4),
            nn.ReLU(),
        )
        self.verdict = nn.Sequential(
            nn.Linear(4 * channels, channels), nn.ReLU(), nn.Linear(channels, 1)
        )

    def forward(self, signal: Tensor) -> Tensor:
        """(B, T) -> (B,)."""
        filtered = self.filters((signal / self.spread).unsqueeze(1))  # (B, 2C, T/4)
        energies = torch.cat([filtered.mean(dim=2), filtered.amax(dim=2)], dim=1)  # (B, 4C)
        logit: Tensor = self.verdict(energies).squeeze(1)
        return logit


class Scorer(nn.Module):
    """What is exported: from the raw signal to the probability."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, signal: Tensor) -> dict[str, Tensor]:
        """(B, T) -> probability (B,)."""
        return {"probability": self.model(signal).sigmoid()}


def build(settings: WearSettings, train_data: Vibrations | None) -> WearNet:
    """Build the network; measure the loudness of the training recordings."""
    model = WearNet(settings.model.channels)
    if train_data is not None:
        model.spread.copy_(train_data.spread())
    return model


def compute_loss(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Binary cross-entropy, averaged over the batch."""
    logit = model(batch.inputs["signal"])
    return {"loss": functional.binary_cross_entropy_with_logits(logit, batch.targets["worn"])}
