"""Anchors over HTTP and from the command line: a real server, real calendars on loopback, and a node with real headers."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

from muniment.anchor.chain import REGTEST
from muniment.anchor.check import check_receipt_anchor
from muniment.anchor.node import RestNode
from muniment.policy import Policy
from muniment.receipt import Receipt
from tests.bitcoin.calendar import Calendar, confirm
from tests.bitcoin.chain import Chain
from tests.bitcoin.node import Node
from tests.bitcoin.stock import newest, run_ots
from tests.live import LiveServer, run, until
from tests.service.http_check import client, expect_problem
from tests.service.http_world import DEFAULT, RAW, instance_on

ALL = ("queued", "pending", "complete", "confirmed", "superseded")


@dataclass
class AnchoredServer:
    data: Path
    database: str | None
    policy: Policy
    server: LiveServer
    http: httpx.Client
    chain: Chain
    calendars: list[Calendar]
    node: Node

    def command(self, *words: str, code: int) -> list[dict[str, Any]]:
        done = run("anchor", *words, "--data", self.data, "--json", database=self.database, check=False)
        assert done.returncode == code, (words, done.stdout, done.stderr)
        return json.loads(done.stdout)

    def get(self, path: str) -> Any:
        answer = self.http.get(path)
        assert answer.status_code == 200, (path, answer.text)
        return answer.json()


@pytest.fixture(params=["sqlite", "postgres"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AnchoredServer]:
    with ExitStack() as stack:
        chain = Chain(100)
        calendars = [stack.enter_context(Calendar(chain)) for _ in range(2)]
        node = stack.enter_context(Node(chain))
        instance = stack.enter_context(instance_on(request.param, request, tmp_path, (DEFAULT, RAW)))
        urls = ", ".join(f'"{one.url}"' for one in calendars)
        (instance.data / "muniment.toml").write_text(
            f'anchor = true\nanchor_logs = ["default"]\nanchor_calendars = [{urls}]\nanchor_rest = "{node.rest}"\n'
            'anchor_network = "regtest"\n'
        )
        server = stack.enter_context(instance.server(env={"MUNIMENT_SERVER_PUBLISH_INTERVAL": "0.1"}))
        http = stack.enter_context(client(server.url))
        yield AnchoredServer(instance.data, instance.database, instance.policy, server, http, chain, calendars, node)


def test_the_whole_way_over_http(world: AnchoredServer, tmp_path: Path) -> None:
    assert world.get("/anchors") == {"anchors": [], "next": None}
    index = world.http.post("/entries", json={"n": 1}).json()["index"]
    until(lambda: world.get("/log")["tree_size"] == 2)
    expect_problem(world.http.get(f"/entries/{index}/receipt?anchored=true"), 404, "no_anchor")

    (report,) = world.command("now", code=0)
    assert (report["log"], report["open"], report["confirmed"]) == ("default", 1, 0)
    (listed,) = world.get("/anchors")["anchors"]
    one = world.get("/anchors/2")
    assert one == listed
    assert (one["state"], one["explanation"]) == ("pending", "a calendar's promise; proves nothing yet")
    assert (one["degraded"], one["confirmed_at"], one["block"]) == (False, None, None)
    assert [each["url"] for each in one["calendars"]] == sorted(each.url for each in world.calendars)
    frozen = world.http.get("/anchors/2/checkpoint")
    assert frozen.headers["content-type"].startswith("text/plain")
    assert "immutable" in frozen.headers["cache-control"]
    assert sha256(frozen.content).hexdigest() == one["digest"]
    world.policy.verify(frozen.text)
    promise = world.http.get("/anchors/2/checkpoint.ots")
    assert promise.headers["content-type"] == "application/octet-stream"
    tag = promise.headers["etag"]
    assert world.http.get("/anchors/2/checkpoint.ots", headers={"If-None-Match": tag}).status_code == 304
    world.command("status", code=3)

    confirm(world.chain, world.calendars)
    world.command("retry", code=0)
    world.command("status", code=0)
    one = world.get("/anchors/2")
    block = world.chain.at(101)
    assert (one["state"], one["block"]) == (
        "confirmed",
        {"height": 101, "hash": block.block_hash, "time": block.time},
    )
    assert world.http.get("/anchors/2/checkpoint").content == frozen.content
    assert world.http.get("/anchors/2/checkpoint.ots", headers={"If-None-Match": tag}).status_code == 200
    receipt = _receipt(world, index)
    _stock_client_agrees(world, tmp_path)

    until(lambda: world.get("/log")["tree_size"] == 3)  # the entry that the server logs of it
    entry = json.loads(base64.b64decode(world.get("/entries/2")["leaf"]))
    assert entry["typ"] == "muniment/anchor@v1"
    assert entry["anchor"]["block"] == one["block"]
    found = expect_problem(world.http.get("/entries/2/receipt?anchored=true"), 404, "no_anchor")
    assert found["detail"] == "no confirmed anchor covers entry 2 yet"
    found = expect_problem(world.http.get("/logs/raw/entries/0/receipt?anchored=true"), 404, "no_anchor")
    assert found["detail"] == "no confirmed anchor covers entry 0: this log has none", "it is not to be anchored"
    assert receipt.anchors[0].header == block.raw
    run("fsck", "--data", world.data, database=world.database)


def _receipt(world: AnchoredServer, index: int) -> Receipt:
    receipt = Receipt.parse(world.http.get(f"/entries/{index}/receipt?anchored=true").content)
    receipt.verify(world.policy)
    found = check_receipt_anchor(receipt, receipt.anchors[0], world.policy, RestNode(world.node.rest, REGTEST))
    assert (found.state, found.found.height) == ("confirmed", 101)
    text = world.http.get(f"/entries/{index}/receipt?anchored=true", headers={"Accept": "text/plain"})
    expect_problem(text, 400, "bad_parameter")
    return receipt


def _stock_client_agrees(world: AnchoredServer, folder: Path) -> None:
    for name in ("checkpoint", "checkpoint.ots"):
        (folder / name).write_bytes(world.http.get(f"/anchors/2/{name}").content)
    proof = folder / "checkpoint.ots"
    for python in filter(None, (sys.executable, newest())):
        info = run_ots(python, "--no-cache", "info", proof)
        assert (info.returncode, "BitcoinBlockHeaderAttestation(101)" in info.stdout) == (0, True), (python, info)
        words = ("--no-cache", "--btc-regtest", "--bitcoin-node", world.node.url, "verify", proof)
        done = run_ots(python, *words)
        assert done.returncode == 0, (python, done.stderr)
        assert "Bitcoin block 101 attests existence" in done.stderr


def test_the_command_tells_what_is_not_there_or_not_reachable(world: AnchoredServer) -> None:
    for one in world.calendars:
        one.down()
    world.command("status", code=0)
    world.command("now", code=4)
    one = world.get("/anchors/1")
    assert (one["state"], one["degraded"], one["submitted_at"]) == ("queued", True, None)
    assert all(each["attempts"] >= 1 and each["last_reason"] for each in one["calendars"])
    expect_problem(world.http.get("/anchors/1/checkpoint.ots"), 404, "anchor_queued")
    assert expect_problem(world.http.get("/anchors/0"), 404, "no_anchor")["next_size"] == 1
    expect_problem(world.http.get("/anchors/7/checkpoint"), 404, "no_anchor")
    expect_problem(world.http.get("/anchors/07"), 400, "bad_parameter")
    expect_problem(world.http.get("/anchors?limit=0"), 400, "bad_parameter")
    expect_problem(world.http.get("/entries/0/receipt?anchored=yes"), 400, "bad_parameter")
    assert world.http.post("/entries", json={"n": 1}).status_code == 201, "nothing of this concerns an append"
    done = run("anchor", "now", "--log", "nothing", "--data", world.data, database=world.database, check=False)
    assert done.returncode == 2
