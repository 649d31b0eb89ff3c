"""`pegboard review`: a local page that shows the least certain parts and takes their labels.

Serving the page needs Starlette and uvicorn, imported on use: the command line imports this module
to know the command.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import logging
import secrets
import socket
import threading
from collections.abc import (
    Awaitable,
    Callable,
    Iterator,
    Mapping,
    MutableMapping,
    Sequence,
)
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache, partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from pegboard.cli.options import Overrides, ProjectFolder, open_project
from pegboard.errors import DataError, PegboardError
from pegboard.logs import new_progress
from pegboard.records import Array, Thresholds
from pegboard.serving.browsers import asks_for_this_machine, comes_from_another_site

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from pegboard.answering import Answerer
    from pegboard.progress import Progress
    from pegboard.project import Project
    from pegboard.settings import Settings
    from pegboard_defect.parts import Part
    from pegboard_defect.settings import DefectSettings

HOST = "127.0.0.1"
"""Nobody but who sits at this machine is asked for labels."""
TOKEN = "X-Review-Token"
SCORED_AT_ONCE = 16
MOST_SHOWN = 1600
"""Longest side of a picture on the page, in pixels."""
CELLS = 32
"""Cells of a heat map along each side, as many as the rows of an evaluation keep."""
HEAT_SIDE = 256
"""Side of a heat map on the page, which the browser stretches over the picture."""
MOST_BYTES = 16_384
"""Largest request; a label with its key is far smaller."""
SEEN_BY_MODEL = ("size", "color", "region", "tile", "overlap")
"""Settings of the data that the bundle decides: a model sees pictures as it was trained to."""

# --------------------------------------------------------------------------- the queue


@dataclass(frozen=True, kw_only=True)
class Item:
    """A part that waits for a look."""

    key: str
    """What the data calls it."""
    score: float
    """Degree of being defective, 0 to 1."""
    label: str | None
    """Its class as the data has it now; None where it is not known."""
    predicted: str | None
    """The class that the model takes it for; None where it names none."""
    certainty: float
    """Distance of the score from the threshold."""
    reviewed: bool = False
    """Whether its label comes from an earlier review, which taking back a newer one restores."""


@dataclass(frozen=True, kw_only=True)
class Queue:
    """What the page shows, and where its labels go."""

    items: tuple[Item, ...]
    """In the order they are shown."""
    classes: tuple[str, ...]
    """What a label can be; the first is that of good parts."""
    picture: Callable[[str], bytes]
    """Takes a key; returns the picture as PNG."""
    heat: Callable[[str], bytes | None]
    """Takes a key; returns the heat map to lay over the picture as PNG, None where there is none.
    `color_heat` makes one."""
    write: Callable[[str, str | None], None]
    """Takes a key and its label, on the disk when it returns; None removes a reviewed label."""
    threshold: float | None = None
    """From which score on a part is rejected."""
    place: str = ""
    """Where labels are written to, for messages."""


class Session:
    """What was written since the page was opened, in order, so that it can be taken back.

    Args:
        queue: What is reviewed.
    """

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.id = secrets.token_urlsafe(8)
        self.token = secrets.token_urlsafe(32)
        self.items = {item.key: item for item in queue.items}
        self._history: list[tuple[str, str]] = []
        self._lock = threading.Lock()  # Requests run in threads, and a page may be open twice.

    def label(self, key: str, label: str) -> None:
        """Write a part's label."""
        with self._lock:
            self.queue.write(key, label)
            self._history.append((key, label))

    def take_back(self, key: str) -> bool:
        """Take back the latest label of a part; return whether there was one."""
        with self._lock:
            of_key = [place for place, (written, _) in enumerate(self._history) if written == key]
            if not of_key:
                return False
            item = self.items[key]
            first = item.label if item.reviewed else None
            self.queue.write(key, self._history[of_key[-2]][1] if of_key[1:] else first)
            del self._history[of_key[-1]]
            return True

    def written(self) -> dict[str, str]:
        """Return the labels written by now, by key."""
        return dict(self._history)

    def state(self) -> dict[str, Any]:
        """Return what the page knows of labels: those written, and whose came last."""
        history = list(self._history)
        return {"written": dict(history), "last": history[-1][0] if history else None}


