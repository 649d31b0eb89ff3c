"""The front door: which hooks fraud implements, and where."""

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
        Route,
        Rows,
        Service,
        Signature,
        Split,
        Thresholds,
    )
    from pegboard_fraud.data import FraudDataset
    from pegboard_fraud.model import FraudModel
    from pegboard_fraud.settings import FraudSettings


@hookimpl
def settings_type() -> type[FraudSettings]:
    """See `settings.py`."""
    from pegboard_fraud.settings import FraudSettings

    return FraudSettings


@hookimpl
def prepare_data(settings: FraudSettings, progress: Progress) -> list[Path]:
    """Simulate transactions, unless the user has his own."""
    from pegboard_fraud import data

    return data.prepare(settings, progress)


@hookimpl
def check_data(settings: FraudSettings) -> list[Finding]:
    """Check the file and whether its days suffice."""
    from pegboard_fraud import data

    return data.check(settings)


@hookimpl
def load_split(settings: FraudSettings, split: Split) -> FraudDataset:
    """Read the features of the split's days."""
    from pegboard_fraud import data

    return data.load(settings, split)


@hookimpl
def build_model(settings: FraudSettings, train_data: FraudDataset | None) -> nn.Module:
    """Build the network and fit its encoding."""
    from pegboard_fraud import model

    return model.build(settings, train_data)


@hookimpl
def compute_loss(model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
    """Cross-entropy of the logit."""
    from pegboard_fraud.model import compute_loss

    return compute_loss(model, batch)


@hookimpl
def build_metrics(settings: FraudSettings) -> Sequence[Metric]:
    """Average precision first."""
    from pegboard_fraud import metrics

    return metrics.build(settings)


@hookimpl
def build_baselines(settings: FraudSettings) -> Sequence[Baseline]:
    """Tuned XGBoost."""
    from pegboard_fraud import baseline

    return baseline.build(settings)


@hookimpl
def choose_thresholds(settings: FraudSettings, rows: Rows) -> Thresholds:
    """By expected cost or by alert budget."""
    from pegboard_fraud import metrics

    return metrics.choose_thresholds(settings, rows)


@hookimpl
def signature(settings: FraudSettings) -> Signature:
    """Features in, probability and expected loss out."""
    from pegboard_fraud import deploy

    return deploy.signature(settings)


@hookimpl
def build_deployable(model: FraudModel) -> nn.Module:
    """From raw features to the calibrated probability."""
    from pegboard_fraud.model import FraudScorer

    return FraudScorer(model)


@hookimpl
def decode_request(settings: FraudSettings, payload: Any) -> Mapping[str, Array]:
    """Transactions to features, event by event."""
    from pegboard_fraud import deploy

    return deploy.decode(settings, payload)


@hookimpl
def encode_answer(
    settings: FraudSettings, outputs: Mapping[str, Array], thresholds: Thresholds
) -> Sequence[Mapping[str, Any]]:
    """Score and decision."""
    from pegboard_fraud import deploy

    return deploy.encode(settings, outputs, thresholds)


@hookimpl
def draw(settings: FraudSettings, evaluation: Evaluation) -> Sequence[Figure]:
    """Curves of precision, calibration, cost and days."""
    from pegboard_fraud import figures

    return figures.draw(settings, evaluation)


@hookimpl
def register_commands(app: typer.Typer) -> None:
    """`pegboard prequential`, `pegboard backtest` and `pegboard materialize`."""
    from pegboard_fraud import backtest, commands, materialize

    commands.register(app)
    backtest.register(app)
    materialize.register(app)


@hookimpl
def register_routes(settings: FraudSettings, service: Service) -> Sequence[Route]:
    """`/decisions`, `/feedback` and `/rules`."""
    from pegboard_fraud import decisions

    return decisions.register_routes(settings, service)
