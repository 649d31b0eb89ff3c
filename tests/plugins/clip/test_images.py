"""Pictures of every kind, as the model sees them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pegboard.errors import DataError
from pegboard_clip.images import fitted, read_image

MANY = 1_000_000

NOISE = Image.fromarray(np.random.default_rng(2).integers(0, 256, (16, 16, 3), dtype=np.uint8))


def content_of(image: Image.Image, kind: str = "PNG", **how: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **how)
    return buffer.getvalue()


def read(content: bytes) -> Image.Image:
    return read_image(content, pixels=MANY, where="here")


def test_what_is_transparent_shows_white() -> None:
    half = Image.new("RGBA", (4, 4), (255, 0, 0, 255))
    half.paste((0, 0, 0, 0), (0, 0, 2, 4))
    pixels = np.asarray(read(content_of(half)))
    assert pixels[0, 0].tolist() == [255, 255, 255] and pixels[0, 3].tolist() == [255, 0, 0]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_colour(mode: str) -> None:
    kind = "TIFF" if mode == "CMYK" else "PNG"
    image = Image.new(mode, (5, 3)) if mode == "I;16" else Image.new("RGB", (5, 3)).convert(mode)
    found = read(content_of(image, kind))
    assert (found.mode, found.size) == ("RGB", (5, 3))


def test_sixteen_bits_are_scaled_and_not_cut() -> None:
    wide = Image.fromarray(np.full((2, 2), 32896, dtype=np.uint16))
    assert np.asarray(read(content_of(wide)))[0, 0].tolist() == [128, 128, 128]


def test_a_photograph_is_turned_as_its_camera_says() -> None:
    lying = Image.new("RGB", (8, 4))
    exif = Image.Exif()
    exif[0x0112] = 6
    assert read(content_of(lying, "JPEG", exif=exif)).size == (4, 8)


def test_a_broken_exif_block_does_not_spoil_a_picture() -> None:
    content = content_of(Image.new("RGB", (8, 4)), "JPEG", exif=b"Exif\x00\x00MM\x00*broken")
    assert read(content).size == (8, 4)


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded() -> None:
    content = content_of(Image.new("RGB", (60, 50)))
    cut_off = content[: len(content) // 2]  # Decoding it would say that it cannot be read.
    with pytest.raises(DataError, match="60 x 50 pixels, more than 2,999"):
        read_image(cut_off, pixels=2999, where="here")


def test_more_pixels_than_pillow_warns_of_can_be_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read(content_of(Image.new("RGB", (15, 10)))).size == (15, 10)
    with pytest.raises(DataError, match="more pixels than Pillow decodes"):
        read(content_of(Image.new("RGB", (25, 10))))


@pytest.mark.parametrize("content", [b"", b"no picture", content_of(NOISE)[:300]])
def test_what_is_no_picture_is_named_with_its_place(content: bytes) -> None:
    with pytest.raises(DataError, match=r"cannot be read .*\(here\)"):
        read(content)


def test_a_missing_file_is_named_as_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="missing"):
        read_image(tmp_path / "none.png", pixels=MANY, where="none.png")


def test_any_broken_bytes_end_in_one_error() -> None:
    generator = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
        content = bytearray(content_of(NOISE, kind))
        for _ in range(60):
            broken = bytearray(content)
            for place in generator.integers(0, len(broken), 4):
                broken[place] = generator.integers(0, 256)
            try:
                read(bytes(broken))
            except DataError as error:
                assert error.where == "here"


def test_a_large_jpeg_may_be_decoded_smaller_but_not_too_small() -> None:
    content = content_of(Image.new("RGB", (640, 320)), "JPEG")
    small = read_image(content, pixels=MANY, where="here", at_least=60)
    assert small.size == (160, 80)


@pytest.mark.parametrize("size", [(50, 50), (90, 41), (33, 77), (200, 120)])
def test_fitting_is_resizing_the_shortest_side_and_cutting_the_middle_out(
    size: tuple[int, int],
) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    # As open_clip and torchvision do it: resize all, then cut.
    side, shortest = 32, min(size)
    width, height = (int(side * length / shortest) for length in size)
    whole = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - side) / 2), round((height - side) / 2)
    expected = np.asarray(whole.crop((left, top, left + side, top + side))).astype(int)
    assert np.abs(fitted(image, side) - expected).max() <= 1


def test_a_very_long_picture_costs_no_memory() -> None:
    long = Image.new("RGB", (100_000, 1), "red")
    assert fitted(long, 32).shape == (32, 32, 3)


def test_a_picture_of_the_size_is_kept_and_can_be_written_to() -> None:
    image = Image.new("RGB", (16, 16), (1, 2, 3))
    array = fitted(image, 16)
    array += 1
    assert array[0, 0].tolist() == [2, 3, 4]
