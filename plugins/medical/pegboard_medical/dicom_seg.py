"""DICOM segmentation objects: masks that any viewer lays over the series that they were made from.

pydicom and highdicom are imported on use: they take a second, and serving a bundle without a PACS
needs neither.
"""

from __future__ import annotations

import colorsys
import hashlib
import logging
import re
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version as version_of
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pegboard.errors import DataError
from pegboard.records import Array
from pegboard_medical import dicom

if TYPE_CHECKING:
    from pydicom import Dataset

ALGORITHM = "Pegboard"
SERIES_NUMBER = 9000
"""Far from what scanners count, so that a viewer lists it after the images."""
GOLDEN = 0.618034
"""Turns the hue from segment to segment so that no two are alike."""
LONGEST_LABEL = 64


@contextmanager
def quiet() -> Iterator[None]:
    """Keep pydicom and highdicom from warning and logging: their words quote what a file holds.

    highdicom logs the patient's name where it has no caret, pydicom any value that it finds wrong.
    """
    for name in ("pydicom", "highdicom", "dicomweb_client"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with dicom.quiet():
        yield


# --- What segments are ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """What a structure is, in SNOMED CT: code and meaning."""

    category: tuple[str, str]
    type: tuple[str, str]
    modifier: tuple[str, str] | None = None


ALTERED = ("49755003", "Morphologically Abnormal Structure")
ANATOMY = ("123037004", "Anatomical Structure")

_LESIONS = {
    "nodule": ("27925004", "Nodule"),
    "lesion": ("52988006", "Lesion"),
    "mass": ("4147007", "Mass"),
    "tumor": ("108369006", "Neoplasm"),
    "tumour": ("108369006", "Neoplasm"),
    "neoplasm": ("108369006", "Neoplasm"),
    "edema": ("79654002", "Edema"),
    "oedema": ("79654002", "Edema"),
    "necrosis": ("6574001", "Necrosis"),
    "hemorrhage": ("50960005", "Hemorrhage"),
    "haemorrhage": ("50960005", "Hemorrhage"),
    "cyst": ("367643001", "Cyst"),
}
_ORGANS = {
    "hippocampus": ("5366008", "Hippocampus"),
    "lung": ("39607008", "Lung"),
    "liver": ("10200004", "Liver"),
    "kidney": ("64033007", "Kidney"),
    "spleen": ("78961009", "Spleen"),
    "heart": ("80891009", "Heart"),
    "brain": ("12738006", "Brain"),
    "bone": ("272673000", "Bone"),
    "vessel": ("59820001", "Blood Vessel"),
    "trachea": ("44567001", "Trachea"),
    "pancreas": ("15776009", "Pancreas"),
    "prostate": ("41216001", "Prostate"),
    "bladder": ("89837001", "Bladder"),
    "aorta": ("15825003", "Aorta"),
    "stomach": ("69695003", "Stomach"),
    "gallbladder": ("28231008", "Gallbladder"),
    "esophagus": ("32849002", "Esophagus"),
    "vertebra": ("51282000", "Vertebra"),
    "rib": ("113197003", "Rib"),
}
_SIDES = {
    "anterior": ("255549009", "Anterior"),
    "posterior": ("255551008", "Posterior"),
    "left": ("7771000", "Left"),
    "right": ("24028007", "Right"),
}


def kind_of(name: str) -> Kind:
    """Return the codes of a structure by the words of its name; its label says the rest.

    A lesion of an organ (`liver_tumour`) is coded as the lesion.
    """
    words = [word.removesuffix("s") or word for word in re.split(r"[^a-z]+", name.lower())]
    plain = [*words, *re.split(r"[^a-z]+", name.lower())]  # `hippocampus` ends in s, too.
    side = next((_SIDES[word] for word in plain if word in _SIDES), None)
    for word in plain:
        if word in _LESIONS:
            return Kind(ALTERED, _LESIONS[word], side)
    for word in plain:
        if word in _ORGANS:
            return Kind(ANATOMY, _ORGANS[word], side)
    return Kind(ANATOMY, ANATOMY, side)


def _described(number: int, name: str, color: int, version: str) -> Any:
    import highdicom as hd
    from highdicom.color import CIELabColor
    from pydicom.sr.coding import Code

    def code(pair: tuple[str, str]) -> Any:
        return Code(pair[0], "SCT", pair[1])

    kind = kind_of(name)
    red, green, blue = colorsys.hsv_to_rgb(color * GOLDEN % 1, 0.75, 0.95)
    described = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=name[:LONGEST_LABEL],
        segmented_property_category=code(kind.category),
        segmented_property_type=code(kind.type),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=ALGORITHM,
            version=version[:LONGEST_LABEL],
            family=Code("123110", "DCM", "Artificial Intelligence"),
        ),
        display_color=CIELabColor.from_rgb(round(red * 255), round(green * 255), round(blue * 255)),
    )
    if kind.modifier:
        modifier = hd.sr.CodedConcept.from_code(code(kind.modifier))
        property_type = described.SegmentedPropertyTypeCodeSequence[0]
        property_type.SegmentedPropertyTypeModifierCodeSequence = [modifier]
    return described


