"""A real server of decisions that is asked nonsense, and ended in the middle of its work."""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from pegboard.bundle import read_bundle
from pegboard.serving.openinference import ask_tensors
from pegboard.serving.process import ServerProcess, running_server
from pegboard_fraud import decisions
from pegboard_fraud.settings import FraudServe, FraudSettings

pytestmark = pytest.mark.slow

Serve = Callable[..., AbstractContextManager[ServerProcess]]
CARD = "4111111111111111"
MARK = "s3cr3t-marker"
TOKEN = "let-me-change-it"
HEADERS = {"authorization": f"Bearer {TOKEN}"}
KEY = "a key of the tests"


@pytest.fixture(scope="session")
def fraud_bundle(tmp_path_factory: pytest.TempPathFactory, pegboard: Callable[..., Any]) -> Path:
    """Return a verified bundle of a model that learnt for a few steps."""
    folder = tmp_path_factory.mktemp("fraud")
    (folder / "pegboard.toml").write_text(
        'solution = "fraud"\n[data]\ntiny = true\n[train]\nepochs = 1\nmax_steps = 20\n'
        '[deploy]\ntargets = ["onnx"]\ngolden = 4\n'
    )
    ended = pegboard("verify", folder=folder)
    assert ended.returncode == 0, ended.stderr
    return next(folder.glob("runs/*/bundle"))


@pytest.fixture
def serve(fraud_bundle: Path, tmp_path: Path) -> Serve:
    """Return a function that runs a server on the test's folder, again and again."""
    environment = {"PEGBOARD_IDENTIFIER_KEY": KEY}

    def start(*words: str | Path, **more: str) -> AbstractContextManager[ServerProcess]:
        log = tmp_path / f"server-{len(list(tmp_path.glob('*.log')))}.log"
        words = ("--bundle", fraud_bundle, *words)
        return running_server(*words, folder=tmp_path, log=log, environment=environment | more)

    return start


# --- What the document promises -------------------------------------------------------------------


def test_every_answer_is_one_that_the_openapi_document_promises(
    serve: Serve, ask_whatever_is_allowed: Callable[..., dict[str, set[int]]]
) -> None:
    tokens = {"PEGBOARD_SERVE_TOKEN": TOKEN, "PEGBOARD_ADMIN_TOKEN": TOKEN}
    with serve("serve.sync=false", **tokens) as server:
        statuses = ask_whatever_is_allowed(server.url, HEADERS, examples=150)
        assert server.stop() == 0
    assert statuses["PUT /admin/bundle"] >= {409, 422}
    assert {200, 422} <= statuses["POST /decisions"]
    assert {200, 422} <= statuses["POST /feedback"]
    assert statuses["GET /rules"] == {200}
    assert "error" not in server.log.read_text()


# --- Ten thousand requests that are wrong somewhere -----------------------------------------------

HOSTILE: tuple[Any, ...] = (
    None,
    True,
    -1,
    0.5,
    2**63,
    -(2**64),
    10**400,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x" * 200_000,
    "\ud800",
    "\udfff\ud800",
    "\x00\u202e\ufeff\u0301" * 9,
    "\U0001f4b3" * 130,
    MARK,
    CARD,
    f"{MARK} {CARD}",
    "9" * 5000,
    "-0001-13-45T99:99",
    [],
    {},
    [[]],
    [MARK] * 3000,
    {MARK: CARD},
    {CARD: MARK},
    {"\ud800": MARK},
)
"""Values that stand somewhere in a request instead of what belongs there."""

FRAGMENTS = (
    b"\x00",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"NaN",
    b"-Infinity",
    b"1e99999",
    b"[" * 3000,
    b'{"a":' * 3000,
    b"]",
    b'"',
    b"\\u",
    b"\\ud800",
    MARK.encode(),
    CARD.encode(),
    b"\r\n\r\n",
    b"0" * 70_000,
)
"""Bytes that stand somewhere in a request between others."""

