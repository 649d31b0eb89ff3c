"""The embedded data set: CT-like chests with nodules, as real DICOM series, with exact masks.

A patient is drawn in millimetres: body, ribs, lungs, trees of vessels and bronchi, scars, nodules.
A scan puts the patient on a grid of voxels with a kernel and noise; some patients are scanned
twice. Vessels are as dense as nodules: where they end, cross, or run across a slice, they look like
some, so that a threshold is not enough.

Points are (z, y, x) in millimetres: to the head, the back and the left, from the lowest point of
the lungs in the body's axis. Distances to a surface are negative inside. Arrays are (D, H, W).
"""

from __future__ import annotations

import csv
import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pegboard.files import atomic_path
from pegboard.progress import Progress
from pegboard.records import Array
from pegboard_medical.nifti import nifti_bytes
from pegboard_medical.volumes import Volume

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

Floats = NDArray[np.float32]
Random = np.random.Generator

COLUMNS = ("series", "nodule", "k", "j", "i", "diameter_mm", "kind", "label")
"""Of `nodules.csv`; k, j, i is the voxel in the middle, slices in order of position."""
TABLE = "nodules.csv"
IMAGES, MASKS = "series", "masks"
"""Folders: one of DICOM files for each series, and one of NIfTI files."""

TWICE = 5
"""Every so many patients one is scanned twice."""
PRONE = 12
"""Every so many one lies on the belly."""
PACKED = 6
"""Every so many one is stored with RLE."""

COUNTS = (0.12, 0.28, 0.22, 0.16, 0.1, 0.07, 0.05)
"""How probable 0, 1, 2, ... nodules are."""
KINDS = {"solid": 0.62, "part-solid": 0.2, "ground-glass": 0.18}
"""How probable they are."""
DIAMETERS = (3.0, 30.0)
"""Of nodules, millimetres."""
MOST_VOXELS = 2_100_000
"""Of a volume, so that a case takes fewer than 6 MB."""
SLAB = 8
"""Slices that are drawn at once: they stay in the processor's cache."""
STEP = 2.0
"""Millimetres that a vessel grows at once."""
AIR, LUNG, FAT, MUSCLE, BLOOD = -1000.0, -860.0, -100.0, 50.0, 45.0
"""Hounsfield units."""
WALL = 5.0
"""Millimetres from the middle of the ribs to the lungs."""
CHILD = 0.6
"""How large patients of the tiny data set are: few voxels show more of them."""

NAMES = (
    ("Abel", "Birch", "Cormack", "Dahl", "Eskola", "Fontaine", "Galanis", "Hruby", "Ito", "Jansen"),
    ("Ada", "Bruno", "Chiara", "Dario", "Edith", "Felix", "Greta", "Hugo", "Ines", "Jonas"),
)
"""Made up, so that there is something to keep secret."""


@dataclass(frozen=True, kw_only=True)
class Field:
    """A smooth quantity, known on a coarse grid."""

    values: Floats
    """(z, y, x)."""
    origin: Floats
    """(3,): the point of its first value."""
    step: float
    """Millimetres."""

    def at(self, points: Array) -> Floats:
        """Return the values (N,) at points (N, 3)."""
        places = ((points - self.origin) / self.step).T
        found: Floats = ndimage.map_coordinates(self.values, places, order=1, mode="nearest")
        return found

    def weights(self, axis: int, places: Floats) -> Floats:
        """Return how much every value counts at places (N,) of an axis: a cubic B-spline."""
        index = (places[:, None] - self.origin[axis]) / self.step
        index = index.clip(0, self.values.shape[axis] - 1)
        apart = np.abs(index - np.arange(self.values.shape[axis]))
        near = 2 / 3 - apart**2 + apart**3 / 2
        far = (2 - apart).clip(0) ** 3 / 6
        weights = np.where(apart < 1, near, far)
        return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Where the voxels of a scan lie."""

    z: Floats
    y: Floats
    x: Floats

    @property
    def axes(self) -> tuple[Floats, Floats, Floats]:
        """Middles of the voxels, millimetres."""
        return self.z, self.y, self.x

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels."""
        return len(self.z), len(self.y), len(self.x)

    @property
    def spacing(self) -> Floats:
        """(3,), millimetres."""
        return np.array([axis[1] - axis[0] for axis in self.axes], dtype=np.float32)

    @property
    def origin(self) -> Floats:
        """The point of the first voxel."""
        return np.array([axis[0] for axis in self.axes], dtype=np.float32)

    @property
    def blur(self) -> float:
        """Millimetres over which the edge of something fades: the side of a voxel."""
        return float(np.prod(self.spacing) ** (1 / 3))


@dataclass(frozen=True, kw_only=True)
class Tubes:
    """Balls in a row."""

    points: Floats = field(default_factory=lambda: np.zeros((0, 3), dtype=np.float32))
    radii: Floats = field(default_factory=lambda: np.zeros(0, dtype=np.float32))


@dataclass(frozen=True, kw_only=True)
class Nodule:
    """A nodule as it is drawn."""

    centre: Floats
    diameter: float
    """Of the ball that is as large, millimetres."""
    kind: str
    """A key of `KINDS`."""
    label: str
    """`benign` or `malignant`."""
    density: float
    """Hounsfield units."""
    core: float
    """Share of the radius that the solid part has; 0: there is none."""
    chalk: float
    """Hounsfield units of its calcified middle; 0: there is none."""
    bumps: Floats
    """(N, 4): direction and height, as a share of the radius."""
    stretch: Floats
    """(3,): the axes' lengths against one another."""
    spicules: Tubes
    """Thin lines that leave it; they are not outlined."""


@dataclass(frozen=True, kw_only=True)
class Patient:
    """What is drawn of a patient."""

    scale: float
    """Size; 1 is an adult."""
    length: float
    """Of the lungs from base to apex, millimetres."""
    body: tuple[float, float]
    """Half the depth and half the width, millimetres."""
    hull: tuple[float, float]
    """The same of the ring of ribs."""
    wobble: Floats
    """(4,): how much the outline leaves the oval."""
    fat: float
    """Thickness under the skin, millimetres."""
    phase: float
    """Where the first rib is, millimetres."""
    back: float
    """y of the middle of the vertebrae."""
    lungs: Field
    """Distance to their surface."""
    tissue: Field
    """Hounsfield units of what is neither lung nor bone."""
    texture: Field
    """Unevenness of the lungs, deviation about 1."""
    vessels: Tubes
    bronchi: Tubes
    scars: Tubes
    fissures: Floats
    """(2, 3): height at y = 0, slope along y, bend; of the right and the left lung."""
    nodules: tuple[Nodule, ...]
    low: Floats
    """(3,): corner of what is scanned."""
    high: Floats
    """(3,): the other corner."""


# --- Writing --------------------------------------------------------------------------------------


