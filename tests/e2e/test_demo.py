"""`make demo` does its main job."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_demo(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "tests.demo", "--data", str(tmp_path / "demo")]
    done = subprocess.run(
        words,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=600,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok entry") == 10
    assert "refused, exit code 1" in done.stdout
    for line in ("is pending: a calendar's promise", "is confirmed", "existed before block 101"):
        assert line in done.stdout
    assert "default: clean" in done.stdout