START_LINES = (
    b"",
    b"\r\n\r\n",
    b"GET\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"POST /predict HTTP/9.9",
    b"POST /predict HTTP/1.0",
    b"PRI * HTTP/2.0",
    b"s3cr3t-marker s3cr3t-marker s3cr3t-marker",
    b"POST /" + b"a" * 100_000 + b" HTTP/1.1",
    b"POST http://[::1/decisions HTTP/1.1",
    b"POST /%00%ff%zz/s3cr3t-marker HTTP/1.1",
    b"POST /decisions?card=4111111111111111&s3cr3t-marker HTTP/1.1",
    b"POST //decisions/../s3cr3t-marker HTTP/1.1",
    b"CONNECT s3cr3t-marker:443 HTTP/1.1",
    b"OPTIONS * HTTP/1.1",
    b"TRACE /decisions HTTP/1.1",
)
"""First lines of requests, of which hardly one asks for anything."""

HEADER_LINES = (
    b"content-length: 5",
    b"content-length: -1",
    b"content-length: +7",
    b"content-length: 99999999999999999999999",
    b"content-length: s3cr3t-marker",
    b"transfer-encoding: chunked",
    b"transfer-encoding: s3cr3t-marker",
    b"content-type: text/s3cr3t-marker",
    b"content-type: application/json; charset=utf-16",
    b"content-encoding: gzip",
    b"expect: 100-continue",
    b"expect: s3cr3t-marker",
    b"upgrade: websocket\r\nconnection: upgrade",
    b"connection: close, s3cr3t-marker",
    b"inference-header-content-length: 0",
    b"inference-header-content-length: 1",
    b"inference-header-content-length: -7",
    b"inference-header-content-length: 99999999999999999999999",
    b"inference-header-content-length: \xb2",
    b"inference-header-content-length: s3cr3t-marker",
    b"authorization: Bearer s3cr3t-marker",
    b"authorization: \xff\xfe",
    b"x-card: 4111111111111111",
    b"cookie: " + b"s3cr3t-marker" * 4000,
    b"no colon at all",
    b": no name",
    b"a\x00b: c",
    b" folded: s3cr3t-marker",
)
"""Headers that nobody asked for."""


@dataclass(frozen=True, kw_only=True)
class Sent:
    """A request as its bytes."""

    start: bytes
    """Its first line."""
    body: bytes
    """Behind the headers."""
    headers: tuple[bytes, ...] = ()
    """Beside its length."""
    chunked: bytes = b""
    """What stands for the body, in chunks."""
    share: float = 1.0
    """How much of it is sent before the client falls silent."""
    whole: bool = True
    """Whether the server can tell its end, so that it has to answer."""

    def to_bytes(self) -> bytes:
        """Return what goes over the wire."""
        named = b"".join(self.headers).lower()
        is_sized = b"content-length: " in named.replace(b"header-content-length", b"")
        is_sized = is_sized or b"transfer-encoding" in named
        length = () if is_sized else (b"content-length: %d" % len(self.body),)
        head = b"\r\n".join((self.start, b"host: localhost", *length, *self.headers))
        whole = head + b"\r\n\r\n" + (self.chunked or self.body)
        return whole[: int(len(whole) * self.share)]


def valid_requests(bundle: Path) -> list[Sent]:
    """Return a right request for every path that takes a body."""
    features = read_bundle(bundle).golden()[0].inputs
    binary, headers = ask_tensors(features)
    tensor = {"name": "features", "datatype": "FP32", "shape": list(features["features"].shape)}
    tensor["data"] = features["features"].ravel().tolist()
    infer = f"POST /v2/models/{read_bundle(bundle).solution}/infer HTTP/1.1".encode()
    lengths = tuple(f"{name}: {value}".encode() for name, value in headers.items())
    right = example(0)
    asked = {"history": [right | {"label": 0}], "transactions": [example(1)]}
    return [
        Sent(start=b"POST /predict HTTP/1.1", body=to_json(asked)),
        Sent(start=infer, body=to_json({"id": "a", "inputs": [tensor], "outputs": []})),
        Sent(start=infer, body=binary, headers=lengths),
        Sent(start=b"POST /decisions HTTP/1.1", body=to_json(right)),
        Sent(start=b"POST /feedback HTTP/1.1", body=to_json({"id": right["id"], "fraud": True})),
    ]


def to_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def example(number: int) -> dict[str, Any]:
    return decisions.example(FraudSettings(serve=FraudServe(clock="system")), number)


def mutated(sent: Sent, chance: random.Random) -> Sent:
    """Return a request with one to three things wrong, most often in its JSON."""
    changes = (damage_json, damage_bytes, damage_headers, damage_start, damage_framing)
    for change in chance.choices(changes, weights=(9, 4, 2, 1, 1), k=chance.choice((1, 1, 2, 3))):
        sent = change(sent, chance)
    return sent


