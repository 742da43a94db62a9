"""`muniment-server guard`: what an operator is told, and the only two ways to another guard."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner, Result

from muniment_server.cli import main
from tests.live import ORIGIN, LiveServer, run, until


class Moved:
    """An instance with some entries, and a checkpoint of it that was kept."""

    def __init__(self, data: Path, database: str | None) -> None:
        self.data, self.database = data, database
        run("init", "--data", data, "--origin", ORIGIN, database=database)
        self.append(3)
        self.kept = data.with_name("kept")
        self.kept.write_text(self.checkpoint)
        self.guard = data / "guard" / "default.guard"

    def append(self, count: int) -> None:
        with LiveServer(self.data, database=self.database) as server:
            for number in range(count):
                answer = httpx.post(f"{server.url}/entries", json={"n": number}).raise_for_status()
            size = answer.json()["index"] + 1
            until(lambda: f"\n{size}\n" in httpx.get(f"{server.url}/checkpoint").text)
            self.checkpoint = httpx.get(f"{server.url}/checkpoint").text

    def show(self) -> tuple[int, dict[str, Any]]:
        done = self.command("guard", "show", "--data", self.data, "--json")
        return done.exit_code, json.loads(done.stdout)[0]

    def take(self, verb: str, *words: str | Path) -> tuple[int, str]:
        done = self.command("guard", verb, "default", "--data", self.data, *words)
        return done.exit_code, done.stdout + done.stderr

    def command(self, *words: str | Path) -> Result:
        """Run a command in this process: to start sixty takes half a minute."""
        done = CliRunner().invoke(main, [*map(str, words)], env={"MUNIMENT_SERVER_DATABASE": self.database})
        assert done.exception is None or isinstance(done.exception, SystemExit)
        return done


@pytest.fixture
def moved(tmp_path: Path, database: str | None) -> Moved:
    return Moved(tmp_path / "data", database)


def test_a_lost_guard_is_made_anew_on_evidence(moved: Moved):
    code, shown = moved.show()
    assert (code, shown["code"], shown["guard"]["size"]) == (0, "good", 4)
    old = moved.guard.read_bytes()
    moved.guard.unlink()
    code, shown = moved.show()
    assert (code, shown["code"]) == (5, "guard_missing")
    assert moved.take("init")[0] == 2, "evidence, or the word that there is none"
    assert moved.take("init", "--checkpoint", moved.kept, "--without-evidence")[0] == 2
    assert moved.take("init", "--checkpoint", moved.kept.with_name("nothing"))[0] == 4
    assert moved.take("init", "--checkpoint", moved.kept)[0] == 0
    code, shown = moved.show()
    assert (code, shown["code"], shown["guard"]["size"]) == (0, "good", 4)
    assert moved.take("init", "--checkpoint", moved.kept)[0] == 2, "there is one now"
    moved.append(1)

    # The old one comes back, as the writer's other host would have it.
    moved.guard.write_bytes(old)
    code, shown = moved.show()
    assert (code, shown["code"]) == (5, "guard_foreign")
    assert "guard adopt" in shown["detail"]
    code, said = moved.take("adopt", "--without-evidence")
    assert (code, "good" in said) == (0, True)
    moved.append(1)
    assert moved.show()[1]["guard"]["size"] == 6


def test_evidence_that_contradicts_is_final(moved: Moved, tmp_path: Path):
    other = Moved(tmp_path / "other", None) if not moved.database else None
    moved.append(2)
    ahead = tmp_path / "ahead"
    ahead.write_text(moved.checkpoint)
    forged = tmp_path / "forged"
    forged.write_text(moved.checkpoint.replace("\n6\n", "\n5\n"))
    moved.guard.unlink()
    code, said = moved.take("init", "--checkpoint", forged)
    assert (code, "guard_evidence" in said) == (5, True)
    if other:
        code, said = moved.take("init", "--checkpoint", other.kept)
        assert (code, "guard_evidence" in said) == (5, True), "the same origin under another key"
    assert not moved.guard.exists(), "nothing was made"
    assert moved.take("init", "--checkpoint", ahead)[0] == 0


def test_an_old_database_gets_no_guard(tmp_path: Path):
    moved = Moved(tmp_path / "data", None)
    saved = tmp_path / "saved"
    saved.mkdir()
    for file in moved.data.glob("muniment.sqlite*"):
        shutil.copy(file, saved)
    moved.append(2)
    newer, guard = tmp_path / "newer", moved.guard.read_bytes()
    newer.write_text(moved.checkpoint)
    for file in moved.data.glob("muniment.sqlite*"):
        file.unlink()
    for file in saved.iterdir():
        shutil.copy(file, moved.data)
    code, shown = moved.show()
    assert (code, shown["code"]) == (5, "database_behind")
    code, said = moved.take("adopt", "--without-evidence")
    assert (code, "database_behind" in said) == (5, True)
    moved.guard.unlink()
    code, said = moved.take("init", "--checkpoint", newer)
    assert (code, "witness_ahead" in said) == (5, True)
    assert not moved.guard.exists()
    moved.guard.write_bytes(guard)
    with LiveServer(moved.data) as server:
        refused = httpx.post(f"{server.url}/entries", json={"n": 1})
        assert (refused.status_code, refused.json()["code"]) == (503, "database_behind")
        assert httpx.get(f"{server.url}/proof/inclusion?index=0").status_code == 200
