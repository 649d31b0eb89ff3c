from __future__ import annotations

import http.client
import io
import json
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import typer
from asgi import Server, running
from chromium import Browser
from PIL import Image
from typer.testing import CliRunner

from pegboard.errors import DataError, PegboardError
from pegboard.progress import SilentProgress
from pegboard_defect import deploy, review
from pegboard_defect.images import as_png
from pegboard_defect.labels import read_reviewed, write_label
from pegboard_defect.parts import Part
from pegboard_defect.review import Choice, Item, Queue, Session, build_app, color_heat
from pegboard_defect.settings import DefectSettings

uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

CLASSES = ("good", "scratch", "pit")
KEYS = ("good/0 1.png", "scratch/2&3.png", "pit/4.png")


# --- A queue, its server, and what asks it --------------------------------------------------------


class Labels:
    """What a queue writes, as a file and in order."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.written: list[tuple[str, str | None]] = []

    def write(self, key: str, label: str | None) -> None:
        self.written.append((key, label))
        labels = self.read() | {key: label}
        kept = {key: label for key, label in labels.items() if label is not None}
        self.file.write_text(json.dumps(kept))

    def read(self) -> dict[str, str | None]:
        return json.loads(self.file.read_text()) if self.file.exists() else {}


@pytest.fixture
def labels(tmp_path: Path) -> Labels:
    return Labels(tmp_path / "reviewed.json")


def picture(key: str) -> bytes:
    ramp = np.tile(np.linspace(60, 200, 96).astype(np.uint8), (64, 1))
    ramp[:, 16 * KEYS.index(key) : 16 * KEYS.index(key) + 8] = 10
    return as_png(ramp)


def heat(key: str) -> bytes | None:
    if key == KEYS[2]:
        return None
    where = np.zeros((32, 32), dtype=np.uint8)
    where[8:16, 8:24] = 240
    return color_heat(where)


@pytest.fixture
def queue(labels: Labels) -> Queue:
    scores = (0.48, 0.53, 0.7)
    return Queue(
        items=tuple(
            Item(
                key=key,
                score=score,
                label="good" if key == KEYS[0] else None,
                predicted="scratch" if score > 0.5 else "good",
                certainty=abs(score - 0.5),
            )
            for key, score in zip(KEYS, scores, strict=True)
        ),
        classes=CLASSES,
        picture=picture,
        heat=heat,
        write=labels.write,
        threshold=0.5,
        place=str(labels.file),
    )


@dataclass(frozen=True)
class Page:
    """A page that is served, and its session."""

    port: int
    session: Session

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self, path: str, method: str = "GET", body: Any = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(method, path, content, named)
        response = connection.getresponse()
        answer = response.status, dict(response.getheaders()), response.read()
        connection.close()
        return answer

    def post(self, body: Any, **headers: str) -> tuple[int, Any]:
        given = {
            "Content_Type": "application/json",
            "Origin": self.url,
            "X_Review_Token": self.session.token,
        }
        status, _, content = self.ask("/label", "POST", body, **given | headers)
        return status, json.loads(content)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running(review.listen(0)) as server:
        yield server


def served(server: Server, queue: Queue) -> Page:
    app = build_app(queue)
    return Page(server.serve(app), app.state.session)


@pytest.fixture
def page(server: Server, queue: Queue) -> Page:
    return served(server, queue)


# --- What the server gives ------------------------------------------------------------------------


def test_the_page_runs_only_its_own_script_and_is_never_kept(page: Page) -> None:
    status, headers, content = page.ask("/")
    policy = headers["content-security-policy"]
    nonce = policy.partition("script-src 'nonce-")[2].partition("'")[0]
    assert status == 200
    assert "unsafe" not in policy and "default-src 'none'" in policy
    assert f'<script nonce="{nonce}">'.encode() in content
    assert page.session.token.encode() in content and b"{{" not in content
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"


def test_every_page_has_a_nonce_of_its_own(page: Page) -> None:
    policies = {page.ask("/")[1]["content-security-policy"] for _ in range(2)}
    assert len(policies) == 2


def test_the_queue_says_what_waits_and_what_was_written(page: Page) -> None:
    page.post({"key": KEYS[1], "label": "pit"})
    status, headers, content = page.ask("/queue")
    answer = json.loads(content)
    assert status == 200 and headers["cache-control"] == "no-store"
    assert [item["key"] for item in answer["items"]] == list(KEYS)
    assert answer["classes"] == list(CLASSES) and answer["threshold"] == 0.5
    assert answer["written"] == {KEYS[1]: "pit"} and answer["last"] == KEYS[1]
    assert page.session.token not in content.decode()


def test_pictures_and_heat_maps_are_served_by_key(page: Page) -> None:
    for path, mode in (("/picture", "L"), ("/heat", "RGBA")):
        status, headers, content = page.ask(f"{path}?key={quote(KEYS[1])}")
        assert status == 200 and headers["content-type"] == "image/png"
        assert Image.open(io.BytesIO(content)).mode == mode


def test_a_part_without_heat_map_has_no_content(page: Page) -> None:
    status, _, content = page.ask(f"/heat?key={quote(KEYS[2])}")
    assert status == 204 and content == b""


@pytest.mark.parametrize("key", ["/etc/passwd", "../pit/4.png", "", "%00", "pit/4.png%00"])
def test_nothing_but_keys_of_the_queue_is_looked_up(server: Server, queue: Queue, key: str) -> None:
    asked: list[str] = []

    def picture(key: str) -> bytes:
        asked.append(key)
        return b""

    page = served(server, replace(queue, picture=picture))
    status, _, content = page.ask(f"/picture?key={key}")
    assert status == 404 and json.loads(content)["error"].endswith(".")
    assert asked == []


def test_an_address_that_there_is_not_is_told_in_a_sentence(page: Page) -> None:
    for method, path, expected in (("GET", "/labels", 404), ("GET", "/label", 405)):
        status, _, content = page.ask(path, method)
        assert status == expected and "open /" in json.loads(content)["error"]


# --- Labels ---------------------------------------------------------------------------------------


def test_a_label_is_written_when_the_answer_comes(page: Page, labels: Labels) -> None:
    status, answer = page.post({"key": KEYS[1], "label": "pit"})
    assert status == 200 and labels.read() == {KEYS[1]: "pit"}
    assert answer == {"written": {KEYS[1]: "pit"}, "last": KEYS[1]}


def test_null_takes_labels_back_one_at_a_time(page: Page, labels: Labels) -> None:
    for label in ("pit", "scratch"):
        page.post({"key": KEYS[1], "label": label})
    page.post({"key": KEYS[2], "label": "good"})
    _, answer = page.post({"key": KEYS[1], "label": None})
    assert labels.read()[KEYS[1]] == "pit" and answer["last"] == KEYS[2]
    _, answer = page.post({"key": KEYS[1], "label": None})
    assert labels.read() == {KEYS[2]: "good"} and answer["written"] == {KEYS[2]: "good"}


def test_taking_back_restores_the_label_of_an_earlier_review(
    server: Server, queue: Queue, labels: Labels
) -> None:
    first = replace(queue.items[0], label="pit", reviewed=True)
    page = served(server, replace(queue, items=(first,)))
    page.post({"key": first.key, "label": "good"})
    page.post({"key": first.key, "label": None})
    assert labels.written == [(first.key, "good"), (first.key, "pit")]


def test_there_is_nothing_to_take_back_of_a_part_that_was_not_labelled(
    page: Page, labels: Labels
) -> None:
    status, answer = page.post({"key": KEYS[0], "label": None})
    assert status == 409 and "take back" in answer["error"]
    assert labels.written == []


def test_a_label_that_could_not_be_written_does_not_count(server: Server, queue: Queue) -> None:
    def fail(key: str, label: str | None) -> None:
        raise PegboardError("there is no space left", where="reviewed.csv", remedy="free some")

    page = served(server, replace(queue, write=fail))
    status, answer = page.post({"key": KEYS[0], "label": "pit"})
    assert status == 500 and answer["error"].startswith("there is no space left")
    assert page.session.written() == {}


def test_a_class_that_there_is_not_is_answered_with_those_there_are(
    page: Page, labels: Labels
) -> None:
    status, answer = page.post({"key": KEYS[0], "label": "dent"})
    assert status == 422 and "good, scratch, pit" in answer["error"]
    assert labels.written == []


# --- Who is let in --------------------------------------------------------------------------------

LABEL = {"key": KEYS[0], "label": "pit"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example:8000"}, 403),
        ({"Host": "localhost:8000@evil.example"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-site"}, 403),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": "application/x-www-form-urlencoded"}, 415),
        ({"X_Review_Token": "guess"}, 403),
        ({"X_Review_Token": "\xe9"}, 403),
        ({"X_Review_Token": ""}, 403),
    ],
)
def test_a_label_from_elsewhere_is_refused(
    page: Page, labels: Labels, headers: dict[str, str], status: int
) -> None:
    found, answer = page.post(LABEL, **headers)
    assert found == status and answer["error"].endswith(".")
    assert labels.written == []


def test_a_request_that_names_no_host_is_refused(page: Page) -> None:
    with socket.create_connection(("127.0.0.1", page.port), 5) as connection:
        connection.sendall(b"GET /queue HTTP/1.0\r\n\r\n")
        assert connection.recv(4096).split(b" ")[1] == b"403"


def test_a_label_without_origin_is_refused(page: Page, labels: Labels) -> None:
    headers = {"Content_Type": "application/json", "X_Review_Token": page.session.token}
    assert page.ask("/label", "POST", LABEL, **headers)[0] == 403
    assert labels.written == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"no JSON", 400),
        (b"\xff\xfe", 400),
        (b"[" * 10_000, 400),
        (b" " * 20_000, 413),
        ([], 422),
        ("text", 422),
        ({"key": KEYS[0]}, 422),
        ({"label": "pit"}, 422),
        ({"key": 3, "label": "pit"}, 422),
        ({"key": KEYS[0], "label": 3}, 422),
        ({"key": KEYS[0], "label": ["pit"]}, 422),
        ({"key": KEYS[0], "label": "\ud800"}, 422),
        ({"key": "\ud800", "label": "pit"}, 404),
        ({"key": "another.png", "label": "pit"}, 404),
    ],
)
def test_a_request_that_says_no_label_is_refused_in_a_sentence(
    page: Page, labels: Labels, body: Any, status: int
) -> None:
    found, answer = page.post(body)
    assert found == status and list(answer) == ["error"] and answer["error"].endswith(".")
    assert labels.written == []


@pytest.mark.parametrize("path", ["/", "/queue", f"/picture?key={quote(KEYS[0])}"])
def test_a_name_that_is_made_to_point_here_sees_nothing(page: Page, path: str) -> None:
    status, _, content = page.ask(path, Host=f"rebound.example:{page.port}")
    assert status == 403 and page.session.token.encode() not in content


def test_every_name_of_this_machine_is_let_in(page: Page) -> None:
    for host in ("localhost", "LOCALHOST:8000", "127.0.0.1", f"[::1]:{page.port}"):
        assert page.ask("/queue", Host=host)[0] == 200


def test_another_site_may_link_to_the_page_and_embed_nothing_of_it(page: Page) -> None:
    assert page.ask("/", Sec_Fetch_Site="cross-site")[0] == 200
    key = quote(KEYS[0])
    for path in ("/queue", f"/picture?key={key}", f"/heat?key={key}"):
        status, headers, _ = page.ask(path, Sec_Fetch_Site="cross-site")
        assert status == 403
        assert headers["cross-origin-resource-policy"] == "same-origin"


def test_the_page_is_for_this_machine_alone() -> None:
    with review.listen(0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


def test_a_port_that_is_taken_is_named_with_the_remedy() -> None:
    with review.listen(0) as taken, pytest.raises(PegboardError, match="--port"):
        review.listen(taken.getsockname()[1])


# --- In a browser ---------------------------------------------------------------------------------

ESCAPE, RIGHT, TAB, ENTER = "\ue00c", "\ue014", "\ue004", "\ue007"


def shows(browser: Browser, key: str) -> None:
    """Wait until a part's picture is there to be judged."""
    browser.until("document.getElementById('key').textContent", key)
    browser.until("!document.getElementById('frame').classList.contains('waiting')")