def damage_bytes(sent: Sent, chance: random.Random) -> Sent:
    body = bytearray(sent.body)
    place, end = sorted(chance.choices(range(len(body) + 1), k=2))
    match chance.randrange(5):
        case 0:
            for _ in range(chance.randrange(1, 9) if body else 0):
                body[chance.randrange(len(body))] ^= 1 << chance.randrange(8)
        case 1:
            del body[place:]
        case 2:
            del body[place:end]
        case 3:
            body[place:place] = body[place:end] * chance.choice((1, 1, 50))
        case _:
            body[place:place] = chance.choice(FRAGMENTS)
    return replace(sent, body=bytes(body))


def damage_json(sent: Sent, chance: random.Random) -> Sent:
    try:
        tree, rest = json.JSONDecoder().raw_decode(sent.body.decode("latin-1"))
    except (ValueError, RecursionError):
        return damage_bytes(sent, chance)
    parents = list(containers(tree))
    if not parents:
        return replace(sent, body=to_json(chance.choice(HOSTILE)))
    parent = chance.choice(parents)
    key = chance.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
    match chance.randrange(4):
        case 0:
            del parent[key]
        case 1 if isinstance(parent, dict):
            parent[chance.choice((MARK, CARD, "", "\ud800", key * 9))] = parent.pop(key)
        case 2:
            for _ in range(chance.choice((1, 9, 300))):
                parent[key] = [parent[key]] if chance.random() < 0.5 else {key: parent[key]}
        case _:
            parent[key] = chance.choice(HOSTILE)
    body = to_json(tree) + sent.body[rest:]
    headers = tuple(
        b"inference-header-content-length: %d" % (len(body) - len(sent.body[rest:]))
        if header.lower().startswith(b"inference-header") and chance.random() < 0.8
        else header
        for header in sent.headers
    )
    return replace(sent, body=body, headers=headers)


def containers(tree: Any) -> Iterator[Any]:
    """Yield everything in a JSON value that holds something."""
    if isinstance(tree, dict | list) and tree:
        yield tree
        for item in tree.values() if isinstance(tree, dict) else tree[:50]:
            yield from containers(item)


def damage_headers(sent: Sent, chance: random.Random) -> Sent:
    headers = list(sent.headers)
    if headers and chance.random() < 0.3:
        del headers[chance.randrange(len(headers))]
    headers += chance.choices(HEADER_LINES, k=chance.choice((1, 1, 2)))
    # Where a length is wrong, the server may wait for what never comes.
    return replace(sent, headers=tuple(headers), whole=False)


def damage_start(sent: Sent, chance: random.Random) -> Sent:
    return replace(sent, start=chance.choice((sent.start, *START_LINES)), whole=False)


def damage_framing(sent: Sent, chance: random.Random) -> Sent:
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(sent.body), sent.body)
    chunked = (*sent.headers, b"transfer-encoding: chunked")
    longer = b"content-length: %d" % (len(sent.body) + chance.randrange(1, 99))
    match chance.randrange(5):
        case 0:
            return replace(sent, chunked=chunks, headers=chunked)
        case 1:
            cut = chunks[: chance.randrange(1, len(chunks))]
            return replace(sent, chunked=cut, headers=chunked, whole=False)
        case 2:
            wrong = chunks.replace(b"\r\n", b"zz\r\n", 1)
            return replace(sent, chunked=wrong, headers=chunked, whole=False)
        case 3:
            return replace(sent, headers=(*sent.headers, longer), whole=False)
        case _:
            return replace(sent, share=chance.random(), whole=False)


def exchange(server: ServerProcess, sent: Sent, timeout: float) -> int | None:
    """Send a request on a connection of its own; return the status, None where none came."""
    with socket.create_connection((server.host, server.port), timeout) as connection:
        got = b""
        try:
            connection.sendall(sent.to_bytes())
            if not sent.whole:
                connection.settimeout(0.1)
            while b"\r\n" not in got:
                part = connection.recv(65536)
                if not part:
                    break
                got += part
        except ConnectionError:
            pass  # It had seen enough.
        except TimeoutError:
            assert not sent.whole, "a whole request was not answered"
    return int(got.split(b" ", 2)[1]) if got else None


