from __future__ import annotations

import io
import json
import pickletools
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pegboard import BundleError
from pegboard.bundle import (
    GOLDEN,
    MANIFEST,
    Bundle,
    Candidate,
    Golden,
    read_bundle,
    read_golden,
    write_golden,
    write_manifest,
)
from pegboard.files import digest_of
from pegboard.runs import Run


@pytest.fixture
def folder(exported_run: Run, tmp_path: Path) -> Path:
    return shutil.copytree(exported_run.bundle, tmp_path / "bundle")


def rewritten(folder: Path, change: Callable[[dict[str, Any]], None], *, sign: bool = True) -> None:
    tables = json.loads((folder / MANIFEST).read_text())
    digest = tables.pop("digest")
    change(tables)
    digest = digest_of(tables) if sign else digest
    (folder / MANIFEST).write_text(json.dumps(tables | {"digest": digest}))


# --------------------------------------------------------------------------- what is in it


def test_a_bundle_reads_back_what_the_run_was(exported_run: Run) -> None:
    project, bundle = exported_run.project, read_bundle(exported_run.bundle)
    assert bundle.solution == "toy"
    assert bundle.versions == {"pegboard": "0.1.0", "toy": "0.1"}
    assert bundle.signature == project.board.hook.signature(settings=project.settings)
    assert bundle.thresholds == {"positive": 0.5}
    assert bundle.metrics[0].headline
    assert bundle.settings == project.settings.tables(project.folder)
    assert [candidate.name for candidate in bundle.candidates] == ["onnx/fp32", "torch/fp32"]
    assert bundle.chosen().name == "onnx/fp32"
    assert bundle.size_of(bundle.chosen()) == (bundle.folder / bundle.chosen().file).stat().st_size


def test_every_file_but_the_manifest_has_a_checksum(exported_run: Run) -> None:
    bundle = read_bundle(exported_run.bundle)
    files = {
        path.relative_to(bundle.folder).as_posix()
        for path in bundle.folder.rglob("*")
        if path.is_file()
    }
    assert files == {MANIFEST, *bundle.files}


def test_the_chosen_candidate_answers_what_torch_answered(exported_run: Run) -> None:
    bundle = read_bundle(exported_run.bundle)
    targets = exported_run.project.board.collect("deploy_targets")
    predictor = bundle.load_predictor(targets)
    for record in bundle.golden():
        np.testing.assert_allclose(
            predictor(record.inputs)["probability"], record.outputs["probability"], rtol=1e-5
        )


def test_golden_records_are_spread_over_the_test_split(exported_run: Run) -> None:
    project = exported_run.project
    test = project.board.hook.load_split(settings=project.settings, split="test")
    golden = read_bundle(exported_run.bundle).golden()
    assert len(golden) == 16
    np.testing.assert_array_equal(golden[0].inputs["x"][0], test.x[0])
    np.testing.assert_array_equal(golden[-1].inputs["x"][0], test.x[-1])


def test_reference_statistics_are_those_of_the_train_split(exported_run: Run) -> None:
    project = exported_run.project
    train = project.board.hook.load_split(settings=project.settings, split="train")
    reference = read_bundle(exported_run.bundle).reference()
    (column,) = reference["inputs"]["x"]
    assert column["mean"] == pytest.approx(train.x.mean(), rel=1e-5)
    assert reference["outputs"]["probability"][0]["count"] == len(train)


def test_golden_records_may_differ_in_shape(tmp_path: Path) -> None:
    records = [
        Golden(inputs={"points": np.ones((1, n, 3))}, outputs={"a/b": np.full((1, n), n)})
        for n in (3, 0, 12)
    ]
    write_golden(tmp_path / GOLDEN, records)
    back = read_golden(tmp_path / GOLDEN)
    assert [record.inputs["points"].shape for record in back] == [(1, 3, 3), (1, 0, 3), (1, 12, 3)]
    np.testing.assert_array_equal(back[2].outputs["a/b"], records[2].outputs["a/b"])


