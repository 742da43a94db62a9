"""The stock `ots` command, on this Python and on the newest other one found here, from the same installed packages.

They are pure Python, or abi3, so that no second environment is needed.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.live import PATIENCE

NEWER = [f"python3.{minor}" for minor in range(15, sys.version_info.minor, -1)]
_RUN = "import sys; sys.argv[0] = 'ots'; from otsclient.ots import main; sys.exit(main())"


@functools.cache
def newest() -> str | None:
    """Return the newest other interpreter that can run the client: of MUNIMENT_TEST_PYTHON, the PATH, or pyenv."""
    pyenv = Path.home() / ".pyenv" / "versions"
    installed = (str(path) for name in NEWER for path in sorted(pyenv.glob(f"*/bin/{name}")))
    named = (found for name in NEWER if (found := shutil.which(name)))
    given = os.environ.get("MUNIMENT_TEST_PYTHON")
    candidates = [given] if given else sorted({*named, *installed}, key=_minor, reverse=True)
    return next((one for one in candidates if run_ots(one, "--version").returncode == 0), None)


def _minor(interpreter: str) -> int:
    return int(interpreter.rpartition("python3.")[2])


def run_ots(interpreter: str, *words: object) -> subprocess.CompletedProcess[str]:
    """Run one command of the stock client on this interpreter."""
    path = {"PYTHONPATH": sysconfig.get_path("purelib")}
    return subprocess.run(
        [interpreter, "-W", "error::DeprecationWarning", "-c", _RUN, *map(str, words)],
        env=os.environ | path,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
