"""Command line sessions, as a user would see them, against a real server.

Each .txt file here is one session in an empty folder. ``$ command`` is run by bash (lines that begin with ``> `` continue it), and
what follows is what it must print, stdout and stderr together. ``[..]`` stands for anything within a line, a line ``...`` for any
lines. ``? 2`` after the output is the exit code when it is not 0. ``@ serve DIR`` starts a server on a free port and sets
MUNIMENT_URL, ``@ stop`` stops it, ``@ env NAME=VALUE`` sets a variable, ``@ unset NAME`` removes it; ``# `` is a comment.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.live import PATIENCE, LiveServer

SESSIONS = sorted(Path(__file__).parent.glob("*.txt"))


@dataclass
class Step:
    """A directive or a command, with what it must print."""

    line: int
    command: str
    expected: list[str] = field(default_factory=list)
    code: int = 0


def parse(text: str) -> list[Step]:
    steps: list[Step] = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.startswith("# "):
            continue
        if line.startswith(("$ ", "@ ")):
            steps.append(Step(number, line))
        elif line.startswith("> ") and steps and not steps[-1].expected:
            steps[-1].command += f"\n{line[2:]}"
        elif line.startswith("? "):
            steps[-1].code = int(line[2:])
        elif steps:
            steps[-1].expected.append(line)
    for step in steps:
        while step.expected and not step.expected[-1]:
            step.expected.pop()
    return steps


def matches(expected: list[str], found: list[str]) -> bool:
    """Tell whether lines are as expected."""
    pattern = ""
    for line in expected:
        if line == "...":
            pattern += r"(?:[^\n]*\n)*"
        else:
            pattern += r"[^\n]*".join(re.escape(part) for part in line.split("[..]")) + r"\n"
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in found)) is not None


class Session:
    """A folder, an environment, and perhaps a server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server: LiveServer | None = None
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("MUNIMENT_")}
        self.env |= {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(folder),
            "XDG_STATE_HOME": str(folder / ".state"),
            "COLUMNS": "100",
            "NO_PROXY": "127.0.0.1",
        }

    def directive(self, words: str) -> None:
        match words.split():
            case ["serve", data, *flags]:
                self.server = LiveServer(self.folder / data, *flags).wait()
                self.env["MUNIMENT_URL"] = self.server.url
            case ["stop"]:
                self.close()
            case ["env", setting]:
                name, _, value = setting.partition("=")
                self.env[name] = value
            case ["unset", name]:
                self.env.pop(name, None)
            case _:
                raise AssertionError(f"unknown directive: {words}")

    def command(self, command: str) -> tuple[int, list[str]]:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PATIENCE,
            check=False,
        )
        return done.returncode, done.stdout.decode().rstrip("\n").split("\n") if done.stdout.strip() else []

    def close(self) -> None:
        if self.server:
            self.server.stop()
            self.server = None


@pytest.mark.parametrize("path", SESSIONS, ids=[path.stem for path in SESSIONS])
def test_session(path: Path, tmp_path: Path) -> None:
    session = Session(tmp_path)
    try:
        for step in parse(path.read_text(encoding="utf-8")):
            if step.command.startswith("@ "):
                session.directive(step.command[2:])
                continue
            code, found = session.command(step.command[2:])
            where = f"{path.name}:{step.line}: {step.command}"
            shown = "\n".join(found)
            assert matches(step.expected, found), f"{where}\n--- found:\n{shown}\n--- expected:\n" + "\n".join(
                step.expected
            )
            assert code == step.code, f"{where}: exit code {code}\n{shown}"
    finally:
        session.close()


def test_there_are_sessions() -> None:
    assert len(SESSIONS) >= 5


def test_matching() -> None:
    assert matches(["a[..]c"], ["abbc"])
    assert not matches(["a[..]c"], ["ab", "c"])
    assert matches(["a", "...", "z"], ["a", "b", "c", "z"])
    assert matches(["a", "...", "z"], ["a", "z"])
    assert not matches(["a"], ["a", "b"])
    assert not matches(["a."], ["ab"])
    assert matches([], [])
