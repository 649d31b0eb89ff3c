"""What every solution must hold, ours and yours: data, training, resume, export, bad input."""

from __future__ import annotations

from pathlib import Path

import pytest
from pegboard.testing import CHECKS, check_plugin


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all checks: they build on one another's runs."""
    return tmp_path_factory.mktemp("conformance")


@pytest.mark.parametrize("check", CHECKS)
def test_the_solution_holds(check: str, folder: Path) -> None:
    check_plugin("{{ cookiecutter.__solution }}", folder, only=[check])
