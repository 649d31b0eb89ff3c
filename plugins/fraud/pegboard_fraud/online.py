"""The online state: what live decisions remember, through restarts and kills.

`OnlineState` is what a decision asks. `LocalState` keeps the past in memory and every event in a
log; `pegboard_fraud.redis_state` shares it between servers. An event is on the disk before it
counts: memory is always what a replay of the log would give, so a killed server comes back with the
same bits. docs/state.md tells the policies.

`python -m pegboard_fraud.online FOLDER ...` makes a new snapshot from the last one and the log.
"""

from __future__ import annotations

import asyncio
import fcntl
import gc
import json
import os
import queue
import sqlite3
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pegboard.errors import PegboardError, RequestError, SettingsError
from pegboard.files import atomic_path, disk_is_full, no_space_for
from pegboard_fraud.features import DAY, FeatureState, Transaction, memory_of
from pegboard_fraud.settings import FraudSettings

SNAPSHOT_EVERY = 20_000
"""Events between two snapshots, a tenth of a memory that is larger: what a restart replays."""

CHECKPOINT_EVERY = 500
"""Events between two checkpoints of the log, which move what was appended into its file.

Few, so that what is appended overwrites what was moved: a file that grows is slower to sync.
"""

LARGEST_CENTS = 10**13
"""A larger amount is refused: sums of it would leave 64 bits."""

LATEST_SECOND = 32_503_680_000
"""Year 3000: a larger number counts milliseconds, not seconds."""

_NO_TIME = -1
"""Time while no transaction has been seen."""
_FORGET_AT_ONCE, _PRUNE_AT_ONCE = 200, 32


@dataclass(frozen=True, kw_only=True, eq=False)
class Look:
    """What the state tells about a transaction that is to be decided."""

    features: NDArray[np.float32] | None
    """Its features (F,); None if it was decided before."""
    earlier: Mapping[str, Any] | None
    """The decision recorded for this id; None if there is none."""


