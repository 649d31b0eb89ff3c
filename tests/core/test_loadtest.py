from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pegboard.errors import PegboardError
from pegboard.loadtest import Traffic, main, run, run_together, saturate

SERVER = '''
"""Answers by path: /ok, /bad (422), /stall (once 300 ms for all), /split, /close, /mute, /odd.

/mortal kills the server at its fortieth request.
"""

import asyncio, os, signal, sys, time

stalled = False
seen = []


def answer(status, body=b"{}", extra=b""):
    head = b"HTTP/1.1 %d X\\r\\n%sContent-Length: %d\\r\\n\\r\\n"
    return head % (status, extra, len(body)) + body


async def serve(reader, writer):
    global stalled
    while True:
        try:
            head = await reader.readuntil(b"\\r\\n\\r\\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return writer.close()
        path = head.split()[1]
        length = int(head.lower().split(b"content-length: ")[1].split(b"\\r\\n")[0])
        body = await reader.readexactly(length)
        if path == b"/seen":
            body = b",".join(seen)
            seen.clear()
            writer.write(answer(200, body))
            continue
        seen.append(body)
        if path == b"/mortal" and len(seen) == 40:
            os.kill(os.getpid(), signal.SIGKILL)
        if path == b"/stall" and body == b"stall" and not stalled:
            stalled = True
            time.sleep(0.3)
        if path == b"/split":
            for byte in answer(200, b"0123456789"):
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0)
        elif path == b"/close":
            writer.write(answer(200, extra=b"Connection: close\\r\\n"))
            return writer.close()
        elif path == b"/drop":
            return writer.close()
        elif path == b"/odd":
            writer.write(b"HTTP/1.1 200 OK\\r\\n\\r\\n")
        elif path != b"/mute":
            writer.write(answer(422 if path == b"/bad" else 200))


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


asyncio.run(main())
'''


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("server") / "server.py"
    path.write_text(SERVER)
    return path


