"""What the trade does without learning a network: thresholds in a CT, an atlas elsewhere.

K structures, volumes (D, H, W) turned as models see them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import ClassVar, Protocol

import numpy as np
from scipy import ndimage

from pegboard.records import Array, Baseline, Predictor, Sample
from pegboard_medical.masks import components
from pegboard_medical.settings import SegmentationSettings
from pegboard_medical.surfaces import bounding_box
from pegboard_medical.volumes import Spacing, resize

THRESHOLDS = (-600.0, -500.0, -400.0, -300.0, -200.0, -100.0, 0.0)
"""Hounsfield units that a lesion may begin at."""
MOST_CASES = 20
"""Training cases that the threshold is chosen on, evenly taken."""
ROOM = 1.5
"""How much smaller and larger than those in training a lesion may be."""
SMALLEST = (0.0, 10.0, 25.0)
"""Percentiles of the training lesions' volumes that the least may be taken from."""
FILLS = (0.0, 0.1, 0.2, 0.3, 0.4)
"""Shares of the ball around it that a lesion may have to fill."""

LUNG = -400.0
"""Hounsfield units below which there is air or lung."""
COARSE = 2.0
"""Millimetres between the voxels that lungs are looked for in."""
CLOSED = 20.0
"""Diameter in mm of what hangs on the wall of a lung and still lies in it."""
LEAST_LUNG = 0.03
"""Share of a volume; with less it is taken for a cut-out that is all of interest."""
LESSER_LUNG = 0.1
"""Of the largest region, in volume: smaller ones are bowel or the air under the table."""

ATLAS_SIDE = 96
"""Longest side of an atlas in voxels."""

IN_SLICE = np.zeros((3, 3, 3), dtype=bool)
"""Voxels of one slice that share an edge or a corner belong together."""
IN_SLICE[1] = True


class Split(Protocol):
    """A map-style dataset of cases."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


def build(settings: SegmentationSettings) -> list[Baseline]:
    """A threshold for lesions in a CT; elsewhere where structures use to lie."""
    count = len(settings.data.classes)
    if settings.data.modality == "ct" and settings.model.lesions:
        return [
            Baseline(
                name="threshold",
                fit=partial(fit_threshold, classes=count),
                description="Connected regions above a threshold inside the lungs, about as large "
                "as training lesions and round enough; threshold, least size and roundness are the "
                f"best of {len(THRESHOLDS)} x {len(SMALLEST)} x {len(FILLS)} by Dice on at most "
                f"{MOST_CASES} training cases.",
            )
        ]
    return [
        Baseline(
            name="atlas",
            fit=partial(fit_atlas, classes=count),
            description="How often each place of a volume belongs to a structure in the training "
            "masks, whatever the image shows.",
        )
    ]


def _outlined(split: Split, most: int | None = None) -> Iterator[Sample]:
    """Yield cases that have a mask, at most so many, evenly taken."""
    chosen = np.arange(len(split))
    if most is not None:
        chosen = np.unique(np.linspace(0, len(split) - 1, min(len(split), most)).round())
    for index in chosen.astype(int).tolist():
        sample = split[index]
        if sample.targets["has_mask"] > 0:
            yield sample


def _spacing(sides: Array) -> Spacing:
    depth, height, width = (float(side) for side in sides)
    return depth, height, width


# --- Threshold ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What is taken for a lesion of one class."""

    threshold: float = -300.0
    """Hounsfield units that it lies above."""
    smallest: float = 0.0
    """Volume in mm3."""
    largest: float = np.inf
    """Volume in mm3."""
    least_fill: float = 0.0
    """Share of the ball around it that it fills."""


@dataclass(frozen=True, kw_only=True)
class Regions:
    """What lies above a threshold in a volume: R connected regions."""

    box: tuple[slice, slice, slice]
    """Where in the volume."""
    numbered: Array
    """They, from 1, in the box."""
    volumes: Array
    """In mm3, (R + 1,); of what is no region 0."""
    fills: Array
    """Share of the ball over its longest side that each fills, (R + 1,)."""

    def kept(self, rule: Rule) -> Array:
        """Return which are taken for lesions, (R + 1,)."""
        fits = (self.volumes >= rule.smallest) & (self.volumes <= rule.largest)
        kept: Array = fits & (self.fills >= rule.least_fill) & (self.volumes > 0)
        return kept