class OnlineState(Protocol):
    """The past of a stream of transactions, and the decisions made about them."""

    async def open(self) -> None:
        """Restore what was remembered; before the first use."""

    async def look(self, transaction: Transaction) -> Look:
        """Compute features, or find the decision made before; changes nothing.

        Raises:
            RequestError: The id was used for another transaction, or the time is out of bounds.
        """

    async def record(
        self, transaction: Transaction, decision: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Remember a transaction and its decision, durably.

        Returns:
            The decision that stands: the given one, or the one recorded for this id before.
        """

    async def label(self, identifier: str, is_fraud: bool) -> bool:
        """Remember, durably, whether a transaction was fraud; again to correct it.

        Returns:
            False if the transaction is not known: the label waits for it.
        """

    async def tick(self) -> None:
        """Forget what no window needs and keep restarts short; now and then."""

    async def close(self) -> None:
        """Wait for what is being written and let go of files and connections."""

    def figures(self) -> Mapping[str, float]:
        """Return numbers for an operator, by name."""


def open_state(settings: FraudSettings, folder: Path) -> OnlineState:
    """Return the state that `serve.state` names; `folder` is for the local one.

    Raises:
        SettingsError: There is no such state.
    """
    where, policy = settings.serve.state, Policy.of(settings)
    if where == "local" or settings.serve.trial:
        return LocalState(policy, folder, sync=settings.serve.sync)
    if where.startswith(("redis://", "rediss://", "unix://")):
        from pegboard_fraud.redis_state import RedisState  # The extra `redis` brings its library.

        return RedisState(policy, where)
    raise SettingsError(
        "there is no such state",
        where="serve.state",
        remedy="write local, or the URL of a Redis or Valkey server: redis://HOST:PORT/NUMBER",
    )


# --- Which transactions are taken -----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What counts, and until when: the same for every kind of state."""

    delay: int
    """Seconds until a label counts as known."""
    late: int
    """Seconds by which a transaction may come late."""
    future: int
    """Seconds by which it may be dated ahead of the clock."""
    assume_genuine: bool
    """Whether a transaction counts as genuine while nobody said otherwise."""
    clock: Literal["system", "transactions"]
    """Whose time it is."""

    @classmethod
    def of(cls, settings: FraudSettings) -> Policy:
        """Read it from the settings of a project."""
        serve = settings.serve
        return cls(
            delay=settings.data.label_delay_days * DAY,
            late=serve.late_days * DAY,
            future=serve.future_seconds,
            assume_genuine=serve.assume_genuine,
            clock=serve.clock,
        )

    @property
    def memory(self) -> int:
        """How far back anything is remembered, in seconds."""
        return memory_of(self.delay, self.late)

    @property
    def patience(self) -> int:
        """How long a label waits for its transaction, which is refused later, in seconds."""
        return self.late + self.future

    def is_meant(self, told: int, transaction: Transaction) -> bool:
        """Tell whether a label that came before its transaction can be about it.

        Of one that is dated later than the label nobody could know anything. With that, whether a
        label is applied depends on the order of events alone, not on when waiting ones are dropped.
        """
        return told == _NO_TIME or transaction.time <= told + self.future

    def now(self, latest: int) -> int:
        """Return the time; `latest` is that of the latest transaction."""
        return int(time.time()) if self.clock == "system" else latest

    def require_timely(self, transaction: Transaction, latest: int) -> None:
        """Refuse a transaction from the future or from too long ago."""
        require_storable(transaction)
        now = self.now(latest)
        if self.clock == "system" and transaction.time > now + self.future:
            raise RequestError(
                f"the transaction is dated more than {self.future} seconds ahead of the clock",
                where="time",
                remedy="check the sender's clock and time zone, or raise serve.future_seconds",
            )
        # Before the first transaction its own time is the clock of a replay.
        if now != _NO_TIME and transaction.time < now - self.late:
            raise RequestError(
                f"the transaction comes more than {self.late // DAY} days late",
                where="time",
                remedy="leave it out, or raise serve.late_days",
            )


def require_storable(transaction: Transaction) -> None:
    """Refuse numbers that no sum could hold: once in the log they would stop every restart."""
    if not 0 <= transaction.cents <= LARGEST_CENTS:
        raise RequestError(
            "the amount is negative or too large", where="amount", remedy="check its unit"
        )
    if not 0 <= transaction.time <= LATEST_SECOND:
        raise RequestError(
            "the time is not between 1970 and 3000", where="time", remedy="check its unit"
        )


def require_same(known: Transaction, transaction: Transaction) -> None:
    """Refuse a transaction whose id was used for another one."""
    for name in ("time", "customer", "terminal", "cents"):
        if getattr(known, name) != getattr(transaction, name):
            raise RequestError(
                "this id was sent before with other content",
                where="amount" if name == "cents" else name,
                remedy="send each transaction with an id of its own, and unchanged when again",
            )


def never_decided() -> RequestError:
    """Return the error for a transaction that came with the history, without a decision."""
    return RequestError(
        "this transaction is part of the history and was never decided",
        where="id",
        remedy="send only transactions that are new",
    )


# --- Memory: what a replay of events gives --------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Decided:
    """A transaction and its decision."""

    transaction: Transaction
    decision: str
    """As JSON."""


@dataclass(frozen=True, slots=True)
class Told:
    """A label and when it came."""

    id: str
    time: int
    is_fraud: bool


Event = Decided | Told


class Memory:
    """All that events leave behind in memory; the same events in the same order, the same bits."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.state = FeatureState(delay=policy.delay, late=policy.late)
        self.waiting: dict[str, Told] = {}
        """Labels whose transaction has not come."""
        self.latest = _NO_TIME
        """Time of the latest transaction."""
        self.sequence = 0
        """Number of the last event."""

    @property
    def now(self) -> int:
        """The time, by the clock of the policy."""
        return self.policy.now(self.latest)

    def apply(self, sequence: int, event: Event) -> bool:
        """Remember an event; returns False for a label that has to wait."""
        self.sequence = sequence
        if isinstance(event, Told):
            return self._label(event)
        self.add(event.transaction)
        return True

    def add(self, transaction: Transaction) -> None:
        """Remember a transaction, with the label that waits for it."""
        self.latest = max(self.latest, transaction.time)
        self.state.add(transaction)
        told = self._take(transaction) if self.waiting else None
        if told is not None or self.policy.assume_genuine:
            self.state.label(transaction.id, told is not None and told.is_fraud)

    def _take(self, transaction: Transaction) -> Told | None:
        told = self.waiting.pop(str(transaction.id), None)
        if told is None or self.policy.is_meant(told.time, transaction):
            return told
        return None

    def _label(self, told: Told) -> bool:
        if self.state.label(told.id, told.is_fraud):
            return True
        self.waiting[told.id] = told
        return False

    def forget(self, *, most: int | None = None) -> int:
        """Drop what no window needs and labels that wait in vain; returns how much was old."""
        if self.now == _NO_TIME:
            return 0
        horizon = self.now - self.policy.patience
        # Of a label that came before all transactions it is not known how long it waits.
        vain = [told.id for told in self.waiting.values() if _NO_TIME < told.time < horizon]
        for identifier in vain:
            del self.waiting[identifier]
        return self.state.forget(self.now, most=most)

    def snapshot(self) -> dict[str, NDArray[Any]]:
        """Copy it into plain arrays."""
        waiting = list(self.waiting.values())
        return self.state.snapshot() | {
            "latest": np.array(self.latest),
            "sequence": np.array(self.sequence),
            "waiting.id": np.array([told.id.encode() for told in waiting], np.bytes_),
            "waiting.time": np.array([told.time for told in waiting], np.int64),
            "waiting.is_fraud": np.array([told.is_fraud for told in waiting], np.bool_),
        }

    @classmethod
    def restore(cls, policy: Policy, arrays: Mapping[str, NDArray[Any]]) -> Memory:
        """Make one from what `snapshot` gave."""
        memory = cls(policy)
        memory.state = FeatureState.restore(arrays)
        memory.state.memory = policy.memory
        memory.latest, memory.sequence = int(arrays["latest"]), int(arrays["sequence"])
        columns = (arrays[f"waiting.{name}"].tolist() for name in ("id", "time", "is_fraud"))
        for identifier, when, is_fraud in zip(*columns, strict=True):
            told = Told(identifier.decode(), when, is_fraud)
            memory.waiting[told.id] = told
        return memory


# --- Files: a log of events, and snapshots --------------------------------------------------------

LOG, SNAPSHOT, LOCK = "events.sqlite", "snapshot.npz", "lock"


class EventLog:
    """Events in the order in which they were remembered: one table of SQLite, appended to only.

    Args:
        path: The file; it is made if it does not exist.
        sync: Whether a commit waits for the disk.
    """

    def __init__(self, path: Path, *, sync: bool) -> None:
        self.path = path
        self._appended = 0
        self._connection = _connect(path, sync=sync)
        # A commit that takes milliseconds is the writer's choice, not SQLite's.
        self._connection.execute("PRAGMA wal_autocheckpoint = 0")
        # Whoever asks for an earlier decision must not wait for a commit.
        self._reader = _connect(path, sync=sync)
        # While the log is open SQLite keeps what was written last in the second one.
        self._paths = path, path.with_name(f"{path.name}-wal")
        self._files = self._identities()

    def read(self, after: int) -> Iterator[tuple[int, Event]]:
        """Give the events after a sequence number, in order, with theirs."""
        for sequence, *row in self._reader.execute(_SELECT, (after,)):
            yield sequence, _to_event(row)

    def decided(self) -> dict[str, int]:
        """Return the sequence number of every transaction with a decision, by its id."""
        rows = "SELECT id, sequence FROM events WHERE decision IS NOT NULL ORDER BY sequence"
        return dict(self._reader.execute(rows))

    def decision(self, sequence: int) -> Any:
        """Return the decision of an event."""
        select = "SELECT decision FROM events WHERE sequence = ?"
        return json.loads(self._reader.execute(select, (sequence,)).fetchall()[0][0])

    def append(self, first: int, events: Sequence[Event], prunable: Prunable) -> list[PrunedRow]:
        """Write events in one commit, and drop a few that are no longer needed.

        Args:
            first: The sequence number of the first.
            events: What to write.
            prunable: What may be dropped.

        Returns:
            The id and sequence number of what was dropped.
        """
        rows = [(first + place, *_to_row(event)) for place, event in enumerate(events)]
        if self._connection.in_transaction:  # A commit failed before.
            self._connection.rollback()
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany(_INSERT, rows)
            dropped = self._prune(prunable)
        self._appended += len(events)
        self._require_files()
        return dropped

    @property
    def wants_checkpoint(self) -> bool:
        """Whether so much was appended that it is time for a checkpoint."""
        return self._appended >= CHECKPOINT_EVERY

    def checkpoint(self) -> None:
        """Move what was appended into the file, and have the disk confirm it; takes milliseconds.

        The next commit begins the second file anew, and waits for the disk even without `sync`.
        """
        if self._connection.in_transaction:  # A commit failed before.
            self._connection.rollback()
        self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        self._appended = 0

    def _prune(self, prunable: Prunable) -> list[PrunedRow]:
        # From the front only: it costs nothing when there is nothing to drop.
        front = self._connection.execute(_FRONT, (prunable.sequence, _PRUNE_AT_ONCE)).fetchall()
        dropped: list[PrunedRow] = []
        for sequence, identifier, when in front:
            if when > prunable.horizon:
                break
            dropped.append((identifier, sequence))
        if dropped:
            self._connection.execute("DELETE FROM events WHERE sequence <= ?", (dropped[-1][1],))
        return dropped

    def _require_files(self) -> None:
        """Refuse to go on with a file that was removed: the system would write into nothing."""
        if self._identities() != self._files:
            raise FileNotFoundError(self.path)

    def _identities(self) -> list[tuple[int, int]]:
        found = [path.stat() for path in self._paths]
        return [(each.st_dev, each.st_ino) for each in found]

    def size(self) -> int:
        """Return the bytes on the disk."""
        return sum(path.stat().st_size for path in self._paths if path.exists())

    def close(self) -> None:
        """Close the file."""
        self._reader.close()
        self._connection.close()


PrunedRow = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Prunable:
    """Events that a snapshot holds and nobody will ask about."""

    sequence: int
    """Up to this number,"""
    horizon: int
    """and up to this time."""


_TABLE = """CREATE TABLE IF NOT EXISTS events (
    sequence INTEGER PRIMARY KEY, id TEXT NOT NULL, time INTEGER NOT NULL,
    customer TEXT, terminal TEXT, cents INTEGER, decision TEXT, is_fraud INTEGER
)"""
_INSERT = "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_SELECT = "SELECT * FROM events WHERE sequence > ? ORDER BY sequence"
_FRONT = "SELECT sequence, id, time FROM events WHERE sequence <= ? ORDER BY sequence LIMIT ?"


def _connect(path: Path, *, sync: bool) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {'FULL' if sync else 'NORMAL'}")
        connection.execute(_TABLE)
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _to_row(event: Event) -> tuple[Any, ...]:
    if isinstance(event, Told):
        return event.id, event.time, None, None, None, None, int(event.is_fraud)
    each = event.transaction
    return each.id, each.time, each.customer, each.terminal, each.cents, event.decision, None


def _to_event(row: Sequence[Any]) -> Event:
    identifier, when, customer, terminal, cents, decision, is_fraud = row
    if decision is None:
        return Told(identifier, when, bool(is_fraud))
    transaction = Transaction(
        id=identifier, time=when, customer=customer, terminal=terminal, cents=cents
    )
    return Decided(transaction, decision)


def replay(memory: Memory, log: EventLog) -> None:
    """Apply what the log holds after the memory's last event."""
    for sequence, event in log.read(memory.sequence):
        memory.apply(sequence, event)


def read_snapshot(policy: Policy, folder: Path) -> Memory:
    """Restore the last snapshot; an empty memory if there is none."""
    path = folder / SNAPSHOT
    if not path.exists():
        return Memory(policy)
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            memory = Memory.restore(policy, arrays)
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError, OSError) as error:
        raise PegboardError(
            "the snapshot cannot be read",
            where=str(path),
            remedy="put a copy back; or remove it: the log alone restores all but the history "
            "that was materialized",
        ) from error
    if memory.state.delay != policy.delay:
        raise PegboardError(
            f"the state was made for labels known after {memory.state.delay // DAY} days, not "
            f"{policy.delay // DAY}",
            where=str(path),
            remedy="set data.label_delay_days back, or remove the folder and materialize again",
        )
    return memory


