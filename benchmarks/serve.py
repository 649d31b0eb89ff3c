"""Our server beside KServe's, MLServer and LitServe, and beside a bare ASGI endpoint.

    make bench-serve

The same ONNX model on one thread and one core, the client on the other, on the loopback interface.
Every server answers one row in the JSON of the Open Inference Protocol; LitServe takes the same
JSON by its own path. Each peer has an environment of its own in `bench-results/peers`. Servers take
turns in rounds, all but the measured one stopped; figures are medians over the rounds, ratios the
medians of the ratios within a round. CPU time is that of the whole process tree of a server, its
kernel time included: it tells servers apart on a machine that is busy with other things too, where
the clock does not. Latencies are those of `pegboard.loadtest`: counted from the time at which a
request was due.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from common import PEGBOARD, REPOSITORY, RESULTS, cpu_seconds, find_bundle, pinned

from pegboard.bundle import read_bundle
from pegboard.loadtest import LoadResult, run, saturate

SCRIPTS = REPOSITORY / "benchmarks" / "peers"

CONNECTIONS = (1, 8, 32)
SHARE = 0.6
"""Of a server's maximum throughput: the load at which latencies are taken."""

BUSY = 0.85
"""Share of its core that a saturated server should get, for its times by the clock to count."""

SATURATE_SECONDS = 0.5
WARM_SECONDS = 0.3
START_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server to measure."""

    name: str
    """As the table shows it."""
    family: str
    """Of several ways to run a server only the fastest is measured at length."""
    command: Sequence[str]
    """`{model}`, `{bundle}`, `{port}` and `{folder}` are filled in."""
    path: str = "/v2/models/fraud/infer"
    """Where requests are posted."""
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """JSON files that it wants in its folder; "{port}" and "{port2}" ... are filled in."""

    @property
    def python(self) -> Path:
        """The interpreter of its environment; our own for ours."""
        return RESULTS / "peers" / self.family / "bin" / "python"


def _mlserver(name: str, **settings: Any) -> Server:
    ports = {"http_port": "{port}", "grpc_port": "{port2}", "metrics_port": "{port3}"}
    return Server(
        name=name,
        family="mlserver",
        command=["-c", "from mlserver.cli import main; main()", "start", "{folder}"],
        files={
            "settings.json": {"host": "127.0.0.1", "debug": False, **ports, **settings},
            "model-settings.json": {"name": "fraud", "implementation": "mlserver_runtime.Fraud"},
        },
    )


def _litserve(name: str, fast_queue: int, batch: int) -> Server:
    command = [str(SCRIPTS / "litserve_server.py"), "{model}", "{port}"]
    return Server(
        name=name,
        family="litserve",
        command=[*command, str(fast_queue), str(batch)],
        path="/predict",
    )


OURS, BARE = "pegboard", "bare"
SERVERS = (
    Server(
        name=OURS,
        family=OURS,
        command=["serve", "--bundle", "{bundle}", "serve.port={port}", "serve.folder={folder}"],
    ),
    Server(name=BARE, family=BARE, command=[str(SCRIPTS / "bare.py"), "{model}", "{port}"]),
    Server(
        name="kserve",
        family="kserve",
        command=[str(SCRIPTS / "kserve_server.py"), "{model}", "{port}"],
    ),
    _mlserver("mlserver (in process)", parallel_workers=0, metrics_endpoint=None),
    _mlserver("mlserver (defaults)"),
    _litserve("litserve", 0, 1),
    _litserve("litserve (fast queue)", 1, 1),
    _litserve("litserve (fast queue, batches)", 1, 32),
)


# --------------------------------------------------------------------------- the model


def make_requests(bundle: Path) -> tuple[list[bytes], list[dict[str, Any]]]:
    """Return requests of one row each, from the golden records, and what torch answered."""
    golden = read_bundle(bundle).golden()
    rows = [record.inputs["features"].astype(np.float32) for record in golden]
    return [_request_of(row) for row in rows], [dict(record.outputs) for record in golden]


def _request_of(row: np.ndarray) -> bytes:
    tensor = {"name": "features", "datatype": "FP32", "shape": list(row.shape)}
    return json.dumps({"inputs": [{**tensor, "data": row.ravel().tolist()}]}).encode()


# --------------------------------------------------------------------------- environments


def install(server: Server) -> None:
    """Make the environment of a peer, unless it is there.

    Raises:
        CalledProcessError: pip says no.
    """
    if server.family == OURS:
        return
    wanted = SCRIPTS / f"{server.family}.txt"
    mark = server.python.parents[1] / f".{sha256(wanted.read_bytes()).hexdigest()[:16]}"
    if mark.exists():
        return
    print(f"install {server.family} ...", flush=True)
    subprocess.run([sys.executable, "-m", "venv", server.python.parents[1]], check=True)
    pip = [server.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-r", wanted], check=True, capture_output=True, text=True)
    mark.touch()


def version_of(server: Server) -> str:
    """Return the version of a server's distribution, or of what it stands on."""
    python = sys.executable if server.family == OURS else server.python
    name = "uvicorn" if server.family == BARE else server.family
    code = f"import importlib.metadata as m; print(m.version({name!r}))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return f"uvicorn {done.stdout.strip()}" if server.family == BARE else done.stdout.strip()


