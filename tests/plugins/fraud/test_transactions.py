from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegboard.errors import DataError
from pegboard_fraud.simulator import simulate
from pegboard_fraud.transactions import (
    Transactions,
    check_transactions,
    read_transactions,
    write_transactions,
)

GOOD = """id,time,customer,terminal,amount,label
t0,2018-04-01 00:00:31,c1,m1,57.16,0
t1,2018-04-01 00:02:10,c2,m2,81.51,1
t2,2018-04-01 00:07:56,c1,m2,146.00,0
"""
CARD = "4929123456789012"

HANDBOOK = {
    "id": "TRANSACTION_ID",
    "time": "TX_DATETIME",
    "customer": "CUSTOMER_ID",
    "terminal": "TERMINAL_ID",
    "amount": "TX_AMOUNT",
    "label": "TX_FRAUD",
}


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    path = tmp_path / "transactions.csv"
    path.write_text(GOOD)
    return path


def findings(path: Path, **columns: str) -> list[tuple[str, str, str]]:
    mapping = {role: role for role in HANDBOOK} | columns
    return [(found.level, found.what, found.where) for found in check_transactions(path, mapping)]


def columns_of(transactions: Transactions) -> dict[str, list[Any]]:
    return {
        "id": transactions.id.tolist(),
        "time": transactions.time.tolist(),
        "customer": transactions.customers[transactions.customer].tolist(),
        "terminal": transactions.terminals[transactions.terminal].tolist(),
        "cents": transactions.cents.tolist(),
        "label": transactions.label.tolist(),
    }


def test_a_csv_is_read_into_seconds_cents_and_codes(csv: Path) -> None:
    transactions = read_transactions(csv)
    assert columns_of(transactions) == {
        "id": ["t0", "t1", "t2"],
        "time": [1522540831, 1522540930, 1522541276],
        "customer": ["c1", "c2", "c1"],
        "terminal": ["m1", "m2", "m2"],
        "cents": [5716, 8151, 14600],
        "label": [0, 1, 0],
    }
    assert transactions.customer.tolist() == [0, 1, 0]
    assert (
        transactions.customer.dtype == transactions.time.dtype == transactions.cents.dtype == "i8"
    )
    assert transactions.label.dtype == "i1"


@pytest.mark.parametrize("name", ["there.csv", "there.parquet"])
def test_what_is_written_is_read_back_whole(tmp_path: Path, name: str) -> None:
    written = simulate(seed=3, customers=20, terminals=10, days=20)
    written.label[::7] = -1
    write_transactions(tmp_path / name, written)
    read = read_transactions(tmp_path / name, {role: role for role in (*HANDBOOK, "scenario")})
    assert columns_of(read) == columns_of(written)
    assert read.scenario is not None
    assert written.scenario is not None
    assert (read.scenario == written.scenario).all()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "there.csv"
    path.write_text(GOOD)
    broken = simulate(seed=3, customers=20, terminals=10, days=20)
    object.__setattr__(broken, "label", np.zeros(1))
    with pytest.raises(pl.exceptions.PolarsError):
        write_transactions(path, broken)
    assert path.read_text() == GOOD
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "time",
    [
        "2018-04-01 00:00:31",
        "2018-04-01T00:00:31",
        "2018-04-01T00:00:31Z",
        "2018-04-01T02:00:31+02:00",
        "2018-03-31 20:00:31.75-0400",
        "2018-04-01 00:00:31.999",
        "1522540831",
        "1522540831.5",
        " 1522540831 ",
    ],
)
def test_times_are_iso_or_seconds(csv: Path, time: str) -> None:
    csv.write_text(GOOD.replace("2018-04-01 00:00:31", time))
    assert read_transactions(csv).time[0] == 1522540831


@pytest.mark.parametrize(
    "times",
    [
        pl.Series([datetime(2018, 4, 1, 0, 0, 31)] * 3),
        pl.Series([datetime(2018, 4, 1, 0, 0, 31, tzinfo=UTC)] * 3).dt.convert_time_zone(
            "Asia/Shanghai"
        ),
        pl.Series([1522540831] * 3, dtype=pl.UInt32),
        pl.Series([1522540831.9] * 3),
    ],
)
def test_parquet_types_of_time_mean_the_same(tmp_path: Path, csv: Path, times: pl.Series) -> None:
    path = tmp_path / "there.parquet"
    pl.read_csv(csv).with_columns(times.alias("time")).write_parquet(path)
    assert read_transactions(path).time.tolist() == [1522540831] * 3


@given(st.lists(st.integers(0, 10**13), min_size=1, max_size=50))
def test_every_amount_of_two_decimals_becomes_its_cents(
    tmp_path_factory: pytest.TempPathFactory, cents: list[int]
) -> None:
    path = tmp_path_factory.mktemp("amounts") / "amounts.csv"
    amounts = [f"{value // 100}.{value % 100:02d}" for value in cents]
    rows = [f"{row},{row},c,m,{amount},0" for row, amount in enumerate(amounts)]
    path.write_text("\n".join(["id,time,customer,terminal,amount,label", *rows]))
    assert read_transactions(path).cents.tolist() == cents


