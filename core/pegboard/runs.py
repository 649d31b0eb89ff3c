"""Runs: one folder for one training, found again by what went into it.

`runs/2026-11-21T23-41-07/` holds `run.json` (identity, versions, settings), `stages.json` (which
stage was done for which inputs), and what the stages left.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pegboard.files import digest_of, locked, remove, sha256_of, write_json
from pegboard.project import Project
from pegboard.settings import PLACEMENT

RUNS = "runs"


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run's folder and the files in it."""

    project: Project
    """The project it belongs to."""
    folder: Path
    """`runs/<time>`, absolute."""

    @property
    def check_file(self) -> Path:
        """Findings of the check stage."""
        return self.folder / "check.json"

    @property
    def progress_file(self) -> Path:
        """One JSON object a line: steps and epochs of training."""
        return self.folder / "progress.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints of training."""
        return self.folder / "checkpoints"

    @property
    def weights_file(self) -> Path:
        """The trained weights that all later stages use."""
        return self.folder / "weights.safetensors"

    @property
    def evaluation_file(self) -> Path:
        """Metrics, thresholds and baselines."""
        return self.folder / "evaluation.json"

    @property
    def rows_file(self) -> Path:
        """The rows that the metrics were computed from."""
        return self.folder / "evaluation.npz"

    @property
    def bundle(self) -> Path:
        """The hand-over."""
        return self.folder / "bundle"

    @property
    def benchmark_file(self) -> Path:
        """Latency, throughput and memory per candidate."""
        return self.folder / "benchmark.json"

    @property
    def report_file(self) -> Path:
        """The report."""
        return self.folder / "report.html"

    @property
    def model_card_file(self) -> Path:
        """The model card."""
        return self.folder / "MODEL_CARD.md"

    @property
    def _stages_file(self) -> Path:
        return self.folder / "stages.json"

    def facts(self) -> dict[str, Any]:
        """Return identity, versions and settings as kept in `run.json`."""
        facts: dict[str, Any] = json.loads((self.folder / "run.json").read_text())
        return facts

    def stages(self) -> dict[str, dict[str, Any]]:
        """Return what is done: by stage its key, seconds and facts."""
        if not self._stages_file.exists():
            return {}
        stages: dict[str, dict[str, Any]] = json.loads(self._stages_file.read_text())
        return stages

    def is_done(self, stage: str, key: str) -> bool:
        """Whether a stage was done for the inputs that `key` stands for."""
        return self.stages().get(stage, {}).get("key") == key

    def mark_done(self, stage: str, *, key: str, seconds: float, facts: Mapping[str, Any]) -> None:
        """Note that a stage is done; what it left is on the disk already."""
        entry = {"key": key, "seconds": round(seconds, 3), "facts": dict(facts)}
        write_json(self._stages_file, self.stages() | {stage: entry})

    def forget(self, stage: str) -> None:
        """Note that a stage has to be done again."""
        stages = self.stages()
        if stages.pop(stage, None) is not None:
            write_json(self._stages_file, stages)

    def locked(self) -> AbstractContextManager[None]:
        """Keep a second process from writing into the same run.

        Raises:
            RunLockedError: Another process is at work on it.
        """
        return locked(
            self.folder,
            what="another process is at work on this run",
            remedy="wait for it, or start a run of its own with --new",
        )


def data_fingerprint(paths: Sequence[Path]) -> str:
    """Return a digest of names, sizes and modification times of what the splits are read from."""
    return digest_of([_stamp(file) for path in paths for file in _files_of(path)])


def _files_of(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return sorted(Path(folder, name) for folder, _, names in os.walk(path) for name in names)


def _stamp(file: Path) -> list[Any]:
    if not file.exists():
        return [str(file), None]
    facts = file.stat()
    return [str(file), facts.st_size, facts.st_mtime_ns]


def identity_of(project: Project, data: str) -> str:
    """Return a digest of everything that decides the trained weights."""
    tables = project.settings.tables(project.folder)
    train = {key: value for key, value in tables["train"].items() if key not in PLACEMENT}
    hooks = project.hooks_file
    return digest_of(
        {
            "solution": tables["solution"],
            "plugins": project.board.versions(),
            "hooks": sha256_of(hooks) if hooks.exists() else None,
            "settings": [tables["data"], tables["model"], train],
            "data": data,
        }
    )


def runs_of(folder: Path, place: str = RUNS) -> list[Path]:
    """Return the runs of a project's folder, oldest first."""
    return sorted(path.parent for path in (folder / place).glob("*/run.json"))


def find_run(project: Project, data: str, *, new: bool = False, place: str = RUNS) -> Run:
    """Take up the newest run with the same identity, or begin one."""
    identity = identity_of(project, data)
    # Nodes that start together must not each begin a run of their own.
    with _held(project.folder / place):
        if not new:
            for folder in reversed(runs_of(project.folder, place)):
                run = Run(project=project, folder=folder)
                if run.facts()["identity"] == identity:
                    return run
        return _begin(project, identity, project.folder / place)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Make a folder and keep other processes that ask for it waiting."""
    folder.mkdir(exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _begin(project: Project, identity: str, place: Path) -> Run:
    stamp = time.strftime("%Y-%m-%dT%H-%M-%S")
    folder = place / stamp
    number = 1
    while folder.exists():
        number += 1
        folder = place / f"{stamp}-{number}"
    folder.mkdir(parents=True)
    try:
        write_json(
            folder / "run.json",
            {
                "identity": identity,
                "begun": stamp,
                "plugins": project.board.versions(),
                "settings": project.settings.tables(project.folder),
            },
        )
    except BaseException:
        remove(folder)
        raise
    return Run(project=project, folder=folder)
