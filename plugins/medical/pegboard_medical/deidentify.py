"""`pegboard deidentify`: the basic confidentiality profile of DICOM PS3.15, Annex E.

Which attribute is removed, emptied, replaced or mapped is the standard's table E.1-1, as
dicom-anonymizer carries it. Applying it is done here, because that library looks at the outermost
level only, leaves dates of the year 1 where the table says remove, and maps UIDs by chance.

Beyond the profile, which keeps what its table does not list: of text only what describes a machine,
a method or a code is kept, of bytes only pixels and their tables, and nothing that holds a word of
the patient's name or numbers. What a picture shows is not looked at: a head scan still has a face.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import uuid
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta
from enum import Enum
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pegboard.cli.options import project_folder
from pegboard.errors import DataError, PegboardError
from pegboard.files import atomic_path, atomic_write
from pegboard.logs import new_progress
from pegboard_medical.privacy import SECRET, pseudonym

if TYPE_CHECKING:
    from pydicom import Dataset

    from pegboard.progress import Progress

TABLE = "dicomfields_2026c"
"""Edition of table E.1-1, as dicom-anonymizer calls it."""
DUMMY = "ANONYMIZED"
LONGEST_SHIFT = 3650
"""Days that dates are moved back at most."""
LARGEST_FILE = 8 * 2**30
"""Bytes of a file in an archive."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is done differently from the basic profile."""

    shift_dates: bool = False
    """Move the dates of a patient by one number of days instead of taking them out."""
    keep_uids: bool = False
    """Keep UIDs: whoever has the originals can find them again."""
    keep_burned_in: bool = False
    """Take pictures that may show names."""


# --- The profile ----------------------------------------------------------------------------------


class Action(Enum):
    """What is done with an attribute."""

    REMOVE = "remove"
    EMPTY = "empty"
    REPLACE = "replace"
    """By a dummy of its kind."""
    UID = "uid"
    """By another UID, the same one wherever it is."""
    GO_IN = "go in"
    """A sequence that is kept: its items are cleaned."""
    SHIFT = "shift"
    """A date: moved by the patient's number of days."""
    CHECK = "check"
    """Kept, if it holds no word of the patient's."""
    KEEP = "keep"


_ACTIONS = {
    "X_TAGS": Action.REMOVE,
    "Z_TAGS": Action.EMPTY,
    "D_TAGS": Action.REPLACE,
    "U_TAGS": Action.UID,
    # Which of several depends on the kind of object: what suits all kinds is done.
    "X_Z_TAGS": Action.EMPTY,
    "Z_D_TAGS": Action.REPLACE,
    "X_D_TAGS": Action.REPLACE,
    "X_Z_D_TAGS": Action.REPLACE,
    "X_Z_U_STAR_TAGS": Action.GO_IN,
}

SAFE_TEXT = _words(
    # Codes.
    "CodeValue LongCodeValue URNCodeValue CodingSchemeDesignator CodingSchemeVersion "
    "CodeMeaning MappingResourceName "
    # Machines and methods.
    "Manufacturer ManufacturerModelName SoftwareVersions ConvolutionKernel SequenceName "
    "PulseSequenceName ReceiveCoilName TransmitCoilName FilterType ImagedNucleus StackID "
    "RescaleType ModalityLUTType AcquisitionDeviceProcessingCode PhosphorType "
    "Radiopharmaceutical RadiopharmaceuticalRoute ContrastBolusRoute EnergyWindowName "
    "AttenuationCorrectionMethod ReconstructionMethod ScatterCorrectionMethod "
    "DimensionDescriptionLabel OpticalPathIdentifier "
    # What segments are and who made them.
    "SegmentLabel SegmentAlgorithmName AlgorithmName AlgorithmVersion AlgorithmSource"
)
"""Text that is kept although somebody typed it: it says nothing of a patient, and readers need it.
A word of the patient's in it is looked for all the same."""

SAFE_BYTES = _words(
    "PixelData FloatPixelData DoubleFloatPixelData ExtendedOffsetTable "
    "ExtendedOffsetTableLengths RedPaletteColorLookupTableData GreenPaletteColorLookupTableData "
    "BluePaletteColorLookupTableData AlphaPaletteColorLookupTableData "
    "SegmentedRedPaletteColorLookupTableData SegmentedGreenPaletteColorLookupTableData "
    "SegmentedBluePaletteColorLookupTableData SegmentedAlphaPaletteColorLookupTableData LUTData"
)

