"""The features of a card transaction: one definition, two executors that agree bit for bit.

`FEATURES` names each feature and its measure. A measure is written once, as arithmetic on what a
`View` tells of the past: how many events a window of a track holds, how many cents, when was the
first, when the last. `backfill` tells it for a whole stream at once, from sorted columns;
`FeatureState` tells it for one transaction, from what it has been told so far, and is what a live
decision uses. Counts and sums are integers, divisions happen in double precision and the cast to
single precision comes last, so that both give the same bits.

The clock has two rules. A window (t - w, t] holds the transaction itself and, of the same second,
only what came before it in the stream. Whether a transaction of time s was fraud is known from
s + delay on, so a window over labels is (t - delay - w, t - delay].
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, islice, takewhile
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    # Only for annotations: a live decision must not need polars.
    from pegboard_fraud.transactions import Transactions

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

HOUR, DAY = 3_600, 86_400
WEEK, FORTNIGHT, MONTH = 7 * DAY, 14 * DAY, 30 * DAY

DELAY = WEEK
"""Default time until it is known whether a transaction was fraud, in seconds."""

MEMORY = 90 * DAY
"""The longest window, in seconds."""

OUTSIZED = 3
"""An amount is outsized if it is more than so many times the customer's mean before."""

NEVER = -(2**60)
"""Time of an event that did not happen."""

_CAP = 2**26
"""Amounts are capped here, in cents, before they are squared: sums of squares fit 64 bits."""


# --- What measures may ask ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Track:
    """The past events of one kind that share the transaction's customer, terminal or both."""

    name: str
    """What it is called in a snapshot."""
    key: str
    """customer, terminal or pair (both)."""
    of: str = "all"
    """all, outsized, or by label genuine, fraud, modest_fraud (of an amount not outsized)."""
    delayed: bool = False
    """Whether it is made of labels, which are known a delay after the transaction."""
    amounts: bool = False
    """Whether its amounts are asked for, not only its times."""


CUSTOMER = Track(name="customer", key="customer", amounts=True)
CUSTOMER_OUTSIZED = Track(name="customer_outsized", key="customer", of="outsized", amounts=True)
CUSTOMER_FRAUD = Track(name="customer_fraud", key="customer", of="fraud", delayed=True)
TERMINAL_GENUINE = Track(name="terminal_genuine", key="terminal", of="genuine", delayed=True)
TERMINAL_FRAUD = Track(name="terminal_fraud", key="terminal", of="fraud", delayed=True)
TERMINAL_MODEST_FRAUD = Track(
    name="terminal_modest_fraud", key="terminal", of="modest_fraud", delayed=True
)
PAIR = Track(name="pair", key="pair")


class Window(Protocol):
    """The past events of a track in some time: numbers, or arrays (N,) for N transactions."""

    @property
    def opening(self) -> Any:
        """The moment after which it begins, seconds since 1970."""

    @property
    def count(self) -> Any:
        """How many events it holds, the transaction itself not counted."""

    @property
    def cents(self) -> Any:
        """Sum of their amounts."""

    @property
    def squares(self) -> Any:
        """Sum of their squared amounts, capped."""

    @property
    def first(self) -> Any:
        """Time of the first, or NEVER."""

    @property
    def last(self) -> Any:
        """Time of the last, or NEVER."""


class View(Protocol):
    """One transaction and its past, or all N of a stream at once."""

    time: Any
    """Seconds since 1970."""
    cents: Any
    """Amount of the transaction."""

    def window(self, track: Track, length: int) -> Window:
        """The events of the last `length` seconds before now; of labels, before now - delay."""

    def after(self, track: Track, moment: Any) -> Window:
        """The events after a moment until now; of labels, until now - delay."""

    def ratio(self, numerator: Any, denominator: Any, otherwise: float) -> Any:
        """The quotient in double precision, `otherwise` where the denominator is 0."""

    def least(self, one: Any, other: Any) -> Any:
        """The smaller one."""

    def greatest(self, one: Any, other: Any) -> Any:
        """The greater one."""

    def root(self, value: Any) -> Any:
        """The square root."""


# --- Measures: how a number is made ---------------------------------------------------------------

Measure = Callable[[View], Any]
"""One number about a transaction, or an array (N,) of them."""


def amount(view: View) -> Any:
    """Return the amount in currency units."""
    return view.cents / 100


def hour_of_day(view: View) -> Any:
    """Return the hour of the day in UTC, with its fraction."""
    return view.time % DAY / HOUR


def count(track: Track, length: int) -> Measure:
    """Count the past events of a window."""
    return lambda view: view.window(track, length).count


def count_with_this(track: Track, length: int) -> Measure:
    """Count the events of a window, this transaction included."""
    return lambda view: view.window(track, length).count + 1


