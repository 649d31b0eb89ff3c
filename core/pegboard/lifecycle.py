"""The life cycle: the stages in order, each run once for the same inputs."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pegboard.files import digest_of, remove
from pegboard.records import StageEvent

if TYPE_CHECKING:
    from pegboard.progress import Progress
    from pegboard.project import Project
    from pegboard.runs import Run

Facts = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A step of the life cycle."""

    name: str
    """Also the command and the module under `pegboard.stages`."""
    summary: str
    """One line for the command line."""
    settings: tuple[str, ...] = ()
    """Dotted settings it reads beside what makes the run's identity."""
    after: tuple[str, ...] = ()
    """Stages whose results it reads."""
    leaves: tuple[str, ...] = ()
    """What it leaves in the run's folder and nothing else writes; it is done again when one of
    them is gone."""

    def load(self) -> Callable[[Run, Progress], Facts]:
        """Import the stage; only then are its libraries loaded."""
        module = importlib.import_module(f"pegboard.stages.{self.name}")
        run: Callable[[Run, Progress], Facts] = module.run
        return run


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            name="check", summary="Look for what is wrong with the data.", leaves=("check.json",)
        ),
        Stage(
            name="train",
            summary="Train the model, or resume where it stopped.",
            after=("check",),
            leaves=("checkpoints", "weights.safetensors"),
        ),
        Stage(
            name="evaluate",
            summary="Measure the model and its baselines on the test split.",
            after=("train",),
            leaves=("evaluation.json", "evaluation.npz"),
        ),
        Stage(
            name="export",
            summary="Write the bundle, with a model for every target.",
            settings=("deploy.targets", "deploy.golden"),
            after=("evaluate",),
            leaves=("bundle",),
        ),
        Stage(
            name="compress",
            summary="Make smaller and faster candidates and choose among them.",
            settings=("deploy.compress", "deploy.limits"),
            after=("export",),
        ),
        Stage(
            name="verify",
            summary="Compare every exported model with the trained one.",
            settings=("deploy.limits",),
            after=("compress",),
        ),
        Stage(
            name="benchmark",
            summary="Measure latency, throughput and memory against the limits.",
            settings=("deploy.limits",),
            after=("verify",),
            leaves=("benchmark.json",),
        ),
        Stage(
            name="report",
            summary="Write report.html and the model card.",
            after=("benchmark",),
            leaves=("report.html", "MODEL_CARD.md"),
        ),
    )
}
"""After `prepare`, which fills the data folder and belongs to no run."""


def prepare(project: Project, progress: Progress) -> list[Path]:
    """Make or fetch the data; does nothing when it is there.

    Returns:
        The files and folders that the splits are read from.
    """
    settings, hook = project.settings, project.board.hook
    event = StageEvent(stage="prepare", folder=settings.data.folder)
    hook.before_stage(settings=settings, event=event)
    began = time.monotonic()
    try:
        settings.data.folder.mkdir(parents=True, exist_ok=True)
        paths = [Path(path) for path in hook.prepare_data(settings=settings, progress=progress)]
    except BaseException as error:
        hook.on_stage_error(settings=settings, event=event, error=error)
        raise
    done = StageEvent(
        stage="prepare",
        folder=settings.data.folder,
        seconds=time.monotonic() - began,
        facts={"paths": [str(path) for path in paths]},
    )
    hook.after_stage(settings=settings, event=done)
    return paths


def open_run(
    project: Project, progress: Progress, *, new: bool = False, place: str = "runs"
) -> Run:
    """Prepare the data and find the run that these settings and this data belong to.

    Args:
        project: The project.
        progress: Where to say how far it is.
        new: Begin a run even if there is one.
        place: The folder of the project that the runs lie in.
    """
    # Here and not above: `pegboard --help` lists the stages and must not wait for pydantic.
    from pegboard.runs import data_fingerprint, find_run

    data = data_fingerprint(prepare(project, progress))
    return find_run(project, data, new=new, place=place)


def run_stages(run: Run, last: str, progress: Progress, *, again: bool = False) -> dict[str, Facts]:
    """Bring a run up to and including the stage `last`, skipping what is done.

    Where another node already works on the run, this one joins its training.

    Args:
        run: The run to work on.
        last: The stage to end with; those it needs are done first.
        progress: Where to say how far it is.
        again: Do `last` from the beginning even if it was done for the same inputs.

    Returns:
        The facts of every stage up to `last`, in order.
    """
    from pegboard.errors import RunLockedError

    try:
        with run.locked():
            return _run_stages(run, last, progress, again)
    except RunLockedError:
        if last == "train" and _trains_in_company(run):
            return {"train": STAGES["train"].load()(run, progress)}
        raise


def _trains_in_company(run: Run) -> bool:
    """Whether whoever holds the run waits for this process, on another node or under torchrun."""
    return run.project.settings.train.nodes > 1 or "RANK" in os.environ


def _run_stages(run: Run, last: str, progress: Progress, again: bool) -> dict[str, Facts]:
    facts: dict[str, Facts] = {}
    for stage in _needed(last):
        key = stage_key(run, stage)
        if again and stage.name == last:
            for left in stage.leaves:
                remove(run.folder / left)
            run.forget(stage.name)
        if _is_done(run, stage, key):
            progress.say(f"{stage.name}: already done")
            facts[stage.name] = run.stages()[stage.name]["facts"]
            continue
        facts[stage.name] = _do(run, stage, key, progress)
    return facts


def stage_key(run: Run, stage: Stage) -> str:
    """Return a digest of everything a stage depends on."""
    tables = run.project.settings.tables(run.project.folder)
    upstream = [stage_key(run, STAGES[name]) for name in stage.after]
    read = [_value_at(tables, key) for key in stage.settings]
    return digest_of([run.facts()["identity"], stage.name, read, upstream])


def _value_at(tables: Mapping[str, Any], key: str) -> Any:
    value: Any = tables
    for name in key.split("."):
        value = value[name]
    return value


def _needed(last: str) -> list[Stage]:
    """Return the stages that `last` builds on, and `last`, in order."""
    needed = {last}
    for stage in reversed(STAGES.values()):
        if stage.name in needed:
            needed.update(stage.after)
    return [stage for stage in STAGES.values() if stage.name in needed]


def _from(stage: Stage) -> list[str]:
    """Name a stage and all that may have been built on it."""
    names = list(STAGES)
    return names[names.index(stage.name) :]


def _is_done(run: Run, stage: Stage, key: str) -> bool:
    return run.is_done(stage.name, key) and all(
        (run.folder / left).exists() for left in stage.leaves
    )


def _do(run: Run, stage: Stage, key: str, progress: Progress) -> Facts:
    settings, hook = run.project.settings, run.project.board.hook
    event = StageEvent(stage=stage.name, folder=run.folder)
    hook.before_stage(settings=settings, event=event)
    for stale in _from(stage):
        run.forget(stale)
    began = time.monotonic()
    try:
        facts = stage.load()(run, progress)
    except BaseException as error:
        hook.on_stage_error(settings=settings, event=event, error=error)
        raise
    seconds = time.monotonic() - began
    run.mark_done(stage.name, key=key, seconds=seconds, facts=facts)
    done = StageEvent(stage=stage.name, folder=run.folder, seconds=seconds, facts=facts)
    hook.after_stage(settings=settings, event=done)
    return facts
