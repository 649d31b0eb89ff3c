"""Whatever a run leaves is looked through for what was planted in the data."""

from __future__ import annotations

import io
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pegboard_medical.privacy import pseudonym

PLANTED = ("Mustermann", "MRN4711", "19500101", "ACC0815", "Sankt-Elsewhere", "Dr-Whoever")


def test_a_pseudonym_needs_the_secret_and_is_stable(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    assert pseudonym("MRN4711", one) == pseudonym("MRN4711", one)
    assert pseudonym("MRN4711", one) != pseudonym("MRN4711", other)
    assert pseudonym("MRN4711", one) != pseudonym("MRN4712", one)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory, small: Callable[..., str]) -> Path:
    """Return a project whose data carry names, ids and dates in tags, folders and file names."""
    from pydicom import dcmread

    from pegboard.progress import SilentProgress
    from pegboard_medical.phantoms import write_phantoms

    folder = tmp_path_factory.mktemp("clinic")
    data = folder / "Mustermann-MRN4711"
    write_phantoms(data, cases=10, seed=1, tiny=True, progress=SilentProgress())
    for number, file in enumerate(sorted(path for path in data.rglob("*") if path.is_file())):
        if file.suffix in (".gz", ".csv"):
            continue
        dataset = dcmread(file)
        dataset.PatientName = f"Mustermann^{number}"
        dataset.PatientID = f"MRN4711-{dataset.PatientID}"
        dataset.PatientBirthDate = "19500101"
        dataset.AccessionNumber = "ACC0815"
        dataset.InstitutionName = "Sankt-Elsewhere"
        dataset.ReferringPhysicianName = "Dr-Whoever"
        dataset.save_as(file)
        file.rename(file.with_name(f"Mustermann_{number}.dcm"))
    (folder / "pegboard.toml").write_text(small('path = "Mustermann-MRN4711"'))
    return folder


def leaks(folder: Path) -> Iterator[str]:
    """Yield what of the planted is in the files of a folder, packed ones unpacked."""
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = file.read_bytes() + file.name.encode()
        if zipfile.is_zipfile(io.BytesIO(content)):
            with zipfile.ZipFile(file) as archive:
                content += b"".join(archive.read(name) for name in archive.namelist())
        for word in PLANTED:
            if word.encode() in content:
                yield f"{word} in {file.relative_to(folder)}"


@pytest.mark.slow
def test_no_patient_is_in_what_a_run_leaves_or_says(
    planted: Path, pegboard: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    ended = pegboard("report", folder=planted)
    assert ended.returncode == 0, ended.stderr
    assert not list(leaks(planted / "runs"))
    # Of the paths alone the planted folder's name is left.
    said = (ended.stdout + ended.stderr).replace("Mustermann-MRN4711", "")
    assert not [word for word in PLANTED if word in said]


@pytest.mark.slow
def test_no_patient_is_in_a_message_about_damaged_data(
    planted: Path, pegboard: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    victim = next(path for path in sorted(planted.rglob("Mustermann_*.dcm")))
    before = victim.read_bytes()
    try:
        victim.write_bytes(before[: len(before) // 2])
        ended = pegboard("check", folder=planted)
    finally:
        victim.write_bytes(before)
    assert ended.returncode == 2
    said = ended.stdout + ended.stderr
    assert not [word for word in PLANTED if word in said.replace("Mustermann-MRN4711", "")]


def test_describe_does_not_show_where_the_volumes_are(
    planted: Path, pegboard: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    ended = pegboard("describe", folder=planted)
    assert ended.returncode == 0, ended.stderr
    assert "data.path" in ended.stdout
    assert "Mustermann" not in ended.stdout
