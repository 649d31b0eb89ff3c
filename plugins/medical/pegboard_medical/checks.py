"""Look at the volumes before anything is trained on them: what would spoil a model, or flatter it.

Every volume and mask is read once. Findings name cases by their keys, never by a file or a patient;
`cases.csv` in the data's folder says which file a key stands for.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pegboard.errors import DataError
from pegboard.findings import copies_across, counted, finding_of, first_few, separated
from pegboard.records import Finding, Split
from pegboard_medical import dicom, sources
from pegboard_medical.cases import Case
from pegboard_medical.privacy import pseudonym
from pegboard_medical.settings import SegmentationData, VolumeData
from pegboard_medical.volumes import Spacing

Splits = Mapping[Split, Sequence[Case]]

NAMED = 3
"""Cases that a finding names; of the others it says how many there are."""
FEWEST = 5
"""Patients below which a split teaches or measures little."""
AIR = -200.0
"""Hounsfield units that every CT of a body goes below somewhere."""


@dataclass(frozen=True, kw_only=True)
class _Look:
    """What one look at a case's files showed."""

    case: Case
    geometry: tuple[Finding, ...] = ()
    """What is wrong with the place of its slices."""
    modality: str = ""
    problem: str = ""
    """Why the image cannot be used."""
    shape: tuple[int, ...] = ()
    spacing: Spacing = (0.0, 0.0, 0.0)
    low: float = 0.0
    high: float = 0.0
    digest: str = ""
    """Equal for equal voxels."""
    mask_problem: str = ""
    """Why the mask cannot be used."""
    labels: tuple[int, ...] = ()
    """Numbers in the mask, without the background."""

    @property
    def is_sound(self) -> bool:
        return not self.problem and all(one.level != "error" for one in self.geometry)


def check(data: VolumeData, cases: Sequence[Case], splits: Splits) -> list[Finding]:
    """Return what is noticed in the data, the errors first.

    Args:
        data: The settings; `data.path` says where the volumes are.
        cases: What `read_cases` gave.
        splits: What `splits.assign` made of those that are used.
    """
    classes = data.classes if isinstance(data, SegmentationData) else ()
    looks = [_look(case, classes) for case in cases]
    findings = [
        *_check_survey(data),
        *_check_geometry(looks),
        *_check_images(looks),
        *_check_modalities(looks, data),
        *_check_masks(looks),
        *(_check_labels(looks, splits, classes) if classes else ()),
        *_check_splits(cases, splits),
        *_check_copies(looks, splits),
        *_note_counts(looks, splits),
    ]
    return sorted(findings, key=lambda found: ("error", "warning", "note").index(found.level))


# --- One look at each case ------------------------------------------------------------------------


def _look(case: Case, classes: Sequence[str]) -> _Look:
    geometry: tuple[Finding, ...] = ()
    try:
        if case.kind == "dicom":
            geometry = _geometry(case)
        volume = sources.read_case(case)
    except DataError as error:
        return _Look(case=case, geometry=geometry, problem=error.what)
    voxels = volume.voxels
    if not np.isfinite(voxels).all():
        return _Look(case=case, geometry=geometry, problem="some voxels are not finite")
    mask_problem = ""
    labels: tuple[int, ...] = ()
    if case.mask is not None:
        try:
            mask = sources.read_mask(case, volume, classes)
            labels = tuple(
                int(label) for label in np.flatnonzero(np.bincount(mask.ravel())[1:]) + 1
            )
        except DataError as error:
            mask_problem = error.what
    return _Look(
        case=case,
        geometry=geometry,
        modality=volume.modality,
        shape=voxels.shape,
        spacing=volume.spacing,
        low=float(voxels.min()),
        high=float(voxels.max()),
        digest=hashlib.sha256(voxels.tobytes()).hexdigest(),
        mask_problem=mask_problem,
        labels=labels,
    )


def _geometry(case: Case) -> tuple[Finding, ...]:
    series = dicom.group_series(case.files)
    return tuple(dicom.series_findings(series[0], case.key)) if series else ()


# --- Words ----------------------------------------------------------------------------------------


def _keys(looks: Iterable[_Look]) -> str:
    return first_few(look.case.key for look in looks)


