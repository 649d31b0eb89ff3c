from __future__ import annotations

import asyncio
import json
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pegboard.errors import PegboardError, RequestError, SettingsError
from pegboard.progress import SilentProgress
from pegboard.project import Project, open_project
from pegboard_fraud.features import DAY, FEATURE_NAMES, HOUR, FeatureState, Transaction
from pegboard_fraud.materialize import materialize
from pegboard_fraud.online import Policy, open_state
from pegboard_fraud.settings import FraudServe, FraudSettings
from pegboard_fraud.simulator import simulate

pytest.importorskip("redis", reason="the extra `redis` is not installed")
import redis as redis_client

from pegboard_fraud import redis_state as module
from pegboard_fraud.redis_state import PASSWORD, RedisState

SERVER = shutil.which("valkey-server") or shutil.which("redis-server")
pytestmark = pytest.mark.skipif(
    SERVER is None, reason="neither valkey-server nor redis-server is installed"
)

APPROVE = {"outcome": "approve", "score": 0.25}
POLICY = Policy(delay=7 * DAY, late=7 * DAY, future=300, assume_genuine=True, clock="transactions")
T = TypeVar("T")


class Server:
    """A Redis or Valkey server on a free port of the loopback, with every write on the disk."""

    def __init__(self, folder: Path, *options: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._folder, self._options = folder, options
        self.start()

    def start(self) -> None:
        fixed = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder)]
        log = ["--save", "", "--appendonly", "yes", "--appendfsync", "always"]
        self.process = subprocess.Popen(
            [str(SERVER), *fixed, *log, *self._options], stdout=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 10
        while not self._answers():
            assert time.monotonic() < deadline, "the server does not start"
            time.sleep(0.02)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                said = connection.recv(8)
        except OSError:  # Not there yet.
            return False
        return said.startswith((b"+PONG", b"-NOAUTH"))  # Else it is still reading its log.

    def empty(self) -> None:
        with redis_client.Redis(port=self.port) as client:
            client.flushall()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("redis"))
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def patience(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that also runs other tests may be slow; only one test is about that."""
    if "at_once" not in request.node.name or "same_at_once" in request.node.name:
        monkeypatch.setattr(module, "CONNECT_SECONDS", 5.0)
        monkeypatch.setattr(module, "ANSWER_SECONDS", 5.0)


@pytest.fixture
def server(shared_server: Server) -> Server:
    shared_server.empty()
    return shared_server


def with_states(
    url: str, use: Callable[..., Awaitable[T]], *, policy: Policy = POLICY, number: int = 1
) -> T:
    """What `use` gives for some servers' states that are open meanwhile."""

    async def run() -> T:
        states = [RedisState(policy, url) for _ in range(number)]
        for state in states:
            await state.open()
        try:
            return await use(*states)
        finally:
            for state in states:
                await state.close()

    return asyncio.run(run())


def stream(days: int = 110, customers: int = 6) -> list[Transaction]:
    simulated = simulate(seed=3, customers=customers, terminals=3, days=days, mean_rate=2.0)
    names = ("id", "time", "customer", "terminal", "cents")
    columns = (getattr(simulated, name).tolist() for name in names)
    return [
        Transaction(
            id=f"i{i}", time=when // 600 * 600, customer=f"c{c}", terminal=f"t{t}", cents=cents
        )
        for i, when, c, t, cents in zip(*columns, strict=True)
    ]


ROWS = stream()


def value(features: Any, name: str) -> float:
    return float(features[FEATURE_NAMES.index(name)])


# --- One definition -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("assume", [True, False])
def test_a_stream_with_labels_sees_the_bits_that_memory_gives(server: Server, assume: bool) -> None:
    expected = FeatureState()

    async def use(state: RedisState) -> None:
        for place, row in enumerate(ROWS):
            look = await state.look(row)
            assert look.features is not None
            assert (look.features.view(np.uint32) == expected.features(row).view(np.uint32)).all()
            assert await state.record(row, APPROVE) == APPROVE
            expected.add(row)
            if assume:
                expected.label(row.id, False)
            if place % 4 == 0:  # Some frauds, some of them corrected later.
                for told in {place, place // 2}:
                    is_fraud = told == place
                    assert await state.label(str(ROWS[told].id), is_fraud)
                    expected.label(ROWS[told].id, is_fraud)

    with_states(server.url, use, policy=replace(POLICY, assume_genuine=assume))
    assert len(ROWS) > 1_000


events_of_any_kind = st.lists(
    st.tuples(
        # Few moments, apart by the lengths of windows, so that ties and edges are common.
        st.sampled_from([0, 1, HOUR, DAY, 7 * DAY, 8 * DAY, 14 * DAY, 37 * DAY, 97 * DAY]),
        st.integers(0, 2),
        st.integers(0, 1),
        st.sampled_from([0, 1, 1_00, 99_99, 10**13]),
        st.sampled_from(["", "fraud", "genuine", "fraud genuine", "early fraud"]),
    ),
    max_size=25,
)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(events_of_any_kind)
def test_any_stream_sees_the_bits_that_memory_gives(
    server: Server, rows: list[tuple[int, int, int, int, str]]
) -> None:
    server.empty()
    expected = FeatureState(late=100 * DAY)

    async def use(state: RedisState) -> None:
        for number, (offset, customer, terminal, cents, labels) in enumerate(rows):
            row = Transaction(
                id=f"{number}",
                time=1_735_689_600 + offset,
                customer=f"c{customer}",
                terminal=f"t{terminal}",
                cents=cents,
            )
            look = await state.look(row)
            assert look.features is not None
            assert (look.features == expected.features(row)).all()
            if "early" in labels:
                assert not await state.label(str(row.id), True)
            await state.record(row, APPROVE)
            expected.add(row)
            expected.label(row.id, "early" in labels)
            for label in labels.split():
                if label != "early":
                    assert await state.label(str(row.id), label == "fraud")
                    expected.label(row.id, label == "fraud")

    with_states(server.url, use, policy=replace(POLICY, late=100 * DAY, future=200 * DAY))


# --- Several servers ------------------------------------------------------------------------------


def test_two_servers_that_record_the_same_at_once_leave_one_decision(server: Server) -> None:
    async def use(one: RedisState, other: RedisState) -> None:
        for row in ROWS[:50]:
            await asyncio.gather(one.look(row), other.look(row))
            standing = await asyncio.gather(
                one.record(row, {"by": 1}), other.record(row, {"by": 2})
            )
            assert standing[0] == standing[1]
            assert (await other.look(row)).earlier == standing[0]
        counted = await other.look(replace(ROWS[0], id="new", time=ROWS[49].time))
        same = [row for row in ROWS[:50] if row.customer == ROWS[0].customer]
        assert value(counted.features, "customer_count_30d") == len(same) + 1

    with_states(server.url, use, number=2)


def test_one_server_sees_what_another_recorded_and_was_told(server: Server) -> None:
    later = replace(ROWS[0], id="later", time=ROWS[0].time + 7 * DAY, customer="somebody")

    async def use(one: RedisState, other: RedisState) -> None:
        assert not await one.label(str(ROWS[0].id), True)
        await other.record(ROWS[0], APPROVE)
        assert value((await one.look(later)).features, "terminal_frauds_7d") == 1
        assert await one.label(str(ROWS[0].id), False)
        assert value((await other.look(later)).features, "terminal_frauds_7d") == 0

    with_states(server.url, use, number=2)


def test_servers_that_differ_in_the_delay_of_labels_do_not_share(server: Server) -> None:
    async def use(_: RedisState) -> None:
        with pytest.raises(PegboardError, match="labels known after 7 days, not 1"):
            await RedisState(replace(POLICY, delay=DAY), server.url).open()

    with_states(server.url, use)


# --- Policies -------------------------------------------------------------------------------------


def test_an_id_with_other_content_is_refused(server: Server) -> None:
    async def use(state: RedisState) -> None:
        await state.record(ROWS[0], APPROVE)
        other = replace(ROWS[0], cents=ROWS[0].cents + 1)
        for ask in (state.look(other), state.record(other, APPROVE)):
            with pytest.raises(RequestError, match="sent before with other content"):
                await ask

    with_states(server.url, use)


def test_late_ones_are_refused_by_the_clock_that_all_share(server: Server) -> None:
    async def use(one: RedisState, other: RedisState) -> None:
        await one.record(replace(ROWS[1], time=ROWS[0].time + 7 * DAY + 1), APPROVE)
        with pytest.raises(RequestError, match="more than 7 days late"):
            await other.look(ROWS[0])

    with_states(server.url, use, number=2)


def test_all_that_is_kept_expires(server: Server) -> None:
    async def use(state: RedisState) -> None:
        await state.record(ROWS[0], APPROVE)
        await state.label(str(ROWS[0].id), True)
        await state.label("waits", True)
        await state.tick()
        assert state.figures()["keys"] > 5

    with_states(server.url, use)
    with redis_client.Redis(port=server.port) as client:
        names = client.keys()
        forever = {name for name in names if client.ttl(name) < 0}
        lives = {client.ttl(name) for name in names if client.ttl(name) >= 0}
    assert forever == {b"pegboard:fraud:latest", b"pegboard:fraud:delay"}
    assert max(lives) <= POLICY.memory
    assert POLICY.patience in {round(life, -1) for life in lives} | lives


def test_old_events_leave_the_server(server: Server) -> None:
    async def use(state: RedisState) -> None:
        for year in range(3):
            row = replace(ROWS[0], id=f"{year}", time=ROWS[0].time + year * 365 * DAY)
            await state.record(row, APPROVE)

    with_states(server.url, use)
    with redis_client.Redis(port=server.port) as client:
        for track, width in (("customer:c", 16), ("terminal_genuine:t", 8)):
            (name,) = client.keys(f"pegboard:fraud:{track}*")
            assert client.strlen(name) == width


# --- Materialize ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_materialized_history_gives_the_same_bits_as_in_memory(
    fraud_project: Project, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEGBOARD_IDENTIFIER_KEY", "k" * 32)
    answers = []
    for state in ("local", server.url):
        overrides = [*fraud_project.overrides, "serve.clock=transactions", f"serve.state={state}"]
        project = open_project(fraud_project.folder, overrides)
        count = materialize(project, SilentProgress())
        assert count > 5_000
        config = project.settings
        assert isinstance(config, FraudSettings)
        answers.append(asyncio.run(ask_everybody(config)))
        answers[-1] = np.concatenate([answers[-1], asyncio.run(ask_everybody(config, live=True))])
        with pytest.raises(PegboardError, match="state is not empty"):
            materialize(project, SilentProgress())
    assert (answers[0] == answers[1]).all()


async def ask_everybody(config: FraudSettings, live: bool = False) -> Any:
    """Features of a transaction of each of some customers, eight days after the history.

    With `live` a fraud of the history is told first, and each transaction is recorded.
    """
    from pegboard_fraud.data import column_names, source
    from pegboard_fraud.identifiers import load_identifiers
    from pegboard_fraud.transactions import read_transactions

    history = read_transactions(source(config), column_names(config.data))
    hashed = load_identifiers(config).hashed
    state = open_state(config, config.serve.folder / "state")
    await state.open()
    looks = []
    if live:
        assert await state.label(hashed(history.id[-1]), True)
    for number, customer in enumerate(history.customers[:40]):
        asked = Transaction(
            id=f"new {number} {live}",
            time=int(history.time[-1]) + 8 * DAY + number,
            customer=hashed(str(customer)),
            terminal=hashed(str(history.terminals[history.terminal[-1 - number]])),
            cents=5000,
        )
        looks.append((await state.look(asked)).features)
        if live:
            await state.record(asked, APPROVE)
    await state.close()
    return np.stack(looks)


# --- What can go wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["redis://:hunter2@localhost/0", "redis://u:hunter2@h/0", "redis://h/0?password=hunter2"]
)
def test_a_password_in_the_url_is_refused_and_not_repeated(url: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=f"password in the URL .*{PASSWORD}") as caught:
        open_state(FraudSettings(serve=FraudServe(state=url)), tmp_path)
    assert "hunter2" not in str(caught.value)


def test_the_password_comes_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(tmp_path, "--requirepass", "hunter2")
    try:
        with pytest.raises(PegboardError, match=f"AuthenticationError .*{PASSWORD}"):
            with_states(server.url, lambda state: state.record(ROWS[0], APPROVE))
        monkeypatch.setenv(PASSWORD, "hunter2")
        assert with_states(server.url, lambda state: state.record(ROWS[0], APPROVE)) == APPROVE
    finally:
        server.kill()


def test_a_server_that_is_away_or_hangs_is_an_error_at_once(tmp_path: Path) -> None:
    server = Server(tmp_path)

    async def use(state: RedisState) -> None:
        await state.record(ROWS[0], APPROVE)
        for disturb in (lambda: server.process.send_signal(signal.SIGSTOP), server.kill):
            disturb()
            for ask in (
                lambda: state.look(ROWS[1]),
                lambda: state.record(ROWS[1], APPROVE),
                lambda: state.label(str(ROWS[0].id), True),
            ):
                began = time.monotonic()
                with pytest.raises(PegboardError, match="shared state does not answer"):
                    await ask()
                assert time.monotonic() - began < 1
        server.start()
        assert (await state.look(ROWS[0])).earlier == APPROVE
        assert (await state.look(ROWS[1])).features is not None

    try:
        with_states(server.url, use)
    finally:
        server.kill()


@pytest.mark.slow
def test_a_server_killed_under_load_comes_back_with_all_it_acknowledged(tmp_path: Path) -> None:
    server = Server(tmp_path)
    acknowledged: list[Transaction] = []

    async def use(state: RedisState) -> None:
        async def one(row: Transaction) -> None:
            await state.look(row)
            await state.record(row, {"id": row.id})
            await state.label(str(row.id), row.cents % 2 == 0)
            acknowledged.append(row)

        async def load() -> None:
            for first in range(0, len(ROWS), 4):
                await asyncio.gather(*map(one, ROWS[first : first + 4]))

        loading = asyncio.create_task(load())
        await asyncio.sleep(0.7)
        server.kill()
        with pytest.raises(PegboardError, match="shared state does not answer"):
            await loading
        assert 20 < len(acknowledged) < len(ROWS)
        server.start()
        for row in acknowledged:
            assert (await state.look(row)).earlier == {"id": row.id}
        with redis_client.Redis(port=server.port) as client:
            for row in acknowledged:
                kind = client.hget(f"pegboard:fraud:transaction:{row.id}", "kind")
                assert (kind == b"genuine") == (row.cents % 2 != 0)
        # What was not acknowledged is sent again, as a client would.
        for row in ROWS[len(acknowledged) - 4 : len(acknowledged) + 8]:
            assert json.dumps(await state.record(row, {"id": row.id}))

    try:
        with_states(server.url, use)
    finally:
        server.kill()
