"""Simulated anomalies: seeded, marked exactly, mostly small, on pictures of any size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pegboard_defect import simulate as module
from pegboard_defect.simulate import blob, dots, line, patch, perlin, simulate

SHAPES = (blob, line, dots, patch)


def surface(size: tuple[int, int] = (64, 64), channels: int = 1, seed: int = 0) -> Any:
    generator = np.random.default_rng(seed)
    return generator.normal(128, 12, (*size, channels)).clip(0, 255).astype(np.uint8)


def simulated(count: int, size: tuple[int, int] = (64, 64)) -> list[tuple[Any, Any, Any]]:
    generator, clean = np.random.default_rng(0), surface(size)
    return [(clean, *simulate(clean, generator)) for _ in range(count)]


def test_the_same_generator_gives_the_same_anomalies_and_no_other_chance_is_used() -> None:
    np.random.seed(0)
    before = np.random.get_state()[1].copy()  # type: ignore[union-attr, index]
    one, other = simulated(20), simulated(20)
    assert all(
        np.array_equal(a[1], b[1]) and np.array_equal(a[2], b[2])
        for a, b in zip(one, other, strict=True)
    )
    assert np.array_equal(np.random.get_state()[1], before)  # type: ignore[index]


def test_about_half_of_the_pictures_stay_good() -> None:
    good = [not mask.any() for _, _, mask in simulated(200, (32, 32))]
    assert 0.4 < np.mean(good) < 0.64


def test_a_picture_changes_where_its_mask_says_and_hardly_elsewhere() -> None:
    for clean, image, mask in simulated(100):
        change = np.abs(image.astype(int) - clean).mean(axis=2)
        if not mask.any():
            assert not change.any()
            continue
        assert change[mask == 1].mean() > module.FAINTEST / 2
        assert change[mask == 0].mean() < change[mask == 1].mean() / 5


def test_the_picture_that_was_given_is_left_alone() -> None:
    clean = surface()
    kept, generator = clean.copy(), np.random.default_rng(0)
    for _ in range(20):
        image, _ = simulate(clean, generator)
        image[:] = 0
    assert np.array_equal(clean, kept)


def test_most_anomalies_are_small() -> None:
    shares = np.array([mask.mean() for _, _, mask in simulated(300) if mask.any()])
    assert np.median(shares) < 0.02
    assert (shares < 0.006).mean() > 0.2
    assert shares.max() > 0.03


@pytest.mark.parametrize(("size", "channels"), [((32, 32), 1), ((45, 100), 3), ((200, 37), 3)])
def test_pictures_of_any_size_and_colour_keep_their_shape(size: Any, channels: int) -> None:
    clean, generator = surface(size, channels), np.random.default_rng(1)
    for _ in range(30):
        image, mask = simulate(clean, generator)
        assert (image.shape, image.dtype) == (clean.shape, np.uint8)
        assert (mask.shape, mask.dtype) == (size, np.uint8)
        assert mask.max() <= 1


@pytest.mark.parametrize("draw", SHAPES)
def test_every_shape_covers_some_pixels_wholly_or_in_part(draw: Any) -> None:
    generator = np.random.default_rng(2)
    drawn = np.stack([draw((48, 64), generator) for _ in range(40)])
    assert drawn.shape == (40, 48, 64)
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    assert (drawn > module.INSIDE).any(axis=(1, 2)).mean() > 0.8
    assert ((drawn > 0.05) & (drawn < 0.95)).any()


def test_lines_are_thin() -> None:
    generator = np.random.default_rng(3)
    for _ in range(20):
        inside = line((128, 128), generator) > module.INSIDE
        # Nothing is left of a line when four pixels are taken off each of its sides.
        eroded = np.lib.stride_tricks.sliding_window_view(inside, (9, 9)).all(axis=(2, 3))
        assert not eroded.any()


def test_perlin_noise_is_smooth_and_centred() -> None:
    generator = np.random.default_rng(4)
    noise = np.stack([perlin((64, 96), generator) for _ in range(100)])
    assert abs(noise.mean()) < 0.02
    assert 0.8 < np.abs(noise).max() <= 1.01
    coarse = [one for one in noise if np.abs(np.diff(one, axis=1)).max() < 0.15]
    assert coarse


def test_a_change_that_nobody_could_see_is_no_anomaly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OPACITY", (0.001, 0.002))
    assert not any(mask.any() for _, _, mask in simulated(50))
