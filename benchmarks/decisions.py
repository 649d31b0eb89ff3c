"""Fraud decisions over HTTP, whole: features, model, reason codes, rules and the written log.

    make bench-decisions

`pegboard serve` has one core, the client another, the loopback interface between them. Decisions
fall due at a steady rate, and a third as many requests to `/healthz`, which does nothing: its
latencies say what HTTP, client and machine take of those of the decisions. Between the servers the
disk is asked alone, at the same rate, for what a written decision cannot do without: `os.fdatasync`
after 4 kB. Latencies are those of `pegboard.loadtest`, counted from the time at which a request was
due; CPU time is the server's, its kernel time included, without what `/healthz` alone takes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, cpu_seconds, find_bundle, pinned

from pegboard.loadtest import LoadResult, Traffic, run_together
from pegboard.serving.process import ServerProcess, running_server
from pegboard_fraud.decisions import example
from pegboard_fraud.settings import FraudSettings

TARGETS_MS = {50.0: 1.5, 99.0: 5.0, 99.9: 20.0}
"""By percentile, at `RATE`, with every decision on the disk before it is answered."""
RATE = 300.0
BARE_SHARE = 1 / 3
"""Requests to `/healthz` for each decision: enough for a percentile, little for the core."""

WARM_SECONDS = 3.0
BARE_SECONDS = 3.0
"""Of the run that tells what `/healthz` alone takes of the CPU."""
DISK_SECONDS = 10.0
BLOCK = bytes(4096)

Figures = dict[str, Any]


def main() -> None:
    """Measure with and without waiting for the disk, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--bundle", type=Path, help="A fraud bundle; made here without one.")
    parser.add_argument("--seconds", type=float, default=30.0, help="Of each open loop.")
    parser.add_argument("--rate", type=float, default=RATE, help="Decisions a second.")
    asked = parser.parse_args()
    bundle = find_bundle(asked.bundle)
    RESULTS.mkdir(exist_ok=True)
    report: dict[str, Figures] = {}
    # Its folder lies beside the results: /tmp may be memory, which is no disk.
    with tempfile.TemporaryDirectory(dir=RESULTS, prefix="decisions-") as folder:
        for name, sync in (("sync=true", True), ("sync=false", False)):
            report[name] = measure(bundle, Path(folder), sync, asked.rate, asked.seconds)
            with pinned(1):
                report[name]["disk"] = measure_disk(Path(folder), asked.rate, DISK_SECONDS)
            print(f"{name} measured", flush=True)
    (RESULTS / "decisions.json").write_text(json.dumps(report, indent=2))
    print(as_text(report, asked.rate))


# --------------------------------------------------------------------------- measuring


def measure(bundle: Path, folder: Path, sync: bool, rate: float, seconds: float) -> Figures:
    """Start a server and return what its decisions take, beside its `/healthz`."""
    state = folder / f"state-{sync}"
    words = ["--bundle", bundle, f"serve.folder={state}", f"serve.sync={str(sync).lower()}"]
    log = folder / "log.txt"
    with ExitStack() as stack:
        with pinned(0):  # A process keeps the cores that it was started with.
            server = stack.enter_context(running_server(*words, folder=bundle.parents[2], log=log))
        with pinned(1):
            return _measure(server, rate, seconds)


def _measure(server: ServerProcess, rate: float, seconds: float) -> Figures:
    pid = server.process.pid
    bare = Traffic(name="bare", url=f"{server.url}/healthz", method="GET", rate=rate * BARE_SHARE)
    run_together([bare, _decisions(server, rate, WARM_SECONDS)], seconds=WARM_SECONDS)
    before = cpu_seconds(pid)
    sent = run_together([bare], seconds=BARE_SECONDS)["bare"].sent
    bare_cpu = (cpu_seconds(pid) - before) / sent
    decisions = _decisions(server, rate, seconds)  # Made first: it takes time.
    before = cpu_seconds(pid)
    results = run_together([bare, decisions], seconds=seconds)
    cpu = cpu_seconds(pid) - before - bare_cpu * results["bare"].sent
    return {
        "decisions": _percentiles(results["decisions"]),
        "bare": _percentiles(results["bare"]),
        "cpu_us": cpu / results["decisions"].sent * 1e6,
        "bare_cpu_us": bare_cpu * 1e6,
        "failed": int(np.count_nonzero(results["decisions"].statuses != 200)),
        "by_policy": _failures(server),
    }


