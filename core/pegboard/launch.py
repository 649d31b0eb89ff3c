"""Processes to train in: one by itself, or several under torchrun's agent.

    python -m pegboard.launch PROJECT RUN [KEY=VALUE ...]     one of several, started by the agent

The agent (`torch.distributed.launcher`, what the command torchrun runs) starts all processes anew
when one dies; they go on from the latest checkpoint. An error that would come again is not tried
again: the process leaves it in a file, from which this process raises it.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from pegboard import errors, logs
from pegboard.errors import InterruptedRunError, PegboardError, SettingsError
from pegboard.files import remove, write_json
from pegboard.journal import describe_epoch, read_journal, whole_lines
from pegboard.progress import Progress, SilentProgress
from pegboard.project import open_project
from pegboard.runs import Run
from pegboard.settings import TrainSettings

RENDEZVOUS = "PEGBOARD_RENDEZVOUS"
DEBUG = "PEGBOARD_DEBUG"
MAX_RESTARTS = 3
"""How often all processes are started anew after one has died."""
JOIN_SECONDS = 600
"""How long one node waits for the others."""


def launch(run: Run, progress: Progress) -> dict[str, Any]:
    """Train a run in as many processes as `[train]` asks for.

    Where torchrun has started this process (RANK is set), it is one of those it started.

    Returns:
        As `pegboard.training.train` does.

    Raises:
        InterruptedRunError: The user or the system stopped it; the same call goes on.
        PegboardError: Whatever went wrong in a process, in one sentence.
    """
    train = run.project.settings.train
    processes = devices_of(train)
    with _termination_as_interrupt():
        try:
            if "RANK" in os.environ or processes * train.nodes == 1:
                return _train_here(run, progress)
            return _train_in_processes(run, progress, processes)
        except KeyboardInterrupt:
            raise InterruptedRunError(
                f"training was interrupted {_reached(run)}",
                where=str(run.folder),
                remedy="run the same command again to resume",
            ) from None


def devices_of(train: TrainSettings) -> int:
    """Return how many processes to run on this node.

    Raises:
        SettingsError: There are fewer GPUs than that.
    """
    import torch

    gpus = torch.cuda.device_count()
    if train.devices == "auto":
        return gpus or 1
    if gpus and train.devices > gpus:
        raise SettingsError(
            f"{train.devices} processes cannot share {gpus} GPU{'s' * (gpus > 1)}",
            where="train.devices",
            remedy='set it to "auto", or CUDA_VISIBLE_DEVICES="" to train on the CPU',
        )
    return train.devices


def _train_here(run: Run, progress: Progress) -> dict[str, Any]:
    from pegboard.training import train

    return train(run, progress)


@contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does; put back every handler afterwards."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield  # Only the main thread may say what a signal does.
        return
    # The agent takes all of these and would keep them.
    taken = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in taken}
    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _reached(run: Run) -> str:
    lines = [line for line in read_journal(run.progress_file) if "epoch" in line]
    if not lines:
        return "before its first step"
    return f"at epoch {lines[-1]['epoch'] + 1}, step {lines[-1]['step']}"


# --------------------------------------------------------------------------- the parent


def _train_in_processes(run: Run, progress: Progress, processes: int) -> dict[str, Any]:
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    nodes, endpoint = run.project.settings.train.nodes, _endpoint(run)
    if logs.LOGGER.isEnabledFor(logging.DEBUG):
        os.environ[DEBUG] = "1"  # The processes inherit it.
    # Or restarted processes find the addresses of dead ones in the agent's store (torch 135712).
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    remove(_error_file(run.folder))
    config = LaunchConfig(
        min_nodes=nodes,
        max_nodes=nodes,
        nproc_per_node=processes,
        # The same on every node, and different where data or settings differ.
        run_id=run.facts()["identity"],
        rdzv_backend="c10d",
        rdzv_endpoint=endpoint,
        rdzv_configs={"join_timeout": JOIN_SECONDS},
        max_restarts=MAX_RESTARTS,
        # A machine's own name may not resolve where it is a container's.
        local_addr="127.0.0.1" if endpoint.startswith(("127.", "localhost:")) else None,
    )
    start = elastic_launch(config, sys.executable)
    try:
        with _quiet_agent(), _followed(run, progress):
            start("-m", __name__, str(run.project.folder), str(run.folder), *run.project.overrides)
    except SignalException:
        raise KeyboardInterrupt from None
    except ChildFailedError as error:
        raise _crashed(run, [failure.exitcode for failure in error.failures.values()]) from None
    except RendezvousError as error:
        raise PegboardError(
            f"the {nodes} nodes did not meet: {error}",
            where=f"{RENDEZVOUS}={endpoint}",
            remedy="start the same command on every node; the address is one of theirs",
        ) from None
    left = _left(run.folder)
    if left is not None and left["final"]:
        raise _as_error(left)
    lines = read_journal(run.progress_file)
    facts: dict[str, Any] = lines[-1]["facts"]
    return facts


def _endpoint(run: Run) -> str:
    """Return where the nodes meet."""
    nodes = run.project.settings.train.nodes
    if nodes == 1:
        return "127.0.0.1:0"
    if RENDEZVOUS not in os.environ:
        raise SettingsError(
            f"{nodes} nodes need an address to meet at",
            where="train.nodes",
            remedy=f"set {RENDEZVOUS}=host:port on each, host being one of them",
        )
    return os.environ[RENDEZVOUS]


@contextmanager
def _quiet_agent() -> Iterator[None]:
    """Keep the agent's log off the terminal: what went wrong is said once, by the error."""
    names = [name for name in logging.root.manager.loggerDict if name.startswith("torch.dist")]
    loggers = [] if DEBUG in os.environ else [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _followed(run: Run, progress: Progress) -> Iterator[None]:
    """Show in this process how far the journal says the others are."""
    over = threading.Event()
    lines = _lines_as_written(run.progress_file, over)
    thread = threading.Thread(target=_follow, args=(lines, progress), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _lines_as_written(path: Path, over: threading.Event) -> Iterator[dict[str, Any]]:
    """Yield the lines that are added to a journal, until it is over."""
    seen = len(whole_lines(path))
    while True:
        last = over.wait(0.5)
        lines = whole_lines(path)
        # Processes that go on from a checkpoint take out what came after it.
        seen = min(seen, len(lines))
        yield from map(json.loads, lines[seen:])
        seen = len(lines)
        if last:
            return


def _follow(lines: Iterator[dict[str, Any]], progress: Progress) -> None:
    with progress.task("train: starting the processes"):
        first = next(lines, None)
    if first is not None and first["kind"] == "step":
        for _ in progress.track(_steps(first, lines, progress), "train", first["total_steps"]):
            pass


def _steps(
    first: Mapping[str, Any], lines: Iterator[Mapping[str, Any]], progress: Progress
) -> Iterator[int]:
    """Yield every step once, as soon as a line says that it was taken."""
    step = 0
    for line in chain([first], lines):
        if line["kind"] == "epoch":
            progress.say(describe_epoch(line))
        while step < line["step"]:
            step += 1
            yield step


# --------------------------------------------------------------------------- one of several


def main(arguments: Sequence[str]) -> int:
    """Train as one of several processes; return the exit code."""
    project, folder, *overrides = arguments
    rank = os.environ["RANK"]
    left = _left(Path(folder))
    if left is not None and left["final"]:
        return 0  # The parent raises it; another attempt would end the same.
    debug = DEBUG in os.environ
    if not debug:
        _redirect_output(_log_file(Path(folder), rank))
    logs.configure(debug=debug)
    _stay_with_parent()
    try:
        # What torch would take without being asked is every core, in every process.
        cores = os.cpu_count() or 1
        share = max(1, cores // int(os.environ["LOCAL_WORLD_SIZE"]))
        os.environ.setdefault("OMP_NUM_THREADS", str(share))
        run = Run(project=open_project(Path(project), overrides), folder=Path(folder))
        _train_here(run, SilentProgress())
    except Exception as error:
        traceback.print_exc()
        _leave(error, Path(folder), rank)
        return 1
    return 0


def _redirect_output(file: Path) -> None:
    """Send what this process prints, and what libraries print in it, to a log."""
    file.parent.mkdir(exist_ok=True)
    with file.open("a") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)


def _stay_with_parent() -> None:
    """Die when the agent does, even by kill -9: nobody else would stop this process."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# --------------------------------------------------------------------------- errors


def _leave(error: Exception, folder: Path, rank: str) -> None:
    """Leave an error for the parent, in words."""
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    final = not _may_pass(error)
    left = _left(folder)
    # The first one of an attempt is the cause, the others follow from it.
    if left is not None and (left["final"] or (left["attempt"] == attempt and not final)):
        return
    from pegboard.cli.faults import explain

    problem = explain(error)
    fields = {
        "type": type(problem).__name__,
        "what": problem.what,
        "where": problem.where,
        "remedy": problem.remedy,
        "traceback": f"In process {rank}:\n{traceback.format_exc()}",
        "final": final,
        "attempt": attempt,
    }
    write_json(_error_file(folder), fields)


def _may_pass(error: Exception) -> bool:
    """Whether another attempt may go well: lost connections are RuntimeErrors and no more."""
    from torch.distributed import DistError

    return type(error) is RuntimeError or isinstance(error, DistError)


def _left(folder: Path) -> dict[str, Any] | None:
    """Return what a process has left."""
    file = _error_file(folder)
    left: dict[str, Any] | None = json.loads(file.read_text()) if file.exists() else None
    return left


def _as_error(left: Mapping[str, Any]) -> PegboardError:
    kind = getattr(errors, left["type"], PegboardError)
    error: PegboardError = kind(left["what"], where=left["where"], remedy=left["remedy"])
    error.add_note(left["traceback"])  # `--debug` shows it.
    return error


def _crashed(run: Run, exit_codes: Sequence[int]) -> PegboardError:
    """Say why the processes ended, the last attempt included."""
    left = _left(run.folder)
    # A killed process leaves nothing, and the others only that they miss it: they are often
    # found dead in the same look, so their order says nothing. SIGTERM is how the agent ends
    # those that are left, and a cause only where nobody gives another.
    signals = [-code for code in exit_codes if code < 0]
    killed = next((number for number in signals if number != signal.SIGTERM), None)
    if left is not None and killed is None:
        return _as_error(left)
    killed = killed or next(iter(signals), None)
    how = f"was killed by {signal.Signals(killed).name}" if killed else "ended"
    return PegboardError(
        f"a training process {how}, {MAX_RESTARTS} restarts included",
        where=f"logs in {_error_file(run.folder).parent}",
        remedy="if memory ran out, lower train.batch_size; then run the same command to resume",
    )


def _error_file(folder: Path) -> Path:
    return folder / "logs" / "error.json"


def _log_file(folder: Path, rank: str) -> Path:
    return folder / "logs" / f"rank-{rank}.log"


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Not through the interpreter's end, where connections to lost processes can hang.
    os._exit(code)
