"""A server that is asked for everything its OpenAPI document allows, and for what it does not."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from pegboard.serving.process import ServerProcess

Serve = Callable[..., AbstractContextManager[ServerProcess]]
POINTS = {"points": [[0.0, 1.0, 2.0, 3.0]]}
TOKEN = "let-me-change-it"
HEADERS = {"authorization": f"Bearer {TOKEN}"}


@pytest.mark.slow
def test_every_answer_is_one_that_the_openapi_document_promises(
    bundle: Path, serve: Serve, ask_whatever_is_allowed: Callable[..., dict[str, set[int]]]
) -> None:
    tokens = {"PEGBOARD_SERVE_TOKEN": TOKEN, "PEGBOARD_ADMIN_TOKEN": TOKEN}
    with serve("--bundle", bundle, **tokens) as server:
        before = server.ask("POST", "/predict", POINTS, HEADERS).json()
        statuses = ask_whatever_is_allowed(server.url, HEADERS, examples=150)
        assert server.ask("POST", "/predict", POINTS, HEADERS).json() == before
        assert server.stop() == 0
    assert statuses["PUT /admin/bundle"] >= {409, 422}
    assert statuses["PUT /admin/challenger"] >= {409, 422}
    assert statuses["GET /admin/challenger"] == {404}
    assert 200 in statuses["DELETE /admin/challenger"]
    assert 422 in statuses["POST /predict"]
    assert {200, 422} <= statuses["POST /v2/models/toy/infer"]
    assert "error" not in server.log.read_text()


def test_administrative_paths_refuse_in_the_words_of_the_others(bundle: Path, serve: Serve) -> None:
    with serve("--bundle", bundle, PEGBOARD_ADMIN_TOKEN=TOKEN) as server:
        for path in ("/admin/bundle", "/admin/challenger"):
            for body in (b"", b"\xff", b'{"bundle": ', b"[]", b"{}", b'{"bundle": 3}'):
                reply = server.ask("PUT", path, body, HEADERS)
                assert reply.status == 422, (path, body)
                assert reply.json().keys() == {"error", "field"}


def test_a_connection_is_of_use_after_a_request_that_was_refused(server: ServerProcess) -> None:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=10)
    statuses = []
    for body in (b'{"points": [[', b'{"points": [[0, 1, 2, 3]]}', b"\x00", b"[" * 5000, b"{}"):
        connection.request("POST", "/predict", body)
        reply = connection.getresponse()
        reply.read()
        statuses.append(reply.status)
    connection.close()
    assert statuses == [422, 200, 422, 422, 422]


BEGINNINGS = {
    b"": b"",
    b"POST /pred": b"",
    b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\nGET /hea": b"HTTP/1.1 200",
    b"POST /predict HTTP/1.1\r\ncontent-length: 9\r\n\r\n{": b"HTTP/1.1 408",
    b"PUT /admin/bundle HTTP/1.1\r\ncontent-length: 9\r\n\r\n{": b"HTTP/1.1 408",
    b"GET /healthz HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n9\r\n{": b"HTTP/1.1 200",
}
"""Requests that are never whole, and how the answer begins before the connection is closed."""


def test_a_client_that_falls_silent_holds_no_connection(bundle: Path, serve: Serve) -> None:
    with serve("--bundle", bundle, "serve.timeout_seconds=0.3") as server:
        for beginning, answer in BEGINNINGS.items():
            with socket.create_connection((server.host, server.port), 8) as silent:
                silent.sendall(beginning)
                got = b""
                while part := silent.recv(4096):
                    got += part
            assert got.startswith(answer), beginning
            assert bool(got) == bool(answer), beginning
        assert server.ask("POST", "/predict", POINTS).status == 200


def test_an_administrative_path_reads_no_more_than_another(bundle: Path, serve: Serve) -> None:
    """It would be read before the token is looked at."""
    with serve("--bundle", bundle, "serve.request_mb=0.001", PEGBOARD_ADMIN_TOKEN=TOKEN) as server:
        reply = server.ask("PUT", "/admin/bundle", {"bundle": "x" * 2000})
        assert (reply.status, reply.headers["connection"]) == (413, "close")
        assert server.ask("PUT", "/admin/bundle", {"bundle": "x"}).status == 401