def mean_with_this(length: int) -> Measure:
    """Average the customer's amounts in a window, this transaction included, in currency units."""

    def measure(view: View) -> Any:
        window = view.window(CUSTOMER, length)
        return view.ratio(window.cents + view.cents, (window.count + 1) * 100, 0.0)

    return measure


def since_first(track: Track, length: int, unit: int) -> Measure:
    """Time since the first event of a window, or since its opening; `unit` is in seconds."""

    def measure(view: View) -> Any:
        window = view.window(track, length)
        # Of an empty window `first` is NEVER, which the opening outdoes.
        return (view.time - view.greatest(window.first, window.opening)) / unit

    return measure


def since_last(track: Track, length: int, unit: int) -> Measure:
    """Time since the last event of a window, or since its opening; `unit` is in seconds."""

    def measure(view: View) -> Any:
        window = view.window(track, length)
        return (view.time - view.greatest(window.last, window.opening)) / unit

    return measure


def times_mean(length: int, *, modest: bool = False) -> Measure:
    """Divide the amount by the customer's mean before; 1 where there is none.

    Args:
        length: Of the window, in seconds.
        modest: Whether outsized amounts are left out of the mean, which thieves would raise.
    """

    def measure(view: View) -> Any:
        number, cents, _ = _habit(view, length, modest)
        return view.ratio(view.cents * number, cents, 1.0)

    return measure


def score(length: int, *, modest: bool = False) -> Measure:
    """Standard deviations between the amount and the customer's mean before, within +-50.

    Args:
        length: Of the window, in seconds.
        modest: Whether outsized amounts are left out of mean and deviation.
    """

    def measure(view: View) -> Any:
        number, cents, squares = _habit(view, length, modest)
        mean = view.ratio(cents, number, 0.0)
        variance = view.greatest(view.ratio(squares, number, 0.0) - mean * mean, 0.0)
        # A few events say little about a spread: a tenth of the mean and one unit always pass.
        spread = view.root(variance) + mean / 10 + 100
        deviations = (view.cents - mean) * view.least(number, 1) / spread
        return view.greatest(view.least(deviations, 50.0), -50.0)

    return measure


def fraud_share(length: int) -> Measure:
    """Return the share of fraud among the terminal's known labels, 0 where there is none."""

    def measure(view: View) -> Any:
        frauds = view.window(TERMINAL_FRAUD, length).count
        return view.ratio(frauds, frauds + view.window(TERMINAL_GENUINE, length).count, 0.0)

    return measure


def fraud_run(view: View) -> Any:
    """Count the frauds at the terminal since its last genuine transaction.

    All that is paid at a compromised terminal is fraud: a genuine transaction ends the run.
    """
    return _run(view).count


def fraud_run_days(view: View) -> Any:
    """Return the days since that run began, 90 where there is none."""
    return view.least(view.time - _run(view).first, MEMORY) / DAY


def genuine_since_modest_fraud(view: View) -> Any:
    """Count the genuine transactions at the terminal since its last modest fraud."""
    frauds = view.window(TERMINAL_MODEST_FRAUD, MEMORY)
    return view.after(TERMINAL_GENUINE, view.greatest(frauds.last, frauds.opening)).count


def is_outsized(view: View) -> Any:
    """Tell whether the amount is far above what the customer used to pay."""
    past = view.window(CUSTOMER, MEMORY)
    return view.cents * past.count > OUTSIZED * past.cents


def _habit(view: View, length: int, modest: bool) -> tuple[Any, Any, Any]:
    """Number, sum and sum of squares of the customer's past amounts."""
    window = view.window(CUSTOMER, length)
    if not modest:
        return window.count, window.cents, window.squares
    out = view.window(CUSTOMER_OUTSIZED, length)
    return window.count - out.count, window.cents - out.cents, window.squares - out.squares


def _run(view: View) -> Window:
    genuine = view.window(TERMINAL_GENUINE, MEMORY)
    return view.after(TERMINAL_FRAUD, view.greatest(genuine.last, genuine.opening))


# --- The definition -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Feature:
    """One input of the model."""

    name: str
    """What it is called in the signature and in reason codes."""
    measure: Measure
    """How it is computed."""
    unit: str
    """Natural unit; the model's graph normalises."""
    group: str
    """What it is about, for reason codes: amount, time, velocity, novelty,
    habit, customer or terminal."""
    low: float
    """Smallest value to expect."""
    high: float
    """Largest value to expect; a rare one is larger."""


_WINDOWS = (("1h", HOUR), ("1d", DAY), ("7d", WEEK), ("30d", MONTH))


