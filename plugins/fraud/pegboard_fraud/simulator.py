"""A seeded world of customers, terminals and fraud, to learn and to test on.

Customers live on a square, pay at terminals near by, and each has a habit: a mean amount, a spread
and a rate of transactions. Four kinds of fraud happen to them. The first three follow the published
description in Le Borgne, Siblini, Lebichot and Bontempi, Reproducible Machine Learning for Credit
Card Fraud Detection, Université libre de Bruxelles, 2022, chapter 3; the rates are theirs:

1. every amount above 220 is fraud;
2. a terminal is compromised for 28 days, and everything paid there is fraud;
3. a customer's card leaks for 14 days, and a third of its payments are fraud of a multiple of the
   usual amount;
4. (ours) a stolen card is tested: a burst of tiny payments within minutes, anywhere.

Habits and frauds drift, as they do: each customer's amounts grow or shrink, weekends are busier,
and the thieves of kind 3 become more modest as the months go by.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pegboard_fraud.transactions import Transactions

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

DAY = 86_400
START = 1_735_689_600
"""2025-01-01 00:00 UTC."""

SIDE, RADIUS = 100.0, 5.0
"""Side of the square, and how far a customer goes to pay, in the same unit."""

LARGE_CENTS = 22_000
COMPROMISE_DAYS, COMPROMISES_PER_TERMINAL_DAY = 28, 2 / 10_000
LEAK_DAYS, LEAKS_PER_CUSTOMER_DAY, LEAK_SHARE = 14, 3 / 5_000, 1 / 3
LEAK_FACTOR, LEAK_FACTOR_HALVING_DAYS = 5.0, 365.0
"""Kind 3 multiplies amounts by so much at first, and by half of it after so many days."""
TESTS_PER_CUSTOMER_DAY, TEST_SIZE, TEST_SECONDS = 2.5e-4, (5, 12), 600

WEEKEND_RATE = 1.3
"""Transactions on a Saturday or Sunday, against another day."""
YEARLY_DRIFT = 0.5
"""Standard deviation, over customers, of the yearly change of the logarithm of their amounts."""


@dataclass(frozen=True, kw_only=True)
class _World:
    """Who pays, how much, and where."""

    mean: Floats
    """Mean amount of each customer at the start, in currency units; the spread is half. (C,)"""
    drift: Floats
    """Yearly change of its logarithm. (C,)"""
    rate: Floats
    """Transactions on a working day. (C,)"""
    reach: Ints
    """Terminals in reach, customer after customer. (R,)"""
    reach_start: Ints
    """Where each customer's terminals begin in `reach`, and the end. (C + 1,)"""


@dataclass(frozen=True, kw_only=True)
class _Payments:
    """Columns (N,) of what happens, in no order."""

    time: Ints
    customer: Ints
    terminal: Ints
    cents: Ints
    scenario: NDArray[np.int8]


def simulate(
    *,
    seed: int,
    customers: int = 1_000,
    terminals: int = 2_000,
    days: int = 120,
    mean_rate: float = 1.5,
    start: int = START,
) -> Transactions:
    """Simulate the transactions of some days, every one labelled.

    Args:
        seed: The same seed gives the same bytes.
        customers: How many cards there are.
        terminals: How many places to pay at.
        days: How long it goes on.
        mean_rate: Mean transactions a day of a customer; each has one between 0 and twice that.
        start: Midnight at which it begins, seconds since 1970 UTC.

    Returns:
        Transactions sorted by time, about customers * days * mean_rate of them, with `scenario`
        the kind of fraud and 0 for what is genuine.
    """
    # One generator for each part, so that a change in one leaves the others as they are.
    world_seed, payment_seed, fraud_seed, test_seed = np.random.SeedSequence(seed).spawn(4)
    world = _make_world(np.random.default_rng(world_seed), customers, terminals, mean_rate)
    payments = _pay(np.random.default_rng(payment_seed), world, days, start)
    payments = _defraud(np.random.default_rng(fraud_seed), payments, customers, terminals, days)
    tests = _test_cards(np.random.default_rng(test_seed), customers, terminals, days)
    return _to_transactions([payments, tests], customers, terminals, start)


def _make_world(
    random: np.random.Generator, customers: int, terminals: int, mean_rate: float
) -> _World:
    homes = random.uniform(0, SIDE, (customers, 2))
    places = random.uniform(0, SIDE, (2, terminals))
    in_reach = [_in_reach(home, places) for home in homes]
    return _World(
        mean=random.uniform(5, 100, customers),
        drift=random.normal(0, YEARLY_DRIFT, customers),
        rate=random.uniform(0, 2 * mean_rate, customers),
        reach=np.concatenate(in_reach),
        reach_start=np.cumsum([0, *map(len, in_reach)]),
    )


