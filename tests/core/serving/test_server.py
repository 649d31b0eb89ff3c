"""`pegboard serve`: a real process, asked over HTTP."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from pegboard.bundle import read_bundle
from pegboard.errors import PegboardError
from pegboard.serving.process import ServerProcess

Serve = Callable[..., AbstractContextManager[ServerProcess]]
POINTS = {"points": [[0.0, 1.0, 2.0, 3.0], [-1.0, -1.0, 0.5, 0.0]]}


def tensors(points: object, **more: object) -> dict[str, object]:
    rows = np.asarray(points, np.float32)
    tensor = {
        "name": "x",
        "datatype": "FP32",
        "shape": list(rows.shape),
        "data": rows.ravel().tolist(),
    }
    return {"inputs": [tensor], **more}


# --------------------------------------------------------------------------- answers


def test_predict_answers_as_the_command_does(
    server: ServerProcess,
    bundle: Path,
    tmp_path: Path,
    pegboard: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    reply = server.ask("POST", "/predict", POINTS)
    ended = pegboard("predict", "-", "--bundle", bundle, folder=tmp_path, stdin=json.dumps(POINTS))
    assert reply.status == 200
    assert reply.json() == {
        "answers": json.loads(ended.stdout),
        "model": read_bundle(bundle).version,
    }


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"points": [[', "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"", "not JSON"),
        ({"points": [[1, 2, 3]]}, "'points'"),
        ({"points": [["a", 2, 3, 4]]}, "'points'"),
        ({}, "'points'"),
        ([], "'points'"),
    ],
)
def test_a_bad_request_is_answered_with_its_field(
    server: ServerProcess, body: object, words: str
) -> None:
    reply = server.ask("POST", "/predict", body)
    assert reply.status == 422
    assert words in reply.json()["error"]
    assert reply.json()["field"] == "request"


def test_deep_json_is_refused_and_harms_nobody(server: ServerProcess) -> None:
    reply = server.ask("POST", "/predict", b"[" * 200_000)
    assert reply.status == 422
    assert server.ask("GET", "/healthz").status == 200


def test_unknown_paths_and_methods_say_so(server: ServerProcess) -> None:
    assert server.ask("GET", "/nowhere").status == 404
    assert server.ask("POST", "/v2/models/other/infer", {}).status == 404
    assert server.ask("POST", "/v2/models/toy/versions/3/infer", {}).status == 404
    reply = server.ask("GET", "/predict")
    assert (reply.status, reply.headers["allow"]) == (405, "POST")


def test_many_clients_get_their_own_answers(server: ServerProcess) -> None:
    generator = np.random.default_rng(0)
    requests = [generator.normal(size=(1 + i % 4, 4)).round(3).tolist() for i in range(120)]

    def ask(points: object) -> list[float]:
        answers = server.ask("POST", "/predict", {"points": points}).json()["answers"]
        return [answer["score"] for answer in answers]

    alone = [ask(points) for points in requests]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(ask, requests))
    for one, other, points in zip(alone, together, requests, strict=True):
        assert len(one) == len(points)
        assert np.allclose(one, other, atol=1e-6)


# --------------------------------------------------------------------------- the protocol


def test_the_protocol_describes_the_model(server: ServerProcess, bundle: Path) -> None:
    assert server.ask("GET", "/v2").json()["extensions"] == ["binary_tensor_data"]
    assert server.ask("GET", "/v2/health/live").json() == {"live": True}
    assert server.ask("GET", "/v2/health/ready").json() == {"ready": True}
    assert server.ask("GET", "/v2/models/toy/ready").json() == {"ready": True}
    version = read_bundle(bundle).version
    described = server.ask("GET", f"/v2/models/toy/versions/{version}").json()
    assert described == server.ask("GET", "/v2/models/toy").json()
    assert described["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert described["outputs"] == [{"name": "probability", "datatype": "FP32", "shape": [-1]}]


def test_the_protocol_answers_golden_records(server: ServerProcess, bundle: Path) -> None:
    for record in read_bundle(bundle).golden():
        reply = server.ask(
            "POST", "/v2/models/toy/infer", tensors(record.inputs["x"], id="the first")
        ).json()
        assert reply["model_name"] == "toy"
        assert reply["id"] == "the first"
        (output,) = reply["outputs"]
        assert output["shape"] == [1]
        assert np.allclose(output["data"], record.outputs["probability"], atol=1e-5)


def test_tensors_travel_as_raw_bytes_both_ways(server: ServerProcess) -> None:
    rows = np.random.default_rng(1).normal(size=(3, 4)).astype("<f4")
    plain = server.ask("POST", "/v2/models/toy/infer", tensors(rows)).json()["outputs"][0]["data"]
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "x",
                    "datatype": "FP32",
                    "shape": [3, 4],
                    "parameters": {"binary_data_size": rows.nbytes},
                }
            ],
            "outputs": [{"name": "probability", "parameters": {"binary_data": True}}],
        }
    ).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    reply = server.ask("POST", "/v2/models/toy/infer", head + rows.tobytes(), headers)
    length = int(reply.headers["inference-header-content-length"])
    (output,) = json.loads(reply.body[:length])["outputs"]
    assert output["parameters"] == {"binary_data_size": 12}
    assert np.frombuffer(reply.body[length:], "<f4").tolist() == pytest.approx(plain, abs=1e-6)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "'inputs' is no list"),
        ({"inputs": [3]}, "no 'name' (inputs[0])"),
        (
            tensors([[1, 2, 3, 4]]) | {"outputs": [{"name": "y"}]},
            "returns probability (outputs[0])",
        ),
        ({"inputs": [{"name": "x", "datatype": "FP3", "shape": [1, 4]}]}, "'datatype' is none"),
        ({"inputs": [{"name": "x", "datatype": [], "shape": [1, 4]}]}, "'datatype' is none"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, "4"]}]}, "'shape' is no list"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4]}]}, "'data' is no list"),
        (
            {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": ["1"] * 4}]},
            "more than numbers",
        ),
        (
            {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1] * 3}]},
            "3 values, which do not fit 'shape'",
        ),
        (
            {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1e39] * 4}]},
            "'x' is inf",
        ),
        (
            {"inputs": [{"name": "x", "datatype": "INT8", "shape": [1, 4], "data": [1000] * 4}]},
            "does not fit INT8",
        ),
        (
            {"inputs": [{"name": "x", "datatype": "UINT8", "shape": [1, 4], "data": [0.5] * 4}]},
            "holds fractions",
        ),
        (tensors([[1, 2, 3]]), "'x' has the shape [1, 3]"),
        (tensors(np.empty((0, 4))), "'x' is empty"),
        ({"inputs": [tensors([[1, 2, 3, 4]])["inputs"][0]] * 2}, "sent twice"),  # type: ignore[index]
    ],
)
def test_what_breaks_the_protocol_is_named(server: ServerProcess, body: object, words: str) -> None:
    reply = server.ask("POST", "/v2/models/toy/infer", body)
    assert reply.status == 422
    assert words in reply.json()["error"]


@pytest.mark.parametrize("length", ["x", "-1", "9999999"])
def test_a_wrong_length_of_the_json_part_is_named(server: ServerProcess, length: str) -> None:
    headers = {"Inference-Header-Content-Length": length}
    reply = server.ask("POST", "/v2/models/toy/infer", tensors([[1, 2, 3, 4]]), headers)
    assert reply.status == 422
    assert "Inference-Header-Content-Length" in reply.json()["error"]


# --------------------------------------------------------------------------- hooks

ROUTES = """
import json
from pathlib import Path

