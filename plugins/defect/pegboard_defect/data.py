"""From pictures to splits: which parts train, validate and test, and what a sample is."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, ImageDraw
from torch.utils.data import Dataset

from pegboard.errors import DataError
from pegboard.files import digest_of
from pegboard.findings import finding_of
from pegboard.progress import Progress
from pegboard.records import Array, Finding, Sample, Split
from pegboard.runs import data_fingerprint
from pegboard.splits import Kept
from pegboard_defect.images import channels_of, prepared, read_image, region_of, resize_mask
from pegboard_defect.labels import apply_reviewed, read_reviewed, reviewed_file
from pegboard_defect.layouts import read_parts
from pegboard_defect.parts import Part
from pegboard_defect.settings import DefectData, DefectSettings
from pegboard_defect.splits import assign
from pegboard_defect.textures import write_parts

TEXTURE_SEED = 20261125
TINY_PARTS = 60


# --- Where the pictures are -----------------------------------------------------------------------


def source(data: DefectData) -> Path:
    """Return the user's folder or file, or the place of the generated one."""
    if data.path is not None:
        return data.path
    parts = TINY_PARTS if data.tiny else data.parts
    asked = [data.textures, parts, data.size, data.classes, data.merge, TEXTURE_SEED]
    return data.folder / f"textures-{digest_of(asked)[:8]}" / "parts.csv"


class HasData(Protocol):
    """Settings with a `[data]` table of pictures: those of defect and of moco."""

    @property
    def data(self) -> DefectData:
        """Where the pictures are."""


def prepare(settings: HasData, progress: Progress) -> list[Path]:
    """Generate the embedded data set, once; the user's own pictures are left as they are.

    Returns:
        What the splits are read from: of a CSV file also every picture and mask that it names.
    """
    data = settings.data
    path = source(data)
    if data.path is None and not path.exists():
        parts = TINY_PARTS if data.tiny else data.parts
        write_parts(path.parent, data, parts=parts, seed=TEXTURE_SEED, progress=progress)
    if not path.exists():
        raise DataError(
            "there are no pictures", where=str(path), remedy="correct data.path, or remove it"
        )
    return [*_files(data, path), *([data.region] if data.region else [])]


def _files(data: DefectData, path: Path) -> list[Path]:
    if data.path is None:
        return [path.parent]
    if path.is_dir():
        return [path]
    parts = read_parts(data, path)
    named = [file for part in parts for file in (part.image, part.mask) if file is not None]
    return [path, reviewed_file(data, path), *dict.fromkeys(named)]


# --- Parts and splits -----------------------------------------------------------------------------


def all_parts(settings: HasData) -> list[Part]:
    """Return every part with its label; where a reviewer gave one, with that."""
    data = settings.data
    path = source(data)
    stamp = data_fingerprint([path, reviewed_file(data, path)])
    return list(_read(_Key(data), stamp))


@lru_cache(maxsize=2)
def _read(key: _Key, stamp: str) -> tuple[Part, ...]:
    path = source(key.data)
    parts = read_parts(key.data, path)
    reviewed = read_reviewed(reviewed_file(key.data, path))
    return tuple(apply_reviewed(parts, reviewed, key.data))