SAFE_UIDS = _words(
    "SOPClassUID ReferencedSOPClassUID CodingSchemeUID ContextUID MappingResourceUID"
)
"""They say of which kind something is; every other UID is mapped, listed or not."""

ESSENTIAL = _words("SpecificCharacterSet Modality ImageType PhotometricInterpretation")
"""No word of a patient's is looked for in these: a reader needs them and knows few words."""

_TEXT = ("AE", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT")
_BYTES = ("OB", "OD", "OF", "OL", "OV", "OW", "UN", "OB or OW")
_DATES = ("DA", "DT", "TM")
_CODE = re.compile(r"[A-Za-z0-9 _./+-]{0,16}")
_AGE = re.compile(r"\d{3}[DWMY]")
_UID = re.compile(r"[0-9]+(\.[0-9]+)+")
_STANDARD_UID = re.compile(r"1\.2\.840\.10008(\.[0-9]+)+")
_OVERLAYS, _CURVES = 0x6000, 0x5000


@lru_cache(maxsize=1)
def profile() -> Mapping[int, Action]:
    """Return what table E.1-1 says, by tag; overlays and curves, which repeat, are not in it."""
    from dicomanonymizer.dicomfields_selector import dicom_anonymization_database_selector

    table = dicom_anonymization_database_selector(TABLE)
    return {
        (tag[0] << 16) + tag[1]: action
        for column, action in _ACTIONS.items()
        for tag in table[column]
        if len(tag) == 2
    }


def is_removed(tag: Any, options: Options) -> bool:
    """Say whether an attribute goes, whatever it holds, so that its value need not be readable."""
    if tag.is_private or tag.element == 0 or (tag.group & 0xFF00) in (_OVERLAYS, _CURVES):
        return True
    return profile().get(int(tag)) is Action.REMOVE and not options.shift_dates


def action_for(element: Any, options: Options) -> Action:
    """Return what is done with an attribute."""
    tag, vr = element.tag, str(element.VR)
    if is_removed(tag, options):
        return Action.REMOVE
    # Of a patient itself no date is kept, whatever the option.
    if options.shift_dates and vr in _DATES and tag.group != 0x0010:
        return Action.SHIFT
    listed = profile().get(int(tag))
    if listed is not None:
        return listed if vr == "SQ" or listed is not Action.GO_IN else Action.EMPTY
    if vr == "SQ":
        return Action.GO_IN
    if vr == "UI":
        return Action.KEEP if _is_kind(element) else Action.UID
    if vr in _TEXT:
        return Action.CHECK if element.keyword in SAFE_TEXT else Action.EMPTY
    if vr in _DATES:
        return Action.EMPTY
    if vr in _BYTES:
        return Action.KEEP if element.keyword in SAFE_BYTES else Action.REMOVE
    if vr == "CS":
        return Action.CHECK if _fits(element, _CODE) else Action.EMPTY
    if vr == "AS":
        return Action.KEEP if _fits(element, _AGE) else Action.EMPTY
    return Action.KEEP  # Numbers.


def _is_kind(element: Any) -> bool:
    return element.keyword in SAFE_UIDS and _fits(element, _UID)


def _fits(element: Any, pattern: re.Pattern[str]) -> bool:
    return all(pattern.fullmatch(value) for value in _values(element))


def _values(element: Any) -> list[str]:
    if element.value is None:
        return []
    many = element.VM > 1
    return [str(value) for value in (element.value if many else [element.value])]


# --- Pseudonyms -----------------------------------------------------------------------------------


@dataclass
class Names:
    """What stands for patients, UIDs and files: always the same for the same secret."""

    folder: Path
    """Where the secret is kept; see `privacy.py`."""
    _uids: dict[str, str] = field(default_factory=dict)

    def patient(self, given: str) -> str:
        """Return the PatientID that stands for another one."""
        return pseudonym(f"patient:{given}", self.folder)

    def file(self, given: str) -> str:
        """Return the name that stands for a file's or a folder's."""
        return pseudonym(f"file:{given}", self.folder)

    def days(self, patient: str) -> int:
        """Return how far the dates of a patient are moved back."""
        return 1 + int(pseudonym(f"days:{patient}", self.folder), 16) % LONGEST_SHIFT

    def uid(self, given: str) -> str:
        """Return the UID that stands for another one."""
        if _STANDARD_UID.fullmatch(given):
            return given
        if given not in self._uids:
            parts = (pseudonym(f"uid{part}:{given}", self.folder) for part in range(3))
            drawn = bytes.fromhex("".join(parts))[:16]
            self._uids[given] = f"2.25.{uuid.UUID(bytes=drawn, version=4).int}"
        return self._uids[given]


# --- One object -----------------------------------------------------------------------------------


class LeftOutError(Exception):
    """An object cannot be de-identified; its words say why, and nothing of the object."""


UNKNOWN = "neither DICOM nor single-file NIfTI"
DAMAGED = "damaged"
NO_PICTURE = "documents, reports, presentations or raw data, whose content no rule can clean"
BURNED_IN = (
    "pictures that may show names (marked so, screenshots, ultrasound and the like): look at them, "
    "then give --keep-burned-in"
)
HIDDEN_OVERLAY = "pictures with an overlay in the unused bits of their pixels"
COPY = "copies of others"

_OFTEN_BURNED_IN = _words("US IVUS SC OT XC ES GM XA RF DOC SM OP OPT EPS ECG HC DX CR MG")
_USUALLY_CLEAN_WHERE_ORIGINAL = _words("XA RF DX CR MG SM")
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_CONTOURS = "1.2.840.10008.5.1.4.1.1.481.3"
_TEXT_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.88.",  # Structured reports.
    "1.2.840.10008.5.1.4.1.1.104.",  # Encapsulated documents.
    "1.2.840.10008.5.1.4.1.1.11.",  # Presentation states.
)
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


