"""Zero-shot classes: each is put into sentences, and the mean of their embeddings stands for it.

Prompt ensembles are from CLIP (Radford et al., ICML 2021, section 3.1.4).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pegboard.errors import RequestError
from pegboard.records import Array

if TYPE_CHECKING:
    from pegboard_clip.index import Encoder


def prompts_of(label: str, prompts: Sequence[str]) -> list[str]:
    """Put a class into sentences; one without `{}` is taken as it is, in front of it."""
    return [(one if "{}" in one else f"{one} {{}}").replace("{}", label) for one in prompts]


def label_vectors(encoder: Encoder, labels: Sequence[str], prompts: Sequence[str]) -> Array:
    """Return a vector of unit length for each class, float32 (K, D).

    Args:
        encoder: Embeds.
        labels: K names.
        prompts: Sentences with `{}`, where the name goes.

    Raises:
        RequestError: There are no classes, or one has no name.
    """
    if not labels or not all(label.strip() for label in labels):
        raise RequestError(
            "there are no labels" if not labels else "a label is empty",
            where="labels",
            remedy="name the classes, such as --labels cat dog",
        )
    sentences = [one for label in labels for one in prompts_of(label, prompts)]
    means = encoder.texts(sentences).reshape(len(labels), len(prompts), -1).mean(axis=1)
    length = np.linalg.norm(means, axis=1, keepdims=True)
    return np.asarray(means / np.maximum(length, 1e-12), np.float32)
