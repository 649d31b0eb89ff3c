"""Load on a server, from outside: an open-loop client that corrects for coordinated omission.

    python -m pegboard.loadtest http://127.0.0.1:8080/predict --rate 300 --body request.json

Requests are due at fixed times, whether or not earlier ones were answered, and a latency counts
from the time a request was due: while a server stands still, every request that was due then waits,
as its callers would (Tene, "How NOT to measure latency"; wrk2). A client that waits for each answer
before it asks again would note one slow request instead.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import gc
import json
import os
import re
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import numpy as np

from pegboard.errors import PegboardError
from pegboard.records import Array

Bodies = Sequence[bytes] | Callable[[int], bytes]
"""Bodies that are sent in turn, or a function of a request's number."""

CONNECTIONS = 32
TIMEOUT = 10.0
MOST_REQUESTS = 2_000_000
MOST_CONNECTIONS = 900
"""Below the 1,024 files that a process may commonly open."""

RETRY_SECONDS = 0.05
"""Between attempts to connect again, and between looks for requests that took too long."""

LOST, REFUSED, TIMED_OUT, UNREADABLE = "lost", "refused", "timed out", "unreadable"


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Requests to one URL, to be sent beside others in one schedule."""

    name: str
    """What its result is called."""
    url: str
    """`http://host:port/path`."""
    bodies: Bodies = (b"",)
    """What is posted; made before the first request is due."""
    rate: float = 100.0
    """Requests a second."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Sent with every request, beside Host, Content-Type and Content-Length."""
    connections: int = CONNECTIONS
    """Connections that are kept open; a request that finds none free waits, and that counts."""
    method: str = "POST"
    """The HTTP method."""


@dataclass(frozen=True, kw_only=True)
class LoadResult:
    """What became of requests, in the order in which they were due."""

    dues: Array
    """Seconds from the first request to the time at which each was due."""
    latencies: Array
    """Seconds from the time a request was due to its whole answer; infinite without one."""
    services: Array
    """Seconds from sending a request to its whole answer: what a closed-loop client would note."""
    statuses: Array
    """The HTTP status; 0 where no answer came."""
    errors: Mapping[str, int]
    """Requests without an answer by cause: `lost`, `refused`, `timed out`, `unreadable`."""
    seconds: float
    """From the first request due to the last answer."""
    cpu_seconds: float
    """What this client itself took of the CPU, for all traffic of the run."""

    @property
    def sent(self) -> int:
        """Requests that were due."""
        return len(self.statuses)

    @property
    def answered(self) -> int:
        """Requests that got an answer, whatever its status."""
        return int(np.count_nonzero(self.statuses))

    @property
    def achieved_rate(self) -> float:
        """Answers a second."""
        return self.answered / self.seconds if self.seconds else 0.0

    def latency_ms(self, percentile: float) -> float:
        """Return a percentile of the latency, in milliseconds; infinite where answers lack."""
        return _percentile_ms(self.latencies, percentile)

    def service_ms(self, percentile: float) -> float:
        """Return a percentile of the time from sending to the answer, in milliseconds."""
        return _percentile_ms(self.services, percentile)

    def tables(self) -> dict[str, Any]:
        """Return what is worth printing, as JSON takes it: null where a percentile is infinite."""
        counts = Counter(int(status) for status in self.statuses if status)
        percentiles = {f"p{p}_ms": self.latency_ms(p) for p in (50, 90, 99, 99.9, 100)}
        return {
            "sent": self.sent,
            "answered": self.answered,
            "statuses": {str(status): counts[status] for status in sorted(counts)},
            "errors": dict(self.errors),
            "rate": round(self.achieved_rate, 1),
            **{name: round(ms, 4) if np.isfinite(ms) else None for name, ms in percentiles.items()},
            "seconds": round(self.seconds, 3),
            "client_cpu_seconds": round(self.cpu_seconds, 4),
        }


def _percentile_ms(seconds: Array, percentile: float) -> float:
    # The next higher one, because there is nothing between a number and infinity.
    return float(np.percentile(seconds, percentile, method="higher") * 1e3) if len(seconds) else 0.0


