"""`pegboard index`, `search` and `classify`, with a small encoder in place of a bundle."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import typer
from colours import ColourEncoder, paint
from typer.testing import CliRunner, Result

from pegboard.errors import DataError, RequestError
from pegboard_clip import commands
from pegboard_clip.settings import ClipData, ClipSettings

Give = Callable[..., Result]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    paint(tmp_path / "pictures" / "apple.png", "red")
    paint(tmp_path / "pictures" / "leaf.png", "green", "green", "white")
    paint(tmp_path / "pictures" / "deep" / "sky.png", "blue")
    return tmp_path / "pictures"


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the models of the bundles in time; the last one is opened."""
    names = ["colours-1"]
    encoder = ModuleType("pegboard_clip.encoder")
    encoder.open_encoder = lambda folder, bundle=None: ColourEncoder(names[-1])  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pegboard_clip.encoder", encoder)
    return names


@pytest.fixture
def give(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, models: list[str]) -> Give:
    """Return a function that gives a command in a project; errors come out as they are."""
    settings = ClipSettings(data=ClipData(labels=("apple", "leaf"), prompts=("{}", "{} on snow")))
    opened = SimpleNamespace(settings=settings)
    monkeypatch.setattr(commands, "open_project", lambda folder, overrides: opened)
    monkeypatch.chdir(tmp_path)
    app = typer.Typer()
    commands.register(app)

    def run(*words: str | Path) -> Result:
        return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)

    return run


def rows_of(result: Result) -> list[list[str]]:
    return [line.split() for line in result.stdout.splitlines()]


# --- index ----------------------------------------------------------------------------------------


def test_a_folder_is_indexed_and_the_next_time_only_what_changed(
    give: Give, pictures: Path, tmp_path: Path
) -> None:
    ended = give("index", pictures)
    assert ended.exit_code == 0
    assert ended.stdout.startswith("3 added, 0 changed, 0 removed, 0 as before; 3 pictures in")
    assert (tmp_path / "index" / "index.db").is_file()
    paint(pictures / "new.png", "yellow")
    assert "1 added, 0 changed, 0 removed, 3 as before; 4 pictures" in give("index").stdout


def test_what_was_left_out_is_named_once_at_the_end(give: Give, pictures: Path) -> None:
    (pictures / "broken\x1b[31m.png").write_bytes(b"broken")
    ended = give("index", pictures)
    assert ended.exit_code == 0 and "3 added" in ended.stdout
    assert ended.stderr.count("left out:") == 1
    assert "broken\ufffd[31m.png: the picture cannot be read" in ended.stderr


def test_without_a_folder_there_must_be_an_index(give: Give) -> None:
    with pytest.raises(DataError, match=r"there is no index .*name a folder"):
        give("index")


def test_another_model_is_refused_until_it_is_asked_for(
    give: Give, pictures: Path, models: list[str]
) -> None:
    give("index", pictures)
    models.append("other")
    for words in (["index"], ["index", pictures], ["search", "apple"]):
        with pytest.raises(DataError, match=r"another model.*pegboard index --again"):
            give(*words)
    assert "3 added" in give("index", "--again").stdout
    assert rows_of(give("search", "apple"))[1] == ["1", "pictures/apple.png"]


def test_a_store_is_chosen_once(give: Give, pictures: Path) -> None:
    pytest.importorskip("faiss")
    give("index", pictures, "--store", "faiss")
    assert give("index", "--store", "faiss").exit_code == 0
    with pytest.raises(DataError, match=r"keeps its vectors in faiss.*--index"):
        give("index", "--store", "numpy")


def test_a_folder_is_taken_out(give: Give, pictures: Path) -> None:
    give("index", pictures)
    assert give("index", "--forget", pictures).stdout == "3 pictures taken out; 0 are left\n"
    with pytest.raises(DataError, match="not in the index"):
        give("index", "--forget", pictures)


def test_a_folder_that_is_not_mounted_keeps_no_other_waiting(
    give: Give, pictures: Path, tmp_path: Path
) -> None:
    paint(tmp_path / "other" / "lemon.png", "yellow")
    give("index", pictures)
    give("index", tmp_path / "other")
    pictures.rename(tmp_path / "elsewhere")
    paint(tmp_path / "other" / "snow.png", "white")
    with pytest.raises(DataError, match="there is no folder"):
        give("index")
    assert rows_of(give("search", "snow"))[1] == ["1", "other/snow.png"]


# --- search ---------------------------------------------------------------------------------------


def test_the_best_are_printed_in_their_order_without_numbers_that_promise(
    give: Give, pictures: Path
) -> None:
    give("index", pictures)
    ended = give("search", "red apple", "--top", "2")
    assert rows_of(ended)[0] == ["rank", "file"]
    assert rows_of(ended)[1] == ["1", "pictures/apple.png"] and len(rows_of(ended)) == 3
    assert ended.stderr == ""