import numpy as np
from pegboard import hookimpl
from pegboard.errors import PegboardError, RequestError
from pegboard.records import Route

TOLD = Path(__file__).with_name("told")


def tell(word):
    with TOLD.open("a") as stream:
        stream.write(word + "\\n")


@hookimpl
def after_answer(event):
    tell(f"{event.solution} {event.count} {event.target}")


@hookimpl
def register_routes(settings, service):
    async def note(word):
        tell(word)

    async def double(body):
        if body["what"] == "bad":
            raise RequestError("it is bad", where="what", remedy="send better")
        if body["what"] == "away":
            raise PegboardError("the other side is away", remedy="come again")
        row = np.array([body["row"]], np.float32)
        outputs = await service.infer({"x": np.concatenate([row, row * 2])}, records=1)
        return {"outputs": outputs["probability"], "version": service.bundle.version}

    service.at_start(lambda: note("started"))
    service.at_close(lambda: note("closed"))
    service.every(0.05, lambda: note("tick"))
    return [
        Route(path="/double", handler=double, summary="Twice.", request_schema={"type": "object"},
              example=lambda number: {"what": "good", "row": [number, 0, 0, 0]}),
    ]
"""


def test_a_plugin_adds_paths_that_use_the_service_and_is_told_of_answers(
    bundle: Path, tmp_path: Path, serve: Serve
) -> None:
    (tmp_path / "pegboard.toml").write_text('solution = "toy"\n')
    (tmp_path / "hooks.py").write_text(ROUTES)
    with serve("--bundle", bundle) as server:
        reply = server.ask("POST", "/double", {"what": "good", "row": [1, 0, 0, 0]})
        assert reply.status == 200
        assert reply.json()["version"] == read_bundle(bundle).version
        rows = {"points": [[1, 0, 0, 0], [2, 0, 0, 0]]}
        answers = server.ask("POST", "/predict", rows).json()["answers"]
        scores = [answer["score"] for answer in answers]
        assert reply.json()["outputs"] == pytest.approx(scores, abs=1e-6)
        bad = server.ask("POST", "/double", {"what": "bad"})
        assert (bad.status, bad.json()["field"]) == (422, "what")
        assert server.ask("POST", "/double", {"what": "away"}).status == 503
        assert server.ask("POST", "/double", {}).status == 500
        document = server.ask("GET", "/openapi.json").json()
        content = document["paths"]["/double"]["post"]["requestBody"]["content"]
        assert content["application/json"]["example"] == {"what": "good", "row": [0, 0, 0, 0]}
        assert server.stop() == 0
    told = (tmp_path / "told").read_text().splitlines()
    assert (told[0], told[-1]) == ("started", "closed")
    assert "tick" in told
    # The row that explains does not count.
    assert [line for line in told if line.startswith("toy")] == [
        "toy 1 onnx/fp32",
        "toy 2 onnx/fp32",
    ]
    assert "KeyError (hooks.py" in server.log.read_text()


def test_a_path_that_the_core_has_is_refused(bundle: Path, tmp_path: Path, serve: Serve) -> None:
    (tmp_path / "pegboard.toml").write_text('solution = "toy"\n')
    (tmp_path / "hooks.py").write_text(ROUTES.replace("/double", "/predict"))
    with (
        pytest.raises(PegboardError, match="the path 'POST /predict' is taken"),
        serve("--bundle", bundle),
    ):
        pass


PAGES = """
from pegboard import RequestError, hookimpl
from pegboard.records import Content, Route


