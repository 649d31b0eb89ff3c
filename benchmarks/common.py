"""What several benchmarks need: a bundle, cores, CPU times and folders."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "bench-results"
PEGBOARD = Path(sys.executable).parent / "pegboard"


def find_bundle(given: Path | None) -> Path:
    """Return the given bundle, or one of a small training made here once."""
    if given:
        return given.resolve()
    project = RESULTS / "serve" / "fraud"
    if not project.is_dir():
        project.parent.mkdir(parents=True, exist_ok=True)
        _pegboard("new", "fraud", "fraud", "--no-input", folder=project.parent)
    if not list(project.glob("runs/*/verify.json")) and not _bundles(project):
        _pegboard("verify", "train.epochs=1", "data.tiny=true", folder=project)
    return _bundles(project)[-1]


def _bundles(project: Path) -> list[Path]:
    return sorted(path.parent for path in project.glob("runs/*/bundle/bundle.json"))


def _pegboard(*arguments: str, folder: Path) -> None:
    subprocess.run([PEGBOARD, *arguments], cwd=folder, check=True, stdout=subprocess.DEVNULL)


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """Let this process, and what it starts, use one core of those it has."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    cores = sorted(before)
    os.sched_setaffinity(0, {cores[core % len(cores)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cpu_seconds(pid: int) -> float:
    """Return what a process took of the CPU until now."""
    # In nanoseconds; what psutil reads is in hundredths of a second, too coarse for a short run.
    try:
        tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9
    except OSError:
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)