def run(
    url: str,
    bodies: Bodies = (b"",),
    *,
    rate: float,
    seconds: float,
    connections: int = CONNECTIONS,
    headers: Mapping[str, str] | None = None,
    timeout: float = TIMEOUT,
    seed: int | None = None,
) -> LoadResult:
    """Send requests at a rate, come what may of the earlier ones.

    Args:
        url: `http://host:port/path`; nothing is sent anywhere else.
        bodies: What is posted, in turn, or a function of a request's number.
        rate: Requests a second.
        seconds: Time from the first request to the last.
        connections: Connections that are kept open.
        headers: Sent with every request.
        timeout: Seconds after which a request that has no answer is given up.
        seed: Arrivals are Poisson with this seed; evenly spaced without one.

    Raises:
        PegboardError: Nothing answers there, or what is asked for has no bounds.
    """
    traffic = Traffic(
        name="", url=url, bodies=bodies, rate=rate, connections=connections, headers=headers or {}
    )
    return run_together([traffic], seconds=seconds, timeout=timeout, seed=seed)[""]


def run_together(
    traffics: Sequence[Traffic],
    *,
    seconds: float,
    timeout: float = TIMEOUT,
    seed: int | None = None,
) -> dict[str, LoadResult]:
    """Send several kinds of requests in one schedule, so that noise hits all of them alike.

    Args:
        traffics: What is sent; each has its own rate, connections and name.
        seconds: Time from the first request to the last.
        timeout: Seconds after which a request that has no answer is given up.
        seed: Arrivals are Poisson with this seed; evenly spaced and interleaved without one.

    Returns:
        A result for each name.

    Raises:
        PegboardError: Nothing answers there, or what is asked for has no bounds.
    """
    _check(traffics, seconds, timeout)
    dues = [_dues(traffics, index, seconds, seed) for index in range(len(traffics))]
    pools = [_Open(traffic, timeout, len(due)) for traffic, due in zip(traffics, dues, strict=True)]
    return _results(pools, _send_on_schedule(pools, dues))


def saturate(
    url: str,
    bodies: Bodies = (b"",),
    *,
    seconds: float,
    connections: int = CONNECTIONS,
    headers: Mapping[str, str] | None = None,
    timeout: float = TIMEOUT,
) -> LoadResult:
    """Ask again on each connection as soon as it is answered: the most that a server can do.

    A closed loop: its `achieved_rate` is the throughput; its latencies hide what a stall does to
    callers, `run` shows it. A function for `bodies` is called between requests, so keep it cheap.

    Raises:
        PegboardError: Nothing answers there, or what is asked for has no bounds.
    """
    traffic = Traffic(
        name="", url=url, bodies=bodies, rate=1, connections=connections, headers=headers or {}
    )
    _check([traffic], seconds, timeout)
    pool = _Closed(traffic, timeout)
    return _results([pool], _send_at_will(pool, seconds))[""]


def _check(traffics: Sequence[Traffic], seconds: float, timeout: float) -> None:
    if len({traffic.name for traffic in traffics}) < len(traffics) or not traffics:
        raise PegboardError("each kind of traffic needs a name of its own", remedy="name them")
    for traffic in traffics:
        _address(traffic.url)
        if not callable(traffic.bodies) and not traffic.bodies:
            raise PegboardError("there is no body to send", where=traffic.url, remedy="give one")
    _between("rate", min(traffic.rate for traffic in traffics), 1_000_000)
    _between("seconds", seconds, 86_400)
    _between("timeout", timeout, 3_600)
    _between("connections", min(traffic.connections for traffic in traffics), MOST_CONNECTIONS)
    _between("connections", sum(traffic.connections for traffic in traffics), MOST_CONNECTIONS)
    _between("requests", sum(traffic.rate * seconds for traffic in traffics), MOST_REQUESTS)


def _between(name: str, value: float, most: float) -> None:
    if not 0 < value <= most:
        raise PegboardError(
            f"{value:g} is no number of {name} for a load test", remedy=f"0 < {name} <= {most:,}"
        )


def _address(url: str) -> tuple[str, int, str]:
    parts = urlsplit(url)
    with contextlib.suppress(ValueError):
        if parts.scheme == "http" and parts.hostname:
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            return parts.hostname, parts.port or 80, path
    raise PegboardError(
        "the URL cannot be used", where=url, remedy="write http://host:port/path, without TLS"
    )


