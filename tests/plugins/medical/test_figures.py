"""Figures: what they show, and that no name breaks them."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from pegboard.records import Evaluation, Figure
from pegboard_medical import figures, lesions, metrics
from pegboard_medical.settings import SegmentationSettings

NASTY = '<b>&"$x_1$划痕'
Array = Any


def settings(classes: Sequence[str] = ("nodule",), **model: Any) -> SegmentationSettings:
    return SegmentationSettings.model_validate({"data": {"classes": classes}, "model": model})


def rows(count: int = 20, names: Sequence[str] = ("nodule",), **columns: Any) -> dict[str, Any]:
    """Cases of rising Dice, a lesion each that is found at half of the thresholds."""
    side = metrics.SIDE
    table: dict[str, Any] = {
        "key": np.array([f"key{index}" for index in range(count)]),
        "patient": np.array([f"p{index}" for index in range(count)]),
        "picture": np.full((count, 3, side, side), 90, dtype=np.uint8),
        "true_outline": np.zeros((count, 3, side, side // 8), dtype=np.uint8),
        "found_outline": np.zeros((count, 3, side, side // 8), dtype=np.uint8),
        "picture_mm": np.full(count, 40.0),
    }
    steps = len(lesions.THRESHOLDS)
    for name in names:
        table |= {
            f"dice:{name}": np.linspace(0.3, 0.9, count),
            f"hd95:{name}": np.full(count, 2.5),
            f"surface_dice:{name}": np.full(count, 0.9),
            f"volume_ml:{name}": np.linspace(0.8, 3.0, count),
            f"true_ml:{name}": np.linspace(1.0, 2.8, count),
            f"lesions:{name}": np.ones(count),
            f"found:{name}": np.ones(count),
            f"false:{name}": np.ones(count),
            f"found_at:{name}": np.tile(np.arange(steps) < steps // 2, (count, 1)).astype(float),
            f"false_at:{name}": np.tile(np.linspace(3, 0, steps), (count, 1)),
        }
    return {**table, **columns}


def evaluation(table: dict[str, Any], name: str = "model", **more: Any) -> Evaluation:
    return Evaluation(name=name, split="test", rows=table, thresholds={}, metrics=[], **more)


def text(figure: Figure | None) -> str:
    assert figure is not None
    assert isinstance(figure.content, str)
    return figure.content


def keys(figure: Figure | None) -> list[str]:
    return re.findall(r">(key\d+),", text(figure))


def test_every_figure_is_drawn_and_well_formed() -> None:
    other = evaluation(rows(), "threshold")
    drawn = figures.draw(settings(), evaluation(rows(), baselines=[other]))
    assert [figure.name for figure in drawn] == ["overlap", "volumes", "free_response", "cases"]
    for figure in drawn:
        # The report takes HTML; ours is also XML but for images, which it leaves open.
        ElementTree.fromstring("<p>" + re.sub(r"(<img[^>]*|<br)>", r"\1/>", text(figure)) + "</p>")
        assert figure.title
        assert figure.caption.endswith(".")
    for figure in (drawn[0], drawn[2]):
        assert ">threshold<" in text(figure)


def test_without_lesions_their_curve_is_left_out() -> None:
    drawn = figures.draw(settings(lesions=False), evaluation(rows()))
    assert [figure.name for figure in drawn] == ["overlap", "volumes", "cases"]
    none = rows(**{"lesions:nodule": np.zeros(20)})
    assert figures.free_response(settings(), evaluation(none)) is None


def test_the_worst_cases_come_first_and_the_typical_after_them() -> None:
    figure = figures.cases(settings(), rows())
    expected = [f"key{index}" for index in range(figures.WORST)]
    assert keys(figure) == [*expected, "key9", "key10", "key11"]
    assert text(figure).count(">worst<") == figures.WORST


@pytest.mark.parametrize("count", [1, 4, 7, 8, 12])
def test_few_cases_are_each_shown_at_most_once(count: int) -> None:
    shown = keys(figures.cases(settings(), rows(count)))
    assert len(shown) == len(set(shown)) == min(count, figures.WORST + figures.TYPICAL)


def test_cases_without_a_mask_are_not_shown() -> None:
    dice = np.linspace(0.3, 0.9, 20)
    dice[:2] = np.nan
    figure = figures.cases(settings(), rows(**{"dice:nodule": dice}))
    assert keys(figure)[0] == "key2"
    unknown = rows(
        **{f"{column}:nodule": np.full(20, np.nan) for column in ("dice", "true_ml", "lesions")}
    )
    drawn = figures.draw(settings(), evaluation(unknown))
    assert [figure.name for figure in drawn] == ["overlap"]


def test_outlines_are_blue_orange_and_white_where_they_coincide() -> None:
    table = rows()
    table["true_outline"][0, :, 20, :4] = 255
    table["found_outline"][0, :, 20, 2:6] = 255
    picture = figures.picture_of(table, 0)
    side = metrics.SIDE
    assert picture.shape == (side, 3 * side + 2 * figures.planes.GAP, 3)
    assert [tuple(picture[20, column]) for column in (5, 20, 40, 60)] == [
        figures.TRUE,
        figures.BOTH,
        figures.FOUND,
        (90, 90, 90),
    ]
    address = re.findall(r"base64,([^\"]+)", text(figures.cases(settings(), table)))[0]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(address))))
    np.testing.assert_array_equal(shown, picture)


def test_the_numbers_of_a_case_stand_below_it() -> None:
    content = text(figures.cases(settings(), rows()))
    assert "nodule: Dice 0.30, HD95 2.5 mm, 0.80 of 1.00 ml, 1 of 1 lesions, 1 false" in content
    assert "40 mm wide" in content
    missed = rows(**{"hd95:nodule": np.full(20, np.nan)})
    assert "no HD95" in text(figures.cases(settings(), missed))


def test_volumes_are_logarithmic_where_they_differ_much() -> None:
    plain = figures.volumes(settings(), rows())
    assert plain is not None
    assert "logarithmic" not in plain.caption
    found = np.geomspace(0.01, 20, 20)
    found[3] = 0
    wide = figures.volumes(settings(), rows(**{"volume_ml:nodule": found}))
    assert wide is not None
    assert "logarithmic" in wide.caption
    assert "missed" in wide.caption


def test_no_name_is_taken_for_markup_or_for_a_formula() -> None:
    names = (NASTY, "b")
    table = rows(names=names)
    table["key"] = np.array([NASTY] * 20)
    for figure in figures.draw(settings(names), evaluation(table)):
        assert "<b>&" not in text(figure)
        assert "&lt;b&gt;&amp;" in text(figure)
        assert "$x_1$划痕" in text(figure)


def test_the_same_rows_give_the_same_figures() -> None:
    one, two = (figures.draw(settings(), evaluation(rows())) for _ in range(2))
    assert [text(figure) for figure in one] == [text(figure) for figure in two]
