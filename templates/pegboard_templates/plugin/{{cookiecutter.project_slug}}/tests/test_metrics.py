"""What is particular to this solution."""

from __future__ import annotations

import numpy as np

from {{ cookiecutter.__package }}.data import simulate
from {{ cookiecutter.__package }}.metrics import kurtosis, roc_auc


def test_the_area_counts_pairs_in_the_right_order_and_ties_half() -> None:
    rows = {"probability": np.array([0.9, 0.5, 0.5, 0.1]), "worn": np.array([1.0, 1.0, 0.0, 0.0])}
    assert roc_auc(rows) == 3.5 / 4


def test_worn_bearings_are_spikier_than_sound_ones() -> None:
    signal, worn = simulate(400, noise=1.0, seed=1)
    assert np.median(kurtosis(signal)[worn > 0]) > np.median(kurtosis(signal)[worn == 0])


def test_the_same_seed_gives_the_same_recordings() -> None:
    first, again = (simulate(8, noise=1.0, seed=3)[0] for _ in range(2))
    assert np.array_equal(first, again)