def write_phantoms(folder: Path, *, cases: int, seed: int, tiny: bool, progress: Progress) -> None:
    """Generate the data set; the folder is whole or absent.

    Args:
        folder: Gets `series/` with a folder of DICOM files for each series, `masks/` with a NIfTI
            file for each, named by its SeriesInstanceUID, and `nodules.csv`.
        cases: How many series; about every sixth is a second one of a patient.
        seed: The same seed gives the same files.
        tiny: Draw small patients in few large voxels.
        progress: Is told how many are done.
    """
    rows: list[tuple[object, ...]] = []
    with atomic_path(folder) as temporary:
        for name in (IMAGES, MASKS):
            (temporary / name).mkdir(parents=True)
        patient: Patient | None = None
        known = -1
        plan = _plan(cases)
        for case, (number, scan) in enumerate(
            progress.track(plan, "drawing patients", total=len(plan))
        ):
            if number != known or patient is None:
                patient = draw_patient(np.random.default_rng((seed, number)), tiny=tiny)
                known = number
            random = np.random.default_rng((seed, number, scan + 1))
            rows += _write_case(temporary, case, patient, (seed, number, scan), random, tiny)
        with (temporary / TABLE).open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream, lineterminator="\n").writerows([COLUMNS, *rows])


def _plan(cases: int) -> list[tuple[int, int]]:
    """Return number of the patient and of the scan, for each case."""
    plan: list[tuple[int, int]] = []
    number = 0
    while len(plan) < cases:
        plan += [(number, scan) for scan in range(2 if number % TWICE == 2 else 1)]
        number += 1
    return plan[:cases]


def _write_case(
    folder: Path,
    case: int,
    patient: Patient,
    ids: tuple[int, int, int],
    random: Random,
    tiny: bool,
) -> list[tuple[object, ...]]:
    """Scan a patient and write the series and its mask; return its rows of the table."""
    grid = draw_grid(random, patient, tiny)
    voxels = scanned(random, patient, grid)
    mask, centres = outlined(patient, grid)
    turned = ids[1] % PRONE == 7
    if turned:
        # Who lies on the belly is turned half about the body's axis in the scanner's picture.
        voxels, mask = voxels[:, ::-1, ::-1], mask[:, ::-1, ::-1]
        last = np.array(grid.shape) - 1
        centres = {
            nodule: (k, int(last[1]) - j, int(last[2]) - i) for nodule, (k, j, i) in centres.items()
        }
    affine = _affine(grid, turned)
    uid = _write_series(folder / IMAGES / f"{case:04d}", voxels, affine, ids, random)
    name = folder / MASKS / f"{uid}.nii.gz"
    name.write_bytes(nifti_bytes(Volume(voxels=mask, affine=affine, modality="ct")))
    return [
        (uid, number, *centres[index], f"{nodule.diameter:.1f}", nodule.kind, nodule.label)
        for number, (index, nodule) in enumerate(
            ((index, patient.nodules[index]) for index in sorted(centres)), start=1
        )
    ]


def _affine(grid: Grid, turned: bool) -> Array:
    """Return voxel (k, j, i, 1) -> millimetres (x, y, z, 1), LPS, as exactly as files say it."""
    dz, dy, dx = (round(float(side), 4) for side in grid.spacing)
    z, y, x = (round(float(side), 3) for side in grid.origin)
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2] = dz, dy, dx
    affine[:, 3] = x, y, z, 1
    if turned:
        affine[:2, 3] += (dx * (len(grid.x) - 1), dy * (len(grid.y) - 1))
        affine[:2, 1:3] *= -1
    return affine


# --- DICOM ----------------------------------------------------------------------------------------


def _write_series(
    folder: Path,
    voxels: NDArray[np.int16],
    affine: Array,
    ids: tuple[int, int, int],
    random: Random,
) -> str:
    """Write a slice a file, under names that say nothing of the order; return the series' UID."""
    from pydicom.uid import UID, RLELossless

    folder.mkdir()
    number = ids[1]
    slope, intercept, signed = ((1, -1024, 0), (1, 0, 1), (0.5, -1024, 0))[number % 3]
    stored = voxels.astype(np.float32)
    stored -= intercept
    stored /= slope
    stored = stored.astype(np.int16 if signed else np.uint16)
    dataset = _header(ids, affine, stored.shape, random)
    dataset.RescaleIntercept, dataset.RescaleSlope = str(intercept), str(slope)
    dataset.PixelRepresentation = signed
    # Building and writing each data set anew takes as long as all the drawing: what differs from
    # slice to slice is put into the bytes of one, in the place of marks of the same length.
    base = str(dataset.SeriesInstanceUID)[:58]
    instance_uid = UID(f"{base}.{_NUMBER}")
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = instance_uid
    dataset.InstanceNumber = _NUMBER
    dataset.ImagePositionPatient = [*map(_decimal, affine[:2, 3]), _HEIGHT]
    dataset.SliceLocation = _HEIGHT
    packed = number % PACKED == 1
    if packed:
        dataset.file_meta.TransferSyntaxUID = RLELossless
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    head = stream.getvalue()
    names = random.permutation(len(stored))
    ending = "" if number % 3 == 1 else ".dcm"
    for k, pixels in enumerate(stored):
        # Some scanners count from the head.
        instance = k + 1 if number % 2 else len(stored) - k
        height = _decimal(affine[2, 3] + k * affine[2, 0]).ljust(len(_HEIGHT))
        own = head.replace(instance_uid.encode(), f"{base}.{1000 + k}".encode())
        own = own.replace(_INSTANCE % _NUMBER.encode(), _INSTANCE % f"{instance:<4d}".encode())
        own = own.replace(_HEIGHT.encode(), height.encode())
        name = folder / f"I{names[k]:05d}{ending}"
        name.write_bytes(own + _pixel_data(pixels, dataset, packed))
    return str(dataset.SeriesInstanceUID)


_NUMBER, _HEIGHT = "7777", "99999.9999"
"""Marks in the header's bytes, for the number of a slice and its height."""
_INSTANCE = struct.pack("<HH2sH", 0x0020, 0x0013, b"IS", 4) + b"%s"
"""The element of its number: the digits alone could stand in any UID."""


def _pixel_data(pixels: Array, dataset: Dataset, packed: bool) -> bytes:
    """Return the last element of a file."""
    if not packed:
        plain = np.ascontiguousarray(pixels).tobytes()
        return struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OW", 0, len(plain)) + plain
    from pydicom.encaps import encapsulate
    from rle.utils import encode_pixel_data

    items = encapsulate([encode_pixel_data(pixels.tobytes(), dataset, "<")])
    start = struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF)
    return start + items + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


