"""Look at the data before anything is trained on it: what would spoil a model, or flatter it.

Every picture is decoded once. Findings are few: each names a kind of trouble with its count, a few
of the places and the remedy.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from pegboard.errors import DataError
from pegboard.findings import counted, first_few
from pegboard.records import Finding, Split
from pegboard_defect.duplicates import Fingerprint, Pair, compare, fingerprint
from pegboard_defect.images import read_image, region_of, to_array
from pegboard_defect.parts import Part
from pegboard_defect.settings import DefectData
from pegboard_defect.splits import unlabelled

Task = Literal["classify", "segment", "anomaly"]
Splits = Mapping[Split, Sequence[Part]]


STRETCH = 1.25
"""Factor from which on a picture's shape differs much from that of `data.size`."""

GOOD_WORDS = ("good", "ok", "io", "normal", "pass", "passed", "no_defect", "defect_free")
"""What people call good parts, where the name in `data.classes` is not in the data."""

_KINDS = {
    "1": "grey",
    "L": "grey",
    "I;16": "16 bit",
    "I;16L": "16 bit",
    "I;16B": "16 bit",
    "I": "16 bit",
    "F": "float",
    "LA": "alpha",
    "PA": "alpha",
    "La": "alpha",
    "RGBA": "alpha",
    "RGBa": "alpha",
}


@dataclass(frozen=True, kw_only=True)
class _Look:
    """What one look at a part's files showed."""

    part: Part
    unreadable: bool = False
    size: tuple[int, int] = (0, 0)
    """Width and height."""
    kind: str = ""
    """`grey`, `colour`, `alpha`, `16 bit` or `float`."""
    fingerprint: Fingerprint | None = None
    mask_unreadable: bool = False
    mask_size: tuple[int, int] | None = None
    marked: bool | None = None
    """Whether the mask shows a defect; None without a mask picture."""


def check(
    data: DefectData, path: Path, parts: Sequence[Part], splits: Splits, task: Task
) -> list[Finding]:
    """Return what is noticed in the data, the errors first.

    Args:
        data: The settings.
        path: What the parts were read from.
        parts: All parts, with the labels that count.
        splits: What `splits.assign` made of them.
        task: What the model is asked for.
    """
    looks = [_look(part) for part in parts]
    findings = [
        *_check_files(looks),
        *_check_masks(looks, data),
        *_check_labels(data, path, parts, splits, task),
        *_check_region(data),
        *_check_tiles(data, splits, task),
        *_check_parts(data, parts),
        *_check_duplicates(looks, splits, data.duplicates),
        *_check_pictures(looks, data),
        *_note_counts(data, path, parts, splits, looks),
    ]
    return sorted(findings, key=lambda found: ("error", "warning", "note").index(found.level))


# --- One look at each picture ---------------------------------------------------------------------


def _look(part: Part) -> _Look:
    try:
        image = read_image(part.image)
    except DataError:
        return _Look(part=part, unreadable=True)
    mask_size, marked, broken = _look_at_mask(part)
    return _Look(
        part=part,
        size=image.size,
        kind=_kind_of(image),
        fingerprint=fingerprint(part.key, image),
        mask_unreadable=broken,
        mask_size=mask_size,
        marked=marked,
    )


def _look_at_mask(part: Part) -> tuple[tuple[int, int] | None, bool | None, bool]:
    if part.mask is None:
        return None, None, False
    try:
        mask = read_image(part.mask)
    except DataError:
        return None, None, True
    return mask.size, bool(to_array(mask, "grey").any()), False


def _kind_of(image: Image.Image) -> str:
    return "alpha" if "transparency" in image.info else _KINDS.get(image.mode, "colour")


# --- Words ----------------------------------------------------------------------------------------