def _velocity() -> Iterator[Feature]:
    for name, length in _WINDOWS:
        number, mean = count_with_this(CUSTOMER, length), mean_with_this(length)
        yield Feature(f"customer_count_{name}", number, "transactions", "velocity", 1, 200)
        yield Feature(f"customer_mean_{name}", mean, "currency", "velocity", 0, 1000)
    pause = since_last(CUSTOMER, MONTH, HOUR)
    yield Feature("customer_hours_since_last", pause, "hours", "velocity", 0, 720)


def _habit_distance() -> Iterator[Feature]:
    for name, measure in (
        ("amount_to_mean_30d", times_mean(MONTH)),
        ("amount_to_mean_90d", times_mean(MEMORY)),
        ("amount_to_modest_mean_90d", times_mean(MEMORY, modest=True)),
    ):
        yield Feature(name, measure, "ratio", "habit", 0, 20)
    for name, measure in (
        ("amount_score_90d", score(MEMORY)),
        ("amount_modest_score_90d", score(MEMORY, modest=True)),
    ):
        yield Feature(name, measure, "deviations", "habit", -50, 50)
    for name, length in (("7d", WEEK), ("14d", FORTNIGHT)):
        outsized = count(CUSTOMER_OUTSIZED, length)
        yield Feature(f"customer_outsized_{name}", outsized, "transactions", "habit", 0, 20)


def _terminal_risk() -> Iterator[Feature]:
    for name, length in _WINDOWS[1:]:
        frauds, share = count(TERMINAL_FRAUD, length), fraud_share(length)
        yield Feature(f"terminal_frauds_{name}", frauds, "transactions", "terminal", 0, 50)
        yield Feature(f"terminal_fraud_share_{name}", share, "share", "terminal", 0, 1)
    modest = TERMINAL_MODEST_FRAUD
    for name, measure, unit, high in (
        ("fraud_run", fraud_run, "transactions", 50),
        ("fraud_run_days", fraud_run_days, "days", 90),
        ("days_since_genuine", since_last(TERMINAL_GENUINE, MEMORY, DAY), "days", 100),
        ("modest_frauds_30d", count(modest, MONTH), "transactions", 50),
        ("days_since_first_modest_fraud", since_first(modest, MONTH, DAY), "days", 40),
        ("days_since_last_modest_fraud", since_last(modest, MONTH, DAY), "days", 40),
        ("genuine_since_modest_fraud", genuine_since_modest_fraud, "transactions", 200),
    ):
        yield Feature(f"terminal_{name}", measure, unit, "terminal", 0, high)


FEATURES: tuple[Feature, ...] = (
    Feature("amount", amount, "currency", "amount", 0, 1000),
    Feature("hour_of_day", hour_of_day, "hours", "time", 0, 24),
    *_velocity(),
    *_habit_distance(),
    Feature("customer_visits_90d", count_with_this(PAIR, MEMORY), "transactions", "novelty", 1, 99),
    Feature("customer_frauds_30d", count(CUSTOMER_FRAUD, MONTH), "transactions", "customer", 0, 30),
    *_terminal_risk(),
)
"""Every input of the model, in the order of its columns."""

FEATURE_NAMES: tuple[str, ...] = tuple(feature.name for feature in FEATURES)
AMOUNT = FEATURE_NAMES.index("amount")
"""The column of what a fraud costs."""
FEATURE_UNITS: Mapping[str, str] = {feature.name: feature.unit for feature in FEATURES}
FEATURE_GROUPS: Mapping[str, str] = {feature.name: feature.group for feature in FEATURES}
FEATURE_RANGES: Mapping[str, tuple[float, float]] = {f.name: (f.low, f.high) for f in FEATURES}

# --- Executor 1: the whole stream at once ---------------------------------------------------------


def backfill(transactions: Transactions, *, delay: int = DELAY) -> NDArray[np.float32]:
    """Compute the features of every transaction of a stream.

    Args:
        transactions: N transactions sorted by time.
        delay: Seconds until a label is known, at least 1.

    Returns:
        One row a transaction, one column a feature: (N, F), in natural units.

    Raises:
        ValueError: The transactions are not sorted, or the delay is not positive.
    """
    _require_delay(delay)
    if (np.diff(transactions.time) < 0).any():
        raise ValueError("features need transactions sorted by time")
    features = np.empty((len(transactions), len(FEATURES)), np.float32)
    if len(transactions):
        view = _StreamView(transactions, delay)
        for column, feature in enumerate(FEATURES):
            features[:, column] = feature.measure(view)
    return features


def _require_delay(delay: int) -> None:
    # With no delay a transaction would see its own label.
    if delay < 1:
        raise ValueError(f"a label cannot be known {delay} seconds later, only 1 or more")


