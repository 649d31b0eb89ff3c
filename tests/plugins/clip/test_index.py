"""The index of a folder: what comes in, what leaves, and what survives a kill."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from colours import ColourEncoder, paint

from pegboard.errors import DataError, RunLockedError
from pegboard.progress import SilentProgress
from pegboard_clip import index as module
from pegboard_clip.folders import Stamp, look_through, open_inside
from pegboard_clip.index import Entry, Index, Summary, refresh

Array = Any
SUPPORT = Path(__file__).resolve().parents[2] / "support"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    paint(folder / "apple.png", "red")
    paint(folder / "leaf.png", "green", "green", "white")
    paint(folder / "deep" / "sky.jpg", "blue")
    return folder


@pytest.fixture
def encoder() -> ColourEncoder:
    return ColourEncoder()


@pytest.fixture
def index(tmp_path: Path, encoder: ColourEncoder) -> Iterator[Index]:
    with Index.create(tmp_path / "index", model=encoder.model, dimension=6) as opened:
        yield opened


@pytest.fixture
def bring_up(index: Index, pictures: Path, encoder: ColourEncoder) -> Callable[..., Summary]:
    def bring(folder: Path = pictures, **options: Any) -> Summary:
        return refresh(index, folder, encoder, SilentProgress(), **options)

    return bring


def names(index: Index, text: str, top: int = 10) -> list[str]:
    return [match.path for match in index.search(ColourEncoder().texts([text])[0], top)]


def later(path: Path) -> None:
    """Make a file's time another one: tests are quicker than clocks."""
    facts = path.stat()
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1_000_000))


# --- A folder comes in ----------------------------------------------------------------------------


def test_pictures_are_found_by_what_they_show(
    index: Index, bring_up: Callable[..., Summary], pictures: Path
) -> None:
    summary = bring_up()
    assert str(summary) == "3 added, 0 changed, 0 removed, 0 as before"
    assert names(index, "apple", 1) == ["apple.png"]
    assert names(index, "sky", 1) == ["deep/sky.jpg"]
    best = index.search(ColourEncoder().texts(["leaf"])[0], 1)[0]
    assert best.file == pictures.resolve() / "leaf.png" and best.score > 0.8
    assert len(index) == 3 and index.roots() == [pictures.resolve()]