def memory(server: ServerProcess) -> float:
    """Return the megabytes that a server holds."""
    pages = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def open_files(server: ServerProcess) -> int:
    return sum(1 for _ in Path(f"/proc/{server.process.pid}/fd").iterdir())


def test_ten_thousand_mutated_requests_harm_nobody(
    serve: Serve, fraud_bundle: Path, tmp_path: Path
) -> None:
    """No 500, no hang, no leak, and nothing that was sent is in the log or in a metric."""
    right = valid_requests(fraud_bundle)
    golden = read_bundle(fraud_bundle).signature.request
    chance = random.Random(20261122)
    with serve("serve.sync=false") as server, ThreadPoolExecutor(6) as pool:

        def ask(count: int) -> list[int | None]:
            wrong = [mutated(chance.choice(right), chance) for _ in range(count)]
            return list(pool.map(lambda sent: exchange(server, sent, 10.0), wrong))

        assert {exchange(server, sent, 10.0) for sent in right} == {200}
        before = server.ask("POST", "/predict", golden).json()
        idle = open_files(server)
        statuses = ask(2000)
        held = memory(server)
        for _ in range(8):
            statuses += ask(1000)
        grown = memory(server) - held
        assert server.ask("POST", "/predict", golden).json() == before
        wait_until(lambda: open_files(server) <= idle)
        metrics = server.ask("GET", "/metrics").body.decode()
        assert server.stop() == 0
    seen = {status: statuses.count(status) for status in set(statuses)}
    print(f"{grown=:.1f} MB", seen)
    # The server counts those, too, for whose answer the client did not wait.
    assert not {status for status in seen if status and status >= 500}
    assert 'status="4' in metrics
    assert 'status="5' not in metrics
    assert {200, 400, 404, 405, 422} <= seen.keys()
    assert seen[200] + seen[422] > 5000, seen
    assert grown < 20, f"{grown:.1f} MB more after 8,000 requests"
    assert "error" not in server.log.read_text().lower()
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {".log", ".db"} & {path.suffix for path in kept}
    for text in (metrics.encode(), *(path.read_bytes() for path in kept)):
        assert MARK.encode() not in text
        assert CARD.encode() not in text


def wait_until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.05)


# --- An end in the middle of the work -------------------------------------------------------------

RULES = """version = "1"
[[rules]]
id = "fraud-was-here"
when = "terminal_frauds_7d > 0"
decision = "decline"
"""
WEEK_AND_A_DAY = 8 * 86400


class Clients:
    """Clients that ask for decisions and send labels as fast as they can, until told to stop."""

    def __init__(
        self, server: ServerProcess, first: int, lost: tuple[type[Exception], ...]
    ) -> None:
        self._server, self._first, self._lost = server, first, lost
        self._over = threading.Event()
        self.decided: list[tuple[dict[str, Any], dict[str, Any]]] = []
        """Transactions and what was decided and recorded."""
        self.labelled: list[tuple[dict[str, Any], bool]] = []
        """Transactions whose label was taken."""
        self.unanswered: list[dict[str, Any]] = []
        """Transactions that were sent, and nothing came back."""

    def run(self, seconds: float, end: Callable[[], None]) -> None:
        """Ask for so long, then end the server."""
        with ThreadPoolExecutor(4) as pool:
            asking = [pool.submit(self._ask, self._first + 100_000 * one) for one in range(4)]
            time.sleep(seconds)
            try:
                end()
            finally:
                self._over.set()
            for future in asking:
                future.result()

    def _ask(self, number: int) -> None:
        host, port = self._server.host, self._server.port
        with closing(http.client.HTTPConnection(host, port, timeout=30)) as connection:
            self._keep_asking(connection, number)

    def _keep_asking(self, connection: http.client.HTTPConnection, number: int) -> None:
        while not self._over.is_set():
            number += 1
            body = transaction(number)
            answer = self._post(connection, "/decisions", body)
            if answer is None:
                self.unanswered.append(body)
                return
            if answer["recorded"]:
                self.decided.append((body, answer))
            label = {"id": body["id"], "fraud": number % 2 == 0}
            taken = self._post(connection, "/feedback", label)
            if taken is None:
                return
            if taken.get("applied"):
                self.labelled.append((body, label["fraud"]))

    def _post(self, connection: http.client.HTTPConnection, path: str, body: Any) -> Any:
        try:
            connection.request("POST", path, to_json(body))
            reply = connection.getresponse()
        except self._lost:
            return None
        try:
            text = reply.read()
        except (OSError, http.client.HTTPException):
            if http.client.HTTPException in self._lost:
                return None
            raise  # What has begun must come whole, unless the server was killed.
        assert reply.status == 200 or (path, reply.status) == ("/feedback", 503)
        return json.loads(text)