async def page(body):
    return Content(body=b"<p>for everybody</p>", media_type="text/html; charset=utf-8",
                   headers={"Content-Security-Policy": "default-src 'none'"})


async def picture(given):
    if given["id"] != "17":
        raise RequestError("there is no such picture", where="id", remedy="ask for 17")
    return Content(body=b"\\xff\\xd8", media_type="image/jpeg")


@hookimpl
def register_routes(settings, service):
    return [
        Route(path="/page", handler=page, method="GET", media_type="text/html", open=True),
        Route(path="/picture/{id}", handler=picture, method="GET", media_type="image/jpeg"),
    ]
"""


REBOUND = {"host": "pictures.example"}
"""What a browser says when a site makes its name point to this machine."""


def test_a_site_in_a_browser_can_neither_ask_nor_read(
    bundle: Path, tmp_path: Path, serve: Serve
) -> None:
    """Without a token the server trusts this machine; whatever a browser shows is not it."""
    (tmp_path / "pegboard.toml").write_text('solution = "toy"\n')
    (tmp_path / "hooks.py").write_text(PAGES)
    cross, own = {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-origin"}
    with serve("--bundle", bundle) as server:
        for host in ("localhost", "127.0.0.1:8080", "[::1]:1", "LOCALHOST:80"):
            assert server.ask("GET", "/picture/17", headers={"host": host}).status == 200, host
        for path in ("/page", "/picture/17", "/metrics", "/openapi.json"):
            reply = server.ask("GET", path, headers=REBOUND)
            assert reply.status == 403 and "PEGBOARD_SERVE_TOKEN" in reply.json()["error"], path
        assert server.ask("POST", "/predict", POINTS, REBOUND).status == 403
        assert server.ask("POST", "/predict", POINTS, cross).status == 403
        assert server.ask("GET", "/picture/17", headers=cross).status == 403
        assert server.ask("POST", "/predict", POINTS, own).status == 200
        # A link elsewhere leads to the page.
        assert server.ask("GET", "/page", headers=cross).status == 200
    with serve("--bundle", bundle, PEGBOARD_SERVE_TOKEN="open-sesame") as server:
        token = {"authorization": "Bearer open-sesame"}
        assert server.ask("GET", "/picture/17", headers=REBOUND | token).status == 200
    with serve("--bundle", bundle, "serve.host=0.0.0.0") as server:
        assert server.ask("GET", "/picture/17", headers=REBOUND).status == 200


def test_a_plugin_adds_a_page_and_pictures_by_their_numbers(
    bundle: Path, tmp_path: Path, serve: Serve
) -> None:
    (tmp_path / "pegboard.toml").write_text('solution = "toy"\n')
    (tmp_path / "hooks.py").write_text(PAGES)
    token = {"authorization": "Bearer open-sesame"}
    with serve("--bundle", bundle, PEGBOARD_SERVE_TOKEN="open-sesame") as server:
        page = server.ask("GET", "/page")
        assert (page.status, page.body) == (200, b"<p>for everybody</p>")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert page.headers["content-security-policy"] == "default-src 'none'"
        assert page.headers["x-content-type-options"] == "nosniff"
        assert server.ask("GET", "/picture/17").status == 401
        picture = server.ask("GET", "/picture/17", headers=token)
        assert (picture.status, picture.body) == (200, b"\xff\xd8")
        assert server.ask("GET", "/picture/18", headers=token).json()["field"] == "id"
        for path in ("/picture/", "/picture", "/picture/17/more", "/picture/..%2f17"):
            assert server.ask("GET", path, headers=token).status in (404, 422), path
        assert server.ask("POST", "/picture/17", {}, headers=token).status == 405
        paths = server.ask("GET", "/openapi.json", headers=token).json()["paths"]
        described = paths["/picture/{id}"]["get"]
        assert described["parameters"][0]["name"] == "id"
        assert list(described["responses"]["200"]["content"]) == ["image/jpeg"]
        assert paths["/page"]["get"]["security"] == []
        metrics = server.ask("GET", "/metrics", headers=token).body.decode()
        assert 'path="/picture/{id}"' in metrics and "/picture/17" not in metrics


# --------------------------------------------------------------------------- what it lets in


def test_a_request_that_is_too_large_is_refused(bundle: Path, serve: Serve) -> None:
    with serve("--bundle", bundle, "serve.request_mb=0.001") as server:
        reply = server.ask("POST", "/predict", {"points": [[1.5, 2, 3, 4]] * 100})
        assert reply.status == 413
        assert "larger than 0.001 MB" in reply.json()["error"]
        assert server.ask("POST", "/predict", POINTS).status == 200


def test_a_request_that_does_not_arrive_is_given_up(bundle: Path, serve: Serve) -> None:
    with (
        serve("--bundle", bundle, "serve.timeout_seconds=0.3") as server,
        socket.create_connection((server.host, server.port)) as slow,
    ):
        slow.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{")
        slow.settimeout(10)
        assert b" 408 " in slow.recv(4096)


def test_without_the_token_only_health_is_told(bundle: Path, serve: Serve) -> None:
    token = {"authorization": "Bearer open-sesame"}
    with serve("--bundle", bundle, PEGBOARD_SERVE_TOKEN="open-sesame") as server:
        for method, path in (
            ("POST", "/predict"),
            ("POST", "/v2/models/toy/infer"),
            ("GET", "/metrics"),
            ("GET", "/drift"),
            ("GET", "/admin/bundle"),
        ):
            body = POINTS if method == "POST" else None
            assert server.ask(method, path, body).status == 401
            assert server.ask(method, path, body, {"authorization": "Bearer x"}).status == 401
        for path in ("/healthz", "/v2/health/live", "/v2/health/ready"):
            assert server.ask("GET", path).status == 200
        assert server.ask("POST", "/predict", POINTS, token).status == 200
        assert server.ask("GET", "/drift", headers=token).status == 200
        assert server.ask("PUT", "/admin/bundle", {"bundle": "x"}, token).status == 403
    assert "open-sesame" not in server.log.read_text()


def test_more_than_may_wait_is_sent_away(verified: Path, tmp_path: Path, serve: Serve) -> None:
    """With one slow model, two may wait; the others are told to come again, and none hangs."""
    slow = (
        "import time\nfrom pegboard import hookimpl\n\n@hookimpl(wrapper=True)\n"
        "def infer():\n    time.sleep(0.2)\n    return (yield)\n"
    )
    bundle = next(verified.glob("runs/*/bundle"))
    (tmp_path / "pegboard.toml").write_text(
        'solution = "toy"\n[serve]\nqueue = 2\nbatch_size = 1\n'
    )
    (tmp_path / "hooks.py").write_text(slow)
    with serve("--bundle", bundle) as server, ThreadPoolExecutor(12) as pool:
        replies = list(
            pool.map(
                lambda _: server.ask("POST", "/predict", {"points": [[1, 2, 3, 4]]}), range(12)
            )
        )
    statuses = [reply.status for reply in replies]
    assert set(statuses) == {200, 503}
    refused = next(reply for reply in replies if reply.status == 503)
    assert refused.headers["retry-after"] == "1"
    assert "records wait already" in refused.json()["error"]


def test_an_answer_that_takes_too_long_is_given_up(
    verified: Path, tmp_path: Path, serve: Serve
) -> None:
    slow = (
        "import time\nfrom pegboard import hookimpl\n\n@hookimpl(wrapper=True)\n"
        "def infer(inputs):\n    time.sleep(1.0 if len(inputs['x']) == 3 else 0.01)\n"
        "    return (yield)\n"
    )
    (tmp_path / "pegboard.toml").write_text('solution = "toy"\n')
    (tmp_path / "hooks.py").write_text(slow)
    bundle = next(verified.glob("runs/*/bundle"))
    with serve("--bundle", bundle, "serve.timeout_seconds=0.2") as server:
        reply = server.ask("POST", "/predict", {"points": [[1, 2, 3, 4]] * 3})
        assert reply.status == 504
        assert "no answer after 0.2 seconds" in reply.json()["error"]
        assert server.ask("POST", "/predict", POINTS).status == 200


# --------------------------------------------------------------------------- what it leaves out


def test_no_library_of_training_is_imported(bundle: Path, tmp_path: Path) -> None:
    code = (
        "import sys, asyncio\n"
        "from pathlib import Path\n"
        "from pegboard.cli.predict import board_for\n"
        "from pegboard.bundle import read_bundle\n"
        "from pegboard.serving import server\n"
        "from pegboard.serving.admin import build_admin\n"
        "from pegboard.serving.service import Service\n"
        "from pegboard.settings import read_sources\n"
        "folder = Path(sys.argv[1])\n"
        "bundle = read_bundle(folder)\n"
        "board = board_for(bundle, Path())\n"
        "service = Service(board, folder, sources=read_sources(None), root=Path())\n"
        "build_admin(service)\n"
        "print(asyncio.run(service.answer(bundle.signature.request))[1])\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, str(bundle)], cwd=tmp_path, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    answer, modules = ended.stdout.splitlines()
    assert "score" in answer
    heavy = {"torch", "onnx", "onnxscript", "matplotlib", "sklearn", "polars", "pandas", "jinja2"}
    assert not heavy & set(modules.split())


def test_no_value_of_a_request_reaches_the_log(
    verified: Path, tmp_path: Path, serve: Serve
) -> None:
    """Not by an access line, nor by the message of an error that a plugin makes of it."""
    broken = (
        "from pegboard import hookimpl\n\n@hookimpl\n"
        "def decode_request(payload):\n    raise ValueError(f'cannot read {payload}')\n"
    )
    (tmp_path / "pegboard.toml").write_text('solution = "toy"\n')
    (tmp_path / "hooks.py").write_text(broken)
    bundle = next(verified.glob("runs/*/bundle"))
    # Its example is decoded at the start, to see what it costs.
    with pytest.raises(PegboardError, match="did not start"), serve("--bundle", bundle):
        pass
    (tmp_path / "hooks.py").write_text(broken.replace("    raise", "    if 'p' in payload: raise"))
    with serve("--bundle", bundle) as server:
        reply = server.ask("POST", "/predict?card=4111111111111111", {"p": "4242424242424242"})
        assert reply.status == 500
        assert "424242" not in reply.body.decode()
        server.ask("POST", "/predict/4111111111111111", {"p": "x"})
        assert server.ask("POST", "/predict", POINTS).status == 200
        metrics = server.ask("GET", "/metrics").body.decode()
        server.stop()
    log = server.log.read_text()
    assert "ValueError (hooks.py, line 5)" in log
    for text in (log, metrics):
        assert "424242" not in text
        assert "411111" not in text


# --------------------------------------------------------------------------- bundles it refuses


def change(bundle: Path, old: str, new: str) -> None:
    """Change a bundle as an honest writer would: with a digest that fits."""
    from pegboard.bundle import MANIFEST
    from pegboard.files import digest_of, write_json

    text = (bundle / MANIFEST).read_text()
    assert old in text
    tables = json.loads(text.replace(old, new))
    del tables["digest"]
    write_json(bundle / MANIFEST, tables | {"digest": digest_of(tables)})


def test_a_bundle_that_was_never_verified_is_refused(bundle_copy: Path, serve: Serve) -> None:
    change(bundle_copy, '"verified"', '"exported"')
    with pytest.raises(PegboardError, match="was never verified"), serve("--bundle", bundle_copy):
        pass


def test_a_bundle_that_failed_verification_is_refused(bundle_copy: Path, serve: Serve) -> None:
    change(bundle_copy, '"verified"', '"quarantined"')
    with (
        pytest.raises(PegboardError, match="did not pass verification"),
        serve("--bundle", bundle_copy),
    ):
        pass


def test_a_damaged_bundle_is_refused(bundle_copy: Path, serve: Serve) -> None:
    model = next(bundle_copy.glob("models/onnx/fp32/*.onnx"))
    model.write_bytes(model.read_bytes()[:-1] + b"\x00")
    with pytest.raises(PegboardError, match="checksum of"), serve("--bundle", bundle_copy):
        pass


def test_a_model_that_answers_otherwise_here_is_refused(bundle_copy: Path, serve: Serve) -> None:
    from pegboard.bundle import GOLDEN, MANIFEST, Golden, read_golden, write_golden
    from pegboard.files import sha256_of

    facts = json.loads((bundle_copy / MANIFEST).read_text())["files"][GOLDEN]
    golden = read_golden(bundle_copy / GOLDEN)
    shifted = [
        Golden(inputs=one.inputs, outputs={"probability": one.outputs["probability"] + 0.5})
        for one in golden
    ]
    write_golden(bundle_copy / GOLDEN, shifted)
    size = (bundle_copy / GOLDEN).stat().st_size
    change(bundle_copy, facts["sha256"], sha256_of(bundle_copy / GOLDEN))
    change(bundle_copy, f'"bytes": {facts["bytes"]}', f'"bytes": {size}')
    with (
        pytest.raises(PegboardError, match="does not answer its golden records here"),
        serve("--bundle", bundle_copy),
    ):
        pass


def test_what_made_the_model_cannot_be_changed_when_it_is_served(
    bundle: Path, serve: Serve
) -> None:
    with (
        pytest.raises(PegboardError, match=r"'model.hidden' belongs to the bundle"),
        serve("--bundle", bundle, "model.hidden=3"),
    ):
        pass


def test_a_taken_port_is_named(
    server: ServerProcess,
    bundle: Path,
    tmp_path: Path,
    pegboard: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    ended = pegboard("serve", "--bundle", bundle, f"serve.port={server.port}", folder=tmp_path)
    assert ended.returncode == 2
    assert f"cannot listen: Address already in use (127.0.0.1:{server.port})" in ended.stderr


# --------------------------------------------------------------------------- its end


def test_it_ends_in_order_and_answers_what_it_began(
    verified: Path, tmp_path: Path, serve: Serve
) -> None:
    slow = (
        "import time\nfrom pegboard import hookimpl\n\n@hookimpl(wrapper=True)\n"
        "def infer():\n    time.sleep(0.4)\n    return (yield)\n"
    )
    (tmp_path / "pegboard.toml").write_text('solution = "toy"\n')
    (tmp_path / "hooks.py").write_text(slow)
    bundle = next(verified.glob("runs/*/bundle"))
    with serve("--bundle", bundle) as server, ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(server.ask, "POST", "/predict", POINTS) for _ in range(4)]
        time.sleep(0.3)
        os.kill(server.process.pid, signal.SIGTERM)
        assert [future.result().status for future in asked] == [200] * 4
        assert server.process.wait(20) == 0
    assert server.log.read_text().splitlines()[-1] == "every request is answered; the server ends"


def test_under_load_sigterm_loses_no_answer(bundle: Path, serve: Serve) -> None:
    """Whoever got a connection and sent a whole request gets a whole answer, or none of it."""
    statuses: list[int] = []
    over = threading.Event()

    def keep_asking(server: ServerProcess) -> None:
        while not over.is_set():
            try:
                reply = server.ask("POST", "/predict", POINTS)
            except OSError:
                return
            statuses.append(reply.status)
            assert len(reply.json()["answers"]) == 2

    with serve("--bundle", bundle) as server, ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(keep_asking, server) for _ in range(8)]
        time.sleep(1.0)
        assert server.stop() == 0
        over.set()
        for future in asking:
            future.result()
    assert len(statuses) > 50
    assert set(statuses) == {200}
