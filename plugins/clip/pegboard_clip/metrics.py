"""How well captions find their pictures and pictures their captions.

A query's rank is 1 plus the number of wrong answers that are at least as similar as the best right
one: a model that finds everything equally similar is last, not first. Ranks are taken over the
whole split once; confidence intervals draw from the queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pegboard.records import Array, Batch, Metric, Predictor, Rows, Thresholds
from pegboard_clip.encoder import BundleEncoder
from pegboard_clip.settings import ClipSettings
from pegboard_clip.zero_shot import label_vectors

AT_ONCE = 1024
"""Queries whose similarities to everything are in memory together."""
SHOWN = 5
"""Pictures that are kept of each caption's answer, for the report."""


def tabulate(batch: Batch, outputs: Mapping[str, Array]) -> Rows:
    """Keep the embeddings of a batch of pairs, and what they are of."""
    targets = {name: np.asarray(batch.targets[name]) for name in ("image_id", "caption_id")}
    return {**targets, "label": np.asarray(batch.targets["label"]), **outputs}


def complete_rows(
    settings: ClipSettings, predictor: Predictor, rows: Rows, labels: Sequence[str]
) -> Rows:
    """Turn the embeddings of a split into ranks.

    Args:
        settings: The project's settings.
        predictor: Embeds the classes for zero-shot.
        rows: What `tabulate` kept: one row a caption (N).
        labels: Names of the classes; none where nothing is labelled.

    Returns:
        `text_rank` (N,): the rank of a caption's picture; `image_rank` (N,): that of the best
        caption of the row's picture, NaN where the picture had a row before; `found` (N, 5): the
        pictures that were found first; `same_label` (N,): whether the first of them has the
        caption's label, and `label_found` (N,): the class that the picture was given, NaN and -1
        where there is none.
    """
    images, first, owner = np.unique(rows["image_id"], return_index=True, return_inverse=True)
    pictures, texts = rows["image_embedding"][first], rows["text_embedding"]
    places = np.arange(len(images))
    text_rank, best = _ranked(texts, owner, pictures, places)
    ranks, _ = _ranked(pictures, places, texts, owner)
    image_rank = np.full(len(owner), np.nan)
    image_rank[first] = ranks
    label = rows["label"]
    same = (label[first][best[:, 0]] == label).astype(float)
    label_found = np.full(len(owner), -1)
    if len(labels):
        encoder = BundleEncoder(settings, predictor, model="")
        classes = label_vectors(encoder, labels, settings.data.prompts)
        label_found[first] = (pictures @ classes.T).argmax(axis=1)
    return {
        "image_id": rows["image_id"],
        "caption_id": rows["caption_id"],
        "label": label,
        "text_rank": text_rank,
        "image_rank": image_rank,
        "found": images[best],
        "same_label": np.where(label >= 0, same, np.nan),
        "label_found": label_found,
    }


def _ranked(queries: Array, wanted: Array, answers: Array, owner: Array) -> tuple[Array, Array]:
    """Return the rank of the best right answer (N,) and the first answers (N, 5).

    Args:
        queries: (N, D).
        wanted: The picture that each query belongs to, (N,).
        answers: (M, D).
        owner: The picture that each answer belongs to, (M,).
    """
    ranks, first = [], []
    for start in range(0, len(queries), AT_ONCE):
        similarity = queries[start : start + AT_ONCE] @ answers.T
        right = wanted[start : start + AT_ONCE, None] == owner
        best = np.where(right, similarity, -np.inf).max(axis=1, keepdims=True)
        ranks.append(1 + ((similarity >= best) & ~right).sum(axis=1))
        first.append(np.argsort(-similarity, axis=1, kind="stable")[:, :SHOWN])
    return np.concatenate(ranks), np.concatenate(first)


# --- Metrics --------------------------------------------------------------------------------------


def build() -> list[Metric]:
    """Recall at 1, 5 and 10 both ways, median ranks, and zero-shot where there are labels."""
    metrics = [
        Metric(
            name="mean_recall",
            compute=mean_recall,
            direction="higher",
            headline=True,
            unit="share",
            group="image_id",
            description="Mean of recall at 1, 5 and 10 in both directions.",
        )
    ]
    for column, (name, words) in RANKS.items():
        metrics += [_recall(column, name, words, top) for top in TOPS]
        metrics.append(_median(column, name, words))
    return [*metrics, *_labelled()]


RANKS = {
    "text_rank": ("text_to_image", "captions whose picture is"),
    "image_rank": ("image_to_text", "pictures one of whose captions is"),
}
TOPS = (1, 5, 10)


def recall(ranks: Array, top: int) -> float:
    """Return the share of ranks that are at most `top`; rows without one do not count."""
    return _mean(ranks[np.isfinite(ranks)] <= top)


def mean_recall(rows: Rows, thresholds: Thresholds) -> float:
    """Return the mean of recall at 1, 5 and 10 in both directions."""
    return float(np.mean([recall(rows[column], top) for column in RANKS for top in TOPS]))


def _recall(column: str, name: str, words: str, top: int) -> Metric:
    return Metric(
        name=f"{name}_recall_at_{top}",
        compute=lambda rows, _: recall(rows[column], top),
        direction="higher",
        unit="share",
        group="image_id",
        description=f"Share of {words} among the first {top}.",
    )


def _median(column: str, name: str, words: str) -> Metric:
    return Metric(
        name=f"{name}_median_rank",
        compute=lambda rows, _: float(np.nanmedian(rows[column])),
        direction="lower",
        group="image_id",
        description=f"Half of the {words.split()[0]} find theirs at this rank or before.",
    )


def _mean(values: Array) -> float:
    return float(np.mean(values)) if len(values) else np.nan


def _labelled() -> list[Metric]:
    def accuracy(rows: Rows, thresholds: Thresholds) -> float:
        told = (rows["label_found"] >= 0) & (rows["label"] >= 0)
        return _mean(rows["label_found"][told] == rows["label"][told])

    def same_label(rows: Rows, thresholds: Thresholds) -> float:
        return _mean(rows["same_label"][np.isfinite(rows["same_label"])])

    return [
        Metric(
            name="zero_shot_accuracy",
            compute=accuracy,
            direction="higher",
            unit="share",
            group="image_id",
            description="Share of pictures whose label is the class most similar to them.",
        ),
        Metric(
            name="text_to_image_label_at_1",
            compute=same_label,
            direction="higher",
            unit="share",
            group="image_id",
            description="Share of captions whose first picture has the label of theirs.",
        ),
    ]
