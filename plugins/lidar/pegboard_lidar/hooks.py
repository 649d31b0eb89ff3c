"""The front door: which hooks lidar implements, and where."""

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
        Evaluation,
        Figure,
        Finding,
        Metric,
        Optimization,
        Predictor,
        Rows,
        Sample,
        Signature,
        Split,
        Target,
        Thresholds,
    )
    from pegboard_lidar.data import FrameDataset
    from pegboard_lidar.model import PillarDetector
    from pegboard_lidar.settings import LidarSettings


@hookimpl
def settings_type() -> type[LidarSettings]:
    """See `settings.py`."""
    from pegboard_lidar.settings import LidarSettings

    return LidarSettings


@hookimpl
def prepare_data(settings: LidarSettings, progress: Progress) -> list[Path]:
    """Generate scenes, unless the user has scans of his own, and cut objects out."""
    from pegboard_lidar import data

    return data.prepare(settings, progress)


@hookimpl
def check_data(settings: LidarSettings) -> list[Finding]:
    """Check scans, labels, calibration, and what leaks from split to split."""
    from pegboard_lidar import data

    return data.check(settings)


@hookimpl
def load_split(settings: LidarSettings, split: Split) -> FrameDataset:
    """Read the frames of a split."""
    from pegboard_lidar import data

    return data.load(settings, split)


@hookimpl
def augment(settings: LidarSettings, sample: Sample) -> Sample:
    """Paste objects in, shift them, mirror, turn and scale the scan."""
    from pegboard_lidar import augment

    return augment.augment(settings, sample)


@hookimpl
def draw_sample(settings: LidarSettings, sample: Sample) -> Array:
    """Show the scan from above with its boxes."""
    from pegboard_lidar import augment

    return augment.draw(settings, sample)


@hookimpl
def collate(samples: Sequence[Sample]) -> Batch:
    """Put scans of unlike lengths beside one another."""
    from pegboard_lidar import data

    return data.collate(samples)


@hookimpl
def build_model(settings: LidarSettings) -> PillarDetector:
    """Build the detector."""
    from pegboard_lidar import model

    return model.build(settings)


@hookimpl
def compute_loss(model: PillarDetector, batch: Batch) -> Mapping[str, Tensor]:
    """Ask the model, which knows its own."""
    return model.losses(batch)


@hookimpl
def build_optimizer(settings: LidarSettings, model: nn.Module, total_steps: int) -> Optimization:
    """Turn filters, leave the rest to AdamW."""
    from pegboard_lidar import optimizer

    return optimizer.build(settings.train, model, total_steps)


@hookimpl
def tabulate(settings: LidarSettings, batch: Batch, outputs: Mapping[str, Array]) -> Rows:
    """Keep a row a frame."""
    from pegboard_lidar import metrics

    return metrics.tabulate(settings, batch, outputs)


@hookimpl
def choose_thresholds(settings: LidarSettings, rows: Rows) -> Thresholds:
    """Choose each class's score by its F1."""
    from pegboard_lidar import metrics

    return metrics.choose_thresholds(settings, rows)


@hookimpl
def build_metrics(settings: LidarSettings) -> Sequence[Metric]:
    """Average precision by overlap and by distance, recall and precision."""
    from pegboard_lidar import metrics

    return metrics.build(settings)


@hookimpl
def build_baselines(settings: LidarSettings) -> Sequence[Baseline]:
    """Clusters above the ground."""
    from pegboard_lidar import baseline

    return baseline.build(settings)


@hookimpl
def signature(settings: LidarSettings) -> Signature:
    """A scan in; maps out."""
    from pegboard_lidar import deploy

    return deploy.signature(settings)


@hookimpl
def decode_request(settings: LidarSettings, payload: Any) -> Mapping[str, Array]:
    """Read the scan of a request."""
    from pegboard_lidar import deploy

    return deploy.decode(settings, payload)


@hookimpl
def infer(predictor: Predictor, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
    """Run scan by scan."""
    from pegboard_lidar import deploy

    return deploy.infer(predictor, inputs)


@hookimpl
def encode_answer(
    settings: LidarSettings, outputs: Mapping[str, Array], thresholds: Thresholds
) -> Sequence[Mapping[str, Any]]:
    """Objects with class, score and box."""
    from pegboard_lidar import deploy

    return deploy.encode(settings, outputs, thresholds)


@hookimpl
def deploy_targets() -> Sequence[Target]:
    """ONNX in two graphs, as for TensorRT."""
    from pegboard_lidar import split_target

    return [split_target.target()]


@hookimpl
def draw(settings: LidarSettings, evaluation: Evaluation) -> Sequence[Figure]:
    """Curves, and the frames to look at."""
    from pegboard_lidar import figures

    return figures.draw(settings, evaluation)


@hookimpl
def diagnose() -> list[Finding]:
    """Name the system libraries that Open3D lacks."""
    from pegboard_lidar import system

    return system.diagnose()


@hookimpl
def register_commands(app: typer.Typer) -> None:
    """`pegboard odometry`, `pegboard track` and `pegboard view`."""
    from pegboard_lidar import commands

    commands.register(app)
