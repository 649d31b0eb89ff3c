"""The embedded data set: whole, repeatable, with masks that fit and marks that are no defects."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pegboard.records import Array
from pegboard_defect import textures
from pegboard_defect.settings import DefectData

EVERY = [(surface, defect) for surface in textures.SURFACES for defect in textures.DEFECTS]


def rows_of(table: Path) -> list[dict[str, str]]:
    with table.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def small(**changed: object) -> DefectData:
    return DefectData.model_validate({"size": (48, 64), **changed})


def picture(path: Path) -> Array:
    return np.asarray(Image.open(path))


def test_the_table_names_every_picture_and_the_mask_of_every_defect(tmp_path: Path) -> None:
    table = textures.write_parts(tmp_path / "made", small(), parts=20, seed=1)
    assert table == tmp_path / "made" / "parts.csv"
    rows = rows_of(table)
    assert tuple(rows[0]) == textures.COLUMNS
    assert len(rows) == 40
    for row in rows:
        image = picture(table.parent / row["image"])
        assert image.shape == (48, 64)
        assert image.dtype == np.uint8
        assert bool(row["mask"]) == (row["label"] != "good")
        if row["mask"]:
            mask = picture(table.parent / row["mask"])
            assert mask.shape == (48, 64)
            assert set(np.unique(mask)) == {0, 255}
    on_disk = {f"{file.parent.name}/{file.name}" for file in table.parent.rglob("*.png")}
    assert on_disk == {row[name] for row in rows for name in ("image", "mask")} - {""}


def test_pictures_of_a_part_share_label_and_lot_and_no_pixel_pattern(tmp_path: Path) -> None:
    table = textures.write_parts(tmp_path / "made", small(), parts=16, seed=1)
    parts: dict[str, list[dict[str, str]]] = {}
    for row in rows_of(table):
        parts.setdefault(row["part"], []).append(row)
    assert len(parts) == 16
    assert len({row["lot"] for (row, _) in parts.values()}) == textures.LOTS
    for first, second in parts.values():
        assert (first["label"], first["lot"]) == (second["label"], second["lot"])
        one, other = (picture(table.parent / row["image"]) for row in (first, second))
        assert not np.array_equal(one, other)


def test_the_same_seed_gives_the_same_files_and_another_seed_others(tmp_path: Path) -> None:
    def written(name: str, seed: int) -> dict[str, bytes]:
        folder = textures.write_parts(tmp_path / name, small(), parts=6, seed=seed).parent
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        return {str(file.relative_to(folder)): file.read_bytes() for file in files}

    first = written("first", 3)
    assert written("again", 3) == first
    assert written("other", 4)["images/p00000-1.png"] != first["images/p00000-1.png"]


def test_three_in_ten_parts_are_defective_and_every_defect_occurs_as_often() -> None:
    kinds = textures.draw_kinds(np.random.default_rng(0), 200, ("scratch", "pit", "stain"))
    assert Counter(kinds) == {None: 140, "scratch": 20, "pit": 20, "stain": 20}


def test_labels_follow_the_classes_of_the_settings(tmp_path: Path) -> None:
    data = small(classes=("ok", "crack", "dent"))
    rows = rows_of(textures.write_parts(tmp_path / "made", data, parts=20, seed=0))
    assert Counter(row["label"] for row in rows) == {"ok": 28, "crack": 12}
    merged = small(classes=("good", "defect"), merge=True)
    assert textures.defects_of(merged) == tuple(textures.DEFECTS)


def test_surfaces_follow_the_settings() -> None:
    lots = textures.draw_lots(np.random.default_rng(0), ("cloth", "cells"))
    assert [lot.surface for lot in lots] == ["cloth", "cells"] * (textures.LOTS // 2)


def test_one_lot_is_darker_than_the_others(tmp_path: Path) -> None:
    table = textures.write_parts(tmp_path / "made", small(), parts=24, seed=2)
    light: dict[str, list[float]] = {}
    for row in rows_of(table):
        light.setdefault(row["lot"], []).append(float(picture(table.parent / row["image"]).mean()))
    means = sorted((float(np.mean(values)), lot) for lot, values in light.items())
    assert means[0][1] == f"L{textures.DARK_LOT + 1}"
    assert means[0][0] < 0.75 * means[1][0]


def test_a_data_set_that_breaks_off_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[object] = []

    def full(array: Array) -> bytes:
        drawn.append(array)
        if len(drawn) > 5:
            raise OSError("the disk is gone")
        return b"picture"

    monkeypatch.setattr(textures, "as_png", full)
    with pytest.raises(OSError, match="disk is gone"):
        textures.write_parts(tmp_path / "made", small(), parts=9, seed=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("surface", "defect"), EVERY)
def test_the_mask_lies_where_the_surface_was_changed(surface: str, defect: str) -> None:
    for seed in range(4):
        random = np.random.default_rng(seed)
        good = textures.SURFACES[surface](random, (112, 112), 0.8, 1.0)
        canvas, mask = textures.DEFECTS[defect](random, good, 3.0)
        changed = (canvas - good.canvas) ** 2
        assert canvas.dtype == np.float32
        assert 8 <= mask.sum() < mask.size / 4
        assert changed[mask].sum() > 0.75 * changed.sum()
        assert np.sqrt(changed[mask].mean()) > 1.5 * textures.roughness(good)


@pytest.mark.parametrize("size", [(32, 32), (40, 96)])
def test_a_defect_is_in_both_pictures_however_small_they_are(size: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    lot = textures.draw_lots(random, ("metal",))[0]
    for defect in textures.DEFECTS:
        for image, mask in textures.draw_part(random, lot, defect, size):
            assert image.shape == mask.shape == size
            assert mask.sum() >= 3
            assert mask.max() == 1


@pytest.mark.parametrize("surface", textures.SURFACES)
def test_good_parts_have_no_mask_and_are_not_alike(surface: str) -> None:
    images = []
    for seed in range(3):
        image, mask = textures.one_part(surface=surface, defect=None, size=(64, 64), seed=seed)
        assert not mask.any()
        assert 5 < image.std() < 70
        assert 40 < image.mean() < 210
        images.append(image.astype(float))
    assert np.abs(images[0] - images[1]).mean() > 5
    assert np.abs(images[1] - images[2]).mean() > 5


@pytest.mark.parametrize("defect", ["scratch", "crack"])
def test_lines_that_are_defects_do_not_run_along_the_brushing(defect: str) -> None:
    # Along it, polish marks do, and they are none.
    for seed in range(8):
        random = np.random.default_rng(seed)
        metal = textures.brushed_metal(random, (144, 144), 1.0, 1.0)
        _, mask = textures.DEFECTS[defect](random, metal, 2.0)
        y, x = np.nonzero(mask)
        values, vectors = np.linalg.eigh(np.cov(np.stack([x, y])))
        if values[1] > 6 * values[0]:  # Else its branches leave it no direction.
            grain = np.array([np.cos(metal.grain or 0), np.sin(metal.grain or 0)])
            assert abs(vectors[:, 1] @ grain) < np.cos(0.12)


def test_few_defects_are_faint() -> None:
    random = np.random.default_rng(0)
    clarity = np.array([textures.draw_clarity(random) for _ in range(2000)])
    assert 0.03 < (clarity < 1.8).mean() < 0.1


def test_it_is_drawn_without_the_libraries_of_training() -> None:
    code = (
        "import sys; from pegboard_defect import textures;"
        "textures.one_part(surface='cells', defect='pit', size=(32, 32));"
        "print(sorted({'scipy', 'cv2', 'torch', 'sklearn'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