def test_parts_are_labelled_by_key_press(
    browser: Browser, page: Page, labels: Labels, tmp_path: Path
) -> None:
    browser.open(page.url)
    shows(browser, KEYS[0])
    assert browser.run("document.getElementById('label').textContent") == "good"
    assert browser.run("document.getElementById('counts').textContent") == "1 of 3 · 0 labelled"

    browser.press("2")
    shows(browser, KEYS[1])
    assert labels.read() == {KEYS[0]: "scratch"}
    said = browser.run("document.querySelector('[aria-live]').textContent")
    assert "scratch" in said and KEYS[0] in said

    browser.press("u")
    shows(browser, KEYS[0])
    assert labels.read() == {}
    assert browser.run("document.getElementById('label').textContent") == "good"

    browser.press("3")
    shows(browser, KEYS[1])
    browser.press(RIGHT)
    shows(browser, KEYS[2])
    browser.reload()
    shows(browser, KEYS[2])
    assert browser.run("document.getElementById('counts').textContent") == "3 of 3 · 1 labelled"
    browser.press("u")
    shows(browser, KEYS[0])
    assert labels.read() == {}

    browser.press("s", " ", RIGHT)
    browser.until("document.getElementById('end').hidden", False)
    assert labels.read() == {}
    assert browser.problems() == []


