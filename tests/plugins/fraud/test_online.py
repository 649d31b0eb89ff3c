from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
import pytest

from pegboard.errors import PegboardError, RequestError, SettingsError
from pegboard.progress import SilentProgress
from pegboard.project import Project, open_project
from pegboard_fraud import online as module
from pegboard_fraud.features import DAY, FEATURE_NAMES, FeatureState, Transaction
from pegboard_fraud.identifiers import load_identifiers
from pegboard_fraud.materialize import STATE, materialize
from pegboard_fraud.online import (
    LOG,
    SNAPSHOT,
    LocalState,
    Look,
    Memory,
    Policy,
    open_state,
    write_snapshot,
)
from pegboard_fraud.settings import FraudServe, FraudSettings
from pegboard_fraud.simulator import simulate

APPROVE = {"outcome": "approve", "score": 0.25}
POLICY = Policy(delay=7 * DAY, late=7 * DAY, future=300, assume_genuine=True, clock="transactions")
KILLED = replace(POLICY, future=DAY)
"""Labels that come shortly before their transaction are no mistake."""
T = TypeVar("T")


def stream(days: int = 60, customers: int = 30, seed: int = 3) -> list[Transaction]:
    """A simulated stream with the identifiers a server would give."""
    simulated = simulate(seed=seed, customers=customers, terminals=12, days=days, mean_rate=2.0)
    names = ("id", "time", "customer", "terminal", "cents")
    columns = (getattr(simulated, name).tolist() for name in names)
    return [
        Transaction(id=f"i{i}", time=when, customer=f"c{c}", terminal=f"t{t}", cents=cents)
        for i, when, c, t, cents in zip(*columns, strict=True)
    ]


ROWS = stream()


def with_state(
    folder: Path,
    use: Callable[[LocalState], Awaitable[T]],
    policy: Policy = POLICY,
    *,
    sync: bool = False,
) -> T:
    """What `use` gives for a state that is open meanwhile."""

    async def run() -> T:
        state = LocalState(policy, folder, sync=sync)
        await state.open()
        try:
            return await use(state)
        finally:
            await state.close()

    return asyncio.run(run())


async def decide(state: LocalState, rows: list[Transaction]) -> None:
    for row in rows:
        await state.look(row)
        await state.record(row, APPROVE)


async def answers(state: LocalState, rows: list[Transaction]) -> Any:
    return np.stack([(await state.look(row)).features for row in rows])


def asked(after: list[Transaction] = ROWS) -> list[Transaction]:
    """One transaction of each customer, eight days after the others: labels have become known."""
    now = max(row.time for row in after) + 8 * DAY
    return [
        Transaction(id=f"next {n}", time=now, customer=f"c{n}", terminal=f"t{n % 12}", cents=5000)
        for n in range(30)
    ]


def value(look: Look, name: str) -> float:
    assert look.features is not None
    return float(look.features[FEATURE_NAMES.index(name)])


# --- A stream and its features --------------------------------------------------------------------


def test_a_live_stream_sees_the_features_that_training_saw(tmp_path: Path) -> None:
    rows, expected = ROWS[:800], FeatureState()

    async def use(state: LocalState) -> None:
        for row in rows:
            look = await state.look(row)
            assert (look.features == expected.features(row)).all()
            await state.record(row, APPROVE)
            expected.add(row)
            expected.label(row.id, False)

    with_state(tmp_path, use)


def test_looking_changes_nothing(tmp_path: Path) -> None:
    async def use(state: LocalState) -> None:
        await decide(state, ROWS[:100])
        before = await answers(state, asked())
        assert (await answers(state, asked()) == before).all()
        assert state.figures()["transactions"] == 100

    with_state(tmp_path, use)


# --- Idempotency ----------------------------------------------------------------------------------


def test_a_transaction_that_comes_again_gets_the_first_decision(tmp_path: Path) -> None:
    async def use(state: LocalState) -> None:
        await decide(state, ROWS[:20])
        before = await answers(state, asked())
        look = await state.look(ROWS[7])
        assert look.earlier == APPROVE
        assert look.features is None
        assert await state.record(ROWS[7], {"outcome": "decline"}) == APPROVE
        assert (await answers(state, asked()) == before).all()

    with_state(tmp_path, use)
    with_state(tmp_path, use_again)