# --------------------------------------------------------------------------- processes


@dataclass(frozen=True, kw_only=True)
class Running:
    """A server that runs; it is stopped while others are measured."""

    server: Server
    """What runs."""
    process: subprocess.Popen[bytes]
    """The first of its processes."""
    url: str
    """Where requests go."""
    log: Path
    """What it says."""

    def tree(self) -> list[psutil.Process]:
        """Return its processes."""
        with suppress(psutil.NoSuchProcess):
            first = psutil.Process(self.process.pid)
            return [first, *first.children(recursive=True)]
        return []

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all its processes."""
        for process in self.tree():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Let it run for a while."""
        self.signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.signal(signal.SIGSTOP)

    def cpu_seconds(self) -> float:
        """Return what its processes took of the CPU until now."""
        return sum(cpu_seconds(process.pid) for process in self.tree())


@contextmanager
def running(server: Server, model: Path, bundle: Path) -> Iterator[Running]:
    """Start a server on the first core, wait until it answers, and end it at last.

    Raises:
        RuntimeError: It ended, or did not answer in time.
    """
    folder = RESULTS / "serve" / "servers" / server.name.replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    ports = _free_ports()
    fill = {"model": str(model), "bundle": str(bundle), "folder": str(folder), **ports}
    for name, table in server.files.items():
        filled = {key: _filled(value, ports) for key, value in table.items()}
        (folder / name).write_text(json.dumps(filled))
    first = PEGBOARD if server.family == OURS else server.python
    command = [str(first), *(part.format(**fill) for part in server.command)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PEER_MODEL": str(model),
        "PYTHONPATH": "" if server.family == OURS else str(SCRIPTS),
        "TMPDIR": "/tmp",
    }
    log = folder / "log.txt"
    with pinned(0), log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, cwd=bundle.parents[2]
        )
    url = f"http://127.0.0.1:{ports['port']}{server.path}"
    runs = Running(server=server, process=process, url=url, log=log)
    try:
        yield runs
    finally:
        end(runs)


def _filled(value: Any, ports: Mapping[str, int]) -> Any:
    # A port in a JSON file is a number.
    is_port = isinstance(value, str) and value.startswith("{port")
    return ports[value.strip("{}")] if is_port else value


