"""From files to splits: which findings train, validate and test, and what a sample is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from pegboard.errors import DataError
from pegboard.findings import finding_of
from pegboard.progress import Progress
from pegboard.records import Array, Finding, Sample, Split
from pegboard.splits import Kept
from pegboard_medical import checks, sources
from pegboard_medical.cases import Case
from pegboard_medical.classification import crops
from pegboard_medical.classification.findings import image_of, mask_of, shape_of
from pegboard_medical.classification.settings import ClassificationData, ClassificationSettings
from pegboard_medical.data import read_from
from pegboard_medical.splits import assign

FEWEST = 10
"""Findings of a class below which little is learnt of it."""

# --- Where the findings are -----------------------------------------------------------------------


def source(data: ClassificationData) -> Path:
    """Return the user's folder or file, or the table of the generated findings."""
    return data.path if data.path is not None else crops.table_of(data)


def prepare(settings: ClassificationSettings, progress: Progress) -> list[Path]:
    """Cut findings out of generated volumes, once; the user's own are left as they are.

    Returns:
        What the splits are read from.

    Raises:
        DataError: There is nothing where the settings say.
    """
    data = settings.data
    return [crops.write(data, progress)] if data.path is None else read_from(data)


def cases_of(data: ClassificationData) -> list[Case]:
    """Return every case, labelled or not."""
    return sources.read_cases(_located(data))


def _located(data: ClassificationData) -> ClassificationData:
    return data.model_copy(update={"path": source(data)})


def splits_of(data: ClassificationData) -> Mapping[Split, list[Case]]:
    """Return the labelled cases of each split."""
    return assign([case for case in cases_of(data) if case.label], data)


# --- What may be wrong with them ------------------------------------------------------------------


def check(settings: ClassificationSettings) -> list[Finding]:
    """Look at volumes and masks as segmentation does, see `checks.py`, and at labels."""
    data = _located(settings.data)
    try:
        cases = cases_of(data)
    except DataError as error:
        return [finding_of(error)]
    if not settings.model.mask_weight:
        cases = [replace(case, mask=None) for case in cases]
    splits = assign([case for case in cases if case.label], data)
    findings = [*_labels(data, cases), *_classes(data, splits), *checks.check(data, cases, splits)]
    return sorted(findings, key=lambda found: ("error", "warning", "note").index(found.level))


def _labels(data: ClassificationData, cases: Sequence[Case]) -> list[Finding]:
    column = data.columns.label
    unlabelled = [case.key for case in cases if not case.label]
    if len(unlabelled) == len(cases):
        return [
            Finding(
                level="error",
                what="no finding has a label",
                where="data.path",
                remedy=f"give a CSV file with the columns '{data.columns.image}' and '{column}', "
                "or name its columns in data.columns",
            )
        ]
    findings = []
    if unlabelled:
        findings.append(
            Finding(
                level="note",
                what=f"{len(unlabelled)} of {len(cases)} findings have no label: not used",
                where=_some(unlabelled),
                remedy="label them, if they should train",
            )
        )
    strange = [case.key for case in cases if case.label and case.label not in data.classes]
    if strange:
        findings.append(
            Finding(
                level="error",
                # Not the label itself: a wrong column may hold names.
                what=f"{len(strange)} findings have a label that is not in data.classes",
                where=_some(strange),
                remedy=f"correct the column '{column}', or data.classes",
            )
        )
    return findings


def _some(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - checks.NAMED} more" if len(keys) > checks.NAMED else ""
    return ", ".join(keys[: checks.NAMED]) + more


def _classes(data: ClassificationData, splits: Mapping[Split, Sequence[Case]]) -> list[Finding]:
    """Say which classes are missing from a split, or rare where they are learnt."""
    findings = []
    for split, cases in splits.items():
        counts = Counter(case.label for case in cases)
        absent = [name for name in data.classes if not counts[name]]
        if absent and cases:
            findings.append(
                Finding(
                    level="error" if split == "train" else "warning",
                    what=f"no finding of the {split} split is {' or '.join(absent)}",
                    where=f"{split} split",
                    remedy="add some of more patients, or take the class out of data.classes",
                )
            )
        few = [name for name in data.classes if 0 < counts[name] < FEWEST]
        if few and split == "train":
            findings.append(
                Finding(
                    level="warning",
                    what="few findings train: "
                    + ", ".join(f"{counts[name]} of {name}" for name in few),
                    where=f"{split} split",
                    remedy="label more; of so few little is learnt",
                )
            )
    return findings


# --- Samples --------------------------------------------------------------------------------------


class FindingDataset(Dataset[Sample]):
    """Boxes around findings, as the model sees them, with what is known of each.

    Args:
        settings: How they are cut.
        cases: Which ones; all have a label.
    """

    def __init__(self, settings: ClassificationSettings, cases: Sequence[Case]) -> None:
        self.settings, self.cases = settings, list(cases)
        each = 2 * 4 * int(np.prod(shape_of(settings)))
        self._kept = Kept[Sample](len(self.cases), each)

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> Sample:
        """Return `image` float32 (d, h, w) or (h, w) and its targets; see `findings.py`."""
        return self._kept.get(index, lambda place: self._read(self.cases[place]))

    def _read(self, case: Case) -> Sample:
        volume = sources.read_case(case)
        image = image_of(self.settings, volume)
        mask: Array = np.zeros(image.shape, dtype=np.float32)
        with_mask = case.mask is not None and self.settings.model.mask_weight > 0
        if with_mask:
            mask = mask_of(self.settings, volume.like(sources.read_mask(case, volume)))
        return Sample(
            inputs={"image": image},
            targets={
                "label": np.int64(self._class_of(case)),
                "mask": mask,
                "has_mask": np.float32(with_mask),
                "patient": case.patient or case.key,
            },
            key=case.key,
        )

    def _class_of(self, case: Case) -> int:
        classes = self.settings.data.classes
        if case.label in classes:
            return classes.index(case.label)
        raise DataError(
            "a label is not in data.classes",
            where=case.key,
            remedy=f"correct the column '{self.settings.data.columns.label}', or data.classes",
        )


def load(settings: ClassificationSettings, split: Split) -> FindingDataset:
    """Read the findings of a split.

    Raises:
        DataError: It has none.
    """
    cases = splits_of(settings.data)[split]
    if not cases:
        raise DataError(
            f"the {split} split has no finding with a label",
            where="data",
            remedy="label more findings, or change the shares of the splits",
        )
    return FindingDataset(settings, cases)
