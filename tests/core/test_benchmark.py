from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from pegboard import LimitMissedError, PegboardError
from pegboard.bundle import read_bundle, write_manifest
from pegboard.progress import SilentProgress
from pegboard.project import open_project
from pegboard.runs import Run
from pegboard.stages import benchmark


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "REQUEST_SECONDS", 0.3)
    monkeypatch.setattr(benchmark, "MODEL_SECONDS", 0.1)


@pytest.fixture
def onnx_only(run_copy: Callable[..., Run]) -> Callable[..., Run]:
    """A copy whose torch candidate is quarantined: one process less to start."""

    def copy(*overrides: str) -> Run:
        run = run_copy(*overrides)
        bundle = read_bundle(run.bundle)
        bad = replace(bundle.candidate("torch/fp32"), status="quarantined", reason="slow")
        write_manifest(replace(bundle, candidates=(bundle.candidates[0], bad)))
        return run

    return copy


def written(run: Run) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(run.benchmark_file.read_text())
    return result


@pytest.mark.slow
def test_every_servable_candidate_is_measured_whole_and_alone(run_copy: Callable[..., Run]) -> None:
    run = run_copy()
    facts = benchmark.run(run, SilentProgress())
    result = written(run)
    assert result["measured"] == "decode, infer, encode"
    assert list(result["candidates"]) == ["onnx/fp32", "torch/fp32"]
    for figures in result["candidates"].values():
        assert 0 < figures["p50_ms"] <= figures["p95_ms"] <= figures["p99_ms"]
        assert figures["model_p50_ms"] < figures["p50_ms"]
        assert figures["requests"] >= 10
        assert figures["throughput"] == pytest.approx(1000 / figures["p50_ms"], rel=0.9)
    # The process that serves ONNX never imports torch.
    memory = {name: figures["memory_mb"] for name, figures in result["candidates"].items()}
    assert 20 < memory["onnx/fp32"] < memory["torch/fp32"] / 2
    assert facts["chosen"] == "onnx/fp32"
    assert facts["p99_ms"] == result["candidates"]["onnx/fp32"]["p99_ms"]


def test_a_quarantined_candidate_is_not_measured(onnx_only: Callable[..., Run]) -> None:
    run = onnx_only()
    benchmark.run(run, SilentProgress())
    assert list(written(run)["candidates"]) == ["onnx/fp32"]


@pytest.mark.parametrize(
    ("limit", "sentence"),
    [
        ("deploy.limits.p99_ms=0.0001", r"the 99th percentile of a request is .* may be 0.0001"),
        ("deploy.limits.throughput=1e9", r"requests a second and must answer 1e\+09"),
        ("deploy.limits.memory_mb=1.0", r"it resides in .* MB and may take 1 "),
    ],
)
def test_a_missed_limit_is_named_after_the_figures_are_written(
    onnx_only: Callable[..., Run], limit: str, sentence: str
) -> None:
    run = onnx_only(limit)
    with pytest.raises(LimitMissedError, match=sentence) as caught:
        benchmark.run(run, SilentProgress())
    assert caught.value.exit_code == 3
    assert caught.value.where == limit.split("=")[0]
    assert written(run)["chosen"] == "onnx/fp32"


def test_limits_that_are_kept_are_written_beside_the_figures(
    onnx_only: Callable[..., Run],
) -> None:
    run = onnx_only("deploy.limits.p99_ms=10000", "deploy.limits.throughput=0.1")
    benchmark.run(run, SilentProgress())
    assert written(run)["limits"] == {"p99_ms": 10000, "throughput": 0.1, "memory_mb": 0}


def test_without_an_example_request_inputs_are_sent(onnx_only: Callable[..., Run]) -> None:
    run = onnx_only()
    bundle = read_bundle(run.bundle)
    write_manifest(replace(bundle, signature=replace(bundle.signature, request=None)))
    benchmark.run(run, SilentProgress())
    assert written(run)["measured"] == "infer, encode"


def test_a_process_that_cannot_serve_is_named_with_its_last_words(
    onnx_only: Callable[..., Run],
) -> None:
    run = onnx_only()
    # hooks.py appears between this process's start and that of the one that is measured.
    (run.project.folder / "hooks.py").write_text("raise OSError('no licence')\n")
    with pytest.raises(
        PegboardError, match=r"a process that serves 'onnx/fp32' failed.*no licence"
    ):
        benchmark.run(run, SilentProgress())


def test_what_the_model_alone_is_timed_with_is_what_infer_gives_it(
    onnx_only: Callable[..., Run],
) -> None:
    run = onnx_only()
    (run.project.folder / "hooks.py").write_text(
        "import numpy as np\n"
        "from pegboard import hookimpl\n\n\n"
        "@hookimpl\n"
        "def infer(predictor, inputs):\n"
        "    return predictor({'x': np.repeat(inputs['x'], 3, axis=0)})\n"
    )
    project = open_project(run.project.folder)
    bundle = read_bundle(run.bundle)
    answerer = benchmark._answerer(project, bundle, "onnx/fp32")
    call = benchmark._model_calls(bundle, {"onnx/fp32": answerer})["onnx/fp32"]
    assert len(call()["probability"]) == 3  # type: ignore[index]


def test_every_path_of_the_server_is_measured_beside_a_bare_one(
    run_copy: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pegboard.serving import benchmark as http
    from pegboard.stages import verify

    monkeypatch.setattr(http, "SECONDS", 1.0)
    monkeypatch.setattr(http, "WARM_SECONDS", 0.2)
    run = run_copy("deploy.limits.flipped_decisions=1", "deploy.limits.metric_drop=0")
    verify.run(run, SilentProgress())
    benchmark.run(run, SilentProgress())
    served = written(run)["server"]
    assert set(served) == {"/predict"}
    figures = served["/predict"]
    assert figures["requests"] == pytest.approx(figures["rate"], rel=0.05)
    assert figures["failed"] == 0
    assert 0 < figures["p50_ms"] <= figures["p99_ms"] <= figures["p99.9_ms"]
    assert 0 < figures["bare_p50_ms"] <= figures["bare_p99.9_ms"]
    assert not (run.project.folder / "serve").exists()


def test_a_model_that_is_not_verified_is_not_served_and_the_reason_is_written(
    onnx_only: Callable[..., Run],
) -> None:
    run = onnx_only()
    benchmark.run(run, SilentProgress())
    assert written(run)["server"] == {}
    assert written(run)["server_missing"] == "the chosen model is not verified"
