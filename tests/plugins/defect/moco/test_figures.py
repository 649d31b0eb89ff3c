"""Captions say what was measured and no more."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pegboard.records import Evaluation
from pegboard_defect.moco import figures
from pegboard_defect.moco.settings import MocoData, MocoSettings

SETTINGS = MocoSettings(data=MocoData(classes=("good", "bad")))


def rows(apart: float, count: int = 120, *, labelled: bool = True, seed: int = 0) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    label = np.arange(count) % 2
    embedding = generator.normal(size=(count, 8)) + apart * label[:, None] - apart / 2
    return {
        "embedding": embedding.astype(np.float32),
        "label": label if labelled else np.full(count, -1),
        "group": np.arange(count),
        "view": np.zeros(count, dtype=np.int64),
        "key": np.arange(count).astype(np.str_),
    }


def with_views(table: dict[str, Any], noise: float) -> dict[str, Any]:
    """Add another view of every picture."""
    generator = np.random.default_rng(9)
    changed = table["embedding"] + noise * generator.normal(size=table["embedding"].shape)
    views = table | {"embedding": changed.astype(np.float32), "view": np.ones_like(table["view"])}
    return {name: np.concatenate([table[name], views[name]]) for name in table}


def evaluation(table: Any, **others: Any) -> Evaluation:
    def of(name: str, columns: Any) -> Evaluation:
        return Evaluation(name=name, split="test", rows=columns, thresholds={}, metrics=[])

    whole = of("model", table)
    baselines = [of(name, columns) for name, columns in others.items()]
    return Evaluation(**(vars(whole) | {"baselines": baselines}))


def test_a_gain_comes_with_its_interval() -> None:
    found = figures.gain(rows(2.0), rows(0.0), "random")
    assert 0.2 < found.low < found.difference < found.high < 0.7
    assert figures.in_words(found).startswith(f"Better than random (+{found.difference:.3f}, 95 %")


def test_no_gain_is_claimed_where_none_was_measured() -> None:
    found = figures.gain(rows(0.0), rows(0.0, seed=1), "random")
    assert found.low < 0 < found.high
    assert figures.in_words(found).startswith("No gain over random was measured (")
    same = figures.gain(rows(0.5), rows(0.5), "random")
    assert (same.low, same.difference, same.high) == (0, 0, 0)
    assert figures.in_words(same).startswith("No gain")


def test_a_loss_is_called_one() -> None:
    assert figures.in_words(figures.gain(rows(0.0), rows(2.0), "checkpoint")).startswith(
        "Worse than checkpoint (-"
    )


def test_parts_with_many_pictures_do_not_make_an_interval_narrow() -> None:
    one, other = rows(0.6, 60), rows(0.0, 60)
    tens = [
        {name: np.repeat(column, 10, axis=0) for name, column in table.items()}
        for table in (one, other)
    ]
    alone, repeated = figures.gain(one, other, "x"), figures.gain(*tens, "x")
    assert repeated.high - repeated.low == pytest.approx(alone.high - alone.low, rel=0.35)


def test_curves_begin_at_one_label_and_leave_as_many_to_ask_about() -> None:
    assert figures.label_counts(rows(0.0, 120)) == [1, 2, 5, 10, 20]
    assert figures.label_counts(rows(0.0, 120, labelled=False)) == []
    paired = rows(0.0, 120) | {"group": np.arange(120) // 4, "label": np.arange(120) // 4 % 2}
    assert figures.label_counts(paired) == [1, 2, 5]


def test_more_labels_help_and_draws_are_the_same_for_all_networks() -> None:
    mean, deviation = figures.few_label_curve(rows(1.0), [1, 20])
    assert mean[1] > mean[0]
    assert deviation[0] > 0
    again, _ = figures.few_label_curve(rows(1.0), [1, 20])
    assert np.array_equal(mean, again)


def test_a_part_that_taught_is_not_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part's ten pictures are alike: asked about what it learnt, a probe of noise is right."""
    table = {name: np.repeat(column, 10, axis=0) for name, column in rows(0.0, 60).items()}
    mean, _ = figures.few_label_curve(table, [10])
    assert mean[0] < 0.62


def test_the_report_shows_all_networks_side_by_side_with_what_was_measured() -> None:
    shown = evaluation(rows(2.0), random=rows(0.0), checkpoint=rows(2.0))
    few, places = figures.draw(SETTINGS, shown)
    assert (few.name, places.name) == ("few_labels", "directions")
    assert "Better than random (+" in few.caption
    assert "No gain over checkpoint was measured" in few.caption
    for figure in (few, places):
        assert isinstance(figure.content, str)
        assert figure.content.startswith("<svg")
        assert all(f">{name}<" in figure.content for name in ("model", "random", "checkpoint"))
    assert ">bad<" in str(places.content)


def test_without_labels_it_is_measured_which_view_is_found_again() -> None:
    plain = rows(0.0, 200, labelled=False)
    shown = evaluation(with_views(plain, 0.1), random=with_views(plain, 3.0))
    (places,) = figures.draw(SETTINGS, shown)
    assert "Other views found again: Better than random (+" in places.caption
    assert ">no label<" in str(places.content)