def _by_words(pairs: Iterable[tuple[str, _Look]]) -> Iterator[tuple[str, list[_Look]]]:
    """Group looks by what is said of them, whatever the numbers in it."""
    groups: dict[str, list[tuple[str, _Look]]] = defaultdict(list)
    for words, look in pairs:
        groups[re.sub(r"[\d.,]+", "", words)].append((words, look))
    for group in groups.values():
        words = group[0][0]
        if len({said for said, _ in group}) > 1:
            words += f" (in {group[0][1].case.key}; others are alike)"
        yield words, [look for _, look in group]


def _patients(cases: Iterable[Case]) -> int:
    return len({case.patient or case.key for case in cases})


# --- Files ----------------------------------------------------------------------------------------


def _check_survey(data: VolumeData) -> Iterator[Finding]:
    """Say what became no case."""
    try:
        found = sources.survey(data)
    except DataError as error:
        yield finding_of(error)
        return
    if found.unreadable:
        yield Finding(
            level="error",
            what=f"{counted(len(found.unreadable), 'DICOM file')} cannot be read",
            where=first_few(sources.file_key(path, data.folder) for path in found.unreadable),
            remedy=f"replace them, or take them out of the data; {sources.LISTED} says their paths",
        )
    if found.damaged_tables:
        yield Finding(
            level="error",
            what=f"{counted(len(found.damaged_tables), 'table')} beside the volumes damaged",
            where=first_few(sources.file_key(path, data.folder) for path in found.damaged_tables),
            remedy=f"replace them, or take them out; {sources.LISTED} says their paths",
        )
    yield from _check_series(found, data)
    if found.stray_masks:
        yield Finding(
            level="warning",
            what=f"{counted(len(found.stray_masks), 'mask')} without an image",
            where=first_few(sources.file_key(path, data.folder) for path in found.stray_masks),
            remedy="name each like its image or its SeriesInstanceUID; "
            f"{sources.LISTED} says their paths",
        )
    if found.further_masks:
        yield Finding(
            level="warning",
            what=f"{counted(len(found.further_masks), 'DICOM-SEG')} of a series that has a mask "
            "already: not read",
            where=first_few(sources.file_key(path, data.folder) for path in found.further_masks),
            remedy="keep one for each series",
        )
    if found.channels:
        yield Finding(
            level="warning",
            what=f"{counted(found.channels, 'image')} of further channels: not read",
            where="names ending in _0001 and further",
            remedy="put the channel that is to be used into _0000",
        )
    if found.unnamed:
        yield Finding(
            level="warning",
            what=f"data.patient_pattern finds no patient for {counted(found.unnamed, 'case')}",
            where="data.patient_pattern",
            remedy="mend the pattern; each of these counts as a patient of its own",
        )


def _check_series(found: sources.Survey, data: VolumeData) -> Iterator[Finding]:
    volumes = [series for series in found.series if series.is_volume]
    other = [series for series in volumes if series.modality != data.modality]
    if other:
        kinds = Counter(series.modality or "no modality" for series in other)
        listed = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
        where = first_few(pseudonym(series.uid, data.folder) for series in other)
        if len(other) == len(volumes):
            yield Finding(
                level="error",
                what=f"wrong modality: no series is {data.modality}, there are {listed}",
                where=where,
                remedy="set data.modality to what the series are",
            )
        else:
            yield Finding(
                level="warning",
                what=f"wrong modality: {counted(len(other), 'series')} not {data.modality}, not "
                f"read: {listed}",
                where=where,
                remedy="take them out of the data, if they are not meant",
            )
    skipped = [series for series in found.series if not series.is_volume]
    if skipped:
        yield Finding(
            level="note",
            what=f"{counted(len(skipped), 'series')} of localisers or screenshots: not read",
            where=first_few(pseudonym(series.uid, data.folder) for series in skipped),
            remedy="none is needed",
        )
    if found.folders:
        yield Finding(
            level="note",
            what=f"mixed series in {counted(found.folders, 'folder')}; they are told apart by "
            "their SeriesInstanceUID",
            where="data.path",
            remedy="none is needed",
        )


