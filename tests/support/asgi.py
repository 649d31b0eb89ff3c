"""A real server for tests of pages: what it serves is changed, for it takes long to begin."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Server:
    """uvicorn in a thread, on a free port of this machine.

    Args:
        listener: A socket that is bound.
    """

    def __init__(self, listener: socket.socket) -> None:
        import uvicorn

        self.app: Any = None
        self.listener = listener
        config = uvicorn.Config(self._answer, interface="asgi3", log_config=None, lifespan="off")
        self.server = uvicorn.Server(config)
        sockets = {"sockets": [self.listener]}
        self.thread = threading.Thread(target=self.server.run, kwargs=sockets)
        self.thread.start()

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)

    def serve(self, app: Any) -> int:
        """Answer with an application from now on; return the port."""
        self.app = app
        port: int = self.listener.getsockname()[1]
        return port

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join()
        self.listener.close()


@contextmanager
def running(listener: socket.socket) -> Iterator[Server]:
    """Run a server as long as a block lasts."""
    server = Server(listener)
    yield server
    server.close()
