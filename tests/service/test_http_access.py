"""Who may do what: every operation of the OpenAPI document, with every kind of key, on a public, a private, an open and a raw log."""

from __future__ import annotations

import json
import random
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import pytest

from muniment_server.access.callers import _SCOPE, OPEN, PERMISSIONS
from muniment_server.access.keys import SCOPES
from muniment_server.cli.key import key_create
from muniment_server.web.routes import ROUTES
from tests.live import LiveServer, free_of_tracebacks, free_port, run, until
from tests.service.http_check import (
    JSON,
    NDJSON,
    Verifier,
    bundle,
    client,
    document,
    expect_problem,
    head_size,
    ndjson,
)
from tests.service.http_world import DEFAULT, Instance, KeySpec, LogSpec, anchored, instance_on, make_instance

APPEND, READ, BOTH = frozenset({"append"}), frozenset({"read"}), frozenset({"append", "read"})
KEYS = [
    KeySpec("append", APPEND),
    KeySpec("read", READ),
    KeySpec("both", BOTH),
    KeySpec("revoked", BOTH, revoked=True),
    *(KeySpec(f"both {name}", BOTH, log=name) for name in ("default", "private", "open", "raw")),
]
LOGS = [DEFAULT, LogSpec("private", public=False), LogSpec("open", open=True), LogSpec("raw", "raw")]

# What an operation needs, by its path below a log's prefix. A new route fails test_every_operation_has_its_row until it stands here.
NEEDS = {
    "POST /entries": "append",
    "POST /entries/batch": "append",
    "POST /add": "append",
    "GET /entries": "read",
    "GET /entries/{index}": "read",
    "GET /entries/{index}/receipt": "read",
    "GET /search": "payloads",
    "GET /export": "rows",
    "GET /proof/inclusion": "read",
    "GET /proof/consistency": "read",
    "GET /checkpoints": "read",
    "GET /checkpoints/stream": "read",
    "GET /log": "read",
    "GET /log/coverage": "read",
    "GET /anchors": "read",
    "GET /anchors/{size}": "read",
    "GET /anchors/{size}/checkpoint": "read",
    "GET /anchors/{size}/checkpoint.ots": "read",
    "GET /checkpoint": "read",
    "GET /tile/{path}": "read",
}
FOR_ALL = {"GET /healthz", "GET /readyz", "POST /verify", "GET /version", "GET /logs"}
OF_INSTANCE = {operation.split()[1] for operation in FOR_ALL}
CALLERS = ["none", "append", "read", "both", "own log", "other log", "revoked", "malformed"]
MALFORMED = [
    "Bearer",
    "Bearer x",
    "Bearer mk_" + "A" * 42,
    "Bearer mk_" + "A" * 43,
    "Bearer mk_" + "A" * 44,
    "Basic bWtfOg==",
    "mk_" + "A" * 43,
    "",
    "Bearer mk_" + "é" * 43,
    "Bearer " + "m" * 20_000,
]


@dataclass
class KeyedServer:
    """A server whose instance has API keys."""

    instance: Instance
    server: LiveServer
    http: httpx.Client

    def call(self, operation: str, log: str, caller: str, v1: bool = False) -> httpx.Response:
        """Make the request of an operation as this caller."""
        method, path = operation.split()
        prefix = ("/v1" if v1 else "") + ("" if path in OF_INSTANCE else f"/logs/{log}")
        path = path.replace("{index}", "1").replace("{size}", "1").replace("{path}", "entries/000.p/1")
        query = {"GET /proof/inclusion": "?index=1", "GET /proof/consistency": "?first=1"}.get(operation, "")
        content, headers = body_of(operation, log) if method == "POST" else (None, {})
        return self.http.request(
            method, prefix + path + query, content=content, headers=headers | self.header(caller, log)
        )

    def header(self, caller: str, log: str) -> dict[str, str]:
        if caller == "none":
            return {}
        if caller == "malformed":
            return {"Authorization": "Bearer mk_" + "x" * 43}
        label = {"own log": f"both {log}", "other log": "both raw" if log != "raw" else "both open"}.get(caller, caller)
        return {"Authorization": f"Bearer {self.instance.keys[label]}"}


def body_of(operation: str, log: str) -> tuple[bytes, dict[str, str]]:
    number = random.getrandbits(48)
    raw, event = log == "raw", {"n": number}
    match operation.split()[1]:
        case "/entries":
            return (b"%d" % number, {}) if raw else (json.dumps(event).encode(), JSON)
        case "/entries/batch":
            return (bundle(b"%d" % number), {}) if raw else (ndjson(event), NDJSON)
        case _:
            return b"%d" % number, {}


