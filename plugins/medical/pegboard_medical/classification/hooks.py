"""The front door: which hooks medical-classification implements, and where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pegboard import hookimpl

if TYPE_CHECKING:
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
    from pegboard_medical.classification.data import FindingDataset
    from pegboard_medical.classification.model import FindingNet
    from pegboard_medical.classification.settings import ClassificationSettings


@hookimpl
def settings_type() -> type[ClassificationSettings]:
    """See `settings.py`."""
    from pegboard_medical.classification.settings import ClassificationSettings

    return ClassificationSettings


@hookimpl
def prepare_data(settings: ClassificationSettings, progress: Progress) -> list[Path]:
    """Cut findings out of generated volumes, unless the user has his own."""
    from pegboard_medical.classification import data

    return data.prepare(settings, progress)


@hookimpl
def check_data(settings: ClassificationSettings) -> list[Finding]:
    """Check volumes and masks as segmentation does, and labels."""
    from pegboard_medical.classification import data

    return data.check(settings)


@hookimpl
def load_split(settings: ClassificationSettings, split: Split) -> FindingDataset:
    """Read the findings of a split."""
    from pegboard_medical.classification import data

    return data.load(settings, split)


@hookimpl
def augment(settings: ClassificationSettings, sample: Sample) -> Sample:
    """Place a training finding otherwise."""
    from pegboard_medical.classification import augment

    return augment.change(settings, sample)


@hookimpl
def draw_sample(settings: ClassificationSettings, sample: Sample) -> Array:
    """Show the middle slices."""
    from pegboard_medical.classification import figures

    return figures.sample_picture(settings, sample)


@hookimpl
def build_model(settings: ClassificationSettings) -> nn.Module:
    """Build the network that is asked for."""
    from pegboard_medical.classification import model

    return model.build(settings)


@hookimpl
def compute_loss(model: FindingNet, batch: Batch) -> Mapping[str, Tensor]:
    """Ask the model, which knows its own."""
    return model.losses(batch)


@hookimpl
def tabulate(settings: ClassificationSettings, batch: Batch, outputs: Mapping[str, Array]) -> Rows:
    """Keep a row a finding."""
    from pegboard_medical.classification import metrics

    return metrics.tabulate(settings, batch, outputs)


@hookimpl
def choose_thresholds(settings: ClassificationSettings, rows: Rows) -> Thresholds:
    """By sensitivity, or by what mistakes cost."""
    from pegboard_medical.classification import metrics

    return metrics.choose_thresholds(settings, rows)


@hookimpl
def build_metrics(settings: ClassificationSettings) -> Sequence[Metric]:
    """Ranking, decisions and calibration."""
    from pegboard_medical.classification import metrics

    return metrics.build(settings)


@hookimpl
def build_baselines(settings: ClassificationSettings) -> Sequence[Baseline]:
    """Logistic regression on histograms."""
    from pegboard_medical.classification import baseline

    return baseline.build(settings)


@hookimpl
def signature(settings: ClassificationSettings) -> Signature:
    """The box around a finding in; score and probabilities out."""
    from pegboard_medical.classification import deploy

    return deploy.signature(settings)


@hookimpl
def decode_request(settings: ClassificationSettings, payload: Any) -> Mapping[str, Array]:
    """Read the findings of a request."""
    from pegboard_medical.classification import deploy

    return deploy.decode(settings, payload)


@hookimpl
def infer(
    settings: ClassificationSettings, predictor: Predictor, inputs: Mapping[str, Array]
) -> Mapping[str, Array]:
    """Judge findings and their mirror images."""
    from pegboard_medical.classification import deploy

    return deploy.infer(settings, predictor, inputs)


@hookimpl
def encode_answer(
    settings: ClassificationSettings, outputs: Mapping[str, Array], thresholds: Thresholds
) -> Sequence[Mapping[str, Any]]:
    """The kind, and how sure that is."""
    from pegboard_medical.classification import deploy

    return deploy.encode(settings, outputs, thresholds)


@hookimpl
def draw(settings: ClassificationSettings, evaluation: Evaluation) -> Sequence[Figure]:
    """Curves, calibration, and the findings to look at."""
    from pegboard_medical.classification import figures

    return figures.draw(settings, evaluation)
