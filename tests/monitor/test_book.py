"""What a monitor remembers survives a crash at any point, and damage to it is never an accusation."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest

from muniment import state
from muniment.checkpoint import Checkpoint, sign_checkpoint
from muniment.errors import FormatError, StateError, StateUnavailable
from muniment.event import format_time
from muniment.hashing import leaf_hash
from muniment.monitor import book as book_module
from muniment.monitor.book import Book, Memory, format_memory, parse_memory
from muniment.monitor.findings import KINDS, Finding
from muniment.monitor.follower import Status
from muniment.monitor.record import Record
from muniment.note import SigningKey
from tests.client.fake_log import NOON, FakeLog
from tests.fuzz.mutate import mutate
from tests.monitor.desk import Desk

URL = "http://log.test"
KEY = SigningKey("example.com/log", bytes(32))
HASHES = b"".join(leaf_hash(b"%d" % number) for number in range(1000))


def read_to(book: Book, size: int, *, accept: bool = True) -> None:
    book.tree.add(HASHES[book.tree.size * 32 : size * 32])
    if accept:
        head = Checkpoint("example.com/log", size, book.tree.root_at(size))
        book.accept(str(sign_checkpoint(head, KEY)))


def kept(folder: Path, *sizes: int) -> Book:
    book = Book.open(folder, URL)
    for size in sizes:
        read_to(book, size)
        book.save()
    return book


def test_round_trip(tmp_path: Path) -> None:
    book = kept(tmp_path, 5, 300, 301, 800)
    read_to(book, 950, accept=False)
    book.memory.suspicions["root"] = {"since": 1, "detail": "ö", "told": False}
    book.save()
    again = Book.open(tmp_path, URL)
    assert again.memory == book.memory
    assert (again.size(), again.tree.size) == (800, 950)
    assert again.tree.root_at(950) == book.tree.root_at(950)
    assert [again.leaves(index) for index in range(3)] == [HASHES[at * 8192 : (at + 1) * 8192] for at in range(3)]


def test_discarding_what_was_not_verified(tmp_path: Path) -> None:
    book = kept(tmp_path, 300)
    book.tree.add(b"x" * 32 * 600)
    book.save()
    book.discard()
    assert Book.open(tmp_path, URL).tree.size == 300
    read_to(book, 1000)
    book.save()
    again = Book.open(tmp_path, URL)
    assert again.size() == 1000
    assert again.leaves(1) == HASHES[8192:16384]


def test_discarding_what_could_not_be_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = kept(tmp_path, 100)
    read_to(book, 600)
    monkeypatch.setattr(book_module, "replace_file", _full)
    with pytest.raises(StateUnavailable):
        book.save()
    monkeypatch.undo()
    book.tree.add(b"x" * 32 * 600)
    book.discard()
    again = Book.open(tmp_path, URL)
    assert (again.size(), again.leaves(1)) == (600, HASHES[8192:16384])


def _full(*_: Any) -> None:
    raise OSError(28, "No space left on device")


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("seed", range(40))
def test_a_crash_between_any_two_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """What is opened afterwards is a state that was saved: the last, or the one that was being saved."""
    rng = random.Random(seed)
    book, sizes = Book.open(tmp_path, URL), [0]
    for _ in range(6):
        size = min(1000, book.tree.size + rng.choice([1, 100, 256, 300]))
        real = {"write": book_module._write, "fsync": os.fsync, "replace": Path.replace}
        steps = rng.randrange(12)

        def step(name: str, real: dict[str, Any] = real) -> Any:
            def work(*args: Any) -> Any:
                nonlocal steps
                steps -= 1
                if steps == 0:
                    raise Killed
                return real[name](*args)

            return work

        monkeypatch.setattr(book_module, "_write", step("write"))
        monkeypatch.setattr(state.os, "fsync", step("fsync"))
        monkeypatch.setattr(Path, "replace", step("replace"))
        try:
            if rng.random() < 0.3:
                book.tree.add(b"x" * 32 * rng.randrange(600))
                book.save()
                book.discard()
            read_to(book, max(size, book.tree.size) if book.tree.size <= 1000 else 1000)
            book.save()
        except Killed:
            pass
        monkeypatch.undo()
        sizes.append(size)
        book = Book.open(tmp_path, URL)
        head = book.memory.head()
        if head:
            assert head.size in sizes
            assert head.root == book.head_tree().root_at(head.size)
        if book.tree.size > book.size():
            book.discard()


def test_every_spoiled_state_is_damage(tmp_path: Path) -> None:
    kept(tmp_path, 300)
    (path,) = tmp_path.glob("*.json")
    whole = path.read_bytes()
    for spoiled in [whole[:cut] for cut in range(0, len(whole), 7)] + [
        whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(len(whole))
    ]:
        path.write_bytes(spoiled)
        with pytest.raises(StateError, match="says nothing about any log"):
            Book.open(tmp_path, URL)
    path.write_bytes(whole)
    assert Book.open(tmp_path, URL).size() == 300


def test_a_row_that_was_changed_is_damage(tmp_path: Path) -> None:
    kept(tmp_path, 900)
    (path,) = tmp_path.glob("*.hashes")
    whole = path.read_bytes()
    for spoiled in (b"", whole[:-1], whole[:40] + b"x" + whole[41:], whole[32:] + whole[:32]):
        path.write_bytes(spoiled)
        with pytest.raises(StateError, match="says nothing about any log"):
            Book.open(tmp_path, URL)
    path.write_bytes(whole + b"what a crash left")
    assert Book.open(tmp_path, URL).size() == 900


def test_leaves_that_were_changed_are_not_used(tmp_path: Path) -> None:
    kept(tmp_path, 900)
    (path,) = tmp_path.glob("*.leaves")
    whole = bytearray(path.read_bytes())
    whole[8192 + 5] ^= 1
    path.write_bytes(whole)
    book = Book.open(tmp_path, URL)
    assert [book.leaves(index) is None for index in range(3)] == [False, True, False]


def test_another_version(tmp_path: Path) -> None:
    kept(tmp_path, 3)
    (path,) = tmp_path.glob("*.json")
    path.write_bytes(path.read_bytes().replace(b"monitor@v1", b"monitor@v2"))
    with pytest.raises(StateError, match="another version"):
        Book.open(tmp_path, URL)


def test_a_state_parses_only_as_it_is_written() -> None:
    whole = format_memory(Memory(URL, suspicions={"root": {"since": 1, "detail": "x", "told": True}}))
    assert format_memory(parse_memory(whole)) == whole
    rng = random.Random(1)
    for _ in range(2000):
        spoiled = mutate(rng, [whole], [b"note", b"size"])
        try:
            assert format_memory(parse_memory(spoiled)) == spoiled
        except FormatError:
            continue


# --- the record ---------------------------------------------------------------------------------------------------------


def finding(number: int) -> Finding:
    return Finding("time", URL, "example.com/log", f"entry {number}", NOON, {"index": number})


def test_a_finding_is_recorded_once(tmp_path: Path) -> None:
    record = Record(tmp_path)
    assert record.add([finding(1), finding(2), finding(1)]) == [finding(1), finding(2)]
    assert record.add([finding(2), finding(3)]) == [finding(3)]
    again = Record(tmp_path)
    assert again.add([finding(1), finding(4)]) == [finding(4)]
    assert again.size == (tmp_path / "findings.jsonl").stat().st_size


def test_every_cut_of_the_record_is_a_shorter_one(tmp_path: Path) -> None:
    Record(tmp_path).add([finding(1), finding(2)])
    path = tmp_path / "findings.jsonl"
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        new = Record(tmp_path).add([finding(1), finding(2)])
        assert len(new) == 2 - whole[:cut].count(b"\n")
        assert path.read_bytes() == whole


def test_damage_before_the_last_line(tmp_path: Path) -> None:
    Record(tmp_path).add([finding(1), finding(2)])
    path = tmp_path / "findings.jsonl"
    path.write_bytes(path.read_bytes().replace(b"entry 1", b"entry 7"))
    Record(tmp_path)  # the detail is for people
    path.write_bytes(path.read_bytes().replace(b'"index":1', b'"index":7'))
    with pytest.raises(StateError, match="says nothing about any log"):
        Record(tmp_path)


def test_a_write_that_fails_half_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = Record(tmp_path)
    record.add([finding(1)])
    monkeypatch.setattr(os, "fsync", _full)
    with pytest.raises(StateUnavailable):
        record.add([finding(2)])
    monkeypatch.undo()
    assert record.add([finding(3)]) == [finding(3)]
    assert [line.count(b"entry") for line in (tmp_path / "findings.jsonl").read_bytes().splitlines()] == [1, 1]


@pytest.mark.parametrize("code", KINDS)
def test_findings_round_trip(code: str) -> None:
    made = Finding(code, URL, "example.com/log", "ö", NOON, {"a": [1, "b"]}, alarm=code == "match")
    assert Finding.from_json(made.to_json()) == made
    assert made.to_json()["seen_at"] == format_time(NOON)


# --- a follower that cannot write ---------------------------------------------------------------------------------------


async def test_a_disk_that_is_full_loses_nothing(desk: Desk, log: FakeLog, monkeypatch: pytest.MonkeyPatch) -> None:
    log.add_events([{"a": number} for number in range(300)])
    log.publish()
    async with desk.follower() as found:
        monkeypatch.setattr(book_module, "replace_file", _full)
        with pytest.raises(StateUnavailable, match="No space left"):
            await found.look()
        monkeypatch.undo()
        await found.look()
        assert found.status is Status.GOOD
        log.add_events([{"a": 1}])
        log.publish()
        await found.look()
    assert Book.open(desk.folder / "logs", desk.url).size() == log.size
