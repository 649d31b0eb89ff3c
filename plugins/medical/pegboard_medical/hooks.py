"""The front door: which hooks medical-segmentation implements, and where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pegboard import hookimpl

if TYPE_CHECKING:
    import typer
    from torch import Tensor

    from pegboard.progress import Progress
    from pegboard.records import (
        Array,
        Baseline,
        Batch,
        Evaluation,
        Figure,
        Finding,
        Metric,
        Predictor,
        Route,
        Rows,
        Sample,
        Service,
        Signature,
        Split,
        Thresholds,
    )
    from pegboard_medical.data import VolumeDataset
    from pegboard_medical.model import SegmentationNet
    from pegboard_medical.settings import SegmentationSettings


@hookimpl
def settings_type() -> type[SegmentationSettings]:
    """See `settings.py`."""
    from pegboard_medical.settings import SegmentationSettings

    return SegmentationSettings


@hookimpl
def prepare_data(settings: SegmentationSettings, progress: Progress) -> list[Path]:
    """Generate CT-like volumes, unless the user has some of his own."""
    from pegboard_medical import data

    return data.prepare(settings.data, progress)


@hookimpl
def check_data(settings: SegmentationSettings) -> list[Finding]:
    """Check series, geometry, masks, and what leaks from split to split."""
    from pegboard_medical import data

    return data.check(settings)


@hookimpl
def load_split(settings: SegmentationSettings, split: Split) -> VolumeDataset:
    """Read the cases of a split."""
    from pegboard_medical import data

    return data.load(settings, split)


@hookimpl
def augment(settings: SegmentationSettings, sample: Sample) -> Sample:
    """Cut a changed patch out of a training case."""
    from pegboard_medical import patches

    return patches.augment(settings, sample)


@hookimpl
def draw_sample(settings: SegmentationSettings, sample: Sample) -> Array:
    """Show the middle slice with the outlines of its structures."""
    from pegboard_medical import patches

    return patches.draw(settings, sample)


@hookimpl
def build_model(settings: SegmentationSettings) -> SegmentationNet:
    """Build the network of MONAI that was asked for."""
    from pegboard_medical import model

    return model.build(settings)


@hookimpl
def compute_loss(model: SegmentationNet, batch: Batch) -> Mapping[str, Tensor]:
    """Ask the model, which knows its own."""
    return model.losses(batch)


@hookimpl
def tabulate(settings: SegmentationSettings, batch: Batch, outputs: Mapping[str, Array]) -> Rows:
    """Keep a row a case."""
    from pegboard_medical import metrics

    return metrics.tabulate(settings, batch, outputs)


@hookimpl
def build_metrics(settings: SegmentationSettings) -> Sequence[Metric]:
    """Overlap, surfaces, volumes and lesions."""
    from pegboard_medical import metrics

    return metrics.build(settings)


@hookimpl
def build_baselines(settings: SegmentationSettings) -> Sequence[Baseline]:
    """A threshold for a CT, an atlas for an MR."""
    from pegboard_medical import baseline

    return baseline.build(settings)


@hookimpl
def signature(settings: SegmentationSettings) -> Signature:
    """A volume in; probabilities and millilitres out."""
    from pegboard_medical import deploy

    return deploy.signature(settings)


@hookimpl
def decode_request(settings: SegmentationSettings, payload: Any) -> Mapping[str, Array]:
    """Read the series of a request."""
    from pegboard_medical import deploy

    return deploy.decode(settings, payload)


@hookimpl
def infer(
    settings: SegmentationSettings, predictor: Predictor, inputs: Mapping[str, Array]
) -> Mapping[str, Array]:
    """Run windows of the volume on the model's own grid."""
    from pegboard_medical import deploy

    return deploy.infer(settings, predictor, inputs)


@hookimpl
def encode_answer(
    settings: SegmentationSettings,
    outputs: Mapping[str, Array],
    thresholds: Thresholds,
    request: Any,
) -> Sequence[Mapping[str, Any]]:
    """Millilitres, and the mask in the space of the series."""
    from pegboard_medical import deploy

    return deploy.encode(settings, outputs, thresholds, request)


@hookimpl
def draw(settings: SegmentationSettings, evaluation: Evaluation) -> Sequence[Figure]:
    """Overlap, volumes, lesions, and the cases to look at."""
    from pegboard_medical import figures

    return figures.draw(settings, evaluation)


@hookimpl
def register_commands(app: typer.Typer) -> None:
    """`pegboard segment` and `pegboard deidentify`."""
    from pegboard_medical import commands

    commands.register(app)


@hookimpl
def register_routes(settings: SegmentationSettings, service: Service) -> Sequence[Route]:
    """Take a series out of the PACS and put its segmentation there."""
    from pegboard_medical import pacs

    return pacs.routes(settings, service)