class _StreamView:
    """All N transactions of a stream; arrays (N,) in its order."""

    def __init__(self, transactions: Transactions, delay: int) -> None:
        self.time = transactions.time
        self.cents = transactions.cents
        self._label = transactions.label
        self._known = transactions.time - delay
        pairs = transactions.customer * len(transactions.terminals) + transactions.terminal
        keys = {"customer": transactions.customer, "terminal": transactions.terminal, "pair": pairs}
        self._sorted = {name: _Sorted(key, self.time) for name, key in keys.items()}
        self._ends: dict[tuple[str, bool], Ints] = {}
        self._windows: dict[tuple[str, bool, int], tuple[Ints, Ints, Ints]] = {}
        self._columns: dict[Track, _Column] = {}

    def window(self, track: Track, length: int) -> Window:
        bounds = (track.key, track.delayed, length)
        if bounds not in self._windows:  # Tracks of the same key share their windows.
            opening = (self._known if track.delayed else self.time) - length
            self._windows[bounds] = (opening, *self._bounds(track, opening))
        return _StreamWindow(self._column(track), *self._windows[bounds])

    def after(self, track: Track, moment: Ints) -> Window:
        return _StreamWindow(self._column(track), moment, *self._bounds(track, moment))

    def ratio(self, numerator: Any, denominator: Any, otherwise: float) -> Any:
        quotients = np.full(len(self.time), otherwise)
        return np.divide(numerator, denominator, out=quotients, where=denominator != 0)

    least = staticmethod(np.minimum)
    greatest = staticmethod(np.maximum)
    root = staticmethod(np.sqrt)

    def _bounds(self, track: Track, opening: Ints) -> tuple[Ints, Ints]:
        """Positions [start, end), in the order of the key, of the events after the opening."""
        key, which = self._sorted[track.key], (track.key, track.delayed)
        if which not in self._ends:
            # A transaction's own position is where the events before it in the stream end.
            self._ends[which] = key.position(self._known) if track.delayed else key.rank
        return key.position(opening), self._ends[which]

    def _column(self, track: Track) -> _Column:
        if track not in self._columns:
            self._columns[track] = _Column(self._sorted[track.key], self._events(track), self.cents)
        return self._columns[track]

    def _events(self, track: Track) -> Flags:
        """Which transactions are events of the track. Shape (N,)."""
        if track.of == "outsized":
            return np.asarray(is_outsized(self))
        if track.of == "modest_fraud":
            return np.asarray((self._label == 1) & ~self._events(CUSTOMER_OUTSIZED))
        if track.of == "all":
            return np.ones(len(self.time), np.bool_)
        return np.asarray(self._label == (1 if track.of == "fraud" else 0))


class _Sorted:
    """The stream in the order of a key; transactions of equal key keep the order of the stream."""

    def __init__(self, key: Ints, time: Ints) -> None:
        self.order = np.argsort(key, kind="stable")
        self.rank = np.empty_like(self.order)
        """Position of each transaction in this order. Shape (N,)."""
        self.rank[self.order] = np.arange(len(key))
        self.time = time[self.order]
        self._start, self._length = int(time[0]), int(time[-1] - time[0])
        # Key and time in one sorted number, with room for a moment before all times. Keys are
        # numbered anew without gaps, because pairs of large numbers would overflow.
        group = np.append(0, np.cumsum(np.diff(key[self.order]) != 0))
        self._base = group * (self._length + 2) - self._start
        self._moments = self._base + self.time

    def position(self, moment: Ints) -> Ints:
        """Find the end of the events that share the key and are not after `moment`. Shape (N,)."""
        within = np.clip(moment[self.order], self._start - 1, self._start + self._length)
        # Asked in sorted order, neighbours search the same memory: five times faster.
        found = np.searchsorted(self._moments, self._base + within, side="right")
        positions = np.empty_like(found)
        positions[self.order] = found
        return positions


class _Column:
    """The events of a track in the order of its key, with running sums over all of them."""

    def __init__(self, key: _Sorted, events: Flags, cents: Ints) -> None:
        self.time = key.time
        self._events = events[key.order]
        self._cents = cents[key.order]

    @cached_property
    def count(self) -> Ints:
        """Events at the first 0, 1, ... N positions. Shape (N + 1,)."""
        return _running(self._events)

    @cached_property
    def cents(self) -> Ints:
        """Sums of their amounts. Shape (N + 1,)."""
        return _running(self._cents * self._events)

    @cached_property
    def squares(self) -> Ints:
        """Sums of their squared amounts; they may wrap, differences do not. Shape (N + 1,)."""
        return _running(np.minimum(self._cents, _CAP) ** 2 * self._events)

    @cached_property
    def last(self) -> Ints:
        """Position of the last event before each position, or -1. Shape (N + 1,)."""
        places = np.where(self._events, np.arange(len(self._events)), -1)
        return np.append(-1, np.maximum.accumulate(places))

    @cached_property
    def first(self) -> Ints:
        """Position of the first event from each position on, or N. Shape (N + 1,)."""
        none = len(self._events)
        places = np.where(self._events, np.arange(none), none)
        return np.append(np.minimum.accumulate(places[::-1])[::-1], none)


