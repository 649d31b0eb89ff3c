from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pegboard.errors import DataError
from pegboard_defect.labels import apply_reviewed, read_reviewed, reviewed_file, write_label
from pegboard_defect.parts import Part
from pegboard_defect.settings import DefectData

DATA = DefectData(classes=("good", "scratch", "pit"))
OUTLINE = (((0.0, 0.0), (4.0, 0.0), (4.0, 4.0)),)


def part(key: str, **facts: Any) -> Part:
    return Part(image=Path("/data", key), key=key, **facts)


def applied(parts: list[Part], **reviewed: str) -> list[Part]:
    return apply_reviewed(parts, {f"{name}.png": label for name, label in reviewed.items()}, DATA)


def test_the_file_lies_in_the_folder_of_the_data(tmp_path: Path) -> None:
    listed = tmp_path / "parts.csv"
    listed.write_text("image\n")
    assert reviewed_file(DATA, tmp_path) == tmp_path / "reviewed.csv"
    assert reviewed_file(DATA, listed) == tmp_path / "reviewed.csv"


def test_without_a_file_nothing_is_reviewed(tmp_path: Path) -> None:
    assert read_reviewed(tmp_path / "reviewed.csv") == {}


def test_the_last_label_of_a_picture_wins(tmp_path: Path) -> None:
    file = tmp_path / "reviewed.csv"
    for key, label in (("a.png", "pit"), ("b.png", "good"), ("a.png", "scratch")):
        write_label(file, key, label)
    assert read_reviewed(file) == {"a.png": "scratch", "b.png": "good"}
    assert len(file.read_text().splitlines()) == 3
    with file.open("a") as stream:
        stream.write("b.png,pit,2024-05-01T10:00:00+00:00\n")
    assert read_reviewed(file)["b.png"] == "pit"


def test_a_label_is_taken_back_by_none(tmp_path: Path) -> None:
    file = tmp_path / "reviewed.csv"
    write_label(file, "a.png", "pit")
    write_label(file, "a.png", None)
    write_label(file, "never.png", None)
    assert read_reviewed(file) == {}
    assert file.read_text() == "image,label,at\n"


def test_keys_with_commas_quotes_and_umlauts_come_back(tmp_path: Path) -> None:
    file = tmp_path / "reviewed.csv"
    keys = ["a,b.png", 'a"b.png', "Prüfling/ä b.png", "two\nlines.png"]
    for key in keys:
        write_label(file, key, "pit")
    assert list(read_reviewed(file)) == keys


def test_a_label_says_when_it_was_given(tmp_path: Path) -> None:
    file = tmp_path / "reviewed.csv"
    write_label(file, "a.png", "pit")
    at = datetime.fromisoformat(file.read_text().splitlines()[1].split(",")[2])
    assert at.utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", 1),
        (b"picture,label,at\na.png,pit,now\n", 1),
        (b"image,label,at\na.png,pit\n", 2),
        (b"image,label,at\na.png,pit,now\n,pit,now\n", 3),
        (b"image,label,at\na.png,,now\n", 2),
        (b'image,label,at\n"a.png,pit,now\n', 2),
        (b'image,label,at\na.png,pit,"now\nb.png,pit,now\n', 3),
        (b"image,label,at\na\xff.png,pit,now\n", 1),
    ],
)
def test_a_damaged_file_is_named_and_left_as_it_is(
    tmp_path: Path, content: bytes, line: int
) -> None:
    file = tmp_path / "reviewed.csv"
    file.write_bytes(content)
    for use in (lambda: read_reviewed(file), lambda: write_label(file, "b.png", "pit")):
        with pytest.raises(DataError, match="damaged") as raised:
            use()
        assert raised.value.where == f"{file}, line {line}"
    assert file.read_bytes() == content


def test_a_reviewed_label_replaces_label_and_probability() -> None:
    parts = [part("a.png", label="pit", probability=0.7), part("b.png", label="good")]
    one, other = applied(parts, a="scratch", elsewhere="pit")
    assert (one.label, one.probability) == ("scratch", None)
    assert other is parts[1]


def test_a_part_that_became_good_has_an_empty_mask_that_is_known() -> None:
    masked = part("a.png", label="pit", mask=Path("/data/a_mask.png"), has_mask=True)
    outlined = part("b.png", label="pit", polygons=OUTLINE, has_mask=True)
    unmasked = part("c.png", label="pit")
    for one in applied([masked, outlined, unmasked], a="good", b="good", c="good"):
        assert (one.mask, one.polygons, one.has_mask) == (None, (), True)


def test_in_data_without_masks_a_part_that_became_good_has_none() -> None:
    assert not applied([part("a.png", label="pit")], a="good")[0].has_mask


def test_of_a_part_that_became_defective_it_is_not_known_where() -> None:
    black = part("a.png", label="good", mask=Path("/data/black.png"), has_mask=True)
    one = applied([black], a="scratch")[0]
    assert (one.label, one.mask, one.has_mask) == ("scratch", None, False)


def test_another_defect_keeps_its_mask() -> None:
    masked = part("a.png", label="pit", mask=Path("/data/a_mask.png"), has_mask=True)
    one = applied([masked], a="scratch")[0]
    assert (one.label, one.mask, one.has_mask) == ("scratch", masked.mask, True)