# --------------------------------------------------------------------------- heat maps

RED = 0.45
"""Where on the scale of colors a place begins to count as defective."""

# Positions, then red, green, blue and opacity: the part shows through where nothing is seen. Dark
# violet to yellow differs in lightness, too, so it does not take colour vision.
_STOPS = (0.0, 0.15, RED, 0.75, 1.0)
_COLORS = (
    (87, 16, 110, 0),
    (87, 16, 110, 60),
    (212, 66, 72, 150),
    (251, 155, 6, 185),
    (252, 240, 120, 205),
)


def coarse(where: Array, threshold: float = RED) -> Array:
    """Return the peak of a map in each of CELLS x CELLS cells, the threshold at RED.

    Args:
        where: Map values (H, W) of 0 to 1.
        threshold: The value from which on a place counts as defective. It becomes RED, before
            values are rounded: it may be far below 1, where few of 256 levels would be left.

    Returns:
        uint8 (CELLS, CELLS), 255 for 1.
    """
    from pegboard_defect.images import peaks

    scaled = np.interp(peaks(where, CELLS), (0.0, threshold, 1.0), (0.0, RED, 1.0))
    cells: Array = (scaled * 255).round().astype(np.uint8)
    return cells


def color_heat(heat: Array) -> bytes:
    """Make a heat map, uint8 (h, w), a smooth PNG that is the more opaque the more it sees."""
    from PIL import Image

    from pegboard_defect.images import as_png

    side = (HEAT_SIDE, HEAT_SIDE)
    smooth = np.asarray(Image.fromarray(heat).resize(side, Image.Resampling.BICUBIC))
    return as_png(_palette()[smooth])


@lru_cache(maxsize=1)
def _palette() -> Array:
    levels = np.linspace(0, 1, 256)
    channels = [np.interp(levels, _STOPS, channel) for channel in zip(*_COLORS, strict=True)]
    return np.stack(channels, axis=1).round().astype(np.uint8)


# --------------------------------------------------------------------------- the application