def deidentify_dataset(dataset: Dataset, names: Names, options: Options | None = None) -> None:
    """Take out of an object, in place, all that says whose it is.

    Raises:
        LeftOutError: It cannot be done by rule.
    """
    options = options or Options()
    _look(dataset, options)
    patient = str(dataset.get("PatientID") or "").strip() or str(dataset.get("StudyInstanceUID"))
    cleaner = _Cleaner(
        names=names, options=options, words=words_of(dataset), days=names.days(patient)
    )
    cleaner.clean(dataset)
    _clean_pixels(dataset)
    dataset.PatientID = dataset.PatientName = names.patient(patient)
    _sign(dataset, options)
    _new_meta(dataset)


def _look(dataset: Dataset, options: Options) -> None:
    """Refuse what no rule can clean."""
    kind = str(dataset.get("SOPClassUID") or "")
    if not _STANDARD_UID.fullmatch(kind) or kind.startswith(_TEXT_CLASSES):
        raise LeftOutError(NO_PICTURE)
    if not any(keyword in dataset for keyword in _PIXELS) and kind != _CONTOURS:
        raise LeftOutError(NO_PICTURE)
    for group in range(_OVERLAYS, _OVERLAYS + 0x20, 2):
        # An overlay without data of its own lies in bits of the pixels.
        if (group, 0x0010) in dataset and (group, 0x3000) not in dataset:
            raise LeftOutError(HIDDEN_OVERLAY)
    if not options.keep_burned_in and may_show_names(dataset):
        raise LeftOutError(BURNED_IN)


def may_show_names(dataset: Dataset) -> bool:
    """Say whether a picture may have text in its pixels."""
    said = str(dataset.get("BurnedInAnnotation") or "").upper()
    if said:
        return said != "NO"
    modality = str(dataset.get("Modality") or "").upper()
    if str(dataset.SOPClassUID).startswith(_SECONDARY_CAPTURE):
        return True
    if modality in _USUALLY_CLEAN_WHERE_ORIGINAL:
        kinds = [str(kind).upper() for kind in dataset.get("ImageType") or ()]
        return "ORIGINAL" not in kinds
    return modality in _OFTEN_BURNED_IN


IDS = _words(
    "PatientID OtherPatientIDs AccessionNumber PatientAddress PatientTelephoneNumbers "
    "PatientMotherBirthName MilitaryRank MedicalRecordLocator AdmissionID"
)


def words_of(dataset: Dataset) -> frozenset[str]:
    """Return the words of all names and of the patient's numbers, in small letters.

    Short ones are left out: they are in other words by chance.
    """
    found: set[str] = set()
    for element in _readable(dataset):
        if element.VR == "PN" or element.keyword in IDS:
            for value in _values(element):
                found.update(re.split(r"[\W_]+", value.casefold()))
    return frozenset(word for word in found if len(word) >= (4 if word.isascii() else 2))