def _header(
    ids: tuple[int, int, int], affine: Array, shape: tuple[int, ...], random: Random
) -> Dataset:
    """Return what the slices of a series have in common."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    seed, number, scan = ids
    patient = ["pegboard phantom", str(seed), str(number)]
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = CTImageStorage
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.Modality, dataset.Manufacturer = "CT", "Pegboard"
    dataset.ManufacturerModelName = "Phantom"
    families, given = NAMES
    dataset.PatientName = f"{families[number % 10]}^{given[(number // 10 + 3 * number) % 10]}"
    dataset.PatientID = f"PHANTOM-{seed % 10000:04d}-{number:05d}"
    dataset.PatientBirthDate = f"{1930 + 7 * number % 50}{1 + number % 12:02d}{1 + number % 28:02d}"
    dataset.PatientSex = "MF"[number % 2]
    dataset.AccessionNumber = f"A{seed % 1000:03d}{number:06d}"
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=[*patient, "study"])
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[*patient, "series", str(scan)])
    dataset.FrameOfReferenceUID = generate_uid(entropy_srcs=[*patient, "frame"])
    dataset.PositionReferenceIndicator = ""
    dataset.StudyID, dataset.SeriesNumber = str(number + 1), scan + 1
    dataset.StudyDate = dataset.SeriesDate = "20240102"
    dataset.StudyTime = dataset.SeriesTime = "080910"
    dataset.StudyDescription = "CT chest"
    dataset.SeriesDescription = f"axial {scan + 1}"
    dataset.ReferringPhysicianName = ""
    dataset.BodyPartExamined = "CHEST"
    dataset.PatientPosition = "HFP" if affine[1, 1] < 0 else "HFS"
    dataset.KVP, dataset.AcquisitionNumber = "120", 1
    dataset.ConvolutionKernel = random.choice(["B30f", "B50f", "B60f"])
    dz, dy, dx = np.linalg.norm(affine[:3, :3], axis=0)
    dataset.SliceThickness = dataset.SpacingBetweenSlices = _decimal(dz)
    dataset.PixelSpacing = [_decimal(dy), _decimal(dx)]
    turn = np.sign(affine[1, 1])
    dataset.ImageOrientationPatient = [_decimal(side) for side in (turn, 0, 0, 0, turn, 0)]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = shape[1:]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.WindowCenter, dataset.WindowWidth = "-600", "1500"
    return dataset


def _decimal(number: float) -> str:
    """Return a decimal string of at most 16 characters, as DICOM wants it."""
    return f"{number + 0.0:.4f}".rstrip("0").rstrip(".")


# --- Patients -------------------------------------------------------------------------------------


def draw_patient(random: Random, *, tiny: bool) -> Patient:
    """Draw a patient."""
    scale = float(random.uniform(0.94, 1.06)) * (CHILD if tiny else 1.0)
    body = (98.0 * scale * float(random.uniform(0.92, 1.08)), 146.0 * scale)
    fat = float(random.uniform(5, 16)) * scale
    hull = (body[0] - fat - 11 * scale, body[1] - fat - 13 * scale)
    length = float(random.uniform(195, 225)) * scale
    wobble = random.normal(0, (0.02, 0.015, 0.01, 0.01)).astype(np.float32)
    back = hull[0] - 20 * scale
    lungs, tissue, texture = _organs(
        random, scale, length, body, hull, wobble, back, 8.0 if tiny else 5.0
    )
    vessels, bronchi = _trees(random, lungs, scale, length, back, tiny)
    low, high = _coverage(random, scale, length, body, tiny)
    return Patient(
        scale=scale,
        length=length,
        body=body,
        hull=hull,
        wobble=wobble,
        fat=fat,
        phase=float(random.uniform(0, 24 * scale)),
        back=back,
        lungs=lungs,
        tissue=tissue,
        texture=texture,
        vessels=vessels,
        bronchi=bronchi,
        scars=_scars(random, lungs, scale),
        fissures=np.array(
            [
                (random.uniform(0.38, 0.5) * length, random.uniform(0.7, 1.0), random.normal(0, 6))
                for _ in range(2)
            ],
            dtype=np.float32,
        ),
        nodules=_nodules(random, lungs, vessels, (low, high), tiny),
        low=low,
        high=high,
    )


def _coverage(
    random: Random, scale: float, length: float, body: tuple[float, float], tiny: bool
) -> tuple[Floats, Floats]:
    """Draw what is scanned: the whole width, or one lung in finer voxels."""
    height = length * 0.98 if tiny else float(random.uniform(0.66, 0.9)) * length
    bottom = float(random.uniform(0.03, 0.97 - height / length)) * length if not tiny else 0.0
    half, middle = body[1] * 1.03, 0.0
    if not tiny and random.random() < 0.35:
        half = 92 * scale
        middle = float(random.choice([-1, 1])) * 62 * scale
    low = np.array([bottom, -half, middle - half], dtype=np.float32)
    high = np.array([bottom + height, half, middle + half], dtype=np.float32)
    return low, high


def _ring(
    y: Array, x: Array, halves: tuple[float, float], wobble: Array, step: tuple[float, float]
) -> tuple[Floats, Floats]:
    """Return how far out (H, W) a place is, 1 on an oval, and how much a millimetre adds."""
    angle = np.arctan2(y, x)
    waves = sum(
        strength * np.cos(order * angle + order)
        for order, strength in enumerate(wobble.tolist(), start=2)
    )
    out = ((np.abs(y) / halves[0]) ** 2.4 + (np.abs(x) / halves[1]) ** 2.4) ** (1 / 2.4)
    out = out / (1 + waves)
    dy, dx = np.gradient(out, *step)
    return out.astype(np.float32), np.hypot(dy, dx).clip(0.3 / halves[1]).astype(np.float32)


def _narrowing(z: Array, length: float) -> Floats:
    """Return how wide the ring of ribs is at some heights, as a share."""
    above = ((z / length - 0.45) / 0.66).clip(0, 1)
    return np.asarray(np.sqrt(1 - above**2).clip(0.35), dtype=np.float32)


def _organs(
    random: Random,
    scale: float,
    length: float,
    body: tuple[float, float],
    hull: tuple[float, float],
    wobble: Array,
    back: float,
    step: float,
) -> tuple[Field, Field, Field]:
    """Return distance to the lungs, density of soft tissue, and texture of the lungs."""
    step *= scale
    low = np.array([-6 * step, -body[0] - 2 * step, -body[1] - 2 * step], dtype=np.float32)
    high = np.array([length + 4 * step, body[0] + 2 * step, body[1] + 2 * step])
    counts = np.ceil((high - low) / step).astype(int) + 1
    z, y, x = (
        (start + step * np.arange(count)).astype(np.float32)
        for start, count in zip(low, counts, strict=True)
    )
    out, slope = _ring(y[:, None], x[None], hull, wobble, (step, step))
    wall = (out - _narrowing(z, length)[:, None, None]) / slope
    z, y, x = z[:, None, None], y[None, :, None], x[None, None]
    heart = np.sqrt(
        ((z - 0.3 * length) / 50) ** 2
        + ((y + 0.28 * hull[0]) / 38) ** 2
        + ((x - 20 * scale) / 52) ** 2
    )
    heart = heart / scale
    heart = (heart - 1) * 42 * scale
    spine = np.hypot(x, y - back) - 25 * scale
    # Narrow in front, where the lungs nearly meet, and at the height of the hilum wide.
    width = (9 + 17 / (1 + np.exp(-(y / scale + 38) / 8))) * scale
    width = width + 7 * scale * np.exp(-(((z / length - 0.52) / 0.12) ** 2))
    middle = np.abs(x + 2 * scale * np.sin(z / 30 / scale)) - width
    dome = np.where(x < 0, 62, 50) * scale
    dome = dome * (
        1 - ((np.abs(x) - 58 * scale) / (95 * scale)) ** 2 - ((y + 8) / (98 * scale)) ** 2
    )
    belly = (z - dome) * 0.8
    lungs = np.maximum(wall + WALL * scale, -middle)
    for other in (heart, spine, belly):
        lungs = np.maximum(lungs, -other)
    lungs = lungs + scale * _noise(random, lungs.shape, 2.0)

    def inside(distance: Array) -> Array:
        return (0.5 - distance / (1.6 * step)).clip(0, 1)

    lumps = _noise(random, lungs.shape, 1.0)
    # Between the muscles and in the mediastinum there is fat.
    outer = MUSCLE + 8 - 120 * (lumps - 0.7).clip(0, 1)
    inner = -85 + 60 * (lumps - 0.2).clip(0, 1)
    tissue = outer + inside(wall + WALL * scale) * (inner - outer)
    liver = np.where(x < 10 * scale, 62, 38) + 6 * lumps
    tissue = tissue + inside(belly) * (liver - tissue)
    tissue = tissue + inside(heart + 3 * scale) * (BLOOD - 3 - tissue)
    tissue = tissue + inside(spine + 2 * scale) * (MUSCLE - tissue)
    grain = _noise(random, lungs.shape, 0.9)
    fields = [
        Field(values=np.ascontiguousarray(values, dtype=np.float32), origin=low, step=step)
        for values in (lungs, tissue, grain)
    ]
    return fields[0], fields[1], fields[2]


def _noise(random: Random, shape: Sequence[int], width: float) -> Floats:
    """Draw smooth noise of mean 0 and deviation 1."""
    drawn = random.standard_normal(shape, dtype=np.float32)
    smooth = ndimage.gaussian_filter(drawn, width, mode="wrap", truncate=3.0)
    standard: Floats = smooth / smooth.std()
    return standard


# --- Vessels --------------------------------------------------------------------------------------


def _trees(
    random: Random, lungs: Field, scale: float, length: float, back: float, tiny: bool
) -> tuple[Tubes, Tubes]:
    """Grow vessels and bronchi from the hilum of both lungs, and lay the great ones."""
    thinnest = 0.9 * scale if tiny else 0.5
    points, directions, radii = [], [], []
    for side in (-1.0, 1.0):
        hilum = np.array([0.5 * length, 6 * scale, side * 30 * scale])
        for count, drop, large in ((8, 6.0, 4.0), (6, -10.0, 3.6)):
            heading = random.normal(0, 1, (count, 3))
            heading[:, 2] = side * np.abs(heading[:, 2])
            # Stems go up, down, forward and back in turn.
            turn = np.arange(count) / count * 2 * np.pi + random.uniform(0, 6)
            heading[:, 0] += 2.0 * np.sin(turn)
            heading[:, 1] += 1.5 * np.cos(turn)
            directions.append(heading)
            start = hilum + random.normal(0, 3 * scale, (count, 3))
            points.append(start + np.array([drop * scale, 0, 0]))
            radii.append(random.uniform(0.7, 1.0, count) * large * scale)
    stems = np.concatenate(points), np.concatenate(directions), np.concatenate(radii)
    grown = _grow(random, lungs, stems, thinnest, scale)
    chosen = random.random(len(stems[0])) < 0.6
    airways = _grow(
        random,
        lungs,
        (stems[0][chosen] + 4 * scale, stems[1][chosen], 0.8 * stems[2][chosen]),
        1.1 * scale,
        scale,
    )
    great, trachea = _great(random, scale, length, back)
    vessels = Tubes(
        points=np.concatenate([grown.points, great.points]),
        radii=np.concatenate([grown.radii, great.radii]),
    )
    bronchi = Tubes(
        points=np.concatenate([airways.points, trachea.points]),
        radii=np.concatenate([airways.radii, trachea.radii]),
    )
    return vessels, bronchi


def _grow(
    random: Random,
    lungs: Field,
    stems: tuple[Array, Array, Array],
    thinnest: float,
    scale: float,
) -> Tubes:
    """Grow trees: every branch winds, tapers, and after a while becomes two.

    Args:
        random: Draws.
        lungs: A branch ends at their surface.
        stems: Points (N, 3), directions (N, 3) and radii (N,) that they begin with.
        thinnest: Radius below which a branch ends.
        scale: Size of the patient.
    """
    point, heading, radius = stems
    heading = _unit(heading)
    left = random.uniform(6, 14, len(point)) * scale
    points: list[Array] = []
    radii: list[Array] = []
    for age in range(90):
        heading = _unit(heading + random.normal(0, 0.14, heading.shape))
        ahead = point + STEP * heading
        middle = (point + ahead) / 2
        points += [middle, ahead]
        radii += [radius, radius]
        point, radius, left = ahead, radius * 0.995, left - STEP
        # The first steps lie in the mediastinum.
        kept = (lungs.at(point) < -2.5 * scale) | (age * STEP < 18 * scale)
        kept &= radius > thinnest
        point, heading, radius, left = (part[kept] for part in (point, heading, radius, left))
        if not len(point):
            break
        forks = np.flatnonzero(left <= 0)
        if not len(forks):
            continue
        across = _unit(np.cross(heading[forks], random.normal(0, 1, (len(forks), 3))))
        share = random.uniform(0.7, 0.96, (len(forks), 1))
        # The thicker one turns less; together they carry what the stem did.
        other = (1 - share**3).clip(0.12) ** (1 / 3)
        bent = heading[forks] + across * (1.25 - share)
        second = heading[forks] - across * (1.25 - other)
        thin = radius[forks] * other[:, 0]
        radius[forks] *= share[:, 0]
        heading[forks] = _unit(bent)
        lengths = random.uniform(4.0, 11.0, len(forks)) * scale
        left[forks] = lengths + 2.2 * radius[forks]
        point = np.concatenate([point, point[forks]])
        heading = np.concatenate([heading, _unit(second)])
        radius = np.concatenate([radius, thin])
        left = np.concatenate([left, random.uniform(4.0, 11.0, len(forks)) * scale + 2.2 * thin])
    return Tubes(
        points=np.concatenate(points).astype(np.float32),
        radii=np.concatenate(radii).astype(np.float32),
    )


def _unit(vectors: Array) -> Array:
    """Return vectors (N, 3) of length 1."""
    unit: Array = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-6)
    return unit


def _great(random: Random, scale: float, length: float, back: float) -> tuple[Tubes, Tubes]:
    """Lay the aorta and the other great vessels, and the trachea with its two bronchi."""
    top, arch, fork = length * 1.1, 0.66 * length, 0.56 * length
    turn = np.linspace(0, np.pi, 24)[:, None]
    behind = np.array([arch, back - 30 * scale, 16 * scale])
    before = np.array([arch, -22 * scale, -4 * scale])
    over = (behind + before) / 2 + (before - behind) / 2 * np.cos(turn)
    over[:, :1] += 20 * scale * np.sin(turn)
    lines = [
        (_line(behind * (0, 1, 1) - (20, 0, 0), behind, scale), 11.0),
        (over, 11.5),
        (_line(before - (40 * scale, -8 * scale, 0), before, scale), 13.0),
        (
            _line((0.4 * length, -14 * scale, -22 * scale), (top, -18 * scale, -20 * scale), scale),
            8.0,
        ),
        (_line((arch, -8 * scale, 18 * scale), (top, -4 * scale, 20 * scale), scale), 4.5),
        (_bow((fork, -2 * scale, -32 * scale), (fork + 4, -4 * scale, 34 * scale), scale), 8.0),
        (_line((-20, back - 34 * scale, 0), (top, back - 34 * scale, 2), scale), 6.0),
    ]
    branches = [
        (_line((fork, 12 * scale, 0), (top, 0, 2 * scale), scale), 8.0),
        (_line((fork, 12 * scale, 0), (0.49 * length, 14 * scale, -30 * scale), scale), 5.8),
        (_line((fork, 12 * scale, 0), (0.48 * length, 14 * scale, 36 * scale), scale), 5.2),
    ]
    size = scale * float(random.uniform(0.92, 1.08))
    return _joined(lines, size), _joined(branches, size)


def _line(start: Sequence[float] | Array, end: Sequence[float] | Array, scale: float) -> Array:
    start, end = np.asarray(start, dtype=float), np.asarray(end, dtype=float)
    count = int(np.linalg.norm(end - start) / (3 * scale)) + 2
    line: Array = start + (end - start) * np.linspace(0, 1, count)[:, None]
    return line


def _bow(start: Sequence[float], end: Sequence[float], scale: float) -> Array:
    """Return a line that is bent to the front and down."""
    line = _line(start, end, scale)
    bend = np.sin(np.linspace(0, np.pi, len(line)))[:, None]
    line -= bend * np.array([10.0, 18.0, 0.0]) * scale
    return line


def _joined(lines: Sequence[tuple[Array, float]], size: float) -> Tubes:
    radii = [np.full(len(points), size * radius) for points, radius in lines]
    return Tubes(
        points=np.concatenate([points for points, _ in lines]).astype(np.float32),
        radii=np.concatenate(radii).astype(np.float32),
    )


def _scars(random: Random, lungs: Field, scale: float) -> Tubes:
    """Draw thin plates: scars and folded lung, which are no nodules."""
    points = [np.zeros((0, 3))]
    for _ in range(int(random.integers(0, 4))):
        middle = _somewhere(random, lungs, 3.0 * scale, 12.0 * scale)
        along, across = _unit(random.normal(0, 1, (2, 3)))
        size = random.uniform((8, 2), (22, 7)) * scale
        steps = np.stack(np.meshgrid(np.arange(-1, 1.01, 0.1), np.arange(-1, 1.01, 0.2)))
        steps = steps.reshape(2, -1)
        steps = steps[:, np.hypot(*steps) <= 1] * size[:, None]
        sheet = middle + np.outer(steps[0], along) + np.outer(steps[1], across)
        points.append(sheet[lungs.at(sheet) < -1])
    joined = np.concatenate(points).astype(np.float32)
    return Tubes(points=joined, radii=np.full(len(joined), 0.8 * max(scale, 0.8), np.float32))


def _somewhere(random: Random, lungs: Field, least: float, most: float) -> Array:
    """Draw a point at some depth in the lungs; at any depth where there is none."""
    deep = -lungs.values
    places = np.argwhere((deep >= least) & (deep <= most))
    if not len(places):
        places = np.argwhere(deep >= 0.5 * deep.max())
    place = places[random.integers(len(places))] + random.uniform(-0.5, 0.5, 3)
    point: Array = lungs.origin + lungs.step * place
    return point


# --- Nodules --------------------------------------------------------------------------------------


def _nodules(
    random: Random, lungs: Field, vessels: Tubes, box: tuple[Floats, Floats], tiny: bool
) -> tuple[Nodule, ...]:
    """Draw nodules that do not touch one another, inside what is scanned."""
    found: list[Nodule] = []
    count = int(random.choice(len(COUNTS), p=COUNTS))
    count = min(count, 2) if tiny else count
    for _ in range(count):
        least, most = (10.0, 22.0) if tiny else DIAMETERS
        diameter = float(np.exp(random.normal(np.log(15.0 if tiny else 9.0), 0.55)))
        if not least <= diameter <= most:
            diameter = float(np.exp(random.uniform(np.log(least), np.log(most))))
        for _ in range(60):
            centre = _place(random, lungs, vessels, diameter / 2)
            margin = diameter / 2 + 3
            if (centre < box[0] + margin).any() or (centre > box[1] - margin).any():
                continue
            apart = (
                np.linalg.norm(centre - one.centre) - (diameter + one.diameter) * 0.75 - 3
                for one in found
            )
            if all(gap > 0 for gap in apart):
                found.append(_nodule(random, centre, diameter))
                break
    return tuple(found)


def _place(random: Random, lungs: Field, vessels: Tubes, radius: float) -> Floats:
    """Draw where a nodule lies: free, on a vessel, or on the wall of the lung."""
    where = random.random()
    if where < 0.25:
        thin = np.flatnonzero((vessels.radii > 0.5) & (vessels.radii < 2.0))
        point: Array = vessels.points[thin[random.integers(len(thin))]]
        if lungs.at(point[None])[0] < -radius - 1:
            return (point + random.normal(0, 0.4 * radius, 3)).astype(np.float32)
    if where < 0.5:
        return _somewhere(random, lungs, 0.45 * radius, 0.9 * radius + 1).astype(np.float32)
    for _ in range(8):
        point = _somewhere(random, lungs, radius + 1.5, 60.0)
        apart = np.linalg.norm(vessels.points - point, axis=1) - vessels.radii - radius
        # Not in the hilum, where nobody could outline it.
        if not ((vessels.radii > 2.2) & (apart < 1.0)).any():
            break
    return point.astype(np.float32)


def _nodule(random: Random, centre: Floats, diameter: float) -> Nodule:
    """Draw shape and density, and from these whether it is malignant."""
    kind = str(random.choice(list(KINDS), p=list(KINDS.values())))
    radius = diameter / 2
    spiculated = bool(
        diameter > 6 and kind != "ground-glass" and random.random() < 0.15 + 0.02 * diameter
    )
    lobed = spiculated or random.random() < 0.4
    count = int(random.integers(4, 9))
    heights = random.uniform(*((0.1, 0.5) if lobed else (-0.06, 0.1)), count)
    bumps = np.column_stack([_unit(random.normal(0, 1, (count, 3))), heights])
    chalk = 0.0
    if kind == "solid" and not spiculated and random.random() < 0.16:
        chalk = float(random.uniform(150, 500))
    density = float(random.uniform(10, 70) if kind == "solid" else random.uniform(-650, -430))
    core = {"solid": 1.0, "part-solid": float(random.uniform(0.4, 0.7)), "ground-glass": 0.0}[kind]
    evidence = 2.2 * np.log2(diameter / 11) + 2.2 * spiculated + 0.5 * (lobed and not spiculated)
    evidence += {"solid": 0.0, "part-solid": 1.2, "ground-glass": -0.3}[kind] - 4.0 * (chalk > 0)
    malignant = random.logistic(evidence - 0.8, 0.45) > 0
    return Nodule(
        centre=centre,
        diameter=diameter,
        kind=kind,
        label="malignant" if malignant else "benign",
        density=density,
        core=core,
        chalk=chalk,
        bumps=bumps.astype(np.float32),
        stretch=_stretch(random),
        spicules=_spicules(random, centre, radius) if spiculated else Tubes(),
    )


def _stretch(random: Random) -> Floats:
    axes = np.exp(random.normal(0, 0.1, 3))
    return (axes / np.prod(axes) ** (1 / 3)).astype(np.float32)


def _spicules(random: Random, centre: Floats, radius: float) -> Tubes:
    """Draw thin lines that leave a nodule and taper."""
    count = int(random.integers(9, 20))
    directions = _unit(random.normal(0, 1, (count, 3)))
    lengths = radius * random.uniform(0.35, 1.0, count) + random.uniform(2, 5, count)
    along = np.linspace(0, 1, 14)[None, :, None]
    points = centre + directions[:, None] * (0.7 * radius + along * lengths[:, None, None])
    points = points + random.normal(0, 0.12 * radius, (count, 1, 3)) * along**2
    radii = np.broadcast_to(1.45 - 0.95 * along[..., 0], (count, 14))
    return Tubes(
        points=points.reshape(-1, 3).astype(np.float32), radii=radii.reshape(-1).astype(np.float32)
    )


def _surface(nodule: Nodule, directions: Array) -> Floats:
    """Return the radius of a nodule along unit vectors (..., 3), as a share of the mean."""
    heights = np.exp(4.0 * (directions @ nodule.bumps[:, :3].T - 1)) @ nodule.bumps[:, 3]
    # The middle itself has no direction.
    oval = 1 / np.linalg.norm(directions / nodule.stretch, axis=-1).clip(1e-3)
    return np.asarray(oval * (1 + heights), dtype=np.float32)


def _sphere(count: int) -> Array:
    """Return points (N, 3) that lie evenly on a ball: a Fibonacci spiral."""
    index = np.arange(count) + 0.5
    height, turn = 1 - 2 * index / count, index * np.pi * (1 + 5**0.5)
    flat = np.sqrt(1 - height**2)
    return np.stack([height, flat * np.cos(turn), flat * np.sin(turn)], axis=1)


_BALL = _sphere(200)


def _shape_of(nodule: Nodule, grid: Grid) -> tuple[tuple[slice, ...], Floats, Floats] | None:
    """Return a nodule's box in a grid, and how deep its voxels lie and how far from the middle.

    The second is in millimetres from the surface, positive inside; the third a share of the radius.
    """
    radius = nodule.diameter / 2
    # A ball as large has the volume that the name of the diameter promises.
    radius /= float((_surface(nodule, _BALL) ** 3).mean() ** (1 / 3))
    reach = 1.9 * radius + 2 * grid.spacing.max()
    low = np.ceil((nodule.centre - reach - grid.origin) / grid.spacing).astype(int)
    high = np.floor((nodule.centre + reach - grid.origin) / grid.spacing).astype(int) + 1
    low, high = low.clip(0), np.minimum(high, grid.shape)
    if (high <= low).any():
        return None
    box = tuple(slice(int(start), int(end)) for start, end in zip(low, high, strict=True))
    apart = np.stack(
        np.meshgrid(
            *(axis[at] - c for axis, at, c in zip(grid.axes, box, nodule.centre, strict=True)),
            indexing="ij",
        ),
        axis=-1,
    )
    distance = np.linalg.norm(apart, axis=-1)
    surface = radius * _surface(nodule, apart / distance.clip(1e-3)[..., None])
    return box, (surface - distance).astype(np.float32), (distance / surface).astype(np.float32)


def outlined(patient: Patient, grid: Grid) -> tuple[NDArray[np.uint8], dict[int, tuple[int, ...]]]:
    """Outline the nodules on a grid.

    Returns:
        The mask (D, H, W) of 0 and 1, and the middle voxel of each nodule that is on it.
    """
    mask = np.zeros(grid.shape, dtype=np.uint8)
    centres: dict[int, tuple[int, ...]] = {}
    for index, nodule in enumerate(patient.nodules):
        shape = _shape_of(nodule, grid)
        if shape is None:
            continue
        box, deep, _ = shape
        inside = (deep > 0) & _in_lung(patient, grid, box)
        middle = np.rint((nodule.centre - grid.origin) / grid.spacing).astype(int)
        if not inside.any() and (middle >= 0).all() and (middle < grid.shape).all():
            # Smaller than a voxel: the one that it lies in shows it.
            inside[tuple(middle - [at.start for at in box])] = True
        if inside.any():
            mask[box] |= inside.astype(np.uint8)
            middle = middle.clip(0, np.array(grid.shape) - 1)
            centres[index] = (int(middle[0]), int(middle[1]), int(middle[2]))
    return mask, centres


def _in_lung(patient: Patient, grid: Grid, box: tuple[slice, ...]) -> NDArray[np.bool_]:
    """Say which voxels of a box are not chest wall: a nodule ends there."""
    parts = [axis[at] for axis, at in zip(grid.axes, box, strict=True)]
    z, y, x = (patient.lungs.weights(axis, part) for axis, part in enumerate(parts))
    distance = np.einsum(
        "ka,jb,ic,abc->kji",
        z,
        y,
        x,
        patient.lungs.values,
        optimize=["einsum_path", (0, 3), (1, 2), (0, 1)],
    )
    return np.asarray(distance < 0.3 * grid.blur)


# --- Scanning -------------------------------------------------------------------------------------


def draw_grid(random: Random, patient: Patient, tiny: bool) -> Grid:
    """Draw the voxels that a scan has."""
    size = patient.high - patient.low
    if tiny:
        side, count = 48, 24
    else:
        side = int(random.choice([168, 176, 184, 192]))
        step = float(random.choice([1.5, 2.0, 2.5, 3.0]))
        least = float(size[0]) * side**2 / MOST_VOXELS
        step = max(step, round(least + 0.05, 1))
        count = int(size[0] / step)
    pixel, step = round(float(size[1]) / side, 4), round(float(size[0]) / count, 2)
    z, y, x = (round(float(start) + 0.5 * pixel, 3) for start in patient.low)
    return Grid(
        z=(z + step * np.arange(count)).astype(np.float32),
        y=(y + pixel * np.arange(side)).astype(np.float32),
        x=(x + pixel * np.arange(side)).astype(np.float32),
    )


def scanned(random: Random, patient: Patient, grid: Grid) -> NDArray[np.int16]:
    """Return a patient's Hounsfield units (D, H, W) as a scanner shows them."""
    volume = _tissues(random, patient, grid)
    _fissures(random, patient, grid, volume)
    _splat(volume, grid, patient.scars, -150.0)
    _splat(volume, grid, patient.vessels, BLOOD)
    _bronchi(volume, grid, patient.bronchi)
    for nodule in patient.nodules:
        _add(random, patient, grid, volume, nodule)
    return _exposed(random, grid, volume)


