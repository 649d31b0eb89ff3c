"""The model of a project: where its weights come from, and how far fine-tuning moves them."""

from __future__ import annotations

from torch import nn

from pegboard.optimization import adamw_with_cosine
from pegboard.records import Optimization
from pegboard_clip import model
from pegboard_clip.data import PairDataset
from pegboard_clip.locked import lock
from pegboard_clip.settings import ClipSettings
from pegboard_clip.weights import interpolate


def build(settings: ClipSettings, train_data: PairDataset | None) -> nn.Module:
    """Build the model; with `train_data` a checkpoint is read and a locked tower is run once.

    Without them trained weights are loaded right after.
    """
    built = model.build(settings, loads=train_data is not None)
    if train_data is not None and settings.model.locked:
        lock(built, train_data, settings)
    return built


def optimization(settings: ClipSettings, built: nn.Module, total_steps: int) -> Optimization:
    """AdamW with a shorter memory of squared gradients, as CLIP has it (Radford et al., table 20).

    The gradient of a contrastive loss changes with every batch's negatives; with the usual 0.999
    the steps after a sudden change are too large.
    """
    made = adamw_with_cosine(settings.train, built, total_steps)
    for group in made.optimizer.param_groups:
        group |= {"betas": (0.9, 0.98), "eps": 1e-6}
    return made


def finish(settings: ClipSettings, tuned: nn.Module) -> None:
    """Interpolate between the checkpoint's weights and the fine-tuned ones.

    WiSE-FT (Wortsman et al., CVPR 2022): a middle way keeps what the checkpoint knew of other
    pictures and most of what was gained on these.
    """
    share = settings.train.interpolation
    if settings.model.weights is None or share == 1:
        return
    initial = model.build(settings)
    tuned.load_state_dict(interpolate(initial.state_dict(), tuned.state_dict(), share))