@pytest.fixture(scope="module")
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeyedServer]:
    folder = tmp_path_factory.mktemp("access")
    with (
        instance_on("sqlite", request, folder, LOGS, KEYS) as instance,
        anchored(instance),
        instance.server(env={"MUNIMENT_SERVER_PUBLISH_INTERVAL": "0.1"}) as server,
        client(server.url) as http,
    ):
        found = KeyedServer(instance, server, http)
        for log in LOGS:
            assert found.call("POST /entries", log.name, "both").status_code == 201
        for log in LOGS:
            until(lambda log=log: int(found.call("GET /checkpoint", log.name, "both").text.split("\n")[1]) == 2)
            until(lambda log=log: found.call("GET /search", log.name, "both").status_code != 503)
        yield found
        assert free_of_tracebacks(server.stderr())


def operations() -> list[str]:
    """Every operation of the document, without the prefix of a log."""
    found = {
        f"{method.upper()} {path.removeprefix('/logs/{log}')}"
        for path, methods in document()["paths"].items()
        for method in methods
    }
    return sorted(found)


def expected(operation: str, log: LogSpec, caller: str) -> int:
    """The status by the rules of docs/api.md; 200 stands for any success."""
    if operation == "GET /logs":
        return 401 if caller in ("revoked", "malformed") else 200
    if operation in FOR_ALL:
        return 422 if operation == "POST /verify" else 200
    if caller in ("revoked", "malformed"):
        return 401
    if caller == "other log" and not log.public:
        return 404
    if operation == "POST /add" and log.kind != "raw" and caller not in ("none", "read", "other log"):
        return 422
    need = NEEDS[operation]
    if need == "payloads":
        if not log.open and caller not in ("read", "both", "own log"):
            return 401 if caller == "none" else 403
        return 422 if log.kind == "raw" else 200
    if need == "rows":  # they have payloads: to see the log is not enough
        if expected("GET /log", log, caller) == 200 and log.kind == "event" and not log.open:
            return 200 if caller in ("read", "both", "own log") else 403
        need = "read"
    if need == "read" and log.public:
        return 200
    if caller == "none":
        return 401
    return 200 if caller in (need, "both", "own log") else 403


def test_every_operation_has_its_row() -> None:
    assert set(operations()) == set(NEEDS) | FOR_ALL


def test_every_permission_has_a_scope_that_grants_it() -> None:
    """Without one, a caller who lacks the permission could not be told what to ask for."""
    granted = frozenset[str]().union(*PERMISSIONS.values())
    assert granted == set(_SCOPE)
    assert all(permission in PERMISSIONS[scope] for permission, scope in _SCOPE.items())
    assert {route.needs for route in ROUTES} <= granted | {OPEN}


def test_every_scope_can_be_given_to_a_key() -> None:
    given = next(option for option in key_create.params if option.name == "scopes").type
    assert set(given.choices) == SCOPES == set(PERMISSIONS)  # type: ignore[attr-defined]


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("log", LOGS, ids=lambda log: log.name)
def test_access_matrix(world: KeyedServer, log: LogSpec, caller: str) -> None:
    codes = {401: "unauthorized", 403: "forbidden", 404: "unknown_log", 422: "invalid_receipt"}
    size = _size(world, log)
    written = 0
    for operation in operations():
        wanted = expected(operation, log, caller)
        c2sp = operation in ("GET /checkpoint", "GET /tile/{path}", "POST /add")
        versions = [False] if c2sp or operation in ("GET /healthz", "GET /readyz", "GET /version") else [False, True]
        for v1 in versions:
            answer = world.call(operation, log.name, caller, v1)
            where = f"{operation} on {log.name} by {caller}: {answer.status_code} {answer.text[:200]}"
            assert (answer.status_code if answer.status_code >= 400 else 200) == wanted, where
            if wanted == 401:
                assert answer.headers["www-authenticate"] == 'Bearer realm="muniment"', where
            if wanted >= 400:
                assert answer.headers["cache-control"] == "no-store", where
                if c2sp:
                    assert answer.headers["content-type"] == "text/plain; charset=utf-8", where
                else:
                    raw = operation == "GET /search" and wanted == 422
                    closed = operation == "GET /export" and expected("GET /log", log, caller) == 200
                    expect_problem(
                        answer, wanted, "wrong_kind" if raw else "payloads_closed" if closed else codes[wanted]
                    )
            elif operation.startswith("POST"):
                written += 1
    assert _size(world, log) == size + written, "a refusal writes nothing"


def _size(world: KeyedServer, log: LogSpec) -> int:
    with client(world.server.url, world.instance.keys["both"]) as http:
        return head_size(http, f"/logs/{log.name}")


