"""Requests and answers: every field is checked, none of its values repeated."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pegboard.errors import RequestError
from pegboard.records import Signature
from pegboard_fraud.deploy import decode, encode, signature
from pegboard_fraud.features import FEATURE_NAMES, backfill
from pegboard_fraud.settings import FraudModel, FraudSettings
from pegboard_fraud.simulator import simulate

SETTINGS = FraudSettings()


def spoil(change: Callable[[dict[str, Any]], object]) -> Any:
    request = copy.deepcopy(signature(SETTINGS).request)
    change(request["transactions"][0])
    return request


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("amount"), r"'amount' is missing \(transactions\[0\]\.amount\); send it"),
        (lambda t: t.update(amount=-1), "'amount' is no amount of money"),
        (lambda t: t.update(amount=float("nan")), "'amount' is no amount of money"),
        (lambda t: t.update(amount="12"), "'amount' is no amount of money"),
        (lambda t: t.update(amount=True), "'amount' is no amount of money"),
        (lambda t: t.update(time="yesterday"), "'time' is no moment"),
        (lambda t: t.update(time=1e400), "'time' is no moment"),
        (lambda t: t.update(customer=["c"]), "'customer' is no identifier"),
        (lambda t: t.update(customer=""), "'customer' is missing"),
        (lambda t: t.update(label=2), "'label' is neither 0 nor 1"),
        (lambda t: t.update(time="2001-01-01"), "not in the order of time"),
    ],
)
def test_a_wrong_field_is_named(change: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        decode(SETTINGS, spoil(change))


def test_an_error_does_not_repeat_what_was_sent() -> None:
    for field in ("time", "customer", "amount"):
        with pytest.raises(RequestError) as error:
            decode(SETTINGS, spoil(lambda t, field=field: t.update({field: ["4111111111111111"]})))
        assert "4111" not in str(error.value)


@pytest.mark.parametrize(
    "payload", [None, [], "x", {}, {"transactions": "x"}, {"transactions": [1]}]
)
def test_nonsense_is_refused(payload: Any) -> None:
    with pytest.raises(RequestError):
        decode(SETTINGS, payload)


def test_the_example_request_fits_the_signature() -> None:
    described = signature(SETTINGS)
    assert isinstance(described, Signature)
    features = decode(SETTINGS, described.request)["features"]
    assert features.shape == (1, len(FEATURE_NAMES))
    assert features.dtype == np.float32


def test_a_request_with_its_history_gives_the_features_that_training_saw() -> None:
    stream = simulate(seed=5, customers=20, terminals=30, days=25)
    moment = 20 * 86400 + int(stream.time[0])
    asked = int(np.searchsorted(stream.time, moment))
    records = [
        {
            "id": stream.id[i],
            "time": int(stream.time[i]),
            "customer": str(stream.customers[stream.customer[i]]),
            "terminal": str(stream.terminals[stream.terminal[i]]),
            "amount": float(stream.cents[i]) / 100,
            "label": int(stream.label[i]),
        }
        for i in range(asked + 3)
    ]
    payload = {"history": records[:asked], "transactions": records[asked:]}
    for record in payload["transactions"]:
        record["label"] = None
    features = decode(SETTINGS, payload)["features"]
    assert (features == backfill(stream)[asked : asked + 3]).all()


@pytest.mark.parametrize(("policy", "reviewed"), [("cost", [1, 2]), ("budget", [0, 1])])
def test_the_decision_follows_the_policy(policy: Any, reviewed: list[int]) -> None:
    settings = FraudSettings(model=FraudModel(threshold=policy))
    outputs = {
        "probability": np.array([0.9, 0.9, 0.1], np.float32),
        "expected_loss": np.array([0.9, 90.0, 70.0], np.float32),
    }
    limit = {"cost": 50.0, "budget": 0.5}[policy]
    answers = encode(settings, outputs, {"review": limit})
    assert [i for i, a in enumerate(answers) if a["decision"] == "review"] == reviewed
    assert answers[1] == {"probability": 0.9, "expected_loss": 90.0, "decision": "review"}
