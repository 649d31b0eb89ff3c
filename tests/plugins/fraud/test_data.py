"""Splits by time, with labels that arrive late; samples; checks."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pegboard.errors import DataError
from pegboard.project import Project, open_project
from pegboard.records import Batch
from pegboard_fraud import data
from pegboard_fraud.data import FraudDataset, Period, known_defrauded, plan
from pegboard_fraud.features import DAY
from pegboard_fraud.settings import FraudData
from pegboard_fraud.transactions import Transactions

LAST = 100 * DAY + 500
"""Of a file whose days are 0 to 100."""


def days(period: Period) -> tuple[int, int]:
    return period.start // DAY, period.end // DAY


def test_no_label_is_used_before_it_could_be_known() -> None:
    calendar = plan(FraudData(), 0, LAST)
    assert days(calendar.test) == (87, 101)
    assert days(calendar.validation) == (73, 80)
    assert days(calendar.train) == (30, 66)


def test_the_published_protocol_trains_up_to_one_delay_before_the_test() -> None:
    settings = FraudData(
        protocol="handbook", train_days=7, test_days=7, test_until=date(1970, 4, 1)
    )
    calendar = plan(settings, 0, LAST)
    assert days(calendar.test) == (84, 91)
    assert days(calendar.train) == (70, 77)
    assert days(calendar.validation) == (70, 77)


def test_a_file_with_too_few_days_is_named_with_its_days() -> None:
    with pytest.raises(DataError, match=r"span 21 days, at least 45 too few .*1970-01-01 to"):
        plan(FraudData(), 0, 20 * DAY)


def make(times: list[int], customers: list[int], labels: list[int]) -> Transactions:
    count = len(times)
    return Transactions(
        id=np.arange(count).astype(str),
        time=np.array(times, dtype=np.int64),
        customer=np.array(customers, dtype=np.int64),
        terminal=np.zeros(count, dtype=np.int64),
        cents=np.full(count, 1000, dtype=np.int64),
        label=np.array(labels, dtype=np.int8),
        customers=np.array(["a", "b", "c"]),
        terminals=np.array(["t"]),
    )


def test_a_card_is_blocked_from_the_day_its_fraud_is_known() -> None:
    # Customer 0 is defrauded on day 2; with a delay of 7 days it is known when day 10 begins.
    transactions = make(
        [2 * DAY + 5, 9 * DAY, 9 * DAY + 9, 10 * DAY, 10 * DAY], [0, 0, 1, 0, 1], [1, 0, 0, 0, 0]
    )
    known = known_defrauded(transactions, 0, Period(start=9 * DAY, end=11 * DAY), 7 * DAY)
    assert known.tolist() == [False, False, False, True, False]


def test_a_fraud_before_the_training_is_forgotten() -> None:
    transactions = make([2 * DAY, 10 * DAY], [0, 0], [1, 0])
    period = Period(start=9 * DAY, end=11 * DAY)
    assert not known_defrauded(transactions, 3 * DAY, period, 7 * DAY).any()


def test_the_splits_do_not_overlap_and_hold_labelled_rows_only(fraud_project: Project) -> None:
    settings: Any = fraud_project.settings
    transactions = data.read_history(settings).transactions
    rows = [
        data.rows_of(settings, transactions, split) for split in ("train", "validation", "test")
    ]
    assert all(len(part) for part in rows)
    ends = [transactions.time[part[[0, -1]]] // DAY for part in rows]
    assert ends[0][1] + settings.data.label_delay_days < ends[1][0]
    assert ends[1][1] + settings.data.label_delay_days < ends[2][0]


def dataset(negatives_per_fraud: float) -> FraudDataset:
    labels = np.zeros(1000, dtype=np.float32)
    labels[::100] = 1
    features = np.arange(2000, dtype=np.float32).reshape(1000, 2)
    return FraudDataset(features, {"label": labels}, negatives_per_fraud)


def test_an_epoch_holds_every_fraud_and_a_fresh_draw_of_the_rest() -> None:
    drawn = dataset(9)
    first, again, second = (drawn.epoch_indices(epoch, 3) for epoch in (0, 0, 1))
    assert (first == again).all()
    assert len(first) == len(second) == 100
    assert set(first.tolist()) != set(second.tolist())
    assert {drawn.labels[epoch].sum() for epoch in (first, second)} == {10.0}
    assert drawn.negative_rate == 90 / 990


def test_without_subsampling_an_epoch_holds_every_row_once() -> None:
    assert sorted(dataset(0).epoch_indices(0, 0).tolist()) == list(range(1000))
    assert dataset(0).negative_rate == 1.0


def test_many_rows_at_once_are_the_same_as_one_after_the_other() -> None:
    rows = dataset(0)
    batch = rows.__getitems__([5, 100, 7])
    assert isinstance(batch, Batch)
    assert batch.inputs["features"].tolist() == [
        rows[i].inputs["features"].tolist() for i in (5, 100, 7)
    ]
    assert batch.targets["label"].tolist() == [0.0, 1.0, 0.0]


def test_check_says_what_each_split_holds(fraud_project: Project) -> None:
    findings = data.check(fraud_project.settings)  # type: ignore[arg-type]
    assert {finding.level for finding in findings} == {"note"}
    assert [finding.where.split()[0] for finding in findings] == ["train", "validation", "test"]


def test_check_names_a_file_that_is_too_short(
    make_project: Callable[..., Path], tmp_path: Path
) -> None:
    path = tmp_path / "short.csv"
    rows = ["id,time,customer,terminal,amount,label"]
    rows += [f"{i},2024-01-{1 + i // 4:02d} 10:00:00,c{i % 3},t1,9.99,{i % 2}" for i in range(40)]
    path.write_text("\n".join(rows))
    text = f'solution = "fraud"\n[data]\npath = "{path}"\n'
    findings = data.check(open_project(make_project(text)).settings)  # type: ignore[arg-type]
    assert [f.what for f in findings if f.level == "error"] == [
        "the transactions span 10 days, at least 56 too few for the splits"
    ]


@pytest.mark.slow
def test_the_published_split_is_reproduced_to_the_row(
    test_data: Path, make_project: Callable[..., Path]
) -> None:
    text = f"""
solution = "fraud"
[data]
path = "{test_data}/fraud/fdh_simulated/transactions.csv.gz"
protocol = "handbook"
train_days = 7
test_days = 7
test_until = 2018-08-14
[data.columns]
id = "TRANSACTION_ID"
time = "TX_DATETIME"
customer = "CUSTOMER_ID"
terminal = "TERMINAL_ID"
amount = "TX_AMOUNT"
label = "TX_FRAUD"
"""
    settings: Any = open_project(make_project(text)).settings
    splits = [data.load(settings, split) for split in ("train", "test")]
    # Counted with the published protocol by the provider of the data, see its SOURCE.md.
    assert [(len(s), int(s.labels.sum())) for s in splits] == [(67_240, 598), (58_264, 385)]
