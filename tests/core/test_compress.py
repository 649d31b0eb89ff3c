from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pegboard import BundleError, PegboardError, SettingsError
from pegboard.bundle import Bundle, Candidate, read_bundle
from pegboard.progress import SilentProgress
from pegboard.project import open_project
from pegboard.records import Signature
from pegboard.runs import Run
from pegboard.stages import compress
from pegboard.stages.compress import choose

INT8 = "deploy.compress=['int8-dynamic', 'int8-static']"


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compress, "TIMING_SECONDS", 0.3)


# --------------------------------------------------------------------------- choosing


def candidate(name: str, cpu_ms: float, drop: float | None = 0.0, reason: str = "") -> Candidate:
    target, variant = name.split("/")
    return Candidate(
        target=target,
        variant=variant,
        file="model",
        status="quarantined" if reason else "exported",
        reason=reason,
        measured={"cpu_ms": cpu_ms, "validation_drop": drop},
    )


def bundle_of(*candidates: Candidate) -> Bundle:
    return Bundle(
        folder=Path("/bundle"),
        solution="toy",
        versions={},
        created="",
        signature=Signature(inputs=(), outputs=()),
        thresholds={},
        metrics=(),
        settings={},
        candidates=candidates,
        chosen_name=candidates[0].name,
    )


@pytest.mark.parametrize(
    ("candidates", "chosen"),
    [
        ([candidate("a/fp32", 2.0), candidate("b/fp32", 1.0)], "b/fp32"),
        ([candidate("a/fp32", 2.0), candidate("a/int8", 1.0, 0.01)], "a/int8"),
        ([candidate("a/fp32", 2.0), candidate("a/int8", 1.0, 0.02)], "a/fp32"),
        ([candidate("a/fp32", 2.0), candidate("a/int8", 1.0, None)], "a/fp32"),
        ([candidate("a/fp32", 2.0), candidate("a/int8", 1.0, -0.1)], "a/int8"),
        # Within the noise of a measurement the preferred one stays.
        ([candidate("a/fp32", 1.03), candidate("b/fp32", 1.0)], "a/fp32"),
        # Whether an fp32 export is right is for verification to say.
        ([candidate("a/fp32", 1.0, 0.5), candidate("a/int8", 2.0)], "a/fp32"),
        ([candidate("a/fp32", 1.0, reason="wrong"), candidate("b/fp32", 9.0)], "b/fp32"),
    ],
)
def test_the_fastest_that_keeps_the_metric_is_chosen(
    candidates: list[Candidate], chosen: str
) -> None:
    assert choose(bundle_of(*candidates), metric_limit=0.01).name == chosen


def test_a_limit_of_zero_sets_none() -> None:
    bundle = bundle_of(candidate("a/fp32", 2.0), candidate("a/int8", 1.0, 0.9))
    assert choose(bundle, metric_limit=0.0).name == "a/int8"


def test_nothing_is_chosen_when_all_are_refused() -> None:
    bundle = bundle_of(candidate("a/fp32", 1.0, reason="too wrong"), candidate("a/int8", 1.0, 0.5))
    with pytest.raises(BundleError, match=r"no candidate may be served: a/fp32: too wrong"):
        choose(bundle, metric_limit=0.01)


# --------------------------------------------------------------------------- the stage


def test_without_compressions_the_runtimes_are_measured(run_copy: Callable[..., Run]) -> None:
    run = run_copy()
    facts = compress.run(run, SilentProgress())
    assert list(facts["candidates"]) == ["onnx/fp32", "torch/fp32"]
    assert facts["chosen"] == read_bundle(run.bundle).chosen_name
    for figures in facts["candidates"].values():
        assert 0 < figures["cpu_ms"] < 100
        assert figures["validation_drop"] == 0.0


def test_every_compression_is_a_candidate_and_fp32_stays(run_copy: Callable[..., Run]) -> None:
    run = run_copy(INT8)
    facts = compress.run(run, SilentProgress())
    bundle = read_bundle(run.bundle)
    assert [candidate.name for candidate in bundle.candidates] == [
        "onnx/fp32",
        "torch/fp32",
        "onnx/int8-dynamic",
        "onnx/int8-static",
    ]
    assert facts["failed"] == {}
    targets = run.project.board.collect("deploy_targets")
    inputs = bundle.golden()[0].inputs
    answers = {
        candidate.name: float(bundle.load_predictor(targets, candidate)(inputs)["probability"][0])
        for candidate in bundle.candidates
    }
    assert answers["onnx/int8-static"] == pytest.approx(answers["onnx/fp32"], abs=0.1)
    assert answers["onnx/int8-static"] != answers["onnx/fp32"]


