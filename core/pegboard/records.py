"""The records that hooks take and return: frozen, keyword-only, each field with its meaning.

Nothing here imports torch, so that reading a bundle or listing plugins stays cheap.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    from pegboard.bundle import Bundle, Candidate

    Array = npt.NDArray[Any]
else:
    Array = Any  # Listing plugins takes these records and must not wait for NumPy.

Rows = Mapping[str, Array]
"""A table in columns of equal length: one row per unit that evaluation counts."""

Thresholds = Mapping[str, float]
"""Named decision thresholds, chosen on the validation split and carried by the bundle."""

Split = Literal["train", "validation", "test"]
Direction = Literal["higher", "lower"]

# --------------------------------------------------------------------------- data


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One record on its way to the model: raw inputs by signature name, and what is true."""

    inputs: Mapping[str, Any]
    """Arrays by the names of the signature's inputs, without the batch axis."""
    targets: Mapping[str, Any] = field(default_factory=dict)
    """Arrays that the loss and the metrics compare with; empty when nothing is known."""
    key: str = ""
    """Where the sample comes from, for messages and galleries; never personal data."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Samples stacked along a first axis."""

    inputs: Mapping[str, torch.Tensor]
    """Tensors (B, ...) by the names of the signature's inputs."""
    targets: Mapping[str, Any]
    """Tensors (B, ...), or lists of B where samples differ in shape."""
    keys: Sequence[str] = ()
    """The samples' keys, in order."""

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def to(self, device: torch.device) -> Batch:
        """Return the batch with its tensors on `device`."""
        return Batch(
            inputs={name: tensor.to(device) for name, tensor in self.inputs.items()},
            targets={
                name: value.to(device) if hasattr(value, "to") else value
                for name, value in self.targets.items()
            },
            keys=self.keys,
        )

    def arrays(self) -> dict[str, Array]:
        """Return the inputs as arrays, the form that a predictor takes."""
        return {name: tensor.numpy() for name, tensor in self.inputs.items()}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that `check` noticed in the data."""

    level: Literal["error", "warning", "note"]
    """An error stops the run; a warning and a note are printed and kept in `check.json`."""
    what: str
    """The thing that is wrong, with its count."""
    where: str
    """File and row, image, series or scan."""
    remedy: str
    """What to do about it."""


# --------------------------------------------------------------------------- model


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """How the weights move."""

    optimizer: torch.optim.Optimizer
    """Over the parameters of the model it was asked for."""
    schedule: torch.optim.lr_scheduler.LRScheduler
    """Stepped once after every optimiser step."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number that `evaluate` reports: a pure function of the rows and the thresholds."""

    name: str
    """As printed: `average_precision`."""
    compute: Callable[[Rows, Thresholds], float]
    """Takes the table that `tabulate` made and the thresholds; NaN where it is not defined."""
    direction: Direction
    """Which way is better."""
    headline: bool = False
    """Exactly one metric of a solution selects the checkpoint and guards compression."""
    unit: str = ""
    """`share`, `mm`, `EUR`; empty for a plain number."""
    group: str = ""
    """The column whose values are resampled together for the confidence interval (a patient, a
    card); empty when rows are independent."""
    description: str = ""
    """One sentence for the report."""


class Predictor(Protocol):
    """A deployable on a backend: arrays by signature name in, arrays by signature name out."""

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run one batch."""


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What the trade uses today, measured beside the model with the same metrics."""

    name: str
    """As printed: `xgboost`."""
    fit: Callable[[Any, Any], Predictor]
    """Takes the datasets of the train and the validation split, as `load_split` made them; returns
    a predictor with the model's outputs."""
    description: str = ""
    """One sentence for the report: library, version, how it was tuned."""


@dataclass(frozen=True, kw_only=True)
class MetricValue:
    """A metric as measured on one split."""

    name: str
    """The metric's name."""
    value: float | None
    """None where the metric is not defined on these rows."""
    low: float | None = None
    """Lower end of the 95 % bootstrap confidence interval."""
    high: float | None = None
    """Upper end of it."""
    direction: Direction = "higher"
    """Which way is better."""
    headline: bool = False
    """Whether it is the solution's headline metric."""
    unit: str = ""
    """The metric's unit."""
    description: str = ""
    """The metric's sentence for the report."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What one predictor reached on one split."""

    name: str
    """`model`, or the name of the baseline."""
    split: Split
    """The split it was measured on."""
    rows: Rows
    """The table that `tabulate` made, for metrics and figures."""
    thresholds: Thresholds
    """Chosen on the validation split with this same predictor."""
    metrics: Sequence[MetricValue]
    """In the order of `build_metrics`, the headline metric first."""
    baselines: Sequence[Evaluation] = ()
    """The same for each baseline; empty for a baseline itself."""

    @property
    def headline(self) -> MetricValue:
        """The value of the headline metric."""
        return next(metric for metric in self.metrics if metric.headline)


