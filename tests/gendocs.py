"""Writes the parts of the docs that come from code: `make docs`. tests/test_docs.py fails when they are not current.

docs/api.md from the table of routes and the catalogue of error codes, docs/cli.md from --help, and the settings table in
docs/reference.md from the settings; the vectors in docs/spec/vectors from what the tests make.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from muniment.cli import cli as client_main
from muniment_server.cli import main as server_main
from muniment_server.settings import PREFIX, Settings
from muniment_server.sinks import Sink
from muniment_server.web.examples import CURL
from muniment_server.web.problems import CODES
from muniment_server.web.routes import ROUTES, Route
from tests import evidence_vectors
from tests.rigs import report

LOG_ROUTES = [route for route in ROUTES if route.on == "log"]

DOCS = Path(__file__).parents[1] / "docs"
START, END = "<!-- settings: made by `make docs` -->", "<!-- end of settings -->"
WIDTH = 100

SYSTEM = {
    "GET /healthz": "The process runs.",
    "GET /readyz": "200 when reads work; the body says for each log that the caller may see whether it takes entries, and why not.",
    "GET /logs": "The logs that the caller may see: without a key the public ones. `GET /log` under a log's prefix says more.",
    "GET /version": "Which release of the server this is.",
    "POST /verify": "What a receipt proves and what it does not. A convenience, not evidence: you are asking the operator.",
    "GET /openapi.json": "This page as an OpenAPI 3.1 document.",
    "GET /docs": "This page, served by the server itself.",
    "GET /": "For browsers a page about this server and its logs, for others where to go on, as JSON.",
}

_API_HEAD = """# HTTP API

Made by `make docs` from the table of routes; `GET /openapi.json` on a running server has the shapes of all bodies.

Every log has these routes under a prefix: none for the default log, `/logs/{name}` for the others. JSON routes are mounted under `/v1` as well.
Below, `$URL` is the address of an event log, for example `http://127.0.0.1:8080`, and `$RAW` that of a raw log, for example
`http://127.0.0.1:8080/logs/releases`.

- Numbers are plain decimals, hashes lowercase hex, ranges half-open, indices from zero. A parameter in any other spelling, given twice or
  unknown, is refused: 400 `bad_parameter`, and on C2SP routes 404 in plain text.
- `Authorization: Bearer mk_...` carries an API key. Appends need the scope `append`; payloads of events, unless the log is open, and everything
  of a private log need `read`. Without a valid key every log that is not public is 401, whether there is one of that name or not; to a key of
  another log it is 404.
- While no key was ever made, a server on a loopback address allows everything to the programs of its machine: to requests whose `Host` is
  `localhost` or a loopback address, and that do not come from a web page of another host or port (`Origin`).
- Web pages of any origin may read what is public. The operator names the origins that may use API keys and append
  (`MUNIMENT_SERVER_CORS_ORIGINS`); `OPTIONS` answers what a browser asks before.
- Errors are `application/problem+json` with a stable `code`, a `detail` and a `hint`; 429 and 503 carry `Retry-After`. C2SP routes answer a
  line of text instead.
- `Idempotency-Key` on event logs: the same key with the same body answers with the same entry, a fresh receipt and
  `Idempotency-Replayed: true`; with another body 422; while the first request is running 409. Keys are remembered for
  `idempotency_ttl_seconds` (`GET /log`). A raw log needs none: an equal leaf is the same entry, answered with its first index and 200.
  The key is 1 to 255 printable ASCII characters, and belongs to the API key it came with.
- After `outcome_unknown`, `internal`, or no answer at all, the events of a POST may be in the log: send exactly the same again, with its
  `Idempotency-Key`. After every other refusal none of them is.