def test_labels_may_be_words_numbers_or_absent(csv: Path) -> None:
    csv.write_text(
        "id,time,customer,terminal,amount,label\n"
        + "".join(
            f"t{row},{row},c,m,1,{label}\n"
            for row, label in enumerate(["1", "1.0", "True", "0", "0.0", "false", "", "-1", "NaN"])
        )
    )
    assert read_transactions(csv).label.tolist() == [1, 1, 1, 0, 0, 0, -1, -1, -1]
    mapping = {role: role for role in HANDBOOK if role != "label"}
    assert read_transactions(csv, mapping).label.tolist() == [-1] * 9


def test_ties_keep_the_order_of_the_file(csv: Path) -> None:
    rows = [f"t{row},{row * 7 % 3},c,m,1,0" for row in range(5_000)]
    csv.write_text("\n".join([GOOD.splitlines()[0], *rows]))
    places = [int(name[1:]) for name in read_transactions(csv).id]
    assert places == sorted(range(5_000), key=lambda row: row * 7 % 3)


def test_rows_are_sorted_by_time(csv: Path) -> None:
    csv.write_text(GOOD + "t3,2018-04-01 00:00:31,c9,m9,1,0\nt4,2018-04-01 00:00:01,c9,m9,1,0\n")
    assert read_transactions(csv).id.tolist() == ["t4", "t0", "t3", "t1", "t2"]
    assert findings(csv) == [
        ("warning", "a time earlier than the row before in 2 rows", f"{csv}, first in row 5")
    ]


def test_a_good_file_has_no_findings(csv: Path) -> None:
    assert findings(csv) == []


@pytest.mark.parametrize(
    ("old", "new", "level", "what", "row"),
    [
        ("t1,", "t0,", "error", "an id that an earlier row has in 1 row", 3),
        ("t2,", ",", "error", "no id in 1 row", 4),
        (",c2,", ", ,", "error", "no customer in 1 row", 3),
        (",m1,", ",,", "error", "no terminal in 1 row", 2),
        ("81.51", "-81.51", "error", "a negative amount in 1 row", 3),
        ("81.51", "NaN", "error", "an amount that is missing, NaN or no number in 1 row", 3),
        ("81.51", "inf", "error", "an amount that is missing, NaN or no number in 1 row", 3),
        ("57.16", "EUR 57", "error", "an amount that is missing, NaN or no number in 1 row", 2),
        ("00:07:56", "25:07:56", "error", "a time that is missing or cannot be read in 1 row", 4),
        # Milliseconds.
        ("2018-04-01 00:07:56", "1522540831000", "error",
         "a time that is missing or cannot be read in 1 row", 4),
        (",1\n", ",2\n", "error", "a label other than 0 and 1 in 1 row", 3),
        (",0\n", ",\n", "warning", "no label in 2 rows", 2),
    ],
)  # fmt: skip
def test_bad_rows_are_counted_and_the_first_is_named(
    csv: Path, old: str, new: str, level: str, what: str, row: int
) -> None:
    csv.write_text(GOOD.replace(old, new))
    assert (level, what, f"{csv}, first in row {row}") in findings(csv)
    if level == "error":
        with pytest.raises(DataError, match=what):
            read_transactions(csv)


def test_rows_of_a_parquet_file_count_from_one(tmp_path: Path, csv: Path) -> None:
    path = tmp_path / "there.parquet"
    pl.read_csv(csv).with_columns(amount=pl.Series([1.0, -2.0, float("nan")])).write_parquet(path)
    assert [where for _, _, where in findings(path)] == [
        f"{path}, first in row 3",
        f"{path}, first in row 2",
    ]


def test_every_finding_has_a_remedy(csv: Path) -> None:
    csv.write_text(GOOD.replace("t1", "t0").replace("57.16", "").replace(",0\n", ",no\n"))
    found = list(check_transactions(csv))
    assert len(found) == 3
    assert all(finding.remedy for finding in found)


def test_unknown_columns_are_named_and_ignored(csv: Path) -> None:
    lines = GOOD.splitlines()
    csv.write_text("\n".join([lines[0] + ",city,mood", *(line + ",x,y" for line in lines[1:])]))
    assert findings(csv) == [("warning", "unknown columns are ignored: city, mood", str(csv))]
    assert len(read_transactions(csv)) == 3


def test_a_file_without_fraud_cannot_train_but_can_be_read(csv: Path) -> None:
    csv.write_text(GOOD.replace(",1\n", ",0\n"))
    assert findings(csv) == [("error", "there is no fraud among the labels", str(csv))]
    assert len(read_transactions(csv)) == 3


