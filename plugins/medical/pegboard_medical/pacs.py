"""A PACS by DICOMweb: series are taken from it, segmentations are given back to it.

dicomweb-client, pydicom and highdicom are imported on use.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import numpy as np

from pegboard.errors import DataError, PegboardError, RequestError, SettingsError
from pegboard.records import Array, Route, Service
from pegboard_medical import dicom
from pegboard_medical.deploy import inputs_of, placed_mask
from pegboard_medical.dicom_seg import quiet, seg_dataset
from pegboard_medical.volumes import Volume

if TYPE_CHECKING:
    from pydicom import Dataset

    from pegboard_medical.settings import SegmentationSettings

USER = "PEGBOARD_PACS_USER"
PASSWORD = "PEGBOARD_PACS_PASSWORD"
"""Environment variables: what belongs to nobody else is in no file of a project."""
TIMEOUTS = (10.0, 300.0)
"""Seconds to connect, and to wait for the next bytes."""
CHUNK = 2**28
"""Bytes from which on a request is sent in chunks; dicomweb-client's own limit is 1 MB, and not
every PACS takes chunks."""
WHERE = "serve.pacs"
PATH = "/pacs/segment"

_UID = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+")
LONGEST_UID = 64
MODALITIES = {"ct": "CT", "mr": "MR"}


# --- The client -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """A series as a PACS lists it."""

    uid: str
    modality: str
    """`CT`, `MR` and so on."""


class NotThereError(PegboardError):
    """The PACS has nothing under an identifier."""


class Pacs:
    """A client of a PACS.

    Args:
        address: Its DICOMweb address, without user and password: those are in the environment.

    Raises:
        SettingsError: The address is none, or holds a password.
    """

    def __init__(self, address: str) -> None:
        self.address = _plain(address)

    def series_of(self, study: str) -> list[Found]:
        """Return the series of a study, sorted by UID; none where it has no such study.

        Raises:
            PegboardError: The PACS does not answer as it should.
        """
        try:
            with self._client("listing the series of a study") as client:
                answers = client.search_for_series(
                    study_instance_uid=study, fields=["Modality", "SeriesInstanceUID"]
                )
        except NotThereError:
            return []
        found = [Found(_value(one, "0020000E"), _value(one, "00080060")) for one in answers]
        return sorted(found, key=lambda one: one.uid)

    def fetch_series(self, study: str, series: str) -> list[Dataset]:
        """Return the instances of a series, as they are stored; none where there is no such series.

        Raises:
            PegboardError: The PACS does not answer as it should.
        """
        try:
            with self._client("taking a series") as client:
                # As they are stored: by default the PACS would decompress every instance.
                datasets: list[Dataset] = client.retrieve_series(
                    study, series, media_types=(("application/dicom", "*"),)
                )
        except NotThereError:
            return []
        return datasets

    def store(self, datasets: Sequence[Dataset]) -> None:
        """Store instances.

        Raises:
            PegboardError: The PACS does not take all of them.
        """
        for dataset in datasets:
            # dicomweb-client writes none of its own, and without it nobody can read the file.
            dataset.preamble = getattr(dataset, "preamble", None) or b"\0" * 128
        with self._client("storing a segmentation") as client:
            answer = client.store_instances(datasets)
            failed = len(answer.get("FailedSOPSequence") or ())
        if failed:
            raise PegboardError(
                f"the PACS did not store {failed} of {len(datasets)} instances",
                where=f"{WHERE}, {self.address}",
                remedy="look into its log",
            )

    @contextmanager
    def _client(self, doing: str) -> Iterator[Any]:
        """Give a client; whatever fails is said in one sentence without an identifier.

        The errors of its library quote paths with identifiers, and answers.
        """
        from dicomweb_client.api import DICOMwebClient
        from dicomweb_client.session_utils import create_session_from_user_pass
        from requests import Session
        from requests.exceptions import ConnectionError as NoConnection
        from requests.exceptions import HTTPError, RequestException, Timeout

        user, password = os.environ.get(USER, ""), os.environ.get(PASSWORD, "")
        with quiet():
            session = create_session_from_user_pass(user, password) if user else Session()
            client = DICOMwebClient(
                self.address, session=session, timeout=TIMEOUTS, chunk_size=CHUNK
            )
            # Whoever asked waits: it is for them to ask again.
            client.set_http_retry_params(retry=False)
            try:
                with session:
                    yield client
            except HTTPError as error:
                status = error.response.status_code if error.response is not None else 0
                failed = self._failed(doing, f"it answered {status}", _remedy(status))
                if status == 404:
                    failed = NotThereError(failed.what, where=failed.where, remedy=failed.remedy)
                raise failed from None
            except Timeout:
                raise self._failed(doing, "it did not answer in time", "try again later") from None
            except NoConnection:
                raise self._failed(
                    doing, "it cannot be reached", "start it, or set serve.pacs to where it is"
                ) from None
            except RequestException as error:
                raise self._failed(doing, type(error).__name__, "check serve.pacs") from None
            except PegboardError:
                raise
            except Exception as error:  # What is no DICOMweb leads to anything.
                raise self._failed(
                    doing,
                    f"its answer cannot be read: {type(error).__name__}",
                    "check that serve.pacs is the address of DICOMweb",
                ) from None

    def _failed(self, doing: str, what: str, remedy: str) -> PegboardError:
        return PegboardError(
            f"{doing} failed: {what}", where=f"{WHERE}, {self.address}", remedy=remedy
        )


def _remedy(status: int) -> str:
    if status in (401, 403):
        return f"set {USER} and {PASSWORD} to somebody who may"
    if status == 404:
        return "check the identifiers, and that serve.pacs is the address of DICOMweb"
    return "look into its log"


def _plain(address: str) -> str:
    """Return an address that may be printed."""
    parts = urlsplit(address)
    if parts.username or parts.password:
        raise SettingsError(
            "the address holds a user or a password",
            where=WHERE,
            remedy=f"put them into {USER} and {PASSWORD}",
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingsError(
            "this is no DICOMweb address",
            where=WHERE,
            remedy="write it like http://127.0.0.1:8042/dicom-web",
        )
    return urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", ""))


def _value(answer: Mapping[str, Any], tag: str) -> str:
    return str((answer.get(tag, {}).get("Value") or [""])[0])


# --- From datasets to a volume and back -----------------------------------------------------------


def volume_of(datasets: Sequence[Dataset]) -> tuple[Volume, list[Dataset]]:
    """Return the volume of a series and its instances in the order of the slices.

    Raises:
        DataError: They do not make a volume, or cannot be decoded.
    """
    with quiet():
        series = _series(datasets)
        errors = [one for one in dicom.series_findings(series, "") if one.level == "error"]
        if errors:
            raise DataError(errors[0].what, where="series of the PACS", remedy=errors[0].remedy)
        ordered = [datasets[int(file.name)] for file in series.files]
        frames_order = [one.frame for one in series.slices]
        if len(ordered) == 1 and sorted(frames_order) not in (frames_order, frames_order[::-1]):
            raise DataError(
                "the frames do not follow one another in space",
                where="series of the PACS",
                remedy="send each stack as a series of its own",
            )
        try:
            # The frames of one file stay in their own order, which is that of its segmentation.
            frames = np.concatenate([dicom.pixels_of(dataset) for dataset in ordered])
        except Exception:  # Decoders raise whatever damaged bytes lead to.
            raise DataError(
                "the pixels cannot be decoded",
                where="series of the PACS",
                remedy="look whether another viewer shows the series",
            ) from None
        affine = dicom.affine_of(ordered)
    return Volume(voxels=frames, affine=affine, modality=series.modality), ordered


def _series(datasets: Sequence[Dataset]) -> dicom.Series:
    """Return what a series of files would be; a number stands for each file.

    Raises:
        DataError: An instance says nothing of its place that can be read.
    """
    first = datasets[0]
    try:
        slices = [
            one
            for number, dataset in enumerate(datasets)
            for one in dicom.slices_of(Path(str(number)), dataset)
        ]
        if all(one.position and one.orientation for one in slices):
            normal = dicom.normal_of(slices[0].orientation)
            slices.sort(key=lambda one: (float(np.dot(one.position, normal)), one.uid, one.frame))
    except (AttributeError, IndexError, TypeError, ValueError):
        raise DataError(
            "an instance does not say where it lies",
            where="series of the PACS",
            remedy="look for what its headers lack",
        ) from None
    return dicom.Series(
        uid=str(first.get("SeriesInstanceUID") or ""),
        study_uid=str(first.get("StudyInstanceUID") or ""),
        patient="",
        modality=str(first.get("Modality") or "").lower(),
        slices=tuple(slices),
    )


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A series that is ready for the model."""

    sources: Sequence[Dataset]
    volume: Volume
    """On the series' own grid."""
    inputs: Mapping[str, Array]
    """`image` float32 (1, D, H, W), turned as models see it, and `spacing` float32 (1, 3) in mm."""


