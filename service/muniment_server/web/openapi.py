"""The OpenAPI document, made from the table of routes by FastAPI, which serves nothing here."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI

from muniment_server import __version__
from muniment_server.access.callers import OPEN
from muniment_server.instance.registry import LOG_NAME
from muniment_server.web import models
from muniment_server.web.routes import ROUTES, Route

_DESCRIPTION = (
    "A transparency log: every accepted entry is answered with a proof that a stranger can check offline. "
    "The default log is at the root, the others under /logs/{log}; JSON routes are mounted under /v1 as well. "
    "Errors are RFC 9457 problem documents with a stable code and a hint; C2SP routes answer plain text."
)
_ID = str.maketrans({"/": "_", "{": None, "}": None, ":": "_", ".": "_"})
_KEY = "apiKey"
_SCHEMES = {
    _KEY: {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key, mk_..., of the scope `append` or `read`. What is public needs none, nor does a "
        "server on a loopback address while no key was ever made.",
    }
}
_BOUNDS = ("maximum", "minimum", "exclusiveMaximum", "exclusiveMinimum")
_LARGEST = 2**63 - 1
_LOG = {
    "name": "log",
    "in": "path",
    "required": True,
    "description": "Name of the log.",
    "schema": {"type": "string", "pattern": f"^{LOG_NAME.pattern}$"},
}
_KEYED = ("/logs", "/readyz")
"""Routes for all callers whose answer depends on the key."""
_PROBLEM = {"schema": models.Problem.model_json_schema()}


@functools.cache
def document() -> dict[str, Any]:
    """Return the document. To make it takes as long as a hundred answers."""
    app = FastAPI(title="Muniment", version=__version__, description=_DESCRIPTION)
    for prefix in ("", "/logs/{log}"):
        for route in ROUTES:
            if route.on == "log" and not route.hidden:
                _describe(app, route, prefix)
    for route in ROUTES:
        if route.on == "instance" and not route.hidden:
            _describe_instance(app, route)
    made = app.openapi()
    made["components"]["securitySchemes"] = _SCHEMES
    _mend_bounds(made)
    return made


def _mend_bounds(node: Any) -> None:
    """Make integers of the bounds of integers: FastAPI makes floats of them, and of the largest another number."""
    if isinstance(node, list):
        for one in node:
            _mend_bounds(one)
    elif isinstance(node, dict):
        for name, value in node.items():
            if name in _BOUNDS and isinstance(value, float):
                node[name] = min(int(value), _LARGEST)
            _mend_bounds(value)


def _describe(app: FastAPI, route: Route, prefix: str) -> None:
    app.add_api_route(
        prefix + route.path,
        _nothing(),
        methods=[route.method],
        summary=route.summary,
        tags=[route.tag],
        operation_id=f"{route.method}{prefix}{route.path}".translate(_ID),
        response_model=None,
        status_code=min(route.answers, key=lambda status: -status),
        responses=_responses(route),
        openapi_extra=_extra(route, prefix),
    )


def _describe_instance(app: FastAPI, route: Route) -> None:
    name = route.path.removeprefix("/")
    responses: dict[int | str, dict[str, Any]] = {status: {"model": shape} for status, shape in route.answers.items()}
    responses |= {status: {"content": {"application/problem+json": _PROBLEM}} for status in route.errors}
    extra: dict[str, Any] = {"parameters": [*route.parameters]} if route.parameters else {}
    if route.body:
        extra["requestBody"] = route.body
    app.add_api_route(
        route.path,
        _nothing(),
        methods=[route.method],
        summary=route.summary,
        tags=[route.tag],
        operation_id=f"{name}_{name}_{route.method.lower()}",
        responses=responses,
        openapi_extra=_security(route) | extra,
    )


def _nothing() -> Callable[[], None]:
    return lambda: None


def _responses(route: Route) -> dict[int | str, dict[str, Any]]:
    found: dict[int | str, dict[str, Any]] = {}
    for status, shape in route.answers.items():
        if isinstance(shape, str):
            found[status] = {"description": "Success", "content": {shape: {"schema": {"type": "string"}}}}
        else:
            found[status] = {"description": "Success", "model": shape}
        if route.path == "/export":
            found[status]["content"]["text/csv"] = {"schema": {"type": "string"}}
        if shape is models.ReceiptModel:
            found[status]["content"] = {"text/plain": {"schema": {"type": "string"}}}
            found[status]["description"] = "Success; C2SP tlog-proof text with Accept: text/plain"
    if route.tagged:
        found[304] = {"description": "Still the one whose ETag stands in If-None-Match"}
    for status in (*route.errors, 404, 503):
        if route.c2sp:
            found[status] = {"description": "A line of text", "content": {"text/plain": {"schema": {"type": "string"}}}}
        else:
            found[status] = {"description": "A problem document", "content": {"application/problem+json": _PROBLEM}}
    return found


def _security(route: Route) -> dict[str, Any]:
    """Say that a key may be sent: whether one is needed depends on the log, and on the server."""
    return {"security": [{}] if route.needs == OPEN and route.path not in _KEYED else [{_KEY: []}, {}]}


def _extra(route: Route, prefix: str) -> dict[str, Any]:
    extra: dict[str, Any] = {"parameters": [*([_LOG] if "{log}" in prefix else []), *route.parameters]}
    extra |= _security(route)
    if route.body:
        extra["requestBody"] = route.body
    return extra