def _running(values: NDArray[Any]) -> Ints:
    return np.append(np.int64(0), np.cumsum(values, dtype=np.int64))


@dataclass(frozen=True, slots=True)
class _StreamWindow:
    """One window of each of N transactions: the events at positions [start, end). Shapes (N,)."""

    _column: _Column
    opening: Ints
    _start: Ints
    _end: Ints

    @property
    def count(self) -> Ints:
        return self._column.count[self._end] - self._column.count[self._start]

    @property
    def cents(self) -> Ints:
        return self._column.cents[self._end] - self._column.cents[self._start]

    @property
    def squares(self) -> Ints:
        return self._column.squares[self._end] - self._column.squares[self._start]

    @property
    def first(self) -> Ints:
        found = self._column.first[self._start]
        return np.where(found < self._end, self._column.time.take(found, mode="clip"), NEVER)

    @property
    def last(self) -> Ints:
        found = self._column.last[self._end]
        return np.where(found >= self._start, self._column.time.take(found, mode="clip"), NEVER)


# --- Executor 2: event by event -------------------------------------------------------------------

Identifier = str | int


@dataclass(frozen=True, kw_only=True, slots=True)
class Transaction:
    """One card transaction, as a live decision sees it."""

    id: Identifier
    """By which its label is told later."""
    time: int
    """Seconds since 1970 UTC."""
    customer: Identifier
    """Who pays."""
    terminal: Identifier
    """Where."""
    cents: int
    """Amount in hundredths of the currency unit."""


class FeatureState:
    """What is remembered of the past, to compute the features of the next transaction.

    A transaction costs a few binary searches in what its customer and its terminal did within
    `MEMORY`. Transactions may come late, and labels at any time: one that comes before its delay
    is over is kept back until then. One thread at a time may change a state. Call `forget` now and
    then, or customers who went away stay.

    Args:
        delay: Seconds until a label counts as known, at least 1.
        late: Seconds by which a transaction may come late; unset: as many as the delay.
    """

    def __init__(self, *, delay: int = DELAY, late: int | None = None) -> None:
        _require_delay(delay)
        self.delay = delay
        self.memory = memory_of(delay, late)
        """How far back anything is remembered, in seconds."""
        self._events: dict[Track, dict[Any, Events]] = {track: {} for track in TRACKS}
        self._remembered: dict[Identifier, _Remembered] = {}

    def __len__(self) -> int:
        """How many transactions can still be labelled."""
        return len(self._remembered)

    def find(self, identifier: Identifier) -> Transaction | None:
        """Return the transaction of an id, if it is remembered."""
        known = self._remembered.get(identifier)
        return None if known is None else known.transaction

    def remembered(self) -> Iterator[tuple[Transaction, bool, str]]:
        """Give every transaction, whether it is outsized, and its kind in `LABEL_TRACKS`."""
        yield from self._remembered.values()

    def tracks(self) -> Iterator[tuple[Track, Any, Events]]:
        """Give the events of every track and key."""
        for track, keys in self._events.items():
            for key, events in keys.items():
                yield track, key, events

    def features(self, transaction: Transaction) -> NDArray[np.float32]:
        """Compute the features (F,) of a transaction that is not added yet; changes nothing."""
        return features_of(transaction, self._past, self.delay)

    def add(self, transaction: Transaction) -> bool:
        """Remember a transaction; one whose id is remembered already changes nothing.

        Returns:
            Whether its amount is outsized.
        """
        known = self._remembered.get(transaction.id)
        if known is not None:
            return known.outsized
        outsized = outsizes(transaction, self._past, self.delay)
        self._remember(CUSTOMER, transaction)
        self._remember(PAIR, transaction)
        if outsized:
            self._remember(CUSTOMER_OUTSIZED, transaction)
        self._remembered[transaction.id] = _Remembered(transaction, outsized, "")
        return outsized

    def label(self, identifier: Identifier, is_fraud: bool) -> bool:
        """Tell whether a transaction was fraud; tell it again to correct it.

        Returns:
            False if no such transaction is remembered: never added, or too old to matter.
        """
        known = self._remembered.get(identifier)
        if known is None:
            return False
        transaction, outsized, before = known
        kind = ("fraud" if outsized else "modest_fraud") if is_fraud else "genuine"
        if kind == before:
            return True
        for track in LABEL_TRACKS[before]:
            self._past(track, transaction).remove(transaction.time)
        for track in LABEL_TRACKS[kind]:
            self._remember(track, transaction)
        self._remembered[identifier] = _Remembered(transaction, outsized, kind)
        return True

    def forget(self, now: int, *, most: int | None = None) -> int:
        """Drop what no window needs any longer.

        A transaction that came late is dropped no earlier than those that came before it.

        Args:
            now: Seconds since 1970, by a clock that can be trusted: what it makes old is gone.
            most: Stop after so many transactions, to go on another time; unset: never.

        Returns:
            How many transactions were dropped.
        """
        horizon = now - self.memory
        known = (known.transaction for known in self._remembered.values())
        old = list(islice(takewhile(lambda each: each.time <= horizon, known), most))
        for transaction in old:
            del self._remembered[transaction.id]
            self._drop_events(transaction, horizon)
        return len(old)

    def _drop_events(self, transaction: Transaction, horizon: int) -> None:
        """Drop a forgotten transaction's keys that hold nothing younger."""
        for track, keys in self._events.items():
            key = key_of(track, transaction)
            events = keys.get(key)
            if events is not None and not (events.times and events.times[-1] > horizon):
                del keys[key]

    def snapshot(self) -> dict[str, NDArray[Any]]:
        """Copy all that is remembered into plain arrays, for `numpy.savez` without pickle."""
        late = self.memory - MEMORY - self.delay
        arrays = {"delay": np.array(self.delay), "late": np.array(late)}
        for track, keys in self._events.items():
            arrays |= _pack(track, keys)
        return arrays | _pack_remembered(self._remembered.values())

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]]) -> FeatureState:
        """Make a state from what `snapshot` gave; it answers with the same bits."""
        state = cls(delay=int(arrays["delay"]), late=int(arrays["late"]))
        for track in state._events:
            state._events[track] = _unpack(track, arrays)
        for known in _unpack_remembered(arrays):
            state._remembered[known.transaction.id] = known
        return state

    def _past(self, track: Track, transaction: Transaction) -> Events:
        return self._events[track].get(key_of(track, transaction), _NO_EVENTS)

    def _remember(self, track: Track, transaction: Transaction) -> None:
        keys, key = self._events[track], key_of(track, transaction)
        events = keys.get(key)
        if events is None:
            events = keys[key] = Events(amounts=track.amounts)
        events.add(transaction.time, transaction.cents)
        events.forget(transaction.time - self.memory)