@dataclass(frozen=True, kw_only=True, eq=False)
class ThresholdPredictor:
    """Regions in the place of the deployable."""

    whole: ClassVar[bool] = True
    """It takes volumes as they are, not windows of them."""
    rules: Sequence[Rule]
    """Of each structure."""

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Mark volumes float32 (B, D, H, W) of a `spacing` (B, 3)."""
        found = [
            self._mark(image, _spacing(sides))
            for image, sides in zip(inputs["image"], inputs["spacing"], strict=True)
        ]
        return {"probabilities": np.stack(found)}

    def _mark(self, image: Array, spacing: Spacing) -> Array:
        inside = lungs(image, spacing)
        found = np.zeros((len(self.rules), *image.shape), dtype=np.float32)
        for label, rule in enumerate(self.rules):
            regions = regions_above(image, inside, spacing, rule.threshold)
            # All are sure enough to be marked, the rounder ones surer: vessels are long.
            scores = np.where(regions.kept(rule), 0.51 + 0.48 * regions.fills, 0)
            # A voxel belongs to one structure.
            is_free = ~(found[:label][:, *regions.box] > 0).any(axis=0)
            found[label][regions.box] = scores[regions.numbered] * is_free
        return found


def fit_threshold(train: Split, validation: Split, *, classes: int) -> Predictor:
    """Measure the sizes of training lesions, and choose what finds them best."""
    cases = list(_outlined(train, MOST_CASES))
    insides = [lungs(case.inputs["image"], _spacing(case.inputs["spacing"])) for case in cases]
    return ThresholdPredictor(
        rules=[_fit_rule(cases, insides, label) for label in range(1, classes + 1)]
    )


def _fit_rule(cases: Sequence[Sample], insides: Sequence[Array], label: int) -> Rule:
    sizes = [size for case in cases for size in _sizes(case, label)]
    if not sizes:
        return Rule()
    best, chosen = -1.0, Rule()
    for threshold in THRESHOLDS:
        rules = [
            Rule(
                threshold=threshold,
                smallest=float(np.percentile(sizes, percentile)) / ROOM,
                largest=max(sizes) * ROOM,
                least_fill=fill,
            )
            for percentile, fill in product(SMALLEST, FILLS)
        ]
        dice = np.mean(
            [
                _dice(case, inside, label, rules)
                for case, inside in zip(cases, insides, strict=True)
            ],
            axis=0,
        )
        if dice.max() > best:
            best, chosen = float(dice.max()), rules[int(dice.argmax())]
    return chosen


def _sizes(case: Sample, label: int) -> Array:
    """Return the volumes of a case's lesions in mm3."""
    numbered, _ = components(case.targets["mask"] == label)
    sizes: Array = np.bincount(numbered.ravel())[1:] * float(np.prod(case.inputs["spacing"]))
    return sizes


def _dice(case: Sample, inside: Array, label: int, rules: Sequence[Rule]) -> list[float]:
    """Return the Dice of rules of one threshold on a case."""
    spacing = _spacing(case.inputs["spacing"])
    true = case.targets["mask"] == label
    regions = regions_above(case.inputs["image"], inside, spacing, rules[0].threshold)
    common = np.bincount(
        regions.numbered[true[regions.box]], minlength=len(regions.volumes)
    ) * float(np.prod(spacing))
    there = int(true.sum()) * float(np.prod(spacing))
    dice = []
    for rule in rules:
        kept = regions.kept(rule)
        either = there + regions.volumes[kept].sum()
        dice.append(float(2 * common[kept].sum() / either) if either else 1.0)
    return dice


def regions_above(image: Array, inside: Array, spacing: Spacing, threshold: float) -> Regions:
    """Find the connected regions above a threshold.

    Args:
        image: Hounsfield units (D, H, W).
        inside: Where lesions may be; not empty.
        spacing: In mm.
        threshold: In Hounsfield units.
    """
    box = bounding_box(inside)
    assert box is not None  # `lungs` finds some, or takes all.
    numbered, count = components((image[box] > threshold) & inside[box])
    volumes = np.bincount(numbered.ravel(), minlength=count + 1) * float(np.prod(spacing))
    volumes[0] = 0
    longest = np.ones(count + 1)
    for region, place in enumerate(ndimage.find_objects(numbered), start=1):
        longest[region] = max(
            (at.stop - at.start) * side for at, side in zip(place, spacing, strict=True)
        )
    fills = (volumes / (np.pi / 6 * longest**3)).clip(0, 1)
    return Regions(box=box, numbered=numbered, volumes=volumes, fills=fills)