class _Key:
    """Settings as the key of a cache; they hold tables, which have no hash of their own."""

    def __init__(self, data: DefectData) -> None:
        self.data, self.text = data, data.model_dump_json()

    def __hash__(self) -> int:
        return hash(self.text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and other.text == self.text


def splits_of(settings: HasData) -> Mapping[Split, list[Part]]:
    """Return the labelled parts of each split."""
    return assign(all_parts(settings), settings.data)


def part_of(settings: HasData, key: str) -> Part:
    """Return the part of a key.

    Raises:
        DataError: There is none.
    """
    for part in all_parts(settings):
        if part.key == key:
            return part
    raise DataError("there is no such picture", where=key, remedy="name one of the data")


def picture_of(settings: HasData, key: str) -> Array:
    """Return a picture as the model sees it, uint8 (H, W, C).

    Raises:
        DataError: It is not there any more, or cannot be read.
    """
    return prepared(read_image(part_of(settings, key).image), settings.data)


def check(settings: DefectSettings) -> list[Finding]:
    """See `checks.py`."""
    from pegboard_defect import checks

    data, task = settings.data, settings.model.task
    try:
        parts, splits = all_parts(settings), splits_of(settings)
    except DataError as error:
        return [finding_of(error)]
    return checks.check(data, source(data), parts, splits, task)


# --- Samples --------------------------------------------------------------------------------------


def class_index(label: str, data: DefectData) -> int:
    """Return a class's place; one that is not listed counts as the last where `data.merge` is set.

    Raises:
        DataError: The class is unknown.
    """
    if label in data.classes:
        return data.classes.index(label)
    if data.merge:
        return len(data.classes) - 1
    raise DataError(
        f"the class '{label}' is not in data.classes",
        where="data",
        remedy="add it, or set data.merge = true to count it as the last one",
    )


def class_probabilities(part: Part, data: DefectData) -> Array:
    """Return float32 (K,): one for the part's class, or what inspectors who disagree gave."""
    index = class_index(part.label or data.classes[0], data)
    probabilities = np.zeros(len(data.classes), dtype=np.float32)
    if part.probability is None:
        probabilities[index] = 1.0
        return probabilities
    defect = index or len(data.classes) - 1
    probabilities[0], probabilities[defect] = 1 - part.probability, part.probability
    return probabilities


def read_mask(part: Part, size: tuple[int, int]) -> Array:
    """Return where the defect is, uint8 (H, W) of 0 and 1; all 0 where that is not known.

    Raises:
        DataError: The mask is of another size than its picture.
    """
    if part.mask is not None:
        mask, image = read_image(part.mask), read_image(part.image)
        if mask.size != image.size:
            raise DataError(
                f"the mask has {mask.width} x {mask.height} pixels and its picture "
                f"{image.width} x {image.height}",
                where=str(part.mask),
                remedy="make them equal",
            )
        return resize_mask(np.asarray(mask.convert("L")), size)
    if not part.polygons:
        return np.zeros(size, dtype=np.uint8)
    drawn = Image.new("L", read_image(part.image).size)
    for polygon in part.polygons:
        ImageDraw.Draw(drawn).polygon(list(polygon), fill=255, outline=255)
    return resize_mask(np.asarray(drawn), size)


class InspectionDataset(Dataset[Sample]):
    """Pictures of parts, as the model sees them, with what is known of each.

    Args:
        data: How pictures are read.
        parts: Which ones.
    """

    def __init__(self, data: DefectData, parts: Sequence[Part]) -> None:
        self.data, self.parts = data, list(parts)
        height, width = data.size
        # Picture and mask.
        each = height * width * (channels_of(data) + 1)
        self._kept = Kept[tuple[Array, Array]](len(self.parts), each)

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> Sample:
        """Return picture uint8 (H, W, C) and its targets."""
        part = self.parts[index]
        image, mask = self._kept.get(index, self._read)
        label = class_probabilities(part, self.data)
        return Sample(
            inputs={"image": image},
            targets={
                "label": label,
                "defective": np.float32(1 - label[0]),
                "mask": mask,
                "has_mask": np.float32(part.has_mask),
                "lot": part.lot,
                "part": part.part or part.key,
            },
            key=part.key,
        )

    def _read(self, index: int) -> tuple[Array, Array]:
        part = self.parts[index]
        image = prepared(read_image(part.image), self.data)
        mask = read_mask(part, self.data.size)
        inside = region_of(self.data)
        return image, mask if inside is None else mask * inside


def load(settings: DefectSettings, split: Split) -> InspectionDataset:
    """Return a split; an anomaly model trains on good parts, and is measured on all others."""
    splits = splits_of(settings)
    parts = splits[split]
    if settings.model.task == "anomaly" and split != "validation":
        good = [part for part in splits["train"] if _is_good(part, settings.data)]
        trained = {part.part or part.key for part in good}
        spared = [part for part in splits["train"] if (part.part or part.key) not in trained]
        parts = good if split == "train" else [*parts, *spared]
    return InspectionDataset(settings.data, parts)


def _is_good(part: Part, data: DefectData) -> bool:
    return bool(class_probabilities(part, data)[0] > 0.5)


# --- What training sees ---------------------------------------------------------------------------


def augment(settings: DefectSettings, sample: Sample) -> Sample:
    """Change a training picture as its line would, and cut a tile where asked."""
    from pegboard_defect.augment import change

    image, mask = change(sample.inputs["image"], sample.targets["mask"], settings.data.augmentation)
    changed = replace(sample, inputs={"image": image}, targets={**sample.targets, "mask": mask})
    if settings.data.tile:
        changed = cut_tile(changed, settings.data.tile)
    return changed


def cut_tile(sample: Sample, side: int) -> Sample:
    """Cut a random square out of a sample; one without any of its defect is good."""
    image, mask = sample.inputs["image"], sample.targets["mask"]
    top = random.randint(0, max(0, image.shape[0] - side))
    left = random.randint(0, max(0, image.shape[1] - side))
    place = (slice(top, top + side), slice(left, left + side))
    targets = {**sample.targets, "mask": mask[place]}
    if targets["has_mask"] and not targets["mask"].any():
        good = np.zeros_like(targets["label"])
        good[0] = 1.0
        targets |= {"label": good, "defective": np.float32(0.0)}
    return replace(sample, inputs={"image": np.ascontiguousarray(image[place])}, targets=targets)
