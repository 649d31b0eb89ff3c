"""Every hole in the board: what a plugin may say, when it is asked, and what it answers.

A plugin implements a hook by a function of the same name marked `@hookimpl`. It may leave out
arguments that it does not use. Of two implementations the one registered last is asked first:
core, solution, extra plugins, the project's own `hooks.py`. `@hookimpl(wrapper=True)` wraps all
that come after it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import pluggy

if TYPE_CHECKING:
    import typer
    from torch import Tensor, nn
    from torch.utils.data import Dataset

    from pegboard.progress import Progress
    from pegboard.records import (
        AnswerEvent,
        Array,
        Baseline,
        Batch,
        EpochEvent,
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
        StageEvent,
        StepEvent,
        Target,
        Thresholds,
    )
    from pegboard.settings import Settings

NAMESPACE = "pegboard"
hookimpl = pluggy.HookimplMarker(NAMESPACE)
_hookspec = pluggy.HookspecMarker(NAMESPACE)

Group = Literal["data", "model", "deploy", "life cycle"]
Call = Literal["first result", "all", "chain"]
Ranks = Literal["main", "every"]
Spec = TypeVar("Spec", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class HookFacts:
    """How a hook is called; docs/hooks.md and `pegboard doctor` print it."""

    group: Group
    """Which part of the life cycle it belongs to."""
    call: Call
    """`first result`: until one answers other than None; `all`: every one, answers collected;
    `chain`: every one in the order of registration, each given the last one's answer."""
    ranks: Ranks
    """`main`: in one process only; `every`: in every process of a distributed training."""


HOOKS: dict[str, HookFacts] = {}


def _hook(group: Group, call: Call, ranks: Ranks = "main") -> Callable[[Spec], Spec]:
    def declare(spec: Spec) -> Spec:
        HOOKS[spec.__name__] = HookFacts(group=group, call=call, ranks=ranks)
        return _hookspec(spec, firstresult=call == "first result")

    return declare


# --------------------------------------------------------------------------- data


@_hook("data", "first result", "every")
def settings_type() -> type[Settings]:
    """Name the pydantic type of the project's settings.

    Returns:
        A subclass of `pegboard.Settings` whose `data` and `model` fields have the solution's own
        types. Import nothing heavy: `pegboard describe` calls this.

    Example:
        @hookimpl
        def settings_type():
            return FraudSettings
    """


@_hook("data", "first result")
def prepare_data(settings: Settings, progress: Progress) -> Sequence[Path]:
    """Make the embedded data set, or fetch the user's, under the data folder.

    Does nothing when it is there already.

    Returns:
        The files and folders that the splits are read from; when one of them changes, what was
        computed from it is computed again.

    Example:
        @hookimpl
        def prepare_data(settings, progress):
            path = settings.data.folder / "transactions.parquet"
            if not path.exists():
                with progress.task("simulating transactions"):
                    write_transactions(path, simulate(seed=settings.train.seed))
            return [path]
    """


@_hook("data", "all")
def check_data(settings: Settings) -> Sequence[Finding]:
    """Look for what is wrong with the data.

    Returns:
        Findings, each with level, place and remedy; an error stops the run.

    Example:
        @hookimpl
        def check_data(settings):
            if not settings.data.path.stat().st_size:
                return [Finding(level="error", what="the file is empty",
                                where=str(settings.data.path), remedy="export it again")]
            return []
    """


@_hook("data", "first result", "every")
def load_split(settings: Settings, split: Split) -> Dataset[Any]:
    """Read one split as a torch Dataset of samples.

    Returns:
        A map-style dataset of `Sample`. Where one record at a time is too slow, `__getitems__`
        may answer a list of indices with a ready `Batch`. A dataset that draws afresh every epoch
        defines `epoch_indices(epoch, seed) -> ndarray` of a length that never changes; the core
        shuffles it.

    Example:
        @hookimpl
        def load_split(settings, split):
            return Transactions(settings.data, split)
    """


@_hook("data", "chain", "every")
def augment(settings: Settings, sample: Sample) -> Sample:
    """Change a training sample so that the model meets what the field will send.

    Called for the train split only. Python's, NumPy's and torch's generators are seeded for each
    sample and epoch, so a resumed run sees the same samples. A chain cannot be wrapped.

    Returns:
        The sample, changed; the next plugin is given it.

    Example:
        @hookimpl
        def augment(settings, sample):
            image = np.rot90(sample.inputs["image"], k=random.randrange(4)).copy()
            return replace(sample, inputs={"image": image})
    """