def memory_of(delay: int, late: int | None = None) -> int:
    """Return how far back a past is needed, in seconds; the arguments are `FeatureState`'s."""
    # Windows over labels reach a delay further back, and those of a late transaction further still.
    return MEMORY + delay + (delay if late is None else late)


class _Remembered(NamedTuple):
    """A transaction that can still be labelled."""

    transaction: Transaction
    outsized: bool
    kind: str
    """genuine, fraud (of an outsized amount), modest_fraud; empty while nobody has said."""


_MEASURES = tuple(feature.measure for feature in FEATURES)
TRACKS = (
    CUSTOMER,
    CUSTOMER_OUTSIZED,
    CUSTOMER_FRAUD,
    TERMINAL_GENUINE,
    TERMINAL_FRAUD,
    TERMINAL_MODEST_FRAUD,
    PAIR,
)
"""All that is remembered."""

LABEL_TRACKS: Mapping[str, tuple[Track, ...]] = {
    "": (),
    "genuine": (TERMINAL_GENUINE,),
    "fraud": (CUSTOMER_FRAUD, TERMINAL_FRAUD),
    "modest_fraud": (CUSTOMER_FRAUD, TERMINAL_FRAUD, TERMINAL_MODEST_FRAUD),
}
"""Where a transaction is an event, by its label and by whether its amount is modest."""


def key_of(track: Track, transaction: Transaction) -> Any:
    """Return what a transaction shares with the other events of a track."""
    if track.key == "customer":
        return transaction.customer
    if track.key == "terminal":
        return transaction.terminal
    return transaction.customer, transaction.terminal