def _tissues(random: Random, patient: Patient, grid: Grid) -> Floats:
    """Draw body, lungs and bones."""
    body, hull = _Rings.of(patient.body, patient, grid), _Rings.of(patient.hull, patient, grid)
    narrow = _narrowing(grid.z, patient.length)
    blur = np.float32(grid.blur)
    uneven = np.float32(random.uniform(14, 34))
    fields = [_Fine.of(one, grid) for one in (patient.lungs, patient.tissue, patient.texture)]
    # Blood sinks: the lung that lies lower is denser.
    weight = (LUNG + random.uniform(15, 40) * grid.y / patient.hull[0]).astype(np.float32)
    backbone = _backbone(patient, grid)
    table = _table(patient, grid)
    volume = np.empty(grid.shape, dtype=np.float32)
    for start in range(0, len(grid.z), SLAB):
        part = slice(start, start + SLAB)
        skin = body.distance(np.ones(len(grid.z[part]), dtype=np.float32))
        wall = hull.distance(narrow[part])
        lungs, tissue, texture = (one.slices(part) for one in fields)
        slab = tissue
        layer = (0.5 - (skin + np.float32(patient.fat)) / blur).clip(0, 1)
        slab -= np.float32(FAT)
        slab *= layer
        slab += np.float32(FAT)
        _ribs(patient, grid, part, wall, slab)
        columns, bone, density = backbone
        slab[columns] += bone * (density[part] - slab[columns])
        skin /= -blur
        skin += np.float32(0.5)
        cover = skin.clip(0, 1)
        slab -= table
        slab *= cover
        slab += table
        lungs /= -blur
        lungs += np.float32(0.5)
        inside = lungs.clip(0, 1)
        texture *= uneven
        texture += weight[:, None]
        texture -= slab
        texture *= inside
        slab += texture
        volume[part] = slab
    return volume