# --- Writing --------------------------------------------------------------------------------------

_PATIENT = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "IssuerOfPatientID",
    "PatientAge",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
)
_STUDY = ("StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "StudyID")
_NEEDED = (
    "SOPInstanceUID",
    "SOPClassUID",
    "SeriesInstanceUID",
    "StudyInstanceUID",
    "FrameOfReferenceUID",
    "Rows",
    "Columns",
)
"""Without these a segmentation has nothing to refer to."""


def seg_dataset(
    mask: Array,
    sources: Sequence[Dataset],
    classes: Sequence[str],
    *,
    description: str = "",
    version: str = "",
    seed: str = "",
) -> Dataset:
    """Make the segmentation object of a series.

    A structure without a voxel is left out. Where nothing at all was found every structure is
    listed with empty frames, so that whoever looks sees that it was looked for.

    Args:
        mask: uint8 (D, H, W) on the sources' own grid: 0 background, k + 1 is `classes[k]`.
        sources: The series' instances, one a slice in the order of the mask; or one multi-frame
            instance.
        classes: Names of the structures.
        description: Of the series that it makes, as a viewer lists it.
        version: Of the model, as each segment carries it; this plugin's where it is empty.
        seed: Where it is given, the same mask of the same series gets the same UIDs.

    Raises:
        DataError: Mask and series do not fit, or the series lacks what it would be referred by.
    """
    import highdicom as hd

    _check(mask, sources, classes)
    present = [k for k in range(len(classes)) if (mask == k + 1).any()]
    listed = present or list(range(len(classes)))
    numbers = np.zeros(256, dtype=np.uint8)
    for number, k in enumerate(listed, start=1):
        numbers[k + 1] = number
    uids = _uids(mask, sources, seed)
    step = _step(sources)
    with quiet():
        try:
            segmentation = hd.seg.Segmentation(
                source_images=[_bare(source, step) for source in sources],
                pixel_array=numbers[mask],
                segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
                segment_descriptions=[
                    _described(number, classes[k], k, version or version_of("pegboard-medical"))
                    for number, k in enumerate(listed, start=1)
                ],
                series_instance_uid=next(uids),
                series_number=SERIES_NUMBER,
                sop_instance_uid=next(uids),
                instance_number=1,
                manufacturer=ALGORITHM,
                manufacturer_model_name=ALGORITHM,
                software_versions=version_of("pegboard-medical"),
                device_serial_number="0",
                content_label="SEGMENTATION",
                content_description=(description or "Segmentation")[:LONGEST_LABEL],
                omit_empty_frames=bool(present),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            # Its words may quote the file's values.
            raise DataError(
                "no segmentation can be made of this series",
                where=f"highdicom, {type(error).__name__}",
                remedy="look for what its headers lack, such as position or orientation",
            ) from None
        segmentation.SeriesDescription = (description or "Segmentation")[:LONGEST_LABEL]
        _take_over(segmentation, sources[0])
    return segmentation


def seg_bytes(
    mask: Array,
    sources: Sequence[Dataset],
    classes: Sequence[str],
    *,
    description: str = "",
    version: str = "",
    seed: str = "",
) -> bytes:
    """Return the segmentation object as the bytes of a file; see `seg_dataset`."""
    dataset = seg_dataset(
        mask, sources, classes, description=description, version=version, seed=seed
    )
    stream = BytesIO()
    with quiet():
        dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def _frames(sources: Sequence[Dataset]) -> int:
    """Return how many slices the sources hold."""
    if len(sources) == 1:
        return int(sources[0].get("NumberOfFrames") or 1)
    return len(sources)


def _check(mask: Array, sources: Sequence[Dataset], classes: Sequence[str]) -> None:
    if not sources:
        raise DataError(
            "a segmentation needs the series that it is of", remedy="give its instances"
        )
    if int(mask.max(initial=0)) > len(classes):
        raise DataError(
            f"the mask has the label {int(mask.max())} and there are {len(classes)} classes",
            where="data.classes",
            remedy="name every structure of the mask",
        )
    for number, source in enumerate(sources, start=1):
        missing = next((name for name in _NEEDED if not source.get(name)), None)
        if missing:
            raise DataError(
                f"{missing} is missing",
                where=f"instance {number} of the series",
                remedy="take the series from the scanner or PACS again",
            )
    series = {(str(source.SeriesInstanceUID), source.Rows, source.Columns) for source in sources}
    if len(series) > 1:
        raise DataError(
            "the instances are not of one series and one size", remedy="give one series at a time"
        )
    wanted = (_frames(sources), int(sources[0].Rows), int(sources[0].Columns))
    if mask.shape != wanted:
        raise DataError(
            f"the mask is {_times(mask.shape)} voxels and the series {_times(wanted)}",
            remedy="bring the mask back to the grid of the series",
        )


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _uids(mask: Array, sources: Sequence[Dataset], seed: str) -> Iterator[str]:
    """Yield UIDs of the object, the same ones for the same mask, series and seed."""
    secret = uuid.uuid4().bytes
    if seed:
        text = "|".join((seed, *(str(source.SOPInstanceUID) for source in sources)))
        secret = hashlib.sha256(text.encode() + np.ascontiguousarray(mask).tobytes()).digest()
    count = 0
    while True:
        digest = hashlib.sha256(secret + bytes([count])).digest()
        yield f"2.25.{uuid.UUID(bytes=digest[:16], version=4).int}"
        count += 1


_LOOKED_AT = (0x0008, 0x0018, 0x0020, 0x0028, 0x0040, 0x0048, 0x5200)
"""Groups of the attributes that say what and where an image is; pixels are elsewhere."""


def _step(sources: Sequence[Dataset]) -> float:
    """Return the millimetres from slice to slice; 1 where the sources do not say."""
    places = [source.get("ImagePositionPatient") for source in sources]
    if len(places) < 2 or not (places[0] and places[-1]):
        return 1.0
    length = np.linalg.norm(np.subtract(places[-1], places[0], dtype=np.float64))
    return float(length) / (len(places) - 1) or 1.0


def _bare(source: Dataset, step: float) -> Dataset:
    """Return a source with what highdicom looks at and nothing of the patient.

    highdicom refuses a patient's sex that is not M, F or O, warns with the patient's name in its
    words, and needs attributes that files may lack.
    """
    from pydicom import Dataset as New

    emptied = (*_PATIENT, *_STUDY)
    bare = New()
    if hasattr(source, "file_meta"):
        bare.file_meta = source.file_meta
    for element in source:
        # The element is the source's own: it is left out, not emptied.
        if element.tag.group in _LOOKED_AT and element.keyword not in emptied:
            bare.add(element)
    for keyword in (*_PATIENT[:4], *_STUDY):
        setattr(bare, keyword, "")
    # DICOM lets it be empty, highdicom does not.
    if "PixelSpacing" in bare and not bare.get("SliceThickness"):
        # Written into, the element would be the source's own.
        bare.pop("SliceThickness", None)
        bare.SliceThickness = f"{step:.6g}"
    return bare


def _take_over(segmentation: Dataset, source: Dataset) -> None:
    """Let the object belong to the patient and the study of its source."""
    for keyword in (*_PATIENT, *_STUDY):
        if keyword in source:
            segmentation[keyword] = source[keyword]
    if "SpecificCharacterSet" in source:
        segmentation["SpecificCharacterSet"] = source["SpecificCharacterSet"]


# --- Reading --------------------------------------------------------------------------------------


def read_seg(
    segmentation: Dataset | Path | bytes,
    sources: Sequence[Dataset],
    classes: Sequence[str] = (),
) -> Array:
    """Return the mask of a segmentation object on the grid of its series.

    Args:
        segmentation: The object, its file or the bytes of the file.
        sources: The series' instances in the order that the mask is wanted in; headers suffice.
        classes: Where every segment is called like one of them, its place gives the label;
            otherwise a segment's own number does.

    Returns:
        uint8 (D, H, W).

    Raises:
        DataError: It is no segmentation, is of another series, or has segments that overlap.
    """
    import highdicom as hd
    from pydicom.errors import InvalidDicomError

    with quiet():
        try:
            dataset = _opened(segmentation)
            if str(dataset.SOPClassUID) != dicom.SEGMENTATION:
                raise ValueError
            read = hd.seg.Segmentation.from_dataset(dataset, copy=False)
        except (AttributeError, InvalidDicomError, KeyError, OSError, TypeError, ValueError):
            raise DataError(
                "this is no DICOM segmentation that can be read",
                remedy="give a file of SOP class Segmentation Storage",
            ) from None
        labels = _labels(read, classes)
        mask = np.zeros(
            (_frames(sources), int(sources[0].Rows), int(sources[0].Columns)), dtype=np.uint8
        )
        for number, label in labels.items():
            found = _segment(read, sources, number)
            if (mask[found] > 0).any():
                raise DataError(
                    f"segment {number} overlaps another one",
                    where="DICOM segmentation",
                    remedy="leave one of them out: a voxel has one label here",
                )
            mask[found] = label
    return mask


def _opened(segmentation: Dataset | Path | bytes) -> Dataset:
    from pydicom import dcmread

    if isinstance(segmentation, Path):
        return dcmread(segmentation)
    if isinstance(segmentation, bytes):
        return dcmread(BytesIO(segmentation))
    return segmentation


def _labels(read: Any, classes: Sequence[str]) -> dict[int, int]:
    """Return the mask's label of each segment number."""
    names = {
        int(item.SegmentNumber): str(item.get("SegmentLabel", "")).lower()
        for item in read.SegmentSequence
    }
    known = {name.lower()[:LONGEST_LABEL]: k + 1 for k, name in enumerate(classes)}
    if all(name in known for name in names.values()):
        return {number: known[name] for number, name in names.items()}
    if max(names) > 255:
        raise DataError("the segmentation has more than 255 segments", remedy="split it")
    return {number: number for number in names}


def _segment(read: Any, sources: Sequence[Dataset], number: int) -> Array:
    """Return where one segment is, bool (D, H, W); frames that are not stored are empty.

    By the instances that its frames refer to; where they refer to none of these, by position.
    """
    uids = [str(source.SOPInstanceUID) for source in sources]
    named = {str(triple[2]) for triple in read.get_source_image_uids()}
    if named.isdisjoint(uids):
        return _by_position(read, sources, number)
    options = {
        "segment_numbers": [number],
        "ignore_spatial_locations": True,
        "assert_missing_frames_are_empty": True,
        "rescale_fractional": False,
    }
    try:
        if _frames(sources) == len(sources):
            stored = read.get_pixels_by_source_instance(uids, **options)
        else:
            frames = list(range(1, _frames(sources) + 1))
            stored = read.get_pixels_by_source_frame(uids[0], frames, **options)
    except (KeyError, RuntimeError, ValueError):
        return _by_position(read, sources, number)
    return _inside(read, stored)


def _by_position(read: Any, sources: Sequence[Dataset], number: int) -> Array:
    """Return one segment by matching the places of frames and slices, bool (D, H, W)."""
    import highdicom as hd

    try:
        if str(read.FrameOfReferenceUID) != str(sources[0].FrameOfReferenceUID):
            raise ValueError
        shape = (_frames(sources), int(sources[0].Rows), int(sources[0].Columns))
        geometry = hd.VolumeGeometry(dicom.affine_of(sources), shape, "PATIENT")
        found = read.get_volume(segment_numbers=[number], rescale_fractional=False)
        return _inside(read, found.match_geometry(geometry, tol=0.01).array)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        raise DataError(
            "the segmentation is not of this series",
            where="DICOM segmentation",
            remedy="give the series whose instances it refers to",
        ) from None


def _inside(read: Any, stored: Array) -> Array:
    """Return bool (D, H, W): of fractions (D, H, W, 1), where half or more is inside."""
    top = int(read.get("MaximumFractionalValue") or 1)
    return np.asarray(stored[..., 0].astype(np.int64) * 2 >= top)