async def use_again(state: LocalState) -> None:
    assert (await state.look(ROWS[7])).earlier == APPROVE


@pytest.mark.parametrize("sync", [False, True])
def test_two_that_record_the_same_at_once_get_one_decision(tmp_path: Path, sync: bool) -> None:
    async def use(state: LocalState) -> None:
        decisions = [{"outcome": "approve", "by": n} for n in range(8)]
        standing = await asyncio.gather(*(state.record(ROWS[0], each) for each in decisions))
        assert standing == [decisions[0]] * 8
        assert (state.figures()["events"], state.figures()["unwritten_decisions"]) == (1, 0)

    with_state(tmp_path, use, sync=sync)


@pytest.mark.parametrize("sync", [False, True])
def test_one_who_gives_up_does_not_take_the_decision_from_another(
    tmp_path: Path, sync: bool
) -> None:
    async def use(state: LocalState) -> None:
        first = asyncio.create_task(state.record(ROWS[0], APPROVE))
        await asyncio.sleep(0)
        second = asyncio.create_task(state.record(ROWS[0], {"outcome": "decline"}))
        await asyncio.sleep(0)
        first.cancel()
        assert await second == APPROVE
        assert (await state.look(ROWS[0])).earlier == APPROVE

    with_state(tmp_path, use, sync=sync)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"time": 1}, "time"),
        ({"customer": "other"}, "customer"),
        ({"terminal": "other"}, "terminal"),
        ({"cents": 1}, "amount"),
    ],
)
def test_an_id_with_other_content_is_refused(
    tmp_path: Path, change: dict[str, Any], field: str
) -> None:
    if field == "time":
        change = {"time": ROWS[0].time + 1}
    other = replace(ROWS[0], **change)

    async def use(state: LocalState) -> None:
        pending = asyncio.create_task(state.record(ROWS[0], APPROVE))
        await asyncio.sleep(0)
        for ask in (state.record(other, APPROVE), pending, state.look(other)):
            if ask is pending:
                await ask
                continue
            with pytest.raises(RequestError, match="sent before with other content") as caught:
                await ask
            assert caught.value.where == field
            assert "other" not in str(caught.value).replace("other content", "")

    with_state(tmp_path, use)


# --- Late, unordered and future transactions ------------------------------------------------------


def test_a_late_transaction_is_scored_at_its_own_time_and_put_in_its_place(tmp_path: Path) -> None:
    ordered = FeatureState()
    for row in ROWS[:300]:
        ordered.add(row)
        ordered.label(row.id, False)
    late = ROWS[250]
    without = FeatureState()
    for row in ROWS[:250]:
        without.add(row)
        without.label(row.id, False)

    async def use(state: LocalState) -> None:
        await decide(state, [row for row in ROWS[:300] if row is not late])
        look = await state.look(late)
        assert (
            value(look, "customer_count_30d")
            == without.features(late)[FEATURE_NAMES.index("customer_count_30d")]
        )
        await state.record(late, APPROVE)
        columns = [FEATURE_NAMES.index(n) for n in ("customer_count_7d", "customer_mean_30d")]
        expected = np.stack([ordered.features(row) for row in ROWS[301:340]])[:, columns]
        assert ((await answers(state, ROWS[301:340]))[:, columns] == expected).all()

    with_state(tmp_path, use)


def test_a_transaction_that_is_too_late_is_refused_but_not_one_that_is_known(
    tmp_path: Path,
) -> None:
    first, last = ROWS[0], replace(ROWS[-1], time=ROWS[0].time + 7 * DAY + 1)

    async def use(state: LocalState) -> None:
        await decide(state, [first, last])
        with pytest.raises(RequestError, match="more than 7 days late") as caught:
            await state.look(replace(first, id="another"))
        assert caught.value.where == "time"
        assert (await state.look(first)).earlier == APPROVE
        assert (
            await state.look(replace(first, id="new", time=first.time + 1))
        ).features is not None

    with_state(tmp_path, use)


