"""`muniment monitor` in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.live import PATIENCE


def words(*given: object) -> list[str]:
    """The command line of `muniment monitor`."""
    return [sys.executable, "-m", "muniment.cli", "monitor", *map(str, given)]


def environment(**more: str) -> dict[str, str]:
    """Nothing of ours but what is given."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MUNIMENT_")}
    return clean | {"PYTHONWARNINGS": "error"} | more


@dataclass
class Ended:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def error(self) -> str:
        return str(json.loads(self.err.splitlines()[-1])["error"]["code"])


def monitor(*given: object, **more: str) -> Ended:
    """Run it to its end."""
    done = subprocess.run(
        words(*given),
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Ended(done.returncode, done.stdout, done.stderr)


@dataclass
class Started:
    """A monitor that runs. Its lines go to a file."""

    given: tuple[object, ...]
    folder: Path
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "out").open("ab") as out, (self.folder / "err").open("ab") as err:
            self.process = subprocess.Popen(
                words(*self.given, "--json"), env=environment(), stdin=subprocess.DEVNULL, stdout=out, stderr=err
            )

    def lines(self) -> list[dict[str, Any]]:
        """What it has said so far, in whole lines."""
        text = (self.folder / "out").read_text()
        return [json.loads(line) for line in text.split("\n")[:-1]]

    def events(self, kind: str) -> list[dict[str, Any]]:
        """What it said of one kind."""
        return [line for line in self.lines() if line["event"] == kind]

    def stop(self, sig: int = signal.SIGTERM) -> int:
        """End it, and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(sig)
        code = self.process.wait(PATIENCE)
        text = (self.folder / "err").read_text()
        assert "Traceback" not in text, text
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