def test_a_missing_column_names_the_nearest_one(csv: Path) -> None:
    csv.write_text(GOOD.replace("customer", "CUSTOMER_ID"))
    with pytest.raises(DataError, match=r"'customer' \(customer\) is missing.*'CUSTOMER_ID'"):
        read_transactions(csv)
    assert findings(csv)[0][0] == "error"


def test_a_role_that_is_not_mapped_is_named(csv: Path) -> None:
    with pytest.raises(DataError, match="no column is mapped to 'terminal'"):
        read_transactions(csv, {role: role for role in HANDBOOK if role != "terminal"})
    with pytest.raises(DataError, match="'merchant' is no role"):
        read_transactions(csv, {role: role for role in HANDBOOK} | {"merchant": "terminal"})


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("empty.csv", b"", "the file is empty"),
        ("header.csv", GOOD.splitlines()[0].encode() + b"\n", "there are no transactions in it"),
        ("noise.csv", bytes(range(256)) * 20, "no readable CSV|is missing"),
        ("noise.csv.gz", b"\x1f\x8b\x08" + bytes(range(256)), "no readable CSV"),
        ("noise.parquet", bytes(range(256)) * 20, "no readable Parquet"),
        ("really.csv.parquet", GOOD.encode(), "no readable Parquet"),
        ("ragged.csv", GOOD.encode() + b"t9,1,2,3,4,0,0,0\n", "no readable CSV"),
    ],
)
def test_a_file_that_is_no_table_is_one_clear_error(
    tmp_path: Path, name: str, content: bytes, what: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=what) as error:
        read_transactions(path)
    assert error.value.where == str(path)
    assert error.value.remedy
    assert [level for level, _, _ in findings(path)] == ["error"]


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not exist .*gone\.csv"):
        read_transactions(tmp_path / "gone.csv")


def test_a_name_with_brackets_is_a_name_and_no_pattern(tmp_path: Path) -> None:
    path = tmp_path / "transactions[1].csv"
    path.write_text(GOOD)
    assert len(read_transactions(path)) == 3


@pytest.mark.parametrize("column", ["id", "time", "customer", "terminal", "amount", "label"])
def test_no_value_of_a_cell_is_ever_told(csv: Path, column: str) -> None:
    lines = [line.split(",") for line in GOOD.splitlines()]
    place = lines[0].index(column)
    for line in lines[1:]:
        line[place] = CARD if column in ("id", "customer", "terminal") else f"x{CARD}"
    csv.write_text("\n".join(map(",".join, lines)))
    told = " ".join(map(str, check_transactions(csv)))
    assert told or column in ("customer", "terminal")
    assert CARD not in told


def test_a_value_in_the_place_of_the_header_is_not_told(csv: Path) -> None:
    csv.write_text(f"t0,2018-04-01,{CARD},m1,3,0\nt1,2018-04-01,{CARD},m1,3,0\n")
    wrong = dict(zip(HANDBOOK, ["t0", "2018-04-01", CARD[:-1] + "x", "m1", "3", "0"], strict=True))
    told = " ".join(map(str, check_transactions(csv, wrong)))
    assert "is missing" in told
    assert CARD not in told
    told = " ".join(map(str, check_transactions(csv, wrong | {"customer": "m1"})))
    assert "unknown columns" in told
    assert CARD not in told
    with pytest.raises(DataError, match="no column is mapped") as error:
        read_transactions(csv, {"id": "t0"})
    assert CARD not in str(error.value)


def test_rows_and_periods_are_cut_with_their_code_books(csv: Path) -> None:
    transactions = read_transactions(csv)
    assert transactions.between(1522540831, 1522541276).id.tolist() == ["t0", "t1"]
    assert columns_of(transactions.rows(transactions.label == 1))["customer"] == ["c2"]


def test_columns_of_different_length_are_refused(csv: Path) -> None:
    transactions = read_transactions(csv)
    columns = {name: getattr(transactions, name) for name in transactions.__dataclass_fields__}
    with pytest.raises(ValueError, match="differ in length"):
        Transactions(**columns | {"cents": transactions.cents[:2]})


@pytest.mark.slow
def test_the_handbook_data_are_read_as_published(test_data: Path) -> None:
    path = test_data / "fraud" / "fdh_simulated" / "transactions.csv.gz"
    transactions = read_transactions(path, HANDBOOK)
    assert len(transactions) == 1_754_155
    assert (transactions.label == 1).sum() == 14_681
    assert len(transactions.customers) == 4_990
    first = columns_of(transactions.rows(slice(0, 1)))
    assert first == {
        "id": ["0"],
        "time": [1522540831],
        "customer": ["596"],
        "terminal": ["3156"],
        "cents": [5716],
        "label": [0],
    }
