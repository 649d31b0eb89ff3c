"""Between the wire and the graph: transactions in, score and decision out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import numpy as np

from pegboard.errors import RequestError
from pegboard.records import Array, Signature, TensorSpec, Thresholds
from pegboard_fraud.cards import refuse_card_numbers
from pegboard_fraud.features import (
    DAY,
    FEATURE_NAMES,
    FEATURE_RANGES,
    FEATURE_UNITS,
    FeatureState,
    Transaction,
)
from pegboard_fraud.settings import FraudSettings

FIELDS = ("id", "time", "customer", "terminal", "amount")
LARGEST_AMOUNT = 1e9
"""In units of the currency; more is taken for a mistake."""
LONGEST_IDENTIFIER = 128
"""Characters."""
LATEST_TIME = 253_402_300_799
"""The last second of the year 9999; what is later, or as long before 1970, is a mistake."""


def signature(settings: FraudSettings) -> Signature:
    """Features in natural units in; probability and expected loss out."""
    currency = settings.data.currency
    units = (FEATURE_UNITS[name] for name in FEATURE_NAMES)
    return Signature(
        inputs=(
            TensorSpec(
                name="features",
                dtype="float32",
                shape=("batch", len(FEATURE_NAMES)),
                channels=FEATURE_NAMES,
                channel_units=tuple(currency if unit == "currency" else unit for unit in units),
                channel_ranges=tuple(FEATURE_RANGES[name] for name in FEATURE_NAMES),
                description="What is known of a transaction the moment it arrives.",
            ),
        ),
        outputs=(
            TensorSpec(
                name="probability",
                dtype="float32",
                shape=("batch",),
                low=0.0,
                high=1.0,
                unit="share",
                description="Calibrated probability of fraud.",
            ),
            TensorSpec(
                name="expected_loss",
                dtype="float32",
                shape=("batch",),
                low=0.0,
                unit=currency,
                description="Probability times amount.",
            ),
        ),
        request={
            "history": [
                {
                    "id": "t1",
                    "time": "2018-08-07T18:20:00",
                    "customer": "c7",
                    "terminal": "m3",
                    "amount": 21.9,
                    "label": 0,
                }
            ],
            "transactions": [
                {
                    "id": "t2",
                    "time": "2018-08-14T09:01:30",
                    "customer": "c7",
                    "terminal": "m3",
                    "amount": 112.5,
                }
            ],
        },
    )


def decode(settings: FraudSettings, payload: Any) -> dict[str, Array]:
    """Compute the features of a request's transactions, event by event.

    Args:
        settings: The project's settings.
        payload: `{"transactions": [...]}` in the order of time, each with id, time, customer,
            terminal and amount; `"history": [...]` holds earlier ones, with `label` where known.

    Raises:
        RequestError: Names the field that is wrong. It never repeats its value.
    """
    refuse_card_numbers(payload)
    history = list(_transactions(payload, "history"))
    asked = list(_transactions(payload, "transactions"))
    if not asked:
        raise RequestError(
            "there is no transaction to score", where="'transactions'", remedy="send at least one"
        )
    _require_order([transaction for transaction, _ in [*history, *asked]])
    state = _Replay(settings.data.label_delay_days * DAY)
    for transaction, label in history:
        state.features(transaction, label)
    features = [state.features(transaction, label) for transaction, label in asked]
    return {"features": np.stack(features)}


class _Replay:
    """Feeds a state with transactions, and with labels on the second they become known."""

    def __init__(self, delay: int) -> None:
        self._state = FeatureState(delay=delay)
        self._delay = delay
        self._labels: list[tuple[Transaction, bool]] = []

    def features(self, transaction: Transaction, label: bool | None) -> Array:
        while self._labels and self._labels[0][0].time + self._delay <= transaction.time:
            known, fraud = self._labels.pop(0)
            self._state.label(known.id, fraud)
        features = self._state.features(transaction)
        self._state.add(transaction)
        if label is not None:
            self._labels.append((transaction, label))
        return features


def _transactions(payload: Any, part: str) -> Iterator[tuple[Transaction, bool | None]]:
    if not isinstance(payload, Mapping):
        raise RequestError(
            "the request is no object", where="request", remedy='send {"transactions": [...]}'
        )
    records = payload.get(part, [])
    if not isinstance(records, Sequence) or isinstance(records, str):
        raise RequestError(f"'{part}' is no list", where="request", remedy="send a list of objects")
    for index, record in enumerate(records):
        yield read_transaction(record, f"{part}[{index}]")


def read_transaction(record: Any, where: str) -> tuple[Transaction, bool | None]:
    """Check a transaction as JSON carries it; return it with its label, None where it has none.

    Raises:
        RequestError: Names the field that is wrong. It never repeats its value.
    """
    if not isinstance(record, Mapping):
        raise RequestError(
            "a transaction is no object", where=where, remedy=f"send {', '.join(FIELDS)}"
        )
    for field in FIELDS:
        if record.get(field) in (None, ""):
            raise RequestError(
                f"'{field}' is missing", where=_place(where, field), remedy="send it"
            )
    transaction = Transaction(
        id=read_identifier(record, "id", where),
        time=_time(record["time"], where),
        customer=read_identifier(record, "customer", where),
        terminal=read_identifier(record, "terminal", where),
        cents=_cents(record["amount"], where),
    )
    return transaction, _label(record.get("label"), where)


def read_identifier(record: Mapping[str, Any], field: str, where: str) -> str:
    """Return the identifier in a field of a record, as a string.

    Raises:
        RequestError: It is missing, or no identifier. Its value is not repeated.
    """
    value = record.get(field)
    if isinstance(value, str) and 0 < len(value) <= LONGEST_IDENTIFIER:
        return value
    # Compared first, because writing out a very long number takes long.
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**64:
        return str(value)
    raise RequestError(
        f"'{field}' is no identifier",
        where=_place(where, field),
        remedy=f"send a string of 1 to {LONGEST_IDENTIFIER} characters, or a whole number",
    )


def _time(value: Any, where: str) -> int:
    try:
        if isinstance(value, str):
            moment = datetime.fromisoformat(value)
            if moment.tzinfo is None:
                moment = moment.replace(tzinfo=UTC)
            return math.floor(moment.timestamp())
    except (ValueError, OverflowError):
        value = None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and abs(value) <= LATEST_TIME:  # NaN fails the comparison.
        return int(value // 1)
    raise RequestError(
        "'time' is no moment",
        where=_place(where, "time"),
        remedy="send ISO 8601 or seconds since 1970 UTC",
    )


def _cents(value: Any, where: str) -> int:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and 0 <= value <= LARGEST_AMOUNT:  # NaN fails the comparison.
        return round(float(value) * 100)
    raise RequestError(
        "'amount' is no amount of money",
        where=_place(where, "amount"),
        remedy="send a number that is not negative",
    )


def _label(value: Any, where: str) -> bool | None:
    if value is None:
        return None
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    raise RequestError(
        "'label' is neither 0 nor 1", where=_place(where, "label"), remedy="send 1 for fraud"
    )


def _place(where: str, field: str) -> str:
    """Name a field as its sender would: `amount`, `history[3].amount`."""
    return field if where == "request" else f"{where}.{field}"


def _require_order(transactions: Sequence[Transaction]) -> None:
    for earlier, later in pairwise(transactions):
        if later.time < earlier.time:
            raise RequestError(
                "the transactions are not in the order of time",
                where="'history', then 'transactions'",
                remedy="sort them by time",
            )


def encode(
    settings: FraudSettings, outputs: Mapping[str, Array], thresholds: Thresholds
) -> list[dict[str, Any]]:
    """Say score and decision of each transaction."""
    measure = score_to_threshold(settings, outputs)
    reviewed = measure >= thresholds["review"]
    return [
        {
            "probability": round(float(probability), 6),
            "expected_loss": round(float(loss), 4),
            "decision": "review" if review else "approve",
        }
        for probability, loss, review in zip(
            outputs["probability"], outputs["expected_loss"], reviewed, strict=True
        )
    ]


def score_to_threshold(settings: FraudSettings, outputs: Mapping[str, Array]) -> Array:
    """Return what the review threshold is compared with: expected loss, or probability."""
    return outputs["expected_loss" if settings.model.threshold == "cost" else "probability"]
