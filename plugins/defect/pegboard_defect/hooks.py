"""The front door: which hooks defect implements, and where."""

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
        Predictor,
        Rows,
        Sample,
        Signature,
        Split,
        Thresholds,
    )
    from pegboard_defect.data import InspectionDataset
    from pegboard_defect.settings import DefectSettings


@hookimpl
def settings_type() -> type[DefectSettings]:
    """See `settings.py`."""
    from pegboard_defect.settings import DefectSettings

    return DefectSettings


@hookimpl
def prepare_data(settings: DefectSettings, progress: Progress) -> list[Path]:
    """Generate textures, unless the user has pictures of his own."""
    from pegboard_defect import data

    paths = data.prepare(settings, progress)
    # Other weights to begin from are another training.
    return [*paths, *([settings.model.weights] if settings.model.weights else [])]


@hookimpl
def check_data(settings: DefectSettings) -> list[Finding]:
    """Check pictures, masks, classes, and what leaks from split to split."""
    from pegboard_defect import data

    return data.check(settings)


@hookimpl
def load_split(settings: DefectSettings, split: Split) -> InspectionDataset:
    """Read the pictures of a split."""
    from pegboard_defect import data

    return data.load(settings, split)


@hookimpl
def augment(settings: DefectSettings, sample: Sample) -> Sample:
    """Change a training picture as its line would."""
    from pegboard_defect import data

    return data.augment(settings, sample)


@hookimpl
def draw_sample(settings: DefectSettings, sample: Sample) -> Array:
    """Show the picture with the outline of its defect."""
    from pegboard_defect import images

    return images.outlined(sample.inputs["image"], sample.targets["mask"])


@hookimpl
def build_model(settings: DefectSettings, train_data: InspectionDataset | None) -> nn.Module:
    """Build the model of the task."""
    from pegboard_defect import model

    return model.build(settings, train_data)


@hookimpl
def compute_loss(model: Any, batch: Batch) -> Mapping[str, Tensor]:
    """Ask the model, which knows its own."""
    losses: Mapping[str, Tensor] = model.losses(batch)
    return losses


@hookimpl
def tabulate(settings: DefectSettings, batch: Batch, outputs: Mapping[str, Array]) -> Rows:
    """Keep a row a picture, its map as counts."""
    from pegboard_defect import metrics

    return metrics.tabulate(settings, batch, outputs)


@hookimpl
def choose_thresholds(settings: DefectSettings, rows: Rows) -> Thresholds:
    """By what mistakes cost."""
    from pegboard_defect import metrics

    return metrics.choose_thresholds(settings, rows)


@hookimpl
def build_metrics(settings: DefectSettings) -> Sequence[Metric]:
    """Those of the task."""
    from pegboard_defect import metrics

    return metrics.build(settings)


@hookimpl
def build_baselines(settings: DefectSettings) -> Sequence[Baseline]:
    """Thresholding."""
    from pegboard_defect import baseline

    return baseline.build(settings)


@hookimpl
def signature(settings: DefectSettings) -> Signature:
    """A picture in; score, map and probabilities out."""
    from pegboard_defect import deploy

    return deploy.signature(settings)


@hookimpl
def build_deployable(settings: DefectSettings, model: nn.Module) -> nn.Module:
    """The model without what only its loss needs."""
    from pegboard_defect.deploy import outputs_of
    from pegboard_defect.model import Inspector

    return Inspector(model, outputs_of(settings))


@hookimpl
def decode_request(settings: DefectSettings, payload: Any) -> Mapping[str, Array]:
    """Read the pictures of a request."""
    from pegboard_defect import deploy

    return deploy.decode(settings, payload)


@hookimpl
def infer(
    settings: DefectSettings, predictor: Predictor, inputs: Mapping[str, Array]
) -> Mapping[str, Array]:
    """Whole pictures or tiles."""
    from pegboard_defect import deploy

    return deploy.infer(settings, predictor, inputs)


@hookimpl
def encode_answer(
    settings: DefectSettings, outputs: Mapping[str, Array], thresholds: Thresholds
) -> Sequence[Mapping[str, Any]]:
    """Accept or reject, and where."""
    from pegboard_defect import deploy

    return deploy.encode(settings, outputs, thresholds)


@hookimpl
def draw(settings: DefectSettings, evaluation: Evaluation) -> Sequence[Figure]:
    """Escapes against overkill, lots, classes, and the pictures to look at."""
    from pegboard_defect import figures

    return figures.draw(settings, evaluation)


@hookimpl
def register_commands(app: typer.Typer) -> None:
    """`pegboard review`."""
    from pegboard_defect import review

    review.register(app)