class RefusedError(Exception):
    """A request that is not obeyed: status and sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


def build_app(queue: Queue) -> Starlette:
    """Build the page's server, an ASGI application.

    Returns:
        `GET /` the page, `GET /queue`, `GET /picture?key=`, `GET /heat?key=` (204 where there is
        none) and `POST /label` with `{"key": ..., "label": ...}`, where null takes back the part's
        latest label. `state.session` is the `Session`.
    """
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.routing import Route

    session = Session(queue)
    pages = {"/": _page, "/queue": _queue, "/picture": _picture, "/heat": _heat}
    routes = [Route(path, partial(page, session), methods=["GET"]) for path, page in pages.items()]
    app = Starlette(
        routes=[*routes, Route("/label", partial(_label, session), methods=["POST"])],
        middleware=[Middleware(_Door)],
        exception_handlers={
            RefusedError: _refuse,
            HTTPException: _refuse_unknown,
            PegboardError: _confess,
            OSError: _confess,
        },
    )
    app.state.session = session
    return app


def _page(session: Session, request: Request) -> Response:
    from starlette.responses import HTMLResponse

    nonce = secrets.token_urlsafe(16)
    text = files("pegboard_defect").joinpath("review.html").read_text("utf-8")
    text = text.replace("{{ nonce }}", nonce).replace("{{ token }}", session.token)
    return HTMLResponse(text, headers={"Content-Security-Policy": _policy(nonce)})


def _policy(nonce: str) -> str:
    """Allow the page its own script and style, pictures that it fetched, and nothing else."""
    return (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
        "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


def _queue(session: Session, request: Request) -> Response:
    queue = session.queue
    return _json(
        {
            "session": session.id,
            "classes": queue.classes,
            "threshold": queue.threshold,
            "place": queue.place,
            "items": [vars(item) for item in queue.items],
            **session.state(),
        }
    )


def _picture(session: Session, request: Request) -> Response:
    return _png(session.queue.picture(_key_of(session, request)))


def _heat(session: Session, request: Request) -> Response:
    return _png(session.queue.heat(_key_of(session, request)))


def _key_of(session: Session, request: Request) -> str:
    return _known(session, request.query_params.get("key"))


def _known(session: Session, key: Any) -> str:
    """Return a key if the queue has it: whatever else is asked for is never looked up."""
    if not isinstance(key, str):
        raise RefusedError(422, "The field 'key' is missing or no text; send a key of the queue.")
    if key not in session.items:
        raise RefusedError(404, "The queue has no part of this key; load the page again.")
    return key


async def _label(session: Session, request: Request) -> Response:
    from starlette.concurrency import run_in_threadpool

    _require_own_page(session, request)
    key, label = _wish(session, await _body(request))
    if label is not None:
        await run_in_threadpool(session.label, key, label)
    elif not await run_in_threadpool(session.take_back, key):
        raise RefusedError(409, "There is no label of this part to take back.")
    return _json(session.state())


def _require_own_page(session: Session, request: Request) -> None:
    """Refuse what another site makes a browser send, and what has not read the page.

    Raises:
        RefusedError: Origin, content type or token are not those of the page.
    """
    headers = request.headers
    is_ours = headers.get("origin") == f"http://{headers['host']}"
    if not is_ours or headers.get("sec-fetch-site", "same-origin") != "same-origin":
        raise RefusedError(403, "The request comes from another site; label on the page itself.")
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise RefusedError(415, "The request is not JSON; send application/json.")
    # Text that is not ASCII cannot be compared as text.
    if not secrets.compare_digest(headers.get(TOKEN, "").encode(), session.token.encode()):
        raise RefusedError(403, "The page is of an earlier review; load it again.")


async def _body(request: Request) -> Any:
    content = b""
    async for chunk in request.stream():
        content += chunk
        if len(content) > MOST_BYTES:
            raise RefusedError(413, f"The request is over {MOST_BYTES} bytes; send one label.")
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        sentence = 'The request is not JSON; send {"key": ..., "label": ...}.'
        raise RefusedError(400, sentence) from None


def _wish(session: Session, body: Any) -> tuple[str, str | None]:
    """Read what is to be written.

    Raises:
        RefusedError: The key or the label is none that there is.
    """
    if not isinstance(body, dict) or "label" not in body:
        raise RefusedError(422, "The field 'label' is missing; send a class, or null.")
    key, label = _known(session, body.get("key")), body["label"]
    if label is None or (isinstance(label, str) and label in session.queue.classes):
        return key, label
    raise RefusedError(422, f"The label is none of the classes {', '.join(session.queue.classes)}.")


def _json(value: Any, status: int = 200) -> Response:
    from starlette.responses import JSONResponse

    return JSONResponse(value, status)


def _png(content: bytes | None) -> Response:
    from starlette.responses import Response

    if content is None:
        return Response(status_code=204)
    return Response(content, media_type="image/png")


def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return _json({"error": str(error)}, error.status)


def _refuse_unknown(request: Request, error: Exception) -> Response:
    sentence = f"There is no {request.method} of this address; open / instead."
    return _json({"error": sentence}, getattr(error, "status_code", 400))


def _confess(request: Request, error: Exception) -> Response:
    return _json({"error": str(error)}, 500)


# --------------------------------------------------------------------------- the door

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
_App = Callable[[_Message, _Receive, _Send], Awaitable[None]]

_HEADERS = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class _Door:
    """Lets in what this machine's own browser asks for the page, and guards what goes out.

    A site that makes its name point to 127.0.0.1 (DNS rebinding) is told by the name it asks for.
    """

    def __init__(self, app: _App) -> None:
        self.app = app

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        async def guarded(message: _Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        problem = _problem(scope["path"], scope["headers"]) if scope["type"] == "http" else None
        inner = self.app if problem is None else _json({"error": problem}, 403)
        await inner(scope, receive, guarded)


def _problem(path: str, headers: Sequence[tuple[bytes, bytes]]) -> str | None:
    is_named_once = sum(name == b"host" for name, _ in headers) == 1
    if not is_named_once or not asks_for_this_machine(headers):
        return "The host is not this machine; open the address that the command printed."
    # A link on another site may open the page; its script still cannot read it.
    if path != "/" and comes_from_another_site(headers):
        return "The request comes from another site; open the page itself."
    return None


# --------------------------------------------------------------------------- filling the queue


class Choice(StrEnum):
    """Which parts are reviewed."""

    ALL = "all"
    UNLABELLED = "unlabelled"
    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A part and what the model makes of it."""

    part: Part
    """The part."""
    score: float
    """Degree of being defective."""
    certainty: float
    """Distance of the score from the threshold."""
    predicted: str | None
    """The class it is taken for."""
    heat: Array
    """Where: uint8 (CELLS, CELLS)."""

    @property
    def rank(self) -> tuple[bool, float]:
        """What the queue is sorted by: parts without a label first, then the least certain."""
        return self.part.label is not None, self.certainty