class Events:
    """The events of one track and key in the order of time, with running sums of their amounts.

    Args:
        amounts: Whether amounts are kept.
        times: Of events to begin with, in order; seconds since 1970.
        cents: Their amounts, if those are kept.
    """

    __slots__ = ("amounts", "cents", "squares", "times")

    def __init__(
        self, *, amounts: bool, times: array[int] | None = None, cents: Iterable[int] = ()
    ) -> None:
        self.amounts = amounts
        self.times = array("q") if times is None else times
        self.cents = self.squares = _NO_SUMS
        if amounts:
            amount_list = list(cents)
            squares = (min(each, _CAP) ** 2 for each in amount_list)
            self.cents = array("q", accumulate(amount_list, initial=0))
            self.squares = array("q", accumulate(squares, initial=0))

    def add(self, time: int, cents: int) -> None:
        """Put an event in its place, after those of the same second."""
        place = bisect_right(self.times, time)
        self.times.insert(place, time)
        if self.amounts:
            capped = min(cents, _CAP)
            _insert(self.cents, place, cents)
            _insert(self.squares, place, capped * capped)

    def remove(self, time: int) -> None:
        """Take back an event of a track without amounts, unless it is forgotten already."""
        place = bisect_right(self.times, time) - 1
        if place >= 0 and self.times[place] == time:
            del self.times[place]

    def forget(self, horizon: int) -> None:
        """Drop old events once they are most: so each is moved once on average."""
        if self.times[0] > horizon:
            return
        gone = bisect_right(self.times, horizon)
        if 2 * gone > len(self.times):
            del self.times[:gone]
            if self.amounts:
                self.cents = array("q", [total - self.cents[gone] for total in self.cents[gone:]])
                base = self.squares[gone]
                self.squares = array("q", [total - base for total in self.squares[gone:]])


def _insert(sums: array[int], place: int, value: int) -> None:
    sums.insert(place + 1, sums[place] + value)
    for later in range(place + 2, len(sums)):  # Only when the event comes late.
        sums[later] += value


_NO_SUMS = array("q", [0])
"""Shared by all events whose amounts nobody asks for; never changed."""
_NO_EVENTS = Events(amounts=True)

Past = Callable[[Track, Transaction], Events]
"""Gives the events of a track that share the transaction's key."""


def features_of(transaction: Transaction, past: Past, delay: int) -> NDArray[np.float32]:
    """Compute the features (F,) of a transaction from what any store remembers of its past."""
    view = _EventView(past, transaction, delay)
    return np.array([measure(view) for measure in _MEASURES], np.float32)


def outsizes(transaction: Transaction, past: Past, delay: int) -> bool:
    """Tell whether a transaction is outsized, as `is_outsized` defines it."""
    return bool(is_outsized(_EventView(past, transaction, delay)))


class _EventView:
    """One transaction and what is remembered of its past."""

    __slots__ = ("_found", "_known", "_past", "_transaction", "_windows", "cents", "time")

    def __init__(self, past: Past, transaction: Transaction, delay: int) -> None:
        self.time = transaction.time
        self.cents = transaction.cents
        self._known = transaction.time - delay
        self._transaction = transaction
        self._past = past
        self._found: dict[Track, tuple[Events, int]] = {}
        self._windows: dict[tuple[Track, int], _EventWindow] = {}

    def window(self, track: Track, length: int) -> Window:
        window = self._windows.get((track, length))
        if window is None:
            opening = (self._known if track.delayed else self.time) - length
            window = self._windows[track, length] = self.after(track, opening)
        return window

    def after(self, track: Track, moment: int) -> _EventWindow:
        found = self._found.get(track)
        if found is None:
            events = self._past(track, self._transaction)
            now = self._known if track.delayed else self.time
            found = self._found[track] = events, bisect_right(events.times, now)
        events, end = found
        return _EventWindow(events, moment, bisect_right(events.times, moment), end)

    def ratio(self, numerator: float, denominator: float, otherwise: float) -> float:
        # Both to double precision first, as numpy does: Python would divide large integers exactly.
        return numerator * 1.0 / denominator if denominator else otherwise

    least = staticmethod(min)
    greatest = staticmethod(max)
    root = staticmethod(math.sqrt)


class _EventWindow:
    """The events [start, end) of one track and key."""

    __slots__ = ("_end", "_events", "_start", "count", "opening")

    def __init__(self, events: Events, opening: int, start: int, end: int) -> None:
        self._events = events
        self._start = start
        self._end = end
        self.opening = opening
        self.count = end - start

    @property
    def cents(self) -> int:
        return self._events.cents[self._end] - self._events.cents[self._start]

    @property
    def squares(self) -> int:
        return self._events.squares[self._end] - self._events.squares[self._start]

    @property
    def first(self) -> int:
        return self._events.times[self._start] if self.count else NEVER

    @property
    def last(self) -> int:
        return self._events.times[self._end - 1] if self.count else NEVER