@dataclass(frozen=True, kw_only=True)
class _Rings:
    """An oval on a grid."""

    out: Floats
    slope: Floats

    @classmethod
    def of(cls, halves: tuple[float, float], patient: Patient, grid: Grid) -> _Rings:
        _, dy, dx = grid.spacing.tolist()
        out, slope = _ring(grid.y[:, None], grid.x[None], halves, patient.wobble, (dy, dx))
        return cls(out=out, slope=slope)

    def distance(self, share: Floats) -> Floats:
        """Return the distance (D, H, W) to the oval made so much narrower in each slice."""
        return (self.out - share[:, None, None]) / self.slope


@dataclass(frozen=True, kw_only=True)
class _Fine:
    """A field on the way to a grid."""

    values: Floats
    """(D, y, x)."""
    rows: Floats
    columns: Floats

    @classmethod
    def of(cls, coarse: Field, grid: Grid) -> _Fine:
        z, y, x = (coarse.weights(axis, places) for axis, places in enumerate(grid.axes))
        values = z @ coarse.values.reshape(coarse.values.shape[0], -1)
        return cls(
            values=values.reshape(len(z), *coarse.values.shape[1:]),
            rows=y,
            columns=np.ascontiguousarray(x.T),
        )

    def slices(self, part: slice) -> Floats:
        """Return the values (D, H, W) of some slices."""
        fine = (self.rows @ self.values[part]) @ self.columns
        return np.asarray(fine, dtype=np.float32)


