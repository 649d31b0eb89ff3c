"""The paths beside the answers: the bundle, the challenger, drift, the OpenAPI document."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from fastapi import Body, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from pegboard.errors import BundleError, PegboardError
from pegboard.serving.deployment import Deployment
from pegboard.serving.http import ADMIN_TOKEN, TOKEN, has_token
from pegboard.serving.openapi import document
from pegboard.serving.service import Service, log_failure

BundlePath = Annotated[
    str, Body(embed=True, max_length=4096, description="Relative to the server's --bundles.")
]


class _NotAllowedError(Exception):
    """A request without the token that its path needs."""


def build_admin(service: Service) -> FastAPI:
    """Build the application."""
    # Its own document would know nothing of the other paths, which ask for no content type either.
    app = FastAPI(openapi_url=None, strict_content_type=False)
    app.get("/openapi.json", include_in_schema=False)(lambda: document(service))
    _add_errors(app)
    _add_reading(app, service)
    _add_writing(app, service)
    return app


def _add_reading(app: FastAPI, service: Service) -> None:
    needs_token = [Depends(_reader())]

    @app.get("/admin/bundle", dependencies=needs_token)
    def bundle() -> dict[str, Any]:
        """Say which bundle answers, what it reached, and what it takes."""
        return _facts(service.champion.deployment)

    @app.get("/admin/challenger", dependencies=needs_token)
    def challenger() -> dict[str, Any]:
        """Say what the challenger made of the champion's traffic."""
        if service.challenger is None:
            raise HTTPException(404, "there is no challenger; PUT one here")
        return _facts(service.challenger.deployment) | service.challenger.figures()

    @app.get("/drift", dependencies=needs_token)
    def drift() -> dict[str, Any]:
        """Compare the latest records with training, the most changed column first."""
        columns = [asdict(column) for column in service.champion.drift.summary()]
        columns.sort(key=lambda column: column["psi"] or 0.0, reverse=True)
        return {"bundle": service.bundle.version, "columns": columns}


def _add_writing(app: FastAPI, service: Service) -> None:
    needs_token = [Depends(_writer())]

    @app.put("/admin/bundle", dependencies=needs_token)
    async def swap(bundle: BundlePath) -> dict[str, Any]:
        """Let another bundle answer: roll out, or roll back."""
        return _facts(await service.swap_champion(Path(bundle)))

    @app.put("/admin/challenger", dependencies=needs_token)
    async def challenge(bundle: BundlePath) -> dict[str, Any]:
        """Try a bundle in the champion's shadow."""
        return _facts(await service.set_challenger(Path(bundle)))

    @app.delete("/admin/challenger", dependencies=needs_token)
    async def end_trial() -> dict[str, Any]:
        """Send the challenger away."""
        service.end_trial()
        return {"challenger": None}


def _facts(deployment: Deployment) -> dict[str, Any]:
    bundle = deployment.bundle
    return {
        "solution": bundle.solution,
        "version": bundle.version,
        "folder": str(bundle.folder),
        "candidate": deployment.candidate.name,
        "thresholds": dict(bundle.thresholds),
        "metrics": {metric.name: metric.value for metric in bundle.metrics},
    }


# --------------------------------------------------------------------------- tokens


def _reader() -> Any:
    tokens = [os.environ.get(TOKEN, "").encode(), os.environ.get(ADMIN_TOKEN, "").encode()]

    async def check(request: Request) -> None:
        if tokens[0] and not any(token and has_token(request.scope, token) for token in tokens):
            raise _NotAllowedError

    return check


def _writer() -> Any:
    token = os.environ.get(ADMIN_TOKEN, "").encode()

    async def check(request: Request) -> None:
        if not token:
            raise HTTPException(403, f"start the server with {ADMIN_TOKEN} set to allow changes")
        if not has_token(request.scope, token):
            raise _NotAllowedError

    return check


# --------------------------------------------------------------------------- errors


def _add_errors(app: FastAPI) -> None:
    """Answer every error in the one shape that the other paths have, without input values."""

    @app.exception_handler(_NotAllowedError)
    async def not_allowed(request: Request, error: _NotAllowedError) -> JSONResponse:
        return _error(401, "the bearer token is missing or wrong", {"www-authenticate": "Bearer"})

    @app.exception_handler(HTTPException)
    async def known(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 400:  # FastAPI's word for a body that it cannot parse.
            not_json = {"error": "the request is not JSON (request)", "field": "request"}
            return JSONResponse(not_json, 422)
        return _error(error.status_code, str(error.detail), error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"][1:])
        return JSONResponse({"error": f"{first['msg']} ({field})", "field": field}, 422)

    @app.exception_handler(BundleError)
    async def refused(request: Request, error: BundleError) -> JSONResponse:
        return _error(409, str(error))

    @app.exception_handler(PegboardError)
    async def mendable(request: Request, error: PegboardError) -> JSONResponse:
        return _error(503, str(error))

    @app.middleware("http")
    async def unknown(request: Request, call_next: Any) -> Any:
        try:
            return await call_next(request)
        except Exception as error:  # Its words may hold an input; the log says where it was.
            log_failure("an administrative path", error)
            return _error(500, "the server failed; its log says where")


def _error(status: int, sentence: str, headers: Any = None) -> JSONResponse:
    return JSONResponse({"error": sentence}, status, headers)
