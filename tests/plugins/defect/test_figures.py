"""Figures: what they show, and that no name breaks them."""

from __future__ import annotations

import base64
import io
import re
import sys
import types
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from pegboard.errors import DataError
from pegboard.records import Evaluation, Figure
from pegboard_defect import figures, pixels
from pegboard_defect.settings import DefectSettings

NASTY = '<b>&"$x_1$划痕'
THRESHOLDS = {"defect": 0.5, "pixel": 0.4}


def settings(classes: Sequence[str] = ("good", "scratch", "crack"), **model: Any) -> DefectSettings:
    return DefectSettings.model_validate({"data": {"classes": classes}, "model": model})


def rows(count: int = 40, **columns: Any) -> dict[str, Any]:
    """Pictures that are all decided right: good ones below 0.4, scratches and cracks above 0.6."""
    label = np.arange(count) % 3
    score = np.where(label > 0, 0.6, 0.0) + 0.4 * np.arange(count) / count
    return {
        "score": score.astype(np.float32),
        "label": label,
        "defective": (label > 0).astype(int),
        "predicted": label.copy(),
        "key": np.array([f"key{index}.png" for index in range(count)]),
        "part": np.array([f"key{index}.png" for index in range(count)]),
        "lot": np.array([f"L{index % 2}" for index in range(count)]),
        "heat": np.zeros((count, 32, 32), dtype=np.uint8),
        **pixels.empty_columns(count),
        **columns,
    }


def evaluation(table: dict[str, Any], **more: Any) -> Evaluation:
    return Evaluation(
        name="model", split="test", rows=table, thresholds=THRESHOLDS, metrics=[], **more
    )


