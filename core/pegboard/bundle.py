"""The bundle: a folder that hands a model over, whole, checked and without pickle.

    bundle.json                        what is in it, with a checksum of every other file
    golden.npz                         raw inputs of test records and torch's outputs for them
    reference.json                     statistics of inputs and outputs on the train split
    models/<target>/<variant>/...      one model per candidate

Reading one needs NumPy and nothing that trained it.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pegboard.errors import BundleError, PegboardError
from pegboard.files import atomic_path, digest_of, sha256_of, write_json
from pegboard.records import (
    Array,
    MetricValue,
    Part,
    Predictor,
    Signature,
    Target,
    TensorSpec,
    Thresholds,
)
from pegboard.targets.support import find_target, first_line

if TYPE_CHECKING:
    from pegboard.settings import SettingsT

FORMAT = 1
"""Raised when an older reader would misunderstand what is written."""

MANIFEST = "bundle.json"
GOLDEN = "golden.npz"
REFERENCE = "reference.json"
FILES = "files"
MODELS = "models"

Status = Literal["exported", "verified", "quarantined"]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One model of the bundle: a runtime and a precision."""

    target: str
    """The target that runs it."""
    variant: str
    """`fp32`, or the compression that made it."""
    file: str
    """Its file or folder, relative to the bundle, with forward slashes."""
    status: Status = "exported"
    """A quarantined one is never served."""
    reason: str = ""
    """Why it is quarantined."""
    measured: Mapping[str, float | None] = field(default_factory=dict)
    """`cpu_ms`, `wall_ms` (one record, one thread), `validation_metric`, `validation_drop` from
    compress; `tensor_error`, `test_metric`, `test_drop`, `flipped_decisions` from verify. None
    where a number is not defined."""

    @property
    def name(self) -> str:
        """`onnx/int8-dynamic`."""
        return f"{self.target}/{self.variant}"

    @property
    def is_quarantined(self) -> bool:
        """Whether verification refused it."""
        return self.status == "quarantined"


@dataclass(frozen=True, kw_only=True)
class Golden:
    """One record to verify with: what went in and what torch made of it."""

    inputs: Mapping[str, Array]
    """Raw inputs by name, a batch of one."""
    outputs: Mapping[str, Array]
    """The trained model's float32 outputs by name."""


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """What a file of the bundle must be."""

    sha256: str
    """64 hexadecimal digits."""
    bytes: int
    """Its size."""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle's folder and what its `bundle.json` says."""

    folder: Path
    """Absolute."""
    solution: str
    """The solution that decodes requests and encodes answers."""
    versions: Mapping[str, str]
    """Of Pegboard and of the plugins that made it."""
    created: str
    """UTC, ISO 8601."""
    signature: Signature
    """What its models take and return."""
    thresholds: Thresholds
    """The decision thresholds."""
    metrics: tuple[MetricValue, ...]
    """What the trained model reached on the test split, the headline metric first."""
    settings: Mapping[str, Any]
    """The project's tables; paths are relative to the project."""
    candidates: tuple[Candidate, ...]
    """Its models, in the order of `[deploy] targets`, fp32 first."""
    chosen_name: str
    """The candidate that is served: `onnx/fp32`."""
    carried: Mapping[str, str] = field(default_factory=dict)
    """Other files that answering needs: their paths in the bundle, by the settings naming them."""
    files: Mapping[str, FileFacts] = field(default_factory=dict)
    """Every file but `bundle.json`, by its path in the bundle."""

    @cached_property
    def version(self) -> str:
        """What tells it from every other bundle: `2026-11-22T03:00:00Z-1f0c9a3b77e2`."""
        return f"{self.created}-{digest_of(_tables(self))[:12]}"

    def candidate(self, name: str) -> Candidate:
        """Return a candidate by its name.

        Raises:
            BundleError: There is none of that name.
        """
        for candidate in self.candidates:
            if candidate.name == name:
                return candidate
        raise BundleError(
            f"the bundle has no candidate '{name}'",
            where=str(self.folder),
            remedy=f"it has {', '.join(candidate.name for candidate in self.candidates)}",
        )

    def chosen(self) -> Candidate:
        """Return the candidate that is served."""
        return self.candidate(self.chosen_name)

    def servable(self) -> list[Candidate]:
        """Return the candidates that are not quarantined."""
        return [candidate for candidate in self.candidates if not candidate.is_quarantined]

    def size_of(self, candidate: Candidate) -> int:
        """Return a candidate's size in bytes."""
        return sum(
            facts.bytes
            for name, facts in self.files.items()
            if PurePosixPath(name).is_relative_to(candidate.file)
        )

    def load_predictor(
        self, targets: Sequence[Target], candidate: Candidate | None = None
    ) -> Predictor:
        """Open a candidate, or the chosen one.

        Args:
            targets: What the board offers: `board.collect("deploy_targets")`.
            candidate: Which one; the chosen one when it is left out.

        Raises:
            BundleError: It is quarantined, or its file cannot be opened.
            PegboardError: Its target is unknown or cannot be used here.
        """
        candidate = candidate or self.chosen()
        if candidate.is_quarantined:
            raise BundleError(
                f"'{candidate.name}' is quarantined: {candidate.reason}",
                where=str(self.folder),
                remedy="use another candidate",
            )
        target = find_target(targets, candidate.target, where=str(self.folder))
        path = self.folder / candidate.file
        try:
            return target.load(path, self.signature.windowed())
        except PegboardError:
            raise
        # A runtime raises what it likes; the reader needs to know which model it was.
        except Exception as error:
            raise BundleError(
                f"'{candidate.name}' cannot be opened: {first_line(error)}",
                where=str(path),
                remedy="install the versions the bundle was made with, or export it again",
            ) from error

    def with_files(self, settings: SettingsT) -> SettingsT:
        """Return settings that name the files which the bundle carries."""
        for key, name in self.carried.items():
            table, setting = key.split(".")
            changed = getattr(settings, table).model_copy(update={setting: self.folder / name})
            settings = settings.model_copy(update={table: changed})
        return settings

    def golden(self) -> list[Golden]:
        """Read the golden records."""
        return read_golden(self.folder / GOLDEN)

    def reference(self) -> dict[str, Any]:
        """Read the reference statistics of inputs and outputs."""
        statistics: dict[str, Any] = json.loads((self.folder / REFERENCE).read_text("utf-8"))
        return statistics


