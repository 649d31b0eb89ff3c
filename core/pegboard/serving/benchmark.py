"""What an answer takes over HTTP: every path of a server beside a bare one, in the same run.

Machines are noisy, so beside each path `/healthz` is asked, which does nothing, by the same client
in the same seconds: what both show is the machine, what one shows is the path.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pegboard.loadtest import LoadResult, Traffic, run_together
from pegboard.progress import Progress
from pegboard.project import Project
from pegboard.serving.process import ServerProcess, running_server
from pegboard.settings import Sources

BARE = "/healthz"
RATE = 300.0
"""Requests a second, unless the model is too slow for it."""
BARE_SHARE = 1 / 3
"""Requests to the bare path for each of the measured one: it takes its part of the core, too."""
LOAD = 0.25
"""Share of one core that a slow model's requests may take; waiting would say nothing of it."""
SECONDS = 6.0
WARM_SECONDS = 1.0
CONNECTIONS = 16


def missing() -> str:
    """Say what keeps a server from being measured; empty if nothing does."""
    wanted = ("uvicorn", "fastapi", "orjson", "prometheus_client", "onnxruntime")
    absent = [name for name in wanted if importlib.util.find_spec(name) is None]
    return f"{', '.join(absent)} not installed: pip install 'pegboard[serve]'" if absent else ""


def measure(
    project: Project, bundle: Path, request_seconds: float, progress: Progress
) -> dict[str, dict[str, Any]]:
    """Measure every path that has an example, beside the bare one.

    Args:
        project: Its hooks and its `[serve]` count; its state is not touched.
        bundle: The bundle's folder.
        request_seconds: What a request takes without HTTP, to choose the rate.
        progress: Where to show how far it is.

    Returns:
        By path: the rate, `p50_ms`, `p99_ms` and `p99.9_ms` counted from the time a request was
        due, the same of the bare path with the prefix `bare_`, and how many failed.
    """
    from pegboard.serving.http import TOKEN  # It brings orjson, which may not be installed.

    rate = min(RATE, LOAD / request_seconds)
    with tempfile.TemporaryDirectory(prefix="pegboard-benchmark-") as folder:
        examples = dict(_examples(project, bundle, Path(folder) / "here"))
        with running_server(
            *("--project", project.folder, "--bundle", bundle),
            *(word for word in project.overrides if word.startswith("serve.")),
            *(f"serve.folder={folder}/there", "serve.trial=true"),
            folder=project.folder,
            log=Path(folder) / "log",
            environment={TOKEN: "", "OMP_NUM_THREADS": "1"},
        ) as server:
            return {
                path: _figures(server, path, make, rate)
                for path, make in progress.track(examples.items(), "benchmark HTTP", len(examples))
            }


def _examples(
    project: Project, bundle: Path, folder: Path
) -> Iterator[tuple[str, Callable[[int], bytes]]]:
    from pegboard.serving.service import Service

    sources = Sources()
    serve = project.settings.serve.model_dump(mode="json")
    sources.put(("serve",), serve | {"folder": str(folder), "trial": True}, "the benchmark")
    # Never started: it only says which paths there are, and makes their examples.
    service = Service(project.board, bundle, sources=sources, root=project.folder)
    request = service.bundle.signature.request
    if request is not None:
        yield "/predict", _encoded(lambda number: request)
    for route in service.routes:
        if route.method == "POST" and route.example is not None:
            yield route.path, _encoded(route.example)


def _encoded(make: Callable[[int], Any]) -> Callable[[int], bytes]:
    return lambda number: json.dumps(make(number)).encode()


def _figures(
    server: ServerProcess, path: str, make: Callable[[int], bytes], rate: float
) -> dict[str, Any]:
    def traffics(first: int) -> list[Traffic]:
        return [
            Traffic(
                name=BARE,
                url=server.url + BARE,
                method="GET",
                rate=rate * BARE_SHARE,
                connections=CONNECTIONS,
            ),
            Traffic(
                name=path,
                url=server.url + path,
                bodies=lambda number: make(first + number),
                rate=rate,
                connections=CONNECTIONS,
            ),
        ]

    run_together(traffics(0), seconds=WARM_SECONDS)
    found = run_together(traffics(1_000_000), seconds=SECONDS)
    return {
        "rate": rate,
        **_percentiles(found[path]),
        **{f"bare_{name}": value for name, value in _percentiles(found[BARE]).items()},
        "requests": found[path].sent,
        "failed": found[path].sent - int((found[path].statuses == 200).sum()),
    }


def _percentiles(result: LoadResult) -> Mapping[str, float]:
    return {f"p{p:g}_ms": result.latency_ms(p) for p in (50, 99, 99.9)}