def write_snapshot(folder: Path, memory: Memory) -> None:
    """Write a snapshot, whole or not at all, and on the disk when it returns."""
    with atomic_path(folder / SNAPSHOT) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **memory.snapshot())  # type: ignore[arg-type]
        stream.flush()
        os.fsync(stream.fileno())


def lock(folder: Path) -> IO[bytes]:
    """Take a folder for this process alone, until the file is closed or the process ends."""
    folder.mkdir(parents=True, exist_ok=True)
    stream = (folder / LOCK).open("ab")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        stream.close()
        raise PegboardError(
            "another process works with this state",
            where=str(folder),
            remedy="end it, or give this one a serve.folder of its own",
        ) from error
    return stream


# --- The local state ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    """An event that waits to be written, and who waits for it."""

    event: Event
    written: asyncio.Future[bool]


@dataclass(frozen=True, slots=True, eq=False)
class _Committed:
    """What became of events that were to be written."""

    first: int
    """The sequence number of the first."""
    batch: list[_Entry]
    dropped: list[PrunedRow]
    error: Exception | None
    """Why none of them is written."""


class LocalState:
    """The past in memory, its events in a log, for one server.

    A thread waits for the disk: all that arrives while a commit is on its way is written by the
    next one (group commit). A commit that need not wait for the disk is made in the event loop, in
    less time than it takes to wake a thread; unless the thread has work, checkpoints included. An
    event is applied to memory after its commit, in the order of the log.

    Args:
        policy: What counts, and until when.
        folder: Where log and snapshot are kept.
        sync: Whether a commit waits for the disk.
    """

    def __init__(self, policy: Policy, folder: Path, *, sync: bool) -> None:
        self._policy = policy
        self._folder = folder
        self._sync = sync
        self._queue: queue.SimpleQueue[_Entry | None] = queue.SimpleQueue()
        self._unwritten = 0
        """Events that the thread has, or had and the event loop does not know yet. While there is
        one the thread alone touches the log's connection; while there is none it sleeps."""
        self._pending: dict[str, _Entry] = {}
        self._decided: dict[str, int] = {}
        self._snapshot_sequence = 0
        self._prunable = Prunable(0, _NO_TIME)
        self._is_open = False
        self._is_ticking = False

    async def open(self) -> None:
        """Take the folder, restore the snapshot and replay the log."""
        self._lock = await asyncio.to_thread(lock, self._folder)
        try:
            await asyncio.to_thread(self._restore)
        except BaseException:
            self._lock.close()
            raise
        self._loop = asyncio.get_running_loop()
        self._writer = threading.Thread(target=self._write, name="fraud-log", daemon=True)
        self._writer.start()
        self._is_open = True
        _spare_collector()

    def _restore(self) -> None:
        self._memory = read_snapshot(self._policy, self._folder)
        self._snapshot_sequence = self._memory.sequence
        try:
            self._log = EventLog(self._folder / LOG, sync=self._sync)
            replay(self._memory, self._log)
            self._decided = self._log.decided()
        except sqlite3.Error as error:
            raise self._broken(error) from error
        # A log that lost its last events must not use their numbers again.
        self._next = self._memory.sequence + 1

    async def look(self, transaction: Transaction) -> Look:
        """Compute features, or find the decision made before; changes nothing."""
        earlier = self._earlier(transaction)
        if earlier is not None:
            return Look(features=None, earlier=earlier)
        self._policy.require_timely(transaction, self._memory.latest)
        return Look(features=self._memory.state.features(transaction), earlier=None)

    def _earlier(self, transaction: Transaction) -> Mapping[str, Any] | None:
        known = self._memory.state.find(transaction.id)
        if known is None:
            return None
        require_same(known, transaction)
        sequence = self._decided.get(known.id)  # type: ignore[arg-type]
        if sequence is None:
            raise never_decided()
        try:
            decision: Mapping[str, Any] = self._log.decision(sequence)
        except sqlite3.Error as error:
            raise self._broken(error) from error
        return decision

    async def record(
        self, transaction: Transaction, decision: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Remember a transaction and its decision; it counts from its commit on."""
        earlier = self._earlier(transaction)
        if earlier is not None:
            return earlier
        require_storable(transaction)
        identifier = str(transaction.id)
        entry = self._pending.get(identifier)
        if entry is None:
            entry = self._enqueue(Decided(transaction, _to_json(decision)))
            if not entry.written.done():
                self._pending[identifier] = entry
            await _result(entry.written)
            return decision
        # The same transaction is being written for somebody else.
        assert isinstance(entry.event, Decided)
        require_same(entry.event.transaction, transaction)
        await _result(entry.written)
        standing: Mapping[str, Any] = json.loads(entry.event.decision)
        return standing

    async def label(self, identifier: str, is_fraud: bool) -> bool:
        """Remember whether a transaction was fraud; it counts from its commit on."""
        return await _result(self._enqueue(Told(identifier, self._memory.now, is_fraud)).written)

    def _enqueue(self, event: Event) -> _Entry:
        if not self._is_open:
            raise PegboardError(
                "the state is closed", where=str(self._folder), remedy="start the server again"
            )
        entry = _Entry(event, self._loop.create_future())
        if self._sync or self._unwritten or self._log.wants_checkpoint:
            self._unwritten += 1
            self._queue.put(entry)
        else:
            self._apply_all(self._commit([entry]))
        return entry

    def _write(self) -> None:
        """Commit whatever waits, again and again, until told to stop; runs in its own thread."""
        while batch := self._next_batch():
            committed = self._commit(batch)
            if self._loop.is_closed():  # Nobody waits any longer.
                return
            self._loop.call_soon_threadsafe(self._written, committed)

    def _commit(self, batch: list[_Entry]) -> _Committed:
        """Write events in one commit; either the thread or the event loop does so, never both."""
        first, dropped, error = self._next, [], None
        try:
            if self._log.wants_checkpoint:
                self._log.checkpoint()
            events = [entry.event for entry in batch]
            dropped = self._log.append(first, events, self._prunable)
            self._next += len(batch)
        except Exception as raised:
            error = raised
        return _Committed(first, batch, dropped, error)

    def _next_batch(self) -> list[_Entry]:
        """Wait for an entry, then take all there are; nothing is the sign to stop."""
        batch: list[_Entry] = []
        entry = self._queue.get()
        while entry is not None:
            batch.append(entry)
            try:
                entry = self._queue.get_nowait()
            except queue.Empty:
                return batch
        if batch:
            self._queue.put(None)
        return batch

    def _written(self, committed: _Committed) -> None:
        """Take over from the thread what it committed; runs in the event loop."""
        self._unwritten -= len(committed.batch)
        for entry in committed.batch:
            if isinstance(entry.event, Decided):
                self._pending.pop(str(entry.event.transaction.id), None)
        self._apply_all(committed)

    def _apply_all(self, committed: _Committed) -> None:
        """Apply what was committed and tell those who wait."""
        for sequence, entry in enumerate(committed.batch, start=committed.first):
            if committed.error is None:
                entry.written.set_result(self._apply(sequence, entry.event))
            else:
                entry.written.set_exception(self._broken(committed.error))
                entry.written.exception()  # Whoever waited may be gone.
        for identifier, sequence in committed.dropped:
            if self._decided.get(identifier) == sequence:
                del self._decided[identifier]

    def _apply(self, sequence: int, event: Event) -> bool:
        if isinstance(event, Decided):
            self._decided[str(event.transaction.id)] = sequence
        return self._memory.apply(sequence, event)

    def _broken(self, error: Exception) -> PegboardError:
        path = self._folder / LOG
        if disk_is_full(error) or getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL:
            return no_space_for(path)
        if isinstance(error, FileNotFoundError) or not path.exists():
            return PegboardError(
                "the log of decisions was removed", where=str(path), remedy="restart the server"
            )
        return PegboardError(
            "the log of decisions cannot be read or written",
            where=str(path),
            remedy="check the disk and the folder's permissions",
        )

    async def tick(self) -> None:
        """Forget in small steps, and make a snapshot in another process when it is time."""
        if self._is_ticking or not self._is_open:
            return
        self._is_ticking = True
        try:
            while self._memory.forget(most=_FORGET_AT_ONCE) == _FORGET_AT_ONCE:
                await asyncio.sleep(0)
            _spare_collector()
            # The larger the memory, the longer a snapshot takes, and the rarer it is.
            enough = max(SNAPSHOT_EVERY, len(self._memory.state) // 10)
            if self._memory.sequence - self._snapshot_sequence >= enough:
                await self._snapshot()
            horizon = self._memory.now - self._policy.memory
            self._prunable = Prunable(self._snapshot_sequence, horizon)
        finally:
            self._is_ticking = False

    async def _snapshot(self) -> None:
        arguments = (str(self._folder), json.dumps(asdict(self._policy)))
        # Not asyncio's own: uvloop forks, which copies the page tables of all that is remembered
        # and so holds the loop for tens of milliseconds; this one does not copy them.
        child = await asyncio.to_thread(
            subprocess.Popen,
            [sys.executable, "-m", _MODULE, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            output, _ = await asyncio.to_thread(child.communicate)
        finally:
            child.kill()  # Does nothing to one that has ended.
            child.wait()
        if child.returncode != 0:
            raise PegboardError(
                "the snapshot could not be written",
                where=str(self._folder / SNAPSHOT),
                remedy="check the free space; until then a restart takes longer",
            )
        self._snapshot_sequence = int(output)

    async def close(self) -> None:
        """Wait for what is being written and let go of the folder."""
        if not self._is_open:
            return
        self._is_open = False
        self._queue.put(None)
        await asyncio.to_thread(self._writer.join)
        await asyncio.sleep(0)  # Those who wait for the last commit are told in the loop.
        self._log.close()
        self._lock.close()

    def figures(self) -> Mapping[str, float]:
        """Return numbers for an operator, by name."""
        return {
            "transactions": len(self._memory.state),
            "waiting_labels": len(self._memory.waiting),
            "unwritten_decisions": len(self._pending),
            "events": self._memory.sequence,
            "events_since_snapshot": self._memory.sequence - self._snapshot_sequence,
            "log_bytes": self._log.size(),
        }


_MODULE = "pegboard_fraud.online"


async def _result(written: asyncio.Future[bool]) -> bool:
    # Somebody else may wait for the same event: one who gives up must not take it from them.
    return await asyncio.shield(written)


def _to_json(decision: Mapping[str, Any]) -> str:
    import orjson  # The extra `serve` brings it.

    return orjson.dumps(decision).decode()


def _spare_collector() -> None:
    """Take what is remembered out of the garbage collector's sight.

    It has no cycles, lives for months, and a collection that walked it would stop the server for
    as long as a hundred decisions take.
    """
    gc.collect(1)
    gc.freeze()


# --- Snapshots, in a process of their own ---------------------------------------------------------


def make_snapshot(folder: Path, policy: Policy) -> int:
    """Replay the log on top of the last snapshot and write the next one.

    It is done from the files, not from the server's memory, and by another process: copying or
    packing months of transactions would hold the event loop, or Python's lock, for a second.

    Returns:
        The number of the last event in it.
    """
    memory = read_snapshot(policy, folder)
    log = EventLog(folder / LOG, sync=True)
    try:
        replay(memory, log)
    finally:
        log.close()
    memory.forget()
    write_snapshot(folder, memory)
    return memory.sequence


def _main(arguments: Iterable[str]) -> None:
    folder, policy = arguments
    os.nice(19)
    sys.stdout.write(str(make_snapshot(Path(folder), Policy(**json.loads(policy)))))


if __name__ == "__main__":
    _main(sys.argv[1:])
