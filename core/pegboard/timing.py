"""Timing on machines that do other things too: calls take turns, and CPU time is noted as well."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from pegboard.records import Array

TURN = 10
"""Calls in a row before the next one's turn: long enough that each works from its own caches."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What many calls of one thing took."""

    wall: Array
    """Seconds by the clock, one per call."""
    cpu: Array
    """Seconds of this process's CPU, one per call."""

    def wall_ms(self, percentile: float) -> float:
        """Return a percentile of the wall time, in milliseconds."""
        return float(np.percentile(self.wall, percentile) * 1e3)

    def cpu_ms(self) -> float:
        """Return the median CPU time, in milliseconds."""
        return float(np.median(self.cpu) * 1e3)


def take_turns(
    calls: Mapping[str, Callable[[], object]], *, seconds: float, most: int = 5000, least: int = 10
) -> dict[str, Timing]:
    """Time calls by turns, so that what else the machine does hits all of them alike.

    Args:
        calls: What to time, by name.
        seconds: Time to spend on all of them together.
        most: Calls of each after which to stop earlier.
        least: Calls of each that are made even if it takes longer.

    Returns:
        A timing for each name.
    """
    began = time.monotonic()
    for call in calls.values():
        call()
        call()
    turn = TURN if time.monotonic() - began < seconds / TURN else 1
    noted: dict[str, list[tuple[int, int]]] = {name: [] for name in calls}
    done = 0
    while done < least or (done < most and time.monotonic() - began < seconds):
        for name, call in calls.items():
            noted[name] += [_timed(call) for _ in range(turn)]
        done += turn
    times = {name: np.array(pairs) / 1e9 for name, pairs in noted.items()}
    return {name: Timing(wall=both[:, 0], cpu=both[:, 1]) for name, both in times.items()}


def _timed(call: Callable[[], object]) -> tuple[int, int]:
    # The clock of the wall inside: reading it is ten times cheaper than reading that of the CPU.
    cpu = time.process_time_ns()
    wall = time.perf_counter_ns()
    call()
    wall = time.perf_counter_ns() - wall
    return wall, time.process_time_ns() - cpu