def test_terms_are_added_and_taken_away(give: Give, pictures: Path) -> None:
    give("index", pictures)
    assert rows_of(give("search", "apple + sky - apple"))[1] == ["1", "pictures/deep/sky.png"]
    assert rows_of(give("search", "--", "- leaf"))[-1] == ["3", "pictures/leaf.png"]


def test_a_picture_is_searched_by(give: Give, pictures: Path, tmp_path: Path) -> None:
    give("index", pictures)
    asked = paint(tmp_path / "asked.png", "green")
    assert rows_of(give("search", "--image", asked))[1] == ["1", "pictures/leaf.png"]
    with pytest.raises(DataError, match="missing"):
        give("search", "--image", tmp_path / "none.png")


def test_json_names_files_and_ranks(give: Give, pictures: Path) -> None:
    give("index", pictures)
    found = json.loads(give("search", "sky", "--top", "1", "--json").stdout)
    root = str(pictures.resolve())
    assert found == [{"rank": 1, "file": f"{root}/deep/sky.png", "root": root}]


def test_a_script_that_is_not_known_is_said_once_and_apart(give: Give, pictures: Path) -> None:
    give("index", pictures)
    ended = give("search", "苹果 + 叶子", "--json")
    assert ended.stderr == "The vocabulary does not know Chinese.\n"
    assert len(json.loads(ended.stdout)) == 3


@pytest.mark.parametrize("words", [[], ["apple", "--image", "x.png"]])
def test_words_or_a_picture_are_needed_and_not_both(give: Give, words: list[str]) -> None:
    with pytest.raises(RequestError, match=r"nothing to search by|words and a picture"):
        give("search", *words)


# --- classify -------------------------------------------------------------------------------------


def test_pictures_are_sorted_into_labels(give: Give, pictures: Path) -> None:
    ended = give("classify", pictures, "--labels", "apple", "sky", "leaf")
    table = {row[0]: row[1] for row in rows_of(ended)[1:]}
    assert table == {
        "pictures/apple.png": "apple",
        "pictures/deep/sky.png": "sky",
        "pictures/leaf.png": "leaf",
    }


def test_labels_of_the_settings_are_taken_where_none_are_given(give: Give, pictures: Path) -> None:
    rows = rows_of(give("classify", pictures / "apple.png", pictures / "leaf.png"))
    assert [row[1:] for row in rows[1:]] == [["apple", "leaf"], ["leaf", "apple"]]


def test_the_table_is_written_with_each_labels_cosine(
    give: Give, pictures: Path, tmp_path: Path
) -> None:
    (pictures / "broken.png").write_bytes(b"broken")
    ended = give("classify", pictures, "--labels", "apple", "sky", "--out", tmp_path / "t.csv")
    assert ["apple", "2"] in rows_of(ended) or ["sky", "2"] in rows_of(ended)
    assert "broken.png: the picture cannot be read" in ended.stderr
    with (tmp_path / "t.csv").open() as stream:
        rows = {Path(row["file"]).name: row for row in csv.DictReader(stream)}
    assert list(rows["apple.png"]) == ["file", "label", "cosine_apple", "cosine_sky"]
    assert rows["sky.png"]["label"] == "sky" and len(rows) == 3
    assert float(rows["apple.png"]["cosine_apple"]) > 0.9 > float(rows["apple.png"]["cosine_sky"])


def test_the_last_batch_is_not_lost_when_its_last_picture_is_broken(
    give: Give, tmp_path: Path
) -> None:
    paint(tmp_path / "some" / "a.png", "red")
    (tmp_path / "some" / "b.png").write_bytes(b"broken")
    assert "some/a.png" in give("classify", tmp_path / "some").stdout


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("a --labels cat dog", "a --labels cat --labels dog"),
        ("--labels cat dog --out f b", "--labels cat --labels dog --out f b"),
        ("--labels cat --labels dog", "--labels cat --labels dog"),
        ("--labels cat dog -- x y", "--labels cat --labels dog -- x y"),
        ("a b", "a b"),
    ],
)
def test_labels_follow_one_option(given: str, read: str) -> None:
    assert commands.spread(given.split()) == read.split()


def test_nothing_to_classify_is_said(give: Give, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="there is no picture"):
        give("classify", tmp_path / "empty")


def test_the_commands_load_no_training_library() -> None:
    import subprocess

    code = "import pegboard_clip.commands, pegboard_clip.index, pegboard_clip.search, sys; " + (
        "print([name for name in ('torch', 'transformers', 'faiss') if name in sys.modules])"
    )
    ended: Any = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stdout == "[]\n", ended.stderr