def transaction(number: int) -> dict[str, Any]:
    """Make up a transaction at a terminal of its own, in a time that is replayed."""
    second = decisions.REPLAYED_FROM + number % 1000
    name = f"load-n{number}"
    return {"id": name, "time": second, "customer": "c7", "terminal": name, "amount": 20.0}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_server_that_ends_under_load_forgets_nothing_that_it_answered(
    serve: Serve, tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "rules.toml").write_text(RULES)
    words = ("serve.clock=transactions", f"serve.rules={tmp_path / 'rules.toml'}")
    killed = number is signal.SIGKILL
    # A closed connection is one without a single byte of an answer, where it is asked to end.
    lost = (OSError, http.client.HTTPException) if killed else (OSError,)
    every_turn: list[Clients] = []
    for turn in range(3):
        with serve(*words) as server:
            clients = Clients(server, turn * 1_000_000, lost)
            every_turn.append(clients)

            def end(process: subprocess.Popen[bytes] = server.process) -> None:
                process.send_signal(number)
                assert process.wait(60) == (-number if killed else 0)

            clients.run(random.uniform(0.3, 1.5), end)
    decided = [one for clients in every_turn for one in clients.decided]
    labelled = [one for clients in every_turn for one in clients.labelled]
    unanswered = [one for clients in every_turn for one in clients.unanswered]
    assert len(decided) > 100
    assert len(labelled) > 100
    with serve(*words) as server, ThreadPoolExecutor(4) as pool:

        def ask(body: dict[str, Any]) -> Any:
            return server.ask("POST", "/decisions", body).json()

        again = pool.map(ask, [body for body, _ in decided])
        for (_, answer), repeated in zip(decided, again, strict=True):
            assert repeated == answer | {"earlier": True}
        for answer in pool.map(ask, unanswered):
            assert answer["decision"] in ("approve", "review")
        later = [
            body | {"id": f"later-{body['id']}", "time": body["time"] + WEEK_AND_A_DAY}
            for body, _ in labelled
        ]
        for (_, fraud), answer in zip(labelled, pool.map(ask, later), strict=True):
            by_rule = answer["decided_by"] == {"kind": "rule", "id": "fraud-was-here"}
            assert by_rule == fraud, answer
        assert server.stop() == 0


# --- What it leaves out ---------------------------------------------------------------------------

DECIDE_ONCE = """
import asyncio, sys
from pathlib import Path
from pegboard.bundle import read_bundle
from pegboard.cli.predict import board_for
from pegboard.serving import server
from pegboard.serving.admin import build_admin
from pegboard.serving.http import Application
from pegboard.serving.service import Service
from pegboard.settings import read_sources

folder = Path(sys.argv[1])
bundle = read_bundle(folder)
board = board_for(bundle, Path())
service = Service(board, folder, sources=read_sources(None), root=Path())
application = Application(service, lambda: build_admin(service))

async def receive():
    return {"type": "http.request", "body": sys.argv[2].encode()}

async def send(message):
    print(message.get("status") or message["body"].decode())

async def ask(method, path):
    scope = {"type": "http", "method": method, "path": path, "headers": [], "query_string": b""}
    await application(scope, receive, send)

async def life():
    await service.start()
    await ask("POST", "/decisions")
    await ask("GET", "/metrics")
    await ask("GET", "/openapi.json")
    await service.close()

asyncio.run(life())
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_a_server_that_decides_imports_no_library_of_training(
    fraud_bundle: Path, tmp_path: Path
) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", DECIDE_ONCE, str(fraud_bundle), json.dumps(example(7))],
        cwd=tmp_path,
        env=os.environ | {"PEGBOARD_IDENTIFIER_KEY": KEY},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    status, answer, *_, modules = ended.stdout.splitlines()
    assert (status, json.loads(answer)["recorded"]) == ("200", True)
    heavy = {"torch", "polars", "sklearn", "xgboost", "onnx", "onnxscript", "matplotlib", "jinja2"}
    assert not (heavy | {"pandas", "scipy"}) & set(modules.split())
    assert "fastapi" in modules.split()