# --------------------------------------------------------------------------- deploy


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One named input or output of a deployable."""

    name: str
    """The argument's name in the deployable's `forward`, or the key in what it returns."""
    dtype: str
    """A NumPy name: `float32`, `int64`, `uint8`."""
    shape: tuple[int | str, ...]
    """A number is fixed; a word names a dynamic axis. The first axis is `batch`."""
    low: float | None = None
    """Smallest value that occurs; what synthesis draws from."""
    high: float | None = None
    """Largest value that occurs."""
    unit: str = ""
    """`EUR`, `HU`, `m`; for a tensor of unlike columns see `channel_units`."""
    channels: tuple[str, ...] = ()
    """Names of the places of the last axis, where each has a meaning of its own."""
    channel_units: tuple[str, ...] = ()
    """Their units, in the same order."""
    channel_ranges: tuple[tuple[float, float], ...] = ()
    """Their smallest and largest usual values, in the same order."""
    finite: bool = True
    """Whether NaN and infinity are refused in a request."""
    infer_only: bool = False
    """Whether only `infer` takes or returns it: the model, which sees windows, does not."""
    description: str = ""
    """One sentence."""

    def windowed(self, window: Mapping[str, int], *, is_single: bool = False) -> TensorSpec:
        """Return the same with the axes of a window as long as it, without `batch` if single."""
        shape = self.shape[1:] if is_single and self.shape[0] == "batch" else self.shape
        return replace(self, shape=tuple(window.get(str(axis), axis) for axis in shape))

    def example(self, axes: Mapping[str, int], generator: np.random.Generator) -> Array:
        """Synthesise an array that fits: dynamic axes as given, values in range."""
        import numpy as np

        shape = tuple(axes[axis] if isinstance(axis, str) else axis for axis in self.shape)
        kind = np.dtype(self.dtype)
        if self.channel_ranges:
            low, high = np.array(self.channel_ranges, dtype=np.float64).T
        else:
            default_high = 1.0 if kind.kind == "f" else 2.0
            low = np.float64(0.0 if self.low is None else self.low)
            high = np.float64(default_high if self.high is None else self.high)
        drawn: Array = low + generator.random(shape) * (high - low)
        return drawn.astype(kind)


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a deployable that runs alone, such as one of two towers."""

    inputs: tuple[str, ...]
    """Names of the inputs that it takes."""
    outputs: tuple[str, ...]
    """Names of the outputs that it returns."""