def test_the_system_clock_refuses_the_future_and_the_stream_clock_cannot(tmp_path: Path) -> None:
    now = int(time.time())

    async def use(state: LocalState) -> None:
        assert (await state.look(replace(ROWS[0], time=now + 200))).features is not None
        with pytest.raises(RequestError, match="300 seconds ahead of the clock"):
            await state.look(replace(ROWS[0], time=now + 400))
        with pytest.raises(RequestError, match="7 days late"):
            await state.look(replace(ROWS[0], time=now - 8 * DAY))

    with_state(tmp_path / "system", use, replace(POLICY, clock="system"))

    async def replay(state: LocalState) -> None:
        await decide(state, [ROWS[0], replace(ROWS[1], time=ROWS[0].time + 30 * DAY)])

    with_state(tmp_path / "replay", replay)


@pytest.mark.parametrize(
    ("field", "number"),
    [("cents", -1), ("cents", 10**13 + 1), ("cents", 2**70), ("time", -1), ("time", 2**70)],
)
def test_a_number_that_sums_or_files_cannot_hold_is_refused(
    tmp_path: Path, field: str, number: int
) -> None:
    change: dict[str, Any] = {field: number}

    async def use(state: LocalState) -> None:
        for ask in (state.look, lambda row: state.record(row, APPROVE)):
            with pytest.raises(RequestError, match=r"too large|between 1970") as caught:
                await ask(replace(ROWS[0], **change))
            assert str(number) not in str(caught.value)
        assert state.figures()["events"] == 0

    with_state(tmp_path, use)


# --- Labels ---------------------------------------------------------------------------------------


def label_stream() -> tuple[Transaction, Transaction]:
    """A transaction, and one at the same terminal when its label has become known."""
    return ROWS[0], replace(ROWS[0], id="later", time=ROWS[0].time + 7 * DAY, customer="somebody")


@pytest.mark.parametrize("assume", [True, False])
def test_feedback_corrects_what_was_assumed(tmp_path: Path, assume: bool) -> None:
    first, later = label_stream()
    since = 7 if assume else 97

    async def use(state: LocalState) -> None:
        await state.record(first, APPROVE)
        assert value(await state.look(later), "terminal_days_since_genuine") == since
        for told in (True, False):
            assert await state.label(str(first.id), told)
            assert value(await state.look(later), "terminal_fraud_share_7d") == told
        assert value(await state.look(later), "terminal_days_since_genuine") == 7

    with_state(tmp_path, use, replace(POLICY, assume_genuine=assume))


def test_a_label_counts_only_when_its_delay_is_over(tmp_path: Path) -> None:
    first, later = label_stream()

    async def use(state: LocalState) -> None:
        await state.record(first, APPROVE)
        await state.label(str(first.id), True)
        early = replace(later, time=later.time - 1)
        assert value(await state.look(early), "terminal_frauds_7d") == 0
        assert value(await state.look(later), "terminal_frauds_7d") == 1

    with_state(tmp_path, use)


def test_a_label_waits_for_its_transaction_even_through_a_restart(tmp_path: Path) -> None:
    first, later = label_stream()

    async def tell(state: LocalState) -> None:
        assert not await state.label(str(first.id), True)
        assert state.figures()["waiting_labels"] == 1

    async def use(state: LocalState) -> None:
        assert state.figures()["waiting_labels"] == 1
        await state.record(first, APPROVE)
        assert state.figures()["waiting_labels"] == 0
        assert value(await state.look(later), "terminal_frauds_7d") == 1

    with_state(tmp_path, tell)
    with_state(tmp_path, use)


@pytest.mark.parametrize(("seconds", "frauds"), [(300, 1), (301, 0)])
def test_a_label_told_before_its_transaction_happened_is_no_label(
    tmp_path: Path, seconds: int, frauds: int
) -> None:
    first, later = label_stream()
    moved = replace(first, id="moved", time=first.time + seconds)

    async def use(state: LocalState) -> None:
        await state.record(first, APPROVE)
        await state.label("moved", True)
        await state.record(moved, APPROVE)
        asked_then = replace(later, time=later.time + DAY)
        assert value(await state.look(asked_then), "terminal_frauds_30d") == frauds

    with_state(tmp_path, use)


