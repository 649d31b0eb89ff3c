from __future__ import annotations

import subprocess
import sys
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pegboard_fraud import features as module
from pegboard_fraud.features import (
    DAY,
    DELAY,
    FEATURE_GROUPS,
    FEATURE_NAMES,
    FEATURE_RANGES,
    FEATURE_UNITS,
    HOUR,
    MEMORY,
    FeatureState,
    Transaction,
    backfill,
    compare_backfill_with_state,
)
from pegboard_fraud.simulator import simulate
from pegboard_fraud.transactions import Transactions, read_transactions

NOON = 1_735_689_600 + DAY // 2

Row = tuple[int, int, int, int, int]
"""Time, customer, terminal, cents, label."""


def stream_of(rows: Sequence[Row]) -> Transactions:
    """Transactions from rows in any order."""
    ordered = sorted(rows, key=lambda row: row[0])
    columns = np.array(ordered, np.int64).reshape(-1, 5).T
    return Transactions(
        id=np.arange(len(rows)).astype(np.str_),
        time=columns[0],
        customer=columns[1],
        terminal=columns[2],
        cents=columns[3],
        label=columns[4].astype(np.int8),
        customers=np.array(["c"] * 10),
        terminals=np.array(["m"] * 10),
    )


def value(features: Any, name: str) -> Any:
    return features[..., FEATURE_NAMES.index(name)]


