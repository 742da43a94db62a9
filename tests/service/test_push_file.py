"""Pushing to a file: no line is torn or there twice, wherever a crash falls, and none is lost where it is rotated."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from muniment_server.errors import NotTaken
from muniment_server.follow.push import jsonl
from muniment_server.follow.push.batch import Batch
from muniment_server.follow.push.jsonl import JsonlFile
from muniment_server.sinks import Sink


def line(index: int, size: int = 20) -> bytes:
    return b'{"index": %d, "leaf_hash": "%b"}\n' % (index, b"ab" * (size // 2))


def batch(start: int, stop: int, *, whole: bool = True, size: int = 20) -> Batch:
    rows = [line(index, size) for index in range(start, stop) if whole or index % 3 == 0]
    return Batch("default", "example.com/log", "archive", start, stop, stop, rows, whole)


def lines(*indices: int) -> bytes:
    return b"".join(map(line, indices))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def target(path: Path, **changes: Any) -> JsonlFile:
    return JsonlFile(Sink(file=path, **changes), path)


def take(one: JsonlFile, given: Batch) -> None:
    asyncio.run(one.take(given))


def test_batches_follow_one_another(path: Path) -> None:
    one = target(path)
    for start, stop in ((0, 3), (3, 4), (4, 9)):
        take(one, batch(start, stop))
        assert path.read_bytes() == lines(*range(stop))
    assert path.stat().st_mode & 0o777 & ~0o640 == 0


def test_wherever_a_crash_falls_each_line_is_there_once(path: Path) -> None:
    """Each length that the file may have then; behind it nothing, zeros or garbage, which a power cut may leave."""
    before, all_ = lines(0, 1, 2), lines(*range(6))
    for length in range(len(before), len(all_) + 1):
        for behind in (b"", b"\0" * 40, b"\xff", b"}"):
            path.write_bytes(all_[:length] + behind)
            inode = path.stat().st_ino
            take(target(path), batch(3, 6))
            assert path.read_bytes() == all_, (length, behind)
            assert path.stat().st_ino == inode


def test_a_batch_that_is_there_is_not_written_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take(target(path), batch(0, 5))
    written: list[int] = []
    monkeypatch.setattr(jsonl.os, "write", lambda *_: written.append(1))
    synced: list[int] = []
    monkeypatch.setattr(jsonl.os, "fsync", synced.append)
    take(target(path), batch(0, 5))
    assert not written
    assert synced, "the sync may be what the crash came before"


@pytest.mark.parametrize(
    "there",
    [
        lines(0, 1, 2) + lines(3, 4, 5, 6),  # rows of a later batch: an older database was put back
        lines(0, 1, 2) + line(3, 30),  # another row
        lines(0, 1, 2) + b"a line of another program\n",
        lines(0, 1),  # a row is missing
        lines(1, 2) + lines(0),
        lines(0, 1, 2) + line(5),
        line(7),
        b"\n",
    ],
)
def test_a_file_that_is_not_ours_is_left_as_it_is(path: Path, there: bytes) -> None:
    path.write_bytes(there)
    with pytest.raises(NotTaken, match=r"audit\.jsonl|did not write"):
        take(target(path), batch(3, 6))
    assert path.read_bytes() == there


def test_a_file_that_was_moved_away_is_begun_anew(path: Path) -> None:
    take(target(path), batch(0, 3))
    path.rename(path.with_suffix(".1"))
    take(target(path), batch(3, 5))
    assert path.read_bytes() == lines(3, 4)


def test_rows_of_a_query_have_gaps(path: Path) -> None:
    for start, stop in ((0, 10), (10, 20), (20, 40)):
        take(target(path), batch(start, stop, whole=False))
        take(target(path), batch(start, stop, whole=False))
    assert path.read_bytes() == lines(*range(0, 40, 3))


def test_it_is_rotated_by_size_under_a_name_that_says_its_indices(path: Path) -> None:
    one = target(path, rotate_bytes=2**16)
    for start in range(0, 400, 10):
        take(one, batch(start, start + 10, size=1000))
    names = sorted(each.name for each in path.parent.iterdir())
    assert names[0] == "audit.0000000000000-0000000000059.jsonl"
    assert names[-1] == "audit.jsonl"
    whole = b"".join((path.parent / name).read_bytes() for name in names)
    assert [json.loads(each)["index"] for each in whole.splitlines()] == [*range(400)]
    for name in names[:-1]:
        first, last = map(int, name.split(".")[1].split("-"))
        rows = [json.loads(each)["index"] for each in (path.parent / name).read_bytes().splitlines()]
        assert rows == [*range(first, last + 1)]
        assert (path.parent / name).stat().st_size <= 2**16


def test_it_is_rotated_by_day(path: Path) -> None:
    one = target(path, rotate_daily=True)
    take(one, batch(0, 3))
    take(one, batch(3, 4))
    assert len([*path.parent.iterdir()]) == 1
    os.utime(path, (1_700_000_000, 1_700_000_000))
    take(one, batch(4, 6))
    assert (path.with_name("audit.0000000000000-0000000000003.jsonl")).read_bytes() == lines(0, 1, 2, 3)
    assert path.read_bytes() == lines(4, 5)


def test_a_batch_that_is_there_in_part_is_not_cut_in_two_by_rotation(path: Path) -> None:
    path.write_bytes(lines(0, 1, 2, 3))
    os.utime(path, (1_700_000_000, 1_700_000_000))
    take(target(path, rotate_daily=True), batch(2, 6))
    assert path.read_bytes() == lines(*range(6))


def test_after_a_crash_between_the_new_name_and_the_new_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take(target(path), batch(0, 3))
    os.utime(path, (1_700_000_000, 1_700_000_000))
    sync = jsonl._sync_folder

    def crash(folder: Path) -> None:
        raise OSError("the power is cut")

    monkeypatch.setattr(jsonl, "_sync_folder", crash)
    with pytest.raises(NotTaken):
        take(target(path, rotate_daily=True), batch(3, 5))
    monkeypatch.setattr(jsonl, "_sync_folder", sync)
    take(target(path, rotate_daily=True), batch(3, 5))
    assert path.read_bytes() == lines(3, 4)
    assert path.with_name("audit.0000000000000-0000000000002.jsonl").read_bytes() == lines(0, 1, 2)


def test_no_other_file_is_replaced(path: Path) -> None:
    take(target(path), batch(0, 3))
    os.utime(path, (1_700_000_000, 1_700_000_000))
    other = path.with_name("audit.0000000000000-0000000000002.jsonl")
    other.write_bytes(b"mine")
    with pytest.raises(NotTaken, match="it is there already"):
        take(target(path, rotate_daily=True), batch(3, 5))
    assert other.read_bytes() == b"mine"
    assert path.read_bytes() == lines(0, 1, 2)


def test_a_process_that_is_still_at_it_is_waited_for(path: Path) -> None:
    take(target(path), batch(0, 3))
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(NotTaken, match="another process"):
            take(target(path), batch(3, 5))
    take(target(path), batch(3, 5))
    assert path.read_bytes() == lines(*range(5))


def test_what_a_failed_sync_left_is_written_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel counts such pages as written: only what is written again will be synced."""
    take(target(path), batch(0, 3))
    sync = os.fsync

    def fails(file: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(jsonl.os, "fsync", fails)
    with pytest.raises(NotTaken, match="Input/output"):
        take(target(path), batch(3, 6))
    assert path.read_bytes() == lines(0, 1, 2)
    monkeypatch.setattr(jsonl.os, "fsync", sync)
    take(target(path), batch(3, 6))
    assert path.read_bytes() == lines(*range(6))


def test_a_full_disk_costs_a_try(path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    with pytest.raises(NotTaken, match="no file"):
        take(target(Path("/dev/full")), batch(0, 3))


@pytest.mark.parametrize("left", [0, 1, 30, 65])
def test_a_write_that_the_disk_takes_in_part(path: Path, monkeypatch: pytest.MonkeyPatch, left: int) -> None:
    write, room = os.write, [left]

    def full(file: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(28, "No space left on device")
        some = write(file, data[: room[0]])
        room[0] -= some
        return some

    take(target(path), batch(0, 2))
    monkeypatch.setattr(jsonl.os, "write", full)
    with pytest.raises(NotTaken, match="No space"):
        take(target(path), batch(2, 5))
    monkeypatch.setattr(jsonl.os, "write", lambda file, data: write(file, data[:7]))
    take(target(path), batch(2, 5))
    assert path.read_bytes() == lines(*range(5))


@pytest.mark.parametrize("make", ["folder", "missing", "unreadable"])
def test_a_path_that_cannot_be_written(path: Path, make: str) -> None:
    if make == "folder":
        path.mkdir()
    where = path / "deeper" / "audit.jsonl" if make == "missing" else path
    if make == "unreadable":
        where = Path("/proc/self/nothing.jsonl")
    with pytest.raises(NotTaken):
        take(target(where), batch(0, 1))


def test_long_lines_and_files_are_searched_from_behind(path: Path) -> None:
    rng = random.Random(7)
    start = 0
    for _ in range(12):
        stop = start + rng.randrange(1, 40)
        take(target(path), batch(start, stop, size=rng.choice((20, 5000, 200_000))))
        start = stop
    rows = path.read_bytes().splitlines()
    assert [json.loads(each)["index"] for each in rows] == [*range(start)]
    with path.open("rb") as file:
        place = jsonl.find(file.fileno(), start, 0)
    assert place == (path.stat().st_size, start - 1, b"")
