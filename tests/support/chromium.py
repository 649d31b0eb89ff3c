"""A real browser for tests: Debian's chromium, driven by WebDriver's JSON over HTTP."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM, CHROMEDRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --window-size=1280,800"
)


class Browser:
    """Chromium, driven by WebDriver's JSON over HTTP.

    Args:
        driver: Where chromedriver listens.
        profile: An empty folder for the browser's own files.
    """

    def __init__(self, driver: str, profile: Path) -> None:
        options = {"binary": CHROMIUM, "args": [*FLAGS.split(), f"--user-data-dir={profile}"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        self._session = f"{driver}/session"
        found = self._ask("POST", "", {"capabilities": {"alwaysMatch": wanted}})
        self._session += f"/{found['sessionId']}"

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            self._session + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)["value"]

    def open(self, url: str) -> None:
        self._ask("POST", "/url", {"url": url})

    def reload(self) -> None:
        self._ask("POST", "/refresh", {})

    def act(self, kind: str, *actions: dict[str, Any]) -> None:
        """Do what a device of a kind does: `key`, `pointer`, `wheel`."""
        self._ask(
            "POST", "/actions", {"actions": [{"type": kind, "id": kind, "actions": [*actions]}]}
        )

    def press(self, *keys: str) -> None:
        self.act(
            "key", *({"type": kind, "value": k} for k in keys for kind in ("keyDown", "keyUp"))
        )

    def click(self, selector: str) -> None:
        wanted = {"using": "css selector", "value": selector}
        element = next(iter(self._ask("POST", "/element", wanted).values()))
        self._ask("POST", f"/element/{element}/click", {})

    def wait_for_frame(self) -> None:
        """Wait until all that waits for the next frame is drawn."""
        script = (
            "const done = arguments[0];"
            "requestAnimationFrame(() => requestAnimationFrame(() => done()))"
        )
        self._ask("POST", "/execute/async", {"script": script, "args": []})

    def run(self, script: str) -> Any:
        return self._ask("POST", "/execute/sync", {"script": f"return {script}", "args": []})

    def command(self, name: str, **parameters: Any) -> None:
        self._ask("POST", "/goog/cdp/execute", {"cmd": name, "params": parameters})

    def problems(self) -> list[str]:
        """Return what the console was told since it was last asked."""
        return [entry["message"] for entry in self._ask("POST", "/se/log", {"type": "browser"})]

    def until(self, script: str, expected: Any = True) -> None:
        """Wait until a script returns what is expected."""
        end = time.monotonic() + 30
        while (found := self.run(script)) != expected:
            assert time.monotonic() < end, f"{script} is {found!r} and not {expected!r}"
            time.sleep(0.02)

    def screenshot(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self._ask("GET", "/screenshot")))

    def close(self) -> None:
        self._ask("DELETE", "")


@contextmanager
def chromedriver(folder: Path) -> Iterator[str]:
    """Start chromedriver, which leaves its log in `folder`, and say where it listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / "log"
    with log.open("wb") as stream:
        driver = subprocess.Popen([CHROMEDRIVER, f"--port={port}"], stdout=stream, stderr=stream)
    try:
        end = time.monotonic() + 30
        while b"successfully" not in log.read_bytes():
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        driver.terminate()
        driver.wait()
