"""What embeddings are worth, without and with labels.

Every metric is a pure function of the rows of an evaluation: `embedding` (N, F), `label` (N,) the
class or -1, `group` (N,) the part that is shown, `view` (N,) 1 for another view of a picture and
0 for the picture, `key` (N,). It is NaN where it is not defined.

Rows of one part never stand for one another: not another photograph of it, and not the same row
again, which a bootstrap draws. Left in, they would be found at once and flatter.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from pegboard.logs import LOGGER
from pegboard.records import Array, Batch, EpochEvent, Metric, Rows
from pegboard_defect.moco.settings import MocoSettings

NEIGHBOURS = 10
"""Nearest pictures that vote."""
SHARPNESS = 0.07
"""A vote counts exp(cosine / SHARPNESS) (Wu et al., CVPR 2018)."""
MOST = 2000
"""Pictures that a metric looks at, evenly spaced: it compares each with every other."""
COLLAPSED = 0.2
"""A spread below it says that all pictures look alike to the network."""


def tabulate(batch: Batch, outputs: Mapping[str, Array]) -> Rows:
    """Keep the embedding of each picture and what is known of it."""
    known = {name: np.asarray(batch.targets[name]) for name in ("label", "group", "view")}
    return {
        "embedding": np.asarray(outputs["embedding"], dtype=np.float32),
        **known,
        "key": np.asarray(batch.keys, dtype=np.str_),
    }


def build(settings: MocoSettings) -> list[Metric]:
    """With labels, what can be told by the embeddings; without, how many directions they have."""
    from pegboard_defect.moco.data import is_labelled

    monitors = [
        _metric(
            "embedding_spread",
            embedding_spread,
            "Whether embeddings point in many directions: about 1 is healthy, 0 is collapsed.",
        ),
        _metric(
            "effective_rank",
            effective_rank,
            "How many directions the embeddings really use.",
            headline=not is_labelled(settings),
        ),
    ]
    if not is_labelled(settings):
        retrieval = _metric(
            "instance_retrieval",
            instance_retrieval,
            "Share of other views whose nearest picture is the one that they show.",
            unit="share",
        )
        return [*monitors[::-1], retrieval]
    return [
        _metric(
            "knn_accuracy",
            knn_accuracy,
            f"Mean over classes of the pictures whose {NEIGHBOURS} nearest name their class, "
            "pictures of the same part left out.",
            headline=True,
            unit="share",
        ),
        _metric(
            "linear_probe",
            linear_probe,
            "The same for logistic regression on the embeddings, fitted to one half of the parts "
            "and asked about the other.",
            unit="share",
        ),
        *monitors,
    ]


def _metric(
    name: str,
    compute: Callable[[Rows], float],
    description: str,
    *,
    headline: bool = False,
    unit: str = "",
) -> Metric:
    return Metric(
        name=name,
        compute=lambda rows, thresholds: compute(rows),
        direction="higher",
        headline=headline,
        unit=unit,
        description=description,
    )


def warn_of_collapse(event: EpochEvent) -> None:
    """Say so when a network begins to answer the same for every picture."""
    spread = min(event.losses.get("spread", 1.0), event.metrics.get("embedding_spread", 1.0))
    if not spread < COLLAPSED:
        return
    LOGGER.warning(
        "epoch %d: the network answers nearly the same for every picture (spread %.2f, collapsed "
        "is 0); lower train.lr, raise train.batch_size or model.temperature",
        event.epoch + 1,
        spread,
    )


# --- Rows -----------------------------------------------------------------------------------------


def pictures(rows: Rows) -> dict[str, Array]:
    """Return the rows of pictures, at most `MOST` of them, without those of other views."""
    chosen = np.flatnonzero(rows["view"] == 0)
    return {name: column[_evenly(chosen)] for name, column in rows.items()}


def labelled(rows: Rows) -> dict[str, Array]:
    """Return the same without pictures whose class is not known."""
    chosen = np.flatnonzero((rows["view"] == 0) & (rows["label"] >= 0))
    return {name: column[_evenly(chosen)] for name, column in rows.items()}


def _evenly(places: Array) -> Array:
    if len(places) <= MOST:
        return places
    kept: Array = places[np.linspace(0, len(places) - 1, MOST).round().astype(int)]
    return kept


def unit_length(embedding: Array) -> Array:
    """Return embeddings (N, F) of length one."""
    length = np.linalg.norm(embedding, axis=1, keepdims=True)
    scaled: Array = embedding / np.maximum(length, 1e-12)
    return scaled


def balanced_accuracy(label: Array, predicted: Array) -> float:
    """Return the mean over classes of the share that is right; NaN without any."""
    shares = [float((predicted[label == one] == one).mean()) for one in np.unique(label)]
    return float(np.mean(shares)) if shares else np.nan


# --- With labels ----------------------------------------------------------------------------------


def knn_accuracy(rows: Rows) -> float:
    """See `build`."""
    kept = labelled(rows)
    if len(np.unique(kept["label"])) < 2:
        return np.nan
    return balanced_accuracy(kept["label"], knn_predictions(kept))


def knn_predictions(rows: Rows) -> Array:
    """Return the class (N,) that the nearest pictures of other parts vote for."""
    unit = unit_length(rows["embedding"])
    similarity = unit @ unit.T
    similarity[rows["group"][:, None] == rows["group"]] = -np.inf
    count = min(NEIGHBOURS, len(unit) - 1)
    nearest = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
    weight = np.exp((np.take_along_axis(similarity, nearest, axis=1) - 1) / SHARPNESS)
    classes, label = np.unique(rows["label"], return_inverse=True)
    votes = [(weight * (label[nearest] == one)).sum(axis=1) for one in range(len(classes))]
    winners: Array = classes[np.argmax(votes, axis=0)]
    return winners


def linear_probe(rows: Rows) -> float:
    """See `build`."""
    kept = labelled(rows)
    if len(np.unique(kept["label"])) < 2:
        return np.nan
    half = halves(kept)
    predicted = np.full(len(half), -1)
    for asked in (half, ~half):
        if len(np.unique(kept["label"][~asked])) < 2 or not asked.any():
            return np.nan
        predicted[asked] = probe(
            kept["embedding"][~asked], kept["label"][~asked], kept["embedding"][asked]
        )
    return balanced_accuracy(kept["label"], predicted)


def halves(rows: Rows) -> Array:
    """Divide parts in two halves (N,), class by class, each row with the others of its part."""
    half = np.zeros(len(rows["label"]), dtype=np.bool_)
    groups, first, place = np.unique(rows["group"], return_index=True, return_inverse=True)
    of_group = np.zeros(len(groups), dtype=np.bool_)
    for one in np.unique(rows["label"]):
        members = np.flatnonzero(rows["label"][first] == one)
        # Mixed up first: parts may be in order of something that pairs of them share.
        of_group[np.random.default_rng(0).permutation(members)[::2]] = True
    half[:] = of_group[place]
    return half


def probe(embedding: Array, label: Array, asked: Array) -> Array:
    """Fit logistic regression to embeddings (N, F) and labels (N,); return classes of others."""
    mean, scale = embedding.mean(axis=0), np.maximum(embedding.std(axis=0), 1e-6)
    model = LogisticRegression(C=0.1, max_iter=100, tol=1e-3, class_weight="balanced")
    with warnings.catch_warnings():
        # Near the best is good enough, and the same for all that are compared.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit((embedding - mean) / scale, label)
    predicted: Array = model.predict((asked - mean) / scale)
    return predicted


# --- Without labels -------------------------------------------------------------------------------


def embedding_spread(rows: Rows) -> float:
    """Standard deviation of the numbers of embeddings of length one, times the root of F.

    Chen and He, CVPR 2021, section 4.1.
    """
    embedding = pictures(rows)["embedding"]
    if len(embedding) < 2:
        return np.nan
    unit = unit_length(embedding)
    return float(unit.std(axis=0).mean() * np.sqrt(unit.shape[1]))


def effective_rank(rows: Rows) -> float:
    """Exponential of the entropy of the singular values of embeddings around their mean.

    Roy and Vetterli, EUSIPCO 2007; as a measure of pretraining Garrido et al., ICML 2023.
    """
    embedding = pictures(rows)["embedding"].astype(np.float64)
    if len(embedding) < 2:
        return np.nan
    centred = embedding - embedding.mean(axis=0)
    gram = centred.T @ centred if centred.shape[0] > centred.shape[1] else centred @ centred.T
    singular = np.sqrt(np.linalg.eigvalsh(gram).clip(min=0))
    if singular.sum() <= 1e-9:
        return 1.0
    shares = singular / singular.sum()
    shares = shares[shares > 1e-12]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def instance_retrieval(rows: Rows) -> float:
    """See `build`."""
    found, _ = retrieved(rows)
    return float(found.mean()) if len(found) else np.nan


def retrieved(rows: Rows) -> tuple[Array, Rows]:
    """Return whether each view's nearest picture is its own (V,), and the rows of those views."""
    shown = pictures(rows)
    views = {name: column[rows["view"] == 1] for name, column in rows.items()}
    # Of many pictures only some are kept, and a view of another one would have nothing to find.
    kept = np.isin(views["key"], shown["key"])
    views = {name: column[kept] for name, column in views.items()}
    if not kept.any() or len(np.unique(shown["key"])) < 2:
        return np.zeros(0, dtype=np.bool_), views
    similarity = unit_length(views["embedding"]) @ unit_length(shown["embedding"]).T
    return shown["key"][np.argmax(similarity, axis=1)] == views["key"], views
