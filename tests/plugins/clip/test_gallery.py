"""The gallery of `pegboard serve`: what its paths answer, and the page in a real browser."""

from __future__ import annotations

import asyncio
import base64
import http.client
import io
import json
import re
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from asgi import Server, running
from chromium import Browser
from colours import COLOURS, NOUNS, ColourEncoder, paint
from PIL import Image, ImageDraw

from pegboard.progress import SilentProgress
from pegboard_clip import gallery
from pegboard_clip.index import Index, refresh
from pegboard_clip.settings import ClipServe, ClipSettings

uvicorn = pytest.importorskip("uvicorn")
http_module = pytest.importorskip("pegboard.serving.http")

SVG_NAME = "<img src=x onerror=alert(1)>.png"


# --- A server -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files") / "pictures"
    paint(folder / "apple.png", "red")
    paint(folder / "fruit" / "lemon.png", "yellow")
    paint(folder / "leaf.png", "green", "green", "white")
    paint(folder / "sky.png", "blue", "blue", "blue", "white")
    paint(folder / SVG_NAME, "black")
    paint(folder / "图片.png", "white", "white", "green")
    return folder


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    folder = tmp_path_factory.mktemp("index") / "index"
    fill(folder, pictures)
    return folder


def fill(folder: Path, pictures: Path) -> None:
    encoder = ColourEncoder()
    with Index.create(folder, model=encoder.model, dimension=encoder.dimension) as opened:
        refresh(opened, pictures, encoder, SilentProgress())


class Service:
    """What the application needs of the core's service: everything but a model."""

    def __init__(self, index: Path, folder: Path) -> None:
        from pegboard.serving.metrics import ServerMetrics

        self.folder = folder
        self.settings = ClipSettings(serve=ClipServe(index=index))
        self.bundle = SimpleNamespace(folder=folder / "bundle", solution="clip", version="1")
        self.metrics, self.is_ready = ServerMetrics(), True
        self.begin: list[Callable[[], Awaitable[None]]] = []
        self.end: list[Callable[[], Awaitable[None]]] = []
        self.encoders: list[ColourEncoder] = []
        self.model = "colours-1"
        self.routes = gallery.routes(self.settings, self, self.make_encoder)  # type: ignore[arg-type]

    def make_encoder(self, service: Any, loop: asyncio.AbstractEventLoop) -> ColourEncoder:
        assert service is self and loop.is_running()
        self.encoders.append(ColourEncoder(self.model))
        return self.encoders[-1]

    def at_start(self, call: Callable[[], Awaitable[None]]) -> None:
        self.begin.append(call)

    def at_close(self, call: Callable[[], Awaitable[None]]) -> None:
        self.end.append(call)


@dataclass(frozen=True)
class Page:
    port: int
    service: Service

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/gallery"

    def ask(self, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        content = None if body is None else json.dumps(body).encode()
        connection.request("POST" if content else "GET", path, content, headers)
        response = connection.getresponse()
        answer = response.status, dict(response.getheaders()), response.read()
        connection.close()
        return answer

    def find(self, **wish: Any) -> Any:
        status, _, content = self.ask("/search", wish)
        answer = json.loads(content)
        return answer if status == 200 else (status, answer["error"])

    def names(self, **wish: Any) -> list[str]:
        return [match["file"] for match in self.find(**wish)["matches"]]


async def no_other_path(scope: Any, receive: Any, send: Any) -> None:
    """Stand for the administrative paths."""
    await send({"type": "http.response.start", "status": 404, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    with running(listener) as server:
        yield server


def served(server: Server, service: Service) -> Page:
    app = http_module.Application(service, lambda: no_other_path)
    return Page(server.serve(app), service)


@pytest.fixture
def page(server: Server, index: Path, tmp_path: Path) -> Iterator[Page]:
    service = Service(index, tmp_path)
    yield served(server, service)
    for call in service.end:
        asyncio.run(call())


def as_base64(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


# --- What the paths answer ------------------------------------------------------------------------


def test_without_an_index_in_the_settings_there_is_no_path(tmp_path: Path) -> None:
    service = SimpleNamespace(folder=tmp_path)
    assert gallery.routes(ClipSettings(), service, ColourEncoder) == []  # type: ignore[arg-type]


def test_words_rank_pictures(page: Page) -> None:
    answer = page.find(q="red apple", top=2)
    assert answer["pictures"] == 6 and answer["warnings"] == []
    first = answer["matches"][0]
    assert first == {"rank": 1, "id": first["id"], "file": "apple.png", "root": "pictures"}
    assert len(answer["matches"]) == 2
    assert page.names(q="yellow + green - yellow", top=1) == ["leaf.png"]


def test_a_picture_ranks_pictures(page: Page) -> None:
    image = as_base64(Image.new("RGB", (30, 20), COLOURS["yellow"]))
    assert page.names(image=image, top=1) == ["fruit/lemon.png"]
    sky = page.find(q="sky", top=1)["matches"][0]["id"]
    assert page.names(id=sky, top=2)[0] == "sky.png"


def test_without_a_wish_the_newest_come(page: Page) -> None:
    assert page.names(top=1) == ["fruit/lemon.png"] and len(page.names()) == 6


def test_a_script_that_the_vocabulary_does_not_know_is_said(page: Page) -> None:
    assert page.find(q="苹果")["warnings"] == ["The vocabulary does not know Chinese."]


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"q": ""}, "a term of the query is empty"),
        ({"q": 3}, "this is no text"),
        ({"q": "a", "id": 1}, "more than one thing"),
        ({"id": 99}, "no picture of this number"),
        ({"id": True}, "no picture's number"),
        ({"id": 2**63}, "no picture's number"),
        ({"id": "../../etc/passwd"}, "no picture's number"),
        ({"image": "%%%"}, "this is not base64"),
        ({"image": "AAAA"}, "the picture cannot be read"),
        ({"q": "a", "top": 0}, "send 1 to 600"),
        ({"q": "a", "top": 601}, "send 1 to 600"),
        ({"path": "/etc/passwd"}, "there is no field 'path'"),
    ],
)
def test_what_is_no_request_is_refused(page: Page, wish: dict[str, Any], words: str) -> None:
    status, sentence = page.find(**wish)
    assert status == 422 and words in sentence


