"""Fraud projects on small simulated data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pegboard.lifecycle import prepare
from pegboard.progress import SilentProgress
from pegboard.project import Project, open_project

TINY = """
solution = "fraud"
[data]
tiny = true
[train]
epochs = 2
devices = 1
"""


@pytest.fixture
def fraud_project(make_project: Callable[..., Path]) -> Project:
    """A project with its simulated transactions."""
    project = open_project(make_project(TINY))
    prepare(project, SilentProgress())
    return project
