"""What is particular to this project. Delete what you do not need.

A function here comes before the solution's own of the same name. `pegboard doctor` shows who is
called in which order, `pegboard describe` which hooks there are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pegboard import hookimpl

if TYPE_CHECKING:
    from pegboard.records import Array, EpochEvent

EPOCHS = Path(__file__).with_name("epochs.jsonl")
"""How training went: one line an epoch."""


@hookimpl
def encode_answer(outputs: Mapping[str, Array]) -> Sequence[Mapping[str, Any]]:
    """OVERRIDE: answer embeddings of length one, as a vector database compares them.

    Without it `pegboard predict` answers them as the network gives them.
    """
    embedding = outputs["embedding"]
    length = np.linalg.norm(embedding, axis=1, keepdims=True)
    unit = embedding / np.maximum(length, 1e-12)
    return [{"embedding": [round(float(number), 6) for number in row]} for row in unit]


@hookimpl
def after_epoch(event: EpochEvent) -> None:
    """NOTIFICATION: keep a line of every epoch, for whatever draws your curves."""
    numbers = {**event.losses, **event.metrics}
    line = {"epoch": event.epoch + 1, **{name: round(n, 4) for name, n in numbers.items()}}
    with EPOCHS.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")
