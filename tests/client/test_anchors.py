"""Anchors from the outside: what clients and commands say of a log's anchors, against a chain mined here and its real faces."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

from muniment.anchor.chain import REGTEST
from muniment.anchored import AnchoredCheckpoint
from muniment.encoding import parse_decimal
from muniment.errors import BadSignature, FormatError, Inconsistent, NotWhatWasSent, Refused
from muniment.receipt import Receipt
from muniment.tree import plan_inclusion
from tests.bitcoin.chain import Block, Chain
from tests.bitcoin.node import Explorer, Node
from tests.client.cli_runner import Cli, Done
from tests.client.colours import Colours
from tests.client.fake_log import FakeLog, edit, problem
from tests.client.served import served
from tests.live import PATIENCE
from tests.unit.anchors import CALENDAR, stamp
from tests.unit.ots import file_of


class AnchoredLog(FakeLog):
    """A log with the anchor routes. `stamped` has the proof and the block of each anchored size, `frozen` the bytes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.stamped: dict[int, tuple[bytes, Block | None]] = {}
        self.frozen: dict[int, bytes] = {}

    def anchor(self, chain: Chain, size: int) -> Block:
        self.frozen[size] = self.note(size).encode()
        ots, block = stamp(chain, self.frozen[size])
        self.stamped[size] = ots, block
        return block

    def _honest(self, request: httpx.Request) -> httpx.Response:
        match request.method, *request.url.path.strip("/").split("/"):
            case "GET", "anchors":
                start = int(request.url.params["start"])
                sizes = [size for size in sorted(self.stamped) if size >= start]
                return httpx.Response(
                    200,
                    json={"anchors": [self._row(size) for size in sizes[:2]], "next": sizes[2] if sizes[2:] else None},
                )
            case "GET", "anchors", size, *rest if int(size) in self.stamped:
                return self._anchor(int(size), rest)
            case "GET", "anchors", *_:
                return problem(404, "no_anchor")
            case "GET", "entries", index, "receipt" if request.url.params.get("anchored") == "true":
                return self._anchored(parse_decimal(index))
        return super()._honest(request)

    def _anchor(self, size: int, rest: list[str]) -> httpx.Response:
        if not rest:
            return httpx.Response(200, json=self._row(size))
        if rest == ["checkpoint"]:
            return httpx.Response(200, content=self.frozen[size], headers={"Content-Type": "text/plain"})
        return httpx.Response(200, content=self.stamped[size][0], headers={"Content-Type": "application/octet-stream"})

    def _row(self, size: int) -> dict[str, Any]:
        block = self.stamped[size][1]
        assert block
        return {
            "tree_size": size, "root": "ab" * 32, "digest": sha256(self.frozen[size]).hexdigest(), "state": "confirmed", "explanation": "in a block",
            "degraded": False, "created_at": "2026-11-20T12:00:00.000Z", "submitted_at": "2026-11-20T12:00:01.000Z", "confirmed_at": None,
            "block": {"height": block.height, "hash": block.block_hash, "time": block.time},
            "calendars": [{"url": CALENDAR, "state": "pending", "attempts": 3, "last_reason": "Not\x1b found"}],
        }  # fmt: skip

    def _anchored(self, index: int) -> httpx.Response:
        sizes = [size for size in sorted(self.stamped) if size > index]
        if not sizes:
            return problem(404, "no_anchor")
        ots, block = self.stamped[sizes[0]]
        assert block
        proof = tuple(self.fold(plan_inclusion(index, sizes[0])))
        anchor = AnchoredCheckpoint(self.frozen[sizes[0]].decode(), sizes[0], proof, ots, block.height, block.raw)
        return httpx.Response(200, json=self.receipt(index).to_json() | {"anchors": [anchor.to_json()]})


@pytest.fixture
def chain() -> Chain:
    return Chain(3)


@pytest.fixture
def log(chain: Chain) -> AnchoredLog:
    made = AnchoredLog()
    made.add_events([{"n": number} for number in range(6)])
    for size in (2, 4, 7):
        made.anchor(chain, size)
    made.publish()
    chain.mine(6)
    return made


