"""The front door: which hooks are answered, and where. Import nothing heavy at the top."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pegboard import hookimpl

if TYPE_CHECKING:
    from pegboard.progress import Progress
    from pegboard.records import (
        Array,
        Baseline,
        Batch,
        Finding,
        Metric,
        Rows,
        Sample,
        Signature,
        Split,
        Thresholds,
    )
    from torch import Tensor, nn

    from {{ cookiecutter.__package }}.data import Vibrations
    from {{ cookiecutter.__package }}.settings import WearSettings


@hookimpl
def settings_type() -> type[WearSettings]:
    """See `settings.py`."""
    from {{ cookiecutter.__package }}.settings import WearSettings

    return WearSettings


@hookimpl
def prepare_data(settings: WearSettings, progress: Progress) -> list[Path]:
    """Simulate vibrations, once."""
    from {{ cookiecutter.__package }} import data

    return data.prepare(settings, progress)


@hookimpl
def check_data(settings: WearSettings) -> list[Finding]:
    """Look for what is wrong with the recordings."""
    from {{ cookiecutter.__package }} import data

    return data.check(settings)


@hookimpl
def load_split(settings: WearSettings, split: Split) -> Vibrations:
    """Read the recordings of a split."""
    from {{ cookiecutter.__package }} import data

    return data.load(settings, split)


@hookimpl
def augment(sample: Sample) -> Sample:
    """Begin the recording at another moment: the sensor does not know when a turn begins."""
    from {{ cookiecutter.__package }} import data

    return data.shifted(sample)


@hookimpl
def build_model(settings: WearSettings, train_data: Vibrations | None) -> nn.Module:
    """A small convolutional network."""
    from {{ cookiecutter.__package }} import model

    return model.build(settings, train_data)


@hookimpl
def compute_loss(model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
    """Cross-entropy of the logit."""
    from {{ cookiecutter.__package }}.model import compute_loss

    return compute_loss(model, batch)


@hookimpl
def build_metrics() -> Sequence[Metric]:
    """Area under the ROC curve first."""
    from {{ cookiecutter.__package }} import metrics

    return metrics.build()


@hookimpl
def build_baselines() -> Sequence[Baseline]:
    """Kurtosis."""
    from {{ cookiecutter.__package }} import metrics

    return metrics.baselines()


@hookimpl
def choose_thresholds(settings: WearSettings, rows: Rows) -> Thresholds:
    """So many false alarms are accepted."""
    from {{ cookiecutter.__package }} import metrics

    return metrics.choose_thresholds(settings, rows)


@hookimpl
def signature() -> Signature:
    """Vibration in, probability of wear out."""
    from {{ cookiecutter.__package }} import deploy

    return deploy.signature()


@hookimpl
def build_deployable(model: nn.Module) -> nn.Module:
    """From the raw signal to the probability."""
    from {{ cookiecutter.__package }}.model import Scorer

    return Scorer(model)


@hookimpl
def decode_request(payload: Any) -> Mapping[str, Array]:
    """Recordings to arrays."""
    from {{ cookiecutter.__package }} import deploy

    return deploy.decode(payload)


@hookimpl
def encode_answer(outputs: Mapping[str, Array], thresholds: Thresholds) -> list[dict[str, Any]]:
    """Probability and decision."""
    from {{ cookiecutter.__package }} import deploy

    return deploy.encode(outputs, thresholds)
