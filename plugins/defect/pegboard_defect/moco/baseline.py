"""What the network has to beat: itself without training, and the weights the user has already."""

from __future__ import annotations

from typing import Any

import torch

from pegboard.evaluation import ModulePredictor
from pegboard.records import Baseline, Predictor
from pegboard_defect.backbones import load_backbone
from pegboard_defect.moco.data import MocoDataset
from pegboard_defect.moco.model import Embedder, MocoNet, untrained
from pegboard_defect.moco.settings import MocoSettings

SEED = 1
"""Of the random weights."""


def build(settings: MocoSettings) -> list[Baseline]:
    """Random weights, and the user's checkpoint where there is one."""
    random = Baseline(
        name="random",
        fit=lambda train, validation: fit(settings, train, own=False),
        description="The same backbone with random weights, pictures normalised in the same way.",
    )
    if settings.model.checkpoint is None:
        return [random]
    checkpoint = Baseline(
        name="checkpoint",
        fit=lambda train, validation: fit(settings, train, own=True),
        description=f"The weights of {settings.model.checkpoint.name}, as they are.",
    )
    return [random, checkpoint]


def fit(settings: MocoSettings, train: MocoDataset, *, own: bool) -> Predictor:
    """Return a backbone that was not trained here, as a predictor of embeddings."""
    table = settings.model
    name = (table.checkpoint_backbone if own else None) or table.backbone
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(SEED)
        seen, backbone = untrained(settings, name)
        model: Any = MocoNet(backbone, seen, data=settings.data)
    if own and table.checkpoint is not None:
        load_backbone(backbone, table.checkpoint)
    model.normalise.fit(train)
    return ModulePredictor(Embedder(model))