- `Accept: text/plain` on `POST /entries` and `GET /entries/{index}/receipt` answers C2SP tlog-proof text.
- A list ends after `limit` elements, one of entries also at about 4 MiB: `next` says where to go on.
- `GET /export` has no such end. One that was cut off ends without the end of its body, and can be gone on with: see [search.md](search.md).
- `HEAD` works wherever `GET` does.
"""


def api_page() -> str:
    """Return docs/api.md."""
    parts = [_API_HEAD, "## Routes of a log\n", *map(_route, LOG_ROUTES), "## Routes of the server\n"]
    parts += [f"### `{name}`\n\n{text}\n\n```console\n$ {CURL[name]}\n```\n" for name, text in SYSTEM.items()]
    parts += ["## Error codes\n", "| code | meaning |\n|---|---|"]
    parts += [f"| `{code}` | {found.title} |" for code, found in sorted(CODES.items())]
    return "\n".join(parts) + "\n"


def _route(route: Route) -> str:
    name = f"{route.method} {route.path}"
    rows = [
        f"- `{p['name']}` ({p['in']}{', required' if p.get('required') else ''}): {p['description']}"
        for p in route.parameters
    ]
    answers = ", ".join(map(str, sorted({*route.answers, *route.errors, 503})))
    kind = " C2SP: one URL, plain text." if route.c2sp else ""
    head = f"### `{name.replace('{path:path}', '<path>')}`\n\n{route.summary}.{kind} Answers: {answers}.\n"
    return "\n".join([head, *rows, *([""] if rows else []), "```console", f"$ {CURL[name]}", "```", ""])


def settings_table() -> str:
    """Return the table of settings for docs/reference.md."""
    rows = ["| setting | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "" if field.is_required() or field.default is None else f"`{field.default}`"
        rows.append(f"| `{PREFIX}{name.upper()}` | {default} | {field.description} |")
    return "\n".join(rows)


def reference_page() -> str:
    """Return docs/reference.md with a current table of settings."""
    text = (DOCS / "reference.md").read_text("utf-8")
    if START not in text:
        text += f"\n## Settings\n\n{START}\n{END}\n"
    before, _, rest = text.partition(START)
    return f"{before}{START}\n{settings_table()}\n{END}{rest.partition(END)[2]}"


SINKS = ("<!-- sinks: made by `make docs` -->", "<!-- end of sinks -->")


def push_page() -> str:
    """Return docs/push.md with a current table of what stands in a sink."""
    text = (DOCS / "push.md").read_text("utf-8")
    rows = ["| key | default | meaning |", "|---|---|---|"]
    for name, field in Sink.model_fields.items():
        default = "" if field.default in (None, (), "") else f"`{str(field.default).lower()}`"
        rows.append(f"| `{name}` | {default} | {field.description} |")
    before, _, rest = text.partition(SINKS[0])
    table = "\n".join(rows)
    return f"{before}{SINKS[0]}\n{table}\n{SINKS[1]}{rest.partition(SINKS[1])[2]}"


_COMPLETION = """**Completion.** The shell completes commands, options and files once this is in `~/.bashrc` (for zsh `zsh_source`, in
`~/.zshrc`; for fish `_MUNIMENT_COMPLETE=fish_source muniment | source`, in `~/.config/fish/config.fish`):

    eval "$(_MUNIMENT_COMPLETE=bash_source muniment)"
    eval "$(_MUNIMENT_SERVER_COMPLETE=bash_source muniment-server)"
"""


def cli_page() -> str:
    """Return docs/cli.md."""
    parts = ["# Commands\n", "Made by `make docs` from `--help`.\n", _COMPLETION]
    for name, group in (("muniment", client_main), ("muniment-server", server_main)):
        parts += [f"## {name}\n", *_commands(group, name)]
    return "\n".join(parts)


def _commands(command: click.Command, name: str, parent: click.Context | None = None) -> list[str]:
    width = {"max_content_width": WIDTH, "terminal_width": WIDTH}
    context = click.Context(
        command, info_name=name.rsplit(" ", 1)[-1], parent=parent, **(command.context_settings | width)
    )
    text = re.sub(r"[ \t]+$", "", command.get_help(context), flags=re.MULTILINE)
    parts = [f"### `{name}`\n\n```\n{text}\n```\n"]
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            found: Any = command.get_command(context, child)
            parts += _commands(found, f"{name} {child}", context)
    return parts


FIGURES = ("<!-- figures -->", "<!-- /figures -->")


def reliability_page() -> str:
    """Return docs/reliability.md with the figures of the report file."""
    text = (DOCS / "reliability.md").read_text("utf-8")
    before, _, rest = text.partition(FIGURES[0])
    return f"{before}{FIGURES[0]}\n{_figures()}\n{FIGURES[1]}{rest.partition(FIGURES[1])[2]}"


def _figures() -> str:
    shards = report.read(DOCS / "reliability.json")
    goals = {shard["rig"]: (shard["goal"], shard["unit"]) for shard in shards}
    good = report.totals(shard for shard in shards if shard["ok"] and not shard["dirty"])
    rows = ["| what | rig | seeds | held | counted besides | seconds | commit |", "|---|---|---|---|---|---|---|"]
    for rig in sorted(good, key=lambda name: (goals[name][0], name)):
        total = good[rig]
        besides = ", ".join(f"{name} {count:,}" for name, count in sorted(total["counts"].items()))
        commits = ", ".join(f"`{commit[:10]}`" for commit in total["commits"])
        held = f"{total['points']:,} {goals[rig][1]}"
        rows.append(
            f"| {goals[rig][0]} | `{rig}` | {total['seeds']:,} | {held} | {besides} | {total['seconds']:,.0f} | {commits} |"
        )
    failed = sorted({f"`{shard['rig']}` {shard['seeds'][0]}..{shard['seeds'][1]}" for shard in _open_failures(shards)})
    return "\n".join([*rows, "", f"Shards that failed and did not hold later: {', '.join(failed) or 'none'}."])


def _open_failures(shards: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield failed shards whose seeds did not all hold in a later one."""
    for at, shard in enumerate(shards):
        later = [one for one in shards[at + 1 :] if one["ok"] and one["rig"] == shard["rig"]]
        seeds = {seed for one in later for seed in range(*one["seeds"])}
        if not shard["ok"] and not set(range(*shard["seeds"])) <= seeds:
            yield shard


PAGES = {
    "api.md": api_page,
    "cli.md": cli_page,
    "push.md": push_page,
    "reference.md": reference_page,
    "reliability.md": reliability_page,
    "spec/vectors/evidence.json": evidence_vectors.page,
}


def main() -> None:
    """Write every page."""
    for name, make in PAGES.items():
        (DOCS / name).write_text(make(), "utf-8")
        print(f"docs/{name}")


if __name__ == "__main__":
    main()