@pytest.fixture(autouse=True)
def gone(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Keys whose pictures are not there any more; the others are grey."""
    keys: set[str] = set()

    def picture_of(settings: DefectSettings, key: str) -> Any:
        if key in keys:
            raise DataError("the picture is missing", where=key)
        return np.full((300, 200, 1), 100, dtype=np.uint8)

    data = types.ModuleType("pegboard_defect.data")
    data.picture_of = picture_of  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pegboard_defect.data", data)
    return keys


def worst(table: dict[str, Any], one: DefectSettings | None = None) -> Figure:
    return figures.worst_mistakes(one or settings(), table, THRESHOLDS)


def by_lot(table: dict[str, Any]) -> Figure:
    figure = figures.by_lot(table, THRESHOLDS)
    assert figure is not None
    return figure


def text(figure: Figure) -> str:
    assert isinstance(figure.content, str)
    return figure.content


def keys(figure: Figure) -> list[str]:
    return re.findall(r"key\d+\.png", text(figure))


def with_mistakes() -> dict[str, Any]:
    table = rows()
    # 3, 6 and 9 are good, 1 and 4 scratches.
    table["score"][[3, 6, 9]] = [0.7, 0.9, 0.45]
    table["score"][[1, 4]] = [0.3, 0.02]
    table["predicted"][4] = 0
    return table


def test_every_figure_is_drawn_and_well_formed() -> None:
    drawn = figures.draw(settings(), evaluation(with_mistakes()))
    assert [figure.name for figure in drawn] == [
        "trade_off",
        "scores",
        "by_class",
        "by_lot",
        "confusion",
        "worst_mistakes",
        "least_certain",
    ]
    for figure in drawn:
        # The report takes HTML; ours is also XML but for images, which it leaves open.
        ElementTree.fromstring("<p>" + re.sub(r"(<img[^>]*|<br)>", r"\1/>", text(figure)) + "</p>")
        assert figure.title
        assert figure.caption.endswith(".")
    assert sum(len(text(figure)) for figure in drawn) < 500_000


def test_the_worst_mistakes_are_shown_escapes_first() -> None:
    figure = worst(with_mistakes())
    assert keys(figure) == ["key4.png", "key1.png", "key6.png", "key3.png"]
    assert text(figure).count(">escape<") == text(figure).count(">overkill<") == 2
    assert "true: scratch, predicted: good" in text(figure)
    assert "score 0.020" in text(figure)


def test_no_more_pictures_of_a_kind_are_shown_than_fit() -> None:
    table = rows(90)
    table["score"] = 1 - table["score"]
    assert len(keys(worst(table))) == 2 * figures.SHOWN


def test_without_mistakes_it_says_so() -> None:
    figure = worst(rows())
    assert keys(figure) == []
    assert "decided right" in figure.caption


def test_the_least_certain_are_nearest_to_the_threshold() -> None:
    figure = figures.least_certain(settings(), with_mistakes(), THRESHOLDS)
    assert keys(figure)[0] == "key9.png"
    assert len(keys(figure)) == figures.UNCERTAIN
    assert "accepted, rightly" in text(figure)


def test_a_picture_that_is_gone_is_left_out_and_counted(gone: set[str]) -> None:
    gone |= {"key4.png", "key6.png"}
    figure = worst(with_mistakes())
    assert keys(figure) == ["key1.png", "key3.png"]
    assert "2 pictures are not there any more" in figure.caption


def test_pictures_are_small_and_shown_plain_and_heated() -> None:
    table = with_mistakes()
    table["heat"][4, 16:, :] = 255
    addresses = re.findall(r"base64,([^\"]+)", text(worst(table)))
    plain, heated = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(address)))).astype(int)
        for address in addresses[:2]
    )
    assert plain.shape == heated.shape == (160, 107, 3)
    assert np.abs(heated[:70] - plain[:70]).max() < 8
    assert heated[100:].mean() > plain[100:].mean() + 50


def test_no_name_is_taken_for_markup_or_for_a_formula() -> None:
    table = with_mistakes()
    for name in ("key", "lot", "part"):
        table[name] = np.array([f"{NASTY}{index % 4}" for index in range(40)])
    one = settings(("good", NASTY, "crack"))
    drawn = (
        figures.by_class(one, table, THRESHOLDS),
        figures.by_lot(table, THRESHOLDS),
        figures.confusion(one, table),
        figures.worst_mistakes(one, table, THRESHOLDS),
    )
    for figure in drawn:
        assert figure is not None
        assert "<b>&" not in text(figure)
        assert "&lt;b&gt;&amp;" in text(figure)
        assert "$x_1$划痕" in text(figure)


def test_classes_and_lots_are_compared_only_where_there_are_several() -> None:
    table = rows(lot=np.full(40, ""))
    table["label"] = table["predicted"] = table["defective"]
    one = settings(("good", "bad"))
    assert figures.by_class(one, table, THRESHOLDS) is None
    assert figures.by_lot(table, THRESHOLDS) is None
    assert figures.confusion(one, table) is None


def test_each_class_shows_how_many_of_how_many_pass() -> None:
    figure = figures.by_class(settings(), with_mistakes(), THRESHOLDS)
    assert figure is not None
    content = text(figure)
    assert "2 of 13" in content
    assert "0 of 13" in content
    assert content.index("scratch") < content.index("crack")


def test_each_lot_shows_its_escapes_and_its_overkill() -> None:
    table = with_mistakes()
    table["lot"] = np.array(["night" if index in (4, 6) else "" for index in range(40)])
    content = text(by_lot(table))
    for expected in ("night", "no lot named", "1 of 1", "1 of 25", "1 of 13"):
        assert expected in content


def test_of_many_lots_those_with_most_mistakes_are_drawn() -> None:
    table = with_mistakes()
    table["lot"] = np.array([f"lot-{index}" for index in range(40)])
    figure = by_lot(table)
    assert text(figure).count(">lot-") == figures.MOST_BARS
    assert "lot-4<" in text(figure)
    assert f"{40 - figures.MOST_BARS} lots with fewer mistakes" in figure.caption


def test_baselines_are_drawn_beside_the_model() -> None:
    table = with_mistakes()
    other = Evaluation(
        name="thresholding", split="test", rows=rows(), thresholds=THRESHOLDS, metrics=[]
    )
    figure = figures.trade_off_curve(evaluation(table, baselines=[other]))
    assert ">model<" in text(figure)
    assert ">thresholding<" in text(figure)


@pytest.mark.parametrize("kind", [0, 1])
def test_parts_of_one_kind_alone_are_drawn_too(kind: int) -> None:
    whole = rows()
    kept = whole["defective"] == kind
    table = {name: column[kept] for name, column in whole.items()}
    drawn = [figure.name for figure in figures.draw(settings(), evaluation(table))]
    assert {"trade_off", "scores", "by_lot", "worst_mistakes", "least_certain"} <= set(drawn)


def test_an_anomaly_has_no_predicted_class() -> None:
    one = settings(task="anomaly")
    assert figures.confusion(one, with_mistakes()) is None
    assert "true: scratch<" in text(worst(with_mistakes(), one))
    assert "predicted" not in text(worst(with_mistakes(), one))


def test_a_colour_picture_keeps_its_shape_and_colours() -> None:
    picture = np.zeros((40, 90, 3), dtype=np.uint8)
    picture[..., 1] = 200
    small = figures.thumbnail(picture, 45)
    assert small.shape == (20, 45, 3)
    assert small[10, 20].tolist() == [0, 200, 0]
    cold = figures.overlay(small, np.full((32, 32), 40, np.uint8), 0.4)
    np.testing.assert_array_equal(cold, small)
