"""Card transactions as equal-length numpy columns: read, check and write them.

Money is kept in integer cents and time in integer seconds since 1970 UTC, so that sums over windows
are exact and the same on every machine. Customers and terminals are kept as codes (row numbers of a
code book). No function here prints an identifier or the value of a cell: a mapping that points at
the wrong column must not put a card number into a log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pegboard.errors import DataError
from pegboard.files import atomic_path
from pegboard.findings import finding_of
from pegboard.records import Finding
from pegboard_fraud.cards import DIGITS, SHORTEST, UUID, look_like_card_numbers

Ints = NDArray[np.int64]
Strings = NDArray[np.str_]
Level = Literal["error", "warning"]
T = TypeVar("T")

UNKNOWN = -1
"""Label of a transaction of which nobody has said yet whether it is fraud."""

ROLES = ("id", "time", "customer", "terminal", "amount", "label", "scenario")
"""What a column can be; `label` and `scenario` may be absent."""

COLUMNS: Mapping[str, str] = MappingProxyType({role: role for role in ROLES[:6]})
"""Default mapping from role to column name: a column is called what it is."""

_OPTIONAL = frozenset({"label", "scenario"})
_ISO_FORMATS = (
    "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%d %H:%M:%S%.f%#z",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%d %H:%M%#z",
    "%Y-%m-%d",
)
_LATEST_SECOND = 32_503_680_000  # Year 3000: a larger number counts milliseconds, not seconds.


@dataclass(frozen=True, kw_only=True, eq=False)
class Transactions:
    """N card transactions, sorted by time; rows of the same second keep the order of the stream."""

    id: Strings
    """Identifier of each transaction, unique. (N,)"""
    time: Ints
    """Seconds since 1970-01-01 UTC, never decreasing. (N,)"""
    customer: Ints
    """Row of the customer in `customers`. (N,)"""
    terminal: Ints
    """Row of the terminal in `terminals`. (N,)"""
    cents: Ints
    """Amount in hundredths of the currency unit. (N,)"""
    label: NDArray[np.int8]
    """1 fraud, 0 genuine, -1 unknown. (N,)"""
    customers: Strings
    """Code book: the customers' own identifiers. (C,)"""
    terminals: Strings
    """Code book: the terminals' own identifiers. (T,)"""
    scenario: NDArray[np.int8] | None = None
    """Why it is fraud, 0 if it is not; known in simulations only and never a feature. (N,)"""

    def __post_init__(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in self._columns()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the columns of transactions differ in length: {lengths}")

    def __len__(self) -> int:
        return len(self.time)

    def _columns(self) -> list[str]:
        names = [f.name for f in fields(self) if f.name not in ("customers", "terminals")]
        return [name for name in names if getattr(self, name) is not None]

    def rows(self, rows: slice | NDArray[Any]) -> Transactions:
        """The transactions of a slice, mask or index array, with the same code books."""
        return replace(self, **{name: getattr(self, name)[rows] for name in self._columns()})

    def between(self, start: int, end: int) -> Transactions:
        """The transactions with start <= time < end, in seconds since 1970 UTC."""
        first, last = np.searchsorted(self.time, [start, end])
        return self.rows(slice(int(first), int(last)))


def read_transactions(path: Path, columns: Mapping[str, str] = COLUMNS) -> Transactions:
    """Read transactions from CSV (also .csv.gz) or Parquet, sorted by time.

    Args:
        path: The file.
        columns: Role (see `ROLES`) -> name of the column in the file. Times are ISO 8601 (UTC where
            no offset is given) or seconds since 1970; amounts are in units of the currency.

    Raises:
        DataError: The first error that `check_transactions` would report about the rows.
    """
    table = _load(path, columns)
    for finding in _find_errors(table, path, columns):
        if finding.level == "error":
            raise DataError(finding.what, where=finding.where, remedy=finding.remedy)
    return _to_transactions(table)


def check_transactions(path: Path, columns: Mapping[str, str] = COLUMNS) -> Iterator[Finding]:
    """What is wrong with a file of transactions, each with its count, first row and remedy."""
    try:
        table = _load(path, columns)
    except DataError as error:
        yield finding_of(error)
        return
    yield from _find_unknown_columns(path, columns)
    yield from _find_errors(table, path, columns)
    yield from _find_no_fraud(table, path)


def write_transactions(path: Path, transactions: Transactions) -> None:
    """Write transactions to `path` (.parquet or .csv), whole or not at all, named as `COLUMNS`."""
    frame = _to_frame(transactions)
    with atomic_path(path) as temporary:
        if _is_parquet(path):
            frame.write_parquet(temporary)
        else:
            frame.write_csv(temporary)


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() in (".parquet", ".pq")


def _load(path: Path, columns: Mapping[str, str]) -> pl.DataFrame:
    """The mapped columns of the file, parsed, null where a cell cannot be; named by their role."""
    header = _read_header(path)
    _require_columns(path, header, columns)
    names = sorted(set(columns.values()))
    raw = _read(path, lambda: _scan(path).select(names).collect())
    if not len(raw):
        raise DataError(
            "there are no transactions in it", where=str(path), remedy="give a file with rows"
        )
    first_row = 1 if _is_parquet(path) else 2  # Line 1 of a CSV is its header.
    parsed = {role: _PARSERS[role](raw[name]) for role, name in columns.items()}
    parsed.setdefault("label", pl.repeat(UNKNOWN, len(raw), dtype=pl.Int8, eager=True))
    parsed["row"] = pl.int_range(first_row, first_row + len(raw), eager=True)
    return pl.DataFrame(parsed)


def _read_header(path: Path) -> list[str]:
    if not path.is_file():
        raise DataError("the file does not exist", where=str(path), remedy="check the path")
    if path.stat().st_size == 0:
        raise DataError("the file is empty", where=str(path), remedy="export it again")
    return _read(path, lambda: _scan(path).collect_schema().names())


def _scan(path: Path) -> pl.LazyFrame:
    # Every CSV cell is read as text: guessing types would fail late and without a row number.
    if _is_parquet(path):
        return pl.scan_parquet(path, glob=False)
    return pl.scan_csv(path, infer_schema=False, glob=False)


def _read(path: Path, read: Callable[[], T]) -> T:
    try:
        return read()
    except (pl.exceptions.PolarsError, OSError):
        kind = "Parquet" if _is_parquet(path) else "CSV"
        raise DataError(
            f"the file is no readable {kind}",
            where=str(path),
            remedy="give a CSV (.csv, .csv.gz) or Parquet (.parquet) file with a header",
        ) from None  # What polars says may quote the line.


def _require_columns(path: Path, header: list[str], columns: Mapping[str, str]) -> None:
    for role in ROLES:
        if role not in columns and role not in _OPTIONAL:
            raise DataError(
                f"no column is mapped to '{role}'",
                where="the mapping of columns",
                remedy=f"name the column of the {role}, one of {', '.join(map(_show, header))}",
            )
    for role, name in columns.items():
        if role not in ROLES:
            raise DataError(
                f"'{role}' is no role of a column",
                where="the mapping of columns",
                remedy=f"the roles are {', '.join(ROLES)}",
            )
        if name not in header:
            raise DataError(
                f"the column '{name}' ({role}) is missing",
                where=str(path),
                remedy=f"map '{role}' to an existing column, perhaps "
                f"'{_show(_nearest(name, header))}'",
            )


def _show(name: str) -> str:
    """The name of a column, unless it may be a value of a file that has no header."""
    return "(a name full of digits)" if sum(map(str.isdigit, name)) > 6 else name


def _nearest(name: str, names: list[str]) -> str:
    by_lower_case = {known.lower(): known for known in names}
    return by_lower_case[get_close_matches(name.lower(), by_lower_case, n=1, cutoff=0.0)[0]]


def _parse_text(raw: pl.Series) -> pl.Series:
    text = raw.cast(pl.String).str.strip_chars()
    return text.set(text == "", None)


def _parse_time(raw: pl.Series) -> pl.Series:
    """Seconds since 1970 UTC as Int64 from date-times, text or numbers; (N,) -> (N,)."""
    if isinstance(raw.dtype, pl.Datetime | pl.Date):
        return raw.cast(pl.Datetime("us")).dt.epoch("s")
    text = raw.str.strip_chars() if raw.dtype == pl.String else raw
    seconds = text.cast(pl.Float64, strict=False).floor().cast(pl.Int64, strict=False)
    if text.dtype == pl.String:
        text = text.str.replace("T", " ", literal=True).str.replace("Z$", "+00:00")
        for form in _ISO_FORMATS:
            if seconds.null_count() == 0:
                break
            times = text.str.to_datetime(form, time_unit="us", strict=False)
            seconds = seconds.fill_null(times.dt.epoch("s"))
    return seconds.set(seconds > _LATEST_SECOND, None)


def _parse_cents(raw: pl.Series) -> pl.Series:
    """Cents as Int64; a double holds every amount of two decimals below 10^13 closely enough."""
    text = raw.str.strip_chars() if raw.dtype == pl.String else raw
    return (text.cast(pl.Float64, strict=False) * 100).round().cast(pl.Int64, strict=False)


def _parse_label(raw: pl.Series) -> pl.Series:
    """1, 0, -1 where it is empty, null where it is anything else, as Int8."""
    text = raw.cast(pl.String).str.strip_chars().str.to_lowercase().fill_null("")
    return text.replace_strict(_LABELS, default=None, return_dtype=pl.Int8)


_LABELS = {
    **dict.fromkeys(("1", "1.0", "true"), 1),
    **dict.fromkeys(("0", "0.0", "false"), 0),
    **dict.fromkeys(("", "-1", "-1.0", "nan"), UNKNOWN),
}

_PARSERS: Mapping[str, Callable[[pl.Series], pl.Series]] = {
    "id": _parse_text,
    "time": _parse_time,
    "customer": _parse_text,
    "terminal": _parse_text,
    "amount": _parse_cents,
    "label": _parse_label,
    "scenario": lambda raw: raw.cast(pl.Int8, strict=False).fill_null(0),
}


def _find_unknown_columns(path: Path, columns: Mapping[str, str]) -> Iterator[Finding]:
    unknown = [_show(name) for name in _read_header(path) if name not in columns.values()]
    if unknown:
        yield Finding(
            level="warning",
            what=f"unknown columns are ignored: {', '.join(unknown)}",
            where=str(path),
            remedy="map them, or leave them out of the file",
        )


def _find_errors(table: pl.DataFrame, path: Path, columns: Mapping[str, str]) -> Iterator[Finding]:
    yield from _find_card_numbers(table, path, columns)
    yield from _find_bad_rows(table, path)


def _find_card_numbers(
    table: pl.DataFrame, path: Path, columns: Mapping[str, str]
) -> Iterator[Finding]:
    """One finding for each column of identifiers that holds what looks like card numbers."""
    for role in ("id", "customer", "terminal"):
        bad = _with_card_numbers(table[role])
        if len(bad):
            rows = table["row"].filter(table[role].is_in(bad.implode()))
            yield Finding(
                level="error",
                what=f"the column '{_show(columns[role])}' ({role}) holds what looks like a card "
                f"number in {len(rows)} row{'s' if len(rows) > 1 else ''}",
                where=f"{path}, first in row {rows[0]}",
                remedy="replace card numbers by tokens before they come here",
            )


def _with_card_numbers(identifiers: pl.Series) -> pl.Series:
    """The identifiers that hold what looks like a card number, each once."""
    # Short ones, nearly always all of them, are put aside before anything is looked at closely.
    texts = identifiers.filter(identifiers.str.len_bytes() >= SHORTEST).unique()
    texts = texts.filter(texts.str.contains(DIGITS) & ~texts.str.contains(UUID))
    return texts.filter(pl.Series(look_like_card_numbers(texts.to_list()), dtype=pl.Boolean))


def _find_bad_rows(table: pl.DataFrame, path: Path) -> Iterator[Finding]:
    """One finding for each kind of bad row, with count and first row; values stay unsaid."""
    for bad, level, what, remedy in _bad_rows(table):
        count = int(bad.sum() or 0)
        if count:
            row = table["row"].filter(bad)[0]
            yield Finding(
                level=level,
                what=f"{what} in {count} row{'s' if count > 1 else ''}",
                where=f"{path}, first in row {row}",
                remedy=remedy,
            )


def _bad_rows(table: pl.DataFrame) -> Iterator[tuple[pl.Series, Level, str, str]]:
    """Which rows are bad, how much it matters, what is wrong with them, and the remedy."""
    ids, times, cents, labels = (table[role] for role in ("id", "time", "amount", "label"))
    for role in ("id", "customer", "terminal"):
        yield table[role].is_null(), "error", f"no {role}", "fill the cells or drop the rows"
    yield (
        ids.is_not_null() & ~ids.is_first_distinct(),
        "error",
        "an id that an earlier row has",
        "keep one row of each transaction",
    )
    yield (
        times.is_null(),
        "error",
        "a time that is missing or cannot be read",
        "write times as 2018-04-01 00:00:31 or as seconds since 1970",
    )
    yield (
        cents.is_null(),
        "error",
        "an amount that is missing, NaN or no number",
        "write amounts as 12.34, without currency and thousands separator",
    )
    yield cents < 0, "error", "a negative amount", "leave refunds out, or write their size"
    yield (
        labels.is_null(),
        "error",
        "a label other than 0 and 1",
        "write 1 for fraud, 0 for genuine",
    )
    yield (
        times.diff() < 0,
        "warning",
        "a time earlier than the row before",
        "nothing need be done: the rows will be sorted",
    )
    yield (
        labels == UNKNOWN,
        "warning",
        "no label",
        "nothing need be done: it counts as unknown",
    )


def _find_no_fraud(table: pl.DataFrame, path: Path) -> Iterator[Finding]:
    if not (table["label"] == 1).any():
        yield Finding(
            level="error",
            what="there is no fraud among the labels",
            where=str(path),
            remedy="map 'label' to the column that holds 1 for fraud",
        )


def _to_transactions(table: pl.DataFrame) -> Transactions:
    table = table.sort("time", maintain_order=True)
    customers, terminals = _code_book(table["customer"]), _code_book(table["terminal"])
    return Transactions(
        id=table["id"].to_numpy().astype(np.str_),
        time=table["time"].to_numpy(),
        customer=_encode(table["customer"], customers),
        terminal=_encode(table["terminal"], terminals),
        cents=table["amount"].to_numpy(),
        label=table["label"].to_numpy(),
        customers=customers.to_numpy().astype(np.str_),
        terminals=terminals.to_numpy().astype(np.str_),
        scenario=table["scenario"].to_numpy() if "scenario" in table.columns else None,
    )


def _code_book(identifiers: pl.Series) -> pl.Series:
    return identifiers.unique(maintain_order=True)


def _encode(identifiers: pl.Series, book: pl.Series) -> Ints:
    return identifiers.cast(pl.Enum(book)).to_physical().cast(pl.Int64).to_numpy()


def _to_frame(transactions: Transactions) -> pl.DataFrame:
    columns = {
        "id": transactions.id,
        "time": transactions.time,
        "customer": transactions.customers[transactions.customer],
        "terminal": transactions.terminals[transactions.terminal],
        "amount": transactions.cents / 100,
        "label": transactions.label,
    }
    if transactions.scenario is not None:
        columns["scenario"] = transactions.scenario
    return pl.DataFrame(columns)
