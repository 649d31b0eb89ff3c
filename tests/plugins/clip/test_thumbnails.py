"""Thumbnails: pixels and nothing else, of files in declared folders and no others."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from colours import ColourEncoder, paint
from PIL import Image

from pegboard.errors import RequestError
from pegboard.progress import SilentProgress
from pegboard_clip import thumbnails as module
from pegboard_clip.index import Index, refresh
from pegboard_clip.thumbnails import SIDE, Thumbnails

ORIENTATION, GPS = 0x0112, 0x8825


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    paint(folder / "apple.png", "red")
    return folder


@pytest.fixture
def index(tmp_path: Path, pictures: Path) -> Iterator[Index]:
    encoder = ColourEncoder()
    with Index.create(tmp_path / "index", model=encoder.model, dimension=6) as opened:
        refresh(opened, pictures, encoder, SilentProgress())
        yield opened


@pytest.fixture
def thumbnails(tmp_path: Path) -> Thumbnails:
    return Thumbnails(tmp_path / "kept", pixels=10_000_000)


def bring_up(index: Index, pictures: Path) -> None:
    refresh(index, pictures, ColourEncoder(), SilentProgress())


def number_of(index: Index, path: str) -> int:
    return next(match.id for match in index.newest(99) if match.path == path)


def decoded(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def test_a_photograph_loses_place_and_maker_and_stands_upright(
    index: Index, pictures: Path, thumbnails: Thumbnails
) -> None:
    photo = Image.new("RGB", (1200, 800), "white")
    photo.paste((220, 30, 30), (0, 0, 600, 800))  # The left half, which is the upper when turned.
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    exif[0x010F] = "A maker"
    exif.get_ifd(GPS)[1] = "N"
    photo.save(pictures / "photo.jpg", exif=exif, icc_profile=b"a profile", comment=b"a secret")
    bring_up(index, pictures)
    content = thumbnails.jpeg(index, number_of(index, "photo.jpg"))
    made = decoded(content)
    assert made.format == "JPEG" and made.size == (256, SIDE)
    assert not made.getexif() and not {"icc_profile", "comment", "exif"} & set(made.info)
    for word in (b"maker", b"secret", b"profile", b"Exif"):
        assert word not in content
    red, white = made.getpixel((128, 20)), made.getpixel((128, 360))
    assert red[1] < 80 and white[1] > 200


def test_a_thumbnail_is_made_once(
    index: Index, thumbnails: Thumbnails, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = thumbnails.jpeg(index, 1)
    assert len(list(thumbnails.folder.iterdir())) == 1
    monkeypatch.setattr(module, "thumbnail", None)
    assert thumbnails.jpeg(index, 1) == first


def test_kept_thumbnails_do_not_come_into_an_index(thumbnails: Thumbnails, index: Index) -> None:
    from pegboard_clip.folders import look_through

    thumbnails.jpeg(index, 1)
    assert look_through(thumbnails.folder).files == {}


def test_a_number_that_is_not_there_is_refused(index: Index, thumbnails: Thumbnails) -> None:
    with pytest.raises(RequestError, match="no picture of this number"):
        thumbnails.jpeg(index, 99)


@pytest.mark.parametrize("is_kept", [False, True])
@pytest.mark.parametrize("way", ["gone", "link", "linked folder", "root"])
def test_what_was_taken_away_or_became_a_link_is_shown_no_more(
    index: Index, pictures: Path, thumbnails: Thumbnails, tmp_path: Path, way: str, is_kept: bool
) -> None:
    file = paint(pictures / "deep" / "leaf.png", "green")
    bring_up(index, pictures)
    number = number_of(index, "deep/leaf.png")
    if is_kept:
        thumbnails.jpeg(index, number)
    outside = tmp_path / "outside"
    if way == "gone":
        file.unlink()
    elif way == "link":
        file.rename(tmp_path / "secret.png")
        file.symlink_to(tmp_path / "secret.png")
    elif way == "linked folder":
        (pictures / "deep").rename(outside)
        (pictures / "deep").symlink_to(outside, target_is_directory=True)
    else:
        pictures.rename(outside)
        pictures.symlink_to(outside, target_is_directory=True)
    with pytest.raises(RequestError, match="can no longer be shown") as refused:
        thumbnails.jpeg(index, number)
    assert str(tmp_path) not in str(refused.value)


def test_a_changed_file_is_shown_as_it_is_and_not_kept_for_the_old_one(
    index: Index, pictures: Path, thumbnails: Thumbnails
) -> None:
    thumbnails.jpeg(index, 1)
    paint(pictures / "apple.png", "blue", size=(50, 50))
    made = decoded(thumbnails.jpeg(index, 1))
    assert made.getpixel((5, 5))[2] > 150
    kept = decoded(next(thumbnails.folder.iterdir()).read_bytes())
    assert kept.getpixel((5, 5))[0] > 150


def test_thumbnails_of_pictures_that_left_the_index_are_removed(
    index: Index, pictures: Path, thumbnails: Thumbnails
) -> None:
    paint(pictures / "leaf.png", "green")
    bring_up(index, pictures)
    thumbnails.jpeg(index, 1)
    thumbnails.jpeg(index, 2)
    (pictures / "leaf.png").unlink()
    bring_up(index, pictures)
    thumbnails.sweep(index)
    assert len(list(thumbnails.folder.iterdir())) == 1
