"""The page of `pegboard serve`: a search field and a gallery, and the JSON that they ask for.

`GET /gallery` is the page, `POST /search` finds pictures by words, by a picture or by the number of
one that is in the index, `GET /thumbnail/{id}` shows one. A client names pictures by number only;
no path ever comes from it.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pegboard.errors import DataError, RequestError
from pegboard.records import Content, Route
from pegboard_clip.images import read_image
from pegboard_clip.index import Encoder, Index, Match
from pegboard_clip.search import MOST_LETTERS, query_vector, warnings_of
from pegboard_clip.thumbnails import FOLDER, Thumbnails

if TYPE_CHECKING:
    from pegboard.bundle import Bundle
    from pegboard.records import Service
    from pegboard_clip.settings import ClipSettings

TOP = 60
MOST = 600
"""Most pictures in an answer."""
LARGEST_ID = 2**53 - 1
"""The largest that JavaScript counts exactly."""


def routes(
    settings: ClipSettings,
    service: Service,
    make_encoder: MakeEncoder | None = None,
) -> list[Route]:
    """Return the paths of the gallery; none where serve.index is not set.

    Args:
        settings: Say where the index is.
        service: The server.
        make_encoder: Returns what embeds with the bundle that answers now.
            `encoder.encoder_of` when left out.
    """
    index = settings.serve.index
    if index is None:
        return []
    gallery = Gallery(index, settings.data.pixels, service, make_encoder or _encoder_of)
    service.at_start(gallery.begin)
    service.at_close(gallery.end)
    return [
        Route(
            path="/gallery",
            handler=gallery.page,
            method="GET",
            summary="The page with a search field and a gallery.",
            media_type="text/html; charset=utf-8",
            open=True,
        ),
        Route(
            path="/search",
            handler=gallery.search,
            summary="Rank pictures of the index by likeness to words or to a picture.",
            request_schema=REQUEST,
            response_schema=RESPONSE,
        ),
        Route(
            path="/thumbnail/{id}",
            handler=gallery.thumbnail,
            method="GET",
            summary="Show a picture of the index, small.",
            media_type="image/jpeg",
        ),
    ]


MakeEncoder = Callable[["Service", asyncio.AbstractEventLoop], Encoder]


def _encoder_of(service: Service, loop: asyncio.AbstractEventLoop) -> Encoder:
    from pegboard_clip.encoder import encoder_of

    return encoder_of(service, loop)


REQUEST: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "q": {
            "type": "string",
            "maxLength": MOST_LETTERS,
            "description": "Words; '+' adds a term and '-' takes one away.",
        },
        "image": {"type": "string", "description": "A picture, as base64."},
        "id": {
            "type": "integer",
            "minimum": 1,
            "maximum": LARGEST_ID,
            "description": "A picture of the index.",
        },
        "top": {"type": "integer", "minimum": 1, "maximum": MOST, "default": TOP},
    },
    "additionalProperties": False,
    "description": "One of q, image and id; with none of them the pictures that came last.",
}
RESPONSE: Mapping[str, Any] = {
    "type": "object",
    "required": ["matches", "pictures", "warnings"],
    "properties": {
        "matches": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["rank", "id", "file", "root"],
                "properties": {
                    "rank": {"type": "integer", "minimum": 1},
                    "id": {"type": "integer"},
                    "file": {"type": "string", "description": "Below its folder."},
                    "root": {"type": "string", "description": "The name of its folder."},
                },
            },
        },
        "pictures": {"type": "integer", "description": "How many are in the index."},
        "warnings": {"type": "array", "items": {"type": "string"}},
    },
}


class Gallery:
    """What the routes share: the index, opened when it is first asked for, and the encoder.

    Args:
        index: The index's folder; it may be made while the server runs.
        pixels: Most pixels of a picture.
        service: The server, which says what bundle answers now.
        make_encoder: Returns what embeds with the bundle that answers now.
    """

    def __init__(
        self, index: Path, pixels: int, service: Service, make_encoder: MakeEncoder
    ) -> None:
        self.folder, self.pixels, self.service = index, pixels, service
        self.thumbnails = Thumbnails(service.folder / FOLDER, pixels=pixels)
        self._make_encoder = make_encoder
        self._lock = threading.Lock()
        self._index: Index | None = None
        self._encoder: Encoder | None = None
        self._bundle: Bundle | None = None

    # ----------------------------------------------------------------- the server's life

    async def begin(self) -> None:
        """Open what is there, so that the first search does not wait; without an index, nothing."""
        if self.folder.is_dir():
            await asyncio.to_thread(self._warm)

    def _warm(self) -> None:
        from pegboard.errors import PegboardError
        from pegboard.logs import LOGGER

        try:
            self.thumbnails.sweep(self._opened_index())
        except PegboardError as error:  # The page says so, too, and the rest of the server works.
            LOGGER.warning("the gallery cannot search: %s", error)

    async def end(self) -> None:
        """Close the index."""
        if self._index is not None:
            self._index.close()

    # ----------------------------------------------------------------- routes

    async def page(self, _: Any) -> Content:
        """Return the page, which is the same for everybody."""
        body, headers = page()
        return Content(body=body, media_type="text/html; charset=utf-8", headers=headers)

    async def search(self, body: Any) -> Mapping[str, Any]:
        """Rank pictures.

        Raises:
            RequestError: The request is none that `REQUEST` describes.
            DataError: There is no index, or it belongs to another model.
        """
        while True:
            encoder = self._current_encoder()
            found = await asyncio.to_thread(self._search, body, encoder)
            # Half of it may be of another bundle, which has begun to answer meanwhile.
            if encoder is self._current_encoder():
                return found

    async def thumbnail(self, given: Mapping[str, str]) -> Content:
        """Return a picture, small.

        Raises:
            RequestError: There is no such picture.
        """
        identity = _number(given["id"])
        made = await asyncio.to_thread(lambda: self.thumbnails.jpeg(self._opened_index(), identity))
        return Content(body=made, media_type="image/jpeg", headers=_GUARDED)

    # ----------------------------------------------------------------- in threads

    def _search(self, body: Any, encoder: Encoder) -> Mapping[str, Any]:
        wish, top = _wish(body)
        index = self._opened_index()
        warnings: list[str] = []
        if wish is None:
            matches = index.newest(top)
        elif wish[0] == "id":
            vector = index.vector(wish[1])
            if vector is None:
                raise RequestError(
                    "there is no picture of this number", where="id", remedy="search again"
                )
            matches = index.search(vector, top)
        else:
            index.require(encoder)
            kind, value = wish
            query = value if kind == "q" else self._picture(value)
            vector = query_vector(encoder, query)
            warnings = warnings_of(encoder, value) if kind == "q" else []
            matches = index.search(vector, top)
        return {
            "matches": [_shown(rank, match) for rank, match in enumerate(matches, 1)],
            "pictures": len(index),
            "warnings": warnings,
        }

    def _picture(self, text: str) -> Any:
        try:
            content = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise RequestError(
                "this is not base64", where="image", remedy="send a picture's bytes as base64"
            ) from None
        try:
            return read_image(content, pixels=self.pixels, where="image")
        except DataError as error:
            raise RequestError(error.what, where="image", remedy="send another picture") from None

    def _opened_index(self) -> Index:
        with self._lock:
            if self._index is None:
                self._index = Index(self.folder)
            return self._index

    def _current_encoder(self) -> Encoder:
        """Return the encoder of the bundle that answers now; called in the server's loop."""
        bundle = self.service.bundle
        if self._encoder is None or bundle is not self._bundle:
            self._encoder = self._make_encoder(self.service, asyncio.get_running_loop())
            self._bundle = bundle
        return self._encoder