# --------------------------------------------------------------------------- writing


def versions(plugins: Mapping[str, str]) -> dict[str, str]:
    """Return the versions that a bundle notes: Pegboard's own and those of its plugins."""
    return {"pegboard": version("pegboard"), **plugins}


def now() -> str:
    """Return the time as a bundle notes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def model_folder(root: Path, target: str, variant: str) -> Path:
    """Return where in a bundle a candidate's files lie."""
    return root / MODELS / target / variant


def relative(path: Path, root: Path) -> str:
    """Return a path in the bundle as `bundle.json` writes it."""
    return path.relative_to(root).as_posix()


def carry(files: Mapping[str, Path], root: Path) -> dict[str, str]:
    """Copy files into a bundle; return their paths in it, by the settings that name them.

    Raises:
        BundleError: One is not there.
    """
    carried = {}
    for key, path in files.items():
        if not path.is_file():
            raise BundleError(
                f"the file of '{key}' is missing",
                where=str(path),
                remedy="run 'pegboard prepare', or set it to a file that is there",
            )
        target = root / FILES / key / path.name
        target.parent.mkdir(parents=True)
        shutil.copyfile(path, target)
        carried[key] = relative(target, root)
    return carried


def write_manifest(bundle: Bundle) -> Bundle:
    """Write `bundle.json`, atomically, with a checksum of every file that belongs to the bundle.

    Files that were listed before keep their checksums, so that a file damaged since then is still
    noticed; files that no candidate uses any more are left out.
    """
    files = {
        name: bundle.files.get(name) or _facts_of(bundle.folder / name)
        for name in _names_of(bundle)
    }
    bundle = replace(bundle, files=files)
    tables = _tables(bundle)
    write_json(bundle.folder / MANIFEST, tables | {"digest": digest_of(tables)})
    return bundle


def _names_of(bundle: Bundle) -> list[str]:
    paths = [bundle.folder / name for name in (GOLDEN, REFERENCE, *bundle.carried.values())]
    for candidate in bundle.candidates:
        model = bundle.folder / candidate.file
        paths += model.rglob("*") if model.is_dir() else [model]
    return sorted({relative(path, bundle.folder) for path in paths if not path.is_dir()})


def _facts_of(path: Path) -> FileFacts:
    return FileFacts(sha256=sha256_of(path), bytes=path.stat().st_size)


def _tables(bundle: Bundle) -> dict[str, Any]:
    tables = {
        "format": FORMAT,
        **asdict(replace(bundle, folder=Path())),
        "golden": GOLDEN,
        "reference": REFERENCE,
    }
    tables["chosen"] = tables.pop("chosen_name")
    del tables["folder"]
    # Through JSON once, so that the digest is of what a reader will see: lists for tuples.
    plain: dict[str, Any] = json.loads(json.dumps(tables))
    return plain


def write_golden(path: Path, records: Iterable[Golden]) -> None:
    """Write golden records; they may differ in shape."""
    arrays = {
        f"{index:06d}/{kind}/{name}": array
        for index, record in enumerate(records)
        for kind, part in (("inputs", record.inputs), ("outputs", record.outputs))
        for name, array in part.items()
    }
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, allow_pickle=False, **arrays)