def _in_reach(home: Floats, places: Floats) -> Ints:
    """The terminals within the radius of a home, or the nearest if there is none."""
    east, north = places - home[:, None]
    squares = east**2 + north**2
    near = np.flatnonzero(squares <= RADIUS**2)
    return near if len(near) else np.array([squares.argmin()])


def _pay(random: np.random.Generator, world: _World, days: int, start: int) -> _Payments:
    """What customers pay when nobody interferes."""
    weekend = (start // DAY + 3 + np.arange(days)) % 7 >= 5  # 1970-01-01 was a Thursday.
    counts = random.poisson(np.outer(world.rate, np.where(weekend, WEEKEND_RATE, 1.0)))  # (C, days)
    customer, day = (
        index.repeat(counts.ravel()) for index in np.indices(counts.shape).reshape(2, -1)
    )
    # Around noon; the few that fall out of their day are not made.
    second = random.normal(DAY / 2, 20_000, len(day)).astype(np.int64)
    mean = world.mean[customer] * np.exp(world.drift[customer] * day / 365)
    amount = random.normal(mean, mean / 2)
    amount = np.where(amount > 0, amount, random.uniform(0, 2 * mean))
    made = (second >= 0) & (second < DAY)
    first, end = world.reach_start[customer], world.reach_start[customer + 1]
    terminal = world.reach[first + (random.random(len(day)) * (end - first)).astype(np.int64)]
    return _Payments(
        time=(day * DAY + second)[made],
        customer=customer[made],
        terminal=terminal[made],
        cents=_to_cents(amount)[made],
        scenario=np.zeros(int(made.sum()), np.int8),
    )


def _to_cents(amount: Floats) -> Ints:
    return np.maximum(np.rint(amount * 100), 1).astype(np.int64)


def _defraud(
    random: np.random.Generator, payments: _Payments, customers: int, terminals: int, days: int
) -> _Payments:
    """Kinds 1 to 3, in this order: where two meet, the later one says why."""
    day = payments.time // DAY
    compromises = _spells(random, terminals, days, COMPROMISES_PER_TERMINAL_DAY, COMPROMISE_DAYS)
    leaks = _spells(random, customers, days, LEAKS_PER_CUSTOMER_DAY, LEAK_DAYS)
    compromised = compromises[payments.terminal, day]
    leaked = leaks[payments.customer, day] & (random.random(len(day)) < LEAK_SHARE)
    factor = LEAK_FACTOR * 0.5 ** (day / LEAK_FACTOR_HALVING_DAYS)
    scenario = np.select([leaked, compromised, payments.cents > LARGE_CENTS], [3, 2, 1], 0)
    cents = np.where(leaked, np.rint(payments.cents * factor).astype(np.int64), payments.cents)
    return replace(payments, cents=cents, scenario=scenario.astype(np.int8))


def _spells(
    random: np.random.Generator, members: int, days: int, daily_rate: float, length: int
) -> NDArray[np.bool_]:
    """Strike members at random for `length` days; tells who is struck on which day, (M, days)."""
    begun = random.random((members, days)) < daily_rate
    total = np.cumsum(np.pad(begun, ((0, 0), (length, 0))), axis=1)
    return total[:, length:] > total[:, :days]


def _test_cards(
    random: np.random.Generator, customers: int, terminals: int, days: int
) -> _Payments:
    """Kind 4: bursts on cards drawn at random, at one terminal each, wherever it is."""
    bursts = random.poisson(TESTS_PER_CUSTOMER_DAY * customers * days)
    size = random.integers(*TEST_SIZE, bursts, endpoint=True)
    card, place = random.integers(customers, size=bursts), random.integers(terminals, size=bursts)
    begin = random.integers(days * DAY - TEST_SECONDS, size=bursts)
    count = int(size.sum())
    return _Payments(
        time=begin.repeat(size) + random.integers(TEST_SECONDS, size=count),
        customer=card.repeat(size),
        terminal=place.repeat(size),
        cents=random.integers(50, 500, size=count),
        scenario=np.full(count, 4, np.int8),
    )


def _to_transactions(
    parts: list[_Payments], customers: int, terminals: int, start: int
) -> Transactions:
    columns = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("time", "customer", "terminal", "cents", "scenario")
    }
    order = np.argsort(columns["time"], kind="stable")
    columns = {name: column[order] for name, column in columns.items()}
    return Transactions(
        id=_names("t", len(order)),
        time=columns["time"] + start,
        customer=columns["customer"],
        terminal=columns["terminal"],
        cents=columns["cents"],
        label=(columns["scenario"] > 0).astype(np.int8),
        customers=_names("c", customers),
        terminals=_names("m", terminals),
        scenario=columns["scenario"],
    )


def _names(prefix: str, count: int) -> NDArray[np.str_]:
    # As many letters as are needed: numpy would take 21 for any integer.
    return np.char.add(prefix, np.arange(count).astype(f"U{len(str(count))}"))
