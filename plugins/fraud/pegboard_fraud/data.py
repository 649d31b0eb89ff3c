"""From transactions to splits: which days train, validate and test, and what a sample is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from pegboard.errors import DataError
from pegboard.findings import finding_of
from pegboard.progress import Progress
from pegboard.records import Batch, Finding, Sample, Split
from pegboard_fraud.features import DAY, backfill
from pegboard_fraud.settings import FraudData, FraudSettings
from pegboard_fraud.simulator import simulate
from pegboard_fraud.transactions import (
    ROLES,
    Transactions,
    check_transactions,
    read_transactions,
    write_transactions,
)

PAST_DAYS = 30
"""Days at the beginning of the file that only give the later ones a past to look at."""

SIMULATION_SEED = 20180401

Rows = NDArray[np.int64]


# --- Where the transactions are -------------------------------------------------------------------


def source(settings: FraudSettings) -> Path:
    """Return the user's file, or the place of the simulated one."""
    data = settings.data
    if data.path is not None:
        return data.path
    if data.tiny:
        return data.folder / "simulated-tiny.parquet"
    return data.folder / f"simulated-{data.customers}-{data.terminals}-{data.days}.parquet"


def column_names(data: FraudData) -> dict[str, str]:
    """Return the mapping from role to column that suits the file."""
    if data.path is None:
        return {role: role for role in ROLES}
    columns: dict[str, str] = data.columns.model_dump()
    return columns


def prepare(settings: FraudSettings, progress: Progress) -> list[Path]:
    """Simulate the embedded data set, once; the user's own file is left as it is."""
    path = source(settings)
    if settings.data.path is None and not path.exists():
        data = settings.data
        with progress.task("simulate transactions"):
            simulated = simulate(
                seed=SIMULATION_SEED,
                customers=200 if data.tiny else data.customers,
                terminals=400 if data.tiny else data.terminals,
                days=75 if data.tiny else data.days,
            )
            write_transactions(path, simulated)
    return [path]


@dataclass(frozen=True, kw_only=True, eq=False)
class History:
    """Transactions with their features."""

    transactions: Transactions
    """N transactions in the order of time."""
    features: NDArray[np.float32]
    """(N, F), in natural units."""


def read_history(settings: FraudSettings) -> History:
    """Read the transactions and compute their features; kept for the splits that follow."""
    path = source(settings)
    modified = path.stat().st_mtime_ns if path.exists() else 0
    columns = tuple(sorted(column_names(settings.data).items()))
    return _read_history(path, modified, columns, settings.data.label_delay_days)


@lru_cache(maxsize=1)
def _read_history(
    path: Path, modified: int, columns: tuple[tuple[str, str], ...], delay_days: int
) -> History:
    transactions = read_transactions(path, dict(columns))
    return History(
        transactions=transactions, features=backfill(transactions, delay=delay_days * DAY)
    )


# --- Which days -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Period:
    """Whole days, as seconds since 1970 UTC."""

    start: int
    """First second."""
    end: int
    """The second after the last."""


@dataclass(frozen=True, kw_only=True)
class Calendar:
    """The periods of the three splits: no label is used before it could be known."""

    train: Period
    """To learn from."""
    validation: Period
    """To choose checkpoint and thresholds from."""
    test: Period
    """To measure on."""


def last_test_day(settings: FraudSettings) -> date:
    """Return the last day that is tested on."""
    if settings.data.test_until is not None:
        return settings.data.test_until
    return date.fromisoformat(_date(int(read_history(settings).transactions.time[-1])))


def plan(data: FraudData, first: int, last: int) -> Calendar:
    """Lay the splits over a file from its end backwards.

    `deploy`:   train | delay | validation | delay | test
    `handbook`: train | delay | test, the last days of train again as validation (Le Borgne et
    al., Reproducible Machine Learning for Credit Card Fraud Detection, 2022, chapter 5).

    Args:
        data: The settings.
        first: Time of the first transaction, seconds since 1970 UTC.
        last: Time of the last one.

    Raises:
        DataError: The days of the file do not suffice.
    """
    delay = data.label_delay_days * DAY
    test_end = _midnight(last) + DAY if data.test_until is None else _start(data.test_until) + DAY
    test = Period(start=test_end - data.test_days * DAY, end=test_end)
    known = test.start - delay
    validation = Period(start=known - data.validation_days * DAY, end=known)
    train_end = known if data.protocol == "handbook" else validation.start - delay
    earliest = _midnight(first) + PAST_DAYS * DAY
    if data.train_from is not None:
        earliest = _start(data.train_from)
    start = train_end - data.train_days * DAY if data.train_days else earliest
    if start >= train_end or start < _midnight(first):
        raise _too_short(first, last, missing=max(DAY, earliest - train_end + DAY))
    if data.protocol == "handbook":
        validation = Period(start=max(start, validation.start), end=train_end)
    return Calendar(train=Period(start=start, end=train_end), validation=validation, test=test)


def _too_short(first: int, last: int, missing: int) -> DataError:
    return DataError(
        f"the transactions span {(last - first) // DAY + 1} days, at least {missing // DAY} too "
        "few for the splits",
        where=f"{_date(first)} to {_date(last)}",
        remedy="give a longer history, or lower data.train_days, validation_days or test_days",
    )


def _midnight(time: int) -> int:
    return time // DAY * DAY


def _start(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())


def _date(time: int) -> str:
    return datetime.fromtimestamp(time, tz=UTC).date().isoformat()


# --- Which rows -----------------------------------------------------------------------------------


def rows_of(settings: FraudSettings, transactions: Transactions, split: Split) -> Rows:
    """Return the rows of a split: labelled, and in its days."""
    times = transactions.time
    calendar = plan(settings.data, int(times[0]), int(times[-1]))
    return _rows_in(settings, transactions, getattr(calendar, split), blocking=split == "test")