def test_the_heat_map_is_switched_and_stays_so(browser: Browser, page: Page) -> None:
    visible = "document.getElementById('heat').checkVisibility()"
    browser.open(page.url)
    shows(browser, KEYS[0])
    browser.until(f"{visible} && document.getElementById('heat').naturalWidth > 0")
    browser.press("h")
    browser.until(visible, False)
    browser.reload()
    shows(browser, KEYS[0])
    assert browser.run(visible) is False
    browser.press("h")
    browser.until(visible)
    browser.press(RIGHT, RIGHT)
    shows(browser, KEYS[2])
    browser.until(visible, False)  # It has none.
    assert browser.problems() == []


def test_the_mouse_and_the_focus_do_what_the_keys_do(
    browser: Browser, page: Page, labels: Labels
) -> None:
    browser.open(page.url)
    shows(browser, KEYS[0])
    browser.click("button[value=pit]")
    shows(browser, KEYS[1])
    browser.press(" ")  # The button that was clicked must not be pressed by it.
    shows(browser, KEYS[2])
    assert labels.read() == {KEYS[0]: "pit"}
    browser.press("?")
    browser.until("document.getElementById('help').open")
    browser.press("1", ESCAPE)
    browser.until("document.getElementById('help').open", False)
    assert labels.read() == {KEYS[0]: "pit"}
    browser.run("document.querySelector('button[value=good]').focus()")
    browser.press(ENTER)
    browser.until("document.getElementById('end').hidden", False)
    assert labels.read() == {KEYS[0]: "pit", KEYS[2]: "good"}
    assert "2 labels" in browser.run("document.getElementById('end-text').textContent")
    assert browser.problems() == []