@dataclass(frozen=True, kw_only=True)
class Signature:
    """The contract between a deployable and whoever calls it."""

    inputs: tuple[TensorSpec, ...]
    """In the order of the deployable's arguments."""
    outputs: tuple[TensorSpec, ...]
    """In the order they are exported in."""
    request: Any = None
    """An example request in the solution's own words, as JSON would carry it."""
    window: Mapping[str, int] = field(default_factory=dict)
    """Lengths that `infer` cuts dynamic axes to before it calls a predictor: a request may be of
    any size, the model sees windows. Empty where it sees a request whole."""
    is_single: bool = False
    """Whether the model takes one record at a time, without the axis `batch`: `infer` goes through
    a batch one by one. For records that differ in length, such as point clouds."""
    parts: Mapping[str, Part] = field(default_factory=dict)
    """Parts by the names of the deployable's submodules, each exported by itself. A request may
    bring the inputs of some parts alone, and is answered with their outputs. Empty where all of it
    runs at once."""

    def part(self, name: str) -> Signature:
        """Return what one part takes and returns."""
        part = self.parts[name]
        return replace(
            self,
            inputs=tuple(spec for spec in self.inputs if spec.name in part.inputs),
            outputs=tuple(spec for spec in self.outputs if spec.name in part.outputs),
            parts={},
        )

    def asked(self, names: Collection[str]) -> tuple[TensorSpec, ...]:
        """Return the inputs that belong to a request with some of them: those of whole parts."""
        if not self.parts:
            return self.inputs
        parts = [part for part in self.parts.values() if not set(names).isdisjoint(part.inputs)]
        asked = {name for part in parts for name in part.inputs}
        return tuple(spec for spec in self.inputs if not asked or spec.name in asked)

    def answered(self, names: Collection[str]) -> tuple[TensorSpec, ...]:
        """Return the outputs that a request with some inputs is answered with."""
        if not self.parts:
            return self.outputs
        asked = {spec.name for spec in self.asked(names)}
        parts = [part for part in self.parts.values() if asked.issuperset(part.inputs)]
        answered = {name for part in parts for name in part.outputs}
        return tuple(spec for spec in self.outputs if spec.name in answered)

    def windowed(self) -> Signature:
        """Return what the model itself takes and returns.

        The axes of the window have its lengths, a single record has no axis `batch`, and what is
        `infer`'s alone is left out.
        """
        return replace(
            self,
            inputs=self._seen(self.inputs),
            outputs=self._seen(self.outputs),
            window={},
            is_single=False,
        )

    def _seen(self, specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        return tuple(
            spec.windowed(self.window, is_single=self.is_single)
            for spec in specs
            if not spec.infer_only
        )

    def dynamic_axes(self) -> tuple[str, ...]:
        """Name every dynamic axis of the inputs, in order of appearance."""
        words = (axis for spec in self.inputs for axis in spec.shape if isinstance(axis, str))
        return tuple(dict.fromkeys(words))

    def example(self, *, seed: int = 0, **axes: int) -> dict[str, Array]:
        """Synthesise inputs; every dynamic axis is 2 long unless given (`batch=8`)."""
        import numpy as np

        generator = np.random.default_rng(seed)
        lengths = {axis: axes.get(axis, 2) for axis in self.dynamic_axes()}
        return {spec.name: spec.example(lengths, generator) for spec in self.inputs}


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What a target wrote into the bundle."""

    target: str
    """The target's name."""
    variant: str
    """`fp32`, or the compression that made it: `int8-dynamic`."""
    path: Path
    """The model's file or folder."""


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What a target needs to export a deployable."""

    deployable: torch.nn.Module
    """In evaluation mode, on the CPU, float32."""
    signature: Signature
    """Names, dtypes and dynamic axes to keep."""
    folder: Path
    """An existing folder that the model is written into."""


@dataclass(frozen=True, kw_only=True)
class CompressRequest:
    """What a target needs to make a smaller or faster candidate of its own export."""

    source: Path
    """The target's fp32 model."""
    signature: Signature
    """The same as for the export."""
    folder: Path
    """An existing folder that the candidate is written into."""
    calibration: Sequence[Mapping[str, Array]]
    """Batches of raw inputs from the train split."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A runtime that a deployable can be exported to and run on."""

    name: str
    """`onnx`, `torch`, `openvino`: what `[deploy] targets` lists."""
    unavailable: Callable[[], str | None]
    """None when it can be used here, else the reason with the remedy."""
    export: Callable[[ExportRequest], Path]
    """Writes the fp32 model; returns its path inside the request's folder."""
    load: Callable[[Path, Signature], Predictor]
    """Opens an exported model; one thread per predictor, so that a server can run many."""
    compressions: Mapping[str, Callable[[CompressRequest], Path]] = field(default_factory=dict)
    """Candidates by name: what `[deploy] compress` lists."""


# --------------------------------------------------------------------------- report


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A picture with its caption, for the report."""

    name: str
    """A file-name-safe word; also the anchor in the report."""
    title: str
    """A heading."""
    caption: str
    """What the reader should see in it."""
    content: str | bytes
    """An inline `<svg>` or other HTML as text, or the bytes of a PNG."""


# --------------------------------------------------------------------------- life cycle


@dataclass(frozen=True, kw_only=True)
class StageEvent:
    """A stage that begins, ended or failed."""

    stage: str
    """`prepare`, `check`, `train` and so on."""
    folder: Path
    """The run's folder."""
    seconds: float = 0.0
    """Wall time; zero in `before_stage`."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What the stage has to say; empty in `before_stage` and `on_stage_error`."""


@dataclass(frozen=True, kw_only=True)
class StepEvent:
    """One optimiser step, on one process."""

    epoch: int
    """From 0."""
    step: int
    """Optimiser steps since the start of training, from 1."""
    total_steps: int
    """Steps that the whole training takes."""
    rank: int
    """The process; 0 is the one that writes."""
    losses: Mapping[str, float]
    """Named losses of this process's share of the batch; `loss` was minimised."""
    learning_rate: float
    """Of the first parameter group."""


@dataclass(frozen=True, kw_only=True)
class EpochEvent:
    """One pass over the train split, with the validation that followed it."""

    epoch: int
    """From 0."""
    step: int
    """Optimiser steps so far."""
    losses: Mapping[str, float]
    """Mean training losses of the epoch over all processes."""
    metrics: Mapping[str, float]
    """Metrics on the validation split."""
    best: bool
    """Whether this epoch's headline metric is the best so far."""


@dataclass(frozen=True, kw_only=True)
class AnswerEvent:
    """An answer that was given; it carries no input value."""

    solution: str
    """The solution's name."""
    count: int
    """Records in the request."""
    seconds: float
    """From request to answer."""
    target: str
    """Target and variant that answered: `onnx/fp32`."""


@dataclass(frozen=True, kw_only=True)
class Content:
    """What a route answers that is no JSON: a page, a picture."""

    body: bytes
    """As it is sent."""
    media_type: str
    """`image/jpeg`."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Others, such as `Content-Security-Policy`."""


@dataclass(frozen=True, kw_only=True)
class Route:
    """A path that a plugin adds to `pegboard serve`."""

    path: str
    """`/feedback`. Its last part may be a name in braces, as in `/thumbnail/{id}`, for whatever
    stands there; the handler then takes `{"id": "17"}`."""
    handler: Callable[[Any], Awaitable[Any]]
    """Takes the decoded JSON body, None where there is none; what it returns is sent as JSON, or as
    it is where it is `Content`. A `RequestError` is answered with 422, any other `PegboardError`
    with 503. It runs in the server's event loop: what takes longer than a millisecond belongs into
    a thread."""
    method: Literal["GET", "POST", "PUT", "DELETE"] = "POST"
    """How it is asked."""
    summary: str = ""
    """One sentence for the OpenAPI document."""
    example: Callable[[int], Any] | None = None
    """Makes the body of request number n: for the OpenAPI document, the benchmark and the
    conformance kit. Different numbers make requests that may follow one another."""
    request_schema: Mapping[str, Any] | None = None
    """JSON schema of the body; None where it takes none."""
    response_schema: Mapping[str, Any] | None = None
    """JSON schema of what it returns."""
    media_type: str = "application/json"
    """Of what it returns."""
    open: bool = False
    """Whether it needs no token: for a page, which a browser asks for without one, and which must
    hold nothing that is not for everybody."""

    @property
    def parameter(self) -> str:
        """The name in braces that the path ends in, '' where it has none."""
        return self.path.rpartition("{")[2][:-1] if self.path.endswith("}") else ""


class Service(Protocol):
    """What a plugin's routes may use of the server that they live in."""

    @property
    def folder(self) -> Path:
        """Where the solution may keep what has to survive a restart; it exists."""

    @property
    def bundle(self) -> Bundle:
        """The champion: the bundle that answers now; another one after a swap."""

    @property
    def candidate(self) -> Candidate:
        """The one of the champion's models that answers."""

    @property
    def settings(self) -> Any:
        """The solution's settings: those of the champion, and the server's own `[serve]`."""

    @property
    def registry(self) -> Any:
        """The prometheus_client registry behind `/metrics`."""

    async def infer(
        self, inputs: Mapping[str, Array], *, records: int | None = None
    ) -> Mapping[str, Array]:
        """Run the champion the way the solution runs it, in a micro-batch with others.

        Args:
            inputs: Arrays that fit the signature.
            records: How many of the first records are real ones: the others, such as those of an
                explanation, count neither for drift nor for a challenger. All when left out.
        """

    def at_start(self, call: Callable[[], Awaitable[None]]) -> None:
        """Have something done before the server says that it is ready."""

    def at_close(self, call: Callable[[], Awaitable[None]]) -> None:
        """Have something done when the last request is answered."""

    def every(self, seconds: float, call: Callable[[], Awaitable[None]]) -> None:
        """Have something done again and again while the server lives."""


@dataclass(frozen=True, kw_only=True)
class PluginInfo:
    """An installed plugin, read from its distribution's metadata without importing it."""

    name: str
    """The entry point's name; for a solution, what `solution =` names."""
    distribution: str
    """The distribution that brings it."""
    version: str
    """Its version."""
    summary: str
    """Its one-line description."""
    module: str
    """Where its hooks are."""


@dataclass(frozen=True, kw_only=True)
class Quarantined:
    """A plugin that was kept off the board, and why."""

    name: str
    """The entry point's name, or the path of hooks.py."""
    distribution: str
    """The distribution that brings it."""
    version: str
    """Its version."""
    cause: str
    """The error in one line."""