@pytest.mark.parametrize("value", MALFORMED)
def test_malformed_keys_are_401_even_where_none_is_needed(world: KeyedServer, value: str) -> None:
    with client(world.server.url) as http:
        for path in ("/log", "/checkpoint", "/entries/0"):
            assert http.get(path).status_code == 200
            answer = http.get(path, headers=[("Authorization", value.encode())])  # type: ignore[list-item]
            assert answer.status_code == 401, answer.text
            assert value.strip() in ("", "Bearer") or value not in answer.text, "a key is not echoed"


def test_the_scheme_is_case_insensitive_and_the_key_is_not(world: KeyedServer) -> None:
    token = world.instance.keys["both"]
    with client(world.server.url) as http:
        assert http.get("/logs/private/log", headers={"Authorization": f"bEARER {token}"}).status_code == 200
        for other in (token.swapcase(), " " + token, token[:-1], f"{token},{token}", f"{token}x"):
            answer = http.get("/logs/private/log", headers={"Authorization": f"Bearer {other}"})
            expect_problem(answer, 401, "unauthorized")


def test_two_keys_in_one_request_are_refused(world: KeyedServer) -> None:
    good = f"Bearer {world.instance.keys['both']}"
    with client(world.server.url) as http:
        for pair in ([good, good], [good, "Bearer x"], ["Bearer x", good]):
            answer = http.get("/logs/private/log", headers=[("Authorization", value) for value in pair])
            expect_problem(answer, 401, "unauthorized")


# --- which logs there are -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("caller", ["none", "append", "read", "both open", "both private"])
def test_a_log_that_a_caller_may_not_see_is_not_there(world: KeyedServer, caller: str) -> None:
    """What tells them apart would tell that there is one: the same answer, by each operation, as for no log at all."""
    key = {} if caller == "none" else {"Authorization": f"Bearer {world.instance.keys[caller]}"}
    told = {}
    for log in ("private", "nowhere"):
        world.http.headers.update(key)
        try:
            answers = [world.call(operation, log, "none", v1) for operation in sorted(NEEDS) for v1 in (False, True)]
        finally:
            world.http.headers.pop("Authorization", None)
        told[log] = [(answer.status_code, answer.text.replace(log, "LOG")) for answer in answers]
    if caller in ("none", "both open"):
        assert told["private"] == told["nowhere"]
    if caller != "none":
        assert {status for status, _ in told["nowhere"]} == {404}
    if caller == "none":
        assert {status for status, _ in told["nowhere"]} <= {401, 404}, "404 where there is no such route"


@pytest.mark.parametrize(
    ("caller", "seen"),
    [
        ("none", {"default", "open", "raw"}),
        ("both open", {"default", "open", "raw"}),
        ("both private", {"default", "open", "raw", "private"}),
        ("append", {"default", "open", "raw"}),
        ("read", {"default", "open", "raw", "private"}),
    ],
)
def test_the_logs_that_a_caller_may_see(world: KeyedServer, caller: str, seen: set[str]) -> None:
    key = {} if caller == "none" else {"Authorization": f"Bearer {world.instance.keys[caller]}"}
    answer = world.http.get("/logs", headers=key)
    assert {log["name"] for log in answer.json()["logs"]} == seen
    assert [log["name"] for log in answer.json()["logs"]] == sorted(seen)
    assert ("access-control-allow-origin" in answer.headers) == ("private" not in seen)
    again = world.http.get("/v1/logs", headers=key)
    assert _without_sizes(again) == _without_sizes(answer)
    assert set(world.http.get("/readyz", headers=key).json()["writes"]) == seen


def _without_sizes(answer: httpx.Response) -> list[dict[str, object]]:
    """The logs of an answer. What other tests appended may be published between two requests."""
    return [{name: value for name, value in log.items() if name != "tree_size"} for log in answer.json()["logs"]]


def test_a_check_of_readiness_is_answered_with_a_key_that_is_not_valid_too(world: KeyedServer) -> None:
    answer = world.http.get("/readyz", headers={"Authorization": "Bearer nonsense"})
    assert (answer.status_code, set(answer.json()["writes"])) == (200, {"default", "open", "raw"})


# --- payloads -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("log", "caller", "sees"),
    [
        ("default", "none", False),
        ("default", "append", False),
        ("default", "read", True),
        ("default", "own log", True),
        ("open", "none", True),
        ("open", "append", True),
        ("private", "read", True),
    ],
)
def test_payloads_need_read_unless_the_log_is_open(world: KeyedServer, log: str, caller: str, sees: bool) -> None:
    verifier = Verifier(world.instance.policy)
    entry = world.call("GET /entries/{index}", log, caller).json()
    assert ("event" in entry) == sees
    assert entry["logged_at"]
    page = world.call("GET /entries", log, caller).json()
    assert ("event" in page["entries"][1]) == sees
    found = verifier.receipt(world.call("GET /entries/{index}/receipt", log, caller))
    assert found.complete == sees, "without the payload a receipt still proves the leaf"
    assert bool(found.opened) == sees