def test_a_narrow_window_and_chinese_have_all_of_it(
    browser: Browser, page: Page, labels: Labels
) -> None:
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    agent = browser.run("navigator.userAgent")
    browser.command("Emulation.setDeviceMetricsOverride", **phone)
    browser.command("Emulation.setUserAgentOverride", userAgent=agent, acceptLanguage="zh-CN")
    try:
        browser.open(page.url)
        shows(browser, KEYS[0])
        assert browser.run("document.documentElement.lang") == "zh-CN"
        assert (
            browser.run("document.getElementById('ask').textContent")
            == "\u8fd9\u662f\u4ec0\u4e48\uff1f"
        )
        assert browser.run("document.documentElement.scrollWidth") <= 390
        heights = "[...document.querySelectorAll('button')].filter(b => b.checkVisibility())"
        assert browser.run(f"{heights}.every(b => b.offsetHeight >= 44)")
        browser.click("button[value=scratch]")
        shows(browser, KEYS[1])
        assert labels.read() == {KEYS[0]: "scratch"}
        texts = browser.run("Object.values(TEXTS).map(texts => Object.keys(texts).sort().join())")
        assert texts[0] == texts[1]
        assert browser.problems() == []
    finally:
        browser.command("Emulation.clearDeviceMetricsOverride")
        browser.command("Emulation.setUserAgentOverride", userAgent=agent, acceptLanguage="en-US")