def test_what_did_not_change_is_not_read_again(
    bring_up: Callable[..., Summary], encoder: ColourEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring_up()
    monkeypatch.setattr(module, "read_inside", None)
    summary = bring_up()
    assert summary.same == 3 and summary.added == 0 and encoder.calls == [3]


def test_a_file_with_another_time_and_the_same_content_is_not_embedded(
    bring_up: Callable[..., Summary], encoder: ColourEncoder, pictures: Path
) -> None:
    bring_up()
    later(pictures / "apple.png")
    assert bring_up().same == 3
    assert encoder.calls == [3]


def test_a_changed_file_keeps_its_number_and_is_found_as_it_is_now(
    index: Index, bring_up: Callable[..., Summary], pictures: Path
) -> None:
    bring_up()
    before = index.known(pictures.resolve())["apple.png"].id
    paint(pictures / "apple.png", "yellow")
    later(pictures / "apple.png")
    assert bring_up().changed == 1
    assert names(index, "lemon", 1) == ["apple.png"]
    assert index.known(pictures.resolve())["apple.png"].id == before and len(index) == 3


def test_a_file_that_is_gone_leaves_the_index(
    index: Index, bring_up: Callable[..., Summary], pictures: Path
) -> None:
    bring_up()
    (pictures / "apple.png").unlink()
    assert bring_up().removed == 1
    assert "apple.png" not in names(index, "apple")


def test_a_moved_file_and_a_second_copy_are_not_embedded_again(
    index: Index, bring_up: Callable[..., Summary], encoder: ColourEncoder, pictures: Path
) -> None:
    bring_up()
    (pictures / "apple.png").rename(pictures / "deep" / "fruit.png")
    (pictures / "copy.jpg").write_bytes((pictures / "deep" / "sky.jpg").read_bytes())
    summary = bring_up()
    assert (summary.added, summary.removed) == (2, 1) and encoder.calls == [3]
    assert names(index, "apple", 1) == ["deep/fruit.png"]
    assert names(index, "sky", 2) == ["deep/sky.jpg", "copy.jpg"]


def test_hidden_files_links_and_the_index_itself_are_left_out(
    tmp_path: Path, pictures: Path, encoder: ColourEncoder
) -> None:
    secret = paint(tmp_path / "secret.png", "red")
    paint(pictures / ".hidden.png", "red")
    paint(pictures / ".folder" / "a.png", "red")
    (pictures / "link.png").symlink_to(secret)
    (pictures / "linked").symlink_to(tmp_path, target_is_directory=True)
    (pictures / "notes.txt").write_text("no picture")
    with Index.create(pictures / "index", model=encoder.model, dimension=6) as index:
        paint(pictures / "index" / "a.png", "red")
        refresh(index, pictures, encoder, SilentProgress())
        found = [picture.path for picture in index.known(pictures.resolve()).values()]
    assert sorted(found) == ["apple.png", "deep/sky.jpg", "leaf.png"]


def test_what_cannot_be_read_is_named_and_nothing_else_is_lost(
    index: Index, bring_up: Callable[..., Summary], pictures: Path
) -> None:
    (pictures / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    paint(pictures / "large.png", "red", size=(200, 200))
    summary = bring_up(pixels=10_000)
    assert summary.added == 3 and len(index) == 3
    reasons = {Path(path).name: reason for path, reason in summary.unreadable}
    assert "cannot be read" in reasons["broken.png"]
    assert "200 x 200 pixels, more than 10,000" in reasons["large.png"]


def test_a_picture_that_broke_leaves_the_index(
    index: Index, bring_up: Callable[..., Summary], pictures: Path
) -> None:
    bring_up()
    (pictures / "apple.png").write_bytes(b"broken")
    summary = bring_up()
    assert summary.removed == 1 and len(summary.unreadable) == 1
    assert names(index, "apple", 9).count("apple.png") == 0


def test_pictures_of_a_folder_that_cannot_be_opened_stay(
    index: Index,
    bring_up: Callable[..., Summary],
    monkeypatch: pytest.MonkeyPatch,
    pictures: Path,
) -> None:
    bring_up()
    scan = os.scandir

    def refuse(folder: Any) -> Any:
        if str(folder).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    summary = bring_up()
    assert summary.removed == 0 and len(index) == 3
    assert summary.unreadable == [(str(pictures.resolve() / "deep"), "Permission denied")]


def test_names_that_are_no_text_and_names_that_are_html_come_in(
    index: Index, bring_up: Callable[..., Summary], pictures: Path
) -> None:
    odd = [b"\xff\xfe.png", "图片 & <b>.png".encode()]
    for name in odd:
        paint(pictures / "x.png", "yellow", *["white"] * len(name))
        os.rename(pictures / "x.png", os.path.join(os.fsencode(pictures), name))  # noqa: PTH104, PTH118
    assert bring_up().added == 5
    assert {"\ufffd\ufffd.png", "图片 & <b>.png"} < {match.name for match in index.newest(5)}
    assert all(match.file.is_file() for match in index.newest(5))


# --- Folders that are declared --------------------------------------------------------------------


def test_a_folder_in_a_declared_one_is_part_of_it(
    index: Index, bring_up: Callable[..., Summary], pictures: Path
) -> None:
    bring_up()
    assert bring_up(pictures / "deep").same == 3
    assert index.roots() == [pictures.resolve()]


def test_a_folder_around_a_declared_one_is_refused(
    bring_up: Callable[..., Summary], pictures: Path
) -> None:
    bring_up(pictures / "deep")
    with pytest.raises(DataError, match=r"in the index already: .*deep.*--forget"):
        bring_up()


def test_a_folder_that_is_not_mounted_is_not_forgotten(
    index: Index, bring_up: Callable[..., Summary], pictures: Path
) -> None:
    bring_up()
    pictures.rename(pictures.with_name("elsewhere"))
    with pytest.raises(DataError, match="there is no folder"):
        bring_up()
    pictures.mkdir()
    with pytest.raises(DataError, match=r"none of its 3 pictures .*mount it"):
        bring_up()
    assert len(index) == 3


def test_a_folder_is_forgotten_and_no_other(
    index: Index, bring_up: Callable[..., Summary], tmp_path: Path, pictures: Path
) -> None:
    bring_up()
    other = tmp_path / "other"
    paint(other / "lemon.png", "yellow")
    bring_up(other)
    assert index.forget(pictures) == 3
    assert names(index, "apple") == ["lemon.png"] and index.roots() == [other.resolve()]
    with pytest.raises(DataError, match=r"not in the index.*other"):
        index.forget(pictures)


# --- Models and files -----------------------------------------------------------------------------


def test_another_model_is_refused_in_one_sentence(index: Index, pictures: Path) -> None:
    with pytest.raises(DataError, match=r"another model: colours-1 .*--again") as refused:
        refresh(index, pictures, ColourEncoder("other"), SilentProgress())
    assert str(refused.value).count("\n") == 0


def test_beginning_again_takes_another_model_and_keeps_the_folders(
    index: Index, bring_up: Callable[..., Summary], pictures: Path
) -> None:
    bring_up()
    other = ColourEncoder("other")
    reader = Index(index.folder)
    index.restart(other)
    assert len(index) == 0 and index.roots() == [pictures.resolve()]
    refresh(index, pictures, other, SilentProgress())
    assert names(index, "apple", 1) == ["apple.png"] == names(reader, "apple", 1)
    reader.require(other)
    reader.close()


def test_a_folder_of_something_else_is_not_made_an_index(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(DataError, match="something else than an index"):
        Index.create(tmp_path, model="m", dimension=6)
    assert (tmp_path / "letter.txt").read_text() == "mine"


def test_no_index_a_later_one_and_a_broken_one_are_named(tmp_path: Path, index: Index) -> None:
    with pytest.raises(DataError, match=r"there is no index .*pegboard index FOLDER"):
        Index(tmp_path / "none")
    database = sqlite3.connect(index.folder / "index.db")
    database.execute("UPDATE facts SET value = '2' WHERE name = 'format'")
    database.commit()
    database.close()
    with pytest.raises(DataError, match="format 2, and this reads 1"):
        Index(index.folder)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "index.db").write_bytes(b"x" * 5000)
    with pytest.raises(DataError, match="cannot be read"):
        Index(tmp_path / "broken")


def test_a_second_writer_is_refused(index: Index) -> None:
    refused = pytest.raises(RunLockedError, match="another process is writing")
    with index.writing(), Index(index.folder) as second, refused, second.writing():
        pass
    with index.writing():
        pass


def test_threads_search_while_another_process_writes(
    index: Index, bring_up: Callable[..., Summary], pictures: Path
) -> None:
    bring_up()
    query, found, problems = ColourEncoder().texts(["apple"])[0], [], []

    def ask() -> None:
        try:
            with Index(index.folder) as reader:
                for _ in range(30):
                    found.append(reader.search(query, 1)[0].path)
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    root = pictures.resolve()
    for number in range(20):
        entry = Entry(path=f"{number}.png", stamp=Stamp(size=1, modified=1), digest=str(number))
        index.add(root, [entry], ColourEncoder().texts(["sky"]))
    for thread in threads:
        thread.join()
    assert problems == [] and set(found) == {"apple.png"} and len(found) == 90


def test_what_a_database_still_holds_and_the_index_forgot_is_not_shown(
    index: Index, bring_up: Callable[..., Summary]
) -> None:
    bring_up()
    apple = index.search(ColourEncoder().texts(["apple"])[0], 1)[0].id
    # As a process leaves it that is killed between the two.
    index._database.execute("DELETE FROM pictures WHERE id = ?", (apple,))
    index._database.execute("INSERT INTO discarded VALUES (?)", (apple,))
    assert len(names(index, "apple", 2)) == 2 and "apple.png" not in names(index, "apple")
    with index.writing():
        pass
    assert index._database.execute("SELECT count(*) FROM discarded").fetchone() == (0,)
    assert index._store.search(ColourEncoder().texts(["apple"])[0], 9)[0].size == 2


# --- A kill ---------------------------------------------------------------------------------------

KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
from colours import ColourEncoder
from pegboard.progress import SilentProgress
from pegboard_clip import index as module
module.BATCH = 4
encoder = ColourEncoder()
embed = encoder.images
def slowly(images):
    print(len(images), flush=True)
    if len(encoder.calls) == 2:
        sys.stdin.read()
    return embed(images)
encoder.images = slowly
with module.Index(Path({index!r})) as index, index.writing():
    print(module.refresh(index, Path({pictures!r}), encoder, SilentProgress()))
"""


def test_a_killed_process_loses_one_batch_and_the_next_goes_on(
    index: Index, tmp_path: Path, encoder: ColourEncoder
) -> None:
    folder = tmp_path / "many"
    for number in range(14):
        paint(folder / f"{number:02}.png", *["red"] * (number + 1), "blue", size=(9, 480))
    code = KILLED.format(here=str(SUPPORT), index=str(index.folder), pictures=str(folder))
    words = [sys.executable, "-c", code]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(3)] == [b"4\n"] * 3
        process.send_signal(signal.SIGKILL)
    assert len(index) == 8
    assert len(index.search(encoder.texts(["red"])[0], 20)) == 8
    with index.writing():
        summary = refresh(index, folder, encoder, SilentProgress())
    assert (summary.same, summary.added) == (8, 6) and sum(encoder.calls) == 6
    found = index.search(encoder.texts(["red"])[0], 20)
    assert sorted(match.path for match in found) == [f"{number:02}.png" for number in range(14)]
    vectors = np.load(index.folder / "vectors-0.npy", mmap_mode="r")
    np.testing.assert_allclose(np.linalg.norm(vectors[:14], axis=1), 1, atol=1e-5)


# --- Opening files --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd", "deep/../../secret.png", ""])
def test_a_path_that_leads_out_is_not_opened(pictures: Path, path: str) -> None:
    paint(pictures.parent / "secret.png", "red")
    with pytest.raises(DataError, match="no path below the folder"):
        open_inside(pictures.resolve(), path)


def test_a_link_is_not_opened_wherever_it_stands_on_the_way(pictures: Path, tmp_path: Path) -> None:
    root = pictures.resolve()
    with open_inside(root, "deep/sky.jpg") as stream:
        assert stream.read(2) == b"\xff\xd8"
    (root / "deep").rename(tmp_path / "outside")
    (root / "deep").symlink_to(tmp_path / "outside", target_is_directory=True)
    with pytest.raises(OSError, match=r"Not a directory|symbolic"):
        open_inside(root, "deep/sky.jpg")
    (root / "leaf.png").unlink()
    (root / "leaf.png").symlink_to(tmp_path / "outside" / "sky.jpg")
    with pytest.raises(OSError, match="symbolic"):
        open_inside(root, "leaf.png")


def test_a_pipe_of_a_pictures_name_is_refused_at_once(pictures: Path) -> None:
    os.mkfifo(pictures / "pipe.png")
    assert "pipe.png" not in look_through(pictures).files
    with pytest.raises(DataError, match="no ordinary file"):
        open_inside(pictures.resolve(), "pipe.png")
