"""The OpenAPI document: every path of a server, with an example that it takes."""

from __future__ import annotations

from typing import Any

from pegboard.records import Route
from pegboard.serving.http import OPEN
from pegboard.serving.openinference import DTYPES, metadata
from pegboard.serving.service import Service

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string"}, "field": {"type": "string"}},
}
_OBJECT: dict[str, Any] = {"type": "object"}
_FAILURES = {
    401: "The bearer token is missing or wrong.",
    408: "The request did not arrive in time.",
    413: "The request is too large.",
    422: "The request does not fit; `field` names what is wrong.",
    500: "The server failed.",
    503: "The server has too much to do, or starts or ends.",
    504: "There was no answer in time.",
}
_BUNDLE = {
    "type": "object",
    "required": ["bundle"],
    "properties": {"bundle": {"type": "string", "maxLength": 4096}},
}


def document(service: Service) -> dict[str, Any]:
    """Return the document."""
    bundle = service.bundle
    paths: dict[str, dict[str, Any]] = {}
    for path, method, operation in (*_core(service), *map(_of_route, service.routes)):
        paths.setdefault(path, {})[method] = operation
    is_open = {*OPEN, *(route.path for route in service.routes if route.open)}
    for path, operations in paths.items():
        for operation in operations.values():
            operation["security"] = [] if path in is_open else [{"bearer": []}]
    return {
        "openapi": "3.1.0",
        "info": {"title": f"Pegboard: {bundle.solution}", "version": bundle.version},
        "paths": paths,
        "components": {"securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}}},
    }


def _core(service: Service) -> list[tuple[str, str, dict[str, Any]]]:
    bundle = service.bundle
    model = f"/v2/models/{bundle.solution}"
    predict = _asked("Answer in the solution's own words.", _OBJECT, _answers())
    if bundle.signature.request is not None:
        predict["requestBody"]["content"]["application/json"]["example"] = bundle.signature.request
    return [
        ("/predict", "post", predict),
        ("/v2", "get", _read("Describe the server.")),
        ("/v2/health/live", "get", _read("Whether the server lives.")),
        ("/v2/health/ready", "get", _read("Whether the server answers.")),
        (model, "get", _read("Describe the model.")),
        (f"{model}/ready", "get", _read("Whether the model answers.")),
        (f"{model}/infer", "post", _infer(service)),
        ("/healthz", "get", _read("Whether the server answers.")),
        ("/metrics", "get", _text("Figures in Prometheus's format.")),
        ("/drift", "get", _read("Compare the latest records with training.")),
        ("/admin/bundle", "get", _read("Say which bundle answers.")),
        ("/admin/bundle", "put", _changed("Let another bundle answer.", _BUNDLE)),
        ("/admin/challenger", "get", _found("Say what the challenger made of the traffic.")),
        ("/admin/challenger", "put", _changed("Try a bundle in the shadow.", _BUNDLE)),
        ("/admin/challenger", "delete", _changed("Send the challenger away.", None)),
    ]


def _of_route(route: Route) -> tuple[str, str, dict[str, Any]]:
    if route.request_schema is None:
        operation = _read(route.summary, route.response_schema)
        operation["responses"] |= _failures(422, 504)
    else:
        operation = _asked(route.summary, route.request_schema, route.response_schema)
        if route.example is not None:
            content = operation["requestBody"]["content"]["application/json"]
            content["example"] = route.example(0)
    if route.parameter:
        operation["parameters"] = [
            {"name": route.parameter, "in": "path", "required": True, "schema": {"type": "string"}}
        ]
    if route.media_type != "application/json":
        operation["responses"]["200"]["content"] = {route.media_type: {}}
    return route.path, route.method.lower(), operation


def _asked(summary: str, request: Any, response: Any) -> dict[str, Any]:
    return {
        "summary": summary,
        "requestBody": _body(request),
        "responses": {"200": _json("The answer.", response or {})} | _failures(*_FAILURES),
    }


def _read(summary: str, response: Any = None) -> dict[str, Any]:
    answers = {"200": _json("The answer.", response or _OBJECT)}
    return {"summary": summary, "responses": answers | _failures(401, 500, 503)}


def _text(summary: str) -> dict[str, Any]:
    content = {"text/plain": {"schema": {"type": "string"}}}
    answers = {"200": {"description": "The figures.", "content": content}}
    return {"summary": summary, "responses": answers | _failures(401, 500)}


def _found(summary: str) -> dict[str, Any]:
    operation = _read(summary)
    operation["responses"]["404"] = _json("There is none.", _ERROR)
    return operation


def _changed(summary: str, request: Any) -> dict[str, Any]:
    operation = _read(summary) | ({} if request is None else {"requestBody": _body(request)})
    operation["responses"] |= _failures(408, 413, 422) | {
        "403": _json("The server takes no changes.", _ERROR),
        "409": _json("The bundle may not be served.", _ERROR),
    }
    return operation


def _body(schema: Any) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _json(description: str, schema: Any) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _failures(*statuses: int) -> dict[str, Any]:
    return {str(status): _json(_FAILURES[status], _ERROR) for status in statuses}


def _answers() -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["answers", "model"],
        "properties": {
            "answers": {"type": "array", "items": _OBJECT},
            "model": {"type": "string"},
        },
    }


def _infer(service: Service) -> dict[str, Any]:
    tensor = {
        "type": "object",
        "required": ["name", "datatype", "shape"],
        "properties": {
            "name": {"enum": [spec.name for spec in service.bundle.signature.inputs]},
            "datatype": {"enum": list(DTYPES)},
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
            "data": {"type": "array"},
            "parameters": _OBJECT,
        },
    }
    request = {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "inputs": {"type": "array", "items": tensor},
            "outputs": {"type": "array", "items": _OBJECT},
            "parameters": _OBJECT,
        },
    }
    answer = {
        "type": "object",
        "required": ["model_name", "model_version", "outputs"],
        "properties": {"outputs": {"type": "array", "items": _OBJECT}},
    }
    operation = _asked("Answer tensors with tensors.", request, answer)
    operation["requestBody"]["content"]["application/json"]["example"] = _example(service)
    operation["responses"]["404"] = _json("There is no such model.", _ERROR)
    return operation


def _example(service: Service) -> dict[str, Any]:
    """Return a golden record as a request."""
    bundle = service.bundle
    record = bundle.golden()[0]
    described = metadata(bundle.solution, bundle.version, bundle.signature)["inputs"]
    if sum(array.size for array in record.inputs.values()) > 1000:
        return {"inputs": [{**tensor, "data": []} for tensor in described]}
    tensors = []
    for tensor in described:
        array = record.inputs[tensor["name"]]
        tensors.append({**tensor, "shape": list(array.shape), "data": array.ravel().tolist()})
    return {"inputs": tensors}
