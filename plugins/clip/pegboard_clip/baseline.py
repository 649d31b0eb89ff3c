"""What the trade could do before networks: words against colours, by canonical correlation.

Canonical correlation analysis (Hotelling, Biometrika 1936; for retrieval: Hardoon et al., Neural
Computation 2004) finds the directions in which the words of captions and simple features of their
pictures go together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pegboard.records import Array, Baseline, Predictor
from pegboard_clip.data import PairDataset
from pegboard_clip.settings import ClipSettings

WORDS = 1000
"""The most frequent tokens that are counted."""
PAIRS = 6000
"""Of the train split that are looked at."""
DIRECTIONS = 64
RIDGE = 0.1
"""Share of the mean variance that is added to every direction."""
SIDE = 8
"""Of the small picture whose colours are features."""
LEVELS = 4
"""Of each channel in the histogram of colours."""


def build(settings: ClipSettings) -> list[Baseline]:
    """Return the baseline, and beside it the checkpoint that training began with."""
    baselines = [
        Baseline(
            name="words_and_colours",
            fit=fit,
            description="Canonical correlation of the words of a caption with colours and a "
            f"{SIDE} x {SIDE} picture; {DIRECTIONS} directions.",
        )
    ]
    if settings.model.weights is not None:
        checkpoint = Baseline(
            name="checkpoint",
            fit=lambda train, validation: _checkpoint(settings),
            description="The weights that training began with, as they came.",
        )
        baselines.insert(0, checkpoint)
    return baselines


def _checkpoint(settings: ClipSettings) -> Predictor:
    from pegboard.evaluation import ModulePredictor
    from pegboard_clip.model import build
    from pegboard_clip.towers import Towers

    return ModulePredictor(Towers(build(settings)))


def fit(train: PairDataset, validation: PairDataset) -> Correlated:
    """Fit it on pairs of the train split."""
    chosen = np.linspace(0, len(train) - 1, min(len(train), PAIRS)).round().astype(int)
    samples = [train[int(index)].inputs for index in np.unique(chosen)]
    tokens = np.stack([sample["tokens"] for sample in samples])
    pictures = np.stack([features(sample["image"]) for sample in samples])
    vocabulary = most_frequent(tokens)
    left, right = _View.of(pictures), _View.of(counts(tokens, vocabulary))
    both = left.whitened(pictures).T @ right.whitened(counts(tokens, vocabulary)) / len(samples)
    u, strength, v = np.linalg.svd(both, full_matrices=False)
    kept = slice(min(DIRECTIONS, len(strength)))
    # A direction counts as much as it correlates.
    weight = np.sqrt(strength[kept])
    return Correlated(left, right, u[:, kept] * weight, v[kept].T * weight, vocabulary)


@dataclass(frozen=True)
class _View:
    """How one side is centred and made white."""

    mean: Array
    whitening: Array
    """(F, F)."""

    @classmethod
    def of(cls, rows: Array) -> _View:
        mean = rows.mean(axis=0)
        covariance = np.cov(rows.T)
        covariance += RIDGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        values, vectors = np.linalg.eigh(covariance)
        return cls(mean, vectors / np.sqrt(values) @ vectors.T)

    def whitened(self, rows: Array) -> Array:
        white: Array = (rows - self.mean) @ self.whitening
        return white


class Correlated:
    """Both sides projected on the directions that go together; a predictor.

    Args:
        left: Of pictures.
        right: Of texts.
        u: (F, K), directions of the pictures' features.
        v: (W, K), directions of the words.
        vocabulary: The tokens that are counted (W,).
    """

    def __init__(self, left: _View, right: _View, u: Array, v: Array, vocabulary: Array) -> None:
        self.left, self.right, self.u, self.v, self.vocabulary = left, right, u, v, vocabulary

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Embed a batch."""
        outputs = {}
        if "image" in inputs:
            rows = np.stack([features(image) for image in inputs["image"]])
            outputs["image_embedding"] = _unit(self.left.whitened(rows) @ self.u)
        if "tokens" in inputs:
            rows = counts(inputs["tokens"], self.vocabulary)
            outputs["text_embedding"] = _unit(self.right.whitened(rows) @ self.v)
        return outputs


def features(image: Array) -> Array:
    """uint8 (S, S, 3) -> the colours of a small picture and their histogram, (F,)."""
    small = np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BOX)) / 255
    levels = (image // (256 // LEVELS)).reshape(-1, 3).astype(int) @ (LEVELS**2, LEVELS, 1)
    histogram = np.bincount(levels, minlength=LEVELS**3) / len(levels)
    return np.concatenate([small.ravel(), np.sqrt(histogram)])


def most_frequent(tokens: Array) -> Array:
    """Return the tokens that stand in the most captions, without the one that fills up."""
    present = np.concatenate([np.unique(row) for row in tokens])
    found, count = np.unique(present[present > 0], return_counts=True)
    return np.sort(found[np.argsort(-count, kind="stable")[:WORDS]])


def counts(tokens: Array, vocabulary: Array) -> Array:
    """int64 (N, L) -> how often each token of the vocabulary stands in a caption, (N, W)."""
    place = np.searchsorted(vocabulary, tokens).clip(0, len(vocabulary) - 1)
    row, column = np.nonzero(vocabulary[place] == tokens)
    table = np.zeros((len(tokens), len(vocabulary)))
    np.add.at(table, (row, place[row, column]), 1)
    return table


def _unit(rows: Array) -> Array:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Array = (rows / np.maximum(length, 1e-12)).astype(np.float32)
    return unit
