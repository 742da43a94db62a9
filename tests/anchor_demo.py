"""The anchor loop of `make demo`: calendars and a Bitcoin node of this machine, whose chain takes two hashes a block."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from muniment import Client
from tests.bitcoin.calendar import Calendar, confirm
from tests.bitcoin.chain import Chain
from tests.bitcoin.node import Node
from tests.live import PATIENCE, run


@dataclass
class AnchorWorld:
    """What stands for Bitcoin here: real headers with real, if little, proof of work, and calendars that speak the real protocol."""

    data: Path
    chain: Chain
    calendars: list[Calendar]
    node: Node

    @property
    def settings(self) -> Path:
        """The settings file that names them."""
        return self.data / "muniment.toml"

    @contextmanager
    def named(self) -> Iterator[None]:
        """Name them in the settings of the instance, for as long as they are there."""
        urls = ", ".join(f'"{one.url}"' for one in self.calendars)
        self.settings.write_text(
            f'anchor = true\nanchor_calendars = [{urls}]\nanchor_rest = "{self.node.rest}"\nanchor_network = "regtest"\n'
        )
        try:
            yield
        finally:
            self.settings.unlink()

    def anchor(self, client: Client, index: int, out: Console) -> tuple[Path, Path]:
        """Anchor the log, mine, and confirm; return the files of an anchored receipt and of the block headers."""
        command(self.data, "now", code=0)
        self._say(client, out)
        command(self.data, "status", code=3)
        block = confirm(self.chain, self.calendars)
        out.print(f"   block {block.height} is mined, and five on top of it")
        command(self.data, "retry", code=0)
        self._say(client, out)
        headers, receipt = self.data / "headers.bin", self.data / "receipts" / f"{index}-anchored.json"
        muniment("anchor", "headers", "sync", headers, "--rest", self.node.rest, "--network", "regtest")
        receipt.write_text(str(client.anchored_receipt(index)), "utf-8")
        return receipt, headers

    @staticmethod
    def _say(client: Client, out: Console) -> None:
        for one in client.anchors():
            out.print(f"   the tree of size {one.tree_size} is {one.state}: {one.explanation}")


@contextmanager
def anchor_world(data: Path) -> Iterator[AnchorWorld]:
    """Start calendars and node on loopback."""
    chain = Chain(100)
    with Calendar(chain) as one, Calendar(chain) as two, Node(chain) as node:
        yield AnchorWorld(data, chain, [one, two], node)


def command(data: Path, *words: str, code: int) -> None:
    """Run ``muniment-server anchor``, and insist on its exit code."""
    done = run("anchor", *words, "--data", data, check=False)
    if done.returncode != code:
        raise SystemExit(f"muniment-server anchor {words[0]} exited {done.returncode}: {done.stdout}{done.stderr}")


def muniment(*words: str | Path) -> str:
    """Run a client command to its good end and return what it says."""
    program = Path(sys.executable).with_name("muniment")
    done = subprocess.run(
        [program, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        raise SystemExit(f"muniment {words[0]} exited {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


def verify_offline(receipt: Path, headers: Path, policy: Path) -> str:
    """Check an anchored receipt with two files and a policy, and return the claim that holds. No server, no calendar, no node."""
    words = ("verify", receipt, "--check-anchors", "--headers", headers, "--network", "regtest", "--policy", policy)
    found = json.loads(muniment(*words, "--json"))
    return str(found["results"][0]["anchors"][0]["claim"])
