"""Reason codes: which group of features raised the risk of one transaction, and by how much.

Occlusion: the features of a group are set to what is usual, all others stay, and the model is asked
again; the group's effect is what the log-odds of fraud lose (Zeiler and Fergus, ECCV 2014; Covert,
Lundberg and Lee, "Explaining by removing", JMLR 22, 2021). One row more for each group, in the same
batch. Effects of groups do not add up to the score: two groups may tell the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pegboard.bundle import REFERENCE, Bundle
from pegboard.errors import BundleError
from pegboard.records import Array
from pegboard_fraud.features import FEATURES

GROUPS: tuple[str, ...] = tuple(dict.fromkeys(feature.group for feature in FEATURES))
"""Every group of features, in the order of the features."""

ROWS = 1 + len(GROUPS)
"""Rows that explain one transaction: itself, then itself without each group."""

DIGITS = 3
"""Of an effect."""
LEAST = 10**-DIGITS
"""A smaller effect is no reason."""

_COLUMNS = [
    [column for column, feature in enumerate(FEATURES) if feature.group == group]
    for group in GROUPS
]
_CODES = [f"{feature.group}.{feature.name}" for feature in FEATURES]
_OCCLUDED = np.array([[feature.group == group for feature in FEATURES] for group in ("", *GROUPS)])
_SURE = 1e-7
"""Probabilities are kept so far from 0 and 1, where log-odds have no end."""


class Reasons:
    """Explains scores by what was usual in training.

    Args:
        usual: The value of each feature that stands for "not there". (F,)
        spread: By what a feature's distance from it is judged. (F,)
    """

    def __init__(self, usual: NDArray[np.float32], spread: NDArray[np.float32]) -> None:
        self.usual = usual
        # As lists: of so few numbers plain Python makes a sum faster than NumPy.
        self._usual_list: list[float] = usual.tolist()
        self._spread_list: list[float] = np.where(spread > 0, spread, 1.0).tolist()

    @classmethod
    def of(cls, bundle: Bundle) -> Reasons:
        """Read what was usual from a bundle's reference statistics.

        Raises:
            BundleError: They are of other features.
        """
        columns = bundle.reference().get("inputs", {}).get("features", [])
        if [column.get("channel") for column in columns] != [feature.name for feature in FEATURES]:
            raise BundleError(
                "the reference statistics are of other features",
                where=str(bundle.folder / REFERENCE),
                remedy="export it again with this version",
            )
        usual = [median(column) for column in columns]
        spread = [column["std"] or 0.0 for column in columns]
        return cls(np.array(usual, np.float32), np.array(spread, np.float32))

    def rows(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the transaction (F,), and below it the same without each group: (ROWS, F)."""
        return np.where(_OCCLUDED, self.usual, features)

    def explain(
        self, features: NDArray[np.float32], probabilities: Array, most: int
    ) -> list[dict[str, Any]]:
        """Name the groups that raised the risk, the strongest first.

        Args:
            features: The transaction's. (F,)
            probabilities: The model's for `rows(features)`. (ROWS,)
            most: How many groups to name.

        Returns:
            For each `code`, the group and its feature that is furthest from the usual; `group`;
            `effect`, in log-odds.
        """
        odds = [_log_odds(probability) for probability in probabilities.tolist()]
        effects = [odds[0] - without for without in odds[1:]]
        raising = [group for group, effect in enumerate(effects) if effect >= LEAST]
        raising.sort(key=effects.__getitem__, reverse=True)
        values = features.tolist()
        return [
            {
                "code": self._code(values, group),
                "group": GROUPS[group],
                "effect": round(effects[group], DIGITS),
            }
            for group in raising[:most]
        ]

    def _code(self, values: Sequence[float], group: int) -> str:
        usual, spread = self._usual_list, self._spread_list

        def distance(column: int) -> float:
            return abs(values[column] - usual[column]) / spread[column]

        return _CODES[max(_COLUMNS[group], key=distance)]


def _log_odds(probability: float) -> float:
    sure = min(max(probability, _SURE), 1 - _SURE)
    return math.log(sure / (1 - sure))


def median(column: Mapping[str, Any]) -> float:
    """Return the median of a column of reference statistics; 0 where it had no finite value.

    It is the largest edge that at most half of the values lie below: one of the edges is the
    median, and below those after it lie all that equal it, too.
    """
    edges: Sequence[float] = column["edges"]
    below = np.cumsum(column["shares"])[: len(edges)]
    candidates = [edge for edge, share in zip(edges, below, strict=True) if share <= 0.5 + 1e-9]
    return candidates[-1] if candidates else (edges[0] if edges else 0.0)
