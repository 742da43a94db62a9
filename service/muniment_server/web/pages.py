"""The pages for browsers: without scripts, and without anything from elsewhere. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

from muniment_server import __version__
from muniment_server.web.examples import CURL
from muniment_server.web.problems import CODES

LINKS = {"logs": "/logs", "docs": "/docs", "openapi": "/openapi.json"}
_STYLE = (
    "body{font:16px/1.5 system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem}h2{margin-top:2rem}"
    "pre{background:#f4f4f4;padding:.5rem 1rem;overflow-x:auto}td{padding:0 1rem .3rem 0;vertical-align:top}"
)
_ABOUT = (
    "A transparency log: every accepted entry is answered with a proof that a stranger can check offline. "
    "What stands here is what this server says. Trust comes from a policy file, and from checkpoints that "
    "others have seen."
)
_KEYS = (
    "Routes that append, and what is not public, need an API key: <code>Authorization: Bearer mk_...</code>. The "
    "operator makes one with <code>muniment-server key create --scope append</code> or <code>--scope read</code>."
)


def _page(title: str, body: str) -> bytes:
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title><style>{_STYLE}</style>"
    return f"{head}<h1>{escape(title)}</h1>{body}</html>".encode()


def home(heads: Iterable[tuple[str, str, str]]) -> bytes:
    """Return the page about a server, from name, origin and published checkpoint of each log."""
    links = " · ".join(f'<a href="{path}">{name}</a>' for name, path in LINKS.items())
    logs = "".join(_log(*head) for head in heads) or "<p>No log here is public.</p>"
    return _page("Muniment", f"<p>{_ABOUT}</p><p>{links}</p>{logs}<p>muniment-server {escape(__version__)}</p>")


def _log(name: str, origin: str, note: str) -> str:
    prefix = "" if name == "default" else f"/logs/{escape(name)}"
    size = note.split("\n")[1]
    links = " · ".join(f'<a href="{prefix}/{path}">{path}</a>' for path in ("log", "checkpoint", "entries"))
    title = f"<h2>{escape(origin)}</h2><p>{escape(size)} entries · {links}</p>"
    return f"{title}<p>Its last checkpoint:</p><pre>{escape(note)}</pre>"


def docs(document: dict[str, Any]) -> bytes:
    """Return the OpenAPI document as a page, with a command for each route and what the error codes mean."""
    operations = [
        _operation(path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    intro = f"<p>{escape(document['info']['description'])} As a document: <a href=openapi.json>openapi.json</a>.</p>"
    keys = f"<h2>Authorisation</h2><p>{_KEYS}</p>"
    rows = "".join(
        f"<tr><td><code>{code}</code><td>{found.status}<td>{escape(found.title)}" for code, found in CODES.items()
    )
    return _page("Muniment API", f"{intro}{keys}{''.join(operations)}<h2>Error codes</h2><table>{rows}</table>")


def _operation(path: str, method: str, operation: dict[str, Any]) -> str:
    title = f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(operation['summary'])}</p>"
    answers = ", ".join(sorted(operation["responses"]))
    return f"{title}{_parameters(operation)}{_example(path, method)}<p>Answers: {escape(answers)}</p>"


def _example(path: str, method: str) -> str:
    known = CURL.get(f"{method.upper()} {path}") or CURL.get(
        f"{method.upper()} {path.replace('{path}', '{path:path}')}"
    )
    return f"<pre>{escape(known)}</pre>" if known else ""


def _parameters(operation: dict[str, Any]) -> str:
    items = [
        f"<li><code>{escape(p['name'])}</code> ({p['in']}{', required' if p.get('required') else ''}): "
        f"{escape(p.get('description', ''))}</li>"
        for p in operation.get("parameters", [])
    ]
    return f"<ul>{''.join(items)}</ul>" if items else ""