def _check_geometry(looks: Sequence[_Look]) -> Iterator[Finding]:
    """Pass on what is wrong with single series; what many have in common is said once."""
    groups: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for look in looks:
        for finding in look.geometry:
            groups[finding.level, re.sub(r"[^a-z]+", "", finding.what[:40])].append(finding)
    for findings in groups.values():
        yield from findings[:NAMED]
        rest = findings[NAMED:]
        if rest:
            yield Finding(
                level=rest[0].level,
                what=f"{counted(len(rest), 'series')} more as the one before: {rest[0].what}",
                where=first_few(finding.where for finding in rest),
                remedy=rest[0].remedy,
            )


def _check_images(looks: Sequence[_Look]) -> Iterator[Finding]:
    broken = [
        (look.problem, look)
        for look in looks
        # Else its geometry says it already.
        if look.problem and all(one.level != "error" for one in look.geometry)
    ]
    for words, some in _by_words(broken):
        yield Finding(
            level="error",
            what=f"{counted(len(some), 'image')} cannot be used: {words}",
            where=_keys(some),
            remedy=f"replace them, or take them out; {sources.LISTED} says their paths",
        )
    flat = [look for look in looks if look.is_sound and look.low == look.high]
    if flat:
        yield Finding(
            level="warning",
            what=f"{counted(len(flat), 'image')} with one value everywhere",
            where=_keys(flat),
            remedy="replace them, or take them out",
        )


def _check_modalities(looks: Sequence[_Look], data: VolumeData) -> Iterator[Finding]:
    sound = [look for look in looks if look.is_sound]
    other = [look for look in sound if look.modality and look.modality != data.modality]
    if other:  # A table may list any series.
        kinds = ", ".join(sorted({look.modality for look in other}))
        yield Finding(
            level="error",
            what=f"wrong modality: {counted(len(other), 'case')} not {data.modality} but {kinds}",
            where=_keys(other),
            remedy="take them out of the table, or set data.modality",
        )
    silent = [look for look in sound if not look.modality]
    strange = [look for look in silent if (look.low >= AIR) == (data.modality == "ct")]
    # Single crops of a CT may hold no air, and single MR may be scaled to have negative numbers.
    if strange and len(strange) > len(silent) / 2 and (data.modality == "ct" or _like_ct(strange)):
        words = "no voxel is below" if data.modality == "ct" else "voxels are below"
        yield Finding(
            level="warning",
            what=f"{counted(len(strange), 'image')} not like {data.modality}: {words} {AIR:g}",
            where=_keys(strange),
            remedy="set data.modality to what they are, or store Hounsfield units",
        )


def _like_ct(looks: Sequence[_Look]) -> bool:
    return bool(np.median([look.low for look in looks]) < -900)


# --- Masks ----------------------------------------------------------------------------------------


def _check_masks(looks: Sequence[_Look]) -> Iterator[Finding]:
    broken = [(look.mask_problem, look) for look in looks if look.mask_problem]
    for words, some in _by_words(broken):
        yield Finding(
            level="error",
            what=f"{counted(len(some), 'mask')} cannot be used: {words}",
            where=_keys(some),
            remedy=f"replace them, or take them out; {sources.LISTED} says their paths",
        )