@_hook("data", "first result")
def draw_sample(settings: Settings, sample: Sample) -> Array:
    """Draw a sample as a picture, for the contact sheet of `pegboard describe --augment`.

    Returns:
        uint8 (H, W, 3).

    Example:
        @hookimpl
        def draw_sample(settings, sample):
            return np.repeat(sample.inputs["image"], 3, axis=2)
    """


@_hook("data", "first result", "every")
def collate(settings: Settings, samples: Sequence[Sample]) -> Batch:
    """Stack samples into a batch.

    Returns:
        A `Batch`. The core's own stacks arrays of equal shape and passes a ready batch through.

    Example:
        @hookimpl
        def collate(settings, samples):
            points, counts = pad([sample.inputs["points"] for sample in samples])
            return Batch(inputs={"points": points}, targets={"count": counts})
    """


# --------------------------------------------------------------------------- model


@_hook("model", "first result", "every")
def build_model(settings: Settings, train_data: Dataset[Any] | None) -> nn.Module:
    """Build the model on the CPU, in one process's terms.

    Args:
        settings: The project's settings.
        train_data: The train split, to fit statistics from; None when trained weights will be
            loaded right after, so shapes must follow from the settings alone.

    Returns:
        A module; everything fitted is a parameter or a buffer of it.

    Example:
        @hookimpl
        def build_model(settings, train_data):
            model = FraudModel(settings.model)
            if train_data is not None:
                model.fit_statistics(train_data.features)
            return model
    """