def rows_of_last_days(settings: FraudSettings, transactions: Transactions, days: int) -> Rows:
    """Return the rows of so many days up to the last test day, chosen as a test split's are."""
    end = _start(last_test_day(settings)) + DAY
    period = Period(start=end - days * DAY, end=end)
    return _rows_in(settings, transactions, period, blocking=True)


def _rows_in(
    settings: FraudSettings, transactions: Transactions, period: Period, *, blocking: bool
) -> Rows:
    times = transactions.time
    chosen = (times >= period.start) & (times < period.end) & (transactions.label >= 0)
    if blocking and settings.data.blocked_days:
        delay = settings.data.label_delay_days * DAY
        since = period.start - delay - settings.data.blocked_days * DAY
        chosen &= ~known_defrauded(transactions, since, period, delay)
    return np.flatnonzero(chosen)


def known_defrauded(
    transactions: Transactions, since: int, period: Period, delay: int
) -> NDArray[np.bool_]:
    """Say of each transaction whether its customer is known to be defrauded on its day.

    A card that is known to be compromised is blocked, so nothing is left to detect. Known on a
    day are the frauds after `since` whose labels had arrived when the day began.

    Args:
        transactions: N transactions.
        since: Frauds before this moment are forgotten, seconds since 1970 UTC.
        period: The days that are asked about.
        delay: Seconds until a label is known.

    Returns:
        (N,); false outside of the period.
    """
    known = np.zeros(len(transactions), dtype=bool)
    frauds = (transactions.label == 1) & (transactions.time >= since)
    for day in range(period.start, period.end, DAY):
        told = frauds & (transactions.time < day - delay)
        customers = np.unique(transactions.customer[told])
        today = (transactions.time >= day) & (transactions.time < day + DAY)
        known |= today & np.isin(transactions.customer, customers)
    return known


# --- Samples --------------------------------------------------------------------------------------


class FraudDataset(Dataset[Sample]):
    """Rows of features with their labels.

    Args:
        features: (N, F), natural units.
        targets: Columns (N,) of `label` (1 fraud, 0 genuine), `amount`, `customer` and `day`.
        negatives_per_fraud: Genuine rows that an epoch draws for each fraud; 0 takes all.
    """

    def __init__(
        self,
        features: NDArray[np.float32],
        targets: dict[str, NDArray[np.float32] | Rows],
        negatives_per_fraud: float = 0.0,
    ) -> None:
        self.features = features
        self.targets = targets
        self.labels = targets["label"]
        self._frauds = np.flatnonzero(self.labels == 1)
        self._genuine = np.flatnonzero(self.labels == 0)
        wanted = round(negatives_per_fraud * len(self._frauds))
        self._negatives = min(wanted, len(self._genuine)) if wanted else len(self._genuine)

    @property
    def negative_rate(self) -> float:
        """The share of genuine rows that an epoch sees."""
        return self._negatives / len(self._genuine)

    def epoch_indices(self, epoch: int, seed: int) -> Rows:
        """Return every fraud and a fresh draw of genuine rows; the core shuffles them."""
        generator = np.random.default_rng([seed, epoch])
        drawn = generator.choice(self._genuine, self._negatives, replace=False, shuffle=False)
        return np.concatenate([self._frauds, drawn])

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> Sample:
        return Sample(
            inputs={"features": self.features[index]},
            targets={name: column[index] for name, column in self.targets.items()},
            key=f"row {index}",
        )

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Return many rows at once: a hundred times faster than one after the other."""
        rows = np.asarray(indices)
        return Batch(
            inputs={"features": torch.from_numpy(self.features[rows])},
            targets={name: torch.from_numpy(column[rows]) for name, column in self.targets.items()},
        )


def load(settings: FraudSettings, split: Split) -> FraudDataset:
    """Return a split's dataset.

    Raises:
        DataError: The file cannot be read or its days do not suffice.
    """
    history = read_history(settings)
    transactions = history.transactions
    rows = rows_of(settings, transactions, split)
    part = transactions.rows(rows)
    return FraudDataset(
        history.features[rows],
        {
            "label": part.label.astype(np.float32),
            "amount": (part.cents / 100).astype(np.float32),
            "customer": part.customer,
            "day": part.time // DAY,
        },
        negatives_per_fraud=settings.model.negatives_per_fraud if split == "train" else 0.0,
    )


# --- Checks ---------------------------------------------------------------------------------------


def check(settings: FraudSettings) -> list[Finding]:
    """Look at the file, then at what its days give to the splits."""
    path = source(settings)
    findings = list(check_transactions(path, column_names(settings.data)))
    if any(finding.level == "error" for finding in findings):
        return findings
    try:
        return [*findings, *_check_splits(settings)]
    except DataError as error:
        return [*findings, finding_of(error)]


def _check_splits(settings: FraudSettings) -> Iterator[Finding]:
    transactions = read_history(settings).transactions
    calendar = plan(settings.data, int(transactions.time[0]), int(transactions.time[-1]))
    splits: tuple[Split, ...] = ("train", "validation", "test")
    for split in splits:
        period: Period = getattr(calendar, split)
        labels = transactions.label[rows_of(settings, transactions, split)]
        where = f"{split} split, {_date(period.start)} to {_date(period.end - 1)}"
        frauds = int((labels == 1).sum())
        if not frauds:
            yield Finding(
                level="error",
                what=f"there is no fraud among {len(labels)} transactions",
                where=where,
                remedy=f"give data.{split}_days more days, or check the labels",
            )
        yield Finding(
            level="note",
            what=f"{len(labels):,} transactions with {frauds:,} frauds",
            where=where,
            remedy="nothing to do",
        )
