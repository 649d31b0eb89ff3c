"""Champion and challenger: changing what answers while requests keep coming."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path

import pytest

from pegboard.board import build_board
from pegboard.bundle import MANIFEST, read_bundle
from pegboard.errors import PegboardError
from pegboard.files import digest_of, write_json
from pegboard.serving.process import ServerProcess
from pegboard.serving.service import Service
from pegboard.settings import Sources

Serve = Callable[..., AbstractContextManager[ServerProcess]]
POINTS = {"points": [[0.0, 1.0, 2.0, 3.0], [-1.0, -1.0, 0.5, 0.0]]}
ADMIN = {"authorization": "Bearer let-me-change-it"}


def another(bundle: Path, name: str, **changes: object) -> Path:
    """Copy a bundle beside it, with other facts and so another version."""
    copy = Path(shutil.copytree(bundle, bundle.parent / name))
    tables = json.loads((copy / MANIFEST).read_text()) | {"created": "2030-01-01T00:00:00Z"}
    tables |= changes
    del tables["digest"]
    write_json(copy / MANIFEST, tables | {"digest": digest_of(tables)})
    return copy


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_another_bundle_takes_over_and_no_request_is_lost(bundle_copy: Path, serve: Serve) -> None:
    second = another(bundle_copy, "second")
    first_version, second_version = (read_bundle(one).version for one in (bundle_copy, second))
    over = threading.Event()

    def keep_asking() -> list[tuple[int, str]]:
        seen = []
        while not over.is_set():
            reply = server.ask("POST", "/predict", POINTS)
            seen.append((reply.status, reply.json()["model"]))
        return seen

    with (
        serve("--bundle", bundle_copy, PEGBOARD_ADMIN_TOKEN="let-me-change-it") as server,
        ThreadPoolExecutor(4) as pool,
    ):
        asking = [pool.submit(keep_asking) for _ in range(4)]
        try:
            for name, version in (("second", second_version), ("first", first_version)):
                time.sleep(0.5)
                reply = server.ask("PUT", "/admin/bundle", {"bundle": name}, ADMIN)
                assert reply.status == 200, reply.body
                assert reply.json()["version"] == version
                assert server.ask("POST", "/predict", POINTS).json()["model"] == version
        finally:
            over.set()
        seen = [future.result() for future in asking]
    assert {status for one in seen for status, _ in one} == {200}
    for one in seen:
        versions = [version for _, version in one]
        changes = [a for a, b in pairwise(versions) if a != b]
        assert changes == [first_version, second_version]


def test_another_bundle_answers_by_its_own_settings_and_is_served_as_before(
    bundle_copy: Path, tmp_path: Path
) -> None:
    first = read_bundle(bundle_copy)
    made = first.settings | {
        "train": first.settings["train"] | {"epochs": 77},
        "serve": first.settings["serve"] | {"port": 1},
    }
    another(bundle_copy, "second", settings=made)
    sources = Sources()
    sources.put(("serve", "port"), 8123, "the test")
    board = build_board(first.solution)
    service = Service(board, bundle_copy, sources=sources, root=tmp_path)
    assert (service.settings.train.epochs, service.settings.serve.port) != (77, 8123)
    asyncio.run(service.swap_champion(Path("second")))
    assert (service.settings.train.epochs, service.settings.serve.port) == (77, 8123)
    assert service.candidate.name == service.bundle.chosen().name


def test_a_link_that_points_elsewhere_is_opened_at_a_signal(
    bundle_copy: Path, serve: Serve, tmp_path: Path
) -> None:
    second = another(bundle_copy, "second")
    link = tmp_path / "current"
    link.symlink_to(bundle_copy)
    with serve("--bundle", link, "--bundles", bundle_copy.parent) as server:
        (tmp_path / "next").symlink_to(second)
        (tmp_path / "next").rename(link)
        os.kill(server.process.pid, signal.SIGHUP)
        version = read_bundle(second).version
        until(lambda: server.ask("POST", "/predict", POINTS).json()["model"] == version)


def test_a_bundle_that_may_not_be_served_changes_nothing(
    bundle_copy: Path, serve: Serve, tmp_path: Path
) -> None:
    damaged = another(bundle_copy, "damaged")
    next(damaged.glob("models/onnx/fp32/*.onnx")).write_bytes(b"no model")
    another(bundle_copy, "elsewhere", solution="other")
    made = read_bundle(bundle_copy).settings
    another(bundle_copy, "later", settings=made | {"train": made["train"] | {"novelty": 1}})
    outside = shutil.copytree(bundle_copy, tmp_path / "outside")
    version = read_bundle(bundle_copy).version
    with serve("--bundle", bundle_copy, PEGBOARD_ADMIN_TOKEN="let-me-change-it") as server:
        for name, words in (
            ("damaged", "bytes and not"),
            ("elsewhere", "of the solution 'other'"),
            ("later", "unknown setting 'train.novelty'"),
            (".", "this is not a bundle"),
            ("absent", "this is not a bundle"),
            ("long" * 1000, "this is not a bundle"),
            ("nul\x00", "no name of a folder"),
            ("../outside", "lies outside the folder"),
            (str(outside), "lies outside the folder"),
        ):
            for path in ("/admin/bundle", "/admin/challenger"):
                reply = server.ask("PUT", path, {"bundle": name}, ADMIN)
                assert reply.status == 409
                assert words in reply.json()["error"]
        for body in ({}, {"bundle": 3}, {"bundle": "\ud800"}, [], b"{"):
            reply = server.ask("PUT", "/admin/bundle", body, ADMIN)
            assert reply.status == 422
        assert server.ask("PUT", "/admin/bundle", {"bundle": "first"}).status == 401
        assert server.ask("GET", "/admin/bundle").json()["version"] == version
        assert server.ask("POST", "/predict", POINTS).json()["model"] == version


def test_without_an_admin_token_nothing_can_be_changed(server: ServerProcess) -> None:
    reply = server.ask("PUT", "/admin/bundle", {"bundle": "x"})
    assert reply.status == 403
    assert "PEGBOARD_ADMIN_TOKEN" in reply.json()["error"]
    assert server.ask("DELETE", "/admin/challenger").status == 403


def test_a_challenger_sees_everything_and_never_answers(bundle_copy: Path, serve: Serve) -> None:
    """It decides otherwise on every record, which its figures show and no answer does."""
    champion = another(bundle_copy, "never", thresholds={"positive": 2.0})
    challenger = another(bundle_copy, "always", thresholds={"positive": -1.0})
    one = {"points": [[0.0, 1.0, 2.0, 3.0]]}
    with serve("--bundle", champion, "--challenger", challenger) as server:
        answers = [server.ask("POST", "/predict", one).json() for _ in range(20)]
        until(lambda: server.ask("GET", "/admin/challenger").json()["records"] == 20)
        figures = server.ask("GET", "/admin/challenger").json()
        metrics = server.ask("GET", "/metrics").body.decode()
    assert {answer["model"] for answer in answers} == {read_bundle(champion).version}
    assert {answer["answers"][0]["decision"] for answer in answers} == {"no"}
    assert figures["version"] == read_bundle(challenger).version
    assert (figures["flipped"], figures["flipped_share"]) == (20, 1.0)
    assert figures["outputs"]["probability"]["largest"] == 0.0
    assert 'pegboard_model_info{candidate="onnx/fp32",role="challenger"' in metrics
    assert "pegboard_challenger_flipped_share 1.0" in metrics


def test_a_challenger_comes_and_goes_while_the_server_runs(bundle_copy: Path, serve: Serve) -> None:
    another(bundle_copy, "second")
    with serve("--bundle", bundle_copy, PEGBOARD_ADMIN_TOKEN="let-me-change-it") as server:
        assert server.ask("GET", "/admin/challenger").status == 404
        assert server.ask("PUT", "/admin/challenger", {"bundle": "second"}, ADMIN).status == 200
        server.ask("POST", "/predict", POINTS)
        until(lambda: server.ask("GET", "/admin/challenger").json()["records"] == 2)
        # It stays when the champion changes.
        assert server.ask("PUT", "/admin/bundle", {"bundle": "second"}, ADMIN).status == 200
        assert server.ask("GET", "/admin/challenger").json()["records"] == 0
        assert server.ask("DELETE", "/admin/challenger", headers=ADMIN).status == 200
        assert server.ask("GET", "/admin/challenger").status == 404
        assert server.ask("POST", "/predict", POINTS).status == 200


def test_a_challenger_that_fails_is_counted_and_nobody_notices(
    bundle_copy: Path, serve: Serve, tmp_path: Path
) -> None:
    """Its hook fails in the challenger's thread only."""
    (tmp_path / "pegboard.toml").write_text('solution = "toy"\n')
    (tmp_path / "hooks.py").write_text(
        "import threading\nfrom pegboard import hookimpl\n\n@hookimpl(wrapper=True)\n"
        "def infer():\n    if threading.current_thread().name == 'challenger':\n"
        "        raise RuntimeError('on purpose')\n    return (yield)\n"
    )
    challenger = another(bundle_copy, "second")
    with serve("--bundle", bundle_copy, "--challenger", challenger) as server:
        statuses = {server.ask("POST", "/predict", POINTS).status for _ in range(5)}
        until(lambda: server.ask("GET", "/admin/challenger").json()["errors"] == 5)
    assert statuses == {200}
    assert "on purpose" not in server.log.read_text()


def test_a_challenger_with_other_inputs_is_refused(bundle_copy: Path, serve: Serve) -> None:
    tables = json.loads((bundle_copy / MANIFEST).read_text())
    signature = tables["signature"]
    signature["inputs"][0]["channels"] = ["a", "b", "c", "d"]
    challenger = another(bundle_copy, "second", signature=signature)
    with (
        pytest.raises(PegboardError, match="takes other inputs than the champion"),
        serve("--bundle", bundle_copy, "--challenger", challenger),
    ):
        pass
