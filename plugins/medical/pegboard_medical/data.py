"""From files to splits: which cases train, validate and test, and what a sample is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from pegboard.errors import DataError
from pegboard.files import digest_of
from pegboard.findings import finding_of
from pegboard.progress import Progress
from pegboard.records import Array, Finding, Sample, Split
from pegboard_medical.cases import Case
from pegboard_medical.intensities import scale_of
from pegboard_medical.settings import SegmentationSettings, VolumeData
from pegboard_medical.sources import TABLES, read_case, read_cases, read_mask
from pegboard_medical.splits import assign
from pegboard_medical.volumes import orientation_of, oriented

PHANTOM_SEED = 20261126
TINY_CASES = 12
CACHE_BYTES = 4_000_000_000
"""Volumes of a split that are kept in memory."""

# --- Where the volumes are ------------------------------------------------------------------------


def source(data: VolumeData) -> Path:
    """Return the user's folder or file, or the place of the generated one."""
    if data.path is not None:
        return data.path
    cases = TINY_CASES if data.tiny else data.cases
    return data.folder / f"phantoms-{digest_of([cases, data.tiny, PHANTOM_SEED])[:8]}"


def prepare(data: VolumeData, progress: Progress) -> list[Path]:
    """Generate the embedded data set, once; the user's own volumes are left as they are.

    Returns:
        What the splits are read from.

    Raises:
        DataError: There is nothing where the settings say.
    """
    if data.path is not None:
        return read_from(data)
    path = source(data)
    if not path.exists():
        from pegboard_medical.phantoms import write_phantoms

        cases = TINY_CASES if data.tiny else data.cases
        write_phantoms(path, cases=cases, seed=PHANTOM_SEED, tiny=data.tiny, progress=progress)
    return [path]


def read_from(data: VolumeData) -> list[Path]:
    """Return what the splits of a user's own data are read from.

    Returns:
        The folder or zip; of a table also every volume and mask that it names.

    Raises:
        DataError: There is nothing where the settings say.
    """
    if data.path is None or not data.path.exists():
        # Not the path itself: people name folders after patients.
        raise DataError(
            "there are no volumes", where="data.path", remedy="correct it, or remove it"
        )
    if data.path.suffix.lower() not in TABLES:
        return [data.path]
    cases = read_cases(data)
    named = (file for case in cases for file in (*case.files, case.mask) if file is not None)
    return [data.path, *dict.fromkeys(named)]


def located(data: VolumeData) -> VolumeData:
    """Return the settings with the generated data's path where the user gave none."""
    if data.path is not None:
        return data
    return data.model_copy(update={"path": source(data)})


def splits_of(data: VolumeData) -> Mapping[Split, list[Case]]:
    """Return the cases of each split that have a mask."""
    return assign([case for case in read_cases(located(data)) if case.mask is not None], data)


def check(settings: SegmentationSettings) -> list[Finding]:
    """See `checks.py`."""
    from pegboard_medical import checks

    data = located(settings.data)
    try:
        cases = read_cases(data)
    except DataError as error:
        return [finding_of(error)]
    masked = [case for case in cases if case.mask is not None]
    return checks.check(data, cases, assign(masked, data))


# --- Samples --------------------------------------------------------------------------------------


class VolumeDataset(Dataset[Sample]):
    """Whole cases, turned to the order that models see; `augment` cuts patches out of them.

    Args:
        cases: Which ones.
        settings: Say the modality, the classes, and how often each comes up in an epoch.
    """

    def __init__(self, cases: Sequence[Case], settings: SegmentationSettings) -> None:
        self.cases = list(cases)
        self.modality, self.classes = settings.data.modality, settings.data.classes
        self.patches = settings.model.patches
        self._kept: dict[int, Sample] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self.cases)

    def epoch_indices(self, epoch: int, seed: int) -> Array:
        """Return every case as often as patches are taken of it."""
        return np.repeat(np.arange(len(self.cases)), self.patches)

    def __getitem__(self, index: int) -> Sample:
        """Return a case: `image` float32 (D, H, W), `spacing` (3,) mm and its targets."""
        if index in self._kept:
            return self._kept[index]
        sample = self._read(self.cases[index])
        size = sample.inputs["image"].nbytes + sample.targets["mask"].nbytes
        if self._bytes + size <= CACHE_BYTES:
            self._kept[index] = sample
            self._bytes += size
        return sample

    def _read(self, case: Case) -> Sample:
        volume = read_case(case)
        turned = oriented(volume)
        image = np.ascontiguousarray(turned.voxels, dtype=np.float32)
        mask = np.zeros(volume.voxels.shape, dtype=np.uint8)
        if case.mask is not None:
            mask = read_mask(case, volume, self.classes)
        scale = scale_of(image, self.modality)
        numbers = [np.nan] * 4
        if scale is not None:
            numbers = [scale.low, scale.high, scale.mean, scale.deviation]
        return Sample(
            inputs={"image": image, "spacing": np.array(turned.spacing, dtype=np.float32)},
            targets={
                "mask": np.ascontiguousarray(orientation_of(volume.affine).apply(mask)),
                "has_mask": np.float32(case.mask is not None),
                "scale": np.array(numbers, dtype=np.float32),
                "patient": case.patient or case.key,
            },
            key=case.key,
        )


def load(settings: SegmentationSettings, split: Split) -> VolumeDataset:
    """Read the cases of a split.

    Raises:
        DataError: It has none.
    """
    cases = splits_of(settings.data)[split]
    if not cases:
        raise DataError(
            f"the {split} split has no case with a mask",
            where="data",
            remedy="outline more cases, or change the shares of the splits",
        )
    return VolumeDataset(cases, settings)
