"""The paths that answer: a small ASGI application; a framework would cost more than the model.

Everything that is not on the way to an answer goes to the FastAPI application of `admin.py`, which
is made when it is first asked for.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from functools import partial
from typing import Any

import orjson

from pegboard.errors import PegboardError, RequestError
from pegboard.records import Content, Route
from pegboard.serving import openinference
from pegboard.serving.batching import OverloadedError
from pegboard.serving.browsers import LOOPBACK, asks_for_this_machine, comes_from_another_site
from pegboard.serving.metrics import CONTENT_TYPE
from pegboard.serving.service import Service, TimeoutExceededError, log_failure
from pegboard.signatures import validate

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]
Reply = tuple[int, bytes, Headers]
Handler = Callable[[Scope, Receive], Awaitable[Reply]]

TOKEN = "PEGBOARD_SERVE_TOKEN"
"""The environment variable with the bearer token that clients must send; unset: anybody may ask."""
ADMIN_TOKEN = "PEGBOARD_ADMIN_TOKEN"
"""The same for who may change what is served; unset: nobody may."""
OPEN = ("/healthz", "/v2/health/live", "/v2/health/ready")
"""Paths that need no token: whoever restarts a server has none."""

_ADMIN = "admin"
"""What all administrative paths are counted as; they look at tokens themselves."""
_JSON = (b"content-type", b"application/json")
_LENGTH = b"inference-header-content-length"
_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


class BodyTooLargeError(PegboardError):
    """A request is larger than it may be."""


class SlowBodyError(PegboardError):
    """A request did not arrive whole in time."""


class DisconnectedError(Exception):
    """The client went away before its request was whole."""


class Application:
    """The server's ASGI application.

    Args:
        service: What answers.
        admin: Makes the application that takes every other path.
    """

    def __init__(self, service: Service, admin: Callable[[], Any]) -> None:
        self.service = service
        self._make_admin = admin
        self._admin: Any = None
        self._token = os.environ.get(TOKEN, "").encode()
        # Without a token it trusts who is on this machine, and browsers are there for anybody.
        self._is_guarded = not self._token and service.settings.serve.host in LOOPBACK
        self._limit = int(service.settings.serve.request_mb * 1e6)
        self._seconds = service.settings.serve.timeout_seconds
        self._paths: dict[str, dict[str, Handler]] = {
            "/healthz": {"GET": self._health},
            "/metrics": {"GET": self._metrics},
            "/predict": {"POST": self._predict},
            "/v2": {"GET": self._server_metadata},
            "/v2/health/live": {"GET": self._live},
            "/v2/health/ready": {"GET": self._ready},
        }
        self._open = {*OPEN, _ADMIN, *(route.path for route in service.routes if route.open)}
        self._named: dict[str, str] = {}
        """Paths that end in a name, by what stands before it."""
        self._model_paths: dict[tuple[str, ...], dict[str, Handler]] = {
            (): {"GET": self._model_metadata},
            ("ready",): {"GET": self._ready},
            ("infer",): {"POST": self._infer},
        }
        model = f"/v2/models/{service.bundle.solution}"
        for rest, methods in self._model_paths.items():
            self._paths["/".join((model, *rest))] = methods
        for route in service.routes:
            self._add(route)

    def _add(self, route: Route) -> None:
        methods = self._paths.setdefault(route.path, {})
        if route.method in methods or route.path.startswith(("/v2", "/admin")):
            raise PegboardError(
                f"the path '{route.method} {route.path}' is taken",
                where="register_routes",
                remedy="choose another",
            )
        methods[route.method] = partial(self._routed, route)
        if route.parameter:
            self._named[route.path.rpartition("{")[0]] = route.path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        began = time.perf_counter()
        path: str = scope["path"]
        methods: Mapping[str, Handler] | None = self._paths.get(path)
        if methods is None and path.startswith("/v2/models/"):
            path, methods = self._model_path(scope, path)
        if methods is None:
            path, methods = self._named_path(path)
        if methods is None:
            path, methods = _ADMIN, {scope["method"]: self._administer}
        try:
            reply = await self._answer(scope, receive, path, methods)
        except DisconnectedError:
            return
        self.service.metrics.count(path, reply[0], time.perf_counter() - began)
        await _send(send, reply)

    async def _answer(
        self, scope: Scope, receive: Receive, path: str, methods: Mapping[str, Handler]
    ) -> Reply:
        handler = methods.get(scope["method"])
        if handler is None:
            allowed = ", ".join(methods)
            return failure(
                405, f"this path takes {allowed}", headers=((b"allow", allowed.encode()),)
            )
        if self._token and path not in self._open and not has_token(scope, self._token):
            return unauthorized()
        if self._is_guarded and (problem := self._problem(scope["headers"], path)):
            return failure(403, problem)
        try:
            return await handler(scope, receive)
        except RequestError as error:
            return failure(422, str(error), field=error.where)
        except BodyTooLargeError as error:
            # The rest of it is not read, so the connection is of no more use.
            return failure(413, str(error), headers=((b"connection", b"close"),))
        except SlowBodyError as error:
            return failure(408, str(error), headers=((b"connection", b"close"),))
        except OverloadedError as error:
            return failure(503, str(error), headers=((b"retry-after", b"1"),))
        except TimeoutExceededError as error:
            return failure(504, str(error))
        except DisconnectedError:
            raise
        except PegboardError as error:
            log_failure(path, error)
            return failure(503, str(error), headers=((b"retry-after", b"1"),))
        except Exception as error:  # Nothing a request holds may end the server or reach its log.
            log_failure(path, error)
            return failure(500, "the server failed; its log says where")

    def _problem(self, headers: Headers, path: str) -> str | None:
        if not asks_for_this_machine(headers):
            return (
                "the server answers this machine alone and is asked for under another name; "
                f"ask 127.0.0.1, or set {TOKEN}"
            )
        # A link elsewhere may open a page; its script still cannot read it.
        if path not in self._open and comes_from_another_site(headers):
            return f"another site sends this request; ask from here, or set {TOKEN}"
        return None

    async def _administer(self, scope: Scope, receive: Receive) -> Reply:
        if self._admin is None:
            self._admin = self._make_admin()
        # Read here, because FastAPI waits for any body as long as it takes, before it asks who is
        # there.
        bodies = iter([await self._body(receive)])
        sent: list[MutableMapping[str, Any]] = []

        async def take() -> MutableMapping[str, Any]:
            body = next(bodies, None)
            return await receive() if body is None else {"type": "http.request", "body": body}

        async def keep(message: MutableMapping[str, Any]) -> None:
            sent.append(message)

        await self._admin(scope, take, keep)
        headers = [header for header in sent[0]["headers"] if header[0] != b"content-length"]
        return sent[0]["status"], b"".join(part["body"] for part in sent[1:]), headers

    # ----------------------------------------------------------------- bodies

    async def _body(self, receive: Receive) -> bytes:
        """Read a request's body.

        Raises:
            BodyTooLargeError: It is larger than serve.request_mb.
            SlowBodyError: It did not come within serve.timeout_seconds.
        """
        message = await receive()
        if message["type"] == "http.disconnect":
            raise DisconnectedError
        body: bytes = message.get("body", b"")
        if message.get("more_body", False):
            try:
                async with asyncio.timeout(self._seconds):
                    return await self._rest(body, receive)
            except TimeoutError:
                raise SlowBodyError(
                    f"the request was not whole after {self._seconds:g} seconds",
                    where="request",
                    remedy="send it faster, or raise serve.timeout_seconds",
                ) from None
        self._check_size(len(body))
        return body

    async def _rest(self, first: bytes, receive: Receive) -> bytes:
        parts, size, more = [first], len(first), True
        while more:
            self._check_size(size)
            message = await receive()
            if message["type"] == "http.disconnect":
                raise DisconnectedError
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            more = message.get("more_body", False)
        self._check_size(size)
        return b"".join(parts)

    def _check_size(self, size: int) -> None:
        if size > self._limit:
            raise BodyTooLargeError(
                f"the request is larger than {self._limit / 1e6:g} MB",
                where="request",
                remedy="send less at once, or raise serve.request_mb",
            )

    # ----------------------------------------------------------------- the solution's own words

    async def _predict(self, scope: Scope, receive: Receive) -> Reply:
        payload = openinference.parse(await self._body(receive))
        version, answers = await self.service.answer(payload)
        return success({"answers": answers, "model": version})

    async def _routed(self, route: Route, scope: Scope, receive: Receive) -> Reply:
        body = await self._body(receive)
        given: Any = openinference.parse(body) if body else None
        if route.parameter:
            given = {route.parameter: scope["path"].rpartition("/")[2]}
        answer = await route.handler(given)
        return as_it_is(answer) if isinstance(answer, Content) else success(answer)

    def _named_path(self, path: str) -> tuple[str, Mapping[str, Handler] | None]:
        """Return a path that ends in a name, as its route has it, and what answers there."""
        before, slash, value = path.rpartition("/")
        pattern = self._named.get(before + slash)
        return (pattern, self._paths[pattern]) if value and pattern else (path, None)

    # ----------------------------------------------------------------- health and metrics

    async def _health(self, scope: Scope, receive: Receive) -> Reply:
        ready = self.service.is_ready
        return success({"status": "ok" if ready else "starting or draining"}, 200 if ready else 503)

    async def _metrics(self, scope: Scope, receive: Receive) -> Reply:
        return 200, self.service.metrics.text(), [(b"content-type", CONTENT_TYPE)]

    # ----------------------------------------------------------------- Open Inference Protocol

    def _model_path(self, scope: Scope, path: str) -> tuple[str, Mapping[str, Handler]]:
        """Return a model's path with its version left out, and what answers there."""
        parts = path.split("/")[3:]
        name, rest = parts[0], parts[1:]
        version = rest[1] if rest[:1] == ["versions"] and len(rest) > 1 else None
        methods = self._model_paths.get(tuple(rest[2:] if version else rest))
        bundle = self.service.bundle
        known = name == bundle.solution and version in (None, bundle.version)
        if not known or methods is None:
            return "/v2/models", {scope["method"]: self._no_such_model}
        return "/".join(("/v2/models", name, *rest[2:])), methods

    async def _no_such_model(self, scope: Scope, receive: Receive) -> Reply:
        bundle = self.service.bundle
        return failure(404, f"the model here is '{bundle.solution}', version {bundle.version}")

    async def _live(self, scope: Scope, receive: Receive) -> Reply:
        return success({"live": True})

    async def _ready(self, scope: Scope, receive: Receive) -> Reply:
        ready = self.service.is_ready
        return success({"ready": ready}, 200 if ready else 503)

    async def _server_metadata(self, scope: Scope, receive: Receive) -> Reply:
        version = self.service.bundle.versions["pegboard"]
        extensions = ["binary_tensor_data"]
        return success({"name": "pegboard", "version": version, "extensions": extensions})

    async def _model_metadata(self, scope: Scope, receive: Receive) -> Reply:
        bundle = self.service.bundle
        return success(openinference.metadata(bundle.solution, bundle.version, bundle.signature))

    async def _infer(self, scope: Scope, receive: Receive) -> Reply:
        body = await self._body(receive)
        deployment = self.service.champion.deployment
        signature = deployment.bundle.signature
        question = openinference.read(body, _json_length(scope, len(body)), signature)
        outputs = await self.service.infer(validate(question.inputs, signature))
        answer, length = openinference.write(
            question, outputs, deployment.bundle.solution, deployment.version
        )
        if length is None:
            return 200, answer, [_JSON]
        head: Headers = [(b"content-type", openinference.BINARY), (_LENGTH, b"%d" % length)]
        return 200, answer, head


