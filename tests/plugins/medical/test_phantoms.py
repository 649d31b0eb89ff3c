"""The embedded data set: real DICOM series, masks on their grid, vessels that look like nodules."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RLELossless
from scipy import ndimage

from pegboard.progress import SilentProgress
from pegboard_medical import dicom, phantoms, sources
from pegboard_medical.settings import VolumeData

Array = Any
TINY_CASES = 10


def write(folder: Path, *, cases: int, seed: int = 3, tiny: bool = True) -> Path:
    phantoms.write_phantoms(folder, cases=cases, seed=seed, tiny=tiny, progress=SilentProgress())
    return folder


def digests(folder: Path) -> Mapping[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / phantoms.TABLE).open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def slices_of(folder: Path) -> list[pydicom.Dataset]:
    """Read a series by pydicom alone, in order of position along the normal."""
    found = [pydicom.dcmread(path) for path in folder.iterdir()]
    return sorted(found, key=lambda one: float(one.ImagePositionPatient[2]))


def mask_of(folder: Path, uid: str) -> tuple[Array, Array]:
    """Read a mask by nibabel alone: voxels (x, y, z), and its affine in RAS."""
    image = nibabel.load(folder / phantoms.MASKS / f"{uid}.nii.gz")
    return np.asarray(image.dataobj), image.affine  # type: ignore[attr-defined]


def drawn(seed: int, *, tiny: bool = False) -> tuple[phantoms.Patient, phantoms.Grid, Array]:
    patient = phantoms.draw_patient(np.random.default_rng(seed), tiny=tiny)
    random = np.random.default_rng((seed, 1))
    grid = phantoms.draw_grid(random, patient, tiny)
    return patient, grid, phantoms.scanned(random, patient, grid)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("phantoms") / "made", cases=TINY_CASES)


Scan = tuple[phantoms.Patient, phantoms.Grid, Array]


@pytest.fixture(scope="module")
def scans() -> list[Scan]:
    """Patients of the usual size."""
    return [drawn(seed) for seed in range(6)]


# --- Files ----------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    first = digests(write(tmp_path / "a", cases=2))
    assert first == digests(write(tmp_path / "b", cases=2))
    other = digests(write(tmp_path / "c", cases=2, seed=4))
    assert not set(first.values()) & set(other.values())


def test_more_cases_begin_with_the_same_ones(tmp_path: Path, tiny: Path) -> None:
    few = digests(write(tmp_path / "few", cases=2))
    many = digests(tiny)
    assert {name: many[name] for name in few if name != phantoms.TABLE} == {
        name: digest for name, digest in few.items() if name != phantoms.TABLE
    }


def test_a_failure_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("stopped")

    monkeypatch.setattr(phantoms, "nifti_bytes", fail)
    with pytest.raises(RuntimeError, match="stopped"):
        write(tmp_path / "made", cases=1)
    assert list(tmp_path.iterdir()) == []


def test_files_are_dicom_that_needs_no_force(tiny: Path) -> None:
    folders = sorted((tiny / phantoms.IMAGES).iterdir())
    assert len(folders) == TINY_CASES
    syntaxes, intercepts, instances, images = Counter[str](), set(), [], set()
    for folder in folders:
        datasets = slices_of(folder)
        assert len({one.SeriesInstanceUID for one in datasets}) == 1
        for one in datasets:
            assert one.file_meta.MediaStorageSOPClassUID == one.SOPClassUID == CTImageStorage
            assert one.file_meta.MediaStorageSOPInstanceUID == one.SOPInstanceUID
            assert one.pixel_array.shape == (one.Rows, one.Columns) == (48, 48)
            for name in ("Study", "Series", "SOP"):
                assert pydicom.uid.UID(one[f"{name}InstanceUID"].value).is_valid
            assert one.PatientName
            assert one.PatientID
            assert one.FrameOfReferenceUID.is_valid
            instances.append(one.SOPInstanceUID)
            images.add(one.PixelData)
        syntaxes[datasets[0].file_meta.TransferSyntaxUID] += 1
        intercepts.add((float(datasets[0].RescaleSlope), float(datasets[0].RescaleIntercept)))
        assert sorted(one.InstanceNumber for one in datasets) == list(range(1, 25))
    assert len(set(instances)) == len(instances) == len(images)
    assert set(syntaxes) == {RLELossless, ExplicitVRLittleEndian}
    assert intercepts == {(1, -1024), (1, 0), (0.5, -1024)}


def test_pydicom_reads_back_the_units_that_were_drawn(tmp_path: Path) -> None:
    for number in range(3):
        patient, grid, voxels = drawn(number, tiny=True)
        assert patient.scale < 0.8
        (tmp_path / str(number)).mkdir()
        uid = phantoms._write_series(
            tmp_path / str(number) / "series",
            voxels,
            phantoms._affine(grid, turned=False),
            (0, number, 0),
            np.random.default_rng(0),
        )
        for k, one in enumerate(slices_of(tmp_path / str(number) / "series")):
            assert uid == one.SeriesInstanceUID
            units = one.pixel_array * float(one.RescaleSlope) + float(one.RescaleIntercept)
            assert np.array_equal(units, voxels[k])


def test_file_names_say_nothing_of_the_order(tiny: Path) -> None:
    for folder in (tiny / phantoms.IMAGES).iterdir():
        named = [
            pydicom.dcmread(path, stop_before_pixels=True) for path in sorted(folder.iterdir())
        ]
        heights = np.array([float(one.SliceLocation) for one in named])
        assert abs(np.corrcoef(heights, np.arange(len(heights)))[0, 1]) < 0.8
        assert np.allclose(np.diff(np.sort(heights)), float(named[0].SpacingBetweenSlices))


def test_some_patients_have_two_series_and_no_two_patients_share_an_id(tiny: Path) -> None:
    series: dict[str, set[tuple[str, str, str]]] = {}
    for folder in (tiny / phantoms.IMAGES).iterdir():
        one = slices_of(folder)[0]
        series.setdefault(one.PatientID, set()).add(
            (one.SeriesInstanceUID, one.FrameOfReferenceUID, str(one.PatientName))
        )
    assert Counter(len(found) for found in series.values()) == {1: 6, 2: 2}
    for found in series.values():
        assert len({(frame, name) for _, frame, name in found}) == 1


def test_the_plugin_reads_what_is_written(tmp_path: Path, tiny: Path) -> None:
    data = VolumeData(path=tiny, folder=tmp_path, tiny=True)
    cases = sources.read_cases(data)
    assert len(cases) == TINY_CASES
    assert all(case.kind == "dicom" and case.mask is not None for case in cases)
    assert len({case.patient for case in cases}) == 8
    marked = 0
    for case in cases:
        image = sources.read_case(case)
        marked += int(sources.read_mask(case, image).sum())
        (series,) = dicom.group_series(case.files)
        assert dicom.series_findings(series, case.key) == []
    assert marked > 100


# --- Masks ----------------------------------------------------------------------------------------


def test_masks_lie_on_the_grid_of_their_series(tiny: Path) -> None:
    turned = 0
    for folder in (tiny / phantoms.IMAGES).iterdir():
        datasets = slices_of(folder)
        first, last = datasets[0], datasets[-1]
        mask, affine = mask_of(tiny, first.SeriesInstanceUID)
        assert mask.dtype == np.uint8
        assert set(np.unique(mask)) <= {0, 1}
        assert mask.shape == (first.Columns, first.Rows, len(datasets))
        across, down = np.array(first.ImageOrientationPatient, dtype=float).reshape(2, 3)
        expected = np.eye(4)
        expected[:3, 0] = across * float(first.PixelSpacing[1])
        expected[:3, 1] = down * float(first.PixelSpacing[0])
        start, end = (np.array(one.ImagePositionPatient, dtype=float) for one in (first, last))
        expected[:3, 2] = (end - start) / (len(datasets) - 1)
        expected[:3, 3] = start
        assert np.allclose(affine, np.diag([-1.0, -1, 1, 1]) @ expected, atol=2e-3)
        turned += across[0] < 0
    # The patient who lies on the belly is scanned twice.
    assert turned == 2


def test_the_table_names_each_nodule_where_it_is(tiny: Path) -> None:
    rows = rows_of(tiny)
    assert tuple(rows[0]) == phantoms.COLUMNS
    uids = {path.name.removesuffix(".nii.gz") for path in (tiny / phantoms.MASKS).iterdir()}
    assert len(uids) == TINY_CASES
    of_series = Counter(row["series"] for row in rows)
    assert set(of_series) < uids, "some cases have none"
    for uid in uids:
        mask, _ = mask_of(tiny, uid)
        assert bool(mask.any()) == (uid in of_series)
        _, count = ndimage.label(mask, np.ones((3, 3, 3)))
        assert count <= of_series[uid]
        near = ndimage.binary_dilation(mask, iterations=2)
        for row in rows:
            if row["series"] == uid:
                assert near[int(row["i"]), int(row["j"]), int(row["k"])]


def test_diameters_are_those_of_the_outlines() -> None:
    random = np.random.default_rng(0)
    axis = np.arange(-40, 40, 1.0, dtype=np.float32)
    grid = phantoms.Grid(z=axis, y=axis, x=axis)
    for diameter in np.linspace(6, 30, 25):
        nodule = phantoms._nodule(random, np.zeros(3, dtype=np.float32), float(diameter))
        shape = phantoms._shape_of(nodule, grid)
        assert shape is not None
        volume = float((shape[1] > 0).sum())
        assert (6 * volume / np.pi) ** (1 / 3) == pytest.approx(diameter, rel=0.06)


def test_nodules_measure_3_to_30_mm_and_do_not_touch_one_another() -> None:
    found = 0
    for seed in range(8):
        nodules = phantoms.draw_patient(np.random.default_rng(seed), tiny=True).nodules
        found += len(nodules)
        for index, one in enumerate(nodules):
            assert 3 <= one.diameter <= 30
            for other in nodules[:index]:
                apart = np.linalg.norm(one.centre - other.centre)
                assert apart > (one.diameter + other.diameter) / 2 + 2
    assert found > 5


def test_nodules_are_of_every_kind_and_large_spiculated_ones_are_mostly_malignant() -> None:
    nodules = []
    random = np.random.default_rng(0)
    for diameter in np.exp(random.uniform(np.log(3), np.log(30), 1200)):
        nodules.append(phantoms._nodule(random, np.zeros(3, dtype=np.float32), float(diameter)))
    assert set(Counter(one.kind for one in nodules)) == set(phantoms.KINDS)

    def malignant(chosen: list[phantoms.Nodule]) -> float:
        assert len(chosen) > 20
        return float(np.mean([one.label == "malignant" for one in chosen]))

    small = malignant([one for one in nodules if one.diameter < 6])
    middle = malignant([one for one in nodules if 9 < one.diameter < 14])
    spiculated = malignant([one for one in nodules if len(one.spicules.radii)])
    chalky = malignant([one for one in nodules if one.chalk])
    assert small < 0.1
    assert chalky < 0.1
    assert 0.15 < middle < 0.7
    assert spiculated > 0.7


# --- What it looks like ---------------------------------------------------------------------------


def test_tissues_have_the_density_of_a_chest(scans: list[Scan]) -> None:
    for patient, grid, voxels in scans[:2]:
        assert voxels.dtype == np.int16
        assert voxels.nbytes < 6e6
        assert 1.4 < grid.spacing[0] < 4.5
        assert 0.85 < grid.spacing[1] < 1.8
        assert grid.spacing[1] == pytest.approx(grid.spacing[2], abs=1e-3)
        depth = lung_depth(patient, grid)
        inside = voxels[depth > 4]
        assert -900 < np.median(inside) < -780
        assert (inside > -300).mean() < 0.15
        outside = voxels[(depth < -4) & (voxels > -300)]
        assert 20 < np.median(outside[outside > -50]) < 90
        assert ((outside > -140) & (outside < -60)).mean() > 0.05, "there is fat"
        assert (outside > 300).mean() > 0.01, "there are bones"
        assert 500 < np.percentile(outside[outside > 300], 90) < 1100
        assert (voxels[depth < -4] < -900).mean() > 0.1, "there is air around"


def lung_depth(patient: phantoms.Patient, grid: phantoms.Grid) -> Array:
    """Return how deep in the lungs each voxel lies, in mm."""
    return -phantoms._Fine.of(patient.lungs, grid).slices(slice(None))


def test_solid_nodules_are_as_dense_as_vessels_and_faint_ones_are_not(scans: list[Scan]) -> None:
    densities: dict[str, list[float]] = {"solid": [], "ground-glass": []}
    for patient, grid, voxels in scans:
        for nodule in patient.nodules:
            shape = phantoms._shape_of(nodule, grid)
            if nodule.kind in densities and not nodule.chalk and shape is not None:
                box, deep, _ = shape
                core = voxels[box][deep > 2.0]
                if core.size > 8:
                    densities[nodule.kind].append(float(np.median(core)))
    assert len(densities["solid"]) >= 5
    assert all(-30 < density < 120 for density in densities["solid"])
    assert densities["ground-glass"]
    assert all(-750 < density < -350 for density in densities["ground-glass"])


def test_a_threshold_takes_vessels_for_nodules(scans: list[Scan]) -> None:
    right = wrong = 0
    for patient, grid, voxels in scans[:4]:
        mask, _ = phantoms.outlined(patient, grid)
        found = (voxels > -400) & (lung_depth(patient, grid) > 0)
        numbered, count = ndimage.label(found, np.ones((3, 3, 3)))
        of_region = np.bincount(numbered.ravel(), minlength=count + 1)[1:]
        marked = np.bincount(numbered.ravel(), weights=mask.ravel(), minlength=count + 1)[1:]
        # Of the size of a ball of 3 to 30 mm.
        volumes = of_region * float(np.prod(grid.spacing))
        plausible = (volumes > 14) & (volumes < 14_200)
        right += int((plausible & (marked > 0)).sum())
        wrong += int((plausible & (marked == 0)).sum())
    assert right >= 2
    assert right / (right + wrong) < 0.1