def _readable(dataset: Dataset) -> Iterator[Any]:
    """Yield the elements of a dataset and of its sequences whose values can be read."""
    for tag in list(dataset.keys()):
        try:
            element = dataset[tag]
        except Exception:  # Of a damaged value pydicom raises whatever its bytes lead to.
            continue
        yield element
        if element.VR == "SQ":
            for item in element.value:
                yield from _readable(item)


@dataclass(frozen=True, kw_only=True)
class _Cleaner:
    """Cleans the datasets of one object, sequences included."""

    names: Names
    options: Options
    words: frozenset[str]
    days: int

    def clean(self, dataset: Dataset, *, dummies: bool = False) -> None:
        """Clean a dataset in place.

        Args:
            dataset: The object or an item in it.
            dummies: Whether all its text gives way, as in a sequence that is to be replaced.
        """
        for tag in list(dataset.keys()):
            if is_removed(tag, self.options):
                del dataset[tag]
                continue
            element = dataset[tag]
            action = action_for(element, self.options)
            if dummies and action in (Action.CHECK, Action.EMPTY):
                action = Action.REPLACE
            if action is Action.REMOVE:
                del dataset[tag]
            elif element.VR == "SQ":
                self._clean_sequence(element, action, dummies)
            elif not self._change(element, action):
                del dataset[tag]

    def _clean_sequence(self, element: Any, action: Action, dummies: bool) -> None:
        if action is Action.EMPTY:
            element.value = []
            return
        for item in element.value:
            self.clean(item, dummies=dummies or action is Action.REPLACE)

    def _change(self, element: Any, action: Action) -> bool:
        """Change a value; say False where it has to be removed instead."""
        if action is Action.EMPTY:
            element.clear()
        elif action is Action.SHIFT:
            shifted = [self._shifted(element.VR, value) for value in _values(element)]
            element.value = shifted if len(shifted) > 1 else "".join(shifted)
        elif action is Action.UID:
            uids = [self._uid(value) for value in _values(element)]
            element.value = uids if len(uids) > 1 else "".join(uids)
        elif action is Action.REPLACE:
            return _replace(element)
        elif action is Action.CHECK and self._is_told(element):
            element.value = "" if element.VR == "CS" else DUMMY
        return True

    def _uid(self, value: str) -> str:
        if not value or (self.options.keep_uids and _UID.fullmatch(value)):
            return value
        return self.names.uid(value)

    def _is_told(self, element: Any) -> bool:
        """Say whether a value holds a word of the patient's."""
        if element.keyword in ESSENTIAL:
            return False
        text = " ".join(_values(element)).casefold()
        return any(word in text for word in self.words)

    def _shifted(self, vr: str, value: str) -> str:
        """Move a date or the date of a time back; empty where it is none."""
        if vr == "TM":
            return value if re.fullmatch(r"[\d:.]*", value) else ""
        read = re.fullmatch(r"(\d{4})\.?(\d\d)\.?(\d\d)(\d{0,6}(\.\d{1,6})?([+-]\d{4})?)", value)
        if read is None or (vr == "DA" and read[4]):
            return ""
        try:
            moved = date(int(read[1]), int(read[2]), int(read[3])) - timedelta(days=self.days)
        except (OverflowError, ValueError):
            return ""
        return f"{moved:%Y%m%d}".rjust(8, "0") + read[4]


def _replace(element: Any) -> bool:
    """Put a dummy of its kind into an element; say False where there is none."""
    from dicomanonymizer.simpledicomanonymizer import replace_element

    if element.VR == "UI":  # The library would draw one by chance.
        element.value = ""
        return True
    try:
        replace_element(element)
    except NotImplementedError:
        return False
    return True