def _dues(traffics: Sequence[Traffic], index: int, seconds: float, seed: int | None) -> Array:
    rate = traffics[index].rate
    count = max(1, round(rate * seconds))
    if seed is None:
        # Each kind begins a fraction of its period later, so that they do not collide.
        return (np.arange(count) + index / len(traffics)) / rate
    return np.cumsum(np.random.default_rng((seed, index)).exponential(1 / rate, count))


# --------------------------------------------------------------------------- connections

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
_BODILESS = (204, 304)


class _Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request on its way."""

    __slots__ = ("_buffer", "_length", "_pool", "_transport", "request")

    def __init__(self, pool: _Pool) -> None:
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._length = 0
        self.request: int | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._pool.opened(self)

    def send(self, request: int, wire: bytes) -> None:
        assert self._transport is not None
        self.request = request
        self._transport.write(wire)

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data
        if len(data) < self._length:
            self._buffer = data
            return
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self._buffer = data
            return
        self._take(data, end)

    def _take(self, data: bytes, end: int) -> None:
        found = _LENGTH.search(data, 0, end)
        try:
            status = int(data[9:12])
            length = end + 4 + (int(found[1]) if found else _length_without(status))
        except ValueError:
            self.abort(UNREADABLE)
            return
        if len(data) < length:
            self._buffer, self._length = data, length
            return
        self._answer(status, closes=_CLOSE.search(data, 0, end) is not None)

    def _answer(self, status: int, *, closes: bool) -> None:
        request, self.request = self.request, None
        self._buffer, self._length = b"", 0
        if request is None:  # An answer to nothing: the server gave notice, or is confused.
            self.abort(UNREADABLE)
            return
        self._pool.answered(request, status)
        if closes:
            self.abort(LOST)
        else:
            self._pool.free(self)

    def abort(self, cause: str) -> None:
        """Give the connection up, and the request that is on its way with it."""
        self._fail(cause)
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(LOST)
        self._pool.closed(self)

    def _fail(self, cause: str) -> None:
        request, self.request = self.request, None
        if request is not None:
            self._pool.failed(request, cause)


def _length_without(status: int) -> int:
    if status in _BODILESS:
        return 0
    raise ValueError("an answer without a content-length")


class _Pool:
    """The connections of one traffic and the notes on its requests."""

    def __init__(self, traffic: Traffic, timeout: float) -> None:
        self.traffic = traffic
        self.errors: Counter[str] = Counter()
        self.due: list[float] = []
        self.sent: list[float] = []
        self.done: list[float] = []
        self.status: list[int] = []
        self.left = 0
        self.ended: asyncio.Future[None] | None = None
        self._timeout = timeout
        self._host, self._port, path = _address(traffic.url)
        self._head = _head(traffic, self._host, self._port, path)
        self._all: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False

    def wire_of(self, number: int) -> bytes:
        """Return a request as it is sent."""
        bodies = self.traffic.bodies
        body = bodies(number) if callable(bodies) else bodies[number % len(bodies)]
        return b"%scontent-length: %d\r\n\r\n%s" % (self._head, len(body), body)

    async def start(self) -> None:
        """Open the connections.

        Raises:
            PegboardError: Nothing answers there.
        """
        self.ended = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(self._timeout):
                for _ in range(self.traffic.connections):
                    await self._connect()
        except (OSError, TimeoutError) as error:
            raise PegboardError(
                f"nothing answers ({type(error).__name__})",
                where=self.traffic.url,
                remedy="start the server first",
            ) from None
        self._begin_task(self._look_after())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: _Connection(self), self._host, self._port)

    async def stop(self) -> None:
        """Close the connections."""
        self._stopping = True
        # Not cancelled: uvloop closes a connection in the making without telling its protocol.
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._timeout)
        for connection in list(self._all):
            connection.abort(LOST)
        await asyncio.sleep(0.001)  # The transports close before the loop does.

    def opened(self, connection: _Connection) -> None:
        """Take a new connection in, or leave one that comes when all is over."""
        self._all.add(connection)
        if self._stopping:
            connection.abort(LOST)
        else:
            self.free(connection)

    def closed(self, connection: _Connection) -> None:
        """Open another connection for one that ended."""
        self._all.discard(connection)
        if not self._stopping:
            self._begin_task(self._reconnect())

    def _begin_task(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reconnect(self) -> None:
        while not self._stopping:
            try:
                await self._connect()
                break
            except OSError:
                if not self._all:
                    self.refuse()
            await asyncio.sleep(RETRY_SECONDS)

    async def _look_after(self) -> None:
        while not self._stopping:
            await asyncio.sleep(RETRY_SECONDS)
            oldest = time.monotonic() - self._timeout
            for connection in list(self._all):
                if connection.request is not None and self.due[connection.request] < oldest:
                    connection.abort(TIMED_OUT)
            self.give_up(oldest)

    def send(self, connection: _Connection, request: int, wire: bytes) -> None:
        """Send a request and note when."""
        self.sent[request] = time.monotonic()
        connection.send(request, wire)

    def answered(self, request: int, status: int) -> None:
        """Note an answer."""
        self.done[request] = time.monotonic()
        self.status[request] = status
        self._count_down()

    def failed(self, request: int, cause: str) -> None:
        """Note that no answer will come."""
        self.errors[cause] += 1
        self._count_down()

    def _count_down(self) -> None:
        self.left -= 1
        if not self.left and self.ended is not None and not self.ended.done():
            self.ended.set_result(None)

    def free(self, connection: _Connection) -> None:
        """Take a connection that can carry a request."""
        raise NotImplementedError

    def refuse(self) -> None:
        """Give up what waits for a connection: the server takes none."""

    def give_up(self, oldest: float) -> None:
        """Give up what was due before `oldest` and waits for a connection."""


def _head(traffic: Traffic, host: str, port: int, path: str) -> bytes:
    headers = {"host": f"{host}:{port}", "content-type": "application/json"}
    headers |= {name.lower(): value for name, value in traffic.headers.items()}
    lines = [f"{traffic.method} {path} HTTP/1.1", *(f"{n}: {v}" for n, v in headers.items())]
    if any(character in line for line in lines for character in "\r\n"):
        raise PegboardError("a header has a line break", where=traffic.url, remedy="remove it")
    return "".join(f"{line}\r\n" for line in lines).encode("latin-1")


class _Open(_Pool):
    """Requests are due when the schedule says so, and wait for a free connection."""

    def __init__(self, traffic: Traffic, timeout: float, count: int) -> None:
        super().__init__(traffic, timeout)
        self.left = count
        self.sent, self.done, self.status = [np.inf] * count, [np.inf] * count, [0] * count
        self.wires = self._wires(count)
        self._free: deque[_Connection] = deque()
        self._waiting: deque[int] = deque()

    def _wires(self, count: int) -> list[bytes]:
        # Before the clock starts: making a body must not delay the request after it.
        if callable(self.traffic.bodies):
            return [self.wire_of(number) for number in range(count)]
        different = [self.wire_of(number) for number in range(len(self.traffic.bodies))]
        return [different[number % len(different)] for number in range(count)]

    def fall_due(self, request: int) -> None:
        """Send a request, or let it wait for a connection."""
        if self._free:
            self.send(self._free.popleft(), request, self.wires[request])
        else:
            self._waiting.append(request)

    def free(self, connection: _Connection) -> None:
        if self._waiting:
            request = self._waiting.popleft()
            self.send(connection, request, self.wires[request])
        else:
            self._free.append(connection)

    def closed(self, connection: _Connection) -> None:
        with contextlib.suppress(ValueError):
            self._free.remove(connection)
        super().closed(connection)

    def refuse(self) -> None:
        while self._waiting:
            self.failed(self._waiting.popleft(), REFUSED)

    def give_up(self, oldest: float) -> None:
        while self._waiting and self.due[self._waiting[0]] < oldest:
            self.failed(self._waiting.popleft(), TIMED_OUT)


class _Closed(_Pool):
    """Each connection asks again as soon as it is answered, until the time is over."""

    def __init__(self, traffic: Traffic, timeout: float) -> None:
        super().__init__(traffic, timeout)
        self.until = 0.0
        self._ready: list[_Connection] = []
        bodies = traffic.bodies
        # Bodies that come again are put together once.
        self._wires = [] if callable(bodies) else [self.wire_of(i) for i in range(len(bodies))]

    def begin(self, until: float) -> None:
        """Let every connection ask."""
        self.until = until
        for connection in self._ready:
            self.free(connection)

    def free(self, connection: _Connection) -> None:
        now = time.monotonic()
        if not self.until:
            self._ready.append(connection)
        elif now < self.until and len(self.due) < MOST_REQUESTS:
            request = len(self.due)
            wire = self._wires[request % len(self._wires)] if self._wires else self.wire_of(request)
            self.left += 1
            self.due.append(now)
            self.sent.append(now)
            self.done.append(np.inf)
            self.status.append(0)
            connection.send(request, wire)


# --------------------------------------------------------------------------- the clock


class _Alarm:
    """Calls back at a point of `time.monotonic`, to microseconds.

    The timers of event loops are whole milliseconds, too coarse for latencies of one; a timer of
    the Linux kernel is not, and costs no busy waiting. Elsewhere the loop's timers have to do.
    """

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback = callback
        self._loop = asyncio.get_running_loop()
        self._file = -1
        if sys.platform == "linux":
            self._libc = ctypes.CDLL(None)
            self._file = self._libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_CLOEXEC)
        if self._file >= 0:
            self._loop.add_reader(self._file, callback)

    def set(self, when: float) -> None:
        if self._file < 0:
            self._loop.call_later(max(0.0, when - time.monotonic()), self._callback)
            return
        whole = int(when)
        # An absolute time; setting it anew also takes back that the file is readable.
        times = (ctypes.c_long * 4)(0, 0, whole, int((when - whole) * 1e9))
        self._libc.timerfd_settime(self._file, 1, times, None)

    def close(self) -> None:
        if self._file >= 0:
            self._loop.remove_reader(self._file)
            os.close(self._file)


class _Schedule:
    """Lets the requests of all pools fall due, in order."""

    def __init__(self, pools: Sequence[_Open], dues: Sequence[Array], began: float) -> None:
        times = began + np.concatenate(dues)
        owners = np.repeat(np.arange(len(pools)), [len(due) for due in dues])
        numbers = np.concatenate([np.arange(len(due)) for due in dues])
        order = np.argsort(times, kind="stable")
        self._times: list[float] = times[order].tolist()
        self._owners = [pools[owner] for owner in owners[order]]
        self._numbers: list[int] = numbers[order].tolist()
        self._next = 0
        self._alarm = _Alarm(self._ring)
        for pool, due in zip(pools, dues, strict=True):
            pool.due = (began + due).tolist()

    def start(self) -> None:
        self._alarm.set(self._times[0])

    def close(self) -> None:
        self._alarm.close()

    def _ring(self) -> None:
        now = time.monotonic()
        index, times = self._next, self._times
        while index < len(times) and times[index] <= now:
            self._owners[index].fall_due(self._numbers[index])
            index += 1
        self._next = index
        # After the last one the far future takes back that the file is readable.
        self._alarm.set(times[index] if index < len(times) else now + 1e6)


async def _send_on_schedule(pools: Sequence[_Open], dues: Sequence[Array]) -> None:
    try:
        for pool in pools:
            await pool.start()
        schedule = _Schedule(pools, dues, time.monotonic() + RETRY_SECONDS)
        with contextlib.closing(schedule):
            schedule.start()
            await asyncio.gather(*(pool.ended for pool in pools if pool.ended))
    finally:
        for pool in pools:
            await pool.stop()


async def _send_at_will(pool: _Closed, seconds: float) -> None:
    try:
        await pool.start()
        pool.begin(time.monotonic() + seconds)
        await asyncio.sleep(seconds)
        while pool.left:  # Ends: what takes too long is given up.
            await asyncio.sleep(RETRY_SECONDS / 10)
    finally:
        await pool.stop()


def _results(pools: Sequence[_Pool], work: Any) -> dict[str, LoadResult]:
    with _steady(), asyncio.Runner(loop_factory=_loop_factory()) as runner:
        before = time.process_time()
        runner.run(work)
        cpu = time.process_time() - before
    return {pool.traffic.name: _result_of(pool, cpu) for pool in pools}


def _result_of(pool: _Pool, cpu: float) -> LoadResult:
    due, sent, done = (np.array(times) for times in (pool.due, pool.sent, pool.done))
    answered = np.isfinite(done)
    services = np.full(len(done), np.inf)
    services[answered] = done[answered] - sent[answered]
    last = max(done[answered].max(initial=0.0), due.max(initial=0.0))
    return LoadResult(
        dues=due - due.min(initial=np.inf),
        latencies=done - due,
        services=services,
        statuses=np.array(pool.status, dtype=np.int16),
        errors=dict(pool.errors),
        seconds=float(last - due.min()) if len(due) else 0.0,
        cpu_seconds=cpu,
    )


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


@contextlib.contextmanager
def _steady() -> Iterator[None]:
    # A collection would stop the client and count as the server's slowness.
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


# --------------------------------------------------------------------------- the command


def main(arguments: Sequence[str] | None = None) -> int:
    """Send load as the command line says and print the results as JSON."""
    asked = _parser().parse_args(arguments)
    try:
        traffics = _traffics_of(asked)
        results = {name: result.tables() for name, result in _measure(asked, traffics).items()}
    except PegboardError as error:
        print(error, file=sys.stderr)  # noqa: T201  What a command says, it prints.
        return error.exit_code
    print(json.dumps(results, indent=2))  # noqa: T201
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pegboard.loadtest", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("urls", nargs="+", metavar="[NAME=]URL", help="Where requests go, one schedule for all.")
    add("--rate", type=float, nargs="+", default=[100.0], help="Requests a second, for each URL.")
    add("--body", type=Path, nargs="+", default=[], help="File for each URL; .jsonl: one a line.")
    add("--seconds", type=float, default=10.0)
    add("--connections", type=int, default=CONNECTIONS, help="For each URL.")
    add("--timeout", type=float, default=TIMEOUT, help="Seconds.")
    add("--header", action="append", default=[], metavar="NAME:VALUE")
    add("--token-env", metavar="NAME", help="Environment variable that holds a bearer token.")
    add("--poisson", type=int, metavar="SEED", help="Poisson arrivals instead of even ones.")
    add("--saturate", action="store_true", help="Closed loop: the most that a server can do.")
    return parser


def _traffics_of(asked: argparse.Namespace) -> list[Traffic]:
    headers = dict(_header_of(line) for line in asked.header)
    if asked.token_env:
        headers["authorization"] = f"Bearer {os.environ.get(asked.token_env, '')}"
    rates, bodies = (_for_each(asked.urls, given) for given in (asked.rate, asked.body))
    return [
        Traffic(
            name=name,
            url=url,
            rate=rates[index],
            bodies=_read_bodies(bodies[index]) if bodies else (b"",),
            headers=headers,
            connections=asked.connections,
            method="POST" if bodies else "GET",
        )
        for index, (name, url) in enumerate(map(_named, asked.urls))
    ]


def _named(text: str) -> tuple[str, str]:
    name, equals, url = text.partition("=")
    return (name, url) if equals and "/" not in name else (text, text)


def _for_each(urls: Sequence[str], given: Sequence[Any]) -> list[Any]:
    if len(given) in (0, len(urls)):
        return list(given)
    if len(given) == 1:
        return list(given) * len(urls)
    raise PegboardError(
        f"there are {len(urls)} URLs and {len(given)} values", remedy="give one, or one for each"
    )


def _header_of(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon:
        raise PegboardError("a header has no colon", where="--header", remedy="write 'Name: value'")
    return name.strip(), value.strip()


def _read_bodies(path: Path) -> list[bytes]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PegboardError(
            f"the body cannot be read ({error.strerror})", where=str(path), remedy="name a file"
        ) from None
    return content.splitlines() if path.suffix == ".jsonl" else [content]


def _measure(asked: argparse.Namespace, traffics: Sequence[Traffic]) -> dict[str, LoadResult]:
    if not asked.saturate:
        return run_together(
            traffics, seconds=asked.seconds, timeout=asked.timeout, seed=asked.poisson
        )
    return {
        traffic.name: saturate(
            traffic.url,
            traffic.bodies,
            seconds=asked.seconds,
            connections=traffic.connections,
            headers=traffic.headers,
            timeout=asked.timeout,
        )
        for traffic in traffics
    }


if __name__ == "__main__":
    sys.exit(main())