def fill_queue(project: Project, *, count: int, choice: Choice, progress: Progress) -> Queue:
    """Score a project's parts with its newest verified bundle and queue the least certain.

    Raises:
        BundleError: No bundle can be used.
        DataError: There is no part to review.
    """
    from pegboard.lifecycle import prepare

    prepare(project, progress)
    answerer = open_newest(project, progress)
    settings = settings_to_review(_ours(project.settings), _ours(answerer.settings))
    parts = parts_to_review(settings, choice)
    scored = score(answerer, settings, parts, progress)
    least_certain = heapq.nsmallest(count, scored, key=lambda one: one.rank)
    return queue_of(least_certain, settings, answerer.thresholds)


def open_newest(project: Project, progress: Progress) -> Answerer:
    """Open the project's newest verified bundle as a server would.

    Raises:
        BundleError: There is none, or it does not answer here as it did when it was verified.
    """
    from pegboard.serving.deployment import deploy
    from pegboard.settings import Sources

    folder = newest_verified(project.folder)
    with progress.task("open the newest bundle"):
        return deploy(project.board, folder, sources=Sources(), root=project.folder).answerer


def newest_verified(folder: Path) -> Path:
    """Return a project's newest bundle with a verified model; without any, its newest of all.

    Raises:
        BundleError: There is no bundle.
    """
    from pegboard.bundle import read_bundle
    from pegboard.cli.predict import newest_bundle
    from pegboard.runs import runs_of

    for run in reversed(runs_of(folder)):
        bundle = run / "bundle"
        if (bundle / "bundle.json").is_file():
            candidates = read_bundle(bundle, verify=False).candidates
            if any(candidate.status == "verified" for candidate in candidates):
                return bundle
    return newest_bundle(folder)  # Who opens it is told what it lacks.


def _ours(settings: Settings) -> DefectSettings:
    from pegboard_defect.settings import DefectSettings

    if not isinstance(settings, DefectSettings):
        raise TypeError(f"these are no defect settings: {type(settings)}")
    return settings


def settings_to_review(project: DefectSettings, bundle: DefectSettings) -> DefectSettings:
    """Return the project's settings, with pictures as the bundle's model sees them."""
    seen = {name: getattr(bundle.data, name) for name in SEEN_BY_MODEL}
    return project.model_copy(update={"data": project.data.model_copy(update=seen)})


def parts_to_review(settings: DefectSettings, choice: Choice) -> list[Part]:
    """Return the parts that the user chose.

    Raises:
        DataError: There are none.
    """
    from pegboard_defect.data import all_parts, source, splits_of

    if choice in (Choice.ALL, Choice.UNLABELLED):
        parts = [p for p in all_parts(settings) if choice is Choice.ALL or p.label is None]
    else:
        parts = {str(name): split for name, split in splits_of(settings).items()}[choice]
    if not parts:
        raise DataError(
            f"there is no part to review with --split {choice}",
            where=str(source(settings.data)),
            remedy="choose others with --split, or add pictures",
        )
    return parts


def score(
    answerer: Answerer, settings: DefectSettings, parts: Sequence[Part], progress: Progress
) -> Iterator[Scored]:
    """Score parts down the path that serving takes, a few at a time."""
    from pegboard_defect.images import prepared, read_image

    threshold = answerer.thresholds["defect"]
    classes = _ours(answerer.settings).data.classes
    groups = [parts[i : i + SCORED_AT_ONCE] for i in range(0, len(parts), SCORED_AT_ONCE)]
    for group in progress.track(groups, "score parts", len(groups)):
        pictures = [prepared(read_image(part.image), settings.data) for part in group]
        outputs = answerer.infer({"image": np.stack(pictures)})
        answers = answerer.encode(outputs)
        for part, answer, value, where in zip(
            group, answers, outputs["score"], outputs["map"], strict=True
        ):
            yield Scored(
                part=part,
                score=float(value),
                certainty=abs(float(value) - threshold),
                predicted=_predicted(answer, classes),
                heat=coarse(where, answerer.thresholds["pixel"]),
            )


