"""Settings: `pegboard.toml`, then the environment, then `key=value`; checked by pydantic.

- `epochs = 3` under `[train]` in pegboard.toml
- `PEGBOARD_TRAIN__EPOCHS=3` in the environment
- `pegboard train train.epochs=3` on the command line
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PlainSerializer,
    PositiveFloat,
    PositiveInt,
    SerializationInfo,
    ValidationError,
    ValidationInfo,
)

from pegboard.errors import SettingsError

FILE_NAME = "pegboard.toml"
ENVIRONMENT_PREFIX = "PEGBOARD_"


def _anchored(path: Path, info: ValidationInfo) -> Path:
    root = (info.context or {}).get("root")
    return path if root is None else Path(root, path.expanduser())


def _relative(path: Path, info: SerializationInfo) -> str:
    root = (info.context or {}).get("root") if isinstance(info.context, dict) else None
    if root is not None and path.is_relative_to(root):
        return path.relative_to(root).as_posix()
    return path.as_posix()


ProjectPath = Annotated[Path, AfterValidator(_anchored), PlainSerializer(_relative)]
"""A path that is relative to the project's folder in the file and absolute in the program."""


class Table(BaseModel):
    """A table of pegboard.toml: frozen, and strict about unknown keys."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        # Defaults are read again for each project, so that their paths lie in its folder.
        validate_default=True,
        revalidate_instances="always",
    )


class DataSettings(Table):
    """What every solution has under `[data]`."""

    folder: ProjectPath = Field(
        default=Path("data"), description="Where data sets are made, fetched or looked for."
    )
    tiny: bool = Field(
        default=False, description="Make the embedded data set small enough for a test."
    )


class ModelSettings(Table):
    """What every solution has under `[model]`: nothing yet."""


class TrainSettings(Table):
    """`[train]`: how the weights are found, whatever the domain."""

    epochs: PositiveInt = Field(default=10, description="Passes over the train split.")
    batch_size: PositiveInt = Field(
        default=64, description="Samples per optimiser step, over all processes together."
    )
    eval_batch_size: NonNegativeInt = Field(
        default=0,
        description="Samples per batch where nothing is learnt; 0: as many as where it is. 1 where "
        "samples differ in shape.",
    )
    lr: PositiveFloat = Field(default=1e-3, description="Peak learning rate.")
    weight_decay: NonNegativeFloat = Field(default=1e-4, description="Decoupled weight decay.")
    warmup: float = Field(
        default=0.05, ge=0.0, lt=1.0, description="Share of the steps that the rate rises over."
    )
    clip_grad_norm: NonNegativeFloat = Field(
        default=1.0, description="Largest gradient norm; 0 does not clip."
    )
    ema_decay: float = Field(
        default=0.0,
        ge=0.0,
        lt=1.0,
        description="Decay of the averaged weights that are validated and kept; 0 averages none.",
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        default="fp32", description="Arithmetic of the forward pass (autocast)."
    )
    devices: PositiveInt | Literal["auto"] = Field(
        default="auto", description="Processes on each node; auto: one a GPU, else one."
    )
    nodes: PositiveInt = Field(default=1, description="Machines that train together.")
    strategy: Literal["auto", "ddp", "fsdp"] = Field(
        default="auto", description="How processes share the work; auto: ddp."
    )
    seed: NonNegativeInt = Field(default=0, description="Of weights, order and augmentation.")
    workers: NonNegativeInt = Field(default=0, description="Loader processes per process.")
    checkpoint_every: NonNegativeInt = Field(
        default=0, description="Steps between checkpoints inside an epoch; 0: at its end only."
    )
    max_steps: NonNegativeInt = Field(
        default=0, description="Stop after so many steps; 0: after the epochs."
    )
    keep: Literal["best", "last"] = Field(
        default="best", description="The epoch whose weights go on: by headline metric, or last."
    )

    @property
    def evaluated_at_once(self) -> int:
        """Samples per batch where nothing is learnt."""
        return self.eval_batch_size or self.batch_size


PLACEMENT = ("devices", "nodes", "strategy", "workers", "checkpoint_every")
"""Keys of `[train]` that say where and not what: a run resumes when they change."""


class LimitSettings(Table):
    """`[deploy.limits]`: what a model must keep to be served; 0 sets no limit."""

    tensor_error: PositiveFloat = Field(
        default=1e-3, description="Largest error of an fp32 export against torch, share of range."
    )
    metric_drop: NonNegativeFloat = Field(
        default=0.01, description="Largest loss of the headline metric, as a share of it."
    )
    flipped_decisions: NonNegativeFloat = Field(
        default=0.005, description="Largest share of decisions that differ from torch's."
    )
    p99_ms: NonNegativeFloat = Field(
        default=0.0, description="Largest 99th percentile of a request's time, in milliseconds."
    )
    throughput: NonNegativeFloat = Field(
        default=0.0, description="Smallest number of requests a second, one thread."
    )
    memory_mb: NonNegativeFloat = Field(
        default=0.0, description="Largest resident memory of the process, in megabytes."
    )


class DeploySettings(Table):
    """`[deploy]`: what is exported and what it has to keep."""

    targets: tuple[str, ...] = Field(
        default=("onnx", "torch"), min_length=1, description="Runtimes, the preferred one first."
    )
    compress: tuple[str, ...] = Field(
        default=(), description="Compressions to try; the fastest that keeps the limits is served."
    )
    golden: PositiveInt = Field(
        default=64, description="Records of the test split that the bundle carries to verify with."
    )
    reference: PositiveInt = Field(
        default=20_000, description="Records of the train split behind the reference statistics."
    )
    limits: LimitSettings = LimitSettings()


class ServeSettings(Table):
    """`[serve]`: how a bundle is served; none of it changes a model.

    The same keys are taken from the environment and the command line of `pegboard serve`.
    """

    host: str = Field(default="127.0.0.1", description="Address to listen on; 0.0.0.0 is all.")
    port: int = Field(default=8080, ge=0, le=65535, description="0 takes any free one.")
    folder: ProjectPath = Field(
        default=Path("serve"), description="Where a solution keeps what survives a restart."
    )
    request_mb: PositiveFloat = Field(default=16.0, description="Largest request, in megabytes.")
    timeout_seconds: PositiveFloat = Field(
        default=10.0, description="Longest time from the first byte of a request to its answer."
    )
    batch_size: PositiveInt = Field(default=32, description="Most records run together.")
    batch_wait_ms: NonNegativeFloat = Field(
        default=0.0, description="Longest time that a request waits for others; 0: none is added."
    )
    queue: PositiveInt = Field(
        default=1024, description="Records that may wait; more are answered with 503."
    )
    drain_seconds: PositiveFloat = Field(
        default=20.0, description="Time that requests have to end after SIGTERM."
    )
    trial: bool = Field(
        default=False,
        description="Whether it is only tried out: nothing outside serve.folder is touched.",
    )
    drift_window: PositiveInt = Field(
        default=10_000, description="Latest records that are compared with training."
    )


class Settings(Table):
    """The settings of a project; a solution subclasses it with its own `data` and `model`."""

    solution: str = Field(description="Entry-point name of the solution.")
    plugins: tuple[str, ...] = Field(default=(), description="Extra plugins, in order.")
    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()
    deploy: DeploySettings = DeploySettings()
    serve: ServeSettings = ServeSettings()

    def tables(self, root: Path | None = None) -> dict[str, Any]:
        """Return plain tables, as JSON or TOML would carry them; paths relative to `root`."""
        return self.model_dump(mode="json", context={"root": root})


SettingsT = TypeVar("SettingsT", bound=Settings)


class Sources:
    """The tables of a project as the user wrote them, and where each key was written."""

    def __init__(self) -> None:
        self.tables: dict[str, Any] = {}
        self.origins: dict[tuple[str, ...], str] = {}

    def put(self, key: tuple[str, ...], value: Any, origin: str) -> None:
        """Set `key`, and every key below it when `value` is a table."""
        if isinstance(value, dict):
            for name, below in value.items():
                self.put((*key, name), below, origin)
            if not value:
                self._table(key)
            return
        self._table(key[:-1])[key[-1]] = value
        self.origins[key] = origin

    def _table(self, key: tuple[str, ...]) -> dict[str, Any]:
        table = self.tables
        for name in key:
            below = table.setdefault(name, {})
            if not isinstance(below, dict):
                raise SettingsError(
                    f"'{name}' is a value and not a table",
                    where=self.origin(key),
                    remedy=f"remove '{name} = ...' or the keys below it",
                )
            table = below
        return table

    def origin(self, key: Sequence[str | int]) -> str:
        """Say where a key, or else the nearest table above it, was written."""
        names = tuple(str(name) for name in key)
        for length in range(len(names), 0, -1):
            for known, origin in self.origins.items():
                if known[:length] == names[:length]:
                    return origin
        return FILE_NAME


def read_sources(
    file: Path | None,
    environment: Mapping[str, str] | None = None,
    overrides: Sequence[str] = (),
) -> Sources:
    """Collect the tables of a project: file if there is one, then environment, then `key=value`.

    Raises:
        SettingsError: The file is missing or not TOML, or an override is not `key=value`.
    """
    sources = Sources()
    if file is not None:
        sources.put((), _read_toml(file), file.name)
    for name, text in sorted((os.environ if environment is None else environment).items()):
        key = _environment_key(name)
        if key:
            sources.put(key, _parse_value(text), f"environment variable {name}")
    for override in overrides:
        dotted, equals, text = override.partition("=")
        if not equals or not dotted:
            raise SettingsError(
                f"'{override}' is not a setting",
                where="command line",
                remedy="write it as key=value, for example train.epochs=3",
            )
        sources.put(tuple(dotted.strip().split(".")), _parse_value(text), "command line")
    return sources


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(
            f"there is no {FILE_NAME}",
            where=str(file.parent),
            remedy="go to a project's folder, or make one with 'pegboard new'",
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"this is not TOML: {error}", where=str(file), remedy="correct the line"
        ) from None
    except OSError as error:
        raise SettingsError(
            f"the settings cannot be read: {error.strerror}",
            where=str(file),
            remedy="make it a readable file",
        ) from None


def _environment_key(name: str) -> tuple[str, ...]:
    """Return the key that a variable sets; empty for variables that are not settings."""
    if not name.startswith(ENVIRONMENT_PREFIX):
        return ()
    key = tuple(name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__"))
    # Variables without a table, such as PEGBOARD_TEST_DATA, are switches and not settings.
    return key if len(key) > 1 or key[0] in ("solution", "plugins") else ()


def _parse_value(text: str) -> Any:
    """Read a value as TOML would, and what is not TOML as a plain string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def resolve(kind: type[SettingsT], sources: Sources, root: Path) -> SettingsT:
    """Check the tables against a settings type; paths become absolute below `root`.

    Raises:
        SettingsError: Names the first wrong key, where it was written, and the nearest known one.
    """
    try:
        return kind.model_validate(sources.tables, context={"root": root})
    except ValidationError as error:
        raise _explained(kind, sources, error) from None