def _failures(server: ServerProcess) -> int:
    """Return how often state, model or log failed, so that a policy decided or nothing was kept."""
    text = server.ask("GET", "/metrics").body.decode()
    found = re.findall(r"^pegboard_fraud_failures_total\{.*\} (\S+)$", text, re.M)
    return int(sum(map(float, found)))


def _decisions(server: ServerProcess, rate: float, seconds: float) -> Traffic:
    settings = FraudSettings()
    bodies = [json.dumps(example(settings, n)).encode() for n in range(int(rate * seconds) + 1)]
    return Traffic(name="decisions", url=f"{server.url}/decisions", bodies=bodies, rate=rate)


def _percentiles(result: LoadResult) -> dict[str, float]:
    return {f"{percentile:g}": result.latency_ms(percentile) for percentile in TARGETS_MS}


def measure_disk(folder: Path, rate: float, seconds: float) -> dict[str, float]:
    """Return percentiles of `os.fdatasync` after 4 kB were appended, in milliseconds."""
    took: list[float] = []
    with (folder / "disk").open("wb", buffering=0) as stream:
        due = time.perf_counter()
        for _ in range(int(rate * seconds)):
            time.sleep(max(0.0, due - time.perf_counter()))
            due += 1 / rate
            stream.write(BLOCK)
            began = time.perf_counter()
            os.fdatasync(stream.fileno())
            took.append(time.perf_counter() - began)
    return {f"{each:g}": float(np.percentile(took, each) * 1e3) for each in TARGETS_MS}


# --------------------------------------------------------------------------- the table


def as_text(report: Mapping[str, Mapping[str, Any]], rate: float) -> str:
    """Return the table, and for the durable way the targets."""
    rows: list[Sequence[str]] = [["", *(f"p{each:g}" for each in TARGETS_MS), "CPU us"]]
    for name, figures in report.items():
        less = {key: value - figures["bare"][key] for key, value in figures["decisions"].items()}
        rows.append([name, *_cells(figures["decisions"]), f"{figures['cpu_us']:.0f}"])
        rows.append(["  /healthz beside it", *_cells(figures["bare"])])
        rows[-1] = [*rows[-1], f"{figures['bare_cpu_us']:.0f}"]
        rows.append(["  less that of /healthz", *_cells(less), ""])
        rows.append(["  the disk alone", *_cells(figures["disk"]), ""])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"{rate:g} decisions a second; latencies in ms",
        *(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ),
        *_targets(report, rate),
    ]
    return "\n".join(lines)


def _cells(values: Mapping[str, float]) -> list[str]:
    return [f"{value:.2f}" for value in values.values()]


def _targets(report: Mapping[str, Mapping[str, Any]], rate: float) -> list[str]:
    if rate < RATE:
        return []
    lines = []
    for name, figures in report.items():
        for percentile, target in TARGETS_MS.items():
            found = figures["decisions"][f"{percentile:g}"]
            word = "reached" if found <= target else "missed "
            lines.append(f"{word}  {name}: p{percentile:g} at most {target:g} ms: {found:.2f} ms")
        lines.append(
            f"{'missed ' if figures['failed'] else 'reached'}  {name}: "
            f"{figures['failed']} decisions without an answer"
        )
        lines.append(
            f"{'missed ' if figures['by_policy'] else 'reached'}  {name}: "
            f"{figures['by_policy']} decisions for which state, model or log took too long"
        )
    return lines


if __name__ == "__main__":
    main()