def _ribs(patient: Patient, grid: Grid, part: slice, wall: Floats, slab: Floats) -> None:
    """Draw ribs, breastbone and shoulder blades into some slices."""
    scale, blur = patient.scale, grid.blur
    y, x = np.broadcast_arrays(grid.y[:, None], grid.x[None])
    near = np.flatnonzero(np.abs(wall) < 5.6 * scale + blur / 2)
    k, place = np.divmod(near.astype(np.int32), np.int32(y.size))
    deep = wall.reshape(-1)[near] / np.float32(4.0 * scale)
    pitch = np.float32(25 * scale)
    # Ribs run down from back to front, and the sides are not quite alike.
    start = np.float32(patient.phase) + np.float32(0.42) * y - 4 * np.sign(x)
    along = (grid.z[part][k] - start.reshape(-1)[place]) / pitch
    along -= np.floor(along) + np.float32(0.5)
    along *= pitch / np.float32(6.2 * scale)
    away = np.where(np.abs(x) < 24 * scale, np.float32(9), np.float32(0))
    rib = np.hypot(along, deep) + away.reshape(-1)[place]
    width = (x / np.float32(17 * scale)) ** 2 + np.float32(9) * (y > 0)
    bone = np.hypot(deep / np.float32(1.4), width.reshape(-1)[place])
    bone += np.float32(9) * (grid.z[part] < 0.3 * patient.length)[k]
    distance = np.minimum(rib, bone)
    cover = ((1 - distance) * np.float32(4 * scale / blur) + np.float32(0.5)).clip(0, 1)
    there = np.flatnonzero(cover)
    distance, cover, near = distance[there], cover[there], near[there]
    shell = np.exp(-(((distance - np.float32(0.8)) / np.float32(0.28)) ** 2))
    # In front ribs are cartilage.
    gristle = (y < -0.62 * patient.hull[0]).reshape(-1)[place[there]] & (rib < bone)[there]
    density = np.where(gristle, 110 + 60 * shell, 230 + 480 * shell)
    flat = slab.reshape(-1)
    flat[near] += cover * (density - flat[near])
    if grid.z[part][-1] < 0.5 * patient.length:
        return
    behind = (y > 12 * scale) & (np.abs(np.abs(x) - 74 * scale) < 36 * scale)
    blade = np.abs(wall[:, behind] - np.float32(15 * scale))
    blade += np.float32(99) * (grid.z[part] < 0.5 * patient.length)[:, None]
    cover = ((np.float32(1.8 * scale) - blade) / np.float32(blur) + np.float32(0.5)).clip(0, 1)
    slab[:, behind] += cover * (480 - slab[:, behind])


