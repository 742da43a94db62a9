"""What users install: wheels built from the sdists, in an empty environment, far from any checkout."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORDS = 600  # seconds for one step on a slow registry


def step(*words: str | Path, cwd: Path, **environment: str) -> str:
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MUNIMENT", "VIRTUAL_ENV"))
    }
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=WORDS,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout


def test_wheels_work_in_an_empty_environment(tmp_path: Path) -> None:
    for folder in ("client", "service"):  # builds the sdist, and the wheel from that sdist
        step(
            sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path / "dist", ROOT / folder, cwd=tmp_path
        )
    step(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    bin_ = tmp_path / "venv" / "bin"
    wheels = sorted((tmp_path / "dist").glob("*.whl"))
    assert len(wheels) == 2
    step(bin_ / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wheels, cwd=tmp_path)
    step(bin_ / "muniment-server", "init", "--data", "data", "--origin", "example.com/wheels", cwd=tmp_path)

    with (tmp_path / "log").open("w+") as log:
        server = subprocess.Popen(
            [bin_ / "muniment-server", "serve", "--data", "data", "--port", "0"],
            cwd=tmp_path,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
        try:
            url = wait_for_url(tmp_path / "log", server)
            event = json.dumps({"actor": "alice", "action": "test"})
            common = ("--policy", "data/policy", "--url", url, "--json")
            out = step(
                bin_ / "muniment", "append", event, *common, cwd=tmp_path, XDG_STATE_HOME=str(tmp_path / "state")
            )
            (tmp_path / "receipt.json").write_text(json.dumps(json.loads(out).get("receipt", json.loads(out))))
        finally:
            server.terminate()
            assert server.wait(60) == 0
    verdict = json.loads(
        step(bin_ / "muniment", "verify", "receipt.json", "--policy", "data/policy", "--json", cwd=tmp_path)
    )
    assert verdict["results"][0]["event"] == {"actor": "alice", "action": "test"}
    assert "clean" in step(bin_ / "muniment-server", "fsck", "--data", "data", cwd=tmp_path)


def wait_for_url(log: Path, server: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        if found := re.search(r"url=(?:\x1b\[[0-9;]*m)?(http://[0-9.:]+)", log.read_text()):
            return found[1]
        time.sleep(0.05)
    raise AssertionError(log.read_text())
