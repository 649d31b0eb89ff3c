"""The journal of a training, `progress.jsonl`: one JSON object a line, for people's tools.

    {"kind": "step", "epoch": 0, "step": 12, "total_steps": 90, "losses": {...}, ...}
    {"kind": "epoch", "epoch": 0, "step": 30, "losses": {...}, "metrics": {...}, "best": true, ...}
    {"kind": "end", "step": 90, "facts": {...}}

Epochs count from 0 and steps from 1, as in the events that hooks are given. Every step stands in
it at most once, however often the training was interrupted.
"""

from __future__ import annotations

import errno
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pegboard.files import atomic_write, disk_is_full, no_space_for
from pegboard.records import EpochEvent, StepEvent

SECONDS_BETWEEN_STEPS = 1.0
"""Steps are noted this often, so that a long training leaves a file that can be read."""


class Journal:
    """Writes the journal.

    Args:
        path: The file.
        step: The step that the training goes on from; lines about later ones are taken out.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.noted = -math.inf
        kept = [
            line for line in read_journal(path) if line["step"] <= step and line["kind"] != "end"
        ]
        atomic_write(path, "".join(json.dumps(line) + "\n" for line in kept))

    def step(self, event: StepEvent) -> None:
        """Note a step, unless another one was noted within the second."""
        if time.monotonic() - self.noted < SECONDS_BETWEEN_STEPS:
            return
        self.noted = time.monotonic()
        self._append(
            "step",
            epoch=event.epoch,
            step=event.step,
            total_steps=event.total_steps,
            losses=_finite(event.losses),
            learning_rate=event.learning_rate,
        )

    def epoch(self, event: EpochEvent) -> dict[str, Any]:
        """Note the end of an epoch; return the line."""
        return self._append(
            "epoch",
            epoch=event.epoch,
            step=event.step,
            losses=_finite(event.losses),
            metrics=_finite(event.metrics),
            best=event.best,
        )

    def end(self, step: int, facts: Mapping[str, Any]) -> None:
        """Note that the training is over."""
        self._append("end", step=step, facts=dict(facts))

    def _append(self, kind: str, **fields: Any) -> dict[str, Any]:
        line = {"kind": kind, "time": round(time.time(), 3), **fields}
        content = (json.dumps(line, allow_nan=False) + "\n").encode()
        # One write, so that whoever reads at the same time sees the whole line or nothing of it.
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            if os.write(file, content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            if not disk_is_full(error):
                raise
            raise no_space_for(self.path) from error
        finally:
            os.close(file)
        return line


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """Say None for NaN and infinity, which JSON has no words for."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Return what a journal says; nothing when there is none."""
    return [json.loads(line) for line in whole_lines(path)]


def whole_lines(path: Path) -> list[bytes]:
    """Return the lines of a file, without a last one that is only half written."""
    content = path.read_bytes() if path.exists() else b""
    return content[: content.rfind(b"\n") + 1].splitlines()


def describe_epoch(line: Mapping[str, Any]) -> str:
    """Say for people how an epoch went, the headline metric being the first."""
    headline, value = next(iter(line["metrics"].items()))
    shown = "not defined" if value is None else f"{value:.4g}"
    best = " (the best so far)" if line["best"] else ""
    return f"epoch {line['epoch'] + 1}: loss {line['losses']['loss']:.4g}, {headline} {shown}{best}"