def _backbone(patient: Patient, grid: Grid) -> tuple[tuple[slice, ...], Floats, Floats]:
    """Return where the backbone is, what bone covers there (h, w), and its density (D, h, w)."""
    scale, blur = patient.scale, grid.blur
    rows, columns = (
        slice(*np.searchsorted(axis, (low, high)).tolist())
        for axis, low, high in (
            (grid.y, patient.back - 19 * scale, patient.back + 49 * scale),
            (grid.x, -38 * scale, 38 * scale),
        )
    )
    y, x = grid.y[rows, None] - np.float32(patient.back), grid.x[None, columns]
    body = np.hypot(x / np.float32(17), (y + 3 * scale) / np.float32(13.5)) / scale
    hole = np.hypot(x, y - np.float32(17 * scale)) / np.float32(8 * scale)
    arch = np.abs(hole - 1.35) / 0.35
    spine = np.maximum(np.abs(x) / np.float32(3.4 * scale), np.abs(y - 34 * scale) / (11 * scale))
    sides = np.hypot(
        (y - 13 * scale - np.float32(0.3) * np.abs(x)) / (5 * scale),
        ((np.abs(x) - 17 * scale) / (14 * scale)) ** 2,
    )
    trunk = np.minimum(body, arch)
    distance = np.minimum.reduce([trunk, spine, sides])
    cover = ((1 - distance) * np.float32(5 * scale / blur) + 0.5).clip(0, 1)
    shell = np.exp(-(((distance - np.float32(0.88)) / np.float32(0.14)) ** 2))
    bone = 190 + 420 * shell
    # Between the vertebrae lie discs.
    step = 27 * scale
    apart = np.abs((grid.z - patient.phase) % step - step / 2)
    disc = ((2.6 * scale - apart) / blur + 0.5).clip(0, 1)[:, None, None]
    plate = np.exp(-(((apart - 4.2 * scale) / (1.4 * scale)) ** 2))[:, None, None]
    density = bone + disc * (85 - bone) + 180 * plate * (body < 1)
    # Each process leaves the vertebra at one height, the one in the middle lower down.
    height = (grid.z - patient.phase)[:, None, None]
    for process, drop in ((sides, 4.0), (spine, 12.0)):
        apart = np.abs((height + drop * scale + step / 2) % step - step / 2)
        shown = ((6 * scale - apart) / blur + 0.5).clip(0, 1)
        density = np.where(
            (process < trunk) & (process <= distance), 60 + shown * (bone - 60), density
        )
    there = (slice(None), rows, columns)
    return there, cover.astype(np.float32), density.astype(np.float32)


