"""The process: uvicorn around the application, signals, and an end that loses no answer."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from pegboard.errors import PegboardError
from pegboard.logs import LOGGER
from pegboard.serving.browsers import LOOPBACK
from pegboard.serving.http import TOKEN, Application
from pegboard.serving.service import Service, log_failure

BACKLOG = 2048
SWITCH_SECONDS = 5e-4
"""How long one thread keeps Python from another that wants it: by default ten times as long, which
is what an answer would wait whenever a log or a challenger is at work beside the event loop."""


def run(service: Service, bundle: Path) -> None:
    """Serve until SIGTERM or SIGINT; on SIGHUP open the bundle's folder again.

    Args:
        service: What answers.
        bundle: The champion's folder as it was given: where it is a link that points elsewhere
            by now, SIGHUP rolls out, or back.

    Raises:
        PegboardError: The address is taken.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    loop_factory = uvicorn.Config(_nothing, log_config=None).get_loop_factory()
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(_serve(service, bundle))


async def _nothing(scope: Any, receive: Any, send: Any) -> None:
    """Stand for an application where only uvicorn's choice of event loop is asked for."""


async def _serve(service: Service, bundle: Path) -> None:
    serve = service.settings.serve
    listener = _listen(serve.host, serve.port)
    server = _Server(
        _config(service), reload=lambda: _reload(service, bundle), seconds=serve.timeout_seconds
    )
    # uvicorn makes a task of every request that has arrived, before the first of them runs.
    service.is_alone = lambda: len(server.server_state.tasks) < 2
    server.at_drain = lambda: setattr(service, "is_ready", False)
    await service.start()
    try:
        listener.listen(BACKLOG)  # Who reads that it serves may ask at once.
        _announce(service, listener)
        await server.serve(sockets=[listener])
    finally:
        await service.close()
    LOGGER.info("every request is answered; the server ends")


def _config(service: Service) -> uvicorn.Config:
    def admin() -> Any:
        from pegboard.serving.admin import build_admin  # FastAPI, which answers do not need.

        return build_admin(service)

    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    return uvicorn.Config(
        Application(service, admin),
        http="httptools",
        ws="none",
        lifespan="off",
        # Its lines would carry paths and queries, which are input.
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=int(max(1, service.settings.serve.drain_seconds)),
    )


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise PegboardError(
            f"the server cannot listen: {error.strerror}",
            where=f"{host}:{port}",
            remedy="choose another with serve.port=..., 0 for any free one",
        ) from None
    listener.set_inheritable(True)
    return listener


def _announce(service: Service, listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    deployment = service.champion.deployment
    LOGGER.info(
        "serving %s %s (%s) on http://%s",
        deployment.bundle.solution,
        deployment.version,
        deployment.candidate.name,
        place,
    )
    if host not in LOOPBACK and not os.environ.get(TOKEN):
        LOGGER.warning("anybody who reaches %s may ask; set %s to demand a token", place, TOKEN)


async def _reload(service: Service, bundle: Path) -> None:
    try:
        await service.swap_champion(bundle.resolve())
    except PegboardError as error:
        LOGGER.error("%s The bundle before goes on answering.", error)
    except Exception as error:  # Whatever the new one did, the old one goes on.
        log_failure("opening the bundle again", error)


class _Server(uvicorn.Server):
    """uvicorn's server; it takes signals in its event loop and ends with exit code 0 after them."""

    def __init__(self, config: uvicorn.Config, reload: Callable[[], Any], seconds: float) -> None:
        super().__init__(config)
        self._reload = reload
        self._reloading: asyncio.Task[None] | None = None
        self._seconds, self._looked = seconds, time.monotonic()
        self._waiting: set[tuple[Any, Any]] = set()
        self.at_drain: Callable[[], None] = lambda: None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._drain)
        loop.add_signal_handler(signal.SIGHUP, self._begin_reload)
        yield

    async def on_tick(self, counter: int) -> bool:
        if time.monotonic() - self._looked >= self._seconds:
            self._looked = time.monotonic()
            self._close_silent()
        return await super().on_tick(counter)

    def _close_silent(self) -> None:
        """Close connections that waited at the last look already for the head of a request.

        uvicorn waits for it as long as it takes. A timer for each request would cost more.
        """
        connections: Iterable[Any] = self.server_state.connections
        waiting = {
            (connection, connection.cycle)
            for connection in connections
            if connection.timeout_keep_alive_task is None
            and (connection.cycle is None or connection.cycle.response_complete)
        }
        for connection, _ in waiting & self._waiting:
            connection.transport.close()
        self._waiting = waiting

    def _drain(self) -> None:
        self.at_drain()
        self.force_exit = self.should_exit  # Asked twice, it does not wait.
        self.should_exit = True

    def _begin_reload(self) -> None:
        if self._reloading is None or self._reloading.done():
            self._reloading = asyncio.ensure_future(self._reload())

    def _log_started_message(self, listeners: Sequence[Any]) -> None:
        """Leave the announcement to us."""
