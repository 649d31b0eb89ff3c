"""From pictures to splits for a pretraining: all that train, and what is known to measure with.

Pictures that nobody has labelled train, and so do those that the train split of `defect` holds;
its validation and test pictures do not, so what `defect` measures later stays clean. Labels measure
and never train.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from pegboard.batching import stack
from pegboard.errors import DataError
from pegboard.findings import finding_of
from pegboard.progress import Progress
from pegboard.records import Array, Batch, Finding, Sample, Split
from pegboard.splits import Kept
from pegboard_defect import data as defect
from pegboard_defect.images import channels_of, prepared, read_image
from pegboard_defect.moco.augment import view
from pegboard_defect.moco.settings import MocoData, MocoSettings
from pegboard_defect.parts import Part
from pegboard_defect.splits import assign, unlabelled

UNKNOWN = -1
"""The label of a picture that has none."""
FEW = 200
"""With fewer pictures a pretraining hardly ever helps."""
VIEW_SEED = 7
"""Of the views that retrieval is measured with: the same ones every time."""
NAMED = 5
"""Unreadable pictures that are named one by one."""


def prepare(settings: MocoSettings, progress: Progress) -> list[Path]:
    """Generate the embedded pictures, once; the user's own are left as they are."""
    paths = defect.prepare(settings, progress)
    checkpoint = settings.model.checkpoint
    # Other weights to compare with are another report.
    return [*paths, *([checkpoint] if checkpoint else [])]


# --- Parts ----------------------------------------------------------------------------------------


def all_parts(settings: MocoSettings) -> list[Part]:
    """Return every picture; of a folder without any known layout each one below it, unlabelled.

    Raises:
        DataError: There are none, or what describes them is wrong.
    """
    data = settings.data
    is_folder = data.path is not None and data.path.is_dir()
    if is_folder and data.labelled == "no":
        return _every_picture(settings)
    try:
        parts = defect.all_parts(settings)
    except DataError:
        if not is_folder or data.labelled != "auto" or data.layout != "auto":
            raise
        return _every_picture(settings)
    return [_known(part, data) for part in parts]


def _every_picture(settings: MocoSettings) -> list[Part]:
    """Read all pictures below a folder, whatever its folders are called."""
    data = settings.data.model_copy(update={"layout": "classes"})
    parts = defect.all_parts(settings.model_copy(update={"data": data}))
    return [replace(part, label=None, probability=None) for part in parts]


def _known(part: Part, data: MocoData) -> Part:
    """Take a label away that nobody knows, or that is not to be looked at."""
    unknown = part.label not in data.classes and not data.merge and data.labelled == "auto"
    if data.labelled == "no" or unknown:
        return replace(part, label=None, probability=None)
    return part


def label_of(part: Part, data: MocoData) -> int:
    """Return the place of a picture's class, `UNKNOWN` where it has none."""
    return UNKNOWN if part.label is None else defect.class_index(part.label, data)


def is_labelled(settings: MocoSettings) -> bool:
    """Whether there are labels to measure with: as it is set, or two classes of two pictures."""
    data = settings.data
    if data.path is None or data.labelled != "auto":
        return data.labelled != "no"
    counts = Counter(part.label for part in all_parts(settings) if part.label is not None)
    return sum(count >= 2 for count in counts.values()) >= 2


def splits_of(settings: MocoSettings) -> dict[Split, list[Part]]:
    """Return the pictures of each split; those without a label train, where others have one."""
    parts = all_parts(settings)
    # For `assign`, which leaves out what has no label.
    if not is_labelled(settings):
        alike = settings.data.classes[0]
        as_one = [replace(part, label=alike, probability=None) for part in parts]
        return {
            split: [replace(part, label=None) for part in chosen]
            for split, chosen in assign(as_one, settings.data).items()
        }
    splits = assign(parts, settings.data)
    apart = {_group_of(part) for split in ("validation", "test") for part in splits[split]}
    splits["train"] += [
        part
        for part in unlabelled(parts)
        if _group_of(part) not in apart and part.split in (None, "train")
    ]
    return splits


def _group_of(part: Part) -> tuple[str, str]:
    """Return what tells the part that a picture shows from others: its name, else the picture."""
    return part.part, "" if part.part else part.key


# --- Samples --------------------------------------------------------------------------------------