def _check_labels(
    looks: Sequence[_Look], splits: Splits, classes: Sequence[str]
) -> Iterator[Finding]:
    masked = [look for look in looks if look.case.mask and look.is_sound and not look.mask_problem]
    unknown = [look for look in masked if max(look.labels, default=0) > len(classes)]
    if unknown:
        values = sorted({n for look in unknown for n in look.labels if n > len(classes)})
        yield Finding(
            level="error",
            what=f"{counted(len(unknown), 'mask')} with unknown values "
            f"{', '.join(map(str, values[:10]))}: data.classes has {len(classes)}",
            where=_keys(unknown),
            remedy="name every structure in data.classes, or take the values out of the masks",
        )
    empty = [look for look in masked if not look.labels]
    if empty:
        yield Finding(
            level="error" if len(empty) == len(masked) else "warning",
            what=f"{counted(len(empty), 'empty mask')}: nothing is outlined",
            where=_keys(empty),
            remedy="outline the structures; keep an empty mask only where there are none",
        )
    if not any(look.case.mask for look in looks):
        yield Finding(
            level="error",
            what=f"none of {counted(len(looks), 'case')} has a mask",
            where="data.path",
            remedy="put masks where the layout has them: beside NIfTI images in labels/, beside "
            "DICOM series as <SeriesInstanceUID>.nii.gz or DICOM-SEG",
        )
        return
    labels = {look.case.key: look.labels for look in masked}
    levels: tuple[tuple[Split, Literal["error", "warning"]], ...] = (
        ("train", "error"),  # Would never be learnt.
        ("test", "warning"),
    )
    for split, level in levels:
        present = {n for case in splits.get(split, ()) for n in labels.get(case.key, ())}
        absent = [name for n, name in enumerate(classes, 1) if n not in present]
        if absent and splits.get(split) and len(empty) < len(masked):
            yield Finding(
                level=level,
                what=f"no voxel of {', '.join(repr(name) for name in absent)} in the masks of the "
                f"{split} split",
                where=f"{split} split",
                remedy="outline it in more cases, or take it out of data.classes",
            )
    bare = [look for look in looks if look.case.mask is None]
    if bare:
        yield Finding(
            level="note",
            what=f"{counted(len(bare), 'case')} without a mask: not used",
            where=_keys(bare),
            remedy="outline them, if they should train",
        )


# --- Splits ---------------------------------------------------------------------------------------


def _check_splits(cases: Sequence[Case], splits: Splits) -> Iterator[Finding]:
    used = [case for some in splits.values() for case in some]
    if used:
        for split in splits:
            if not splits[split]:
                yield Finding(
                    level="error",
                    what=f"there is no case in the {split} split",
                    where=f"{split} split",
                    remedy="add cases of more patients, or mend the given splits or the shares of "
                    "[data]",
                )
    few = {split: _patients(some) for split, some in splits.items()}
    few = {split: count for split, count in few.items() if 0 < count < FEWEST}
    if few:
        yield Finding(
            level="warning",
            what="too few cases: "
            + ", ".join(
                f"{counted(count, 'patient')} in the {split} split" for split, count in few.items()
            ),
            where=", ".join(f"{split} split" for split in few),
            remedy="collect more; what is learnt or measured on so few says little",
        )
    apart = separated((case.patient, case.split) for case in cases)
    if apart:
        yield Finding(
            level="warning",
            what=f"the given splits separate the cases of {counted(len(apart), 'patient')}; they "
            "are kept in the one that measures",
            where=first_few(apart),
            remedy="give all cases of a patient one split",
        )


def _check_copies(looks: Sequence[_Look], splits: Splits) -> Iterator[Finding]:
    """Find volumes that are there twice, on both sides of a split: the leak that flatters most."""
    places = {case.key: split for split, some in splits.items() for case in some}
    digests = (
        (look.digest, look.case.key) for look in looks if look.digest and look.low != look.high
    )
    across = copies_across(digests, places)
    if across:
        yield Finding(
            level="warning",
            what=f"{counted(len(across), 'image')} in more than one split",
            where=first_few(across),
            remedy="keep one of each, or give both the same patient: the test flatters the model",
        )


def _note_counts(looks: Sequence[_Look], splits: Splits) -> Iterator[Finding]:
    sound = [look for look in looks if look.is_sound]
    if not sound:
        return
    spacing = np.array([look.spacing for look in sound])
    shape = np.array([look.shape for look in sound])
    words = " x ".join(
        f"{low:.3g} to {high:.3g}" if high - low > 0.005 else f"{low:.3g}"
        for low, high in zip(spacing.min(axis=0), spacing.max(axis=0), strict=True)
    )
    sizes = " x ".join(
        f"{low} to {high}" if low != high else f"{low}"
        for low, high in zip(shape.min(axis=0), shape.max(axis=0), strict=True)
    )
    patients = _patients(look.case for look in looks)
    yield Finding(
        level="note",
        what=f"{counted(len(looks), 'case')} of {counted(patients, 'patient')}, {sizes} voxels of "
        f"{words} mm; " + ", ".join(f"{split} {len(some):,}" for split, some in splits.items()),
        where="data.path",
        remedy="none is needed",
    )