def test_a_thumbnail_is_a_small_jpeg_that_nobody_keeps(page: Page) -> None:
    number = page.find(q="apple", top=1)["matches"][0]["id"]
    status, headers, content = page.ask(f"/thumbnail/{number}")
    assert status == 200 and headers["content-type"] == "image/jpeg"
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert Image.open(io.BytesIO(content)).getpixel((9, 9))[0] > 200  # type: ignore[index]


@pytest.mark.parametrize("asked", ["99", "-1", "x", "1e0", "..%2f..%2fetc%2fpasswd", "%D9%A1"])
def test_no_path_comes_from_a_client(page: Page, asked: str) -> None:
    assert page.ask(f"/thumbnail/{asked}")[0] in (404, 422)


def test_answers_name_no_folder_of_this_machine(page: Page, pictures: Path) -> None:
    text = json.dumps([page.find(), page.find(id=99), page.ask("/thumbnail/99")[2].decode()])
    assert str(pictures.parent) not in text


def test_an_index_that_is_not_made_yet_is_said_and_found_later(
    server: Server, pictures: Path, tmp_path: Path
) -> None:
    service = Service(tmp_path / "later", tmp_path)
    page = served(server, service)
    asyncio.run(service.begin[0]())
    status, sentence = page.find(q="apple")
    assert status == 503 and "pegboard index FOLDER" in sentence
    fill(tmp_path / "later", pictures)
    assert page.names(q="apple", top=1) == ["apple.png"]
    asyncio.run(service.end[0]())


def test_a_swapped_bundle_embeds_and_is_refused_for_an_index_of_another(page: Page) -> None:
    page.find(q="apple")
    page.find(q="sky")
    assert len(page.service.encoders) == 1
    page.service.model = "other"
    page.service.bundle = SimpleNamespace(folder=Path("other"))
    status, sentence = page.find(q="apple")
    assert status == 503 and "another model" in sentence and "--again" in sentence
    assert len(page.service.encoders) == 2