@pytest.fixture
def here(log: AnchoredLog, chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "policy").write_text(str(log.policy))
    (tmp_path / "headers.bin").write_bytes(chain.file)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MUNIMENT_POLICY", "policy")
    monkeypatch.delenv("MUNIMENT_BITCOIN_RPC", raising=False)
    with served(log) as url:
        monkeypatch.setenv("MUNIMENT_URL", url)
        yield tmp_path


FILE = ("--headers", "headers.bin", "--network", "regtest")

# --- clients ------------------------------------------------------------------------------------------------------------


def test_anchors_are_listed_page_by_page(log: AnchoredLog, colours: Colours) -> None:
    client = colours.client(log)
    found = list(client.anchors())
    assert [one.tree_size for one in found] == [2, 4, 7]
    assert found[0] == client.anchor(2)
    assert found[0].block is not None
    assert found[0].digest == sha256(log.frozen[2]).digest()
    assert [one.tree_size for one in client.anchors(3)] == [4, 7]
    files = client.anchor_files(4)
    assert (files.note, files.ots) == (log.frozen[4], log.stamped[4][0])


def test_the_anchored_receipt_has_the_earliest_anchor(log: AnchoredLog, colours: Colours) -> None:
    client = colours.client(log)
    assert [client.anchored_receipt(index).anchors[0].tree_size for index in range(7)] == [2, 2, 4, 4, 7, 7, 7]
    log.add_events([{"new": 1}])
    with pytest.raises(Refused, match="no_anchor"):
        client.anchored_receipt(7)


def test_a_page_that_goes_back_is_refused(log: AnchoredLog, colours: Colours) -> None:
    log.tamper = edit("/anchors", lambda value: value["anchors"].reverse())
    with pytest.raises(FormatError, match="order of size"):
        list(colours.client(log).anchors())


def test_a_checkpoint_of_another_tree_is_evidence(log: AnchoredLog, chain: Chain, colours: Colours) -> None:
    client, twin = colours.client(log), AnchoredLog()
    twin.add_events([{"n": "another story"}] * 6)
    log.frozen[4] = twin.note(4).encode()
    with pytest.raises(Inconsistent):
        client.anchor_files(4)
    log.frozen[4] = log.note(5).encode()
    with pytest.raises(NotWhatWasSent):
        client.anchor_files(4)
    log.frozen[4] = log.note(4).encode().replace(b"\n\xe2\x80\x94", b"\n\n\xe2\x80\x94", 1)
    with pytest.raises(FormatError):
        client.anchor_files(4)
    stranger = AnchoredLog(seed=1)
    stranger.add_events([{"n": 1}] * 6)
    log.frozen[4] = stranger.note(4).encode()
    with pytest.raises(BadSignature):
        client.anchor_files(4)


def test_an_answer_without_anchors_is_not_what_was_asked_for(log: AnchoredLog, colours: Colours) -> None:
    log.tamper = edit("/entries/1/receipt", lambda value: value.pop("anchors", None))
    with pytest.raises(NotWhatWasSent, match="without anchors"):
        colours.client(log).anchored_receipt(1)


# --- muniment anchor ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("here")
def test_list_and_show(cli: Cli, log: AnchoredLog, tmp_path: Path) -> None:
    listed = cli("anchor", "list")
    assert listed.code == 0
    assert [line.split()[0] for line in listed.out.splitlines()[1:4]] == ["2", "4", "7"]
    assert cli("anchor", "list", "--start", 3, "--json").json[0]["tree_size"] == 4
    none = cli("anchor", "list", "--start", 1000).out
    assert "none yet, or is not anchored" in none, "the server does not say which"
    shown = cli("anchor", "show", 4, "-o", "cp")
    assert shown.code == 0
    assert "Not\\x1b found" in shown.out, "nothing from a calendar reaches the terminal as it is"
    assert (tmp_path / "cp").read_bytes() == log.frozen[4]
    assert (tmp_path / "cp.ots").read_bytes() == log.stamped[4][0]
    assert cli("anchor", "show", 3).code == 3


