"""The header rig at a size for every day, with and without changes of difficulty."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bitcoin.headers_rig import run


@pytest.mark.parametrize("interval", [0, 288])
def test_the_rig_on_twenty_thousand_headers(tmp_path: Path, interval: int) -> None:
    found = run(20_000, tmp_path, flipped=60, interval=interval)
    assert found.good, found
    assert found.headers == 20_000
