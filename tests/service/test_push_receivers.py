"""The receivers of docs/push.md: they keep each row once, whatever comes again, and take nothing that is not signed."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from muniment.webhook import signature
from muniment_server.follow.push.batch import Batch
from tests.live import LiveServer, free_port, init, until
from tests.service.test_push import SECRET
from tests.service.test_push_file import batch
from tests.service.test_push_live import add

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
RECEIVERS = {"py": [sys.executable, "-W", "error"], "mjs": [shutil.which("node") or "node"]}


@dataclass
class Running:
    """A receiver in a process of its own, and what it keeps."""

    kind: str
    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/in"

    def start(self) -> None:
        script = EXAMPLES / f"receive_push.{self.kind}"
        words = [
            *RECEIVERS[self.kind],
            str(script),
            str(self.port),
            str(self.folder / "secret"),
            str(self.folder / "kept"),
        ]
        self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(self.answers)

    def answers(self) -> bool:
        try:
            return httpx.post(self.url, content=b"{}").status_code == 401
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        assert self.process
        self.process.kill()
        self.process.wait()

    def send(self, one: Batch, *, secret: bytes = SECRET, age: int = 0, body: bytes | None = None) -> int:
        at = int(time.time()) - age
        signed = f"v1={'0' * 64}, {signature(secret, at, one.body())}"
        headers = {"Muniment-Id": one.id, "Muniment-Timestamp": str(at), "Muniment-Signature": signed}
        return httpx.post(self.url, content=body or one.body(), headers=headers).status_code

    def indices(self) -> list[int]:
        path = self.folder / "kept"
        if self.kind == "py":
            with closing(sqlite3.connect(path)) as database:
                return [index for (index,) in database.execute("SELECT idx FROM entries ORDER BY rowid")]
        lines = path.read_text().split("\n")[:-1]
        return [row["index"] for line in lines for row in json.loads(line)["rows"]]


@pytest.fixture(params=RECEIVERS)
def receiver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Running]:
    if request.param == "mjs" and not shutil.which("node"):
        pytest.skip("node is not installed")
    (tmp_path / "secret").write_bytes(SECRET + b"\n")
    made = Running(request.param, tmp_path, free_port())
    made.start()
    yield made
    made.kill()


def test_each_row_is_kept_once(receiver: Running) -> None:
    assert receiver.send(batch(0, 5)) == 200
    assert receiver.send(batch(0, 5)) == 200, "our answer was lost"
    assert receiver.send(batch(5, 9)) == 200
    receiver.kill()
    if receiver.kind == "mjs":
        with (receiver.folder / "kept").open("ab") as file:
            file.write(b'{"typ": "torn')
    receiver.start()
    assert receiver.send(batch(5, 9)) == 200
    assert receiver.send(batch(12, 15)) == 409, "a gap"
    assert receiver.send(batch(9, 12)) == 200
    assert receiver.indices() == [*range(12)]


def test_what_is_not_signed_is_not_taken(receiver: Running) -> None:
    assert receiver.send(batch(0, 5), secret=b"another secret of thirty-two by.") == 401
    assert receiver.send(batch(0, 5), age=400) == 401
    assert receiver.send(batch(0, 5), age=-400) == 401
    assert receiver.send(batch(0, 5), body=batch(0, 6).body()) == 401
    assert httpx.post(receiver.url, content=b"{}").status_code == 401
    assert receiver.send(batch(0, 5)) == 200
    assert receiver.indices() == [*range(5)]


def test_a_server_pushes_to_it(receiver: Running) -> None:
    data = receiver.folder / "data"
    init(data)
    sink = f"[push.siem]\nurl = '{receiver.url}'\nsecrets = ['{receiver.folder / 'secret'}']\npayloads = true\n"
    (data / "muniment.toml").write_text(sink)
    with LiveServer(data) as server:
        add(server, 1, 300)
        until(lambda: receiver.indices() == [*range(300)])