def test_golden_records_refuse_objects_which_numpy_would_pickle(tmp_path: Path) -> None:
    record = Golden(inputs={"x": np.array([{}], dtype=object)}, outputs={})
    with pytest.raises(ValueError, match=r"Object arrays"):
        write_golden(tmp_path / GOLDEN, [record])
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------- no pickle, no torch


def parts(name: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield a file, or what is inside it when it is an archive, all the way down."""
    if not zipfile.is_zipfile(io.BytesIO(data)):
        yield name, data
        return
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for member in archive.namelist():
            yield from parts(f"{name}!{member}", archive.read(member))


def is_pickle(data: bytes) -> bool:
    try:
        list(pickletools.genops(data))
    except Exception:
        return False
    return len(data) > 2


def test_nothing_in_a_bundle_is_a_pickle(exported_run: Run) -> None:
    found = [
        name
        for path in exported_run.bundle.rglob("*")
        if path.is_file()
        for name, data in parts(path.name, path.read_bytes())
        if is_pickle(data) or name.endswith((".pkl", ".pickle"))
    ]
    assert found == []


def test_the_search_for_pickles_finds_one(tmp_path: Path) -> None:
    import torch

    torch.save({"a": torch.ones(2)}, tmp_path / "weights.pt")
    data = (tmp_path / "weights.pt").read_bytes()
    assert any(is_pickle(part) for _, part in parts("weights.pt", data))


def test_no_path_of_this_machine_is_in_a_bundle(exported_run: Run) -> None:
    places = [str(exported_run.project.folder), sys.prefix, "site-packages", "pegboard_toy.py"]
    for path in exported_run.bundle.rglob("*"):
        if path.is_file():
            for name, data in parts(path.name, path.read_bytes()):
                assert not [place for place in places if place.encode() in data], name


def test_a_bundle_is_read_without_the_libraries_that_made_it(exported_run: Run) -> None:
    script = (
        "import sys, pathlib\n"
        "from pegboard.bundle import read_bundle\n"
        "bundle = read_bundle(pathlib.Path(sys.argv[1]))\n"
        "bundle.golden(), bundle.reference()\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'matplotlib', 'pydantic'} & set(sys.modules)\n"
        "print(bundle.chosen_name, sorted(heavy))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(exported_run.bundle)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "onnx/fp32 []"


# --------------------------------------------------------------------------- damage


def test_one_flipped_bit_in_any_file_is_noticed_and_named(folder: Path) -> None:
    for name in read_bundle(folder).files:
        path = folder / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(BundleError, match=rf"the checksum of '{name}' is wrong"):
            read_bundle(folder)
        path.write_bytes(whole)
    read_bundle(folder)


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "reference.json").unlink()
    with pytest.raises(BundleError, match=r"'reference.json' is missing.*copy the bundle again"):
        read_bundle(folder)


def test_a_file_cut_short_is_named_with_its_sizes(folder: Path) -> None:
    path = folder / GOLDEN
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BundleError, match=rf"'golden.npz' has 100 bytes and not {size}"):
        read_bundle(folder)


def test_a_manifest_changed_by_hand_is_noticed(folder: Path) -> None:
    def lower(tables: dict[str, Any]) -> None:
        tables["thresholds"]["positive"] = 0.1

    rewritten(folder, lower, sign=False)
    with pytest.raises(BundleError, match=r"bundle.json was changed after it was written"):
        read_bundle(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '"format"'])
def test_a_damaged_manifest_is_named(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text(text)
    with pytest.raises(BundleError, match=r"bundle.json is damaged"):
        read_bundle(folder)


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"this is not a bundle"):
        read_bundle(tmp_path / "nowhere")


def test_a_newer_format_asks_for_a_newer_pegboard(folder: Path) -> None:
    rewritten(folder, lambda tables: tables.update(format=2))
    with pytest.raises(BundleError, match=r"format 2 and this Pegboard reads 1.*--upgrade"):
        read_bundle(folder)


def test_a_key_that_is_missing_is_named(folder: Path) -> None:
    rewritten(folder, lambda tables: tables.pop("signature"))
    with pytest.raises(BundleError, match=r"lacks or misspells 'signature'"):
        read_bundle(folder)


def test_a_file_outside_the_bundle_is_refused(folder: Path) -> None:
    def escape(tables: dict[str, Any]) -> None:
        tables["files"]["../secret"] = tables["files"]["reference.json"]

    rewritten(folder, escape)
    with pytest.raises(BundleError, match=r"'\.\./secret' lies outside the bundle"):
        read_bundle(folder)


def test_a_model_that_no_checksum_covers_is_refused(folder: Path) -> None:
    def point_away(tables: dict[str, Any]) -> None:
        tables["candidates"][1]["file"] = "../elsewhere/model.onnx"

    rewritten(folder, point_away)
    with pytest.raises(BundleError, match=r"'torch/fp32' has no file with a checksum"):
        read_bundle(folder)


def test_checksums_are_skipped_when_asked(folder: Path) -> None:
    (folder / GOLDEN).write_bytes(b"")
    assert read_bundle(folder, verify=False).solution == "toy"


# --------------------------------------------------------------------------- candidates


def test_a_quarantined_candidate_is_not_opened(folder: Path, exported_run: Run) -> None:
    bundle = read_bundle(folder)
    bad = replace(bundle.chosen(), status="quarantined", reason="3 % of the decisions flip")
    with pytest.raises(BundleError, match=r"'onnx/fp32' is quarantined: 3 % of the decisions"):
        bundle.load_predictor(exported_run.project.board.collect("deploy_targets"), bad)


def test_an_unknown_candidate_names_those_there_are(folder: Path) -> None:
    with pytest.raises(BundleError, match=r"no candidate 'onnx/int9'.*onnx/fp32, torch/fp32"):
        read_bundle(folder).candidate("onnx/int9")


def test_a_model_that_its_runtime_cannot_open_is_named(folder: Path, exported_run: Run) -> None:
    (folder / "models/onnx/fp32/model.onnx").write_bytes(b"no model")
    bundle = read_bundle(folder, verify=False)
    with pytest.raises(BundleError, match=r"'onnx/fp32' cannot be opened") as caught:
        bundle.load_predictor(exported_run.project.board.collect("deploy_targets"))
    assert caught.value.__cause__ is not None


# --------------------------------------------------------------------------- updates


def with_figure(bundle: Bundle, figure: float) -> Bundle:
    changed = [replace(c, measured={"cpu_ms": figure}) for c in bundle.candidates]
    return replace(bundle, candidates=tuple(changed))


def test_an_update_keeps_everything_else(folder: Path) -> None:
    before = read_bundle(folder)
    write_manifest(with_figure(before, 0.5))
    after = read_bundle(folder)
    assert after.chosen().measured == {"cpu_ms": 0.5}
    assert with_figure(before, 0.5) == after


def test_a_file_damaged_before_an_update_is_still_noticed_after_it(folder: Path) -> None:
    bundle = read_bundle(folder)
    (folder / "reference.json").write_text("{}")
    write_manifest(with_figure(bundle, 0.5))
    with pytest.raises(BundleError, match=r"reference.json"):
        read_bundle(folder)


def test_an_update_that_fails_leaves_the_old_manifest(folder: Path) -> None:
    bundle = read_bundle(folder)
    with pytest.raises(ValueError, match=r"not JSON compliant"):
        write_manifest(with_figure(bundle, float("nan")))
    assert read_bundle(folder) == bundle


def test_a_candidate_that_is_a_folder_has_all_its_files_listed(folder: Path) -> None:
    model = folder / "models" / "openvino" / "fp32"
    model.mkdir(parents=True)
    (model / "model.xml").write_text("<net/>")
    (model / "model.bin").write_bytes(b"1234")
    bundle = read_bundle(folder)
    added = Candidate(target="openvino", variant="fp32", file="models/openvino/fp32")
    write_manifest(replace(bundle, candidates=(*bundle.candidates, added)))
    bundle = read_bundle(folder)
    assert "models/openvino/fp32/model.bin" in bundle.files
    assert bundle.size_of(added) == 10
