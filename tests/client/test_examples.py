"""The examples of docs/frameworks.md: what can run here runs, against a real server."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import httpx
import pytest

from muniment import Client, Policy, Receipt
from muniment.verify import verify_receipt
from tests.live import PATIENCE, LiveServer, init, until

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def load(name: str) -> ModuleType:
    """Import an example as a module."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec
    assert spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Address and policy of an event log."""
    data = tmp_path_factory.mktemp("examples") / "data"
    init(data)
    with LiveServer(data) as server:
        yield server.url, data / "policy"


def ask(module: ModuleType, *asked: tuple[str, dict[str, str]]) -> list[httpx.Response]:
    """POST to the application, from its start to its end."""

    async def work() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=module.app)
        async with module.lifespan(module.app), httpx.AsyncClient(transport=transport, base_url="http://app") as http:
            return [await http.post(path, headers=headers) for path, headers in asked]

    return asyncio.run(work())


def test_fastapi_answers_with_a_receipt_and_repeats_it(
    served: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, path = served
    monkeypatch.setenv("MUNIMENT_URL", url)
    monkeypatch.setenv("MUNIMENT_POLICY", str(path))
    monkeypatch.delenv("MUNIMENT_API_KEY", raising=False)
    same = ("/invoices/inv-17/approve", {"Idempotency-Key": "one"})
    mixed = ("/invoices/inv-19/approve", {"Idempotency-Key": "one"})
    *answers, refused = ask(load("fastapi_app"), same, same, ("/invoices/inv-18/approve", {}), mixed)
    assert (refused.status_code, "idempotency_mismatch" in refused.text) == (409, True)
    first, second, other = (answer.json() for answer in answers)
    assert first["entry"] == second["entry"] != other["entry"]
    found = Receipt.parse(first["receipt"]).verify(Policy.read(path))
    assert found.opened == {"actor": "alice", "action": "invoice.approve", "resource": "inv-17"}


def test_fastapi_does_nothing_without_the_log(served: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUNIMENT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("MUNIMENT_POLICY", str(served[1]))
    module = load("fastapi_app")
    client = module.AsyncClient
    monkeypatch.setattr(module, "AsyncClient", lambda *args, **more: client(*args, **more, timeout=0.01))
    (answer,) = ask(module, ("/invoices/inv-17/approve", {}))
    assert (answer.status_code, "may be in it" in answer.text) == (503, True)


@dataclass
class Row:
    """As a model of an outbox. `saved` is what the database has."""

    event: dict[str, Any]
    key: str = field(default_factory=lambda: str(uuid4()))
    receipt: str | None = None
    saved: str | None = None

    def save(self) -> None:
        """Store it."""
        self.saved = self.receipt


def test_an_outbox_is_sent_once_also_after_a_crash(served: tuple[str, Path]) -> None:
    url, path = served
    send = load("outbox").send_pending
    rows = [Row({"action": "invoice.approve", "resource": f"inv-{number}"}) for number in range(3)]
    with Client(url, policy=Policy.read(path)) as log:
        assert send(rows, log) == 3
        indices = [Receipt.parse(row.saved or "").index for row in rows]
        assert indices == list(range(indices[0], indices[0] + 3))
        rows[1].receipt = rows[1].saved = None  # it died before the row was saved
        assert send([rows[1]], log) == 1
        assert Receipt.parse(rows[1].saved or "").index == indices[1]
        assert log.append({"action": "invoice.pay"}).index == indices[2] + 1, "nothing was logged twice"


def commands_of(page: str) -> list[str]:
    return re.findall(r"^\$ (.*)$", (EXAMPLES.parent / page).read_text("utf-8"), re.MULTILINE)


def test_the_commands_for_auditor_and_regulator_hold(served: tuple[str, Path], tmp_path: Path) -> None:
    url, path = served
    with Client(url, policy=Policy.read(path)) as log:
        event = {"actor": "alice", "action": "invoice.approve", "resource": "inv-17"}
        first = log.append(event)
        (tmp_path / "receipt.json").write_text(str(first))
        shutil.copy(path, tmp_path / "policy")
        lines = commands_of("auditor.md") + commands_of("regulator.md")
        assert len(lines) == 19
        for line in lines:
            ours = shlex.split(line.replace("receipt 1 ", f"receipt {first.index} "))[1:]
            env = {**os.environ, "MUNIMENT_URL": url, "XDG_STATE_HOME": str(tmp_path / "state")}
            words = [sys.executable, "-m", "muniment.cli", *ours]
            done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
            assert done.returncode == 0, (line, done.stdout, done.stderr)
            log.append({"action": "invoice.pay"})
    shown = verify_receipt(Receipt.parse((tmp_path / "for-regulator.json").read_bytes()), Policy.read(path))
    assert shown.verified.opened == {"action": "invoice.approve", "resource": "inv-17"}
    _says_what_the_page_says(done.stdout, shown.signers[0], str(first.index), str(first.tree_size))


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_a_download_with_curl_goes_on_where_it_was_cut(served: tuple[str, Path], tmp_path: Path) -> None:
    url, path = served
    shutil.copy(path, tmp_path / "policy")
    with Client(url, policy=Policy.read(path)) as log:
        size = max(
            receipt.tree_size for receipt in log.append_many({"n": n, "index": "1", "leaf": n} for n in range(5))
        )
        until(lambda: log.checkpoint().checkpoint.size >= size)
    first, rest = re.findall(r"```sh\n(.*?)```", (EXAMPLES.parent / "auditor.md").read_text("utf-8"), re.DOTALL)
    env = {**os.environ, "MUNIMENT_URL": url, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def run(script: str) -> str:
        done = subprocess.run(
            ["sh", "-ec", script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert done.returncode == 0, (script, done.stdout, done.stderr)
        return done.stdout

    run(first)
    whole = (tmp_path / "all.ndjson").read_bytes()
    ends = [at + 1 for at, byte in enumerate(whole) if byte == ord("\n")]
    for cut in (ends[1], ends[1] + 1, ends[2] - 1, ends[-2], ends[-2] + 9, ends[-1] - 1):
        (tmp_path / "all.ndjson").write_bytes(whole[:cut])
        said = run(rest)
        assert (tmp_path / "all.ndjson").read_bytes() == whole, cut
        assert f"All {len(ends) - 2} entries from 0 to {len(ends) - 3} proved; none is missing." in said


def _says_what_the_page_says(printed: str, signer: str, index: str, size: str) -> None:
    """Compare the last command of regulator.md with what stands there, but for the names and numbers of the log."""
    page = (EXAMPLES.parent / "regulator.md").read_text("utf-8")
    wanted = page.partition("--plain\n")[2].partition("```")[0]
    origin = signer.partition("+")[0]
    numbers = {
        "example.com/log+4f222621": signer,
        '"example.com/log"': f'"{origin}"',
        "had 2 records": f"had {size} records",
    }
    for name, value in numbers.items():
        wanted = wanted.replace(name, value)
    wanted = " ".join(wanted.split()).replace("record number 1 ", f"record number {index} ")
    assert wanted in " ".join(printed.split())


def test_django_sends_what_was_done_once(served: tuple[str, Path], tmp_path: Path) -> None:
    url, path = served
    commands = tmp_path / "audit" / "management" / "commands"
    commands.mkdir(parents=True)
    for name, place in {
        "django_models": "models.py",
        "django_views": "views.py",
        "outbox": "outbox.py",
        "django_send_audit": "management/commands/send_audit.py",
    }.items():
        shutil.copy(EXAMPLES / f"{name}.py", tmp_path / "audit" / place)
    for folder in (tmp_path / "audit", commands.parent, commands):
        (folder / "__init__.py").touch()
    site = Path(__file__).with_name("django_site.py")
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "MUNIMENT_URL": url, "MUNIMENT_POLICY": str(path)}
    done = subprocess.run(
        [sys.executable, "-W", "error", site], env=env, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    opened = Receipt.parse(row["receipt"]).verify(Policy.read(path)).opened
    assert opened == row["event"] == {"actor": "alice", "action": "invoice.approve", "resource": "inv-17"}