@_hook("model", "first result", "every")
def compute_loss(settings: Settings, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
    """Compute the named losses of a batch.

    Returns:
        Scalars, means over the batch; the one called `loss` is minimised.

    Example:
        @hookimpl
        def compute_loss(settings, model, batch):
            logit = model(batch.inputs["features"])
            return {"loss": binary_cross_entropy_with_logits(logit, batch.targets["fraud"])}
    """


@_hook("model", "first result", "every")
def build_optimizer(settings: Settings, model: nn.Module, total_steps: int) -> Optimization:
    """Build optimiser and schedule.

    Returns:
        An `Optimization`. The core's own is AdamW with warm-up and cosine decay.

    Example:
        @hookimpl
        def build_optimizer(settings, model, total_steps):
            optimizer = torch.optim.SGD(model.parameters(), lr=settings.train.lr)
            return Optimization(optimizer=optimizer,
                                schedule=LinearLR(optimizer, total_iters=total_steps))
    """


@_hook("model", "all")
def finish_model(settings: Settings, model: nn.Module) -> None:
    """Change the trained model once, before anything is measured of it.

    Called in the main process with the weights that training keeps; what it changes in place is
    written as the run's weights.

    Returns:
        Nothing.

    Example:
        @hookimpl
        def finish_model(settings, model):
            with torch.no_grad():
                for name, tensor in model.named_parameters():
                    tensor.lerp_(pretrained[name], 0.5)
    """


@_hook("model", "first result", "every")
def tabulate(settings: Settings, batch: Batch, outputs: Mapping[str, Array]) -> Rows:
    """Tabulate what evaluation keeps of one batch.

    Returns:
        Columns of equal length, one row per unit that is counted (a transaction, a case, a box).
        The core's own keeps every output and target that has one number per record.

    Example:
        @hookimpl
        def tabulate(settings, batch, outputs):
            return {"dice": dice(outputs["mask"], batch.targets["mask"].numpy())}
    """


@_hook("model", "first result")
def complete_rows(settings: Settings, predictor: Predictor, rows: Rows) -> Rows:
    """Add to the rows of a split what depends on all of them.

    Called once for a whole split, before thresholds and metrics; confidence intervals draw from
    what it returns.

    Returns:
        Columns of equal length. The core's own adds nothing.

    Example:
        @hookimpl
        def complete_rows(settings, predictor, rows):
            return {"rank": rank_of_own_image(rows["text_embedding"], rows["image_embedding"])}
    """


@_hook("model", "first result")
def choose_thresholds(settings: Settings, rows: Rows) -> Thresholds:
    """Choose the decision thresholds on the rows of the validation split.

    Returns:
        Thresholds by name; they go to the metrics, to `encode_answer` and into the bundle. The
        core's own chooses none.

    Example:
        @hookimpl
        def choose_thresholds(settings, rows):
            return {"review": cheapest_threshold(rows, settings.model.review_cost)}
    """


@_hook("model", "all", "every")
def build_metrics(settings: Settings) -> Sequence[Metric]:
    """Say what `evaluate` reports.

    Returns:
        Metrics with their direction; exactly one of the solution's is the headline.

    Example:
        @hookimpl
        def build_metrics(settings):
            return [Metric(name="average_precision", direction="higher", headline=True,
                           compute=lambda rows, thresholds: average_precision(rows))]
    """


@_hook("model", "all")
def build_baselines(settings: Settings) -> Sequence[Baseline]:
    """Say what the model has to beat.

    Returns:
        Baselines; `evaluate` fits each and measures it with the same metrics.

    Example:
        @hookimpl
        def build_baselines(settings):
            return [Baseline(name="xgboost", fit=fit_xgboost)]
    """


# --------------------------------------------------------------------------- deploy


@_hook("deploy", "first result", "every")
def signature(settings: Settings) -> Signature:
    """Describe the deployable's inputs and outputs.

    Returns:
        Names, dtypes, shapes with dynamic axes, value ranges and units; an example request.

    Example:
        @hookimpl
        def signature(settings):
            return Signature(
                inputs=(TensorSpec(name="features", dtype="float32", shape=("batch", 30)),),
                outputs=(TensorSpec(name="probability", dtype="float32", shape=("batch",)),),
                request={"transactions": [{"id": "1", "amount": 12.5}]})
    """


@_hook("deploy", "first result", "every")
def build_deployable(settings: Settings, model: nn.Module) -> nn.Module:
    """Build the module that is exported: from raw inputs to final outputs.

    Its `forward` takes the signature's inputs by name and returns a dict of the outputs by name.
    It calls `model` and shares its weights, so that validation during training goes through it.

    Returns:
        A module. The core's own is the model itself.

    Example:
        @hookimpl
        def build_deployable(settings, model):
            return FraudScorer(model)
    """


@_hook("deploy", "first result")
def decode_request(settings: Settings, payload: Any) -> Mapping[str, Array]:
    """Turn a request in the solution's own words into the signature's inputs.

    Returns:
        Arrays by name. Raise `RequestError` with the field's name for a bad request.

    Example:
        @hookimpl
        def decode_request(settings, payload):
            return {"image": read_image(payload["image"])[None]}
    """


@_hook("deploy", "first result")
def encode_answer(
    settings: Settings, outputs: Mapping[str, Array], thresholds: Thresholds, request: Any
) -> Sequence[Mapping[str, Any]]:
    """Turn outputs into answers in the solution's own words.

    Args:
        settings: The project's settings.
        outputs: What `infer` returned.
        thresholds: As the bundle carries them.
        request: What `decode_request` was given, for an answer that has to fit it; None where
            there was no request, as in verification.

    Returns:
        One JSON-able answer per record. Under `decision` stands what is decided, if anything is:
        verification counts how many of them flip between backends.

    Example:
        @hookimpl
        def encode_answer(settings, outputs, thresholds):
            cut = thresholds["review"]
            return [{"score": float(p), "decision": "review" if p >= cut else "approve"}
                    for p in outputs["probability"]]
    """


@_hook("deploy", "first result")
def infer(
    settings: Settings, predictor: Predictor, inputs: Mapping[str, Array]
) -> Mapping[str, Array]:
    """Run a predictor over inputs: once, or as often as the domain needs.

    Returns:
        Outputs by the signature's names. The core's own calls the predictor once.

    Example:
        @hookimpl
        def infer(settings, predictor, inputs):
            windows = slide(inputs["volume"], settings.model.window)
            return {"mask": blend([predictor({"volume": window}) for window in windows])}
    """


@_hook("deploy", "all")
def bundle_files(settings: Settings) -> Mapping[str, Path]:
    """Name files that answering needs besides the model, such as a vocabulary.

    Returns:
        Files by the key of the setting that names them; the bundle carries copies, and whoever
        opens it finds them under these keys.

    Example:
        @hookimpl
        def bundle_files(settings):
            return {"model.vocabulary": settings.data.folder / "vocabulary.json"}
    """


@_hook("deploy", "all")
def deploy_targets() -> Sequence[Target]:
    """Offer runtimes to export to.

    Returns:
        Targets; one that cannot be used here says why.

    Example:
        @hookimpl
        def deploy_targets():
            return [Target(name="openvino", unavailable=missing("openvino"),
                           export=export_openvino, load=load_openvino)]
    """


@_hook("deploy", "all")
def draw(settings: Settings, evaluation: Evaluation) -> Sequence[Figure]:
    """Draw figures for the report.

    Returns:
        Figures with captions, in the order they are shown.

    Example:
        @hookimpl
        def draw(settings, evaluation):
            return [precision_recall_curve(evaluation)]
    """


# --------------------------------------------------------------------------- life cycle


@_hook("life cycle", "all")
def before_stage(settings: Settings, event: StageEvent) -> None:
    """Be told that a stage begins.

    Returns:
        Nothing.

    Example:
        @hookimpl
        def before_stage(settings, event):
            print(f"{event.stage} begins in {event.folder}")
    """


@_hook("life cycle", "all")
def after_stage(settings: Settings, event: StageEvent) -> None:
    """Be told that a stage is done.

    Returns:
        Nothing.

    Example:
        @hookimpl
        def after_stage(settings, event):
            if event.stage == "verify":
                notify(f"{settings.solution} verified in {event.seconds:.0f} s")
    """


@_hook("life cycle", "all")
def on_stage_error(settings: Settings, event: StageEvent, error: BaseException) -> None:
    """Be told that a stage failed; the error is raised again afterwards.

    Returns:
        Nothing.

    Example:
        @hookimpl
        def on_stage_error(settings, event, error):
            page_someone(f"{event.stage}: {error}")
    """


@_hook("life cycle", "all", "every")
def after_step(settings: Settings, event: StepEvent) -> None:
    """Be told that an optimiser step is done, in every process.

    Returns:
        Nothing.

    Example:
        @hookimpl
        def after_step(settings, event):
            if event.rank == 0 and event.step % 100 == 0:
                print(event.step, event.losses["loss"])
    """


@_hook("life cycle", "all")
def after_epoch(settings: Settings, event: EpochEvent) -> None:
    """Be told that an epoch and its validation are done, in the main process only.

    Returns:
        Nothing.

    Example:
        @hookimpl
        def after_epoch(settings, event):
            tracker.log(event.metrics, step=event.epoch)
    """


@_hook("life cycle", "all")
def after_answer(settings: Settings, event: AnswerEvent) -> None:
    """Be told that a request was answered; the event carries no input value.

    Returns:
        Nothing.

    Example:
        @hookimpl
        def after_answer(settings, event):
            latency.observe(event.seconds)
    """


@_hook("life cycle", "all")
def diagnose() -> Sequence[Finding]:
    """Say what this machine lacks that pip does not bring, for `pegboard doctor`.

    Returns:
        Findings, each with the remedy; an error is a problem of the project, a warning is only
        shown. It needs no settings: a project whose settings are broken is examined, too.

    Example:
        @hookimpl
        def diagnose():
            if shutil.which("dcmdump") is None:
                return [Finding(level="warning", what="dcmdump is missing", where="PATH",
                                remedy="on Debian apt-get install dcmtk")]
            return []
    """


@_hook("life cycle", "all")
def register_commands(app: typer.Typer) -> None:
    """Add commands to the command line, inside a project of this solution.

    Returns:
        Nothing; add to `app`.

    Example:
        @hookimpl
        def register_commands(app):
            @app.command()
            def odometry(scans: Path) -> None:
                "Draw the trajectory of a drive."
    """


@_hook("life cycle", "all")
def register_routes(settings: Settings, service: Service) -> Sequence[Route]:
    """Add paths to the server of this solution.

    Args:
        settings: Of the bundle that the server begins with; once another one answers,
            `service.settings` are that one's.
        service: The server.

    Returns:
        Routes; a path the core already has is refused.

    Example:
        @hookimpl
        def register_routes(settings, service):
            return [Route(path="/feedback", handler=take_label, summary="Take a label.")]
    """