@pytest.mark.parametrize(("log", "caller"), [("default", "none"), ("default", "append"), ("private", "append")])
def test_who_may_not_see_payloads_does_not_learn_what_they_have(world: KeyedServer, log: str, caller: str) -> None:
    """The receipt stays as it is, whether the event has such a member or not."""
    ask = partial(world.http.get, headers=world.header(caller, log))
    plain = ask(f"/logs/{log}/entries/1/receipt")
    for members in ("n", "no-such-member", ""):
        answer = ask(f"/logs/{log}/entries/1/receipt?members={members}")
        assert (answer.status_code, answer.content) == (plain.status_code, plain.content)
        assert "commitment" not in answer.json()


def test_whoever_appends_gets_the_whole_receipt(world: KeyedServer) -> None:
    with client(world.server.url, world.instance.keys["append"]) as http:
        answer = http.post("/entries", content=b'{"secret":"42"}', headers=JSON | {"Idempotency-Key": "whole"})
        again = http.post("/entries", content=b'{"secret":"42"}', headers=JSON | {"Idempotency-Key": "whole"})
        for one in (answer, again):
            assert Verifier(world.instance.policy).receipt(one).opened == {"secret": "42"}


def test_an_idempotency_key_belongs_to_its_caller_and_log(world: KeyedServer) -> None:
    headers = JSON | {"Idempotency-Key": "shared"}
    places = [("append", ""), ("both", ""), ("both", "/logs/open"), ("both default", "")]
    found = []
    for number, (label, prefix) in enumerate(places):
        with client(world.server.url, world.instance.keys[label]) as http:
            answer = http.post(f"{prefix}/entries", content=b'{"n":%d}' % number, headers=headers)
            assert answer.status_code == 201
            found.append((prefix, answer.json()["index"]))
    assert len(set(found)) == len(places)


def test_a_private_log_sends_no_cors_and_no_public_caching(world: KeyedServer) -> None:
    for operation, need in NEEDS.items():
        if need == "read":
            answer = world.call(operation, "private", "read")
            assert "access-control-allow-origin" not in answer.headers, operation
            assert "public" not in answer.headers["cache-control"], operation
    assert world.call("GET /tile/{path}", "private", "read").headers["cache-control"].startswith("private,")


# --- keys while the server runs -----------------------------------------------------------------------------------------


def test_keys_made_and_revoked_while_serving(engine: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """A new key works, a revoked one is dead within a second, and revoking the last one does not open the log again."""
    with instance_on(engine, request, tmp_path) as instance, instance.server() as server:
        data, database = instance.data, instance.database
        with client(server.url) as anonymous:
            assert anonymous.post("/entries", content=b'{"n":0}', headers=JSON).status_code == 201, "the quick start"
            made = run(
                "key", "create", "--scope", "append", "--scope", "read", "--data", data, "--json", database=database
            )
            key = json.loads(made.stdout)
            with client(server.url, key["key"]) as http:
                time.sleep(1)  # on a slow machine it is more: what must be so within a second is so all the same
                assert http.post("/entries", content=b'{"n":1}', headers=JSON).status_code == 201
                assert anonymous.post("/entries", content=b'{"n":2}', headers=JSON).status_code == 401
                run("key", "revoke", key["key_id"], "--data", data, database=database)
                time.sleep(1)
                assert http.get("/entries/0").status_code == 401
                expect_problem(http.post("/entries", content=b'{"n":3}', headers=JSON), 401, "unauthorized")
            expect_problem(anonymous.post("/entries", content=b'{"n":4}', headers=JSON), 401, "unauthorized")
            assert "event" not in anonymous.get("/entries/1").json()
        assert key["key"] not in server.stderr()


# --- refusing to serve --------------------------------------------------------------------------------------------------


def test_a_public_address_needs_an_append_key(tmp_path: Path) -> None:
    """Only the refusal is looked at: nothing here ever listens on a public address. Keys to read, and revoked ones, do not count."""
    data = tmp_path / "data"
    make_instance(data, keys=[KeySpec("reads", READ), KeySpec("gone", APPEND, revoked=True)])
    port = free_port()
    for host in ("0.0.0.0", "::"):
        refused = run("serve", "--data", data, "--host", host, "--port", str(port), check=False)
        assert refused.returncode == 2
        assert f"muniment-server key create --scope append --data {data}" in refused.stderr
        assert "--allow-anonymous-writes" in refused.stderr
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)), "it listens"
