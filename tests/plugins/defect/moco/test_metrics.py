"""What embeddings are worth: known answers, and nothing that finds itself."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pegboard.evaluation import measure
from pegboard.records import Batch, EpochEvent
from pegboard_defect.moco import data, metrics
from pegboard_defect.moco.settings import MocoData, MocoSettings


def rows(embedding: Any, label: Any = None, **changed: Any) -> dict[str, Any]:
    count = len(embedding)
    table = {
        "embedding": np.asarray(embedding, dtype=np.float32),
        "label": np.full(count, -1) if label is None else np.asarray(label),
        "group": np.arange(count),
        "view": np.zeros(count, dtype=np.int64),
        "key": np.arange(count).astype(np.str_),
    }
    return table | changed


def noise(count: int, width: int = 16, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(count, width))


def clusters(count: int, apart: float) -> dict[str, Any]:
    label = np.arange(count) % 2
    return rows(noise(count) + apart * label[:, None] - apart / 2, label)


# --- Neighbours -----------------------------------------------------------------------------------


def test_a_picture_is_named_by_its_nearest_and_never_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics, "NEIGHBOURS", 1)
    angles = np.array([0.0, 0.1, 1.0, 1.15, 1.3])
    table = rows(np.stack([np.cos(angles), np.sin(angles)], axis=1), [0, 0, 1, 0, 1])
    # 0 <-> 1, 2 -> 3, 3 -> 2 or 4 (both 1), 4 -> 3.
    assert metrics.knn_predictions(table).tolist() == [0, 0, 0, 1, 0]
    # Two of three of class 0, none of class 1.
    assert metrics.knn_accuracy(table) == pytest.approx((2 / 3 + 0) / 2)


def test_accuracy_is_the_mean_over_classes() -> None:
    table = clusters(200, apart=4.0)
    kept = np.flatnonzero((table["label"] == 0) | (np.arange(200) % 20 == 1))
    skewed = {name: column[kept] for name, column in table.items()}
    constant = np.zeros(len(kept), dtype=np.int64)
    assert metrics.balanced_accuracy(skewed["label"], constant) == 0.5
    assert metrics.knn_accuracy(skewed) > 0.9


def test_another_photograph_of_the_same_part_is_no_neighbour() -> None:
    twins = np.repeat(noise(60), 2, axis=0)
    label = np.repeat(np.arange(60) % 2, 2)
    assert metrics.knn_accuracy(rows(twins, label)) == 1.0
    paired = rows(twins, label, group=np.repeat(np.arange(60), 2))
    assert metrics.knn_accuracy(paired) < 0.75


@pytest.mark.parametrize("name", ["knn_accuracy", "linear_probe"])
def test_a_bootstrap_that_draws_a_row_twice_does_not_flatter(name: str) -> None:
    """On noise the interval lies around chance; rows that found their copies would reach 0.8."""
    settings = MocoSettings()
    (metric,) = [metric for metric in metrics.build(settings) if metric.name == name]
    table = rows(noise(120), np.arange(120) % 2)
    found = measure(metric, table, {}, resamples=20)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0.5
    assert found.high < 0.72


# --- Linear probe ---------------------------------------------------------------------------------


def test_the_probe_finds_what_a_plane_divides_and_nothing_in_noise() -> None:
    assert metrics.linear_probe(clusters(120, apart=3.0)) > 0.97
    assert metrics.linear_probe(rows(noise(120), np.arange(120) % 2)) < 0.65


def test_halves_hold_half_of_each_class_and_whole_parts() -> None:
    label = np.repeat(np.arange(20) % 4 == 0, 2).astype(int)
    table = rows(noise(40), label, group=np.repeat(np.arange(20), 2))
    half = metrics.halves(table)
    assert np.array_equal(half[::2], half[1::2])
    assert [half[label == one].mean() for one in (0, 1)] == pytest.approx([0.5, 0.5], abs=0.11)


@pytest.mark.parametrize("label", [None, [0] * 12, [-1] * 6 + [1] * 6])
def test_what_needs_two_classes_is_not_defined_without_them(label: Any) -> None:
    table = rows(noise(12), label)
    assert np.isnan(metrics.knn_accuracy(table))
    assert np.isnan(metrics.linear_probe(table))


# --- Without labels -------------------------------------------------------------------------------


def test_spread_tells_a_collapse() -> None:
    collapsed = rows(np.ones((50, 16)) + 1e-4 * noise(50))
    assert metrics.embedding_spread(collapsed) < 0.01
    assert metrics.embedding_spread(rows(noise(500))) == pytest.approx(1.0, abs=0.05)


def test_effective_rank_counts_the_directions_that_are_used() -> None:
    used = noise(2000, 16)
    used[:, 5:] = 0.0
    assert metrics.effective_rank(rows(used)) == pytest.approx(5.0, abs=0.05)
    assert metrics.effective_rank(rows(used + 7.0)) == pytest.approx(5.0, abs=0.05)
    assert metrics.effective_rank(rows(np.ones((30, 16)))) == pytest.approx(1.0)
    # Fewer pictures than numbers, by the other product.
    assert metrics.effective_rank(rows(noise(10, 64))) == pytest.approx(9.0, abs=0.3)


def test_retrieval_asks_which_picture_a_view_shows() -> None:
    shown = noise(20)
    near = shown + 0.01 * noise(20, seed=1)
    near[:5] = shown[5:10]  # Five views look like other pictures.
    view = np.repeat([0, 1], 20)
    table = rows(
        np.concatenate([shown, near]), view=view, key=np.tile(np.arange(20), 2).astype(str)
    )
    assert metrics.instance_retrieval(table) == 0.75
    assert np.isnan(metrics.instance_retrieval(rows(shown)))
    # Drawn twice it stays one picture.
    again = {name: np.concatenate([column, column]) for name, column in table.items()}
    assert metrics.instance_retrieval(again) == 0.75


def test_views_count_for_retrieval_alone() -> None:
    table = clusters(40, apart=3.0)
    views = rows(np.ones((40, 16)), np.zeros(40, dtype=int), view=np.ones(40, dtype=int))
    both = {name: np.concatenate([table[name], views[name]]) for name in table}
    for metric in (metrics.knn_accuracy, metrics.linear_probe, metrics.effective_rank):
        assert metric(both) == metric(table)


def test_many_pictures_are_thinned_out_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MOST", 5)
    assert metrics.pictures(rows(noise(21)))["key"].tolist() == ["0", "5", "10", "15", "20"]


# --- Wiring ---------------------------------------------------------------------------------------


def test_a_batch_becomes_a_row_a_picture() -> None:
    targets = {name: torch.arange(3) for name in ("label", "group", "view")}
    batch = Batch(inputs={"image": torch.zeros(3, 4, 4, 1)}, targets=targets, keys=["a", "b", "c"])
    table = metrics.tabulate(batch, {"embedding": np.ones((3, 8))})
    assert table["embedding"].shape == (3, 8)
    assert table["key"].tolist() == ["a", "b", "c"]
    assert {len(column) for column in table.values()} == {3}


@pytest.mark.parametrize(
    ("labelled", "headline"), [("yes", "knn_accuracy"), ("no", "effective_rank")]
)
def test_there_is_one_headline_with_labels_and_without(
    labelled: Any, headline: str, tmp_path: Path
) -> None:
    table = MocoSettings(data=MocoData(path=tmp_path, labelled=labelled))
    built = metrics.build(table)
    assert [metric.name for metric in built if metric.headline] == [headline]
    assert data.is_labelled(table) == (labelled == "yes")


@pytest.mark.parametrize(("spread", "warned"), [(0.05, True), (float("nan"), False), (0.9, False)])
def test_a_collapse_is_said(spread: float, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    event = EpochEvent(
        epoch=2,
        step=9,
        losses={"loss": 1.0, "spread": 0.8},
        metrics={"embedding_spread": spread},
        best=True,
    )
    with caplog.at_level(logging.WARNING):
        metrics.warn_of_collapse(event)
    assert bool(caplog.records) == warned
    assert not warned or "epoch 3" in caplog.text