@pytest.mark.usefixtures("here")
def test_verify_by_size_by_file_and_by_checkpoint(cli: Cli, log: AnchoredLog, tmp_path: Path) -> None:
    height = log.stamped[4][1].height  # type: ignore[union-attr]
    by_size = cli("anchor", "verify", 4, *FILE)
    assert (by_size.code, f"existed before block {height}, mined about ~20" in by_size.out) == (0, True)
    assert "validated from genesis" in by_size.out
    cli("anchor", "show", 4, "-o", "cp")
    value = cli("anchor", "verify", "--checkpoint", "cp", *FILE, "--json").json
    assert (value["state"], value["block"]["height"]) == ("confirmed", height)
    assert cli("anchor", "verify", "--file", "cp", "--ots", "cp.ots", *FILE).code == 0
    (tmp_path / "cp").write_bytes(log.frozen[2])
    changed = cli("anchor", "verify", "--checkpoint", "cp", *FILE)
    assert (changed.code, "other bytes" in changed.err) == (1, True)
    (tmp_path / "cp").write_bytes(b"not a checkpoint")
    assert cli("anchor", "verify", "--checkpoint", "cp", *FILE).code == 1


@pytest.mark.usefixtures("here")
def test_exit_codes(cli: Cli, log: AnchoredLog, chain: Chain, tmp_path: Path) -> None:
    none = cli("anchor", "verify", 4)
    assert (none.code, "proof complete, not checked here" in none.out, "--headers FILE" in none.out) == (4, True, True)
    for words in ([], [4, "--file", "policy"], [4, "--headers", "nowhere"], [4, *FILE, "--bitcoin-rest", "http://x"],
                  [4, "--explorer", "https://a"], [4, "--bitcoin-rpc", "http://u:p@127.0.0.1"]):  # fmt: skip
        assert cli("anchor", "verify", *words).code == 2
    log.stamped[4] = file_of(sha256(log.frozen[4]).digest(), stamp(Chain(3), b"x")[0][65:]), log.stamped[4][1]
    lie = cli("anchor", "verify", 4, *FILE)
    assert (lie.code, "mismatch" in lie.out) == (1, True)
    block = log.anchor(chain, 5)
    (tmp_path / "headers.bin").write_bytes(chain.file)
    young = cli("anchor", "verify", 5, *FILE)
    assert (young.code, f"block {block.height}" in young.out, "not deep enough yet" in young.out) == (3, True, True)
    (tmp_path / "headers.bin").write_bytes(chain.file[:-80])
    assert cli("anchor", "verify", 5, *FILE).code == 4
    damaged = bytearray(chain.file)
    damaged[200] ^= 1
    (tmp_path / "headers.bin").write_bytes(damaged)
    assert cli("anchor", "verify", 5, *FILE, "--json").error["code"] == "bad_header_chain"
    assert cli("anchor", "verify", 5, "--bitcoin-rest", "http://127.0.0.1:9", "--network", "regtest").code == 4