def test_what_cannot_be_written_is_shown_and_the_part_stays(
    browser: Browser, server: Server, queue: Queue
) -> None:
    def fail(key: str, label: str | None) -> None:
        raise PegboardError("there is no space left", remedy="free some")

    page = served(server, replace(queue, write=fail))
    browser.open(page.url)
    shows(browser, KEYS[0])
    browser.press("1")
    browser.until("document.querySelector('[role=alert]').checkVisibility()")
    alert = browser.run("document.querySelector('[role=alert]').textContent")
    assert "no space left" in alert
    shows(browser, KEYS[0])
    browser.problems()  # Chromium itself notes the status 500.


class Elsewhere(BaseHTTPRequestHandler):
    """A site that has nothing to do with the page."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>elsewhere</title>")

    def log_message(self, *words: Any) -> None:
        """Be silent."""


def test_a_page_of_another_origin_can_neither_read_nor_label(
    browser: Browser, page: Page, labels: Labels
) -> None:
    site = HTTPServer(("127.0.0.1", 0), Elsewhere)
    threading.Thread(target=site.serve_forever).start()
    body = json.dumps(LABEL)
    try:
        browser.open(f"http://127.0.0.1:{site.server_port}/")
        for options in (
            "{}",
            "{mode: 'no-cors'}",
            f"{{method: 'POST', mode: 'no-cors', body: `{body}`}}",
            "{method: 'POST', headers: {'Content-Type': 'application/json', "
            f"'X-Review-Token': '{page.session.token}'}}, body: `{body}`}}",
        ):
            path = "/label" if "POST" in options else "/queue"
            browser.run("(window.outcome = null)")
            browser.run(
                f"void fetch('{page.url}{path}', {options}).then(answer => answer.text())"
                ".then(text => outcome = text, error => outcome = '')"
            )
            browser.until("outcome", "")
        browser.run(
            f"void (document.body.innerHTML = `<img src='{page.url}/picture?key={quote(KEYS[0])}'"
            " onerror='outcome = 1' onload='outcome = 2'>`)"
        )
        browser.until("outcome", 1)
    finally:
        site.shutdown()
        site.server_close()
        browser.problems()
    assert labels.written == []


# --- Filling the queue ----------------------------------------------------------------------------


@dataclass(frozen=True)
class FakeAnswerer:
    """Scores a picture by its first pixel."""

    settings: DefectSettings
    names_classes: bool = True

    thresholds = {"defect": 0.5, "pixel": 0.5}  # noqa: RUF012

    def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        scores = inputs["image"][:, 0, 0, 0].astype(np.float32) / 255
        outputs = {"score": scores, "map": inputs["image"][..., 0].astype(np.float32) / 255}
        if self.names_classes:
            rest = np.tile([0.1, 0.7, 0.1, 0.1], (len(scores), 1)) * scores[:, None]
            outputs["probabilities"] = np.concatenate([1 - scores[:, None], rest], axis=1)
        return outputs

    def encode(self, outputs: dict[str, Any]) -> list[dict[str, Any]]:
        return deploy.encode(self.settings, outputs, self.thresholds)


@pytest.fixture
def make_part(tmp_path: Path) -> Callable[..., Part]:
    def make(grey: int, label: str | None = None) -> Part:
        file = tmp_path / f"{grey}.png"
        Image.fromarray(np.full((48, 64), grey, dtype=np.uint8)).save(file)
        return Part(image=file, key=file.name, label=label)

    return make


def test_parts_without_a_label_come_first_and_then_the_least_certain(
    make_part: Callable[..., Part],
) -> None:
    parts = [make_part(130, "good"), make_part(250), make_part(100), make_part(10, "pit")]
    settings = DefectSettings()
    answerer: Any = FakeAnswerer(settings)
    scored = sorted(
        review.score(answerer, settings, parts, SilentProgress()), key=lambda one: one.rank
    )
    assert [one.part.key for one in scored] == ["100.png", "250.png", "130.png", "10.png"]
    assert [one.predicted for one in scored] == ["good", "pit", "pit", "good"]
    assert scored[0].certainty == pytest.approx(0.5 - 100 / 255)


def test_an_anomaly_is_called_a_class_only_where_there_is_one(
    make_part: Callable[..., Part],
) -> None:
    for classes, expected in ((("good", "bad"), "bad"), (("good", "pit", "stain"), None)):
        data = DefectSettings().data.model_copy(update={"classes": classes})
        settings = DefectSettings(data=data)
        answerer: Any = FakeAnswerer(settings, names_classes=False)
        parts = [make_part(250), make_part(10)]
        scored = list(review.score(answerer, settings, parts, SilentProgress()))
        assert [one.predicted for one in scored] == [expected, "good"]


def test_pictures_are_seen_as_the_bundle_was_trained(make_part: Callable[..., Part]) -> None:
    data = DefectSettings().data
    bundle = DefectSettings(data=data.model_copy(update={"size": (64, 32), "classes": ("a", "b")}))
    project = DefectSettings(data=data.model_copy(update={"size": (256, 256), "fewest": 3}))
    settings = review.settings_to_review(project, bundle)
    assert settings.data.size == (64, 32)
    assert settings.data.classes == data.classes and settings.data.fewest == 3


@pytest.mark.parametrize("shape", [(32, 32), (480, 640), (100, 33), (20, 7)])
def test_a_small_defect_is_not_lost_in_the_coarse_map(shape: tuple[int, int]) -> None:
    where = np.zeros(shape, dtype=np.float32)
    where[shape[0] // 2, shape[1] // 3] = 0.8
    cells = review.coarse(where)
    assert cells.shape == (32, 32) and cells.dtype == np.uint8
    assert cells.max() == 204
    row, column = np.argwhere(cells == 204)[0] / 32
    assert abs(row - 1 / 2) < 0.1 and abs(column - 1 / 3) < 0.1


def test_a_heat_map_is_opaque_where_it_sees_and_clear_elsewhere() -> None:
    where = np.zeros((32, 32), dtype=np.uint8)
    where[4:12, 4:12] = 255
    pixels = np.asarray(Image.open(io.BytesIO(color_heat(where))))
    assert pixels.shape == (256, 256, 4)
    assert pixels[64, 64, 3] > 150 and pixels[200, 200, 3] == 0


@pytest.mark.parametrize("threshold", [0.001, 0.45, 0.9])
def test_a_place_that_counts_as_defective_is_red_and_one_that_nearly_does_is_not(
    threshold: float,
) -> None:
    def color(value: float) -> Any:
        cells = review.coarse(np.full((64, 64), value, dtype=np.float32), threshold)
        return np.asarray(Image.open(io.BytesIO(color_heat(cells))))[0, 0].astype(int)

    red, green, blue, opacity = color(threshold)
    assert red > 200 and red > 2 * max(green, blue) and opacity > 140
    assert color(threshold * 0.8)[0] < 180


def test_people_see_more_of_a_picture_than_the_model(tmp_path: Path) -> None:
    large = Image.fromarray(np.zeros((500, 4000, 3), dtype=np.uint8))
    large.save(tmp_path / "large.png")
    shown = Image.open(io.BytesIO(review.show(tmp_path / "large.png")))
    assert shown.size == (review.MOST_SHOWN, review.MOST_SHOWN // 8)


def test_a_queue_writes_where_the_data_keeps_reviewed_labels(
    make_part: Callable[..., Part], tmp_path: Path
) -> None:
    parts = [make_part(130, "pit"), make_part(120)]
    write_label(tmp_path / "reviewed.csv", "130.png", "pit")
    data = DefectSettings().data.model_copy(update={"path": tmp_path})
    settings = DefectSettings(data=data)
    answerer: Any = FakeAnswerer(settings)
    scored = list(review.score(answerer, settings, parts, SilentProgress()))
    queue = review.queue_of(scored, settings, answerer.thresholds)
    assert [(item.label, item.reviewed) for item in queue.items] == [("pit", True), (None, False)]
    assert Image.open(io.BytesIO(queue.picture("120.png"))).size == (64, 48)
    assert Image.open(io.BytesIO(queue.heat("120.png") or b"")).mode == "RGBA"
    session = Session(queue)
    session.label("130.png", "good")
    session.label("120.png", "scratch")
    assert read_reviewed(Path(queue.place)) == {"130.png": "good", "120.png": "scratch"}
    for key in ("130.png", "120.png"):
        session.take_back(key)
    assert read_reviewed(Path(queue.place)) == {"130.png": "pit"}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (Choice.ALL, ["10.png", "20.png", "30.png"]),
        (Choice.UNLABELLED, ["30.png"]),
        (Choice.TEST, ["20.png"]),
    ],
)
def test_the_user_chooses_which_parts_are_reviewed(
    make_part: Callable[..., Part],
    monkeypatch: pytest.MonkeyPatch,
    choice: Choice,
    expected: list[str],
) -> None:
    train, test, unlabelled = make_part(10, "good"), make_part(20, "pit"), make_part(30)
    splits = {"train": [train], "validation": [], "test": [test]}
    monkeypatch.setattr("pegboard_defect.data.all_parts", lambda _: [train, test, unlabelled])
    monkeypatch.setattr("pegboard_defect.data.splits_of", lambda _: splits)
    parts = review.parts_to_review(DefectSettings(), choice)
    assert [part.key for part in parts] == expected
    with pytest.raises(DataError, match="--split validation"):
        review.parts_to_review(DefectSettings(), Choice.VALIDATION)


def test_the_newest_bundle_with_a_verified_model_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = {"2026-01-01T00-00-00": "verified", "2026-01-02T00-00-00": "verified"}
    states |= {"2026-01-03T00-00-00": "exported", "2026-01-04T00-00-00": "quarantined"}
    for name in states:
        bundle = tmp_path / "runs" / name / "bundle"
        bundle.mkdir(parents=True)
        (bundle / "bundle.json").touch()
        (bundle.parent / "run.json").write_text("{}")
    monkeypatch.setattr(
        "pegboard.bundle.read_bundle",
        lambda bundle, verify: SimpleNamespace(
            candidates=[SimpleNamespace(status=states[bundle.parent.name])]
        ),
    )
    assert review.newest_verified(tmp_path).parent.name == "2026-01-02T00-00-00"
    states.update(dict.fromkeys(states, "exported"))
    assert review.newest_verified(tmp_path).parent.name == "2026-01-04T00-00-00"


# --- The command ----------------------------------------------------------------------------------


@pytest.fixture
def command(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> typer.Typer:
    monkeypatch.setattr(review, "open_project", lambda folder, overrides: None)
    monkeypatch.setattr(review, "fill_queue", lambda project, **options: queue)
    app = typer.Typer()
    app.callback()(lambda: None)
    review.register(app)
    return app


def test_the_command_says_where_the_page_is_and_what_was_written(
    command: typer.Typer, labels: Labels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        review, "serve", lambda app, listener: app.state.session.label(KEYS[0], "pit")
    )
    result = CliRunner().invoke(command, ["review", "--port", "0"])
    assert result.exit_code == 0, result.output
    assert "3 parts at http://127.0.0.1:" in result.output and "Ctrl-C" in result.output
    assert f"1 label written to {labels.file}; 'pegboard run' trains with it" in result.output


def test_a_missing_extra_is_named_before_anything_is_scored(
    command: typer.Typer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = CliRunner().invoke(command, ["review"])
    assert "'pegboard review' is not possible" in str(result.exception)
    assert "pip install" in str(result.exception)


def test_the_command_takes_only_splits_that_there_are(command: typer.Typer) -> None:
    result = CliRunner().invoke(command, ["review", "--split", "tests"])
    assert result.exit_code == 2 and "unlabelled" in result.output


SERVER = """
import sys
from pegboard_defect.review import Choice, Item, Queue, build_app, farewell, listen, serve

item = Item(key="a.png", score=0.5, label=None, predicted=None, certainty=0.0)
queue = Queue(
    items=(item,),
    classes=("good", "pit"),
    picture=lambda key: b"",
    heat=lambda key: None,
    write=lambda key, label: None,
    place="reviewed.csv",
)
app = build_app(queue)
with listen(0) as listener:
    print(listener.getsockname()[1], app.state.session.token, flush=True)
    serve(app, listener)
print(farewell(app.state.session))
"""


def test_ctrl_c_ends_it_with_what_was_written() -> None:
    words = [sys.executable, "-W", "error", "-c", SERVER]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            port, token = process.stdout.readline().decode().split()
            headers = {
                "Content-Type": "application/json",
                "Origin": f"http://127.0.0.1:{port}",
                "X-Review-Token": token,
            }
            body = b'{"key": "a.png", "label": "pit"}'
            asked = urllib.request.Request(f"http://127.0.0.1:{port}/label", body, headers)
            with urllib.request.urlopen(asked, timeout=30) as response:
                assert response.status == 200
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    assert output.decode().startswith("1 label written to reviewed.csv")
    assert errors == b"" and process.returncode == 0
