"""How much memory there is, and how much of it the cache takes."""

from __future__ import annotations

import os
from gzip import decompress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from muniment.tiles import Bundle, encode_bundle
from muniment.tree import expand
from muniment_server.host.memory import available
from muniment_server.read.cache import Cache, most_for
from muniment_server.read.files import Files

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
ROWS = expand(bytes(8192))
MIB = 2**20


@pytest.fixture
def groups(tmp_path: Path) -> Path:
    """A tree of control groups; this process is in /system.slice/muniment.service."""
    folder = tmp_path / "cgroup"
    (folder / "system.slice" / "muniment.service").mkdir(parents=True)
    (tmp_path / "own").write_text("4:memory:/other\n0::/system.slice/muniment.service\n")
    return folder


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, MACHINE),
        ({"system.slice/muniment.service": "max"}, MACHINE),
        ({"system.slice/muniment.service": "67108864\n"}, 64 * MIB),
        ({"system.slice": "33554432\n", "system.slice/muniment.service": "67108864\n"}, 32 * MIB),
        ({".": "1048576\n"}, MIB),
        ({".": str(2 * MACHINE)}, MACHINE),
        ({".": "not a number"}, MACHINE),
    ],
)
def test_the_lowest_limit_above_a_process_holds(groups: Path, limits: dict[str, str], expected: int):
    for folder, limit in limits.items():
        (groups / folder / "memory.max").write_text(limit)
    (groups.parent / "memory.max").write_text("4096")  # no control group
    assert available(groups, groups.parent / "own") == expected


def test_without_control_groups_the_machine_counts(tmp_path: Path):
    assert available(tmp_path, tmp_path / "none") == MACHINE
    assert 0 < available() <= MACHINE


@pytest.mark.parametrize(
    ("memory", "expected"),
    [(0, 38), (256 * MIB, 38), (1024 * MIB, 64), (4096 * MIB, 256), (8192 * MIB, 512), (2**40, 512)],
)
def test_the_cache_takes_a_sixteenth_within_limits(memory: int, expected: int):
    assert most_for(memory) == expected * MIB


def filled(most: int, tiles: range, logs: int = 1) -> Cache:
    cache = Cache(most)
    for log in range(logs):
        for index in tiles:
            cache.put(log, 0, index, ROWS)
    return cache


def test_the_cache_has_room_for_nearly_all_tiles_of_its_logs():
    cache = filled(512 * MIB, range(5000), logs=2)
    assert sum(cache.get(log, 0, index) is not None for log in range(2) for index in range(5000)) > 9600
    assert 9_600 * 40 * 256 < cache.size <= 10_000 * 40 * 256


def test_one_tile_shows_how_large_its_log_is():
    cache = filled(512 * MIB, range(39_999, 40_000))
    for index in range(5000):
        cache.put(0, 0, index, ROWS)
    assert cache.get(0, 0, 0)


def test_the_cache_never_takes_more_than_it_may():
    cache = filled(42 * MIB, range(6000))
    assert 40 * MIB < cache.size <= 42 * MIB
    assert cache.get(0, 0, 0) is None


def test_bundles_do_not_take_what_no_tile_needs():
    cache = filled(512 * MIB, range(100))
    for index in range(6000):
        cache.put_bundle(0, index, bytes(8192))
    assert 37 * MIB < cache.size <= 38 * MIB


async def test_a_compressed_bundle_is_kept():
    """To compress it anew for each reader would take a hundred times as long as to send it."""
    cache = Cache(38 * MIB)
    heads: Any = SimpleNamespace(latest_now=lambda _size: True)
    files = Files(SimpleNamespace(reads=None), 1, heads, *[None] * 2, cache)  # type: ignore[arg-type]
    data = encode_bundle([b"leaf %d of many" % number for number in range(256)])
    assert files.gzipped_now(Bundle(3, 256)) is None
    zipped = await files.gzip(Bundle(3, 256), data)
    assert len(zipped) < len(data) == len(decompress(zipped))
    assert files.gzipped_now(Bundle(3, 256)) == zipped
    assert files.gzipped_now(Bundle(4, 256)) is None