def _predicted(answer: Mapping[str, Any], classes: Sequence[str]) -> str | None:
    if "class" in answer:
        return str(answer["class"])
    if answer["decision"] == "accept":
        return classes[0]
    # An anomaly is of no class, unless there is only one.
    return classes[1] if len(classes) == 2 else None


def queue_of(scored: Sequence[Scored], settings: DefectSettings, thresholds: Thresholds) -> Queue:
    """Queue scored parts, in this order; labels go where the data keeps those of reviewers."""
    from pegboard_defect.data import source
    from pegboard_defect.labels import read_reviewed, reviewed_file, write_label

    file = reviewed_file(settings.data, source(settings.data))
    reviewed = read_reviewed(file)
    by_key = {one.part.key: one for one in scored}
    items = [
        Item(
            key=one.part.key,
            score=one.score,
            label=one.part.label,
            predicted=one.predicted,
            certainty=one.certainty,
            reviewed=one.part.key in reviewed,
        )
        for one in scored
    ]
    return Queue(
        items=tuple(items),
        classes=settings.data.classes,
        picture=lambda key: show(by_key[key].part.image),
        heat=lambda key: color_heat(by_key[key].heat),
        write=partial(write_label, file),
        threshold=thresholds["defect"],
        place=str(file),
    )


def show(path: Path) -> bytes:
    """Return a picture for the page as PNG: as it lies on the disk, for people see more."""
    from PIL import Image

    from pegboard_defect.images import as_png, read_image, to_array

    image = Image.fromarray(to_array(read_image(path), "rgb"))
    image.thumbnail((MOST_SHOWN, MOST_SHOWN))
    return as_png(np.asarray(image))


# --------------------------------------------------------------------------- the command


def listen(port: int) -> socket.socket:
    """Take an address of this machine alone; port 0 takes any that is free.

    Raises:
        PegboardError: It is taken.
    """
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen()  # Who reads the address may ask at once.
    except OSError as error:
        listener.close()
        raise PegboardError(
            f"the page cannot be served: {error.strerror}",
            where=f"{HOST}:{port}",
            remedy="choose another with --port, 0 for any free one",
        ) from None
    return listener


def serve(app: Starlette, listener: socket.socket) -> None:
    """Serve the page until Ctrl-C or SIGTERM."""
    import uvicorn

    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    config = uvicorn.Config(
        app,
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=2,
    )
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn hands on what ended it.
        uvicorn.Server(config).run(sockets=[listener])


def farewell(session: Session) -> str:
    """Say what was written, where, and what it is for."""
    count = len(session.written())
    if not count:
        return "no label written"
    labels, them = _counted(count, "label"), "it" if count == 1 else "them"
    return f"{labels} written to {session.queue.place}; 'pegboard run' trains with {them}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()
    return f"http://{host}:{port}"


def register(app: typer.Typer) -> None:
    """Add `review` to the command line."""

    @app.command()
    def review(
        overrides: Overrides = None,
        project: ProjectFolder = None,
        count: Annotated[int, typer.Option(min=1, help="How many parts to look at.")] = 50,
        split: Annotated[
            Choice, typer.Option(help="Which of them; of all, those without a label come first.")
        ] = Choice.ALL,
        port: Annotated[
            int, typer.Option(min=0, max=65535, help="Where the page is; 0: any free port.")
        ] = 8000,
    ) -> None:
        """Label the least certain parts on a local web page."""
        from pegboard.targets.support import require

        require("fastapi", "uvicorn", what="'pegboard review'")
        opened = open_project(project, overrides)
        with listen(port) as listener:  # Before parts are scored, which takes its time.
            queue = fill_queue(opened, count=count, choice=split, progress=new_progress())
            page = build_app(queue)
            typer.echo(f"{_counted(len(queue.items), 'part')} at {_address(listener)}")
            typer.echo("Ctrl-C ends it; every label is on the disk at once")
            serve(page, listener)
        typer.echo(farewell(page.state.session))
