"""Train the model, or resume where it stopped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pegboard.launch import launch
from pegboard.progress import Progress
from pegboard.runs import Run


def run(run: Run, progress: Progress) -> Mapping[str, Any]:
    """Leave trained weights in `run.weights_file`, checkpoints and the journal beside them.

    Returns:
        As `pegboard.training.train` does.
    """
    return launch(run, progress)
