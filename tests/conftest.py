"""Fixtures for all tests: the toy solution, projects in temporary folders, the real data sets."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
TOY = REPOSITORY / "tests" / "toy"

# The toy is a distribution like any other, to this process and to those that tests start.
sys.path.insert(0, str(TOY))
os.environ["PYTHONPATH"] = os.pathsep.join(
    part for part in (str(TOY), os.environ.get("PYTHONPATH", "")) if part
)
# Two cores: every process one thread, or a test's processes starve one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def make_project(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a project's folder and returns it."""

    def make(text: str = 'solution = "toy"\n', hooks: str = "", name: str = "project") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "pegboard.toml").write_text(text)
        if hooks:
            (folder / "hooks.py").write_text(hooks)
        return folder

    return make


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Return the folder of real data sets, or skip."""
    folder = Path(os.environ.get("PEGBOARD_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder}; set PEGBOARD_TEST_DATA")
    return folder