def _explained(kind: type[Settings], sources: Sources, error: ValidationError) -> SettingsError:
    first = error.errors(include_url=False)[0]
    key = [str(name) for name in first["loc"]]
    dotted = ".".join(key)
    origin = sources.origin(key)
    if first["type"] == "extra_forbidden":
        return SettingsError(
            f"unknown setting '{dotted}'", where=origin, remedy=_nearest(kind, key)
        )
    if first["type"] == "missing":
        return SettingsError(f"the setting '{dotted}' is missing", where=FILE_NAME, remedy="add it")
    given = "" if isinstance(first["input"], dict) else f", not {first['input']!r}"
    message = first["msg"].removeprefix("Value error, ")
    return SettingsError(
        f"the setting '{dotted}' is wrong: {message[:1].lower()}{message[1:]}{given}",
        where=origin,
        remedy="correct it; 'pegboard describe' lists every setting",
    )


def _nearest(kind: type[BaseModel], key: Sequence[str]) -> str:
    """Point to the known key that an unknown one most resembles, in its own table or another."""
    known = list(known_keys(kind))
    dotted = ".".join(key)
    below = [name for name in known if name.rpartition(".")[0] == ".".join(key[:-1])]
    by_leaf = {name.rpartition(".")[2]: name for name in known}
    close = difflib.get_close_matches(dotted, below, n=1, cutoff=0.6) or [
        by_leaf[leaf] for leaf in difflib.get_close_matches(key[-1], by_leaf, n=1, cutoff=0.75)
    ]
    if close:
        return f"did you mean '{close[0]}'"
    if below:
        return f"known here: {', '.join(name.rpartition('.')[2] for name in below)}"
    return "remove it; 'pegboard describe' lists every setting"


def known_keys(kind: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Return every key of a settings type as `table.key`, with its pydantic field."""
    keys: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        keys[f"{prefix}{name}"] = field
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys |= known_keys(field.annotation, f"{prefix}{name}.")
    return keys
