"""The features of a card transaction: one definition, two executors that agree bit for bit.

`FEATURES` names each feature and its measure. A measure is written once, as arithmetic on the answers
to a few questions about the past (`View`): how many events of a track since a moment, how many cents,
when was the first, when the last. `backfill` answers them for a whole stream at once, from sorted
columns; `FeatureState` answers them for one transaction, from what it has been told so far, and is
what a live decision uses. Counts and sums are integers, divisions happen in double precision and the
cast to single precision comes last, so that both give the same bits.

The clock has two rules. A window (t - w, t] holds the transaction itself and, of the same second, only
what came before it in the stream. Whether a transaction of time s was fraud is known from s + delay
on, so a window over labels is (t - delay - w, t - delay].
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    # Only for annotations: a live decision must not need polars.
    from pegboard_fraud.transactions import Transactions

Ints = NDArray[np.int64]

HOUR, DAY = 3_600, 86_400
WEEK, MONTH = 7 * DAY, 30 * DAY

DELAY = WEEK
"""Default time until it is known whether a transaction was fraud, in seconds."""

MEMORY = 90 * DAY
"""How far before its end any window reaches back, in seconds."""

NEVER = -(2**60)
"""Time of an event that did not happen."""

_CAP = 2**26
"""Amounts are capped here, in cents, before they are squared: sums of squares fit 64 bits."""


# --- Tracks: the events that features look at -----------------------------------------------------


@dataclass(frozen=True)
class Track:
    """The past events of one kind that share the transaction's customer, terminal or both."""

    key: str
    """customer, terminal or pair (both)."""
    of: str = "all"
    """all, odd (amount far above the customer's habit), genuine, fraud, plain_fraud (not odd)."""
    delayed: bool = False
    """Whether it is made of labels, which are known a delay after the transaction."""


CUSTOMER = Track("customer")
CUSTOMER_ODD = Track("customer", "odd")
CUSTOMER_FRAUD = Track("customer", "fraud", delayed=True)
TERMINAL = Track("terminal")
TERMINAL_GENUINE = Track("terminal", "genuine", delayed=True)
TERMINAL_FRAUD = Track("terminal", "fraud", delayed=True)
TERMINAL_PLAIN_FRAUD = Track("terminal", "plain_fraud", delayed=True)
PAIR = Track("pair")

_EVENT_TRACKS = (CUSTOMER, TERMINAL, PAIR)
_LABEL_TRACKS = {
    "genuine": (TERMINAL_GENUINE,),
    "fraud": (CUSTOMER_FRAUD, TERMINAL_FRAUD),
    "plain_fraud": (CUSTOMER_FRAUD, TERMINAL_FRAUD, TERMINAL_PLAIN_FRAUD),
}


class View(Protocol):
    """What a measure may ask: numbers for one transaction, or arrays (N,) for all at once."""

    time: Any
    """Seconds since 1970."""
    cents: Any
    """Amount of the transaction."""
    delay: int
    """Seconds until a label is known."""

    def count(self, track: Track, since: Any) -> Any:
        """Past events of the track later than `since` (and, of labels, known by now)."""

    def cents_of(self, track: Track, since: Any) -> Any:
        """Sum of their amounts."""

    def squares_of(self, track: Track, since: Any) -> Any:
        """Sum of their squared amounts, capped."""

    def first(self, track: Track, since: Any) -> Any:
        """Time of the first of them, or NEVER."""

    def last(self, track: Track, since: Any) -> Any:
        """Time of the last of them, or NEVER."""

    def since(self, track: Track, window: int) -> Any:
        """The moment at which the window opens."""

    def ratio(self, numerator: Any, denominator: Any, otherwise: float) -> Any:
        """The quotient in double precision, `otherwise` where the denominator is 0."""

    def least(self, one: Any, other: Any) -> Any:
        """The smaller one."""

    def greatest(self, one: Any, other: Any) -> Any:
        """The greater one."""

    def root(self, value: Any) -> Any:
        """The square root."""


# --- Measures: how a number is made from a view ---------------------------------------------------


class Measure(Protocol):
    """One number of a transaction."""

    def __call__(self, view: View) -> Any:
        """Its value: a number, or an array (N,)."""


@dataclass(frozen=True, kw_only=True)
class Amount:
    """The amount in currency units."""

    def __call__(self, view: View) -> Any:
        return view.cents / 100