def test_a_label_does_not_wait_longer_than_its_transaction_may_come(tmp_path: Path) -> None:
    async def use(state: LocalState) -> None:
        await state.record(ROWS[0], APPROVE)
        await state.label("never comes", True)
        for days, waiting in ((7, 1), (8, 0)):
            moved = replace(ROWS[1], id=f"{days}", time=ROWS[0].time + days * DAY)
            await state.record(moved, APPROVE)
            await state.tick()
            assert state.figures()["waiting_labels"] == waiting

    with_state(tmp_path, use)


# --- Restart --------------------------------------------------------------------------------------


def test_a_restart_gives_the_same_bits_from_log_and_from_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SNAPSHOT_EVERY", 500)

    async def before(state: LocalState) -> Any:
        await decide(state, ROWS[:600])
        await state.label(str(ROWS[3].id), True)
        await state.label("waits", True)
        await state.tick()
        assert state.figures()["events_since_snapshot"] == 0
        await decide(state, ROWS[600:700])
        await state.label(str(ROWS[650].id), True)
        return await answers(state, asked(ROWS[:700]))

    async def after(state: LocalState) -> Any:
        assert state.figures()["waiting_labels"] == 1
        assert state.figures()["events"] == 703
        assert (await state.look(ROWS[10])).earlier == APPROVE
        return await answers(state, asked(ROWS[:700]))

    expected = with_state(tmp_path, before)
    assert (expected[:, FEATURE_NAMES.index("terminal_frauds_30d")] > 0).any()
    assert (tmp_path / SNAPSHOT).exists()
    assert (with_state(tmp_path, after) == expected).all()
    (tmp_path / SNAPSHOT).unlink()
    assert (with_state(tmp_path, after) == expected).all()


def test_old_events_leave_memory_and_log_once_a_snapshot_holds_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SNAPSHOT_EVERY", 1)
    old, year = ROWS[:300], 365 * DAY
    young = [replace(row, id=f"y{row.id}", time=row.time + year) for row in ROWS[:100]]

    async def use(state: LocalState) -> Any:
        await decide(state, old)
        await decide(state, young[:1])
        await state.tick()
        assert state.figures()["transactions"] == 1
        # Each commit drops some, so that none takes long.
        await decide(state, young[1:])
        await state.tick()
        assert (await state.look(young[5])).earlier == APPROVE
        return await answers(state, asked(young))

    expected = with_state(tmp_path, use)
    events = sqlite3.connect(tmp_path / LOG)
    assert events.execute("SELECT count(*), min(sequence) FROM events").fetchone() == (100, 301)
    events.close()

    async def again(state: LocalState) -> Any:
        assert state.figures()["events"] == 400
        return await answers(state, asked(young))

    assert (with_state(tmp_path, again) == expected).all()


def test_numbers_of_events_are_not_used_again_when_the_log_lost_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SNAPSHOT_EVERY", 1)

    async def use(state: LocalState) -> None:
        await decide(state, ROWS[:10])
        await state.tick()

    with_state(tmp_path, use)
    events = sqlite3.connect(tmp_path / LOG)
    events.execute("DELETE FROM events WHERE sequence > 5")
    events.commit()
    events.close()

    async def again(state: LocalState) -> None:
        assert state.figures()["events"] == 10
        await decide(state, ROWS[10:11])
        assert state.figures()["events"] == 11

    with_state(tmp_path, again)


def test_a_snapshot_that_is_given_up_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SNAPSHOT_EVERY", 1)

    def snapshots() -> list[psutil.Process]:
        children = psutil.Process().children()
        return [child for child in children if str(tmp_path) in child.cmdline()]

    async def use(state: LocalState) -> None:
        await decide(state, ROWS[:5])
        ticking = asyncio.create_task(state.tick())
        while not snapshots():
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)  # It takes longer to start.
        ticking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ticking
        assert not snapshots()

    with_state(tmp_path, use)
    assert not (tmp_path / SNAPSHOT).exists()