def _clean_pixels(dataset: Dataset) -> None:
    """Take out what lies beside the picture in the bytes of its pixels: comments and a tail."""
    from pydicom.encaps import encapsulate, generate_frames
    from pydicom.pixels.utils import get_expected_length
    from pydicom.uid import RLELossless

    if "PixelData" not in dataset:
        return
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_compressed or syntax.is_deflated:
        length = get_expected_length(dataset)
        if len(dataset.PixelData) < length:
            raise LeftOutError(DAMAGED)
        length += length % 2
        if len(dataset.PixelData) > length:
            dataset.PixelData = dataset.PixelData[:length]
        return
    if syntax == RLELossless:
        return
    count = int(dataset.get("NumberOfFrames") or 1)
    frames = list(generate_frames(dataset.PixelData, number_of_frames=count))
    cleaned = [without_comments(frame) for frame in frames]
    if cleaned != frames:
        dataset.PixelData = encapsulate(cleaned)
        for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
            if keyword in dataset:
                del dataset[keyword]


_KEPT_MARKERS = frozenset((0xE0, 0xE8, 0xEE))
"""JFIF, SPIFF and Adobe: a decoder learns the colours from them."""


def without_comments(frame: bytes) -> bytes:
    """Return a JPEG, JPEG-LS or JPEG 2000 stream without comments and application data.

    What comes after the first scan or tile begins is left as it is.
    """
    if frame[:2] not in (b"\xff\xd8", b"\xff\x4f"):
        return frame  # No stream of these kinds: nothing is known of it.
    is_jpeg = frame[1] == 0xD8
    kept, at = [frame[:2]], 2
    while at + 4 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == (0xDA if is_jpeg else 0x90):
            break
        end = at + 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
        told = marker == 0xFE or (0xE0 <= marker <= 0xEF and marker not in _KEPT_MARKERS)
        if not (told if is_jpeg else marker == 0x64):
            kept.append(frame[at:end])
        at = end
    return b"".join((*kept, frame[at:]))


def _sign(dataset: Dataset, options: Options) -> None:
    """Say in the object what was done with it."""
    from pydicom import Dataset as Item

    codes = {"113100": "Basic Application Confidentiality Profile"}
    if options.shift_dates:
        codes["113107"] = "Retain Longitudinal Temporal Information Modified Dates Option"
    if options.keep_uids:
        codes["113110"] = "Retain UIDs Option"
    sequence = []
    for code, meaning in codes.items():
        item = Item()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code, "DCM", meaning
        sequence.append(item)
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = f"Pegboard {version('pegboard-medical')}, PS3.15 {TABLE[-5:]}"
    dataset.DeidentificationMethodCodeSequence = sequence
    dataset.LongitudinalTemporalInformationModified = (
        "MODIFIED" if options.shift_dates else "REMOVED"
    )


def _new_meta(dataset: Dataset) -> None:
    """Give the file another head: the old one says where it comes from, and its preamble anything.

    The syntax of the pixels stays.
    """
    from pydicom import FileMetaDataset

    syntax = dataset.file_meta.TransferSyntaxUID
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.preamble = b"\0" * 128


# --- NIfTI ----------------------------------------------------------------------------------------

_BLANKED = _words("data_type db_name descrip aux_file intent_name unused_str regular")


def deidentify_nifti(content: bytes) -> bytes:
    """Return a NIfTI file, packed, with its voxels and without text and extensions.

    Raises:
        LeftOutError: It is damaged, or one half of a pair.
    """
    import nibabel

    packed = content[:2] == b"\x1f\x8b"
    try:
        plain = gzip.decompress(content) if packed else content
    except (EOFError, OSError, zlib.error):
        raise LeftOutError(DAMAGED) from None
    sizes = {int.from_bytes(plain[:4], order) for order in ("little", "big")}
    if 348 in sizes:
        header_class, length = nibabel.Nifti1Header, 348
    elif 540 in sizes:
        header_class, length = nibabel.Nifti2Header, 540
    else:
        raise LeftOutError(DAMAGED)
    if len(plain) < length:
        raise LeftOutError(DAMAGED)
    header: Any = header_class(plain[:length], check=False)  # type: ignore[no-untyped-call]
    if not bytes(header["magic"].tobytes()).startswith((b"n+1", b"n+2")):
        raise LeftOutError(UNKNOWN)
    count = int(header["dim"][0])
    voxels = 1
    for side in header["dim"][1 : 1 + count]:
        voxels *= int(side)
    begin = int(header["vox_offset"])
    size = voxels * int(header["bitpix"]) // 8
    if not 1 <= count <= 7 or begin < length or size <= 0 or begin + size > len(plain):
        raise LeftOutError(DAMAGED)
    for name in set(header.structarr.dtype.names) & _BLANKED:
        header[name] = b""
    for name in set(header.structarr.dtype.names) & {"extents", "session_error"}:
        header[name] = 0
    header["vox_offset"] = length + 4
    blank = header.binaryblock + b"\0\0\0\0" + plain[begin : begin + size]
    # gzip writes no file name and no time this way.
    return gzip.compress(blank, compresslevel=6, mtime=0)


