from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from pegboard import BundleError
from pegboard.bundle import Bundle, read_bundle, write_manifest
from pegboard.progress import SilentProgress
from pegboard.project import open_project
from pegboard.runs import Run
from pegboard.stages import verify

ONNX = "models/onnx/fp32/model.onnx"
TORCH = "models/torch/fp32/model.pt2"


def replanted(run: Run, file: str, change: Callable[[Path], None]) -> Bundle:
    """Change a model and renew its checksum: it is wrong then and not damaged."""
    bundle = read_bundle(run.bundle)
    change(run.bundle / file)
    others = {name: facts for name, facts in bundle.files.items() if name != file}
    return write_manifest(replace(bundle, files=others))


def perturb(amount: float) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        model = onnx.load(path)
        for tensor in model.graph.initializer:
            if tensor.name == "model.head.bias":
                array = numpy_helper.to_array(tensor) + np.float32(amount)
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        path.write_bytes(model.SerializeToString())

    return change


def test_honest_exports_are_verified_with_their_figures(run_copy: Callable[..., Run]) -> None:
    run = run_copy()
    facts = verify.run(run, SilentProgress())
    bundle = read_bundle(run.bundle)
    for candidate in bundle.candidates:
        assert candidate.status == "verified"
        assert candidate.measured["tensor_error"] < 1e-5
        assert candidate.measured["test_drop"] == 0.0
        assert candidate.measured["flipped_decisions"] == 0.0
        assert facts["candidates"][candidate.name]["status"] == "verified"
    assert bundle.metrics[0].value == bundle.candidates[0].measured["test_metric"]


def test_a_perturbed_weight_is_caught_and_another_candidate_served(
    run_copy: Callable[..., Run],
) -> None:
    run = run_copy()
    assert replanted(run, ONNX, perturb(0.02)).chosen_name == "onnx/fp32"
    facts = verify.run(run, SilentProgress())
    bundle = read_bundle(run.bundle)
    wrong = bundle.candidate("onnx/fp32")
    assert wrong.is_quarantined
    assert "'probability' is off by" in wrong.reason
    assert "limit 0.001" in wrong.reason
    assert facts["chosen"] == bundle.chosen_name == "torch/fp32"
    with pytest.raises(BundleError, match=r"'onnx/fp32' is quarantined"):
        bundle.load_predictor(run.project.board.collect("deploy_targets"), wrong)


def test_flipped_decisions_and_a_lost_metric_are_caught_without_the_tensor_limit(
    run_copy: Callable[..., Run],
) -> None:
    run = run_copy("deploy.limits.tensor_error=100.0")
    replanted(run, ONNX, perturb(-8.0))
    verify.run(run, SilentProgress())
    wrong = read_bundle(run.bundle).candidate("onnx/fp32")
    assert "of the decisions flip, limit 0.50%" in wrong.reason
    assert "worse, limit 1.00%" in wrong.reason
    assert wrong.measured["flipped_decisions"] > 0.3


def test_tensors_of_a_compressed_candidate_may_stray(run_copy: Callable[..., Run]) -> None:
    run = run_copy()
    bundle = replanted(run, ONNX, perturb(0.02))
    small = replace(bundle.candidates[0], variant="int8")
    write_manifest(
        replace(bundle, candidates=(small, bundle.candidates[1]), chosen_name="onnx/int8")
    )
    verify.run(run, SilentProgress())
    assert read_bundle(run.bundle).candidate("onnx/int8").status == "verified"


def test_a_candidate_that_does_not_run_is_quarantined(run_copy: Callable[..., Run]) -> None:
    run = run_copy()
    replanted(run, TORCH, lambda path: path.write_bytes(b"no archive") and None)
    verify.run(run, SilentProgress())
    wrong = read_bundle(run.bundle).candidate("torch/fp32")
    assert wrong.reason.startswith("it does not run: this is not a torch.export archive")


def test_when_none_is_left_the_figures_are_told_and_nothing_is_served(
    run_copy: Callable[..., Run],
) -> None:
    run = run_copy()
    replanted(run, ONNX, perturb(0.5))
    replanted(run, TORCH, lambda path: path.write_bytes(b"no archive") and None)
    with pytest.raises(BundleError, match=r"onnx/fp32: 'probability' is off by .*torch/fp32: it"):
        verify.run(run, SilentProgress())
    bundle = read_bundle(run.bundle)
    assert bundle.servable() == []
    with pytest.raises(BundleError, match=r"quarantined"):
        bundle.load_predictor(run.project.board.collect("deploy_targets"))


def test_verifying_again_looks_at_a_quarantined_candidate_again(
    run_copy: Callable[..., Run],
) -> None:
    run = run_copy()
    replanted(run, ONNX, perturb(0.02))
    verify.run(run, SilentProgress())
    patient = open_project(run.project.folder, ["deploy.limits.tensor_error=0.5"])
    verify.run(Run(project=patient, folder=run.folder), SilentProgress())
    assert read_bundle(run.bundle).candidate("onnx/fp32").status == "verified"


def test_a_damaged_file_stops_verification_before_it_begins(run_copy: Callable[..., Run]) -> None:
    run = run_copy()
    (run.bundle / ONNX).write_bytes(b"")
    with pytest.raises(BundleError, match=r"model.onnx' has 0 bytes"):
        verify.run(run, SilentProgress())


def test_a_solution_that_decides_nothing_has_no_flips(run_copy: Callable[..., Run]) -> None:
    run = run_copy()
    (run.project.folder / "hooks.py").write_text(
        "from pegboard import hookimpl\n\n\n"
        "@hookimpl\n"
        "def encode_answer(outputs):\n"
        "    return [{'score': float(p)} for p in outputs['probability']]\n"
    )
    verify.run(Run(project=open_project(run.project.folder), folder=run.folder), SilentProgress())
    chosen = read_bundle(run.bundle).chosen()
    assert chosen.status == "verified"
    assert chosen.measured["flipped_decisions"] is None
