"""Settings of the smallest project that goes through every stage."""

from __future__ import annotations

from collections.abc import Callable

import pytest

SMALL = """solution = "medical-segmentation"
[data]
{data}
spacing = [4.0, 4.0, 4.0]
[model]
patch = [16, 16, 16]
channels = 4
levels = 2
[train]
epochs = 1
max_steps = 2
devices = 1
[deploy]
targets = ["onnx"]
golden = 1
"""


@pytest.fixture(scope="session")
def small() -> Callable[..., str]:
    """Return a function that writes the settings; by default of the embedded data."""

    def write(data: str = "tiny = true") -> str:
        return SMALL.format(data=data)

    return write