@pytest.mark.parametrize("at_once", [1, 5])
@pytest.mark.parametrize("sync", [False, True])
def test_what_was_appended_moves_into_the_file_while_decisions_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: bool, at_once: int
) -> None:
    monkeypatch.setattr(module, "CHECKPOINT_EVERY", 7)
    threads: list[bool] = []
    checkpoint = module.EventLog.checkpoint

    def noted(log: module.EventLog) -> None:
        threads.append(threading.current_thread() is not threading.main_thread())
        checkpoint(log)

    monkeypatch.setattr(module.EventLog, "checkpoint", noted)

    async def use(state: LocalState) -> Any:
        for first in range(0, 200, at_once):
            rows = ROWS[first : first + at_once]
            await asyncio.gather(*(state.record(row, APPROVE) for row in rows))
        # Without the second file, as it would be on a disk that lost nothing but that.
        shutil.copy(tmp_path / LOG, tmp_path / "copy")
        assert state.figures()["events"] == 200
        return await answers(state, asked())

    expected = with_state(tmp_path, use, sync=sync)
    with closing(sqlite3.connect(tmp_path / "copy")) as copy:
        (moved,) = copy.execute("SELECT count(*) FROM events").fetchone()
    assert 180 <= moved < 200
    assert len(threads) >= 15
    assert all(threads)
    assert (with_state(tmp_path, lambda state: answers(state, asked())) == expected).all()


@pytest.mark.slow
@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("seconds", [0.3, 0.8, 1.5])
def test_a_killed_server_comes_back_with_the_same_bits_and_all_it_acknowledged(
    tmp_path: Path, seconds: float, sync: bool
) -> None:
    script = Path(__file__)
    told = tmp_path / "acknowledged"
    with told.open("wb") as stream:
        child = subprocess.Popen(
            [sys.executable, script, tmp_path / "state", str(sync)],
            stdout=stream,
            stderr=subprocess.PIPE,
        )
        while told.stat().st_size == 0 and child.poll() is None:
            time.sleep(0.01)
        time.sleep(seconds)
        child.kill()
        _, said = child.communicate()
    assert child.returncode == -signal.SIGKILL, said.decode()
    # The last line may be cut.
    acknowledged = [json.loads(line) for line in told.read_text().split("\n")[:-1]]
    assert len(acknowledged) > 100

    async def use(state: LocalState) -> tuple[Any, list[Any]]:
        by_id = {row.id: row for row in ROWS}
        for kind, identifier, answer in acknowledged:
            if kind == "decision":
                assert (await state.look(by_id[identifier])).earlier == answer
        held = [(each.sequence, each.event) for each in logged(tmp_path / "state")]
        return await answers(state, asked()), held

    found, held = with_state(tmp_path / "state", use, KILLED)
    labels = [event for _, event in held if isinstance(event, module.Told)]
    assert {(each.id, each.is_fraud) for each in labels} >= {
        (identifier, answer) for kind, identifier, answer in acknowledged if kind == "label"
    }
    undisturbed = FeatureState()
    waiting: dict[str, bool] = {}
    waited = 0
    for _, event in held:
        if isinstance(event, module.Told):
            if not undisturbed.label(event.id, event.is_fraud):
                waiting[event.id] = event.is_fraud
                waited += 1
            continue
        undisturbed.add(event.transaction)
        undisturbed.label(event.transaction.id, waiting.pop(str(event.transaction.id), False))
    assert waited > 0
    assert (found == np.stack([undisturbed.features(row) for row in asked()])).all()


def logged(folder: Path) -> Iterator[Any]:
    log = module.EventLog(folder / LOG, sync=False)
    # Everything, whatever a snapshot holds: the undisturbed state starts from nothing.
    for sequence, event in log.read(0):
        yield _Logged(sequence, event)
    log.close()


