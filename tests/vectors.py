"""Third-party test vectors: read where they lie, never copied into this repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("MUNIMENT_VECTORS") or Path(__file__).resolve().parents[2] / "shared" / "vectors")


def vectors(name: str) -> Path:
    """Return a folder or file of vectors. Skips the test, saying why, where it is absent."""
    found = FOLDER / name
    if not found.exists():
        pytest.skip(f"no test vectors at {found}: set MUNIMENT_VECTORS to the folder that holds them")
    return found