def _pack(track: Track, keys: Mapping[Any, Events]) -> dict[str, NDArray[Any]]:
    """One row a key, then one row an event, key after key."""
    events = list(keys.values())
    arrays = {
        f"{track.name}.counts": np.array([len(each.times) for each in events], np.int64),
        f"{track.name}.times": _concatenate([np.array(each.times) for each in events]),
    }
    if track.amounts:
        arrays[f"{track.name}.cents"] = _concatenate([np.diff(each.cents) for each in events])
    pairs = [key if isinstance(key, tuple) else (key,) for key in keys]
    for part in range(2 if track.key == "pair" else 1):
        arrays[f"{track.name}.key{part}"] = _identifiers([pair[part] for pair in pairs])
    return arrays


def _unpack(track: Track, arrays: Mapping[str, NDArray[Any]]) -> dict[Any, Events]:
    keys = _strings_or_numbers(arrays[f"{track.name}.key0"])
    if track.key == "pair":
        keys = list(zip(keys, _strings_or_numbers(arrays[f"{track.name}.key1"]), strict=True))
    times = arrays[f"{track.name}.times"]
    cents = arrays[f"{track.name}.cents"].tolist() if track.amounts else []
    unpacked: dict[Any, Events] = {}
    end = 0
    for key, count in zip(keys, arrays[f"{track.name}.counts"].tolist(), strict=True):
        start, end = end, end + count
        held = array("q", times[start:end].tobytes())
        unpacked[key] = Events(amounts=track.amounts, times=held, cents=cents[start:end])
    return unpacked


def _pack_remembered(remembered: Iterable[_Remembered]) -> dict[str, NDArray[Any]]:
    rows = list(remembered)
    transactions = [row.transaction for row in rows]
    arrays = {
        f"remembered.{name}": _identifiers([getattr(each, name) for each in transactions])
        for name in ("id", "customer", "terminal")
    }
    for name in ("time", "cents"):
        values = [getattr(each, name) for each in transactions]
        arrays[f"remembered.{name}"] = np.array(values, np.int64)
    arrays["remembered.outsized"] = np.array([row.outsized for row in rows], np.bool_)
    arrays["remembered.kind"] = np.array([row.kind for row in rows], np.str_)
    return arrays


def _unpack_remembered(arrays: Mapping[str, NDArray[Any]]) -> Iterator[_Remembered]:
    names = ("id", "time", "customer", "terminal", "cents", "outsized", "kind")
    columns = (_strings_or_numbers(arrays[f"remembered.{name}"]) for name in names)
    for identifier, time, customer, terminal, cents, outsized, kind in zip(*columns, strict=True):
        transaction = Transaction(
            id=identifier, time=time, customer=customer, terminal=terminal, cents=cents
        )
        yield _Remembered(transaction, outsized, kind)


def _concatenate(parts: list[NDArray[np.int64]]) -> Ints:
    return np.concatenate([np.empty(0, np.int64), *parts])


def _identifiers(values: list[Identifier]) -> NDArray[Any]:
    if len({type(value) for value in values}) > 1:
        raise ValueError("identifiers must be all strings or all integers to be kept in an array")
    if values and isinstance(values[0], str):
        # As bytes: an array of str takes four bytes a character.
        return np.array([str(value).encode() for value in values])
    return np.array(values)


def _strings_or_numbers(values: NDArray[Any]) -> list[Any]:
    listed: list[Any] = values.tolist()
    return [value.decode() for value in listed] if values.dtype.kind == "S" else listed


# --- Skew between the two -------------------------------------------------------------------------


def compare_backfill_with_state(transactions: Transactions, *, delay: int = DELAY) -> list[str]:
    """Run a stream through both executors and compare every bit.

    Returns:
        The names of the features that differ anywhere; none if training and serving agree.
    """
    expected = backfill(transactions, delay=delay)
    found = np.array([*_replay(transactions, delay)], np.float32).reshape(expected.shape)
    differs = (expected.view(np.uint32) != found.view(np.uint32)).any(axis=0)
    return [name for name, differ in zip(FEATURE_NAMES, differs, strict=True) if differ]


def _replay(transactions: Transactions, delay: int) -> Iterator[NDArray[np.float32]]:
    """The features event by event, each label told on the second it becomes known."""
    state = FeatureState(delay=delay)
    rows, labels = list(_rows(transactions)), transactions.label.tolist()
    told = 0
    for transaction in rows:
        while rows[told].time + delay <= transaction.time:
            if labels[told] >= 0:
                state.label(told, labels[told] == 1)
            told += 1
        yield state.features(transaction)
        state.add(transaction)


def _rows(transactions: Transactions) -> Iterator[Transaction]:
    names = ("time", "customer", "terminal", "cents")
    columns = (getattr(transactions, name).tolist() for name in names)
    for row, (time, customer, terminal, cents) in enumerate(zip(*columns, strict=True)):
        yield Transaction(id=row, time=time, customer=customer, terminal=terminal, cents=cents)
