"""`make demo`: a log from nothing, fed with what every machine has, checked offline, and caught when it is tampered with.

The checkpoint is anchored in a Bitcoin chain of this machine, and a receipt says before which block its entry existed. The records are the path and SHA-256 lines of every installed package's RECORD file, and the commits of this checkout.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from muniment import Client, Policy, Receipt
from tests.anchor_demo import anchor_world, verify_offline
from tests.finding_demo import find, show_part, take_away
from tests.live import PATIENCE, LiveServer, command, run

SAMPLE = 10
ORIGIN = "localhost/demo"
_out = Console(highlight=False, soft_wrap=True)


def records() -> Iterator[dict[str, Any]]:
    """Yield an event for each installed file that its package's RECORD gives a SHA-256 of."""
    for package in metadata.distributions():
        for file in package.files or ():
            if file.hash and file.hash.mode == "sha256":
                yield {
                    "action": "install.file",
                    "package": package.metadata["Name"],
                    "version": package.version,
                    "path": str(file),
                    "sha256": file.hash.value,
                    "bytes": file.size,
                }


def commits(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield an event for each commit of the git history in `folder`, oldest first; none where there is no git."""
    if not (folder / ".git").exists() or not shutil.which("git"):
        return
    form = "--format=%H%x00%aI%x00%s"
    done = subprocess.run(
        ["git", "-C", str(folder), "log", "--reverse", form],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    for line in done.stdout.splitlines():
        commit, time, subject = line.split("\0", 2)
        yield {"action": "git.commit", "commit": commit, "time": time, "subject": subject}


def feed(client: Client) -> list[int]:
    """Append everything, in batches that each come back with all their receipts verified; return the indices."""
    events = [*records(), *commits(Path(__file__).parents[1])]
    _out.print(f"   {len(events):,} events: installed files with their SHA-256, and commits of this checkout")
    receipts = track(client.append_many(events), "   appending", total=len(events), console=_out, transient=True)
    return [receipt.index for receipt in receipts]


def verify(path: Path, policy: Path) -> tuple[int, dict[str, Any]]:
    """Check a receipt file as a stranger does: the `muniment` command, a policy file, no server."""
    muniment = Path(sys.executable).with_name("muniment")
    words = [str(muniment), "verify", str(path), "--policy", str(policy), "--json"]
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, timeout=PATIENCE, stdin=subprocess.DEVNULL
    )
    found = json.loads(done.stdout or done.stderr or "{}")
    return done.returncode, found["results"][0] if "results" in found else found


def check_ten(client: Client, indices: list[int], folder: Path, policy: Path) -> Path:
    """Save ten random receipts as files and verify each offline; return one of the files."""
    folder.mkdir()
    for index in sorted(random.sample(indices, SAMPLE)):
        receipt = client.receipt(index)
        path = folder / f"{index}.json"
        path.write_text(str(receipt), "utf-8")
        code, verdict = verify(path, policy)
        if code or not verdict.get("complete"):
            raise SystemExit(f"receipt {index} does not verify: {verdict}")
        event = verdict["event"]
        name = event.get("path") or event.get("subject")
        _out.print(f"   [green]ok[/] entry {index:>6}  {event['action']:13} {str(name)[-60:]}", highlight=False)
    return path


def tamper(path: Path, policy: Path) -> None:
    """Change one byte of a receipt's leaf and see it refused."""
    receipt = Receipt.parse(path.read_bytes())
    leaf = bytearray(receipt.leaf)
    leaf[len(leaf) // 2] ^= 1
    forged = path.with_name("tampered.json")
    value = receipt.to_json() | {"leaf": Receipt("", 0, bytes(leaf), 1, (), "").to_json()["leaf"]}
    forged.write_text(json.dumps(value), "utf-8")
    code, verdict = verify(forged, policy)
    if code != 1:
        raise SystemExit(f"a tampered receipt was not refused: {code} {verdict}")
    _out.print(f"   [red]refused[/], exit code 1: {verdict.get('detail') or verdict}")


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("var/demo"), help="folder of the instance, made anew")
    data = parser.parse_args().data.resolve()
    if (data / "policy").exists():
        shutil.rmtree(data)
    elif data.exists() and any(data.iterdir()):
        raise SystemExit(f"{data} is not empty and not from an earlier demo: remove it, or give another --data")

    _out.print("[bold]1. A log from nothing[/]  (muniment-server init, then serve, on the embedded SQLite)")
    run("init", "--data", data, "--origin", ORIGIN)
    policy_file = data / "policy"
    policy = Policy.read(policy_file)
    with (
        anchor_world(data) as world,
        world.named(),
        LiveServer(data) as server,
        Client(server.url, policy=policy) as client,
    ):
        first = client.checkpoint()
        _out.print(f"   serving at {server.url}; first checkpoint: size {first.checkpoint.size}")

        _out.print("[bold]2. Append[/]  (every answer carries its receipt; the client verifies all of them)")
        indices = feed(client)

        _out.print("[bold]3. Ten receipts, verified offline[/]  (muniment verify: receipt and policy file, no network)")
        saved = check_ten(client, indices, data / "receipts", policy_file)

        _out.print("[bold]4. Nothing was rewritten[/]  (consistency proof from the first checkpoint to the last)")
        last = client.checkpoint()
        client.consistency(first)
        _out.print(
            f"   [green]ok[/] the log of size {last.checkpoint.size} extends the one of size {first.checkpoint.size}"
        )

        _out.print("[bold]5. Tamper with one byte[/]")
        tamper(saved, policy_file)

        _out.print("[bold]6. Find, and prove what was found[/]  (muniment search --verify)")
        _out.print(f"   [green]ok[/] {find(server.url, policy_file, last.checkpoint.size)}")

        _out.print("[bold]7. Show a part, hide the rest[/]  (muniment disclose; then muniment verify, no network)")
        _out.print(f"   [green]ok[/] {show_part(saved, policy_file)}")

        _out.print(
            "[bold]8. Take evidence away[/]  (muniment export --format receipts; then muniment verify, no network)"
        )
        _out.print(f"   [green]ok[/] {take_away(server.url, policy_file, data / 'evidence.ndjson')}")

        _out.print(
            "[bold]9. Anchor in Bitcoin[/]  (two OpenTimestamps calendars and a node of this machine: chain regtest)"
        )
        receipt, headers = world.anchor(client, indices[0], _out)

    _out.print(
        "[bold]10. When was that?[/]  (muniment verify --check-anchors: receipt, policy and header file, no network)"
    )
    _out.print(f"   [green]ok[/] the entry {indices[0]} {verify_offline(receipt, headers, policy_file)}")
    code = subprocess.run(command("fsck", "--data", data), check=False, timeout=600).returncode
    if code:
        raise SystemExit("fsck found damage")
    shown = data.relative_to(Path.cwd()) if data.is_relative_to(Path.cwd()) else data
    _out.print("\n[bold]Try next[/]  (in another terminal, after `make serve`)")
    for line in (
        """curl --json '{"actor":"alice","action":"invoice.approve"}' http://127.0.0.1:8080/entries > receipt.json""",
        f".venv/bin/muniment verify receipt.json --policy {shown}/policy",
        f".venv/bin/muniment search action:git.commit --limit 5 --verify --no-state --policy {shown}/policy",
        f"curl 'http://127.0.0.1:8080/proof/inclusion?index={indices[0]}'",
        "curl http://127.0.0.1:8080/checkpoint",
    ):
        _out.print(f"   {line}", markup=False)


if __name__ == "__main__":
    main()
