from __future__ import annotations

import random
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from pegboard.errors import DataError
from pegboard.progress import SilentProgress
from pegboard.records import Sample, Split
from pegboard_defect import data
from pegboard_defect.labels import reviewed_file, write_label
from pegboard_defect.parts import Part
from pegboard_defect.settings import DefectData, DefectModel, DefectSettings

SPLITS: tuple[Split, ...] = get_args(Split)


def test_generated_parts_are_made_once(generated: DefectSettings) -> None:
    (folder,) = data.prepare(generated, SilentProgress())
    stamps = {file: file.stat().st_mtime_ns for file in folder.rglob("*.png")}
    assert len(stamps) > 120
    data.prepare(generated, SilentProgress())
    assert stamps == {file: file.stat().st_mtime_ns for file in folder.rglob("*.png")}


def test_both_pictures_of_a_part_are_in_one_split(generated: DefectSettings) -> None:
    parts = {
        split: {part.part for part in members}
        for split, members in data.splits_of(generated).items()
    }
    assert all(parts.values())
    assert not parts["train"] & parts["test"]
    assert not parts["train"] & parts["validation"]
    assert not parts["validation"] & parts["test"]
    assert sum(len(members) for members in data.splits_of(generated).values()) == 120


def test_a_sample_has_picture_classes_mask_part_and_lot(generated: DefectSettings) -> None:
    dataset = data.load(generated, "train")
    defective = next(
        s for s in map(dataset.__getitem__, range(len(dataset))) if s.targets["defective"]
    )
    assert defective.inputs["image"].shape == (48, 48, 1)
    assert defective.inputs["image"].dtype == np.uint8
    assert defective.targets["label"].sum() == 1
    assert defective.targets["label"][0] == 0
    assert defective.targets["mask"].any()
    assert defective.targets["has_mask"] == 1
    assert defective.targets["lot"]
    assert defective.key.startswith("images/")


def test_an_anomaly_model_trains_on_good_parts_and_is_measured_on_all(
    generated: DefectSettings,
) -> None:
    settings = DefectSettings(data=generated.data, model=DefectModel(task="anomaly"))
    shares = {
        split: np.mean([s.targets["defective"] for s in map(d.__getitem__, range(len(d)))])
        for split in SPLITS
        for d in [data.load(settings, split)]
    }
    assert shares["train"] == 0
    assert shares["test"] > 0
    everything = sum(len(data.load(settings, split)) for split in SPLITS)
    assert everything == len(data.all_parts(settings)), "defects kept from training are measured"


def test_data_that_cannot_be_read_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "parts.csv").write_text("picture;class\nx.png;good\n")
    settings = DefectSettings(data=DefectData(path=tmp_path / "parts.csv"))
    (finding,) = data.check(settings)
    assert finding.level == "error"
    assert "parts.csv" in finding.where


def part(label: str | None = None, probability: float | None = None) -> Part:
    return Part(image=Path("x.png"), key="x.png", label=label, probability=probability)


def test_inspectors_who_disagree_give_probabilities() -> None:
    two = DefectData(classes=("good", "defect"))
    assert data.class_probabilities(part("good", 1 / 3), two).tolist() == pytest.approx(
        [2 / 3, 1 / 3]
    )
    assert data.class_probabilities(part("defect"), two).tolist() == [0, 1]
    three = DefectData(classes=("good", "pit", "crack"))
    assert data.class_probabilities(part("pit", 0.75), three).tolist() == [0.25, 0.75, 0]


def test_a_class_that_is_not_listed_is_named_or_merged() -> None:
    with pytest.raises(DataError, match="'dent' is not in"):
        data.class_index("dent", DefectData(classes=("good", "defect")))
    assert data.class_index("dent", DefectData(classes=("good", "defect"), merge=True)) == 1


def test_a_reviewers_label_counts_at_once(tmp_path: Path) -> None:
    settings = DefectSettings(data=DefectData(folder=tmp_path, tiny=True, size=(32, 32)))
    data.prepare(settings, SilentProgress())
    first = data.all_parts(settings)[0]
    other = "pit" if first.label != "pit" else "good"
    write_label(reviewed_file(settings.data, data.source(settings.data)), first.key, other)
    assert data.part_of(settings, first.key).label == other


def test_polygons_are_filled_and_scaled(tmp_path: Path) -> None:
    Image.new("L", (100, 100)).save(tmp_path / "x.png")
    square = ((20.0, 20.0), (59.0, 20.0), (59.0, 59.0), (20.0, 59.0))
    mask = data.read_mask(
        Part(image=tmp_path / "x.png", key="x.png", polygons=(square,), has_mask=True), (50, 50)
    )
    assert mask.sum() == 20 * 20
    assert mask[10:30, 10:30].all()


def test_a_mask_of_another_size_is_named(tmp_path: Path) -> None:
    Image.new("L", (100, 100)).save(tmp_path / "x.png")
    Image.new("L", (50, 100)).save(tmp_path / "m.png")
    with pytest.raises(DataError, match="50 x 100 pixels and its picture 100 x 100"):
        data.read_mask(Part(image=tmp_path / "x.png", key="x", mask=tmp_path / "m.png"), (32, 32))


def sample(mask_at: tuple[int, int] | None) -> Sample:
    mask = np.zeros((96, 96), np.uint8)
    if mask_at:
        mask[mask_at] = 1
    label = np.array([0, 1] if mask_at else [1, 0], np.float32)
    return Sample(
        inputs={"image": np.random.default_rng(0).integers(0, 255, (96, 96, 1), dtype=np.uint8)},
        targets={
            "mask": mask,
            "label": label,
            "defective": label[1],
            "has_mask": np.float32(1),
        },
    )


def test_a_tile_without_the_defect_is_good() -> None:
    random.seed(0)
    tiles = [data.cut_tile(sample((40, 50)), 32) for _ in range(60)]
    assert {tile.inputs["image"].shape for tile in tiles} == {(32, 32, 1)}
    for tile in tiles:
        assert tile.targets["defective"] == tile.targets["mask"].any()
        assert tile.targets["label"].tolist() == [
            1 - tile.targets["defective"],
            tile.targets["defective"],
        ]
    assert 0 < sum(tile.targets["defective"] for tile in tiles) < 60


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    settings = DefectSettings(data=DefectData(path=tmp_path / "nowhere"))
    with pytest.raises(DataError, match="there are no pictures"):
        data.prepare(settings, SilentProgress())
