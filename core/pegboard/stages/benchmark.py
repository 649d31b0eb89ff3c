"""Benchmark: what a request takes from the first byte of JSON to the answer, against the limits."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from pegboard.answering import Answerer, model_inputs
from pegboard.bundle import Bundle, now, read_bundle
from pegboard.errors import LimitMissedError, PegboardError
from pegboard.files import write_json
from pegboard.progress import Progress
from pegboard.project import Project, open_project
from pegboard.records import Array
from pegboard.runs import Run
from pegboard.settings import LimitSettings
from pegboard.timing import Timing, take_turns

REQUEST_SECONDS = 7.0
MODEL_SECONDS = 2.0
MEMORY_REQUESTS = 20
"""Requests after which a process has grown to its size."""


def run(run: Run, progress: Progress) -> dict[str, Any]:
    """Measure every candidate that may be served and leave `benchmark.json`.

    Requests one at a time on one thread, preprocessing included; candidates take turns. Memory
    is that of a process of its own that serves the one candidate.

    Raises:
        LimitMissedError: The chosen candidate misses a limit of `[deploy.limits]`; the figures
            are on the disk by then.
    """
    bundle = read_bundle(run.bundle)
    answerers = {
        candidate.name: _answerer(run.project, bundle, candidate.name)
        for candidate in bundle.servable()
    }
    with progress.task("benchmark requests"):
        requests = take_turns(_request_calls(bundle, answerers), seconds=REQUEST_SECONDS)
    with progress.task("benchmark the models alone"):
        models = take_turns(_model_calls(bundle, answerers), seconds=MODEL_SECONDS)
    figures = {
        name: _figures(requests[name], models[name], resident_mb(run, name))
        for name in progress.track(answerers, "memory", len(answerers))
    }
    limits = run.project.settings.deploy.limits
    chosen = figures[bundle.chosen_name]
    served, unserved = _served(run, bundle, chosen["p50_ms"] / 1e3, progress)
    result = {
        "created": now(),
        "machine": _machine(),
        "measured": "decode, infer, encode" if bundle.signature.request else "infer, encode",
        "chosen": bundle.chosen_name,
        "candidates": figures,
        "server": served,
        "server_missing": unserved,
        "limits": {name: getattr(limits, name) for name in _LIMITS},
    }
    write_json(run.benchmark_file, result)
    _check_limits(bundle.chosen_name, chosen, limits)
    return {"chosen": bundle.chosen_name, **chosen}


def _served(
    run: Run, bundle: Bundle, seconds: float, progress: Progress
) -> tuple[dict[str, dict[str, Any]], str]:
    """Measure the server's paths; return them, or why there are none."""
    from pegboard.serving import benchmark

    if bundle.chosen().status != "verified":
        return {}, "the chosen model is not verified"
    missing = benchmark.missing()
    if missing:
        return {}, missing
    return benchmark.measure(run.project, run.bundle, seconds, progress), ""


def _answerer(project: Project, bundle: Bundle, name: str) -> Answerer:
    predictor = bundle.load_predictor(
        project.board.collect("deploy_targets"), bundle.candidate(name)
    )
    return Answerer(project.board, project.settings, predictor, bundle.thresholds, bundle.signature)


def _request_calls(
    bundle: Bundle, answerers: Mapping[str, Answerer]
) -> dict[str, Callable[[], object]]:
    """Return what to time: whole requests, or what follows decoding when there is no example."""
    if bundle.signature.request is not None:
        return {
            name: partial(answerer, bundle.signature.request)
            for name, answerer in answerers.items()
        }
    inputs = bundle.golden()[0].inputs
    return {
        name: partial(_infer_and_encode, answerer, inputs) for name, answerer in answerers.items()
    }


def _infer_and_encode(answerer: Answerer, inputs: Mapping[str, Array]) -> object:
    return answerer.encode(answerer.infer(inputs))


def _model_calls(
    bundle: Bundle, answerers: Mapping[str, Answerer]
) -> dict[str, Callable[[], object]]:
    """Return what to time: one call of each predictor on what `infer` gives it of one record."""
    first = next(iter(answerers.values()))
    given = model_inputs(first, bundle.golden()[0].inputs)[0]
    return {name: partial(answerer.predictor, given) for name, answerer in answerers.items()}


def _figures(request: Timing, model: Timing, memory_mb: float) -> dict[str, float]:
    return {
        "p50_ms": request.wall_ms(50),
        "p95_ms": request.wall_ms(95),
        "p99_ms": request.wall_ms(99),
        "cpu_ms": request.cpu_ms(),
        "throughput": len(request.wall) / float(request.wall.sum()),
        "memory_mb": memory_mb,
        "model_p50_ms": model.wall_ms(50),
        "model_cpu_ms": model.cpu_ms(),
        "requests": len(request.wall),
    }


def _machine() -> dict[str, Any]:
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def _processor() -> str:
    """Return the processor's name; Python knows only its kind on Linux."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


# --------------------------------------------------------------------------- limits

_LIMITS = {
    "p99_ms": "the 99th percentile of a request is {value:.4g} ms and may be {limit:g}",
    "throughput": "it answers {value:.4g} requests a second and must answer {limit:g}",
    "memory_mb": "it resides in {value:.4g} MB and may take {limit:g}",
}


def _check_limits(name: str, figures: Mapping[str, float], limits: LimitSettings) -> None:
    missed = {}
    for key, sentence in _LIMITS.items():
        value, limit = figures[key], getattr(limits, key)
        # More is better of throughput alone; 0 sets no limit.
        if limit and (value < limit if key == "throughput" else value > limit):
            missed[key] = sentence.format(value=value, limit=limit)
    if missed:
        raise LimitMissedError(
            f"'{name}' misses a limit: {', '.join(missed.values())}",
            where=", ".join(f"deploy.limits.{key}" for key in missed),
            remedy="try deploy.compress or a smaller model, or change the limit",
        )


# --------------------------------------------------------------------------- memory


def resident_mb(run: Run, name: str) -> float:
    """Return the resident memory of a process that serves one candidate."""
    project = run.project
    arguments = [str(project.folder), str(run.bundle), name, *project.overrides]
    done = subprocess.run(
        [sys.executable, "-m", "pegboard.stages.benchmark", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last_words = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise PegboardError(
            f"a process that serves '{name}' failed: {last_words}",
            where=str(run.bundle),
            remedy="'pegboard predict' shows what it does with a request",
        )
    return float(done.stdout.split()[-1])


def print_memory(folder: str, bundle_folder: str, name: str, *overrides: str) -> None:
    """Answer some requests with one candidate and print this process's memory, in megabytes."""
    bundle = read_bundle(Path(bundle_folder))
    answerer = _answerer(open_project(Path(folder), overrides), bundle, name)
    call = _request_calls(bundle, {name: answerer})[name]
    for _ in range(MEMORY_REQUESTS):
        call()
    sys.stdout.write(f"{psutil.Process().memory_info().rss / 1e6:.1f}\n")


if __name__ == "__main__":
    print_memory(*sys.argv[1:])