def _table(patient: Patient, grid: Grid) -> Floats:
    """Return what is around the body (H, W): air, and the table that the patient lies on."""
    y, x = grid.y[:, None], grid.x[None]
    bent = patient.body[0] + 3 * patient.scale - 0.0011 / patient.scale * x**2
    bent = np.where(np.abs(x) < patient.body[1] * 0.9, bent, 1e4)
    top = (2.2 - np.abs(y - bent)).clip(0, grid.blur) / grid.blur
    foam = ((y > bent) & (y < bent + 14)).astype(np.float32)
    return (AIR + 480 * top + 45 * foam).astype(np.float32)


def _fissures(random: Random, patient: Patient, grid: Grid, volume: Floats) -> None:
    """Draw the thin sheets between the lobes."""
    for side, (height, slope, bend) in zip((-1, 1), patient.fissures.tolist(), strict=True):
        y, x = grid.y[:, None], grid.x[None] + 0 * grid.y[:, None]
        sheet = height + slope * y + bend * np.cos(x / (30 * patient.scale)) + 0.1 * np.abs(x)
        index = (sheet - grid.z[0]) / grid.spacing[0]
        k = np.rint(index).astype(int)
        there = (k >= 0) & (k < len(grid.z)) & (np.sign(x) == side)
        j, i = np.nonzero(there)
        at = k[there], j, i
        values = volume[at]
        strength = np.float32(random.uniform(60, 140)) / max(1.0, grid.blur)
        volume[at] = np.where(values < -700, values + strength, values)


def _splat(volume: Floats, grid: Grid, tubes: Tubes, density: float) -> None:
    """Draw balls in place, where they are denser than what is there."""
    flat = volume.reshape(-1)
    lung = np.float32(LUNG)
    for index, cover in _covered(grid, tubes):
        np.maximum.at(flat, index, lung + cover * np.float32(density - LUNG))


def _bronchi(volume: Floats, grid: Grid, tubes: Tubes) -> None:
    """Draw tubes with a wall and air in them."""
    wall = Tubes(points=tubes.points, radii=tubes.radii * 1.15 + 0.7)
    _splat(volume, grid, wall, -60.0)
    flat = volume.reshape(-1)
    for index, cover in _covered(grid, tubes):
        np.minimum.at(flat, index, np.float32(40) - cover * np.float32(1010))


def _covered(grid: Grid, tubes: Tubes) -> list[tuple[Array, Array]]:
    """Return the voxels that balls touch, as flat indices, and which share they cover of them."""
    found = []
    spacing, blur = grid.spacing, np.float32(grid.blur)
    place = (tubes.points - grid.origin) / spacing
    seen = ((place > -1) & (place < grid.shape)).all(axis=1)
    place, radii = place[seen], tubes.radii[seen]
    strides = (grid.shape[1] * grid.shape[2], grid.shape[2], 1)
    edges = (0.0, 0.8, 1.2, 1.8, 2.6, 4.0, 7.0, 1e3)
    for low, high in pairwise(edges):
        chosen = (radii >= low) & (radii < high)
        if not chosen.any():
            continue
        points, radius = place[chosen], radii[chosen]
        reach = np.ceil((radius.max() + 0.45 * blur) / spacing - 0.5).astype(int)
        nearest = np.rint(points).astype(np.int32)
        squares, indices = [], []
        for axis, (count, size) in enumerate(zip(reach.tolist(), grid.shape, strict=True)):
            index = nearest[:, axis, None] + np.arange(-count, count + 1, dtype=np.int32)
            apart = (index - points[:, axis, None]) * spacing[axis]
            # Voxels outside are put far away.
            square = np.where((index >= 0) & (index < size), apart**2, 1e9)
            squares.append(square.astype(np.float32))
            indices.append(index * np.int32(strides[axis]))
        square, flat = (
            (z[:, :, None, None] + y[:, None, :, None]) + x[:, None, None, :]
            for z, y, x in (squares, indices)
        )
        square, flat = square.reshape(len(points), -1), flat.reshape(len(points), -1)
        touched = square < ((radius + np.float32(0.45) * blur) ** 2)[:, None]
        radius = np.repeat(radius, touched.sum(axis=1))
        cover = ((radius - np.sqrt(square[touched])) / blur + np.float32(0.5)).clip(0, 1)
        # What is thinner than a voxel fills it only in part.
        cover *= (2 * radius / blur).clip(0, 1)
        found.append((flat[touched], cover))
    return found


def _add(random: Random, patient: Patient, grid: Grid, volume: Floats, nodule: Nodule) -> None:
    """Draw a nodule; beyond the lung's wall nothing changes."""
    shape = _shape_of(nodule, grid)
    if shape is None:
        return
    _splat(volume, grid, nodule.spicules, 10.0)
    box, deep, share = shape
    blur = np.float32(grid.blur)
    cover = (deep / blur + np.float32(0.5)).clip(0, 1)
    density = np.full(cover.shape, nodule.density, dtype=np.float32)
    density += _noise(random, cover.shape, 1.0) * (8 if nodule.kind == "solid" else 35)
    if nodule.kind == "part-solid":
        solid = ((nodule.core - share) * nodule.diameter / 2 / blur + 0.5).clip(0, 1)
        density += solid * (30 - density)
    if nodule.chalk:
        density += ((0.55 - share) * 4).clip(0, 1) * nodule.chalk
    there = volume[box]
    # Vessels are seen through a faint one.
    changed = np.maximum(there, there + cover * (density - there))
    volume[box] = np.where(_in_lung(patient, grid, box), changed, there)


def _exposed(random: Random, grid: Grid, volume: Floats) -> NDArray[np.int16]:
    """Add noise, apply the kernel, and round."""
    soft, sharp = float(random.uniform(0.08, 0.24)), float(random.choice([0.0, 0.0, 0.06]))
    kernel = np.array([-sharp, soft, 1 - 2 * soft + 2 * sharp, soft, -sharp], dtype=np.float32)
    noise = np.float32(random.uniform(14, 46))
    y, x = grid.y[:, None], grid.x[None]
    # Fewer rays come through in the middle.
    extent = float(max(abs(grid.y).max(), abs(grid.x).max()))
    deviation = noise * (1.25 - 0.75 * (np.hypot(y, x) / extent).clip(0, 1)).astype(np.float32)
    image = np.empty(volume.shape, dtype=np.int16)
    for start in range(0, len(volume), SLAB):
        part = slice(start, start + SLAB)
        slab = random.standard_normal(volume[part].shape, dtype=np.float32)
        slab *= deviation
        slab += volume[part]
        for axis in (1, 2):
            slab = ndimage.correlate1d(slab, kernel, axis=axis, mode="nearest")
        image[part] = np.rint(slab).clip(-1024, 3071)
    return image