def prepare(datasets: Sequence[Dataset]) -> Prepared:
    """Make of a series what the model takes.

    Raises:
        DataError: It is no volume.
    """
    volume, sources = volume_of(datasets)
    return Prepared(sources=sources, volume=volume, inputs=inputs_of(volume))


def segmentation_of(
    prepared: Prepared, probabilities: Array, settings: SegmentationSettings, version: str
) -> tuple[Dataset, dict[str, float]]:
    """Return the segmentation object of a series and the millilitres of each structure.

    Args:
        prepared: The series.
        probabilities: float32 (K, D, H, W), turned as the image was.
        settings: They name the structures.
        version: Of the model.
    """
    mask = placed_mask(settings, probabilities, prepared.volume)
    classes = settings.data.classes
    dataset = seg_dataset(
        mask,
        prepared.sources,
        classes,
        description="Pegboard: " + ", ".join(classes),
        version=version,
    )
    counts = np.bincount(mask.ravel(), minlength=len(classes) + 1)
    millilitres = {
        name: round(float(counts[k + 1]) * prepared.volume.voxel_ml, 3)
        for k, name in enumerate(classes)
    }
    return dataset, millilitres


# --- The route ------------------------------------------------------------------------------------


class Segmenter:
    """Segments series of a PACS and gives the result back to it."""

    def __init__(self, service: Service, pacs: Pacs) -> None:
        self._service = service
        self._pacs = pacs

    async def segment(self, payload: Any) -> dict[str, Any]:
        """Segment a series, or every series of the right modality in a study.

        Raises:
            RequestError: The request is wrong, the PACS has no such series, or it is no volume.
            PegboardError: The PACS does not answer as it should.
        """
        study, series = _asked(payload)
        wanted = [series] if series else await self._suited(study)
        return {"segmentations": [await self._one(study, uid) for uid in wanted]}

    async def _suited(self, study: str) -> list[str]:
        """Return the series of a study whose modality the model was trained for."""
        modality = self._modality()
        found = await asyncio.to_thread(self._pacs.series_of, study)
        suited = [one.uid for one in found if one.modality == modality]
        if not suited:
            raise RequestError(
                f"the PACS has no {modality} series in this study",
                where="study",
                remedy="check the StudyInstanceUID, and whether the study has arrived",
            )
        return suited

    async def _one(self, study: str, uid: str) -> dict[str, Any]:
        prepared = await asyncio.to_thread(self._fetched, study, uid)
        # Of the same bundle: another one may answer by the time that this one has.
        settings, version = self._settings(), self._service.bundle.version
        outputs = await self._service.infer(prepared.inputs)
        segmentation, millilitres = await asyncio.to_thread(
            segmentation_of,
            prepared,
            outputs["probabilities"][0],
            settings,
            version,
        )
        await asyncio.to_thread(self._pacs.store, [segmentation])
        return {
            "series": uid,
            "segmentation": str(segmentation.SOPInstanceUID),
            "volume_ml": millilitres,
        }

    def _settings(self) -> SegmentationSettings:
        """Return those of the model that answers now."""
        settings: SegmentationSettings = self._service.settings
        return settings

    def _modality(self) -> str:
        return MODALITIES[self._settings().data.modality]

    def _fetched(self, study: str, uid: str) -> Prepared:
        datasets = self._pacs.fetch_series(study, uid)
        if not datasets:
            raise RequestError(
                "the PACS has no such series",
                where="series",
                remedy="check the SeriesInstanceUID, and whether the series has arrived",
            )
        modality = str(datasets[0].get("Modality") or "")
        wanted = self._modality()
        if modality != wanted:
            raise RequestError(
                f"the series is of modality {modality[:16]} and the model of {wanted}",
                where="series",
                remedy="name another series",
            )
        try:
            return prepare(datasets)
        except DataError as error:
            raise RequestError(error.what, where="series", remedy=error.remedy) from None