def _wish(body: Any) -> tuple[tuple[str, Any] | None, int]:
    """Read what is asked for, and how many.

    Raises:
        RequestError: It is not what `REQUEST` describes.
    """
    if not isinstance(body, dict):
        raise RequestError(
            "the request is no object", where="request", remedy='send {"q": "red apple"}'
        )
    unknown = next((name for name in body if name not in REQUEST["properties"]), None)
    if unknown is not None:
        raise RequestError(
            f"there is no field '{unknown}'", where="request", remedy="send q, image or id, and top"
        )
    top = body.get("top", TOP)
    if not _is_integer(top) or not 1 <= top <= MOST:
        raise RequestError("this is no number of pictures", where="top", remedy=f"send 1 to {MOST}")
    wishes = [(name, body[name]) for name in ("q", "image", "id") if name in body]
    if len(wishes) > 1:
        raise RequestError(
            "more than one thing is asked for", where="request", remedy="send q, image or id alone"
        )
    return (_checked(*wishes[0]) if wishes else None), top


def _checked(name: str, value: Any) -> tuple[str, Any]:
    if name == "id":
        if not _is_integer(value) or not 1 <= value <= LARGEST_ID:
            raise RequestError(
                "this is no picture's number", where="id", remedy="send one that a search returned"
            )
    elif not isinstance(value, str):
        raise RequestError("this is no text", where=name, remedy="send text")
    return name, value


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,15}", text):
        raise RequestError(
            "this is no picture's number", where="id", remedy="ask for one that a search returned"
        )
    return int(text)


def _shown(rank: int, match: Match) -> Mapping[str, Any]:
    root = match.root.name.encode("utf-8", "replace").decode()
    return {"rank": rank, "id": match.id, "file": match.name, "root": root}


# --------------------------------------------------------------------------- the page

_GUARDED = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}


@lru_cache(maxsize=1)
def page() -> tuple[bytes, Mapping[str, str]]:
    """Return the page and its headers.

    Its policy lets the browser run the page's own script and style, which it names by their
    digests, show pictures that the script has fetched, and ask this server; nothing else.
    """
    text = files("pegboard_clip").joinpath("gallery.html").read_text("utf-8")
    policy = (
        f"default-src 'none'; script-src {_digests(text, 'script')}; "
        f"style-src {_digests(text, 'style')}; img-src blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        **_GUARDED,
        "Content-Security-Policy": policy,
        "Cross-Origin-Opener-Policy": "same-origin",
        "X-Frame-Options": "DENY",
    }
    return text.encode(), headers


def _digests(text: str, tag: str) -> str:
    contents: Sequence[str] = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    digests = (hashlib.sha256(content.encode()).digest() for content in contents)
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