class _Logged:
    def __init__(self, sequence: int, event: Any) -> None:
        self.sequence, self.event = sequence, event


async def load(folder: Path, sync: bool) -> None:
    """Decide and label without end, and say what was acknowledged; made to be killed."""
    module.SNAPSHOT_EVERY, module.CHECKPOINT_EVERY = 150, 40
    state, random_ = LocalState(KILLED, folder, sync=sync), random.Random(1)
    await state.open()

    async def one(place: int) -> None:
        row = ROWS[place]
        decision = await state.record(row, {"outcome": "approve", "score": random_.random()})
        os.write(1, (json.dumps(["decision", row.id, decision]) + "\n").encode())
        if random_.random() < 0.3:
            near = range(max(0, place - 100), min(place + 10, len(ROWS)))
            which, is_fraud = ROWS[random_.choice(near)].id, random_.random() < 0.5
            await state.label(str(which), is_fraud)
            os.write(1, (json.dumps(["label", which, is_fraud]) + "\n").encode())

    async def ticking() -> None:
        while True:
            await state.tick()
            await asyncio.sleep(0.01)

    ticker = asyncio.create_task(ticking())
    for first in range(0, len(ROWS), 5):
        await asyncio.gather(*map(one, range(first, min(first + 5, len(ROWS)))))
    await ticker


# --- What can go wrong ----------------------------------------------------------------------------


def test_a_second_process_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    code = (
        "import asyncio, sys, json; from pathlib import Path\n"
        "from pegboard.errors import PegboardError\n"
        "from pegboard_fraud.online import LocalState, Policy\n"
        "state = LocalState(Policy(**json.loads(sys.argv[2])), Path(sys.argv[1]), sync=False)\n"
        "try: asyncio.run(state.open())\n"
        "except PegboardError as error: print(error)\n"
    )

    async def use(state: LocalState) -> str:
        arguments = [sys.executable, "-c", code, tmp_path, json.dumps(POLICY.__dict__)]
        done = await asyncio.to_thread(
            subprocess.run, arguments, capture_output=True, text=True, check=True
        )
        return done.stdout

    said = with_state(tmp_path, use)
    assert said.startswith("another process works with this state")
    with_state(tmp_path, lambda state: decide(state, ROWS[:1]))


@pytest.mark.parametrize("sync", [False, True])
def test_a_removed_log_is_an_error_and_no_silent_loss(tmp_path: Path, sync: bool) -> None:
    async def use(state: LocalState) -> None:
        await decide(state, ROWS[:5])
        (tmp_path / LOG).unlink()
        before = await answers(state, asked())
        with pytest.raises(PegboardError, match=r"log of decisions was removed .*restart"):
            await state.record(ROWS[5], APPROVE)
        with pytest.raises(PegboardError, match="log of decisions was removed"):
            await state.label(str(ROWS[2].id), True)
        assert (await answers(state, asked()) == before).all()

    with_state(tmp_path, use, sync=sync)


@pytest.mark.parametrize("sync", [False, True])
def test_a_full_disk_is_an_error_until_there_is_space_again(tmp_path: Path, sync: bool) -> None:
    async def use(state: LocalState) -> None:
        await decide(state, ROWS[:5])
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        try:
            with pytest.raises(PegboardError):
                for row in ROWS[5:100]:
                    await state.record(row, APPROVE)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        remembered = state.figures()["transactions"]
        assert remembered == state.figures()["events"] < 100
        await decide(state, ROWS[:100])
        assert state.figures()["transactions"] == 100

    with_state(tmp_path, use, sync=sync)

    async def again(state: LocalState) -> None:
        assert state.figures()["transactions"] == 100

    with_state(tmp_path, again)


@pytest.mark.parametrize("sync", [False, True])
def test_a_closed_state_takes_nothing(tmp_path: Path, sync: bool) -> None:
    async def use() -> None:
        state = LocalState(POLICY, tmp_path, sync=sync)
        await state.open()
        waiting = [asyncio.create_task(state.record(row, APPROVE)) for row in ROWS[:50]]
        await asyncio.sleep(0)
        await state.close()
        await state.close()
        assert await asyncio.gather(*waiting) == [APPROVE] * 50
        with pytest.raises(PegboardError, match="the state is closed"):
            await state.record(ROWS[60], APPROVE)

    asyncio.run(use())