class MocoDataset(Dataset[Sample]):
    """Pictures as the model sees them, with their class where it is known.

    Args:
        data: How pictures are read.
        parts: Which ones.
        groups: The number of the part that each shows.
        with_views: Have another view of every picture follow after the last of them.
    """

    def __init__(
        self, data: MocoData, parts: Sequence[Part], groups: Sequence[int], *, with_views: bool
    ) -> None:
        self.data, self.parts, self.groups = data, list(parts), list(groups)
        self.with_views = with_views
        height, width = data.size
        each = height * width * channels_of(data)
        self._kept = Kept[Array](len(self.parts), each)

    def __len__(self) -> int:
        return len(self.parts) * (2 if self.with_views else 1)

    def __getitem__(self, index: int) -> Sample:
        """Return a picture uint8 (H, W, C), or another view of it, and what is known of it."""
        place = index % len(self.parts)
        part, is_view = self.parts[place], index >= len(self.parts)
        image = self._kept.get(place, self._read)
        return Sample(
            inputs={"image": other_view(image, self.data, place) if is_view else image},
            targets={
                "label": np.int64(label_of(part, self.data)),
                "group": np.int64(self.groups[place]),
                "view": np.int64(is_view),
            },
            key=part.key,
        )

    def __getitems__(self, indices: list[int]) -> Batch:
        """Return a batch at once."""
        return stack([self[index] for index in indices])

    def _read(self, place: int) -> Array:
        return prepared(read_image(self.parts[place].image), self.data)


def other_view(image: Array, data: MocoData, place: int) -> Array:
    """Return a view of a picture uint8 (H, W, C), always the same one for the same place."""
    generator = torch.Generator().manual_seed(VIEW_SEED + place)
    picture = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    seen = view(picture, data, generator)[0].permute(1, 2, 0)
    array: Array = (255 * seen).round().to(torch.uint8).numpy()
    return array


def load(settings: MocoSettings, split: Split) -> MocoDataset:
    """Return a split; where nothing is labelled, validation and test hold views to be found."""
    splits = splits_of(settings)
    numbers: dict[tuple[str, str], int] = {}
    for parts in splits.values():
        for part in parts:
            numbers.setdefault(_group_of(part), len(numbers))
    chosen = splits[split]
    return MocoDataset(
        settings.data,
        chosen,
        [numbers[_group_of(part)] for part in chosen],
        with_views=split != "train" and not is_labelled(settings),
    )


# --- Checking -------------------------------------------------------------------------------------


def check(settings: MocoSettings) -> list[Finding]:
    """Look for pictures that cannot be read, for too few of them, and say what labels there are.

    Raises:
        DataError: A class is unknown, where labels are to be looked at.
    """
    splits = splits_of(settings)
    for part in splits["train"]:
        label_of(part, settings.data)  # A class that is in no list is named here.
    return [
        *_unreadable([part for parts in splits.values() for part in parts]),
        *_too_few(settings, splits),
        _labels(settings, splits),
        *_tiles(settings),
    ]


def _unreadable(parts: Sequence[Part]) -> list[Finding]:
    findings = []
    for path in dict.fromkeys(file for part in parts for file in (part.image, part.mask) if file):
        try:
            read_image(path)
        except DataError as error:
            findings.append(finding_of(error))
    if len(findings) <= NAMED:
        return findings
    rest = Finding(
        level="error",
        what=f"{len(findings) - NAMED} more pictures cannot be read",
        where=str(Path(findings[NAMED].where).parent),
        remedy=findings[NAMED].remedy,
    )
    return [*findings[:NAMED], rest]


def _too_few(settings: MocoSettings, splits: dict[Split, list[Part]]) -> list[Finding]:
    where = str(defect.source(settings.data))
    empty = [split for split, parts in splits.items() if not parts]
    if empty:
        return [
            Finding(
                level="error",
                what=f"there is no picture for the split {' and '.join(empty)}",
                where=where,
                remedy="add pictures, or change data.validation_share and data.test_share",
            )
        ]
    count = len(splits["train"])
    if count >= max(FEW, settings.train.batch_size):
        return []
    return [
        Finding(
            level="warning",
            what=f"only {count} pictures train",
            where=where,
            remedy="add pictures that nobody has labelled: they cost nothing, and with few of them "
            "pretraining hardly helps",
        )
    ]


def _labels(settings: MocoSettings, splits: dict[Split, list[Part]]) -> Finding:
    parts = [part for each in splits.values() for part in each]
    known = sum(part.label is not None for part in parts)
    if is_labelled(settings):
        return Finding(
            level="note" if known else "error",
            what=f"{known} of {len(parts)} pictures have a label, to measure with and not to train",
            where=str(defect.source(settings.data)),
            remedy="none is needed" if known else 'set data.labelled = "no"',
        )
    return Finding(
        level="note",
        what=f"none of {len(parts)} pictures has a label of data.classes",
        where=str(defect.source(settings.data)),
        remedy="label some, or correct data.classes, to see what the backbone is worth",
    )


def _tiles(settings: MocoSettings) -> list[Finding]:
    if not settings.data.tile:
        return []
    return [
        Finding(
            level="warning",
            what="data.tile is not looked at: a pretraining sees pictures whole",
            where="data.tile",
            remedy="cut the pictures into tiles and name their folder in data.path",
        )
    ]
