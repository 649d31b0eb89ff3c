"""Logs: lines for people, or ECS JSON that Elastic takes as it is (`--log-format ecs`).

Everything goes to stderr, so that stdout carries results only. This module is also a plugin of
the core: it tells of every stage by the same hooks that are offered to strangers. No value of the
data is ever logged.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from typing import TYPE_CHECKING, Any, Literal

from pegboard.hookspecs import hookimpl

if TYPE_CHECKING:
    from pegboard.errors import PegboardError
    from pegboard.progress import Progress
    from pegboard.records import StageEvent

LogFormat = Literal["text", "ecs"]
VARIABLE = "PEGBOARD_LOG_FORMAT"
"""The environment variable by which the processes of a training log as the first one does."""
LOGGER = logging.getLogger("pegboard")
# As a library the core is silent until its user configures logging.
LOGGER.addHandler(logging.NullHandler())


def log_format() -> LogFormat:
    """Return the format that this process and those it starts log in."""
    return "ecs" if os.environ.get(VARIABLE) == "ecs" else "text"


def configure(chosen: LogFormat | None = None, *, debug: bool | None = None) -> None:
    """Send logs to stderr; may be called again.

    Args:
        chosen: The format; None keeps what the environment says.
        debug: Whether to log debug messages and tracebacks; None keeps what was chosen before.
    """
    debug = LOGGER.isEnabledFor(logging.DEBUG) if debug is None else debug
    if chosen is not None:
        os.environ[VARIABLE] = chosen
    if isinstance(sys.stderr, _LinesAsRecords):
        sys.stderr = sys.stderr.original
    structured = log_format() == "ecs"
    handler = logging.StreamHandler(sys.stderr) if structured else _CurrentStderr()
    handler.setFormatter(_ecs_formatter() if structured else _TextFormatter())
    logging.captureWarnings(structured)
    _replace_handler(handler)
    LOGGER.setLevel(logging.DEBUG if debug else logging.INFO)
    if structured:
        sys.stderr = _LinesAsRecords(sys.stderr)


def _replace_handler(handler: logging.Handler) -> None:
    """Hang one handler of ours on the root logger and leave those of others."""
    handler.name = LOGGER.name
    root = logging.getLogger()
    for known in [known for known in root.handlers if known.name == LOGGER.name]:
        root.removeHandler(known)
    root.addHandler(handler)


def report(problem: PegboardError, error: BaseException) -> None:
    """Log what ended a command: one sentence, and with `--debug` the traceback of `error`."""
    traceback = error if LOGGER.isEnabledFor(logging.DEBUG) else None
    # A sentence may quote a file that is no text at all; a terminal must not obey it.
    words = " ".join(str(problem).split())
    sentence = "".join(letter if letter.isprintable() else "?" for letter in words)
    fields = {"error.message": sentence, "error.type": type(problem).__name__}
    LOGGER.error(sentence, exc_info=traceback, extra={} if traceback else fields)


def new_progress() -> Progress:
    """Return bars, lines or log records: whatever suits the format and the terminal."""
    # Both bring rich, which `--help` must not wait for.
    from rich.console import Console

    from pegboard import progress

    class LoggedProgress(progress.PlainProgress):
        """Every line is a log record."""

        def say(self, text: str) -> None:
            LOGGER.info(text)

    if log_format() == "ecs":
        return LoggedProgress(Console(quiet=True))
    return progress.new_progress()


# --------------------------------------------------------------------------- the plugin


@hookimpl
def before_stage(event: StageEvent) -> None:
    """Log that a stage begins."""
    LOGGER.info("%s ...", event.stage, extra=_fields(event, action="begin"))


@hookimpl
def after_stage(event: StageEvent) -> None:
    """Log that a stage is done, and how long it took."""
    LOGGER.info(
        "%s: done in %.1f s",
        event.stage,
        event.seconds,
        extra=_fields(event, action="end", outcome="success"),
    )


@hookimpl
def on_stage_error(event: StageEvent, error: BaseException) -> None:
    """Log that a stage failed; the command's last line says why."""
    LOGGER.info(
        "%s: failed",
        event.stage,
        extra=_fields(event, action="error", outcome="failure")
        | {"error.type": type(error).__name__},
    )


def _fields(event: StageEvent, *, action: str, outcome: str | None = None) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "event.dataset": f"pegboard.{event.stage}",
        "event.action": f"stage-{action}",
        "pegboard.stage": event.stage,
        "pegboard.folder": str(event.folder),
    }
    if outcome is not None:
        fields["event.outcome"] = outcome
    if outcome == "success":
        fields["event.duration"] = int(event.seconds * 1e9)  # ECS counts nanoseconds.
    return fields


# --------------------------------------------------------------------------- formats


class _TextFormatter(logging.Formatter):
    """The bare message; from a warning on, what kind of message it is."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.levelno < logging.WARNING:
            return text
        return f"{record.levelname.lower()}: {text}"


def _ecs_formatter() -> logging.Formatter:
    from ecs_logging import StdlibFormatter

    class Formatter(StdlibFormatter):
        """Says where a record comes from when it does not say so itself."""

        def format_to_ecs(self, record: logging.LogRecord) -> dict[str, Any]:
            if not hasattr(record, "event.dataset"):
                setattr(record, "event.dataset", record.name)
            fields: dict[str, Any] = super().format_to_ecs(record)
            return fields

    return Formatter(extra={"service.name": "pegboard"})


class _CurrentStderr(logging.Handler):
    """Writes to what stderr is at the moment: rich puts itself there while a bar is drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(self.format(record) + "\n")
        sys.stderr.flush()


class _LinesAsRecords(io.TextIOBase):
    """A stderr for libraries that print: every line becomes a log record."""

    def __init__(self, original: Any) -> None:
        self.original = original
        self._rest = ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if line.strip():
                LOGGER.info(line, extra={"event.dataset": "pegboard.stderr"})
        return len(text)

    def fileno(self) -> int:
        number: int = self.original.fileno()
        return number
