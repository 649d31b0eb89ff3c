"""The challenger: a bundle that sees the champion's traffic and never answers.

It runs in a thread of low priority behind the champion, on the same inputs, and is compared with
what the champion made of them. It can fail or be slow; nobody who asked will notice.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pegboard.answering import Answerer
from pegboard.errors import BundleError
from pegboard.records import Array, Signature, TensorSpec
from pegboard.serving.deployment import Deployment

WAITING = 1024
"""Answers that may wait to be compared; while more come, the oldest are dropped and counted."""
NICENESS = 10


@dataclass(frozen=True, kw_only=True)
class Seen:
    """An answer of the champion, to compare with."""

    inputs: Mapping[str, Array]
    """What it was asked."""
    outputs: Mapping[str, Array]
    """What it made of it."""
    answerer: Answerer
    """The champion's, to say what was decided."""


class Challenger:
    """Answers for nobody what the champion answered.

    Args:
        deployment: The bundle to try.
        champion: The signature of the one that answers; the inputs must be the same.

    Raises:
        BundleError: It takes other inputs.
    """

    def __init__(self, deployment: Deployment, champion: Signature) -> None:
        if _takes(deployment.bundle.signature) != _takes(champion):
            raise BundleError(
                "the challenger takes other inputs than the champion",
                where=str(deployment.bundle.folder),
                remedy="compare them on recorded requests with 'pegboard predict'",
            )
        self.deployment = deployment
        self._waiting: deque[Seen] = deque()
        self._arrived = threading.Condition()
        self._stopped = False
        self._counts = {"records": 0, "decisions": 0, "flipped": 0, "dropped": 0, "errors": 0}
        self._differences: dict[str, _Difference] = {
            spec.name: _Difference()
            for spec in champion.outputs
            if spec.name in {own.name for own in deployment.bundle.signature.outputs}
        }
        self._thread = threading.Thread(target=self._work, name="challenger", daemon=True)
        self._thread.start()

    def offer(self, seen: Seen) -> None:
        """Have an answer compared, when there is time."""
        with self._arrived:
            if len(self._waiting) >= WAITING:
                self._waiting.popleft()
                self._counts["dropped"] += 1
            self._waiting.append(seen)
            self._arrived.notify()

    def stop(self) -> None:
        """End, with what waits left undone."""
        with self._arrived:
            self._stopped = True
            self._arrived.notify()

    def figures(self) -> dict[str, Any]:
        """Return what came out so far; shares are None before anything did."""
        counts = dict(self._counts)
        decisions = counts["decisions"]
        return {
            **counts,
            "waiting": len(self._waiting),
            "flipped_share": counts["flipped"] / decisions if decisions else None,
            "outputs": {name: found.figures() for name, found in self._differences.items()},
        }

    def _work(self) -> None:
        # On Linux a thread has a niceness of its own.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        while (seen := self._next()) is not None:
            try:
                self._compare(seen)
            except Exception:  # A stranger's model may raise anything; it is only on trial.
                self._counts["errors"] += 1

    def _next(self) -> Seen | None:
        with self._arrived:
            self._arrived.wait_for(lambda: self._waiting or self._stopped)
            return None if self._stopped else self._waiting.popleft()

    def _compare(self, seen: Seen) -> None:
        answerer = self.deployment.answerer
        outputs = answerer.infer(seen.inputs)
        for name, difference in self._differences.items():
            if name in seen.outputs:
                difference.add(seen.outputs[name], outputs[name])
        ours, theirs = _decisions(answerer, outputs), _decisions(seen.answerer, seen.outputs)
        self._counts["records"] += len(ours)
        decided = [(one, other) for one, other in zip(ours, theirs, strict=True) if one is not None]
        self._counts["decisions"] += len(decided)
        self._counts["flipped"] += sum(one != other for one, other in decided)


def _takes(signature: Signature) -> list[tuple[Any, ...]]:
    def contract(spec: TensorSpec) -> tuple[Any, ...]:
        return spec.name, spec.dtype, spec.shape, spec.channels

    return [contract(spec) for spec in signature.inputs]


def _decisions(answerer: Answerer, outputs: Mapping[str, Array]) -> Sequence[Any]:
    return [answer.get("decision") for answer in answerer.encode(outputs)]


class _Difference:
    """How far one output is from the champion's, over all that was compared."""

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0
        self.signed = 0.0
        self.largest = 0.0

    def add(self, champion: Array, challenger: Array) -> None:
        if champion.shape != challenger.shape:
            raise ValueError("shapes differ")
        signed = challenger.astype(np.float64) - champion.astype(np.float64)
        self.count += signed.size
        self.signed += float(signed.sum())
        self.total += float(np.abs(signed).sum())
        self.largest = max(self.largest, float(np.abs(signed).max(initial=0.0)))

    def figures(self) -> dict[str, float | None]:
        if not self.count:
            return {"mean": None, "mean_absolute": None, "largest": None}
        return {
            "mean": self.signed / self.count,
            "mean_absolute": self.total / self.count,
            "largest": self.largest,
        }
