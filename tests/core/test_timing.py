from __future__ import annotations

import time

import numpy as np
import pytest

from pegboard.timing import TURN, take_turns


def test_calls_take_turns_and_each_is_timed_alone() -> None:
    order: list[str] = []
    timings = take_turns(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, seconds=5, most=20
    )
    assert len(timings["a"].wall) == len(timings["b"].cpu) == 20
    warmed = order[4:]
    assert warmed == (["a"] * TURN + ["b"] * TURN) * 2


def test_waiting_costs_wall_time_and_no_cpu_time() -> None:
    timing = take_turns({"wait": lambda: time.sleep(0.005)}, seconds=0.2)["wait"]
    assert timing.wall_ms(50) >= 5.0
    assert timing.cpu_ms() < 2.5


def test_slow_calls_are_made_ten_times_whatever_the_budget() -> None:
    timing = take_turns({"slow": lambda: time.sleep(0.02)}, seconds=0.01)["slow"]
    assert len(timing.wall) == 10


def test_percentiles_are_in_milliseconds() -> None:
    timing = take_turns({"nothing": lambda: None}, seconds=0.05, most=100)["nothing"]
    assert timing.wall_ms(99) == pytest.approx(np.percentile(timing.wall, 99) * 1000)
