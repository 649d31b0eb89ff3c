"""A real server of the toy, one for all tests that do not change it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from pegboard.serving.process import ServerProcess, running_server

ADMIN = {"authorization": "Bearer let-me-change-it"}


@pytest.fixture(scope="session")
def bundle(verified: Path) -> Path:
    """Return the toy's verified bundle; copy it to change it."""
    return next(verified.glob("runs/*/bundle"))


@pytest.fixture
def bundle_copy(bundle: Path, tmp_path: Path) -> Path:
    """Return a copy of the bundle in a folder of its own."""
    return Path(shutil.copytree(bundle, tmp_path / "bundles" / "first"))


@pytest.fixture
def serve(tmp_path: Path) -> Callable[..., AbstractContextManager[ServerProcess]]:
    """Return a function that runs a server while a block lasts."""

    def start(*words: str | Path, **environment: str) -> AbstractContextManager[ServerProcess]:
        number = len(list(tmp_path.glob("server-*.log")))
        log = tmp_path / f"server-{number}.log"
        return running_server(*words, folder=tmp_path, log=log, environment=environment)

    return start


@pytest.fixture(scope="session")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Return a server that many tests ask; it must end by itself, in order."""
    folder = tmp_path_factory.mktemp("server")
    with running_server("--bundle", bundle, folder=folder, log=folder / "log") as running:
        yield running
        assert running.stop() == 0
    assert "error" not in running.log.read_text()