def test_compressing_again_begins_with_what_was_exported(run_copy: Callable[..., Run]) -> None:
    run = run_copy(INT8)
    compress.run(run, SilentProgress())
    compress.run(run, SilentProgress())
    plain = open_project(run.project.folder)
    compress.run(Run(project=plain, folder=run.folder), SilentProgress())
    bundle = read_bundle(run.bundle)
    assert [candidate.name for candidate in bundle.candidates] == ["onnx/fp32", "torch/fp32"]
    assert not list(run.bundle.rglob("*int8*"))


def test_a_compression_that_is_killed_leaves_a_bundle_that_can_be_read(
    run_copy: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_copy(INT8)
    compress.run(run, SilentProgress())

    def killed(*_: Any) -> None:
        # Half of a new candidate where the old one was, and no time to say so.
        (run.bundle / "models/onnx/int8-dynamic").mkdir()
        (run.bundle / "models/onnx/int8-dynamic/model.onnx").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(compress, "_compressed", killed)
    with pytest.raises(KeyboardInterrupt):
        compress.run(run, SilentProgress())
    assert read_bundle(run.bundle).chosen_name == "onnx/fp32"
    monkeypatch.undo()
    monkeypatch.setattr(compress, "TIMING_SECONDS", 0.3)
    assert len(compress.run(run, SilentProgress())["candidates"]) == 4


def test_an_unknown_compression_names_the_nearest(run_copy: Callable[..., Run]) -> None:
    run = run_copy("deploy.compress=['int8-statik']")
    with pytest.raises(SettingsError, match=r"'int8-statik' \(deploy.compress\).*'int8-static'"):
        compress.run(run, SilentProgress())


PLANTED = """
from dataclasses import replace
from pegboard import hookimpl
from pegboard.targets import onnx


def guess(request):
    path = request.folder / "deep" / "model.onnx"
    path.parent.mkdir()
    path.write_bytes(request.source.read_bytes())
    return path


def fail(request):
    assert len(request.calibration) and set(request.calibration[0]) == {"x"}
    (request.folder / "half.onnx").write_bytes(b"half")
    raise RuntimeError("no kernel for this graph\\nin detail: ...")


def scribble(request):
    path = request.folder / "model.onnx"
    path.write_bytes(b"no model")
    return path


def fill(request):
    raise OSError(28, "No space left on device")


def load(path, signature):
    predictor = onnx.load(path, signature)
    if "guess" not in path.parts:
        return predictor
    return lambda inputs: {"probability": 1 - predictor(inputs)["probability"]}


@hookimpl
def deploy_targets():
    (target,) = onnx.deploy_targets()
    made = {"guess": guess, "fails": fail, "fills": fill, "scribbles": scribble}
    return [replace(target, load=load, compressions=made)]
"""


def planted(run_copy: Callable[..., Run], *overrides: str) -> Run:
    run = run_copy()
    (run.project.folder / "hooks.py").write_text(PLANTED)
    return Run(project=open_project(run.project.folder, overrides), folder=run.folder)


def test_a_compression_that_fails_is_noted_and_left_out(run_copy: Callable[..., Run]) -> None:
    run = planted(run_copy, "deploy.compress=['fails', 'scribbles']")
    facts = compress.run(run, SilentProgress())
    assert facts["failed"]["onnx/fails"] == "no kernel for this graph"
    assert "'onnx/scribbles' cannot be opened" in facts["failed"]["onnx/scribbles"]
    assert list(facts["candidates"]) == ["onnx/fp32", "torch/fp32"]
    assert [path.name for path in (run.bundle / "models" / "onnx").iterdir()] == ["fp32"]


def test_a_full_disk_stops_the_stage_and_leaves_the_bundle_as_it_was(
    run_copy: Callable[..., Run],
) -> None:
    run = planted(run_copy, "deploy.compress=['fills']")
    before = read_bundle(run.bundle)
    with pytest.raises(PegboardError, match=r"no space left to write to"):
        compress.run(run, SilentProgress())
    assert read_bundle(run.bundle) == before
    assert [path.name for path in (run.bundle / "models" / "onnx").iterdir()] == ["fp32"]


def test_a_candidate_that_loses_the_metric_is_not_chosen_however_fast(
    run_copy: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    def faster(*_: Any) -> dict[str, dict[str, float]]:
        return {
            name: {"cpu_ms": 1.0 if name == "onnx/guess" else 5.0}
            for name in ("onnx/fp32", "torch/fp32", "onnx/guess")
        }

    # Times are given, so that the noise of this machine does not decide what is tested.
    monkeypatch.setattr(compress, "_times", faster)
    run = planted(run_copy, "deploy.compress=['guess']")
    facts = compress.run(run, SilentProgress())
    assert facts["candidates"]["onnx/guess"]["validation_drop"] > 0.5
    assert facts["chosen"] == "onnx/fp32"
    run = Run(
        project=open_project(
            run.project.folder, ["deploy.compress=['guess']", "deploy.limits.metric_drop=2.0"]
        ),
        folder=run.folder,
    )
    assert compress.run(run, SilentProgress())["chosen"] == "onnx/guess"
