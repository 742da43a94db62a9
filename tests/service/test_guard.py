"""The guard file: never lowered, never half written, never somebody else's."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import stat
import threading
from hashlib import sha256
from pathlib import Path

import pytest

from muniment.errors import FormatError
from muniment.hashing import EMPTY_ROOT, RootHash
from muniment_server import guard as module
from muniment_server.guard import SLOT, Guard, Guarded, GuardRefused, GuardUnavailable

ORIGIN, KEY_ID = "example.com/log", b"\x01\x02\x03\x04"


def root_of(size: int) -> RootHash:
    return RootHash(sha256(b"%d" % size).digest()) if size else EMPTY_ROOT


@pytest.fixture
def guard(tmp_path: Path) -> Guard:
    return Guard(tmp_path / "guards" / "log.guard")


@pytest.fixture
def made(guard: Guard) -> Guarded:
    return guard.create(ORIGIN, KEY_ID)


def code_of(work) -> str:
    with pytest.raises(GuardRefused) as caught:
        work()
    assert str(caught.value)
    return caught.value.code


# --- making it ----------------------------------------------------------------------------------------------------------


def test_a_new_guard_guards_the_empty_log(guard: Guard, made: Guarded):
    assert (made.origin, made.key_id, made.size, made.root, made.sequence) == (ORIGIN, KEY_ID, 0, EMPTY_ROOT, 0)
    assert len(made.guard_id) == 32
    assert guard.read() == made
    assert guard.path.stat().st_size == 2 * SLOT
    assert [path.name for path in guard.path.parent.iterdir()] == ["log.guard"], "no temporary file is left"
    assert stat.S_IMODE(guard.path.parent.stat().st_mode) == 0o700


def test_making_it_again_changes_nothing(guard: Guard, made: Guarded):
    guard.record(made.guard_id, 5, root_of(5))
    before = guard.path.read_bytes()
    again = guard.create("example.com/another", b"\xff" * 4)
    assert (again.guard_id, again.size, again.origin) == (made.guard_id, 5, ORIGIN)
    assert guard.path.read_bytes() == before


def test_two_guards_have_two_names(tmp_path: Path):
    made = [Guard(tmp_path / name).create(ORIGIN, KEY_ID).guard_id for name in "ab"]
    assert len(set(made)) == 2


def test_racing_creators_get_the_same_guard(guard: Guard):
    for _ in range(20):
        barrier, found = threading.Barrier(4), []

        def create(barrier=barrier, found=found) -> None:
            barrier.wait()
            found.append(guard.create(ORIGIN, KEY_ID))

        threads = [threading.Thread(target=create) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 4
        assert len(set(found)) == 1
        assert len(list(guard.path.parent.iterdir())) == 1
        guard.path.unlink()


def test_a_crash_while_making_it_leaves_no_guard(guard: Guard, monkeypatch: pytest.MonkeyPatch):
    def crash(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "link", crash)
    with pytest.raises(OSError, match="no space left"):
        guard.create(ORIGIN, KEY_ID)
    monkeypatch.undo()
    assert not list(guard.path.parent.iterdir())
    assert guard.create(ORIGIN, KEY_ID).size == 0


def test_the_longest_origin_fits(tmp_path: Path):
    guard = Guard(tmp_path / "g")
    origin = "ñ" * 127 + "x"
    made = guard.create(origin, KEY_ID)
    guard.record(made.guard_id, 2**63 - 1, root_of(1))
    assert (guard.read().origin, guard.read().size) == (origin, 2**63 - 1)


# --- recording ----------------------------------------------------------------------------------------------------------


def test_slots_are_written_in_turn(guard: Guard, made: Guarded):
    slots = [guard.path.read_bytes()[:SLOT], bytes(SLOT)]
    for count, size in enumerate([1, 2, 7, 300, 2**40], 1):
        guard.record(made.guard_id, size, root_of(size))
        data = guard.path.read_bytes()
        assert len(data) == 2 * SLOT
        written = count % 2
        assert data[SLOT * (1 - written) :][:SLOT] == slots[1 - written], "the other slot stays"
        slots = [data[:SLOT], data[SLOT:]]
        found = Guarded.decode(slots[written])
        assert found == guard.read()
        assert (found.size, found.root, found.sequence, found.guard_id) == (size, root_of(size), count, made.guard_id)


def test_it_is_never_lowered(guard: Guard, made: Guarded):
    guard.record(made.guard_id, 10, root_of(10))
    before = guard.path.read_bytes()
    for size in (0, 1, 9):
        guard.record(made.guard_id, size, root_of(size))  # another writer, who extended ours, was quicker
    guard.record(made.guard_id, 10, root_of(10))
    assert guard.path.read_bytes() == before


def test_another_root_of_the_same_size_is_refused(guard: Guard, made: Guarded):
    assert code_of(lambda: guard.record(made.guard_id, 0, root_of(1))) == "guard_root"
    guard.record(made.guard_id, 10, root_of(10))
    before = guard.path.read_bytes()
    assert code_of(lambda: guard.record(made.guard_id, 10, root_of(11))) == "guard_root"
    assert guard.path.read_bytes() == before


@pytest.mark.parametrize("size", [0, 5, 10, 11])
def test_a_foreign_guard_is_refused_at_any_size(guard: Guard, made: Guarded, size: int):
    guard.record(made.guard_id, 10, root_of(10))
    before = guard.path.read_bytes()
    assert code_of(lambda: guard.record("0" * 32, size, root_of(size))) == "guard_foreign"
    assert guard.path.read_bytes() == before


def test_every_record_is_on_disk_before_it_returns(guard: Guard, monkeypatch: pytest.MonkeyPatch):
    steps: list[str] = []
    real = {name: getattr(os, name) for name in ("pwrite", "fdatasync", "fsync", "link", "close")}
    for name, function in real.items():
        monkeypatch.setattr(os, name, lambda *a, name=name, function=function: (steps.append(name), function(*a))[1])
    made = guard.create(ORIGIN, KEY_ID)
    assert steps.index("fsync") < steps.index("link") < len(steps) - 1 - steps[::-1].index("fsync"), steps
    for size in (1, 2, 3):
        steps.clear()
        guard.record(made.guard_id, size, root_of(size))
        assert steps == ["pwrite", "fdatasync", "close"]
    steps.clear()
    guard.record(made.guard_id, 2, root_of(2))
    assert steps == ["close"]


@pytest.mark.parametrize("call", ["pwrite", "fdatasync"])
def test_a_disk_that_fails_refuses(guard: Guard, made: Guarded, monkeypatch: pytest.MonkeyPatch, call: str):
    guard.record(made.guard_id, 1, root_of(1))

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, call, fail)
    assert code_of(lambda: guard.record(made.guard_id, 2, root_of(2))) == "guard_unwritable"
    monkeypatch.undo()
    assert guard.read().size in (1, 2)


def test_a_short_write_refuses(guard: Guard, made: Guarded, monkeypatch: pytest.MonkeyPatch):
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, at: real(descriptor, data[:100], at))
    with pytest.raises(GuardUnavailable):
        guard.record(made.guard_id, 1, root_of(1))
    monkeypatch.undo()
    assert guard.read() == made, "the other slot is as it was"
    guard.record(made.guard_id, 1, root_of(1))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_not_for_good(guard: Guard, made: Guarded, monkeypatch: pytest.MonkeyPatch, number: int):
    def full(*_: object) -> int:
        raise OSError(number, "full")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(GuardUnavailable):
        guard.record(made.guard_id, 1, root_of(1))
    monkeypatch.undo()
    guard.record(made.guard_id, 1, root_of(1))
    assert guard.read().size == 1


def test_a_failed_sync_is_for_good(guard: Guard, made: Guarded, monkeypatch: pytest.MonkeyPatch):
    def lost(_: int) -> None:
        raise OSError(errno.EIO, "lost")

    monkeypatch.setattr(os, "fdatasync", lost)
    assert code_of(lambda: guard.record(made.guard_id, 1, root_of(1))) == "guard_unwritable"


def test_what_another_process_wrote_is_made_durable_again(guard: Guard, made: Guarded, monkeypatch: pytest.MonkeyPatch):
    """It may have been killed between writing and syncing: its slot is read from memory, and gone at a power cut."""
    calls: list[str] = []
    write, sync = os.pwrite, os.fdatasync
    monkeypatch.setattr(os, "pwrite", lambda *a: (calls.append("write"), write(*a))[1])
    monkeypatch.setattr(os, "fdatasync", lambda *a: (calls.append("sync"), sync(*a))[1])
    guard.record(made.guard_id, 1, root_of(1))
    assert calls == ["write", "sync"]
    guard.record(made.guard_id, 1, root_of(1))
    assert calls == ["write", "sync"], "its own slot is durable"
    calls.clear()
    other = Guard(guard.path)
    other.record(made.guard_id, 1, root_of(1))
    assert calls == ["write", "sync"]
    assert guard.read().sequence == 1


def test_processes_that_record_at_once_keep_the_largest(guard: Guard, made: Guarded):
    sizes = list(range(1, 401))
    shuffled = random.Random(7).sample(sizes, len(sizes))
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=record_all, args=(str(guard.path), made.guard_id, shuffled[part::3]))
        for part in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert (guard.read().size, guard.read().root) == (400, root_of(400))
    assert guard.path.stat().st_size == 2 * SLOT


def record_all(path: str, guard_id: str, sizes: list[int]) -> None:
    """The work of one process."""
    guard = Guard(Path(path))
    for size in sizes:
        guard.record(guard_id, size, root_of(size))
        if guard.read().size < size:
            raise AssertionError("the guard went back")


def test_the_lock_survives_another_descriptor_being_closed(guard: Guard, made: Guarded):
    """As with flock; POSIX record locks go away when the process closes any descriptor of the file."""
    with guard._locked(os.O_RDWR):
        guard.path.read_bytes()
        started, done = threading.Event(), threading.Event()

        def other() -> None:
            started.set()
            guard.record(made.guard_id, 1, root_of(1))
            done.set()

        thread = threading.Thread(target=other)
        thread.start()
        started.wait()
        assert not done.wait(0.2)
    thread.join(10)
    assert done.is_set()
    assert guard.read().size == 1


def poke(guard: Guard, at: int, data: bytes) -> None:
    """Overwrite a part of the file."""
    descriptor = os.open(guard.path, os.O_WRONLY)
    os.pwrite(descriptor, data, at)
    os.close(descriptor)


# --- damage -------------------------------------------------------------------------------------------------------------


def test_a_torn_write_leaves_the_head_before_it(guard: Guard, made: Guarded):
    """Cut the write of the newer slot at every byte, over zeros and over an older slot: one of the two heads is read."""
    for count in (1, 2, 3):
        before = guard.path.read_bytes()
        guard.record(made.guard_id, 10 * count, root_of(10 * count))
        after = guard.path.read_bytes()
        at = SLOT * (count % 2)
        for cut in range(SLOT + 1):
            torn = after[at : at + cut] + before[at + cut : at + SLOT]
            poke(guard, at, torn)
            whole = torn == after[at : at + SLOT]
            assert guard.read().size == 10 * (count if whole else count - 1), f"cut at {cut}"
            if cut % 128 == 0:  # and the next record mends it
                guard.record(made.guard_id, 1000 + cut, root_of(cut))
                assert guard.read().size == 1000 + cut
                guard.path.write_bytes(before)
        guard.path.write_bytes(after)


def test_sectors_that_land_in_any_order_leave_the_head_before_them(guard: Guard, made: Guarded):
    guard.record(made.guard_id, 1, root_of(1))
    before = guard.path.read_bytes()
    guard.record(made.guard_id, 2, root_of(2))
    after = guard.path.read_bytes()
    guard.path.write_bytes(before[:0] + bytes(512) + after[512:SLOT] + before[SLOT:])
    assert guard.read().size == 1


def test_every_flipped_byte_of_a_slot_is_noticed(guard: Guard, made: Guarded):
    guard.record(made.guard_id, 1, root_of(1))
    guard.record(made.guard_id, 2, root_of(2))
    data = guard.path.read_bytes()
    for at in range(2 * SLOT):
        for value in {data[at] ^ 1, data[at] ^ 0xFF, 0} - {data[at]}:
            poke(guard, at, bytes([value]))
            expected = 1 if at < SLOT else 2
            assert guard.read().size == expected, f"byte {at} as {value}"
        poke(guard, at, data[at : at + 1])


def test_no_slot_decodes_from_other_bytes(made: Guarded):
    slot = made.encode()
    assert len(slot) == SLOT
    assert Guarded.decode(slot) == made
    text = slot.rstrip(b"\0")
    for other in (
        b"",
        bytes(SLOT),
        text,
        slot + b"\0",
        slot[:-1],
        b"\xff" * SLOT,
        text + b"\n",
        slot.replace(b"v1", b"v2"),
    ):
        with pytest.raises(FormatError):
            Guarded.decode(other)


def test_numbers_in_another_spelling_are_no_slot(made: Guarded):
    for old, new in (
        (b"\n0\nexample", b"\n00\nexample"),
        (b"\n0\nexample", b"\n+0\nexample"),
        (b"\n01020304\n", b"\n0102030A\n"),
    ):
        text = made.encode().rstrip(b"\0")
        assert old in text
        body = text.replace(old, new).rsplit(b"\n", 2)[0] + b"\n"
        with pytest.raises(FormatError):
            Guarded.decode((body + sha256(body).hexdigest().encode() + b"\n").ljust(SLOT, b"\0"))


@pytest.mark.parametrize("content", [b"", b"x", bytes(2 * SLOT), b"\xff" * 2 * SLOT, b"muniment-guard v1\n" * 100])
def test_a_file_without_an_intact_slot_is_refused(guard: Guard, made: Guarded, content: bytes):
    guard.path.write_bytes(content)
    assert code_of(guard.read) == "guard_unreadable"
    assert code_of(lambda: guard.record(made.guard_id, 1, root_of(1))) == "guard_unreadable"
    assert code_of(lambda: guard.create(ORIGIN, KEY_ID)) == "guard_unreadable"
    assert guard.path.read_bytes() == content, "a damaged guard is evidence: nothing overwrites it"


def test_a_missing_file_is_refused_and_not_made(guard: Guard, made: Guarded):
    guard.path.unlink()
    assert code_of(guard.read) == "guard_missing"
    assert code_of(lambda: guard.record(made.guard_id, 1, root_of(1))) in ("guard_missing", "guard_unwritable")
    assert not guard.path.exists()


def test_a_file_that_cannot_be_read_is_refused(guard: Guard, made: Guarded, monkeypatch: pytest.MonkeyPatch):
    def denied(*_: object) -> int:
        raise PermissionError(13, "Permission denied")  # a test that runs as root cannot have the real one

    monkeypatch.setattr(module.os, "open", denied)
    assert code_of(guard.read) == "guard_unreadable"
    assert code_of(lambda: guard.record(made.guard_id, 1, root_of(1))) == "guard_unwritable"


def test_a_folder_in_its_place_is_refused(guard: Guard):
    guard.path.mkdir(parents=True)
    assert code_of(guard.read) == "guard_unreadable"


def test_a_link_of_folders_may_hold_it(tmp_path: Path):
    """The guard volume is often mounted elsewhere."""
    (tmp_path / "volume").mkdir()
    (tmp_path / "guard").symlink_to(tmp_path / "volume")
    guard = Guard(tmp_path / "guard" / "log.guard")
    made = guard.create(ORIGIN, KEY_ID)
    guard.record(made.guard_id, 1, root_of(1))
    assert Guard(tmp_path / "volume" / "log.guard").read().size == 1
