from __future__ import annotations

import time
from dataclasses import fields

import numpy as np
import pytest
from numpy.typing import NDArray

from pegboard_fraud.simulator import START, simulate
from pegboard_fraud.transactions import Transactions

DAY = 86_400


@pytest.fixture(scope="module")
def embedded() -> Transactions:
    return simulate(seed=7)


def bytes_of(transactions: Transactions) -> list[bytes]:
    return [getattr(transactions, field.name).tobytes() for field in fields(transactions)]


def of_kind(transactions: Transactions, kind: int) -> Transactions:
    assert transactions.scenario is not None
    return transactions.rows(transactions.scenario == kind)


def times_usual(frauds: Transactions, stream: Transactions) -> NDArray[np.float64]:
    """Amounts of frauds, divided by the mean of what their customers paid themselves."""
    genuine = of_kind(stream, 0)
    count = np.bincount(genuine.customer, minlength=len(stream.customers))
    total = np.bincount(genuine.customer, genuine.cents, len(stream.customers))
    return frauds.cents / (total / np.maximum(count, 1))[frauds.customer]


def test_the_same_seed_gives_the_same_bytes() -> None:
    small = {"customers": 50, "terminals": 40, "days": 40}
    assert bytes_of(simulate(seed=1, **small)) == bytes_of(simulate(seed=1, **small))
    assert bytes_of(simulate(seed=1, **small)) != bytes_of(simulate(seed=2, **small))


def test_the_stream_is_sorted_labelled_and_of_the_size_asked_for(embedded: Transactions) -> None:
    assert 150_000 < len(embedded) < 230_000
    assert (np.diff(embedded.time) >= 0).all()
    assert (embedded.time // DAY - START // DAY).max() == 119
    assert len(np.unique(embedded.id)) == len(embedded)
    assert (embedded.cents > 0).all()
    assert embedded.scenario is not None
    assert (embedded.label == (embedded.scenario > 0)).all()


def test_about_one_percent_is_fraud_and_every_kind_is_there(embedded: Transactions) -> None:
    assert 0.006 < embedded.label.mean() < 0.014
    assert embedded.scenario is not None
    assert np.bincount(embedded.scenario)[1:].min() > 100


def test_every_large_amount_is_fraud(embedded: Transactions) -> None:
    assert (of_kind(embedded, 0).cents <= 22_000).all()
    assert (of_kind(embedded, 1).cents > 22_000).all()


def test_nothing_genuine_is_paid_at_a_compromised_terminal(embedded: Transactions) -> None:
    frauds, genuine = of_kind(embedded, 2), of_kind(embedded, 0)
    for terminal in np.unique(frauds.terminal):
        first, last = frauds.time[frauds.terminal == terminal][[0, -1]]
        if last - first < 28 * DAY:  # Else it was compromised twice.
            times = genuine.time[genuine.terminal == terminal]
            assert not ((times > first) & (times < last)).any()


def test_a_leaked_card_pays_a_multiple_a_third_of_the_time(embedded: Transactions) -> None:
    frauds = of_kind(embedded, 3)
    assert 3.5 < np.median(times_usual(frauds, embedded)) < 5.5
    assert embedded.scenario is not None
    leaked, others = [], []
    for customer in np.unique(frauds.customer):
        times = frauds.time[frauds.customer == customer]
        if np.ptp(times) < 14 * DAY:  # Else it leaked twice.
            inside = (embedded.time > times[0]) & (embedded.time < times[-1])
            kinds = embedded.scenario[inside & (embedded.customer == customer)]
            leaked.append((kinds == 3).sum())
            others.append((kinds != 3).sum())
    assert sum(leaked) / (sum(leaked) + sum(others)) == pytest.approx(1 / 3, abs=0.06)


def test_the_multiple_shrinks_with_time() -> None:
    stream = simulate(seed=7, days=700)
    frauds = of_kind(stream, 3)
    times, late = times_usual(frauds, stream), frauds.time > START + 365 * DAY
    assert np.median(times[late]) < 0.7 * np.median(times[~late])


def test_a_card_is_tested_by_a_burst_of_small_payments_within_minutes(
    embedded: Transactions,
) -> None:
    tests = of_kind(embedded, 4)
    assert tests.cents.max() <= 500
    bursts = np.unique(np.stack([tests.customer, tests.terminal]), axis=1, return_inverse=True)[1]
    for burst in np.unique(bursts):
        times = tests.time[bursts == burst]
        assert len(times) >= 5
        assert np.ptp(times) < 600


def test_no_threshold_on_the_amount_finds_half_of_the_fraud(embedded: Transactions) -> None:
    order = np.argsort(-embedded.cents, kind="stable")
    caught = np.cumsum(embedded.label[order])
    precision = caught / np.arange(1, len(order) + 1)
    recall = caught / caught[-1]
    assert recall[precision > 0.5].max() < 0.5


def test_amounts_drift_and_weekends_are_busier(embedded: Transactions) -> None:
    genuine = of_kind(embedded, 0)
    early = genuine.time < START + 40 * DAY
    late = genuine.time >= START + 80 * DAY
    means = [
        np.bincount(genuine.customer[part], genuine.cents[part], 1000)
        / np.maximum(np.bincount(genuine.customer[part], minlength=1000), 1)
        for part in (early, late)
    ]
    many = np.bincount(genuine.customer[early], minlength=1000) > 60
    change = np.log(means[1][many] / means[0][many])
    # Fifty transactions pin a mean down to 7 %: the rest of the spread is drift.
    assert change.std() > 0.12
    weekend = (genuine.time // DAY + 3) % 7 >= 5
    assert 1.1 < weekend.mean() / (2 / 7) < 1.4


def test_fraud_of_one_kind_does_not_move_with_the_number_of_terminals() -> None:
    one, other = (simulate(seed=7, customers=300, terminals=n, days=60) for n in (500, 800))
    assert (of_kind(one, 4).cents == of_kind(other, 4).cents).all()


def test_an_empty_day_is_an_empty_stream() -> None:
    assert len(simulate(seed=1, customers=1, terminals=1, days=1, mean_rate=1e-9)) == 0


@pytest.mark.slow
def test_a_million_transactions_take_seconds() -> None:
    began = time.process_time()
    assert len(simulate(seed=7, customers=5_000, terminals=10_000, days=140)) > 1_000_000
    assert time.process_time() - began < 10