@pytest.mark.usefixtures("here")
def test_every_source_gives_the_same_block(
    cli: Cli, log: AnchoredLog, chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def block(*source: str) -> dict[str, Any]:
        done = cli("anchor", "verify", 4, *source, "--network", "regtest", "--json")
        assert done.code == 0, done.err
        return {name: done.json[name] for name in ("block", "depth")} | {"kind": done.json["source_kind"]}

    offline = block("--headers", "headers.bin")
    with Node(chain) as node, Explorer(chain) as one, Explorer(chain) as two, Explorer(chain) as three:
        (tmp_path / "cookie").write_text(node.cookie)
        rpc = block("--bitcoin-rpc", node.rest, "--bitcoin-rpc-cookie", "cookie")
        rest = block("--bitcoin-rest", node.rest)
        explorers = block(*(word for face in (one, two, three) for word in ("--explorer", face.url)))
        monkeypatch.setenv("MUNIMENT_BITCOIN_RPC", node.url)
        environment = block()
    assert (
        offline | {"kind": ""}
        == rpc | {"kind": ""}
        == rest | {"kind": ""}
        == explorers | {"kind": ""}
        == environment | {"kind": ""}
    )
    assert [one["kind"] for one in (offline, rpc, rest, explorers, environment)] == [
        "chain",
        "node",
        "node",
        "explorers",
        "node",
    ]


# --- receipts -----------------------------------------------------------------------------------------------------------


def fetch(cli: Cli, index: int = 2) -> Receipt:
    done = cli("receipt", index, "--anchored", "-o", "receipt.json")
    assert done.code == 0, done.err
    return Receipt.parse(Path("receipt.json").read_bytes())


@pytest.mark.usefixtures("here")
def test_a_receipt_with_its_anchor_verifies_offline(cli: Cli, log: AnchoredLog) -> None:
    receipt = fetch(cli)
    assert receipt.anchors[0].tree_size == 4
    unchecked = cli("verify", "receipt.json")
    assert (unchecked.code, "they were not checked" in " ".join(unchecked.out.split())) == (0, True)
    checked = cli("verify", "receipt.json", "--check-anchors", *FILE)
    assert checked.code == 0
    assert "Anchor: confirmed: existed before block" in checked.out
    assert "two trees anchored" in " ".join(checked.out.split())
    value = cli("verify", "receipt.json", "--check-anchors", *FILE, "--json").json["results"][0]
    assert value["anchors"][0]["state"] == "confirmed"
    assert value["anchors"][0]["claim"].startswith("existed before block")


@pytest.mark.usefixtures("here")
def test_an_embedded_header_alone_is_exit_4(cli: Cli) -> None:
    fetch(cli)
    done = cli("verify", "receipt.json", "--check-anchors")
    assert (done.code, "header embedded, not checked against a chain" in done.out) == (4, True)
    assert "confirmed" not in done.out


def spoil(change: Any) -> None:
    value = json.loads(Path("receipt.json").read_text())
    change(value["anchors"][0])
    Path("receipt.json").write_text(json.dumps(value))


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    "change",
    [
        lambda anchor: anchor.update(height=anchor["height"] + 1),
        lambda anchor: anchor.update(ots="AAAA"),
        lambda anchor: anchor["inclusion"].update(tree_size=3),
        lambda anchor: anchor["inclusion"]["hashes"].reverse(),
        lambda anchor: anchor.update(header="00" * 80),
        lambda anchor: anchor.update(checkpoint=anchor["checkpoint"].replace("\n4\n", "\n3\n")),
    ],
)
def test_an_anchor_that_does_not_hold_is_exit_1(change: Any, cli: Cli) -> None:
    fetch(cli)
    spoil(change)
    done = cli("verify", "receipt.json", "--check-anchors", *FILE)
    assert (done.code, "AN ANCHOR DOES NOT HOLD" in done.out) == (1, True)
    assert cli("verify", "receipt.json", "--check-anchors", *FILE, "--json").json["verified"] is False
    assert cli("verify", "receipt.json").code == 0


@pytest.mark.usefixtures("here")
def test_a_receipt_without_anchor_is_exit_3(cli: Cli, log: AnchoredLog) -> None:
    assert cli("receipt", 2, "-o", "receipt.json").code == 0
    done = cli("verify", "receipt.json", "--check-anchors", *FILE)
    assert (done.code, "Anchor: none in this receipt" in done.out) == (3, True)
    log.add_events([{"new": 1}])
    log.publish()
    assert cli("receipt", 7, "--anchored").code == 3
    assert cli("receipt", 2, "--anchored", "--tlog-proof").code == 2
    assert cli("verify", "receipt.json", *FILE).code == 2


@pytest.mark.usefixtures("here")
def test_checking_anchors_with_a_header_file_needs_no_network(cli: Cli) -> None:
    """In a process where importing an HTTP client fails, and opening a socket too; and without the library there is a hint."""
    fetch(cli)
    guard = (
        "import sys, socket\n"
        "refused = {'httpx', 'httpcore', 'anyio', 'asyncio', *sys.argv[1:]}\n"
        "class No:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in refused: raise ImportError(f'loads {name}', name=name)\n"
        "sys.meta_path.insert(0, No())\n"
        "def refuse(*_): raise SystemExit('opens a socket')\n"
        "socket.socket = refuse\n"
        "from muniment.cli import main\n"
        "sys.argv = ['muniment', 'verify', 'receipt.json', '--policy', 'policy', '--check-anchors', '--headers', 'headers.bin', '--network', 'regtest']\n"
        "main()\n"
    )

    def run(*words: str) -> Done:
        done = subprocess.run(
            [sys.executable, "-c", guard, *words], capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        return Done(done.returncode, done.stdout, done.stderr)

    done = run()
    assert (done.code, done.err) == (0, "")
    assert "Anchor: confirmed" in done.out
    missing = run("opentimestamps")
    assert (missing.code, "pip install './client[anchor]'" in missing.err) == (2, True)


def test_the_chain_of_these_tests_is_regtest(chain: Chain) -> None:
    assert REGTEST.pins[0] == chain.blocks[0].hash
