"""A server in a process of its own, for whoever wants to ask one: benchmark, kit and tests."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pegboard.errors import PegboardError

START_SECONDS = 120.0
STOP_SECONDS = 60.0
_ADDRESS = re.compile(r"http://(\S+):(\d+)")


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a server sent back."""

    status: int
    """The HTTP status."""
    headers: Mapping[str, str]
    """By lower-case name."""
    body: bytes
    """As it came."""

    def json(self) -> Any:
        """Return the body, parsed."""
        return json.loads(self.body)


@dataclass(frozen=True, kw_only=True)
class ServerProcess:
    """A running `pegboard serve`."""

    process: subprocess.Popen[bytes]
    """It."""
    host: str
    """Where it listens."""
    port: int
    """Where it listens."""
    log: Path
    """What it wrote to stdout and stderr."""

    @property
    def url(self) -> str:
        """Its address: `http://127.0.0.1:8080`."""
        return f"http://{self.host}:{self.port}"

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 30.0,
    ) -> Reply:
        """Send one request on a connection of its own; anything but bytes goes as JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        try:
            connection.request(method, path, data, dict(headers or {}))
            answer = connection.getresponse()
            named = {name.lower(): value for name, value in answer.getheaders()}
            return Reply(status=answer.status, headers=named, body=answer.read())
        finally:
            connection.close()

    def stop(self) -> int:
        """Ask it to end its work and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_SECONDS)


@contextmanager
def running_server(
    *words: str | Path,
    folder: Path,
    log: Path,
    environment: Mapping[str, str] | None = None,
) -> Iterator[ServerProcess]:
    """Run `pegboard serve` on a free port of this machine while the block lasts.

    Args:
        words: More of its command line.
        folder: The working folder, a project or not.
        log: The file that its output goes to.
        environment: Variables beside this process's own.

    Raises:
        PegboardError: It did not start; the sentence is its own last one.
    """
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*_command(), *map(str, words), "serve.port=0"],
            cwd=folder,
            env=os.environ | dict(environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    try:
        host, port = _wait(process, log)
        yield ServerProcess(process=process, host=host, port=port, log=log)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _command() -> Sequence[str]:
    return sys.executable, "-m", "pegboard.cli.main", "serve"


def _wait(process: subprocess.Popen[bytes], log: Path) -> tuple[str, int]:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        over = process.poll() is not None
        text = log.read_text(encoding="utf-8", errors="replace")
        found = next((match for line in text.splitlines() if (match := _announced(line))), None)
        if found is not None and not over:
            return found
        if over:
            last = (text.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
            raise PegboardError(
                f"the server did not start: {last.removeprefix('error: ')}", where=str(log)
            )
        time.sleep(0.02)
    raise PegboardError(f"the server is not ready after {START_SECONDS:g} seconds", where=str(log))


def _announced(line: str) -> tuple[str, int] | None:
    match = _ADDRESS.search(line) if "serving" in line else None
    return (match.group(1), int(match.group(2))) if match else None