@pytest.fixture
def server(script: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process, f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def url(server: tuple[subprocess.Popen[str], str]) -> str:
    return server[1]


def test_a_stall_of_the_server_counts_for_every_request_that_was_due_in_it(url: str) -> None:
    bodies = [b"stall" if number == 100 else b"{}" for number in range(400)]
    result = run(f"{url}/stall", bodies, rate=400, seconds=1, connections=4)
    # 300 ms at 400 a second: the 80 requests that were due in the first 200 waited longer than 100.
    assert np.count_nonzero(result.latencies > 0.1) >= 75
    assert np.all(result.latencies[101:175] > 0.1)
    assert result.latency_ms(99) > 200
    # What a client that waits for its answers would note: four slow requests in 400.
    assert np.count_nonzero(result.services > 0.1) <= 8
    assert result.service_ms(97) < 100
    assert result.errors == {} and result.answered == 400


def test_requests_are_sent_at_the_rate_and_their_statuses_counted(url: str) -> None:
    result = run(f"{url}/bad", rate=500, seconds=0.5)
    assert result.sent == result.answered == 250
    assert set(result.statuses) == {422}
    assert result.achieved_rate == pytest.approx(500, rel=0.1)
    assert result.tables()["statuses"] == {"422": 250}


def test_bodies_are_sent_in_turn_or_made_from_the_number(url: str) -> None:
    import urllib.request

    def seen() -> list[bytes]:
        with urllib.request.urlopen(f"{url}/seen", data=b"") as answer:
            return sorted(answer.read().split(b","))

    run(f"{url}/ok", [b"a", b"b"], rate=100, seconds=0.04)
    assert seen() == [b"a", b"a", b"b", b"b"]
    run(f"{url}/ok", lambda number: b"%d" % number, rate=100, seconds=0.04)
    assert seen() == [b"0", b"1", b"2", b"3"]


def test_an_answer_may_come_in_pieces(url: str) -> None:
    result = run(f"{url}/split", rate=50, seconds=0.2, connections=2)
    assert result.answered == 10 and result.errors == {}


def test_a_connection_that_the_server_closes_is_opened_again(url: str) -> None:
    result = run(f"{url}/close", rate=200, seconds=0.3, connections=2)
    assert result.answered == 60 and result.errors == {}


def test_several_urls_share_one_schedule_and_each_has_its_result(url: str) -> None:
    results = run_together(
        [
            Traffic(name="good", url=f"{url}/ok", rate=200),
            Traffic(name="bad", url=f"{url}/bad", rate=100),
        ],
        seconds=0.5,
        seed=1,
    )
    assert [set(results[name].statuses) for name in ("good", "bad")] == [{200}, {422}]
    assert [results[name].sent for name in ("good", "bad")] == [100, 50]


def test_poisson_arrivals_are_irregular_and_the_same_for_a_seed(url: str) -> None:
    results = [run(f"{url}/ok", rate=200, seconds=0.5, seed=seed) for seed in (0, 0, 1)]
    assert results[0].dues == pytest.approx(results[1].dues, abs=1e-6)
    assert results[0].dues != pytest.approx(results[2].dues, abs=1e-3)
    gaps = np.diff(results[0].dues)
    assert 0.7 < gaps.std() / gaps.mean() < 1.3


def test_where_nothing_listens_is_an_error_at_once(url: str) -> None:
    with pytest.raises(PegboardError, match=r"nothing answers.*start the server first"):
        run("http://127.0.0.1:1/x", rate=10, seconds=1)


def test_a_server_that_dies_is_counted_and_no_hang(url: str) -> None:
    result = run(f"{url}/mortal", rate=100, seconds=2, timeout=1)
    assert 1 <= result.answered <= 39
    assert set(result.errors) <= {"lost", "refused"} and result.errors["refused"] > 50
    assert result.answered + sum(result.errors.values()) == result.sent == 200
    assert result.latency_ms(99) == float("inf")
    assert result.tables()["p99_ms"] is None


def test_a_server_that_never_answers_is_given_up(url: str) -> None:
    began = time.monotonic()
    result = run(f"{url}/mute", rate=100, seconds=0.2, connections=4, timeout=0.3)
    assert result.errors == {"timed out": 20}
    assert time.monotonic() - began < 4


@pytest.mark.parametrize(("path", "cause"), [("drop", "lost"), ("odd", "unreadable")])
def test_an_answer_that_is_none_is_an_error_by_its_cause(url: str, path: str, cause: str) -> None:
    result = run(f"{url}/{path}", rate=100, seconds=0.2, connections=4)
    assert result.errors == {cause: 20}


def test_saturation_asks_as_fast_as_it_is_answered(url: str) -> None:
    result = saturate(f"{url}/ok", [b"a"], seconds=0.5, connections=4)
    assert result.answered == result.sent > 200
    assert result.achieved_rate > 500
    assert set(result.statuses) == {200}


def test_saturation_of_a_mute_server_ends(url: str) -> None:
    result = saturate(f"{url}/mute", seconds=0.2, connections=2, timeout=0.3)
    assert result.answered == 0 and result.errors["timed out"] >= 2


@pytest.mark.parametrize(
    "broken",
    [
        lambda: run("https://127.0.0.1/", rate=1, seconds=1),
        lambda: run("127.0.0.1:80", rate=1, seconds=1),
        lambda: run("http://127.0.0.1:x/", rate=1, seconds=1),
        lambda: run("http://127.0.0.1/", rate=0, seconds=1),
        lambda: run("http://127.0.0.1/", rate=1e5, seconds=1e4),
        lambda: run("http://127.0.0.1/", [], rate=1, seconds=1),
        lambda: run("http://127.0.0.1/", rate=1, seconds=1, connections=10_000),
        lambda: run("http://127.0.0.1/", rate=1, seconds=1, headers={"a": "b\r\nc: d"}),
        lambda: run_together([], seconds=1),
    ],
)
def test_what_has_no_bounds_or_no_meaning_is_refused(broken: Callable[[], object]) -> None:
    with pytest.raises(PegboardError):
        broken()


def test_the_command_prints_the_results_by_name_as_json(url: str, tmp_path: Path) -> None:
    body = tmp_path / "body.jsonl"
    body.write_bytes(b'{"a": 1}\n{"a": 2}\n')
    command = [sys.executable, "-m", "pegboard.loadtest", f"good={url}/ok", f"bad={url}/bad"]
    options = ["--rate", "100", "50", "--seconds", "0.2", "--body", str(body)]
    done = subprocess.run(
        [*command, *options], capture_output=True, text=True, check=True, env={**os.environ}
    )
    printed = json.loads(done.stdout)
    assert printed["good"]["statuses"] == {"200": 20}
    assert printed["bad"]["statuses"] == {"422": 10}
    assert 0 < printed["good"]["p50_ms"] <= printed["good"]["p99_ms"]


def test_the_command_says_in_one_sentence_that_there_is_no_server(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["http://127.0.0.1:1/x", "--seconds", "1"]) == 2
    error = capsys.readouterr().err
    assert "nothing answers" in error and len(error.splitlines()) == 1


def test_it_imports_neither_torch_nor_a_server() -> None:
    code = "import sys, pegboard.loadtest; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "fastapi", "onnxruntime", "pydantic"} & set(done.stdout.split())