def _json_length(scope: Scope, size: int) -> int | None:
    for name, value in scope["headers"]:
        if name == _LENGTH:
            if not value.isdigit() or int(value) > size:
                raise RequestError(
                    "it is not the length of the JSON part",
                    where="header Inference-Header-Content-Length",
                    remedy="send the number of bytes before the first binary tensor",
                )
            return int(value)
    return None


# --------------------------------------------------------------------------- replies


def success(value: Any, status: int = 200) -> Reply:
    """Reply with JSON."""
    return status, orjson.dumps(value, option=_OPTIONS), [_JSON]


def as_it_is(content: Content) -> Reply:
    """Reply with what is no JSON."""
    headers = {"content-type": content.media_type, "x-content-type-options": "nosniff"}
    return (
        200,
        content.body,
        [(k.lower().encode(), v.encode()) for k, v in (headers | dict(content.headers)).items()],
    )


def failure(
    status: int, sentence: str, *, field: str = "", headers: Sequence[tuple[bytes, bytes]] = ()
) -> Reply:
    """Reply with what went wrong, as the Open Inference Protocol has it, and the field it is in."""
    body = {"error": sentence, "field": field} if field else {"error": sentence}
    return status, orjson.dumps(body), [_JSON, *headers]


def unauthorized() -> Reply:
    """Reply to a request without the token."""
    return failure(
        401, "the bearer token is missing or wrong", headers=((b"www-authenticate", b"Bearer"),)
    )


def has_token(scope: Scope, token: bytes) -> bool:
    """Whether a request carries the token; takes as long for a wrong one as for a right one."""
    given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    return hmac.compare_digest(given, b"Bearer " + token)


async def _send(send: Send, reply: Reply) -> None:
    status, body, headers = reply
    headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