def test_a_damaged_snapshot_or_log_is_named_and_refused(tmp_path: Path) -> None:
    write_snapshot(tmp_path, Memory(POLICY))
    content = (tmp_path / SNAPSHOT).read_bytes()
    (tmp_path / SNAPSHOT).write_bytes(content[: len(content) // 2])
    with pytest.raises(PegboardError, match=r"snapshot cannot be read .*snapshot\.npz"):
        with_state(tmp_path, use_again)
    (tmp_path / SNAPSHOT).unlink()
    (tmp_path / LOG).write_bytes(b"no database" * 1000)
    with pytest.raises(PegboardError, match="log of decisions cannot be read"):
        with_state(tmp_path, use_again)
    (tmp_path / LOG).unlink()
    with_state(tmp_path, lambda state: decide(state, ROWS[:1]))  # The folder was let go of.


def test_a_state_for_another_delay_is_refused(tmp_path: Path) -> None:
    write_snapshot(tmp_path, Memory(POLICY))
    with pytest.raises(PegboardError, match="labels known after 7 days, not 3"):
        with_state(tmp_path, use_again, replace(POLICY, delay=3 * DAY))


@pytest.mark.parametrize("where", ["postgres://host", "locally", ""])
def test_a_state_of_no_kind_is_refused(tmp_path: Path, where: str) -> None:
    with pytest.raises(SettingsError, match="no such state"):
        open_state(FraudSettings(serve=FraudServe(state=where)), tmp_path)


def test_the_settings_make_the_policy(tmp_path: Path) -> None:
    serve = FraudServe(late_days=2, future_seconds=5, assume_genuine=False, clock="transactions")
    expected = Policy(
        delay=7 * DAY, late=2 * DAY, future=5, assume_genuine=False, clock="transactions"
    )
    assert Policy.of(FraudSettings(serve=serve)) == expected
    assert isinstance(open_state(FraudSettings(serve=serve), tmp_path), LocalState)


# --- A new server knows the past ------------------------------------------------------------------


def test_a_materialized_state_answers_as_one_that_lived_through_it(
    fraud_project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEGBOARD_IDENTIFIER_KEY", "k" * 32)
    project = open_project(
        fraud_project.folder, [*fraud_project.overrides, "serve.clock=transactions"]
    )
    settings = project.settings
    assert isinstance(settings, FraudSettings)
    count = materialize(project, SilentProgress())
    from pegboard_fraud.data import column_names, source
    from pegboard_fraud.transactions import read_transactions

    history = read_transactions(source(settings), column_names(settings.data))
    assert count == len(history)
    hashed = load_identifiers(settings).hashed
    expected = FeatureState()
    names = ("id", "time", "customer", "terminal", "cents", "label")
    columns = (getattr(history, name).tolist() for name in names)
    for identifier, when, customer, terminal, cents, label in zip(*columns, strict=True):
        each = Transaction(
            id=hashed(identifier),
            time=when,
            customer=hashed(str(history.customers[customer])),
            terminal=hashed(str(history.terminals[terminal])),
            cents=cents,
        )
        expected.add(each)
        expected.label(each.id, label == 1)
    known, new = each, replace(each, id="new", time=each.time + 8 * DAY)

    async def use(state: LocalState) -> None:
        assert state.figures()["transactions"] == count
        assert ((await state.look(new)).features == expected.features(new)).all()
        with pytest.raises(RequestError, match="part of the history and was never decided"):
            await state.look(known)
        await state.record(new, APPROVE)

    folder = settings.serve.folder / STATE
    with_state(folder, use, Policy.of(settings))
    with pytest.raises(PegboardError, match="the state is not empty"):
        materialize(project, SilentProgress())


if __name__ == "__main__":
    asyncio.run(load(Path(sys.argv[1]), sys.argv[2] == "True"))
