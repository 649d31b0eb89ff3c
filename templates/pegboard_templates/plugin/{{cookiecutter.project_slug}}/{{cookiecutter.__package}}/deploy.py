"""Between the wire and the graph: recordings in, probability and decision out.

A server imports this: nothing here may need what only training has installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pegboard import RequestError
from pegboard.records import Array, Signature, TensorSpec, Thresholds

LENGTH = 512
"""Samples in a recording."""

REMEDY = f'send {{ '{{' }}"recordings": [[...]]{{ '}}' }}, each a list of {LENGTH} numbers in g'


def signature() -> Signature:
    """Describe inputs and outputs."""
    return Signature(
        inputs=(
            TensorSpec(
                name="signal",
                dtype="float32",
                shape=("batch", LENGTH),
                low=-4.0,
                high=4.0,
                unit="g",
                description="Acceleration of the housing.",
            ),
        ),
        outputs=(
            TensorSpec(
                name="probability",
                dtype="float32",
                shape=("batch",),
                low=0.0,
                high=1.0,
                description="That the bearing is worn.",
            ),
        ),
        request={"recordings": [[round(float(np.sin(i / 12)), 3) for i in range(LENGTH)]]},
    )


def decode(payload: Any) -> dict[str, Array]:
    """Turn a request into the signature's inputs.

    Raises:
        RequestError: It is not what `REMEDY` says.
    """
    try:
        signal = np.asarray(payload["recordings"], dtype=np.float32)
    except (KeyError, TypeError, ValueError, IndexError):
        raise RequestError(
            "'recordings' is missing or no list of lists of numbers", where="request", remedy=REMEDY
        ) from None
    if signal.ndim != 2 or signal.shape[1] != LENGTH or not len(signal):
        raise RequestError(
            f"'recordings' has the shape {signal.shape}", where="request", remedy=REMEDY
        )
    if not np.isfinite(signal).all():
        raise RequestError("'recordings' holds NaN or infinity", where="request", remedy=REMEDY)
    return {"signal": signal}


def encode(outputs: Mapping[str, Array], thresholds: Thresholds) -> list[dict[str, Any]]:
    """Say probability and decision of each recording."""
    return [
        {
            "probability": round(float(probability), 6),
            "decision": "worn" if probability >= thresholds["report"] else "sound",
        }
        for probability in outputs["probability"]
    ]
