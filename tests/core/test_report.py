"""The report's words: numbers a reader can compare, and who is better."""

from __future__ import annotations

from typing import Any

import pytest

from pegboard.records import MetricValue
from pegboard.stages.report import best_of, duration, interval_of, number, picture, share


def values(direction: Any, *numbers: float | None) -> list[MetricValue]:
    return [MetricValue(name="m", value=n, direction=direction) for n in numbers]


@pytest.mark.parametrize(
    ("direction", "numbers", "best"),
    [
        ("higher", (0.1, 0.3, 0.2), 0.3),
        ("lower", (0.1, 0.3, 0.2), 0.1),
        ("lower", (None, 0.3), 0.3),
    ],
)
def test_the_best_follows_the_direction_and_is_defined(
    direction: Any, numbers: tuple[float | None, ...], best: float
) -> None:
    chosen = best_of(values(direction, *numbers))
    assert chosen is not None
    assert chosen.value == best


def test_nothing_is_best_where_nothing_is_defined() -> None:
    assert best_of(values("higher", None, None)) is None


def test_numbers_keep_the_digits_that_matter() -> None:
    assert [number(n) for n in (None, 0.0, 0.00012345, 0.5, 12345.678)] == [
        "-", "0.0000", "0.000123", "0.5000", "12,345.7"
    ]  # fmt: skip
    assert (duration(0.0274), duration(5.3)) == ("27.4 \u00b5s", "5.3 ms")
    assert (share(None), share(0.005)) == ("-", "0.5 %")


def test_an_interval_that_was_not_measured_is_left_out() -> None:
    assert interval_of(MetricValue(name="m", value=1.0)) == ""
    measured = MetricValue(name="m", value=1.0, low=0.5, high=1.5)
    assert interval_of(measured) == "0.5000 to 1.5000"


def test_a_png_is_embedded_and_html_is_kept() -> None:
    assert picture("<svg/>") == "<svg/>"
    assert picture(b"\x89PNG").startswith('<img alt="" src="data:image/png;base64,')