# --- Many files -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """A file of a folder or an archive."""

    path: PurePosixPath
    """From the folder on; it may name a patient."""
    read: Callable[[], bytes]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What came of the files."""

    written: int
    left_out: Mapping[str, int]
    """Files by why they were left out."""
    rows: Sequence[tuple[str, str, str]]
    """Old path, new path, and why there is none: to be kept as secret as the originals."""

    def lines(self) -> list[str]:
        """Return sentences that name no file."""
        return [
            f"{_files(self.written)} written",
            *(f"{_files(count)} left out: {why}" for why, count in self.left_out.items()),
        ]


def _files(count: int) -> str:
    return f"{count:,} file" if count == 1 else f"{count:,} files"


def deidentify_files(
    source: Path,
    destination: Path,
    *,
    secret: Path,
    options: Options | None = None,
    progress: Progress | None = None,
) -> Summary:
    """De-identify a folder, a zip archive or a file into a new folder, whole or not at all.

    Names of folders and files are new ones: DICOM by UIDs, NIfTI by pseudonyms that are the same
    for an image and a mask of one name.

    Args:
        source: What to read; it stays as it is.
        destination: A folder that does not exist or is empty.
        secret: Folder with the secret behind the pseudonyms; with the same one later files of a
            patient get the same names and shift.
        options: What is done differently from the basic profile.
        progress: Where to say how far it is.

    Raises:
        DataError: Nothing could be de-identified.
        PegboardError: Source and destination do not suit.
    """
    options = options or Options()
    _check_places(source, destination, secret)
    names = Names(secret)
    rows: list[tuple[str, str, str]] = []
    with _opened(source) as found, atomic_path(destination) as folder:
        folder.mkdir(mode=0o700)
        written: set[str] = set()
        each: Iterable[Source] = found
        if progress is not None:
            each = progress.track(found, "de-identifying", total=len(found))
        for one in each:
            try:
                name, content = _cleaned(one, names, options)
                if name in written:
                    raise LeftOutError(COPY)
            except LeftOutError as why:
                rows.append((str(one.path), "", str(why)))
                continue
            written.add(name)
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            rows.append((str(one.path), name, ""))
        left_out = Counter(why for *_, why in rows if why)
        if not written:
            told = "; ".join(f"{_files(count)}: {why}" for why, count in left_out.items())
            raise DataError("nothing could be de-identified", where=told or "no files")
    return Summary(written=len(written), left_out=left_out, rows=rows)


def _check_places(source: Path, destination: Path, secret: Path) -> None:
    if not source.exists():
        raise PegboardError("there is nothing to de-identify", where="SOURCE", remedy="look again")
    places = source.resolve(), destination.resolve()
    if places[1] in (places[0], *places[0].parents) or places[0] in places[1].parents:
        raise PegboardError(
            "one is inside the other", where="SOURCE and DESTINATION", remedy="name another folder"
        )
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise PegboardError(
            "it exists and is not an empty folder", where="DESTINATION", remedy="name a new one"
        )
    if places[1] in (secret.resolve(), *secret.resolve().parents):
        raise PegboardError(
            "the secret behind the pseudonyms would be given away with the files",
            where="--secret",
            remedy="name a folder outside DESTINATION",
        )


@contextmanager
def _opened(source: Path) -> Iterator[list[Source]]:
    """Give the files of a source, in order of their paths."""
    if source.is_dir():
        files = sorted(file for file in source.rglob("*") if file.is_file())
        yield [
            Source(PurePosixPath(file.relative_to(source).as_posix()), file.read_bytes)
            for file in files
            if file.name != SECRET
        ]
    elif zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            entries = sorted(archive.infolist(), key=lambda entry: entry.filename)
            # Nothing is unpacked to the disk, so a name in it leads nowhere.
            yield [
                Source(PurePosixPath(entry.filename), _reader(archive, entry))
                for entry in entries
                if not entry.is_dir()
            ]
    else:
        yield [Source(PurePosixPath(source.name), source.read_bytes)]


def _reader(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            with archive.open(entry) as stream:
                content = stream.read(LARGEST_FILE + 1)
        except (EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error):
            raise LeftOutError(DAMAGED) from None
        if len(content) > LARGEST_FILE:
            raise LeftOutError(DAMAGED)
        return content

    return read


def _cleaned(one: Source, names: Names, options: Options) -> tuple[str, bytes]:
    """Return the new path and the new bytes of a file."""
    if one.path.name.lower().endswith((".nii", ".nii.gz")):
        return _nifti_name(one.path, names, options), deidentify_nifti(one.read())
    content = one.read()
    if content[128:132] != b"DICM":
        raise LeftOutError(UNKNOWN)
    return _cleaned_dicom(content, names, options)


def _cleaned_dicom(content: bytes, names: Names, options: Options) -> tuple[str, bytes]:
    from pydicom import dcmread

    from pegboard_medical.dicom_seg import quiet

    stream = io.BytesIO()
    with quiet():
        try:
            dataset = dcmread(io.BytesIO(content))
            deidentify_dataset(dataset, names, options)
            dataset.save_as(stream, enforce_file_format=True)
        except LeftOutError:
            raise
        except Exception:  # Of a damaged file pydicom raises whatever its bytes lead to, with them.
            raise LeftOutError(DAMAGED) from None
    series = str(dataset.get("SeriesInstanceUID") or "series")
    return f"{series}/{dataset.SOPInstanceUID}.dcm", stream.getvalue()


_LAYOUT = _words(
    "imagesTr imagesTs labelsTr labelsTs images labels image label masks mask nodule_mask"
)
"""Folders that a reader looks for by name; all others get another one."""


def _nifti_name(path: PurePosixPath, names: Names, options: Options) -> str:
    folders = [part if part in _LAYOUT else names.file(part) for part in path.parts[:-1]]
    stem = re.sub(r"\.nii(\.gz)?$", "", path.name, flags=re.IGNORECASE)
    if _UID.fullmatch(stem):  # The mask of a DICOM series.
        new = stem if options.keep_uids else names.uid(stem)
    else:
        read = re.fullmatch(r"(.*?)(_\d{4})?", stem, flags=re.DOTALL)
        channel = (read[2] if read else "") or ""
        new = names.file(stem[: len(stem) - len(channel)]) + channel
    return "/".join((*folders, f"{new}.nii.gz"))


def _write_table(path: Path, rows: Sequence[tuple[str, str, str]]) -> None:
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(("original", "deidentified", "left_out"))
    writer.writerows(rows)
    atomic_write(path, stream.getvalue())
    path.chmod(0o600)


# --- The command ----------------------------------------------------------------------------------


def register(app: typer.Typer) -> None:
    """Add `deidentify` to the command line."""

    @app.command()
    def deidentify(
        source: Annotated[
            Path, typer.Argument(help="Folder, zip archive or file; DICOM and NIfTI.")
        ],
        destination: Annotated[Path, typer.Argument(help="A new folder.")],
        shift_dates: Annotated[
            bool, typer.Option(help="Move a patient's dates by one number of days; else removed.")
        ] = False,
        keep_uids: Annotated[
            bool, typer.Option(help="Keep UIDs, by which the originals can be found.")
        ] = False,
        keep_burned_in: Annotated[
            bool, typer.Option(help="Take pictures that may show names: you looked at them.")
        ] = False,
        secret: Annotated[
            Path | None,
            typer.Option(metavar="DIR", help="Where the secret of the pseudonyms is; else data/."),
        ] = None,
        table: Annotated[
            Path | None,
            typer.Option(metavar="CSV", help="Write which file became which: keep it secret."),
        ] = None,
    ) -> None:
        """Take out of DICOM and NIfTI files whose they are, by DICOM PS3.15 Annex E."""
        if table is not None and destination.resolve() in table.resolve().parents:
            raise PegboardError(
                "it would be given away with the files", where="--table", remedy="put it elsewhere"
            )
        summary = deidentify_files(
            source,
            destination,
            secret=secret or project_folder(None) / "data",
            options=Options(
                shift_dates=shift_dates, keep_uids=keep_uids, keep_burned_in=keep_burned_in
            ),
            progress=new_progress(),
        )
        if table is not None:
            _write_table(table, summary.rows)
        for line in summary.lines():
            typer.echo(line)