def awkward_stream(seed: int, customers: int = 30, terminals: int = 12) -> Transactions:
    """130 days with ties, a gap of 40 days for some, late starters and unknown labels."""
    stream = simulate(seed=seed, customers=customers, terminals=terminals, days=130, mean_rate=2.0)
    # Ten-minute steps make ties, and windows whose edge hits an event exactly.
    stream = replace(stream, time=stream.time // 600 * 600, label=stream.label.copy())
    stream.label[np.random.default_rng(seed).random(len(stream)) < 0.1] = -1
    day = (stream.time - stream.time[0]) // DAY
    absent = (stream.customer % 3 == 0) & (day > 20) & (day < 60)
    return stream.rows(~absent & ((stream.customer % 5 > 0) | (day > 70)))


@pytest.fixture(scope="module")
def awkward() -> Transactions:
    # Fraud is rare: with one row in ten mislabelled, runs and shares of every size occur.
    stream = awkward_stream(1)
    stream.label[np.random.default_rng(2).random(len(stream)) < 0.1] = 1
    return stream


# --- The two executors agree ----------------------------------------------------------------------


def test_backfill_and_state_agree_bit_for_bit_on_a_whole_stream(awkward: Transactions) -> None:
    assert len(awkward) > 4_000
    assert (np.diff(awkward.time) == 0).sum() > 500
    assert (awkward.label == 1).sum() > 300
    assert compare_backfill_with_state(awkward) == []


@pytest.mark.parametrize("delay", [1, HOUR, 30 * DAY])
def test_they_agree_for_any_delay(awkward: Transactions, delay: int) -> None:
    assert compare_backfill_with_state(awkward.rows(slice(0, 2_000)), delay=delay) == []


rows_of_any_kind = st.lists(
    st.tuples(
        # Few moments, apart by the lengths of windows, so that ties and edges are common.
        st.sampled_from([0, 1, HOUR, DAY, 7 * DAY, 14 * DAY, 37 * DAY, 97 * DAY, 97 * DAY + 1]),
        st.integers(0, 2),
        st.integers(0, 1),
        st.sampled_from([0, 1, 1_00, 99_99, 10**9, 10**12]),
        st.sampled_from([-1, 0, 1]),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(rows_of_any_kind, st.sampled_from([1, HOUR, DELAY]))
def test_they_agree_on_any_stream(rows: list[Row], delay: int) -> None:
    shifted = [(NOON + row[0], *row[1:]) for row in rows]
    assert compare_backfill_with_state(stream_of(shifted), delay=delay) == []


@pytest.mark.slow
def test_they_agree_on_real_transactions(test_data: Path) -> None:
    columns = {
        "id": "TRANSACTION_ID",
        "time": "TX_DATETIME",
        "customer": "CUSTOMER_ID",
        "terminal": "TERMINAL_ID",
        "amount": "TX_AMOUNT",
        "label": "TX_FRAUD",
    }
    path = test_data / "fraud" / "fdh_simulated" / "transactions.csv.gz"
    stream = read_transactions(path, columns)
    # Some customers with all they paid, and some terminals with all that was paid there.
    part = stream.rows((stream.customer % 50 == 0) | (stream.terminal % 100 == 0))
    assert len(part) > 50_000
    assert compare_backfill_with_state(part) == []


# --- A planted skew is found, by name ------------------------------------------------------------


def test_a_window_edge_moved_by_one_event_is_reported(
    awkward: Transactions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "bisect_right", bisect_left)
    found = compare_backfill_with_state(awkward)
    assert {"customer_count_1h", "customer_mean_30d", "terminal_frauds_7d"} <= set(found)
    assert not {"amount", "hour_of_day"} & set(found)


def test_a_delay_that_differs_is_reported_for_what_rests_on_labels_alone(
    awkward: Transactions, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hasty(FeatureState):
        def __init__(self, *, delay: int) -> None:
            super().__init__(delay=delay - HOUR)

    monkeypatch.setattr(module, "FeatureState", Hasty)
    # Told early, a label shows an hour early in a state whose delay is an hour too short.
    monkeypatch.setattr(module, "_replay", partial(told_at_once, module.FeatureState))
    found = compare_backfill_with_state(awkward)
    assert "terminal_fraud_share_7d" in found
    assert "customer_frauds_30d" in found
    assert all(name.startswith("terminal") or name == "customer_frauds_30d" for name in found)


def told_at_once(make_state: Any, stream: Transactions, delay: int) -> Any:
    """Replay a stream with each label told as soon as its transaction is over."""
    state = make_state(delay=delay)
    for transaction, label in zip(module._rows(stream), stream.label.tolist(), strict=True):
        yield state.features(transaction)
        state.add(transaction)
        if label >= 0:
            state.label(transaction.id, label == 1)


def test_a_measure_that_differs_in_one_bit_is_reported(
    awkward: Transactions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ratio(self: Any, numerator: float, denominator: float, otherwise: float) -> float:
        return numerator * (1 / denominator) * (1 + 1e-7) if denominator else otherwise

    monkeypatch.setattr(module._EventView, "ratio", ratio)
    found = compare_backfill_with_state(awkward.rows(slice(0, 1_000)))
    assert "customer_mean_7d" in found
    assert "customer_count_7d" not in found


# --- What the features say ------------------------------------------------------------------------


def test_a_window_holds_its_own_end_but_not_its_beginning() -> None:
    moments = (NOON - HOUR, NOON - HOUR + 1, NOON, NOON)
    features = backfill(stream_of([(moment, 1, 1, 1000, 0) for moment in moments]))
    assert value(features, "customer_count_1h").tolist() == [1, 2, 2, 3]
    assert value(features, "customer_count_1d").tolist() == [1, 2, 3, 4]


def test_means_and_habits_are_what_a_hand_computes() -> None:
    rows = [
        (NOON - 40 * DAY, 1, 1, 10_00, 0),
        (NOON - 10 * DAY, 1, 1, 20_00, 0),
        (NOON - 9 * DAY, 1, 1, 30_00, 0),
        (NOON - 2 * DAY, 1, 2, 100_00, 0),
        (NOON, 1, 2, 60_00, 0),
        (NOON, 2, 2, 7_00, 0),
    ]
    *_, last, other = backfill(stream_of(rows))
    assert value(last, "amount") == 60
    assert value(last, "hour_of_day") == 12
    assert value(last, "customer_mean_1d") == 60
    assert value(last, "customer_mean_7d") == 80
    assert value(last, "customer_mean_30d") == pytest.approx(210 / 4)
    assert value(last, "customer_hours_since_last") == 48
    assert value(last, "amount_to_mean_30d") == pytest.approx(60 / 50)
    assert value(last, "amount_to_mean_90d") == pytest.approx(60 / 40)
    # 100 was five times the mean of 10, 20 and 30: outsized, so no part of the modest habit.
    assert value(last, "customer_outsized_7d") == 1
    assert value(last, "amount_to_modest_mean_90d") == pytest.approx(60 / 20)
    spread = np.std([10, 20, 30]) + 20 / 10 + 1
    assert value(last, "amount_modest_score_90d") == pytest.approx((60 - 20) / spread)
    assert value(last, "customer_visits_90d") == 2
    # A customer never seen before has no habit to differ from.
    assert value(other, "amount_to_mean_90d") == 1
    assert value(other, "amount_score_90d") == 0
    assert value(other, "customer_hours_since_last") == 30 * 24
    assert value(other, "customer_visits_90d") == 1


def test_a_label_counts_from_its_delay_on_and_not_a_second_before() -> None:
    rows = [(NOON, 1, 1, 1000, 1), (NOON + DELAY - 1, 2, 1, 1000, 0), (NOON + DELAY, 2, 1, 1000, 0)]
    features = backfill(stream_of(rows))
    assert value(features, "terminal_frauds_30d").tolist() == [0, 0, 1]
    assert value(features, "terminal_fraud_share_1d").tolist() == [0, 0, 1]


def test_a_run_of_frauds_begins_after_the_last_genuine_transaction() -> None:
    labels = [1, 0, 1, -1, 1]
    rows = [(NOON + day * DAY, day, 1, 1000, label) for day, label in enumerate(labels)]
    now = NOON + 4 * DAY + DELAY
    last = backfill(stream_of([*rows, (now, 9, 1, 1000, 0)]))[-1]
    assert value(last, "terminal_fraud_run") == 2
    assert value(last, "terminal_fraud_run_days") == 2 + 7
    assert value(last, "terminal_days_since_genuine") == 3 + 7
    # An unknown label is neither fraud nor genuine.
    assert value(last, "terminal_fraud_share_7d") == pytest.approx(3 / 4)
    assert value(last, "terminal_days_since_first_modest_fraud") == 4 + 7
    assert value(last, "terminal_days_since_last_modest_fraud") == 0 + 7
    assert value(last, "terminal_genuine_since_modest_fraud") == 0


def test_a_fraud_of_an_outsized_amount_says_less_about_the_terminal() -> None:
    rows = [(NOON, 1, 2, 10_00, 0), (NOON + 1, 1, 1, 90_00, 1), (NOON + DELAY + 1, 2, 1, 1, 0)]
    last = backfill(stream_of(rows))[-1]
    assert value(last, "terminal_frauds_7d") == 1
    assert value(last, "terminal_modest_frauds_30d") == 0


def test_the_future_and_unknown_labels_change_nothing(awkward: Transactions) -> None:
    middle = len(awkward) // 2
    features = backfill(awkward)
    assert (backfill(awkward.rows(slice(0, middle))) == features[:middle]).all()
    now = awkward.time[middle]
    flipped = replace(
        awkward, label=np.where(awkward.time > now - DELAY, 1 - awkward.label, awkward.label)
    )
    same = awkward.time <= now
    assert (backfill(flipped)[same] == features[same]).all()
    assert (backfill(flipped)[~same] != features[~same]).any()


def test_huge_amounts_and_codes_do_not_overflow() -> None:
    rows = [(NOON + hour * HOUR, hour % 10, 1, 10**13, 0) for hour in range(200)]
    stream = stream_of([*rows, (NOON + 80 * DAY, 9, 1, 10**13, 0)])
    stream = replace(
        stream, customer=stream.customer * 10**12 + 7, terminals=np.empty(10**6, "<U1")
    )
    features = backfill(stream)
    assert np.isfinite(features).all()
    assert value(features, "customer_mean_30d")[-2] == pytest.approx(10**11)
    assert value(features, "customer_count_30d")[-2] == 20
    assert value(features, "customer_visits_90d")[-1] == 21
    assert compare_backfill_with_state(stream) == []


def test_values_lie_in_the_range_that_is_promised(awkward: Transactions) -> None:
    assert len(set(FEATURE_NAMES)) == len(FEATURE_NAMES)
    features = backfill(simulate(seed=4, customers=300, days=100))
    assert features.dtype == np.float32
    for name in FEATURE_NAMES:
        low, high = FEATURE_RANGES[name]
        inside = (value(features, name) >= low) & (value(features, name) <= high)
        assert inside.mean() > 0.999, name
        assert FEATURE_UNITS[name]
        assert FEATURE_GROUPS[name]
    assert np.isfinite(backfill(awkward)).all()


def test_a_stream_out_of_order_or_without_delay_is_refused(awkward: Transactions) -> None:
    with pytest.raises(ValueError, match="sorted by time"):
        backfill(awkward.rows(slice(None, None, -1)))
    for make in (partial(backfill, awkward), FeatureState):
        with pytest.raises(ValueError, match="only 1 or more"):
            make(delay=0)


def test_no_transactions_give_no_features() -> None:
    assert backfill(stream_of([])).shape == (0, len(FEATURE_NAMES))
    assert compare_backfill_with_state(stream_of([])) == []


def test_a_live_decision_needs_neither_polars_nor_torch() -> None:
    code = "import sys, pegboard_fraud.features; print({'polars', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# --- The state as a service uses it ---------------------------------------------------------------


def warm_state(stream: Transactions, **options: Any) -> FeatureState:
    state = FeatureState(**options)
    for transaction, label in zip(module._rows(stream), stream.label.tolist(), strict=True):
        state.add(transaction)
        if label >= 0:
            state.label(transaction.id, label == 1)
    return state


def next_transactions(stream: Transactions, seconds: int = HOUR) -> list[Transaction]:
    """One for each customer, soon after the end of the stream."""
    now = int(stream.time[-1]) + seconds
    return [
        Transaction(id=f"next {n}", time=now, customer=n, terminal=n % 12, cents=5000)
        for n in range(30)
    ]


def answers(state: FeatureState, asked: list[Transaction]) -> Any:
    return np.stack([state.features(transaction) for transaction in asked])


def test_labels_may_come_early_twice_or_corrected(awkward: Transactions) -> None:
    asked, labels = next_transactions(awkward), awkward.label.tolist()
    expected = answers(warm_state(awkward), asked)
    state = warm_state(replace(awkward, label=np.where(awkward.label >= 0, 1, -1)))
    assert (answers(state, asked) != expected).any()
    for _ in range(2):
        for identifier, label in enumerate(labels):
            if label >= 0:
                assert state.label(identifier, label == 1)
    assert (answers(state, asked) == expected).all()


def test_a_label_of_an_unknown_transaction_is_refused() -> None:
    assert not FeatureState().label("never seen", True)


def test_a_transaction_told_twice_counts_once(awkward: Transactions) -> None:
    state = warm_state(awkward)
    asked = next_transactions(awkward)
    expected = answers(state, asked)
    for transaction in list(module._rows(awkward))[-50:]:
        state.add(transaction)
    assert (answers(state, asked) == expected).all()


def test_transactions_may_come_late(awkward: Transactions) -> None:
    rows = list(module._rows(awkward))[:1500]
    state = FeatureState()
    for first in range(0, len(rows), 3):
        for transaction in reversed(rows[first : first + 3]):
            state.add(transaction)
    in_order = FeatureState()
    for transaction in rows:
        in_order.add(transaction)
    asked = next_transactions(awkward.rows(slice(0, 1500)))
    columns = [
        FEATURE_NAMES.index(name)
        for name in ("customer_count_7d", "customer_mean_30d", "amount_score_90d")
    ]
    assert (answers(state, asked)[:, columns] == answers(in_order, asked)[:, columns]).all()


def test_asking_changes_nothing(awkward: Transactions) -> None:
    state = warm_state(awkward)
    before = state.snapshot()
    answers(state, next_transactions(awkward))
    after = state.snapshot()
    assert before.keys() == after.keys()
    assert all((before[name] == after[name]).all() for name in before)


@pytest.mark.parametrize("spell", [int, str])
def test_a_state_survives_a_file_without_pickle(
    awkward: Transactions, tmp_path: Path, spell: type
) -> None:
    def spelled(transaction: Transaction) -> Transaction:
        return replace(
            transaction,
            id=spell(transaction.id),
            customer=spell(transaction.customer),
            terminal=spell(transaction.terminal),
        )

    rows, labels = [spelled(row) for row in module._rows(awkward)], awkward.label.tolist()
    state = FeatureState(delay=3 * DAY)
    for row, label in zip(rows[:-500], labels, strict=False):
        state.add(row)
        if label >= 0 and int(row.id) % 3:
            state.label(row.id, label == 1)
    np.savez(tmp_path / "state.npz", **state.snapshot())
    with np.load(tmp_path / "state.npz", allow_pickle=False) as arrays:
        restored = FeatureState.restore(arrays)
    for row in rows[-500:]:
        assert (restored.features(row) == state.features(row)).all()
        for each in (state, restored):
            each.add(row)
            each.label(rows[int(row.id) - 600].id, labels[int(row.id) - 600] == 1)


def test_an_empty_state_survives_too() -> None:
    restored = FeatureState.restore(FeatureState(delay=DAY).snapshot())
    assert restored.delay == DAY
    assert len(restored) == 0


def test_identifiers_of_two_kinds_are_not_mixed_up_in_a_snapshot() -> None:
    state = FeatureState()
    for customer in (1, "1"):
        state.add(
            Transaction(id=f"t{customer!r}", time=NOON, customer=customer, terminal=1, cents=1)
        )
    with pytest.raises(ValueError, match="all strings or all integers"):
        state.snapshot()


def test_forgetting_frees_memory_and_changes_no_answer(awkward: Transactions) -> None:
    state, asked = warm_state(awkward), next_transactions(awkward)
    expected, size = answers(state, asked), size_of(state)
    state.forget(int(awkward.time[-1]))
    assert (answers(state, asked) == expected).all()
    assert size_of(state) < size
    assert len(state) < len(awkward)
    state.forget(int(awkward.time[-1]) + 2 * MEMORY)
    assert size_of(state) == len(state) == 0


def test_nothing_is_forgotten_that_a_window_still_holds() -> None:
    now, state = NOON + MEMORY + DELAY, FeatureState()
    for identifier, time in (("old", NOON + 1), ("young", NOON + DELAY + 1)):
        state.add(
            Transaction(id=identifier, time=time, customer="c", terminal=identifier, cents=1000)
        )
        state.label(identifier, False)
    state.forget(now)
    young = Transaction(id="x", time=now, customer="c", terminal="young", cents=1000)
    assert value(state.features(young), "customer_visits_90d") == 2
    old = replace(young, terminal="old")
    assert value(state.features(old), "customer_visits_90d") == 1
    assert value(state.features(old), "terminal_genuine_since_modest_fraud") == 1


def size_of(state: FeatureState) -> int:
    return sum(array.size for name, array in state.snapshot().items() if name.endswith(".times"))


def test_a_busy_card_is_forgotten_as_it_goes() -> None:
    state, huge = FeatureState(delay=DAY), 10**16
    for day in range(3_000):  # So many that sums over all of them would overflow.
        state.add(
            Transaction(id=day, time=NOON + day * DAY, customer="c", terminal="m", cents=huge)
        )
    held = state.snapshot()["customer.times"]
    assert MEMORY // DAY <= len(held) <= 2 * (MEMORY // DAY + 2) + 1


def test_an_old_label_is_corrected_without_harm_to_newer_ones() -> None:
    state = FeatureState(delay=DAY)
    for day in range(300):
        state.add(Transaction(id=day, time=NOON + day * DAY, customer=day, terminal="m", cents=1))
        state.label(day, True)
    asked = Transaction(id="x", time=NOON + 301 * DAY, customer="x", terminal="m", cents=1)
    frauds = value(state.features(asked), "terminal_frauds_30d")
    for day in range(200):
        state.label(day, False)
    assert value(state.features(asked), "terminal_frauds_30d") == frauds == 29


def test_what_a_corrected_label_leaves_empty_is_forgotten() -> None:
    state = FeatureState()
    state.add(Transaction(id="t", time=NOON, customer="c", terminal="m", cents=1))
    for is_fraud in (True, False, True):
        state.label("t", is_fraud)
    assert state.forget(NOON + 2 * MEMORY) == 1
    assert list(state.tracks()) == []


def test_forgetting_may_go_on_another_time(awkward: Transactions) -> None:
    state, at_once = warm_state(awkward), warm_state(awkward)
    now = int(awkward.time[-1]) + MEMORY // 2
    total = at_once.forget(now)
    steps = []
    while step := state.forget(now, most=300):
        steps.append(step)
    assert sum(steps) == total > 600
    assert set(steps[:-1]) == {300}
    kept, expected = state.snapshot(), at_once.snapshot()
    assert all((kept[name] == expected[name]).all() for name in expected)


def test_a_state_remembers_longer_for_those_who_come_later() -> None:
    late = 20 * DAY
    asked = Transaction(id="x", time=NOON, customer="x", terminal="m", cents=1)
    runs = []
    for state in (FeatureState(delay=DAY, late=late), FeatureState(delay=DAY)):
        old = Transaction(
            id="old", time=NOON - DAY - MEMORY + 1, customer="c", terminal="m", cents=1
        )
        state.add(old)
        state.label("old", True)
        state.forget(NOON + late - 1)
        runs.append(value(state.features(asked), "terminal_fraud_run"))
    assert runs == [1, 0]