def _asked(payload: Any) -> tuple[str, str]:
    """Return the UIDs of study and series that a request names; the latter may be empty."""
    if not isinstance(payload, Mapping):
        raise RequestError(
            "the request is no object", where="request", remedy='send {"study": "1.2.3"}'
        )
    unknown = next((key for key in payload if key not in ("study", "series")), None)
    if unknown is not None:
        raise RequestError(
            "the request has a field that is not known",
            where="request",
            remedy="send study and series",
        )
    return _uid(payload, "study"), _uid(payload, "series") if payload.get("series") else ""


def _uid(payload: Mapping[str, Any], field: str) -> str:
    value = payload.get(field)
    if not isinstance(value, str) or len(value) > LONGEST_UID or not _UID.fullmatch(value):
        # What was sent is not quoted: somebody may have sent a name.
        raise RequestError(
            "this is no UID", where=field, remedy="send digits and points, at most 64 of them"
        )
    return value


def routes(settings: SegmentationSettings, service: Service) -> list[Route]:
    """Return the path that works with the PACS; none where no PACS is set.

    Raises:
        SettingsError: serve.pacs is no address.
    """
    if not settings.serve.pacs:
        return []
    handler: Callable[[Any], Any] = Segmenter(service, Pacs(settings.serve.pacs)).segment
    return [
        Route(
            path=PATH,
            handler=handler,
            summary="Segment a series of the PACS and store the result beside it.",
            # Without an example: none can be answered where the PACS does not have it.
            request_schema=REQUEST,
            response_schema=RESPONSE,
        )
    ]


_UID_SCHEMA = {"type": "string", "pattern": f"^{_UID.pattern}$", "maxLength": LONGEST_UID}
REQUEST = {
    "type": "object",
    "properties": {
        "study": _UID_SCHEMA | {"description": "StudyInstanceUID."},
        "series": _UID_SCHEMA
        | {"description": "SeriesInstanceUID; without it every series of the right modality."},
    },
    "required": ["study"],
    "additionalProperties": False,
}
RESPONSE = {
    "type": "object",
    "properties": {
        "segmentations": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "series": {"type": "string", "description": "What was segmented."},
                    "segmentation": {
                        "type": "string",
                        "description": "SOPInstanceUID of the DICOM segmentation.",
                    },
                    "volume_ml": {
                        "type": "object",
                        "additionalProperties": {"type": "number", "minimum": 0},
                        "description": "Millilitres of each structure.",
                    },
                },
                "required": ["series", "segmentation", "volume_ml"],
            },
        }
    },
    "required": ["segmentations"],
}
