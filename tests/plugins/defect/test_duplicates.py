from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from pegboard_defect import duplicates
from pegboard_defect.duplicates import Fingerprint, Pair, compare, find, fingerprint

NEAR = 0.02


def textured(seed: int, size: tuple[int, int] = (120, 96)) -> Image.Image:
    """Return a surface: coarse patches, fine grain, width and height as given."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(60, 200, (9, 11), dtype=np.uint8))
    surface = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), dtype=np.float64)
    grain = generator.normal(0.0, 4.0, surface.shape)
    return Image.fromarray((surface + grain).clip(0, 255).astype(np.uint8))


def as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue()))


def prints(**images: Image.Image) -> list[Fingerprint]:
    return [fingerprint(key, image) for key, image in images.items()]


def others(count: int = 12) -> list[Fingerprint]:
    return [fingerprint(f"other{seed}", textured(1000 + seed)) for seed in range(count)]


def named(pairs: list[Pair]) -> list[tuple[str, str]]:
    return [(pair.one, pair.other) for pair in pairs]


def test_equal_pixels_are_found_whatever_the_file(tmp_path: Path) -> None:
    image = textured(0)
    for name in ("a.png", "b.bmp", "c.png"):
        image.save(tmp_path / name)
    textured(1).save(tmp_path / "d.png")
    pictures = [(path.name, path) for path in sorted(tmp_path.iterdir())]
    pairs = find(pictures, 0.0)
    assert named(pairs) == [("a.png", "b.bmp"), ("a.png", "c.png")]
    assert all(pair.exact and pair.difference == 0.0 for pair in pairs)


def test_one_changed_pixel_is_no_exact_duplicate() -> None:
    image = textured(0)
    changed = image.copy()
    changed.putpixel((5, 5), 255 - int(image.getpixel((5, 5))))  # type: ignore[arg-type]
    assert compare(prints(one=image, other=changed), 0.0) == []
    (pair,) = compare(prints(one=image, other=changed), NEAR)
    assert not pair.exact
    assert 0.0 < pair.difference < NEAR


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "jpeg": lambda image: as_jpeg(image, 40),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.7),
    "more contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.15),
    "smaller": lambda image: image.resize((60, 48)),
    "larger": lambda image: image.resize((300, 240)),
    "another shape": lambda image: image.resize((96, 96)),
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(1)),
    "in colour": lambda image: image.convert("RGB"),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "upside down": lambda image: image.transpose(Image.Transpose.ROTATE_180),
    "quarter turn": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "transposed jpeg": lambda image: as_jpeg(image.transpose(Image.Transpose.TRANSPOSE), 60),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found_among_others(change: str) -> None:
    image = textured(0)
    pairs = compare([*others(), *prints(one=image, copy=CHANGES[change](image))], NEAR)
    assert named(pairs) == [("one", "copy")]


def test_different_pictures_of_one_kind_are_no_duplicates() -> None:
    assert compare(others(60), NEAR) == []


def test_a_good_part_and_one_with_a_small_defect_are_no_duplicates() -> None:
    good = textured(0)
    scratched = good.copy()
    scratched.paste(20, (50, 40, 58, 52))
    assert compare(prints(good=good, scratched=scratched), NEAR) == []


def test_plain_surfaces_under_the_same_light_are_no_duplicates() -> None:
    # All that they share is the light; grain averages out in a thumbnail.
    light = 90.0 + 100.0 * np.linspace(0.0, 1.0, 256)[None, :].repeat(256, axis=0)

    def plain(seed: int) -> Image.Image:
        grain = np.random.default_rng(seed).normal(0.0, 5.0, light.shape)
        return Image.fromarray((light + grain).astype(np.uint8))

    images = {f"part{seed}": plain(seed) for seed in range(30)}
    images["copy"] = as_jpeg(images["part7"], 90)
    assert named(compare(prints(**images), NEAR)) == [("part7", "copy")]


def test_blank_pictures_are_duplicates_only_if_they_are_equal() -> None:
    blank = [Image.new("L", (64, 64), grey) for grey in (10, 10, 200)]
    assert named(compare(prints(a=blank[0], b=blank[1], c=blank[2]), NEAR)) == [("a", "b")]


def test_unreadable_pictures_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    textured(0).save(tmp_path / "a.png")
    pictures = [("broken", tmp_path / "broken.png"), ("a", tmp_path / "a.png"), ("gone", tmp_path)]
    assert find(pictures, NEAR) == []


def test_sixteen_bits_are_compared_like_eight() -> None:
    image = textured(0)
    wide = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    assert named(compare(prints(one=image, wide=wide), NEAR)) == [("one", "wide")]


def test_pairs_are_found_across_blocks_of_rows_and_in_a_crowd(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(duplicates, "_ROWS", 32)
    generator = np.random.default_rng(0)

    def made(key: str, thumbnail: np.ndarray) -> Fingerprint:  # type: ignore[type-arg]
        small = (thumbnail - thumbnail.mean()).astype(np.float32)
        return Fingerprint(key=key, digest=key, thumbnail=small / small.std())

    patterns = generator.normal(size=(100, 32, 32))
    all_prints = [made(str(number), pattern) for number, pattern in enumerate(patterns)]
    all_prints += [
        made(f"copy{number}", patterns[7] + 0.001 * generator.normal(size=(32, 32)))
        for number in range(40)
    ]
    pairs = compare(all_prints, NEAR)
    found = {key for pair in pairs for key in (pair.one, pair.other)}
    assert found == {"7", *(f"copy{number}" for number in range(40))}
    assert len(pairs) <= 41 * 16
