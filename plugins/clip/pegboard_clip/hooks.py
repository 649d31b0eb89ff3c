"""The front door: which hooks clip implements, and where."""

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
        Route,
        Rows,
        Sample,
        Service,
        Signature,
        Split,
    )
    from pegboard_clip.data import PairDataset
    from pegboard_clip.settings import ClipSettings
    from pegboard_clip.towers import Towers


@hookimpl
def settings_type() -> type[ClipSettings]:
    """See `settings.py`."""
    from pegboard_clip.settings import ClipSettings

    return ClipSettings


@hookimpl
def prepare_data(settings: ClipSettings, progress: Progress) -> list[Path]:
    """Draw scenes, unless the user has pictures of his own, and learn a vocabulary."""
    from pegboard_clip import data

    return data.prepare(settings, progress)


@hookimpl
def check_data(settings: ClipSettings) -> list[Finding]:
    """Check pictures, captions, and what leaks from split to split."""
    from pegboard_clip import data

    return data.check(settings)


@hookimpl
def load_split(settings: ClipSettings, split: Split) -> PairDataset:
    """Read the pairs of a split."""
    from pegboard_clip import data

    return data.load(settings, split)


@hookimpl
def augment(settings: ClipSettings, sample: Sample) -> Sample:
    """Cut out most of the picture."""
    from pegboard_clip import augment

    return augment.augment(settings, sample)


@hookimpl
def draw_sample(settings: ClipSettings, sample: Sample) -> Array:
    """Show the picture with its caption."""
    from pegboard_clip import augment

    return augment.draw(settings, sample)


@hookimpl
def build_model(settings: ClipSettings, train_data: PairDataset | None) -> nn.Module:
    """Build both towers, with the checkpoint's weights where there is one."""
    from pegboard_clip import training

    return training.build(settings, train_data)


@hookimpl
def compute_loss(settings: ClipSettings, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
    """Pull pairs together and everything else apart."""
    from pegboard_clip import objectives

    return objectives.losses(model, batch, settings)


@hookimpl
def build_optimizer(settings: ClipSettings, model: nn.Module, total_steps: int) -> Optimization:
    """AdamW with CLIP's betas."""
    from pegboard_clip import training

    return training.optimization(settings, model, total_steps)


@hookimpl
def finish_model(settings: ClipSettings, model: nn.Module) -> None:
    """Go back a part of the way to the checkpoint's weights, if that is asked for."""
    from pegboard_clip import training

    training.finish(settings, model)


@hookimpl
def tabulate(batch: Batch, outputs: Mapping[str, Array]) -> Rows:
    """Keep a row a pair."""
    from pegboard_clip import metrics

    return metrics.tabulate(batch, outputs)


@hookimpl
def complete_rows(settings: ClipSettings, predictor: Predictor, rows: Rows) -> Rows:
    """Rank all pictures for each caption and all captions for each picture."""
    from pegboard_clip import data, metrics

    return metrics.complete_rows(settings, predictor, rows, data.labels_of(settings.data))


@hookimpl
def build_metrics() -> Sequence[Metric]:
    """Recall at 1, 5 and 10 both ways, median ranks, zero-shot accuracy."""
    from pegboard_clip import metrics

    return metrics.build()


@hookimpl
def build_baselines(settings: ClipSettings) -> Sequence[Baseline]:
    """Words against colours, and the checkpoint as it came."""
    from pegboard_clip import baseline

    return baseline.build(settings)


@hookimpl
def signature(settings: ClipSettings) -> Signature:
    """Pictures or texts in; embeddings out."""
    from pegboard_clip import deploy

    return deploy.signature(settings)


@hookimpl
def build_deployable(model: nn.Module) -> Towers:
    """Two towers that run one without the other."""
    from pegboard_clip import towers

    return towers.Towers(model)


@hookimpl
def bundle_files(settings: ClipSettings) -> Mapping[str, Path]:
    """The vocabulary."""
    from pegboard_clip import tokenizer

    return {"model.vocabulary": tokenizer.vocabulary_file(settings)}


@hookimpl
def decode_request(settings: ClipSettings, payload: Any) -> Mapping[str, Array]:
    """Read the pictures and texts of a request."""
    from pegboard_clip import deploy

    return deploy.decode(settings, payload)


@hookimpl
def infer(predictor: Predictor, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
    """Run the towers on texts that are no longer than they are."""
    from pegboard_clip import deploy

    return deploy.infer(predictor, inputs)


@hookimpl
def encode_answer(
    settings: ClipSettings, outputs: Mapping[str, Array], request: Any
) -> Sequence[Mapping[str, Any]]:
    """Embeddings, and how similar picture and text are."""
    from pegboard_clip import deploy

    return deploy.encode(settings, outputs, request)


@hookimpl
def draw(settings: ClipSettings, evaluation: Evaluation) -> Sequence[Figure]:
    """Recall against the first answers, and the queries to look at."""
    from pegboard_clip import figures

    return figures.draw(settings, evaluation)


@hookimpl
def register_commands(app: typer.Typer) -> None:
    """`pegboard index`, `pegboard search` and `pegboard classify`."""
    from pegboard_clip import commands

    commands.register(app)


@hookimpl
def register_routes(settings: ClipSettings, service: Service) -> Sequence[Route]:
    """The page that searches, and what it asks."""
    from pegboard_clip import gallery

    return gallery.routes(settings, service)