def read_golden(path: Path) -> list[Golden]:
    """Read golden records back, in order."""
    parts: dict[str, dict[str, dict[str, Array]]] = {}
    with np.load(path, allow_pickle=False) as archive:
        for key in archive.files:
            index, kind, name = key.split("/", 2)
            parts.setdefault(index, {"inputs": {}, "outputs": {}})[kind][name] = archive[key]
    return [Golden(**parts[index]) for index in sorted(parts)]


# --------------------------------------------------------------------------- reading


def read_bundle(folder: Path, *, verify: bool = True) -> Bundle:
    """Read a bundle.

    Args:
        folder: Where it lies.
        verify: Compare every file with its checksum first.

    Raises:
        BundleError: It is no bundle, is newer than this Pegboard, or a file is missing or damaged.
    """
    folder = folder.resolve()
    tables = _read_manifest(folder)
    try:
        bundle = _bundle_of(folder, tables)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(
            f"{MANIFEST} lacks or misspells {first_line(error)}",
            where=str(folder / MANIFEST),
            remedy="export it again",
        ) from error
    if verify:
        for name, facts in bundle.files.items():
            _check_file(folder, name, facts)
        for candidate in bundle.candidates:
            # Without it a model that no checksum covers would be opened.
            if not bundle.size_of(candidate):
                raise _damaged(folder, f"'{candidate.name}' has no file with a checksum")
    return bundle


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        tables = json.loads(path.read_text(encoding="utf-8"))
        newest = tables["format"]
        digest = tables.pop("digest") if newest == FORMAT else ""
    except OSError as error:
        raise BundleError(
            f"this is not a bundle: {MANIFEST} cannot be read ({error.strerror})",
            where=str(folder),
            remedy="name a bundle's folder; 'pegboard export' writes one",
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BundleError(
            f"{MANIFEST} is damaged", where=str(path), remedy="copy it again, or export it again"
        ) from None
    if newest != FORMAT:
        raise BundleError(
            f"the bundle has the format {newest!r} and this Pegboard reads {FORMAT}",
            where=str(path),
            remedy="run 'pip install --upgrade pegboard'",
        )
    if digest != digest_of(tables):
        raise BundleError(
            f"{MANIFEST} was changed after it was written",
            where=str(path),
            remedy="copy it again, or export it again",
        )
    return dict(tables)


def _bundle_of(folder: Path, tables: Mapping[str, Any]) -> Bundle:
    return Bundle(
        folder=folder,
        solution=tables["solution"],
        versions=tables["versions"],
        created=tables["created"],
        signature=_signature_of(tables["signature"]),
        thresholds=tables["thresholds"],
        metrics=tuple(MetricValue(**metric) for metric in tables["metrics"]),
        settings=tables["settings"],
        candidates=tuple(Candidate(**candidate) for candidate in tables["candidates"]),
        chosen_name=tables["chosen"],
        carried=tables.get("carried", {}),
        files={name: FileFacts(**facts) for name, facts in tables["files"].items()},
    )


def _signature_of(tables: Mapping[str, Any]) -> Signature:
    return Signature(
        inputs=tuple(_spec_of(spec) for spec in tables["inputs"]),
        outputs=tuple(_spec_of(spec) for spec in tables["outputs"]),
        request=tables["request"],
        window=tables.get("window", {}),
        is_single=tables.get("is_single", False),
        parts={name: _part_of(part) for name, part in tables.get("parts", {}).items()},
    )


def _part_of(tables: Mapping[str, Any]) -> Part:
    return Part(inputs=tuple(tables["inputs"]), outputs=tuple(tables["outputs"]))


def _spec_of(tables: Mapping[str, Any]) -> TensorSpec:
    # JSON has lists only; records are compared and hashed, so they hold tuples.
    ranges = tuple((float(low), float(high)) for low, high in tables["channel_ranges"])
    tuples = {name: tuple(tables[name]) for name in ("shape", "channels", "channel_units")}
    return TensorSpec(**{**tables, **tuples, "channel_ranges": ranges})


def _check_file(folder: Path, name: str, facts: FileFacts) -> None:
    path = folder / name
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise _damaged(folder, f"'{name}' lies outside the bundle")
    if not path.is_file():
        raise _damaged(folder, f"the file '{name}' is missing")
    if path.stat().st_size != facts.bytes:
        size = path.stat().st_size
        raise _damaged(folder, f"the file '{name}' has {size} bytes and not {facts.bytes}")
    if sha256_of(path) != facts.sha256:
        raise _damaged(folder, f"the checksum of '{name}' is wrong")


def _damaged(folder: Path, what: str) -> BundleError:
    return BundleError(what, where=str(folder), remedy="copy the bundle again, or export it again")