def test_a_bundle_that_is_swapped_while_it_embeds_is_asked_again(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    page.find(q="apple")
    before, texts = page.service.encoders[0], []

    def swap(encoder: ColourEncoder, given: Sequence[str]) -> Any:
        texts.append(encoder)
        if encoder is before:
            page.service.bundle = SimpleNamespace(folder=Path("other"))
        return embed(encoder, given)

    embed = ColourEncoder.texts
    monkeypatch.setattr(ColourEncoder, "texts", swap)
    assert page.names(q="apple", top=1) == ["apple.png"]
    assert texts == page.service.encoders and len(texts) == 2


def test_before_it_serves_old_thumbnails_are_gone(page: Page) -> None:
    kept = page.service.folder / "thumbnails"
    kept.mkdir()
    (kept / "old").write_bytes(b"x")
    asyncio.run(page.service.begin[0]())
    assert list(kept.iterdir()) == []


def test_the_page_runs_its_own_script_alone(page: Page) -> None:
    status, headers, content = page.ask("/gallery")
    policy = headers["content-security-policy"]
    assert status == 200 and headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert re.search(r"script-src 'sha256-[^']{44}'; style-src 'sha256-[^']{44}'; ", policy)
    assert headers["x-frame-options"] == "DENY"
    # The one address in it is the name of SVG's namespace, in the icon.
    assert set(re.findall(rb"https?://[^'\"\s]+", content)) == {b"http://www.w3.org/2000/svg"}
    assert b"innerHTML" not in content and b" style=" not in content


def test_the_page_needs_no_token_and_pictures_do(
    server: Server, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEGBOARD_SERVE_TOKEN", "secret")
    page = served(server, Service(index, tmp_path))
    assert page.ask("/gallery")[0] == 200
    assert page.ask("/thumbnail/1")[0] == 401
    assert page.find(q="apple")[0] == 401
    assert page.ask("/thumbnail/1", Authorization="Bearer secret")[0] == 200


# --- In a browser ---------------------------------------------------------------------------------

ESCAPE, DOWN, RIGHT, ENTER = "\ue00c", "\ue015", "\ue014", "\ue007"
FIRST = "document.querySelector('.tile .name')?.firstChild.data"
SHOWN = "document.querySelectorAll('.frame img.there').length"


def type_query(browser: Browser, query: str) -> None:
    browser.run("document.activeElement.blur()")
    browser.press("/", *query, ENTER)


def upload(browser: Browser, selector: str, file: Path) -> None:
    wanted = {"using": "css selector", "value": selector}
    element = next(iter(browser._ask("POST", "/element", wanted).values()))
    browser._ask("POST", f"/element/{element}/value", {"text": str(file)})


def visit(browser: Browser, url: str) -> None:
    """Open a page afresh; what the page before had to say is not its fault."""
    browser.open("about:blank")
    browser.problems()
    browser.open(url)


def text_of(browser: Browser, identity: str) -> str:
    found: str = browser.run(f"document.getElementById('{identity}').textContent")
    return found


def test_who_types_a_query_sees_the_right_picture_first(browser: Browser, page: Page) -> None:
    visit(browser, page.url)
    browser.until(SHOWN, 6)
    assert text_of(browser, "said") == "6 pictures, the newest first"
    type_query(browser, "red apple")
    browser.until(FIRST, "apple.png")
    assert text_of(browser, "said") == "The 6 nearest of 6 pictures, best first"
    assert browser.run("document.querySelector('.rank').textContent") == "1"
    browser.until(SHOWN, 6)
    assert browser.run("location.hash") == "#q=red%20apple"
    type_query(browser, "sky")
    browser.until(FIRST, "sky.png")
    browser.run("history.back()")
    browser.until(FIRST, "apple.png")
    assert browser.run("document.getElementById('q').value") == "red apple"
    browser.reload()
    browser.until(FIRST, "apple.png")
    assert browser.problems() == []


def test_a_click_searches_by_that_picture(browser: Browser, page: Page) -> None:
    visit(browser, page.url + "#q=apple")
    browser.until(FIRST, "apple.png")
    browser.click("[title='pictures/leaf.png']")
    browser.until(FIRST, "leaf.png")
    assert text_of(browser, "chip-name") == "leaf.png"
    browser.until("document.getElementById('chip-picture').naturalWidth > 0")
    browser.click("#chip-close")
    browser.until("document.getElementById('said').textContent", "6 pictures, the newest first")
    assert browser.problems() == []


def test_a_picture_is_uploaded_and_dropped(browser: Browser, page: Page, tmp_path: Path) -> None:
    visit(browser, page.url)
    browser.until(SHOWN, 6)
    upload(browser, "#file", paint(tmp_path / "mine.png", "yellow"))
    browser.until(FIRST, "lemon.png")
    assert text_of(browser, "chip-name") == "mine.png"
    content = base64.b64encode(paint(tmp_path / "other.png", "blue").read_bytes()).decode()
    drop = """(() => {
      const bytes = Uint8Array.from(atob('%s'), letter => letter.charCodeAt(0));
      const dataTransfer = new DataTransfer();
      dataTransfer.items.add(new File([bytes], 'other.png', { type: 'image/png' }));
      const target = document.getElementById('grid');
      target.dispatchEvent(new DragEvent('dragenter', { dataTransfer, bubbles: true }));
      const seen = !document.getElementById('drop').hidden;
      target.dispatchEvent(new DragEvent('drop', { dataTransfer, bubbles: true }));
      return seen && document.getElementById('drop').hidden;
    })()"""
    assert browser.run(drop % content) is True
    browser.until(FIRST, "sky.png")
    assert browser.problems() == []


def test_the_gallery_is_used_by_keys_alone(browser: Browser, page: Page) -> None:
    visit(browser, page.url + "#q=leaf")
    browser.until(FIRST, "leaf.png")
    browser.press("/")
    assert browser.run("document.activeElement.id") == "q"
    browser.press(DOWN, RIGHT)
    second = browser.run("document.activeElement.querySelector('.name').firstChild.data")
    assert browser.run("document.activeElement.querySelector('.rank').textContent") == "2"
    browser.press(ENTER)
    browser.until(FIRST, second)
    browser.press(ESCAPE)
    browser.until("document.getElementById('said').textContent", "6 pictures, the newest first")
    assert browser.run("document.activeElement.id") == "q"


def test_a_name_that_is_html_is_shown_as_it_is(browser: Browser, page: Page) -> None:
    visit(browser, page.url + "#q=black")
    browser.until(FIRST, SVG_NAME)
    assert browser.run("document.querySelectorAll('img[src=\"x\"]').length") == 0
    type_query(browser, "<b>x</b>")
    browser.until("document.title", "<b>x</b> – Pegboard gallery")  # noqa: RUF001
    assert browser.problems() == []


def test_an_error_and_a_warning_are_said_where_they_are_seen(browser: Browser, page: Page) -> None:
    visit(browser, page.url + "#q=" + "%E8%8B%B9%E6%9E%9C")
    browser.until("document.getElementById('warning').hidden", False)
    assert "does not know Chinese" in text_of(browser, "warning")
    type_query(browser, "apple +")
    browser.until("document.getElementById('alert').hidden", False)
    assert "a term of the query is empty" in text_of(browser, "alert")
    type_query(browser, "apple")
    browser.until("document.getElementById('alert').hidden", True)


def test_it_speaks_chinese_to_who_does(browser: Browser, page: Page) -> None:
    override = {"userAgent": "test", "acceptLanguage": "zh-CN"}
    browser.command("Emulation.setUserAgentOverride", **override)
    try:
        browser.open("about:blank")
        browser.open(page.url)
        browser.until("document.getElementById('said').textContent", "共 6 张图片，最新的在前")  # noqa: RUF001
        assert browser.run("document.documentElement.lang") == "zh"
        assert browser.run("document.querySelector('.main').textContent") == "搜索"
    finally:
        browser.command("Emulation.setUserAgentOverride", userAgent="test", acceptLanguage="en-US")


def test_a_server_with_a_token_is_asked_with_it(
    browser: Browser,
    server: Server,
    index: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PEGBOARD_SERVE_TOKEN", "secret")
    page = served(server, Service(index, tmp_path))
    visit(browser, page.url)
    browser.until("document.getElementById('ask-token').open")
    browser.press(*"secret", ENTER)
    browser.until(SHOWN, 6)
    browser.run("sessionStorage.clear()")
    browser.problems()  # The browser notes the first 401.


def many_pictures(folder: Path) -> Path:
    """Paint shapes on grounds, to be looked at."""
    for number in range(70):
        colour = list(COLOURS)[number % 4]
        width, height = [(320, 320), (400, 260), (240, 340)][number % 3]
        image = Image.new("RGB", (width, height), ["#f3efe6", "#dfe8ee", "#22303c"][number % 3 - 1])
        draw = ImageDraw.Draw(image)
        side = 90 + number % 7 * 15
        left, top = (width - side) // 2, (height - side) // 2
        box = (left, top, left + side, top + side)
        [draw.ellipse, draw.rectangle][number % 2](box, fill=COLOURS[colour])
        noun = {colour: noun for noun, colour in NOUNS.items()}[colour]
        path = folder / ["summer", "winter"][number % 2] / f"{noun}-{number:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    return folder


def test_more_are_shown_when_asked_for(
    browser: Browser, server: Server, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    fill(tmp_path / "index", many_pictures(tmp_path / "holiday"))
    service = Service(tmp_path / "index", tmp_path)
    page = served(server, service)
    visit(browser, page.url + "#q=red%20apple")
    browser.until("document.querySelectorAll('.tile').length", 60)
    browser.until(f"{SHOWN} > 11")
    browser.screenshot(tmp_path / "gallery.png")
    browser.click("#more")
    browser.until("document.querySelectorAll('.tile').length", 70)
    assert browser.run("document.getElementById('more').hidden") is True
    assert browser.run("document.querySelectorAll('.rank')[69].textContent") == "70"
    asyncio.run(service.end[0]())