def lungs(image: Array, spacing: Spacing) -> Array:
    """Return where the lungs are, what lies in them and hangs on their wall included.

    They are the large regions of air that the body encloses in their slices. Of a cut-out, where no
    body is seen, all of it is taken.

    Args:
        image: Hounsfield units (D, H, W).
        spacing: In mm.

    Returns:
        bool (D, H, W).
    """
    steps = [max(1, round(COARSE / side)) for side in spacing]
    coarse = image[:: steps[0], :: steps[1], :: steps[2]]
    air = coarse < LUNG
    numbered, count = components(air & ~_open(air))
    sizes = np.bincount(numbered.ravel(), minlength=count + 1)
    sizes[0] = 0
    kept = (sizes >= LESSER_LUNG * sizes.max()) & (sizes > 0)
    if sizes[kept].sum() < LEAST_LUNG * coarse.size:
        return np.ones(image.shape, dtype=bool)
    filled = ~_open(~_closed(kept[numbered], spacing[1] * steps[1], spacing[2] * steps[2]))
    for axis, step in enumerate(steps):
        filled = np.repeat(filled, step, axis=axis)
    depth, height, width = image.shape
    return np.asarray(filled[:depth, :height, :width])


def _closed(mask: Array, height: float, width: float) -> Array:
    """Fill notches up to `CLOSED` mm wide in the slices of a mask (D, H, W) of such pixels."""
    radius = CLOSED / 2
    # Slices so far apart that none is near another.
    sampling = (10 * radius, height, width)
    # Room for what grows before it shrinks again.
    rows, columns = (int(np.ceil(radius / side)) + 1 for side in (height, width))
    padded = np.pad(mask, ((0, 0), (rows, rows), (columns, columns)))
    grown = ndimage.distance_transform_edt(~padded, sampling=sampling) <= radius
    closed = ndimage.distance_transform_edt(grown, sampling=sampling) > radius
    return np.asarray(closed[:, rows:-rows, columns:-columns] | mask)


def _open(mask: Array) -> Array:
    """Return what of a mask (D, H, W) reaches the edge of its slice."""
    numbered, count = ndimage.label(mask, structure=IN_SLICE)
    reaching = np.zeros(count + 1, dtype=bool)
    reaching[numbered[:, [0, -1], :]] = True
    reaching[numbered[:, :, [0, -1]]] = True
    reaching[0] = False
    there: Array = reaching[numbered]
    return there


# --- Atlas ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class AtlasPredictor:
    """Where structures use to lie, in the place of the deployable."""

    whole: ClassVar[bool] = True
    """It takes volumes as they are, not windows of them."""
    atlas: Array
    """Share of training masks that have a structure at a place, (K, d, h, w)."""

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Stretch the atlas to volumes (B, D, H, W)."""
        depth, height, width = inputs["image"].shape[1:]
        found = np.stack([resize(one, (depth, height, width)) for one in self.atlas])
        return {"probabilities": np.repeat(found[None], len(inputs["image"]), axis=0)}


def fit_atlas(train: Split, validation: Split, *, classes: int) -> Predictor:
    """Average the training masks, each stretched to the median shape."""
    masks = [np.asarray(sample.targets["mask"]) for sample in _outlined(train)]
    sides = np.median([mask.shape for mask in masks], axis=0)
    shrunk = sides * min(1.0, ATLAS_SIDE / sides.max())
    depth, height, width = (max(1, int(side)) for side in shrunk.round())
    atlas = np.zeros((classes, depth, height, width), dtype=np.float32)
    for mask in masks:
        for label in range(classes):
            atlas[label] += resize((mask == label + 1).astype(np.float32), (depth, height, width))
    return AtlasPredictor(atlas=atlas / len(masks))
