"""A real PACS: Orthanc on loopback, studies sent to it, segmentations that come back into it."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import highdicom
import numpy as np
import pytest
from pydicom import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    JPEGLSLossless,
    MRImageStorage,
    generate_uid,
)
from pynetdicom import AE

from pegboard.errors import PegboardError, RequestError, SettingsError
from pegboard.records import Array
from pegboard_medical.dicom_seg import read_seg
from pegboard_medical.pacs import PASSWORD, PATH, USER, Pacs, prepare, routes
from pegboard_medical.settings import SegmentationData, SegmentationSettings, VolumeServe

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
NAME, PATIENT = "Zwyntheria^Anna", "ZWY-4711"
USERS = {"radiology": "a word"}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@dataclass(frozen=True)
class Orthanc:
    """A PACS that runs."""

    http: int
    dicom: int

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.http}/dicom-web"


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """Start Orthanc on loopback, once."""
    program = shutil.which("Orthanc", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
    if program is None or not PLUGIN.is_file():
        pytest.skip("no Orthanc here: apt-get install orthanc orthanc-dicomweb")
    folder = tmp_path_factory.mktemp("orthanc")
    running = Orthanc(http=free_port(), dicom=free_port())
    settings = {
        "Name": "Test",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "index"),
        "Plugins": [str(PLUGIN)],
        "HttpPort": running.http,
        "DicomPort": running.dicom,
        "DicomAet": "ORTHANC",
        "RemoteAccessAllowed": False,
        # From loopback anybody may ask; users that are listed are known all the same.
        "AuthenticationEnabled": True,
        "RegisteredUsers": USERS,
        "DicomServerEnabled": True,
        "DicomAlwaysAllowStore": True,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, str(folder / "orthanc.json")], stdout=log, stderr=log, cwd=folder
        )
    try:
        for port in (running.http, running.dicom):
            wait_for(port, process, folder / "log")
        yield running
    finally:
        process.terminate()
        process.wait(30)


def wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(300):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert process.poll() is None, log.read_text()[-2000:]
            time.sleep(0.1)
    raise AssertionError(log.read_text()[-2000:])


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(USER, "radiology")
    monkeypatch.setenv(PASSWORD, USERS["radiology"])


# --- Studies --------------------------------------------------------------------------------------


def series(
    *, modality: str = "CT", study: str = "", slices: int = 7, syntax: str = ""
) -> list[Dataset]:
    """Return a coronal series with a bright box, from its last slice to its first."""
    study, uid, frame = study or generate_uid(), generate_uid(), generate_uid()
    made = []
    for number in range(slices):
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SOPClassUID = {"CT": CTImageStorage, "MR": MRImageStorage}[modality]
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, uid
        dataset.FrameOfReferenceUID, dataset.Modality = frame, modality
        dataset.PatientName, dataset.PatientID = NAME, PATIENT
        dataset.PatientBirthDate, dataset.PatientSex = "19561103", "F"
        dataset.StudyDate, dataset.StudyTime, dataset.AccessionNumber = "20260101", "120000", "A9"
        dataset.StudyID, dataset.ReferringPhysicianName = "1", ""
        dataset.SeriesNumber, dataset.InstanceNumber = 1, slices - number
        dataset.Rows, dataset.Columns = 20, 24
        dataset.PixelSpacing, dataset.SliceThickness = [0.5, 0.8], 2.5
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
        dataset.ImagePositionPatient = [-10, 30 + 2.5 * number, 50]
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit, dataset.PixelRepresentation = 15, 1
        dataset.RescaleIntercept, dataset.RescaleSlope = -1024, 1
        picture = np.full((20, 24), 24, dtype=np.int16)
        if number in BOX[0]:
            picture[4:9, 10:16] = 1124  # 100 HU.
        dataset.PixelData = picture.tobytes()
        if syntax:
            dataset.compress(syntax, generate_instance_uid=False)
        made.append(dataset)
    return made[::-1]


BOX = (range(2, 5), 5, 6)
VOXELS = 3 * 5 * 6
"""Of the box; each is 0.5 x 0.8 x 2.5 mm, so 0.001 ml."""


def send(orthanc: Orthanc, datasets: Sequence[Dataset]) -> None:
    """Store instances by C-STORE, as a scanner does."""
    entity = AE(ae_title="SCANNER")
    for dataset in datasets:
        entity.add_requested_context(dataset.SOPClassUID, dataset.file_meta.TransferSyntaxUID)
        break
    association = entity.associate("127.0.0.1", orthanc.dicom, ae_title="ORTHANC")
    assert association.is_established
    try:
        statuses = [association.send_c_store(dataset).Status for dataset in datasets]
    finally:
        association.release()
    assert statuses == [0] * len(datasets)


# --- The server's side ----------------------------------------------------------------------------


class Threshold:
    """What routes see of a server; its model finds what is brighter than water."""

    bundle = SimpleNamespace(version="20260101-abc")

    def __init__(self) -> None:
        self.seen: list[Mapping[str, Array]] = []
        self.settings = settings_of("")

    async def infer(self, inputs: Mapping[str, Array], **_: Any) -> Mapping[str, Array]:
        self.seen.append(inputs)
        return {"probabilities": (inputs["image"][:, None] > 0).astype(np.float32)}


def settings_of(address: str, modality: str = "ct") -> SegmentationSettings:
    return SegmentationSettings(
        data=SegmentationData(classes=("nodule",), modality=modality),
        serve=VolumeServe(pacs=address),
    )


def ask(address: str, payload: Any, service: Threshold | None = None, modality: str = "ct") -> Any:
    """Give the route one request."""
    service = service or Threshold()
    service.settings = settings_of(address, modality)
    (route,) = routes(service.settings, service)  # type: ignore[arg-type]
    assert route.path == PATH
    return asyncio.run(route.handler(payload))


def uids(datasets: Sequence[Dataset]) -> dict[str, str]:
    first = datasets[0]
    return {"study": str(first.StudyInstanceUID), "series": str(first.SeriesInstanceUID)}


# --- There and back -------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["C-STORE", "STOW-RS"])
def test_a_series_is_segmented_and_the_result_lies_in_the_pacs_beside_it(
    orthanc: Orthanc, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    sent = series()
    with caplog.at_level(logging.DEBUG):
        if way == "C-STORE":
            send(orthanc, sent)
        else:
            Pacs(orthanc.address).store(sent)
        caplog.clear()
        service = Threshold()
        answer = ask(orthanc.address, uids(sent), service)
    (found,) = answer["segmentations"]
    assert found["series"] == sent[0].SeriesInstanceUID
    assert found["volume_ml"] == {"nodule": pytest.approx(VOXELS * 0.001)}

    # The model saw the box as a head-to-foot stack: slices of the coronal series are its rows.
    image, spacing = service.seen[0]["image"], service.seen[0]["spacing"]
    assert (image.dtype, image.shape) == (np.float32, (1, 20, 7, 24))
    np.testing.assert_allclose(spacing, [[0.5, 2.5, 0.8]])
    assert set(np.unique(image)) == {-1000, 100}

    listed = Pacs(orthanc.address).series_of(sent[0].StudyInstanceUID)
    (made,) = [one for one in listed if one.modality == "SEG"]
    (stored,) = Pacs(orthanc.address).fetch_series(sent[0].StudyInstanceUID, made.uid)
    assert stored.SOPInstanceUID == found["segmentation"]
    assert (stored.PatientName, stored.PatientID) == (NAME, PATIENT)
    read = highdicom.seg.Segmentation.from_dataset(stored)
    referred = {str(triple[2]) for triple in read.get_source_image_uids()}
    assert referred <= {str(one.SOPInstanceUID) for one in sent} and len(referred) >= 3
    assert read.SegmentSequence[0].SegmentLabel == "nodule"
    identification = read.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
    assert identification.AlgorithmVersion == "20260101-abc"
    mask = read_seg(stored, sent[::-1], ("nodule",))
    wanted = np.zeros((7, 20, 24), dtype=np.uint8)
    wanted[2:5, 4:9, 10:16] = 1
    np.testing.assert_array_equal(mask, wanted)
    for told in ("Zwyntheria", PATIENT, "19561103", USERS["radiology"]):
        assert told not in caplog.text and told not in json.dumps(answer)


def test_without_a_series_every_one_of_the_right_modality_is_segmented(orthanc: Orthanc) -> None:
    study = generate_uid()
    first, second, other = (
        series(study=study),
        series(study=study),
        series(study=study, modality="MR"),
    )
    Pacs(orthanc.address).store([*first, *second, *other])
    answer = ask(orthanc.address, {"study": study})
    done = [one["series"] for one in answer["segmentations"]]
    assert done == sorted([first[0].SeriesInstanceUID, second[0].SeriesInstanceUID])
    again = ask(orthanc.address, {"study": study}, modality="mr")
    assert [one["series"] for one in again["segmentations"]] == [other[0].SeriesInstanceUID]


def test_a_compressed_series_is_taken_as_it_is_stored(orthanc: Orthanc) -> None:
    sent = series(syntax=JPEGLSLossless)
    send(orthanc, sent)
    fetched = Pacs(orthanc.address).fetch_series(*uids(sent).values())
    assert {one.file_meta.TransferSyntaxUID for one in fetched} == {JPEGLSLossless}
    (found,) = ask(orthanc.address, uids(sent))["segmentations"]
    assert found["volume_ml"] == {"nodule": pytest.approx(VOXELS * 0.001)}


def test_an_object_of_many_megabytes_is_stored(orthanc: Orthanc) -> None:
    sent = series(slices=1)
    sent[0].Rows, sent[0].Columns = 1500, 1500
    sent[0].PixelData = bytes(2 * 1500 * 1500)
    Pacs(orthanc.address).store(sent)
    (fetched,) = Pacs(orthanc.address).fetch_series(*uids(sent).values())
    assert fetched.PixelData == sent[0].PixelData


def test_slices_in_any_order_make_the_same_volume() -> None:
    sent = series()
    forwards, backwards = prepare(sent), prepare(sent[::-1])
    np.testing.assert_array_equal(forwards.inputs["image"], backwards.inputs["image"])
    assert forwards.sources == backwards.sources == sent[::-1]


def enhanced(*, backwards: bool) -> Dataset:
    """Return the series of `series` as one instance of many frames."""
    slices = series()[::-1] if not backwards else series()
    dataset = Dataset()
    dataset.update(slices[0])
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = EnhancedCTImageStorage
    dataset.NumberOfFrames = len(slices)
    dataset.PixelData = b"".join(one.PixelData for one in slices)
    shared, dataset.PerFrameFunctionalGroupsSequence = Dataset(), []
    for of, sequence, keywords in (
        (shared, "PixelMeasuresSequence", ("PixelSpacing", "SliceThickness")),
        (shared, "PlaneOrientationSequence", ("ImageOrientationPatient",)),
        (shared, "PixelValueTransformationSequence", ("RescaleSlope", "RescaleIntercept")),
    ):
        group = Dataset()
        for keyword in keywords:
            group[keyword] = slices[0][keyword]
            del dataset[keyword]
        setattr(of, sequence, [group])
    dataset.SharedFunctionalGroupsSequence = [shared]
    for one in slices:
        place, frame = Dataset(), Dataset()
        place.ImagePositionPatient = one.ImagePositionPatient
        frame.PlanePositionSequence = [place]
        dataset.PerFrameFunctionalGroupsSequence.append(frame)
    del dataset.ImagePositionPatient
    return dataset


@pytest.mark.parametrize("backwards", [False, True])
def test_an_instance_of_many_frames_is_a_series_too(orthanc: Orthanc, backwards: bool) -> None:
    sent = enhanced(backwards=backwards)
    Pacs(orthanc.address).store([sent])
    service = Threshold()
    (found,) = ask(orthanc.address, uids([sent]), service)["segmentations"]
    usual = prepare(series()).inputs["image"]
    np.testing.assert_array_equal(service.seen[0]["image"], usual)
    listed = Pacs(orthanc.address).series_of(sent.StudyInstanceUID)
    (made,) = [one.uid for one in listed if one.modality == "SEG"]
    (stored,) = Pacs(orthanc.address).fetch_series(sent.StudyInstanceUID, made)
    assert stored.SOPInstanceUID == found["segmentation"]
    mask = read_seg(stored, [sent], ("nodule",))
    wanted = np.zeros((7, 20, 24), dtype=np.uint8)
    wanted[2:5, 4:9, 10:16] = 1
    np.testing.assert_array_equal(mask, wanted[::-1] if backwards else wanted)


# --- What goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [
        None,
        [],
        {},
        {"study": ""},
        {"study": 12},
        {"study": NAME},
        {"study": "1.2.3/../../instances"},
        {"study": "1." * 40 + "1"},
        {"study": "1.2.3", "series": "1.2.x"},
        {"study": "1.2.3", "patient": NAME},
    ],
)
def test_what_is_no_uid_is_refused_before_the_pacs_is_asked(payload: Any) -> None:
    with pytest.raises(RequestError) as raised:
        ask("http://127.0.0.1:1/dicom-web", payload)
    assert "Zwyntheria" not in str(raised.value)


def test_what_the_pacs_does_not_have_is_said(orthanc: Orthanc) -> None:
    with pytest.raises(RequestError, match="no such series"):
        ask(orthanc.address, {"study": "1.2.3", "series": "1.2.4"})
    with pytest.raises(RequestError, match="no CT series"):
        ask(orthanc.address, {"study": "1.2.3"})


def test_a_series_that_does_not_suit_is_refused(orthanc: Orthanc) -> None:
    of_mr = series(modality="MR")
    holey = series()
    del holey[3]
    Pacs(orthanc.address).store([*of_mr, *holey])
    with pytest.raises(RequestError, match="modality MR"):
        ask(orthanc.address, uids(of_mr))
    with pytest.raises(RequestError, match="missing slice"):
        ask(orthanc.address, uids(holey))


def test_a_wrong_password_is_said_without_it(
    orthanc: Orthanc, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PASSWORD, "Wrongword")
    with pytest.raises(PegboardError, match=f"answered 401.*{USER}") as raised:
        Pacs(orthanc.address).series_of("1.2.3")
    assert "Wrongword" not in str(raised.value) and "radiology" not in str(raised.value)


def test_a_pacs_that_is_not_there_is_named_without_an_identifier() -> None:
    with pytest.raises(PegboardError, match="cannot be reached") as raised:
        ask(f"http://127.0.0.1:{free_port()}/dicom-web", {"study": "1.2.3.99"})
    assert "1.2.3.99" not in str(raised.value)
    assert not isinstance(raised.value, RequestError)  # The server's fault: answered with 503.


def test_an_address_that_is_not_dicomweb_is_told(orthanc: Orthanc) -> None:
    with pytest.raises(PegboardError, match="address of DICOMweb"):
        Pacs(f"http://127.0.0.1:{orthanc.http}/system").store(series(slices=1))


@pytest.mark.parametrize(
    "address", ["127.0.0.1:8042", "ftp://127.0.0.1", "http://me:Wrongword@127.0.0.1/dicom-web"]
)
def test_an_address_that_is_none_or_holds_a_password_is_refused(address: str) -> None:
    with pytest.raises(SettingsError) as raised:
        routes(settings_of(address), Threshold())
    assert "Wrongword" not in str(raised.value)


def test_without_a_pacs_there_is_no_route() -> None:
    assert routes(settings_of(""), Threshold()) == []


# --- The real server ------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_server_is_told_and_the_segmentation_comes_back_into_the_pacs(
    orthanc: Orthanc,
    make_project: Callable[..., Path],
    pegboard: Callable[..., subprocess.CompletedProcess[str]],
    small: Callable[..., str],
    tmp_path: Path,
) -> None:
    from pegboard.serving.process import running_server

    folder = make_project(small())
    ended = pegboard("verify", folder=folder)
    assert ended.returncode == 0, ended.stderr
    datasets = series()
    send(orthanc, datasets)
    study, uid = datasets[0].StudyInstanceUID, datasets[0].SeriesInstanceUID
    log = tmp_path / "server.log"
    with running_server(f"serve.pacs={orthanc.address}", folder=folder, log=log) as server:
        reply = server.ask("POST", PATH, {"study": str(study), "series": str(uid)})
        assert reply.status == 200, reply.json()
        answer = reply.json()["segmentations"][0]
        missing = server.ask("POST", PATH, {"study": str(generate_uid())})
        assert missing.status in (422, 503)
        assert server.stop() == 0
    assert answer["series"] == uid
    pacs = Pacs(orthanc.address)
    stored = [
        one
        for found in pacs.series_of(str(study))
        for one in pacs.fetch_series(str(study), found.uid)
        if one.SOPInstanceUID == answer["segmentation"]
    ]
    assert len(stored) == 1
    assert stored[0].Modality == "SEG"
    assert stored[0].ReferencedSeriesSequence[0].SeriesInstanceUID == uid
    for word in ("Zwyntheria", PATIENT, "19561103"):
        assert word not in log.read_text()
