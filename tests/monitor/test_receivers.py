"""The receivers of docs/examples take what a monitor sends, once, and nothing else."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from muniment.monitor import hooks
from muniment.monitor.hooks import Outbox, Webhook
from muniment.monitor.record import Record
from muniment.webhook import signed_headers
from tests.live import PATIENCE
from tests.monitor.receiver import SECRET
from tests.monitor.test_hooks import findings

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
RECEIVERS = {"python": [sys.executable, str(EXAMPLES / "webhook_receiver.py")],
             "node": ["node", str(EXAMPLES / "webhook_receiver.mjs")]}  # fmt: skip


@contextmanager
def started(name: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the URL of a receiver and the file it fills."""
    if not shutil.which(RECEIVERS[name][0]):
        assert not os.environ.get("CI"), f"{name} is not installed"
        pytest.skip(f"{name} is not installed")
    (folder / "secret").write_bytes(SECRET + b"\n")
    process = subprocess.Popen(
        [*RECEIVERS[name], "0", str(folder / "inbox.jsonl")],
        env=os.environ | {"MUNIMENT_WEBHOOK_SECRET_FILE": str(folder / "secret")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout
        found = re.search(r"listening on (\d+)", process.stdout.readline())
        assert found
        yield f"http://127.0.0.1:{found[1]}/", folder / "inbox.jsonl"
    finally:
        process.kill()
        process.wait(PATIENCE)
        process.stdout.close()


@pytest.mark.parametrize("name", RECEIVERS)
async def test_a_receiver(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "_FIRST", 0.001)
    record = Record(tmp_path)
    outbox = Outbox(tmp_path, record)
    record.add(findings(5))
    with started(name, tmp_path) as (url, inbox):
        async with Webhook(url, SECRET, outbox) as webhook:
            assert await webhook.deliver()
            outbox.taken(0)  # all comes again
            assert await webhook.deliver()
        _refuses(url)
        assert inbox.read_bytes() == (tmp_path / "findings.jsonl").read_bytes()
    record.add(findings(6))
    with started(name, tmp_path) as (url, inbox):  # it knows what it has after a restart
        async with Webhook(url, SECRET, outbox) as webhook:
            outbox.taken(0)
            assert await webhook.deliver()
        assert [json.loads(line)["facts"]["index"] for line in inbox.read_text().splitlines()] == list(range(6))


def _refuses(url: str) -> None:
    body, now = b'{"id":"forged"}', int(time.time())
    good = signed_headers(SECRET, "forged", now, body)
    old = signed_headers(SECRET, "forged", now - 3600, body)
    other = signed_headers(b"x" * 16, "forged", now, body)
    for headers, sent in [(old, body), (other, body), (good, body + b" "), ({}, body),
                          (good | {"Muniment-Timestamp": "x"}, body)]:  # fmt: skip
        assert httpx.post(url, headers=headers, content=sent).status_code == 401
