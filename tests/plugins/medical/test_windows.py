from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pegboard.records import Array
from pegboard_medical.windows import Windows, axes_of, gaussian, infer_windows, places

WINDOWS = Windows(shape=(8, 8, 8), overlap=0.5, at_once=3, skip_below=-np.inf)


class Echo:
    """Says of each voxel what it is, so that blending has to give the image back."""

    def __init__(self) -> None:
        self.seen: list[Array] = []

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Any]:
        self.seen.append(inputs["image"])
        return {"probabilities": np.stack([inputs["image"], 2 * inputs["image"]], axis=1)}


@pytest.mark.parametrize("shape", [(8, 8, 8), (5, 20, 9), (17, 8, 30)])
def test_overlapping_windows_give_the_whole_volume_back(shape: tuple[int, int, int]) -> None:
    image = np.random.default_rng(0).random(shape).astype(np.float32)
    found = infer_windows(Echo(), image, WINDOWS, outside=0.0)
    np.testing.assert_allclose(found, [image, 2 * image], rtol=1e-5)


def test_no_window_is_larger_than_asked_and_no_call_takes_more() -> None:
    echo = Echo()
    infer_windows(echo, np.zeros((20, 20, 20), dtype=np.float32), WINDOWS, outside=0.0)
    assert {seen.shape[1:] for seen in echo.seen} == {(8, 8, 8)}
    assert {len(seen) for seen in echo.seen} <= {1, 2, 3}
    assert sum(len(seen) for seen in echo.seen) == len(places(20, 8, 0.5)) ** 3


def test_empty_windows_are_not_run_and_hold_nothing() -> None:
    image = np.full((8, 8, 32), -1000.0, dtype=np.float32)
    image[4, 4, 29] = 50.0
    echo = Echo()
    found = infer_windows(echo, image, replace(WINDOWS, skip_below=-900.0), outside=-1000.0)
    assert sum(len(seen) for seen in echo.seen) == 1
    assert found[0, 4, 4, 29] == 50.0
    assert (found[:, :, :, :20] == 0).all()


def test_where_all_is_empty_nothing_is_found() -> None:
    image = np.full((8, 16, 8), -1000.0, dtype=np.float32)
    found = infer_windows(Echo(), image, replace(WINDOWS, skip_below=-900.0), outside=-1000.0)
    assert found.shape == (2, 8, 16, 8)
    assert not found.any()


def test_a_mirrored_window_is_judged_and_mirrored_back() -> None:
    class Left:
        """Believes that whatever lies in the left half is one."""

        def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
            said = np.zeros_like(inputs["image"])
            said[..., :4] = 1.0
            return {"probabilities": said[:, None]}

    image = np.zeros((8, 8, 8), dtype=np.float32)
    found = infer_windows(Left(), image, replace(WINDOWS, mirrored=(2,)), outside=0.0)
    np.testing.assert_allclose(found, 0.5)


def test_directions_are_axes() -> None:
    assert axes_of(["left-right", "head-feet"]) == (0, 2)


def test_windows_end_with_the_axis_and_leave_nothing_out() -> None:
    for length in range(3, 60):
        begins = places(length, 8, 0.5)
        covered = {place for begin in begins for place in range(begin, begin + 8)}
        assert covered >= set(range(length))
        assert begins[-1] == max(0, length - 8)


def test_the_middle_of_a_window_counts_most_and_no_place_nothing() -> None:
    weight = gaussian((9, 9, 9))
    assert weight.argmax() == 9 * 9 * 4 + 9 * 4 + 4
    assert weight.min() > 0