def _keys(looks: Iterable[_Look]) -> str:
    return first_few(look.part.key for look in looks)


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _list(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


# --- Files ----------------------------------------------------------------------------------------


def _check_files(looks: Sequence[_Look]) -> Iterator[Finding]:
    broken = [look for look in looks if look.unreadable]
    if broken:
        yield Finding(
            level="error",
            what=f"{counted(len(broken), 'picture')} cannot be read",
            where=_keys(broken),
            remedy="replace them, or take them out of the data",
        )
    masks = [look for look in looks if look.mask_unreadable]
    if masks:
        yield Finding(
            level="error",
            what=f"{counted(len(masks), 'mask')} cannot be read",
            where=_keys(masks),
            remedy="replace them, or take them out of the data",
        )


def _check_masks(looks: Sequence[_Look], data: DefectData) -> Iterator[Finding]:
    other = [look for look in looks if _mask_differs(look)]
    if other:
        yield Finding(
            level="error",
            what=f"{counted(len(other), 'mask')} of another size than the picture",
            where=_keys(other),
            remedy="give each mask or outline in the pixels of its picture",
        )
    good = data.classes[0]
    contrary = [
        look
        for look in looks
        if look.marked is not None
        and look.part.label is not None
        and look.marked == (look.part.label == good)
    ]
    if contrary:
        yield Finding(
            level="warning",
            what=f"{counted(len(contrary), 'mask')} contrary to the label: a good part's is not "
            "black, or a defective part's is",
            where=_keys(contrary),
            remedy="mend the mask or the label",
        )


def _mask_differs(look: _Look) -> bool:
    if look.mask_size is not None:
        return look.mask_size != look.size
    if not look.part.polygons or look.unreadable:
        return False
    corners = np.array([corner for ring in look.part.polygons for corner in ring])
    # Tools round outward, and boxes of defects at the edge reach over it a little.
    slack = 1.0 + 0.02 * np.array(look.size)
    return bool((corners < -slack).any() or (corners > look.size + slack).any())


# --- Labels ---------------------------------------------------------------------------------------


def _check_labels(
    data: DefectData, path: Path, parts: Sequence[Part], splits: Splits, task: Task
) -> Iterator[Finding]:
    counts = Counter(part.label for part in parts if part.label is not None)
    if not counts:
        yield Finding(
            level="error",
            what=f"none of {counted(len(parts), 'picture')} has a label",
            where=str(path),
            remedy="give labels, or label some with 'pegboard review'",
        )
        return
    yield from _check_classes(data, parts, counts)
    yield from _check_good(data, path, counts)
    yield from _check_probabilities(data, parts)
    if set(counts) <= set(data.classes):  # Else classes are missing because of their names.
        yield from _check_splits(data, splits, task)
    if task == "segment":
        yield from _check_segmented(data, splits)
    few = {name: counts[name] for name in data.classes if 0 < counts[name] < data.fewest}
    if few:
        yield Finding(
            level="warning",
            what=f"fewer than {data.fewest} pictures of " + _list(few),
            where=", ".join(f"{name}: {count}" for name, count in few.items()),
            remedy="collect more; what is measured on so few says little",
        )


def _check_classes(
    data: DefectData, parts: Sequence[Part], counts: Mapping[str, int]
) -> Iterator[Finding]:
    unknown = sorted(set(counts) - set(data.classes))
    if unknown:
        strange = [part.key for part in parts if part.label in unknown]
        line = json.dumps(_suggest_classes(data, counts), ensure_ascii=False)
        yield Finding(
            level="error",
            what=f"{counted(len(strange), 'picture')} of classes that are not in data.classes: "
            + first_few(f"'{name}'" for name in unknown),
            where=first_few(strange),
            remedy=f"write under [data], the good one first: classes = {line}; or set merge = true "
            f"to count them as '{data.classes[-1]}'",
        )


def _suggest_classes(data: DefectData, counts: Mapping[str, int]) -> list[str]:
    """Return the classes that the data has, the good one first and the listed ones in order."""
    good = data.classes[0]
    if good not in counts:
        alike = (name for name in sorted(counts) if name.lower().replace(" ", "_") in GOOD_WORDS)
        good = next(alike, good)
    listed = [name for name in data.classes if name in counts]
    return list(dict.fromkeys([good, *listed, *sorted(counts)]))


def _check_good(data: DefectData, path: Path, counts: Mapping[str, int]) -> Iterator[Finding]:
    if data.classes[0] not in counts:
        yield Finding(
            level="error",
            what=f"there is no good part: no picture of the class '{data.classes[0]}'",
            where=f"{path}, which has {first_few(sorted(counts))}",
            remedy="add good parts, or name their class first in data.classes",
        )


def _check_probabilities(data: DefectData, parts: Sequence[Part]) -> Iterator[Finding]:
    contrary = [
        part.key
        for part in parts
        if part.probability is not None
        and part.label is not None
        and (part.probability >= 0.5) == (part.label == data.classes[0])
    ]
    if contrary:
        yield Finding(
            level="error",
            what=f"{counted(len(contrary), 'label')} contrary to the probability",
            where=first_few(contrary),
            remedy="mend the label or the probability; from 0.5 on a part is defective",
        )


def _check_splits(data: DefectData, splits: Splits, task: Task) -> Iterator[Finding]:
    good, *defects = data.classes
    empty = [split for split in splits if not splits[split]]
    for split in empty:
        yield Finding(
            level="error",
            what=f"there is no picture in the {split} split",
            where=f"{split} split",
            remedy="add pictures, or mend the given splits or data.validation_share and test_share",
        )
    for split in ("train", "test"):
        present = {part.label for part in splits.get(split, ())}
        missing = [name for name in data.classes if name not in present]
        if task == "anomaly":
            # It learns good parts alone, and is measured on defects of any class.
            missing = [good] if good in missing else []
            if split == "test" and not present.intersection(defects):
                missing.append("any defect")
        if missing and split not in empty:
            yield Finding(
                level="error",
                what=f"no picture of {_list(missing)} in the {split} split",
                where=f"{split} split",
                remedy="add pictures of it, mend the given splits, or take it out of data.classes",
            )
    if task != "anomaly" and splits.get("validation"):
        present = {part.label for part in splits["validation"]}
        if good not in present or not present.intersection(defects):
            yield Finding(
                level="warning",
                what="not both good and defective parts in the validation split",
                where="validation split",
                remedy="add some: the threshold is chosen from them",
            )


def _check_segmented(data: DefectData, splits: Splits) -> Iterator[Finding]:
    good = data.classes[0]
    for split in ("train", "test"):
        defects = [part for part in splits.get(split, ()) if part.label != good]
        if not any(part.has_mask for part in defects):
            yield Finding(
                level="error",
                what=f"no defect in the {split} split has a mask, which the task 'segment' needs",
                where=f"{split} split",
                remedy="draw masks for some defects, or set model.task to 'classify'",
            )


# --- Region and tiles -----------------------------------------------------------------------------


def _check_region(data: DefectData) -> Iterator[Finding]:
    try:
        region_of(data)
    except DataError as error:
        yield Finding(
            level="error", what=f"data.region: {error.what}", where=error.where, remedy=error.remedy
        )


def _check_tiles(data: DefectData, splits: Splits, task: Task) -> Iterator[Finding]:
    """Warn of defects that nobody has outlined: a tile beside one is taken for defective, too."""
    if not data.tile or task == "anomaly":
        return
    good = data.classes[0]
    bare = [part for part in splits.get("train", ()) if part.label != good and not part.has_mask]
    if bare:
        yield Finding(
            level="warning",
            what=f"{counted(len(bare), 'defective picture')} without a mask to cut tiles from: "
            "a tile without the defect counts as defective",
            where=first_few(part.key for part in bare),
            remedy="draw masks, or set data.tile = 0",
        )


# --- Parts and duplicates -------------------------------------------------------------------------


def _check_parts(data: DefectData, parts: Sequence[Part]) -> Iterator[Finding]:
    given: dict[str, set[Split]] = defaultdict(set)
    for part in parts:
        if part.part and part.split:
            given[part.part].add(part.split)
    apart = sorted(name for name, splits in given.items() if len(splits) > 1)
    if apart:
        yield Finding(
            level="warning",
            what=f"the given splits separate the pictures of {counted(len(apart), 'part')}",
            where=first_few(apart),
            remedy="keep all pictures of a part in one split; else the test flatters the model",
        )
    nameless = [part.key for part in parts if not part.part]
    if data.part_pattern and nameless:
        yield Finding(
            level="warning",
            what=f"data.part_pattern finds no part for {counted(len(nameless), 'picture')}",
            where=first_few(nameless),
            remedy="mend the pattern; each of these counts as a part of its own",
        )


def _check_duplicates(looks: Sequence[_Look], splits: Splits, near: float) -> Iterator[Finding]:
    prints = [look.fingerprint for look in looks if look.fingerprint is not None]
    pairs = compare(prints, near)
    labels = {look.part.key: look.part.label for look in looks}
    places = {part.key: split for split, parts in splits.items() for part in parts}
    yield from _check_contradictions([pair for pair in pairs if pair.exact], labels)
    for exact, words in ((True, "equal pictures"), (False, "nearly equal pictures")):
        across = [
            f"{pair.one} ({places[pair.one]}) and {pair.other} ({places[pair.other]})"
            for pair in pairs
            if pair.exact == exact
            and pair.one in places
            and pair.other in places
            and places[pair.one] != places[pair.other]
        ]
        if across:
            yield Finding(
                level="warning",
                what=f"{counted(len(across), 'pair')} of {words} in different splits",
                where=first_few(across),
                remedy="keep one of each, or give both the same part: the test flatters the model",
            )


def _check_contradictions(
    pairs: Sequence[Pair], labels: Mapping[str, str | None]
) -> Iterator[Finding]:
    groups: dict[str, list[str]] = defaultdict(list)
    for pair in pairs:
        groups[pair.one].append(pair.other)
    contrary = []
    for first, others in groups.items():
        said = {labels[key]: key for key in (first, *others) if labels[key] is not None}
        if len(said) > 1:
            contrary.append(" and ".join(f"{key} ({label})" for label, key in said.items()))
    if contrary:
        yield Finding(
            level="error",
            what=f"{counted(len(contrary), 'picture')} more than once in the data, with different "
            "labels",
            where=first_few(contrary),
            remedy="keep one of each, with the right label",
        )


# --- Pictures -------------------------------------------------------------------------------------


def _check_pictures(looks: Sequence[_Look], data: DefectData) -> Iterator[Finding]:
    seen = [look for look in looks if not look.unreadable]
    kinds: dict[str, list[_Look]] = defaultdict(list)
    for look in seen:
        kinds[look.kind].append(look)
    if len(kinds) > 1:
        ordered = sorted(kinds.items(), key=lambda kind: -len(kind[1]))
        yield Finding(
            level="warning",
            what="mixed colour modes: "
            + ", ".join(f"{kind} {len(some):,}" for kind, some in ordered),
            where=_keys(look for _, some in ordered[1:] for look in some),
            remedy="save all in one mode: a model may learn the mode instead of the defect",
        )
    height, width = data.size
    stretched = [look for look in seen if _stretch(look.size, (width, height)) >= STRETCH]
    if stretched:
        yield Finding(
            level="warning",
            what=f"{counted(len(stretched), 'picture')} of another shape than data.size "
            f"({_size((width, height))}), such as {_size(stretched[0].size)}",
            where=_keys(stretched),
            remedy="set data.size (height, width) to the shape of the pictures; they get squeezed",
        )
    small = [look for look in seen if look.size[0] < width or look.size[1] < height]
    if small:
        yield Finding(
            level="warning",
            what=f"{counted(len(small), 'picture')} smaller than data.size "
            f"({_size((width, height))}), such as {_size(small[0].size)}",
            where=_keys(small),
            remedy="lower data.size: what is enlarged costs time and shows nothing more",
        )


def _stretch(size: tuple[int, int], wanted: tuple[int, int]) -> float:
    ratio = (size[0] * wanted[1]) / (size[1] * wanted[0])
    return max(ratio, 1 / ratio)


# --- Notes ----------------------------------------------------------------------------------------


def _note_counts(
    data: DefectData,
    path: Path,
    parts: Sequence[Part],
    splits: Splits,
    looks: Sequence[_Look],
) -> Iterator[Finding]:
    for split, some in splits.items():
        counts = Counter(part.label for part in some)
        names = dict.fromkeys([*data.classes, *sorted(str(name) for name in counts)])
        yield _note(
            counted(len(some), "picture")
            + ": "
            + ", ".join(f"{name} {counts[name]:,}" for name in names),
            f"{split} split",
        )
    unknown = unlabelled(parts)
    if unknown:
        yield _note(
            f"{counted(len(unknown), 'picture')} without a label",
            first_few(part.key for part in unknown),
            remedy="they are left out; 'pegboard review' takes labels",
        )
    sizes = Counter(look.size for look in looks if not look.unreadable)
    if sizes:
        yield _note(_describe_sizes(sizes), str(path))


def _describe_sizes(sizes: Mapping[tuple[int, int], int]) -> str:
    total = sum(sizes.values())
    commonest = max(sizes, key=lambda size: sizes[size])
    if len(sizes) == 1:
        return f"{counted(total, 'picture')} of {_size(commonest)}"
    smallest, largest = min(sizes, key=_pixels), max(sizes, key=_pixels)
    return (
        f"{counted(total, 'picture')} of {len(sizes):,} sizes from {_size(smallest)} to "
        f"{_size(largest)}, most often {_size(commonest)}"
    )


def _pixels(size: tuple[int, int]) -> int:
    return size[0] * size[1]


def _note(what: str, where: str, remedy: str = "nothing to do") -> Finding:
    return Finding(level="note", what=what, where=where, remedy=remedy)
