"""The front door: which hooks moco implements, and where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pegboard import hookimpl

if TYPE_CHECKING:
    import typer
    from torch import Tensor, nn

    from pegboard.progress import Progress
    from pegboard.records import (
        Array,
        Baseline,
        Batch,
        EpochEvent,
        Evaluation,
        Figure,
        Finding,
        Metric,
        Rows,
        Signature,
        Split,
    )
    from pegboard_defect.moco.data import MocoDataset
    from pegboard_defect.moco.model import MocoNet
    from pegboard_defect.moco.settings import MocoSettings


@hookimpl
def settings_type() -> type[MocoSettings]:
    """See `settings.py`."""
    from pegboard_defect.moco.settings import MocoSettings

    return MocoSettings


@hookimpl
def prepare_data(settings: MocoSettings, progress: Progress) -> list[Path]:
    """Generate textures, unless the user has pictures of his own."""
    from pegboard_defect.moco import data

    return data.prepare(settings, progress)


@hookimpl
def check_data(settings: MocoSettings) -> list[Finding]:
    """Check that pictures can be read and suffice."""
    from pegboard_defect.moco import data

    return data.check(settings)


@hookimpl
def load_split(settings: MocoSettings, split: Split) -> MocoDataset:
    """Read the pictures of a split, unlabelled ones to train on."""
    from pegboard_defect.moco import data

    return data.load(settings, split)


@hookimpl
def build_model(settings: MocoSettings, train_data: MocoDataset | None) -> nn.Module:
    """Build the fast network and the slow one."""
    from pegboard_defect.moco import model

    return model.build(settings, train_data)


@hookimpl
def compute_loss(model: MocoNet, batch: Batch) -> Mapping[str, Tensor]:
    """Contrast two views of each picture."""
    return model.losses(batch)


@hookimpl
def tabulate(batch: Batch, outputs: Mapping[str, Array]) -> Rows:
    """Keep the embedding of each picture."""
    from pegboard_defect.moco import metrics

    return metrics.tabulate(batch, outputs)


@hookimpl
def build_metrics(settings: MocoSettings) -> Sequence[Metric]:
    """k-NN first where there are labels, else effective rank."""
    from pegboard_defect.moco import metrics

    return metrics.build(settings)


@hookimpl
def build_baselines(settings: MocoSettings) -> Sequence[Baseline]:
    """Random weights, and the user's checkpoint."""
    from pegboard_defect.moco import baseline

    return baseline.build(settings)


@hookimpl
def after_epoch(event: EpochEvent) -> None:
    """Warn of a collapse."""
    from pegboard_defect.moco import metrics

    metrics.warn_of_collapse(event)


@hookimpl
def signature(settings: MocoSettings) -> Signature:
    """A picture in; its embedding out."""
    from pegboard_defect.moco import deploy

    return deploy.signature(settings)


@hookimpl
def build_deployable(model: nn.Module) -> nn.Module:
    """The backbone, and the mean over all places."""
    from pegboard_defect.moco.model import Embedder

    return Embedder(model)


@hookimpl
def decode_request(settings: MocoSettings, payload: Any) -> Mapping[str, Array]:
    """Read the pictures of a request."""
    from pegboard_defect.moco import deploy

    return deploy.decode(settings, payload)


@hookimpl
def draw(settings: MocoSettings, evaluation: Evaluation) -> Sequence[Figure]:
    """What few labels give, and how pictures lie to one another."""
    from pegboard_defect.moco import figures

    return figures.draw(settings, evaluation)


@hookimpl
def register_commands(app: typer.Typer) -> None:
    """`pegboard pretrain`."""
    from pegboard_defect.moco import commands

    commands.register(app)
