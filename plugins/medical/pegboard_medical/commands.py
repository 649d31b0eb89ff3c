"""`pegboard segment`: series from the disk, their structures as files beside one another."""

from __future__ import annotations

import csv
import io
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from pegboard.cli.options import ProjectFolder, project_folder
from pegboard.errors import DataError, PegboardError
from pegboard.files import atomic_write
from pegboard.logs import new_progress

if TYPE_CHECKING:
    from pegboard.answering import Answerer
    from pegboard_medical.deploy import Received
    from pegboard_medical.settings import SegmentationSettings


def register(app: typer.Typer) -> None:
    """Add `segment` and `deidentify`."""
    from pegboard_medical import deidentify

    app.command()(segment)
    deidentify.register(app)


def segment(
    source: Annotated[
        Path,
        typer.Argument(metavar="PATH", help="Folder or zip of DICOM files, or NIfTI file."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where the results are written.")
    ] = Path("segmentations"),
    project: ProjectFolder = None,
    bundle: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A bundle; default: that of the project's newest run."),
    ] = None,
) -> None:
    """Outline the structures of every series: NIfTI, DICOM-SEG, a picture and millilitres."""
    progress = new_progress()
    folder = project_folder(project)
    answerer, settings = _opened(folder, bundle)
    rows, failed = [], 0
    for key, received in _series(source, settings, folder):
        if isinstance(received, PegboardError):
            progress.say(f"{key}: {received}")
            failed += 1
            continue
        with progress.task(f"segment {key}"):
            rows.append(_segmented(key, received, answerer, settings, output))
    if rows:
        atomic_write(output / "volumes.csv", _table(rows))
        progress.say(f"{len(rows)} series are in {output}")
    if failed or not rows:
        raise DataError(
            f"{failed} series could not be read" if failed else "there is no series",
            where="the sources",
            remedy="mend what is said above" if failed else "name a folder that holds some",
        )


def _opened(folder: Path, bundle: Path | None) -> tuple[Answerer, SegmentationSettings]:
    """Open a bundle as `pegboard predict` does."""
    from pegboard.answering import Answerer
    from pegboard.bundle import read_bundle
    from pegboard.cli.predict import board_for, newest_bundle
    from pegboard.serving.deployment import resolve_settings
    from pegboard.settings import Sources

    opened = read_bundle(bundle or newest_bundle(folder))
    board = board_for(opened, folder)
    settings: Any = resolve_settings(board, opened, Sources(), folder)
    predictor = opened.load_predictor(board.collect("deploy_targets"))
    answerer = Answerer(board, settings, predictor, opened.thresholds, opened.signature)
    return answerer, settings


def _series(
    source: Path, settings: SegmentationSettings, folder: Path
) -> Iterator[tuple[str, Received | PegboardError]]:
    """Yield what lies at a path, each under a name that tells nothing of the patient."""
    from pegboard_medical.deploy import Received, received_of
    from pegboard_medical.dicom import group_series, unpacked
    from pegboard_medical.nifti import is_nifti, read_nifti
    from pegboard_medical.privacy import pseudonym

    if not source.exists():
        raise DataError("there is nothing at the path", where="PATH", remedy="correct it")
    with tempfile.TemporaryDirectory() as temporary:
        root = source
        if source.suffix.lower() == ".zip":
            root = unpacked(source, Path(temporary))
        files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
        secret = settings.data.folder
        for file in files:
            if is_nifti(file):
                key = pseudonym(str(file.relative_to(root) if root.is_dir() else file.name), secret)
                yield key, _attempt(lambda file=file: Received(volume=read_nifti(file)))
        for series in group_series(file for file in files if not is_nifti(file)):
            if series.is_volume and series.modality == settings.data.modality:
                key = pseudonym(series.uid, secret)
                yield key, _attempt(lambda series=series: received_of(series))


def _attempt(read: Any) -> Received | PegboardError:
    try:
        received: Received = read()
    except PegboardError as error:
        return error
    return received


def _segmented(
    key: str,
    received: Received,
    answerer: Answerer,
    settings: SegmentationSettings,
    output: Path,
) -> dict[str, Any]:
    """Write the results of one series; return its row of the table."""
    from pegboard_medical.deploy import inputs_of, placed_mask
    from pegboard_medical.dicom_seg import seg_bytes
    from pegboard_medical.nifti import write_nifti
    from pegboard_medical.planes import png_of, three_planes
    from pegboard_medical.volumes import oriented

    output.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    outputs = answerer.infer(inputs_of(received.volume))
    _tell(answerer, settings, time.perf_counter() - began)
    mask = placed_mask(settings, outputs["probabilities"][0], received.volume)
    write_nifti(output / f"{key}.nii.gz", received.volume.like(mask))
    if received.sources and mask.any():
        atomic_write(
            output / f"{key}.seg.dcm", seg_bytes(mask, received.sources, settings.data.classes)
        )
    turned, labels = oriented(received.volume), oriented(received.volume.like(mask)).voxels
    window = settings.data.window if settings.data.modality == "ct" else None
    picture = three_planes(turned.voxels.astype(np.float32), labels, turned.spacing, window=window)
    atomic_write(output / f"{key}.png", png_of(picture))
    volumes = zip(settings.data.classes, outputs["volume_ml"][0], strict=True)
    return {"case": key, **{f"{name}_ml": round(float(ml), 3) for name, ml in volumes}}


def _tell(answerer: Answerer, settings: SegmentationSettings, seconds: float) -> None:
    """Let hooks know that a series was answered, as `predict` and `serve` do."""
    from pegboard.records import AnswerEvent

    event = AnswerEvent(
        solution=settings.solution, count=1, seconds=seconds, target="pegboard segment"
    )
    answerer.board.hook.after_answer(settings=settings, event=event)


def _table(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