def _free_ports() -> dict[str, int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        numbers = [each.getsockname()[1] for each in sockets]
    return dict(zip(("port", "port2", "port3"), numbers, strict=True))


def end(runs: Running) -> None:
    """End all processes of a server."""
    tree = runs.tree()
    runs.signal(signal.SIGCONT)
    runs.process.terminate()
    _, left = psutil.wait_procs(tree, timeout=5)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    runs.process.wait()


def wait_until_right(runs: Running, request: bytes, expected: Mapping[str, Any]) -> None:
    """Wait until a server answers, and see that it answers what the trained model did.

    Raises:
        RuntimeError: It ended, did not answer in time, or answers something else.
    """
    until = time.monotonic() + START_SECONDS
    while True:
        try:
            answered = _post(runs.url, request)
            break
        except (OSError, urllib.error.URLError) as error:
            if runs.process.poll() is not None or time.monotonic() > until:
                last = runs.log.read_text(errors="replace").strip().splitlines()[-1:]
                raise RuntimeError(f"no answer ({error}); its log ends: {last}") from None
            time.sleep(0.2)
    for name, value in expected.items():
        got = np.ravel(answered[name])
        if not np.allclose(got, np.ravel(value), rtol=1e-4, atol=1e-6):
            raise RuntimeError(f"answers {name} {got}, the trained model {value}")


def _post(url: str, body: bytes) -> dict[str, Any]:
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(url, data=body, headers=headers)
    with urllib.request.urlopen(request, timeout=5) as answer:
        outputs = json.loads(answer.read())["outputs"]
    return {output["name"]: output["data"] for output in outputs}


# --------------------------------------------------------------------------- measuring


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One load on one server."""

    rate: float
    """Answers a second."""
    cpu_us: float
    """CPU microseconds of the server for each."""
    result: LoadResult
    """What the client saw."""
    connections: int = 0
    """Of a closed loop."""


def measure_most(runs: Running, requests: Sequence[bytes]) -> Measure:
    """Return the highest throughput and the lowest CPU time over several numbers of connections."""
    tried = [_saturate(runs, requests, connections) for connections in CONNECTIONS]
    best = max(tried, key=lambda measure: measure.rate)
    return replace(best, cpu_us=min(measure.cpu_us for measure in tried))


def _saturate(runs: Running, requests: Sequence[bytes], connections: int) -> Measure:
    before = runs.cpu_seconds()
    result = saturate(runs.url, requests, seconds=SATURATE_SECONDS, connections=connections)
    return _measure_of(runs, result, before, connections)


def measure_at(runs: Running, requests: Sequence[bytes], rate: float, seconds: float) -> Measure:
    """Return what an open loop at a rate sees; Poisson arrivals, the same for every server."""
    before = runs.cpu_seconds()
    result = run(runs.url, requests, rate=rate, seconds=seconds, seed=0)
    return _measure_of(runs, result, before)


def _measure_of(runs: Running, result: LoadResult, before: float, connections: int = 0) -> Measure:
    good = int(np.count_nonzero(result.statuses == 200))
    if good < result.sent:
        print(f"{runs.server.name}: {result.sent - good} of {result.sent} requests failed")
    cpu_us = (runs.cpu_seconds() - before) / max(1, good) * 1e6
    rate = good / result.seconds
    return Measure(rate=rate, cpu_us=cpu_us, result=result, connections=connections)


def measure_all(
    all_running: Sequence[Running], requests: Sequence[bytes], rounds: int, seconds: float
) -> dict[str, dict[str, Any]]:
    """Measure servers by turns and return each one's figures by name."""
    tried = {runs.server.name: _try(runs, requests) for runs in all_running}
    most = {name: measure.rate for name, measure in tried.items()}
    chosen = [runs for runs in all_running if _is_best(runs, all_running, tried)]
    common = SHARE * min(most[runs.server.name] for runs in chosen)
    notes: dict[str, list[dict[str, Measure]]] = {runs.server.name: [] for runs in chosen}
    for number in range(rounds):
        # The other way round every second time: none always comes after the same one.
        for runs in chosen if number % 2 == 0 else reversed(chosen):
            own = SHARE * most[runs.server.name]
            notes[runs.server.name].append(_turn(runs, requests, common, own, seconds))
        print(f"round {number + 1} of {rounds} done", flush=True)
    figures = {name: _figures(turns) for name, turns in notes.items()}
    others = {name: {"tried": _noted(tried[name])} for name in tried if name not in figures}
    return {**figures, **others}


def _noted(most: Measure) -> dict[str, float]:
    return {
        "throughput": most.rate,
        "connections": most.connections,
        "cpu_us_saturated": most.cpu_us,
        "per_cpu_second": 1e6 / most.cpu_us,
        "core": most.rate * most.cpu_us / 1e6,
    }


def _try(runs: Running, requests: Sequence[bytes]) -> Measure:
    with runs.awake():
        saturate(runs.url, requests, seconds=2 * WARM_SECONDS, connections=8)
        return measure_most(runs, requests)


def _is_best(runs: Running, others: Sequence[Running], tried: Mapping[str, Measure]) -> bool:
    # On one core the cheapest requests are the most, and CPU time is disturbed less than the clock.
    family = [each.server.name for each in others if each.server.family == runs.server.family]
    return runs.server.name == min(family, key=lambda name: tried[name].cpu_us)


def _turn(
    runs: Running, requests: Sequence[bytes], common: float, own: float, seconds: float
) -> dict[str, Measure]:
    with runs.awake():
        saturate(runs.url, requests, seconds=WARM_SECONDS, connections=8)
        return {
            "most": measure_most(runs, requests),
            "common": measure_at(runs, requests, common, seconds),
            "own": measure_at(runs, requests, own, seconds),
        }


def _figures(turns: Sequence[Mapping[str, Measure]]) -> dict[str, Any]:
    rounds = [_figures_of(turn) for turn in turns]
    figures: dict[str, Any] = {key: _median(each[key] for each in rounds) for key in rounds[0]}
    for load in ("common", "own"):
        # A round has too few requests for one in a thousand: over all of them.
        latencies = np.concatenate([turn[load].result.latencies for turn in turns])
        figures[f"{load}_p99.9_ms"] = float(np.percentile(latencies, 99.9, method="higher") * 1e3)
    return {**figures, "rounds": rounds}


def _figures_of(turn: Mapping[str, Measure]) -> dict[str, float]:
    figures = _noted(turn["most"]) | {"cpu_us_common": turn["common"].cpu_us}
    for load in ("common", "own"):
        figures[f"{load}_rate"] = turn[load].rate
        for percentile in (50, 99):
            figures[f"{load}_p{percentile}_ms"] = turn[load].result.latency_ms(percentile)
    return figures


def ratio_of(mine: Mapping[str, Any], other: Mapping[str, Any], key: str) -> float:
    """Return the median over the rounds of one server's figure by another's."""
    pairs = zip(mine["rounds"], other["rounds"], strict=True)
    return _median(one[key] / two[key] for one, two in pairs)


def _median(values: Iterator[float]) -> float:
    return float(np.median(list(values)))


# --------------------------------------------------------------------------- the table

COLUMNS = {
    "throughput": "max req/s",
    "connections": "conns",
    "core": "core",
    "cpu_us_saturated": "CPU us",
    "cpu_us_common": "CPU us common",
    "common_rate": "common req/s",
    "common_p50_ms": "p50",
    "common_p99_ms": "p99",
    "common_p99.9_ms": "p99.9",
    "own_rate": "60 % req/s",
    "own_p50_ms": "p50",
    "own_p99_ms": "p99",
    "own_p99.9_ms": "p99.9",
}


def as_text(figures: Mapping[str, Mapping[str, Any]], versions: Mapping[str, str]) -> str:
    """Return the table: first the figures, then the ratios to ours and to the bare endpoint."""
    rows = [["server", "version", *COLUMNS.values(), "req/s : ours", "CPU : ours", "CPU : bare"]]
    for name, row in figures.items():
        if "throughput" in row:
            cells = [f"{row[column]:.4g}" for column in COLUMNS]
            rows.append([name, versions[name], *cells, *_ratios(figures, row)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _ratios(figures: Mapping[str, Mapping[str, Any]], row: Mapping[str, Any]) -> list[str]:
    pairs = ((OURS, "throughput"), (OURS, "cpu_us_saturated"), (BARE, "cpu_us_saturated"))
    return [
        f"{ratio_of(row, figures[name], key):.3g}" if name in figures else "-"
        for name, key in pairs
    ]


def targets(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, bool]:
    """Return the targets of the project, each with its figures, and whether it is reached."""
    measured = {name: row for name, row in figures.items() if "throughput" in row}
    ours, bare = measured.pop(OURS, None), measured.pop(BARE, None)
    reached: dict[str, bool] = {}
    if ours and measured:
        for key, words in {"throughput": "by the clock", "per_cpu_second": "by CPU time"}.items():
            best = max(measured, key=lambda name: measured[name][key])
            ratio = ratio_of(ours, measured[best], key)
            reached[f"throughput at least 4 x that of {best}, {words}: {ratio:.2f} x"] = ratio >= 4
        for key, words in {"common": "one rate", "own": "60 % of each one's own maximum"}.items():
            p99, lowest = (_lowest(rows, f"{key}_p99_ms") for rows in ([ours], measured.values()))
            text = f"p99 at {words} below that of every peer: {p99:.3f} ms, {lowest:.3f} ms"
            reached[text] = p99 < lowest
    if ours and bare:
        for key, words in {"cpu_us_saturated": "saturated", "cpu_us_common": "one rate"}.items():
            ratio = ratio_of(ours, bare, key)
            text = f"CPU a request, {words}, at most 1.5 x that of the bare endpoint: {ratio:.2f} x"
            reached[text] = ratio <= 1.5
    return reached


def _lowest(rows: Iterable[Mapping[str, Any]], key: str) -> float:
    return min(float(row[key]) for row in rows)


def main() -> None:
    """Measure the servers that are asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    families = list(dict.fromkeys(server.family for server in SERVERS))
    parser.add_argument("--bundle", type=Path, help="A fraud bundle; made here without one.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5, help="Of each open loop.")
    parser.add_argument("--only", nargs="+", choices=families, default=families)
    asked = parser.parse_args()
    bundle = find_bundle(asked.bundle)
    servers = [server for server in SERVERS if server.family in asked.only]
    report = compare(servers, bundle, asked.rounds, asked.seconds)
    (RESULTS / "serve.json").write_text(json.dumps(report, indent=2))
    print(f"\n{as_text(report['figures'], report['versions'])}")
    print("\nlatencies in ms, from the time due, at the common rate and at 60 % of the own maximum")
    for name, row in report["figures"].items():
        if "tried" in row:
            rate, cpu_us = row["tried"]["throughput"], row["tried"]["cpu_us_saturated"]
            print(
                f"{name}: {rate:.0f} req/s, {cpu_us:.0f} us of CPU each in a first try; "
                "measured in its cheaper way"
            )
    cores = [row["core"] for row in report["figures"].values() if "core" in row]
    if cores and min(cores) < BUSY:
        print(
            f"other things were at work: saturated servers got down to {min(cores):.2f} of their "
            "core, so trust the CPU time and not the clock"
        )
    for name, why in report["failed"].items():
        print(f"{name}: not measured: {why}")
    for target, is_reached in report["targets"].items():
        print(f"{'reached' if is_reached else 'missed '}  {target}")


def compare(servers: Sequence[Server], bundle: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """Start the servers, check that they answer the same, and measure them."""
    model = bundle / "models" / "onnx" / "fp32" / "model.onnx"
    requests, answers = make_requests(bundle)
    failed: dict[str, str] = {}
    versions: dict[str, str] = {}
    with ExitStack() as stack:
        ready = []
        for server in servers:
            try:
                install(server)
                runs = stack.enter_context(running(server, model, bundle))
                for request, expected in list(zip(requests, answers, strict=True))[:8]:
                    wait_until_right(runs, request, expected)
                versions[server.name] = version_of(server)
            # Whatever keeps a peer from running must not keep the others from it.
            except Exception as error:
                failed[server.name] = _reason(error)
                continue
            runs.signal(signal.SIGSTOP)
            ready.append(runs)
        with pinned(1):
            figures = measure_all(ready, requests, rounds, seconds) if ready else {}
    return {
        "figures": figures,
        "versions": versions,
        "failed": failed,
        "targets": targets(figures),
    }


def _reason(error: Exception) -> str:
    said = getattr(error, "stderr", "") or ""
    lines = [line for line in str(said).splitlines() if "ERROR" in line] or [str(error)]
    return f"{type(error).__name__}: {lines[-1]}"


if __name__ == "__main__":
    main()