@dataclass(frozen=True, kw_only=True)
class HourOfDay:
    """The hour of the day in UTC, with fraction."""

    def __call__(self, view: View) -> Any:
        return view.time % DAY / HOUR


@dataclass(frozen=True, kw_only=True)
class DayOfWeek:
    """The day of the week in UTC, Monday 0."""

    def __call__(self, view: View) -> Any:
        return (view.time // DAY + 3) % 7  # 1970-01-01 was a Thursday.


@dataclass(frozen=True, kw_only=True)
class Count:
    """How many events of the track lie in the window, the transaction included where it is one."""

    track: Track
    window: int

    def __call__(self, view: View) -> Any:
        past = view.count(self.track, view.since(self.track, self.window))
        return past + 1 if self.track in _EVENT_TRACKS else past


@dataclass(frozen=True, kw_only=True)
class Mean:
    """The mean amount in the window, the transaction included, in currency units."""

    track: Track
    window: int

    def __call__(self, view: View) -> Any:
        since = view.since(self.track, self.window)
        cents = view.cents_of(self.track, since) + view.cents
        return view.ratio(cents, view.count(self.track, since) + 1, 0.0) / 100


@dataclass(frozen=True, kw_only=True)
class FraudShare:
    """The share of fraud among the known labels of the terminal, 0 where there is none."""

    window: int

    def __call__(self, view: View) -> Any:
        since = view.since(TERMINAL_FRAUD, self.window)
        frauds = view.count(TERMINAL_FRAUD, since)
        return view.ratio(frauds, frauds + view.count(TERMINAL_GENUINE, since), 0.0)


@dataclass(frozen=True, kw_only=True)
class HoursSinceLast:
    """Hours since the last event of the track, `window` at most."""

    track: Track
    window: int

    def __call__(self, view: View) -> Any:
        last = view.last(self.track, view.since(self.track, self.window))
        return view.least(view.time - last, self.window) / HOUR


@dataclass(frozen=True, kw_only=True)
class TimesHabit:
    """The amount as a multiple of the customer's mean amount before, 1 where there is none."""

    window: int

    def __call__(self, view: View) -> Any:
        since = view.since(CUSTOMER, self.window)
        count, cents = view.count(CUSTOMER, since), view.cents_of(CUSTOMER, since)
        return view.ratio(view.cents * count, cents, 1.0)


@dataclass(frozen=True, kw_only=True)
class HabitScore:
    """Standard deviations between the amount and the customer's mean before, within +-50."""

    window: int

    def __call__(self, view: View) -> Any:
        since = view.since(CUSTOMER, self.window)
        count = view.count(CUSTOMER, since)
        mean = view.ratio(view.cents_of(CUSTOMER, since), count, 0.0)
        square = view.ratio(view.squares_of(CUSTOMER, since), count, 0.0)
        # Two events say little about a spread: a tenth of the mean and one unit are always allowed.
        spread = view.root(view.greatest(square - mean * mean, 0.0)) + mean / 10 + 100
        score = view.ratio((view.cents - mean) * view.least(count, 1), spread, 0.0)
        return view.greatest(view.least(score, 50.0), -50.0)


@dataclass(frozen=True, kw_only=True)
class FraudRun:
    """How many frauds the terminal has had since its last genuine transaction, by known labels."""

    def __call__(self, view: View) -> Any:
        return view.count(TERMINAL_FRAUD, _run_start(view))


@dataclass(frozen=True, kw_only=True)
class FraudRunDays:
    """Days since the first fraud of that run, 90 where there is no run."""

    def __call__(self, view: View) -> Any:
        first = view.first(TERMINAL_FRAUD, _run_start(view))
        return view.least(view.time - first, MEMORY) / DAY


def _run_start(view: View) -> Any:
    memory = view.since(TERMINAL_GENUINE, MEMORY)
    return view.greatest(view.last(TERMINAL_GENUINE, memory), memory)


def is_odd(view: View) -> Any:
    """Whether the amount is more than three times what the customer used to pay."""
    since = view.since(CUSTOMER, MEMORY)
    return view.cents * view.count(CUSTOMER, since) > 3 * view.cents_of(CUSTOMER, since)


# --- The definition -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Feature:
    """One input of the model."""

    name: str
    """What it is called in the signature and in reason codes."""
    measure: Measure
    """How it is computed."""
    unit: str
    """Natural unit; the model's graph normalises."""
    group: str
    """What a reason code calls it and its like."""
    low: float
    """Smallest value expected."""
    high: float
    """Largest value expected; more is possible."""


def _feature(
    name: str, measure: Measure, unit: str, group: str, low: float, high: float
) -> Feature:
    return Feature(name=name, measure=measure, unit=unit, group=group, low=low, high=high)


def _velocity() -> Iterator[Feature]:
    for label, window in (("1h", HOUR), ("1d", DAY), ("7d", WEEK), ("30d", MONTH)):
        yield _feature(
            f"customer_count_{label}", Count(track=CUSTOMER, window=window),
            "transactions", "velocity", 1, 200,
        )  # fmt: skip
        yield _feature(
            f"customer_mean_{label}", Mean(track=CUSTOMER, window=window),
            "currency", "velocity", 0, 1000,
        )  # fmt: skip


def _terminal_risk() -> Iterator[Feature]:
    for label, window in (("1d", DAY), ("7d", WEEK), ("30d", MONTH)):
        yield _feature(
            f"terminal_fraud_count_{label}", Count(track=TERMINAL_FRAUD, window=window),
            "transactions", "terminal", 0, 50,
        )  # fmt: skip
        yield _feature(
            f"terminal_fraud_share_{label}", FraudShare(window=window), "share", "terminal", 0, 1
        )


FEATURES: tuple[Feature, ...] = (
    _feature("amount", Amount(), "currency", "amount", 0, 1000),
    _feature("times_habit_30d", TimesHabit(window=MONTH), "ratio", "habit", 0, 20),
    _feature("times_habit_90d", TimesHabit(window=MEMORY), "ratio", "habit", 0, 20),
    _feature("habit_score_90d", HabitScore(window=MEMORY), "deviations", "habit", -50, 50),
    _feature("odd_count_7d", Count(track=CUSTOMER_ODD, window=WEEK), "transactions", "habit", 0, 9),
    _feature("odd_count_14d", Count(track=CUSTOMER_ODD, window=2 * WEEK), "transactions", "habit", 0, 9),
    *_velocity(),
    _feature("hours_since_last", HoursSinceLast(track=CUSTOMER, window=MONTH), "hours", "velocity", 0, 720),
    _feature("customer_fraud_count_30d", Count(track=CUSTOMER_FRAUD, window=MONTH), "transactions", "customer", 0, 20),
    *_terminal_risk(),
    _feature("terminal_plain_fraud_count_30d", Count(track=TERMINAL_PLAIN_FRAUD, window=MONTH), "transactions", "terminal", 0, 50),
    _feature("terminal_fraud_run", FraudRun(), "transactions", "terminal", 0, 50),
    _feature("terminal_fraud_run_days", FraudRunDays(), "days", "terminal", 0, 90),
    _feature("terminal_count_7d", Count(track=TERMINAL, window=WEEK), "transactions", "terminal", 1, 500),
    _feature("terminal_hours_since_last", HoursSinceLast(track=TERMINAL, window=MONTH), "hours", "terminal", 0, 720),
    _feature("terminal_visits_90d", Count(track=PAIR, window=MEMORY), "transactions", "novelty", 1, 50),
    _feature("hour_of_day", HourOfDay(), "hours", "time", 0, 24),
    _feature("day_of_week", DayOfWeek(), "days", "time", 0, 6),
)  # fmt: skip
"""Every input of the model, in the order of its columns."""

FEATURE_NAMES: tuple[str, ...] = tuple(feature.name for feature in FEATURES)
FEATURE_UNITS: Mapping[str, str] = {feature.name: feature.unit for feature in FEATURES}
FEATURE_GROUPS: Mapping[str, str] = {feature.name: feature.group for feature in FEATURES}
FEATURE_RANGES: Mapping[str, tuple[float, float]] = {f.name: (f.low, f.high) for f in FEATURES}


# --- Executor 1: the whole stream at once ---------------------------------------------------------


def backfill(transactions: Transactions, *, delay: int = DELAY) -> NDArray[np.float32]:
    """The features of every transaction of a stream.

    Args:
        transactions: N transactions sorted by time.
        delay: Seconds until a label is known, at least 1.

    Returns:
        One row a transaction, one column a feature: (N, F).
    """
    features = np.empty((len(transactions), len(FEATURES)), np.float32)
    if len(transactions):
        view = _StreamView(transactions, delay)
        for column, feature in enumerate(FEATURES):
            features[:, column] = feature.measure(view)
    return features


class _StreamView:
    """Answers for every transaction of a stream: arrays (N,) in the order of the stream."""

    def __init__(self, transactions: Transactions, delay: int) -> None:
        self.time = transactions.time
        self.cents = transactions.cents
        self.delay = delay
        terminals = len(transactions.terminals)
        keys = {
            "customer": transactions.customer,
            "terminal": transactions.terminal,
            "pair": transactions.customer * terminals + transactions.terminal,
        }
        self._sorted = {name: _Sorted(key, self.time) for name, key in keys.items()}
        self._label = transactions.label
        self._flags: dict[str, NDArray[np.bool_]] = {}
        self._windows: dict[tuple[bool, int], Ints] = {}
        self._positions: dict[tuple[str, int], tuple[Ints, Ints]] = {}

    def since(self, track: Track, window: int) -> Ints:
        key = (track.delayed, window)
        if key not in self._windows:
            self._windows[key] = self.time - window - (self.delay if track.delayed else 0)
        return self._windows[key]

    def count(self, track: Track, since: Ints) -> Ints:
        return self._sum(track, since, 1)

    def cents_of(self, track: Track, since: Ints) -> Ints:
        return self._sum(track, since, self.cents)

    def squares_of(self, track: Track, since: Ints) -> Ints:
        return self._sum(track, since, np.minimum(self.cents, _CAP) ** 2)

    def first(self, track: Track, since: Ints) -> Ints:
        key = self._sorted[track.key]
        return key.first(self._flag(track.of), *self._bounds(track, since))

    def last(self, track: Track, since: Ints) -> Ints:
        key = self._sorted[track.key]
        return key.last(self._flag(track.of), *self._bounds(track, since))

    def ratio(self, numerator: Any, denominator: Any, otherwise: float) -> Any:
        numerator, denominator = np.asarray(numerator, float), np.asarray(denominator, float)
        result = np.full(len(self.time), otherwise)
        return np.divide(numerator, denominator, out=result, where=denominator != 0)

    least = staticmethod(np.minimum)
    greatest = staticmethod(np.maximum)
    root = staticmethod(np.sqrt)

    def _sum(self, track: Track, since: Ints, values: Ints | int) -> Ints:
        start, end = self._bounds(track, since)
        sums = self._sorted[track.key].running(np.where(self._flag(track.of), values, 0))
        return sums[end] - sums[start]

    def _bounds(self, track: Track, since: Ints) -> tuple[Ints, Ints]:
        """Positions [start, end) of the key's events that the window holds."""
        key = self._sorted[track.key]
        end = self._position(track.key, self.since(track, 0)) if track.delayed else key.rank
        return self._position(track.key, since), end

    def _position(self, key: str, moment: Ints) -> Ints:
        # The cache holds the moments too, so that their identity stays theirs.
        cached = (key, id(moment))
        if cached not in self._positions:
            self._positions[cached] = (moment, self._sorted[key].position(moment))
        return self._positions[cached][1]

    def _flag(self, of: str) -> NDArray[np.bool_]:
        if of not in self._flags:
            self._flags[of] = self._make_flag(of)
        return self._flags[of]

    def _make_flag(self, of: str) -> NDArray[np.bool_]:
        if of == "all":
            return np.ones(len(self.time), np.bool_)
        if of == "odd":
            return np.asarray(is_odd(self))
        if of == "plain_fraud":
            return (self._label == 1) & ~self._flag("odd")
        return self._label == (1 if of == "fraud" else 0)


class _Sorted:
    """The stream in the order of a key; events of equal key keep the order of the stream."""

    def __init__(self, key: Ints, time: Ints) -> None:
        self.order = np.argsort(key, kind="stable")
        self.time = time[self.order]
        self.rank = np.empty_like(self.order)
        """Position of each transaction in this order."""
        self.rank[self.order] = np.arange(len(key))
        self._start = int(time[0])
        self._length = int(time[-1]) - self._start
        # Key and time in one number: two seconds of room keep the keys apart.
        self._base = key[self.order] * (self._length + 2)
        self._moments = self._base + (self.time - self._start)

    def position(self, moment: Ints) -> Ints:
        """How many events lie before each transaction's key and, of its key, not after `moment`."""
        inside = np.clip(moment[self.order] - self._start, -1, self._length)
        # Asked in sorted order, which is kinder to the cache than the order of the stream.
        found = np.searchsorted(self._moments, self._base + inside, side="right")
        positions = np.empty_like(found)
        positions[self.order] = found
        return positions

    def running(self, values: Ints) -> Ints:
        """Sums of the first 0, 1, ... N values in this order; wraps around without harm. (N+1,)"""
        sums = np.zeros(len(values) + 1, np.int64)
        np.cumsum(values[self.order], out=sums[1:])
        return sums

    def last(self, flag: NDArray[np.bool_], start: Ints, end: Ints) -> Ints:
        """Time of the last flagged event at positions [start, end), or NEVER."""
        places = np.where(flag[self.order], np.arange(len(flag)), -1)
        found = np.concatenate(([-1], np.maximum.accumulate(places)))[end]
        return np.where(found >= start, self.time[found], NEVER)

    def first(self, flag: NDArray[np.bool_], start: Ints, end: Ints) -> Ints:
        """Time of the first flagged event at positions [start, end), or NEVER."""
        none = len(flag)
        places = np.where(flag[self.order], np.arange(none), none)
        found = np.append(np.minimum.accumulate(places[::-1])[::-1], none)[start]
        return np.where(found < end, self.time[np.minimum(found, none - 1)], NEVER)


# --- Executor 2: event by event -------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Transaction:
    """One card transaction, as a live decision sees it."""

    id: Hashable
    """Identifier, by which its label is told later."""
    time: int
    """Seconds since 1970 UTC."""
    customer: Hashable
    """Identifier of the customer, string or integer."""
    terminal: Hashable
    """Identifier of the terminal, string or integer."""
    cents: int
    """Amount in hundredths of the currency unit."""


class _Events:
    """The events of one track and one key, sorted by time, with running sums."""

    __slots__ = ("cents", "squares", "times")

    def __init__(self) -> None:
        self.times = array("q")
        self.cents = array("q", (0,))
        self.squares = array("q", (0,))

    def add(self, time: int, cents: int) -> None:
        place = bisect_right(self.times, time)
        self.times.insert(place, time)
        capped = min(cents, _CAP)
        for sums, value in ((self.cents, cents), (self.squares, capped * capped)):
            sums.insert(place + 1, sums[place] + value)
            for later in range(place + 2, len(sums)):  # Only for an event that comes late.
                sums[later] += value

    def remove(self, time: int) -> None:
        """Take back one event of this time; its amount is taken for that of any other of it."""
        place = bisect_right(self.times, time) - 1
        del self.times[place]
        for sums in (self.cents, self.squares):
            value = sums[place + 1] - sums[place]
            del sums[place + 1]
            for later in range(place + 1, len(sums)):
                sums[later] -= value

    def forget(self, before: int) -> None:
        """Drop what is older, once it is more than half: so each event is moved once on average."""
        gone = bisect_right(self.times, before)
        if 2 * gone > len(self.times):
            del self.times[:gone]
            self.cents = array("q", [total - self.cents[gone] for total in self.cents[gone:]])
            self.squares = array("q", [total - self.squares[gone] for total in self.squares[gone:]])


_NO_EVENTS = _Events()


class FeatureState:
    """What must be remembered of the past to answer for the next transaction.

    Args:
        delay: Seconds until a label is known, at least 1.
    """

    def __init__(self, *, delay: int = DELAY) -> None:
        self.delay = delay
        self._events: dict[Track, dict[Hashable, _Events]] = {
            track: {} for track in (*_EVENT_TRACKS, CUSTOMER_ODD, *_LABEL_TRACKS["plain_fraud"], TERMINAL_GENUINE)
        }
        self._open: dict[Hashable, tuple[Transaction, bool, str]] = {}

    def features(self, transaction: Transaction) -> NDArray[np.float32]:
        """The features of a transaction that is not added yet; changes nothing. (F,)"""
        view = _EventView(self._events, transaction, self.delay)
        return np.array([feature.measure(view) for feature in FEATURES], np.float64).astype(np.float32)

    def add(self, transaction: Transaction) -> None:
        """Remember a transaction; labels may follow."""
        view = _EventView(self._events, transaction, self.delay)
        odd = is_odd(view)
        for track in _EVENT_TRACKS + ((CUSTOMER_ODD,) if odd else ()):
            self._put(track, view.keys[track.key], transaction)
        self._open[transaction.id] = (transaction, odd, "")
        self._forget_open(transaction.time)

    def label(self, identifier: Hashable, is_fraud: bool) -> bool:
        """Remember whether a transaction was fraud; again to correct it.

        Returns:
            False if no transaction of that identifier is remembered: it is unknown, or too old to
            matter.
        """
        if identifier not in self._open:
            return False
        transaction, odd, before = self._open[identifier]
        now = ("fraud" if odd else "plain_fraud") if is_fraud else "genuine"
        if now != before:
            keys = _keys_of(transaction)
            for track in _LABEL_TRACKS.get(before, ()):
                self._events[track][keys[track.key]].remove(transaction.time)
            for track in _LABEL_TRACKS[now]:
                self._put(track, keys[track.key], transaction)
            self._open[identifier] = (transaction, odd, now)
        return True

    def _put(self, track: Track, key: Hashable, transaction: Transaction) -> None:
        events = self._events[track].get(key)
        if events is None:
            events = self._events[track][key] = _Events()
        events.add(transaction.time, transaction.cents)
        events.forget(transaction.time - self._horizon(track))

    def _horizon(self, track: Track) -> int:
        return MEMORY + 2 * self.delay

    def _forget_open(self, now: int) -> None:
        horizon = now - MEMORY - 2 * self.delay
        while self._open and (first := next(iter(self._open.values())))[0].time <= horizon:
            del self._open[first[0].id]


def _keys_of(transaction: Transaction) -> dict[str, Hashable]:
    return {
        "customer": transaction.customer,
        "terminal": transaction.terminal,
        "pair": (transaction.customer, transaction.terminal),
    }


class _EventView:
    """Answers for one transaction, from what is remembered."""

    def __init__(
        self,
        events: Mapping[Track, Mapping[Hashable, _Events]],
        transaction: Transaction,
        delay: int,
    ) -> None:
        self.time = transaction.time
        self.cents = transaction.cents
        self.delay = delay
        self.keys = _keys_of(transaction)
        self._events = events

    def since(self, track: Track, window: int) -> int:
        return self.time - window - (self.delay if track.delayed else 0)

    def count(self, track: Track, since: int) -> int:
        _, start, end = self._bounds(track, since)
        return end - start

    def cents_of(self, track: Track, since: int) -> int:
        events, start, end = self._bounds(track, since)
        return events.cents[end] - events.cents[start]

    def squares_of(self, track: Track, since: int) -> int:
        events, start, end = self._bounds(track, since)
        return events.squares[end] - events.squares[start]

    def first(self, track: Track, since: int) -> int:
        events, start, end = self._bounds(track, since)
        return events.times[start] if start < end else NEVER

    def last(self, track: Track, since: int) -> int:
        events, start, end = self._bounds(track, since)
        return events.times[end - 1] if start < end else NEVER

    def ratio(self, numerator: float, denominator: float, otherwise: float) -> float:
        return float(numerator) / float(denominator) if denominator else otherwise

    least = staticmethod(min)
    greatest = staticmethod(max)
    root = staticmethod(math.sqrt)

    def _bounds(self, track: Track, since: int) -> tuple[_Events, int, int]:
        events = self._events[track].get(self.keys[track.key], _NO_EVENTS)
        end = bisect_right(events.times, self.since(track, 0))
        return events, min(bisect_right(events.times, since), end), end


# --- Skew between the two -------------------------------------------------------------------------


def compare_backfill_with_state(transactions: Transactions, *, delay: int = DELAY) -> list[str]:
    """Run a stream through both executors and compare every bit.

    Returns:
        The names of the features that differ anywhere; none, if training and serving agree.
    """
    expected = backfill(transactions, delay=delay)
    found = np.stack([*_replay(transactions, delay)]) if len(transactions) else expected
    differs = (expected.view(np.uint32) != found.view(np.uint32)).any(axis=0)
    return [name for name, different in zip(FEATURE_NAMES, differs, strict=True) if different]


def _replay(transactions: Transactions, delay: int) -> Iterator[NDArray[np.float32]]:
    """The features event by event, every label told on the second it becomes known."""
    state, told = FeatureState(delay=delay), 0
    rows = [
        Transaction(id=row, time=time, customer=customer, terminal=terminal, cents=cents)
        for row, (time, customer, terminal, cents) in enumerate(
            zip(*(getattr(transactions, c).tolist() for c in ("time", "customer", "terminal", "cents")), strict=True)
        )
    ]
    labels = transactions.label.tolist()
    for transaction in rows:
        while rows[told].time + delay <= transaction.time:
            if labels[told] >= 0:
                state.label(told, labels[told] == 1)
            told += 1
        yield state.features(transaction)
        state.add(transaction)
