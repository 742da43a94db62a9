"""The guard file: never lowered, never half written, never somebody else's."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import multiprocessing
import os
import random
import stat
import threading
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import ModuleType

import pytest

from muniment.errors import FormatError
from muniment.hashing import EMPTY_ROOT, RootHash
from muniment_server.errors import GuardRefused, GuardUnavailable
from muniment_server.write import guard as module
from muniment_server.write.guard import BLOCK, FILE_SIZE, SLOT, Guard, Guarded, TreeHead, copies_of

ORIGIN, KEY_ID = "example.com/log", b"\x01\x02\x03\x04"


def root_of(size: int) -> RootHash:
    return RootHash(sha256(b"%d" % size).digest()) if size else EMPTY_ROOT


@pytest.fixture
def guard(tmp_path: Path) -> Guard:
    return Guard(tmp_path / "guards" / "log.guard")


@pytest.fixture
def made(guard: Guard) -> Guarded:
    return guard.create(ORIGIN, KEY_ID)


def put(guard: Guard, guard_id: str, size: int, root: RootHash) -> bool:
    """Raise a guard to a head that extends what it holds."""
    return guard.swap(guard_id, TreeHead(size, root), {Guard(guard.path).read().head})[1]


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
    assert guard.path.stat().st_size == FILE_SIZE
    assert [path.name for path in guard.path.parent.iterdir()] == ["log.guard"], "no temporary file is left"
    assert stat.S_IMODE(guard.path.parent.stat().st_mode) == 0o700


def test_making_it_again_changes_nothing(guard: Guard, made: Guarded):
    put(guard, made.guard_id, 5, root_of(5))
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
    put(guard, made.guard_id, 2**63 - 1, root_of(1))
    assert (guard.read().origin, guard.read().size) == (origin, 2**63 - 1)


# --- recording ----------------------------------------------------------------------------------------------------------


def test_slots_are_written_in_turn(guard: Guard, made: Guarded):
    before = guard.path.read_bytes()
    for count, size in enumerate([1, 2, 7, 300, 2**40], 1):
        assert put(guard, made.guard_id, size, root_of(size))
        data = guard.path.read_bytes()
        assert len(data) == FILE_SIZE
        written, other = copies_of(data)[count % 2], copies_of(data)[1 - count % 2]
        assert other == copies_of(before)[1 - count % 2], "the other slot stays"
        assert written[0] == written[1], "and there are two copies of each"
        found = Guarded.decode(written[0])
        assert found == guard.read()
        assert (found.size, found.root, found.sequence, found.guard_id) == (size, root_of(size), count, made.guard_id)
        before = data


def test_it_is_raised_only_from_what_the_caller_proved(guard: Guard, made: Guarded):
    put(guard, made.guard_id, 10, root_of(10))
    before, held = guard.path.read_bytes(), guard.read()
    for new in (TreeHead(0, EMPTY_ROOT), TreeHead(9, root_of(9)), TreeHead(10, root_of(11)), TreeHead(11, root_of(11))):
        for below in ((), {TreeHead(9, root_of(9))}, {TreeHead(10, root_of(9))}, {new}):
            assert guard.swap(made.guard_id, new, below) == (held, False)
    assert guard.path.read_bytes() == before


def test_a_head_that_the_guard_extends_may_be_signed_and_lowers_nothing(guard: Guard, made: Guarded):
    put(guard, made.guard_id, 10, root_of(10))
    before, held = guard.path.read_bytes(), guard.read()
    assert guard.swap(made.guard_id, TreeHead(9, root_of(9)), (), above=True) == (held, True)
    assert guard.swap(made.guard_id, TreeHead(10, root_of(10)), ()) == (held, True)
    assert guard.swap(made.guard_id, TreeHead(10, root_of(10)), {held.head}) == (held, True)
    assert guard.path.read_bytes() == before


@pytest.mark.parametrize("size", [0, 5, 10, 11])
def test_a_foreign_guard_is_refused_at_any_size(guard: Guard, made: Guarded, size: int):
    put(guard, made.guard_id, 10, root_of(10))
    before = guard.path.read_bytes()
    assert code_of(lambda: put(guard, "0" * 32, size, root_of(size))) == "guard_foreign"
    assert guard.path.read_bytes() == before


def test_every_value_is_on_disk_before_it_counts(guard: Guard, monkeypatch: pytest.MonkeyPatch):
    steps: list[str] = []
    real = {name: getattr(os, name) for name in ("pwrite", "fdatasync", "fsync", "link", "close")}
    for name, function in real.items():
        monkeypatch.setattr(os, name, lambda *a, name=name, function=function: (steps.append(name), function(*a))[1])
    made = guard.create(ORIGIN, KEY_ID)
    assert steps.index("fsync") < steps.index("link") < len(steps) - 1 - steps[::-1].index("fsync"), steps
    held = made.head
    for size in (1, 2, 3):
        steps.clear()
        new = TreeHead(size, root_of(size))
        guard.swap(made.guard_id, new, {held})
        assert steps == ["pwrite", "pwrite", "fdatasync", "close"]
        held = new
    steps.clear()
    guard.swap(made.guard_id, TreeHead(2, root_of(2)), (), above=True)
    assert steps == ["pwrite", "pwrite", "fdatasync", "close"], "another process may have been killed before its sync"


@pytest.mark.parametrize("call", ["pwrite", "fdatasync"])
def test_a_disk_that_fails_refuses(guard: Guard, made: Guarded, monkeypatch: pytest.MonkeyPatch, call: str):
    put(guard, made.guard_id, 1, root_of(1))

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, call, fail)
    assert code_of(lambda: put(guard, made.guard_id, 2, root_of(2))) == "guard_unwritable"
    monkeypatch.undo()
    assert guard.read().size in (1, 2)


def test_a_short_write_refuses(guard: Guard, made: Guarded, monkeypatch: pytest.MonkeyPatch):
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, at: real(descriptor, data[:100], at))
    with pytest.raises(GuardUnavailable):
        put(guard, made.guard_id, 1, root_of(1))
    monkeypatch.undo()
    assert guard.read() == made, "the other slot is as it was"
    put(guard, made.guard_id, 1, root_of(1))


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE])
def test_a_file_that_cannot_be_opened_for_want_of_descriptors_is_tried_again(
    guard: Guard, made: Guarded, monkeypatch: pytest.MonkeyPatch, code: int
):
    def none_left(*_: object) -> int:
        raise OSError(code, "Too many open files")

    monkeypatch.setattr(os, "open", none_left)
    with pytest.raises(GuardUnavailable):
        guard.swap(made.guard_id, TreeHead(1, root_of(1)), {made.head})
    monkeypatch.undo()
    assert guard.swap(made.guard_id, TreeHead(1, root_of(1)), {made.head})[1]


def test_only_a_write_that_failed_is_final(guard: Guard, made: Guarded, monkeypatch: pytest.MonkeyPatch):
    """What is met before anything is written may be undone, and then the writer goes on."""
    kept = guard.path.read_bytes()

    def swap() -> None:
        guard.swap(made.guard_id, TreeHead(1, root_of(1)), {made.head})

    for spoil in (lambda: None, lambda: guard.path.write_bytes(b""), lambda: os.mkfifo(guard.path)):
        guard.path.unlink()
        spoil()
        with pytest.raises(GuardRefused) as refused:
            swap()
        assert not refused.value.final
        guard.path.unlink(missing_ok=True)
        guard.path.write_bytes(kept)
    monkeypatch.setattr(os, "fdatasync", lambda _: (_ for _ in ()).throw(OSError(errno.EIO, "lost")))
    with pytest.raises(GuardRefused) as refused:
        swap()
    assert refused.value.final


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_not_for_good(guard: Guard, made: Guarded, monkeypatch: pytest.MonkeyPatch, number: int):
    def full(*_: object) -> int:
        raise OSError(number, "full")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(GuardUnavailable):
        put(guard, made.guard_id, 1, root_of(1))
    monkeypatch.undo()
    put(guard, made.guard_id, 1, root_of(1))
    assert guard.read().size == 1


def test_a_failed_sync_is_for_good(guard: Guard, made: Guarded, monkeypatch: pytest.MonkeyPatch):
    def lost(_: int) -> None:
        raise OSError(errno.EIO, "lost")

    monkeypatch.setattr(os, "fdatasync", lost)
    assert code_of(lambda: put(guard, made.guard_id, 1, root_of(1))) == "guard_unwritable"


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
    assert guard.path.stat().st_size == FILE_SIZE


def record_all(path: str, guard_id: str, sizes: list[int]) -> None:
    """The work of one process: any smaller head is one that this one extends."""
    guard = Guard(Path(path))
    for size in sizes:
        below = {TreeHead(smaller, root_of(smaller)) for smaller in range(size)}
        found, durable = guard.swap(guard_id, TreeHead(size, root_of(size)), below)
        if durable is not (found.size == size) or found.size < size or guard.read().size < found.size:
            raise AssertionError("the guard went back")


def test_the_lock_survives_another_descriptor_being_closed(guard: Guard, made: Guarded):
    """As with flock; POSIX record locks go away when the process closes any descriptor of the file."""
    with guard._locked(os.O_RDWR):
        guard.path.read_bytes()
        started, done = threading.Event(), threading.Event()

        def other() -> None:
            started.set()
            guard.swap(made.guard_id, TreeHead(1, root_of(1)), {made.head})
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


# --- torn writes and rot ------------------------------------------------------------------------------------------------


def test_a_torn_write_leaves_one_of_the_two_heads(guard: Guard, made: Guarded):
    """Cut the write of the newer slot at every byte of either copy, over older content: one of the two heads is read."""
    for count in (1, 2, 3):
        before = guard.path.read_bytes()
        put(guard, made.guard_id, 10 * count, root_of(10 * count))
        after = guard.path.read_bytes()
        for copy in (0, BLOCK):
            at = copy + SLOT * (count % 2)
            for cut in range(SLOT + 1):
                guard.path.write_bytes(after[: at + cut] + before[at + cut :])
                whole = copy or after[: at + cut] + before[at + cut : at + SLOT] == after[: at + SLOT]
                found = Guard(guard.path)
                assert found.read().size == 10 * (count if whole else count - 1), f"cut at {cut} of the copy at {copy}"
                if cut % 128 == 0:  # and what is written next mends it
                    for more in (1, 2):
                        put(found, made.guard_id, 1000 + cut + more, root_of(cut))
                    assert {len(set(pair)) for pair in copies_of(guard.path.read_bytes())} == {1}
        guard.path.write_bytes(after)


def test_copies_that_land_in_any_order_leave_one_of_the_two_heads(guard: Guard, made: Guarded):
    put(guard, made.guard_id, 1, root_of(1))
    before = guard.path.read_bytes()
    put(guard, made.guard_id, 2, root_of(2))
    after = guard.path.read_bytes()
    guard.path.write_bytes(bytes(512) + after[512:SLOT] + before[SLOT:])
    assert Guard(guard.path).read().size == 1, "the first copy is torn, the second was not written"
    guard.path.write_bytes(bytes(512) + after[512:])
    assert Guard(guard.path).read().size == 2, "the second copy is whole"


def test_every_flipped_byte_of_a_slot_is_noticed_and_survived(guard: Guard, made: Guarded):
    put(guard, made.guard_id, 1, root_of(1))
    put(guard, made.guard_id, 2, root_of(2))
    data = guard.path.read_bytes()
    for at in (*range(2 * SLOT), *range(BLOCK, BLOCK + 2 * SLOT)):
        for value in {data[at] ^ 1, data[at] ^ 0xFF, 0} - {data[at]}:
            poke(guard, at, bytes([value]))
            assert Guard(guard.path).read().size == 2, f"byte {at} as {value}"
        poke(guard, at, data[at : at + 1])


@pytest.mark.parametrize("slot", [0, 1])
def test_a_slot_of_which_both_copies_rotted_is_refused(guard: Guard, made: Guarded, slot: int):
    """It may have been the newer one: to start on the other one could sign a second history."""
    put(guard, made.guard_id, 1, root_of(1))
    put(guard, made.guard_id, 2, root_of(2))
    data = guard.path.read_bytes()
    for one, two in [(0, 0), (40, 200), (SLOT - 1, 3)]:
        guard.path.write_bytes(data)
        for at in (slot * SLOT + one, BLOCK + slot * SLOT + two):
            poke(guard, at, bytes([data[at] ^ 1]))
        damaged = guard.path.read_bytes()
        fresh = Guard(guard.path)
        assert code_of(fresh.read) == "guard_unreadable"
        assert code_of(lambda fresh=fresh: fresh.swap(made.guard_id, TreeHead(3, root_of(3)), ())) == "guard_unreadable"
        assert guard.path.read_bytes() == damaged
    for start in (slot * SLOT, BLOCK + slot * SLOT):
        poke(guard, start, bytes(SLOT))
    assert code_of(Guard(guard.path).read) == "guard_unreadable", "a slot is never empty"


# --- one register -------------------------------------------------------------------------------------------------------


def test_an_older_copy_is_refused_by_a_process_that_saw_the_newer_one(guard: Guard, made: Guarded):
    put(guard, made.guard_id, 1, root_of(1))
    old = guard.path.read_bytes()
    put(guard, made.guard_id, 2, root_of(2))
    guard.path.write_bytes(old)
    assert code_of(guard.read) == "guard_replaced"
    new = TreeHead(3, root_of(3))
    assert code_of(lambda: guard.swap(made.guard_id, new, {TreeHead(1, root_of(1))})) == "guard_replaced"
    assert guard.path.read_bytes() == old
    other = Guard(guard.path)
    put(other, made.guard_id, 3, root_of(3))  # the number that this process wrote itself, with another head
    assert code_of(guard.read) == "guard_replaced"
    guard.path.unlink()
    stranger = Guard(guard.path).create(ORIGIN, KEY_ID)
    assert guard.read() == stranger, "for the caller to refuse, unless the database names it"
    guard.path.write_bytes(old)
    assert code_of(guard.read) == "guard_replaced", "also when another guard stood there in between"


def test_a_failed_write_does_not_count_as_seen(guard: Guard, made: Guarded, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "pwrite", lambda *_: 0)
    with pytest.raises(GuardUnavailable):
        guard.swap(made.guard_id, TreeHead(1, root_of(1)), {made.head})
    monkeypatch.undo()
    assert guard.read() == made
    assert guard.swap(made.guard_id, TreeHead(1, root_of(1)), {made.head})[1]


@pytest.mark.parametrize("how", ["replaced", "removed"])
def test_a_file_that_is_replaced_while_it_is_written_does_not_count(
    guard: Guard, made: Guarded, monkeypatch: pytest.MonkeyPatch, how: str
):
    real = os.fdatasync

    def replaced(descriptor: int) -> None:
        real(descriptor)
        if how == "replaced":
            guard.path.with_suffix(".new").write_bytes(guard.path.read_bytes())
            guard.path.with_suffix(".new").replace(guard.path)
        else:
            guard.path.unlink()

    monkeypatch.setattr(os, "fdatasync", replaced)
    assert code_of(lambda: guard.swap(made.guard_id, TreeHead(1, root_of(1)), {made.head})) == "guard_replaced"


def test_the_file_is_for_its_owner_alone_whatever_the_umask(tmp_path: Path):
    for umask in (0, 0o022, 0o077):
        before = os.umask(umask)
        try:
            guard = Guard(tmp_path / f"{umask}" / "log.guard")
            guard.create(ORIGIN, KEY_ID)
        finally:
            os.umask(before)
        assert stat.S_IMODE(guard.path.stat().st_mode) == 0o600


def test_a_fifo_in_its_place_is_refused_and_hangs_nothing(guard: Guard, made: Guarded):
    guard.path.unlink()
    os.mkfifo(guard.path)
    assert code_of(guard.read) == "guard_unreadable"
    assert code_of(lambda: guard.swap(made.guard_id, TreeHead(1, root_of(1)), {made.head})) == "guard_unreadable"


@pytest.mark.parametrize("kind", [fcntl.LOCK_SH, fcntl.LOCK_EX])
def test_a_lock_that_is_held_for_long_is_told_and_not_waited_for(guard: Guard, made: Guarded, kind: int):
    hasty = Guard(guard.path, lock_seconds=0.05)
    with guard.path.open("rb") as file:
        fcntl.flock(file, kind)
        if kind == fcntl.LOCK_EX:
            with pytest.raises(GuardUnavailable, match="lock"):
                hasty.read()
        else:
            assert hasty.read() == made
        with pytest.raises(GuardUnavailable, match="lock"):
            hasty.swap(made.guard_id, TreeHead(1, root_of(1)), {made.head})
    assert hasty.swap(made.guard_id, TreeHead(1, root_of(1)), {made.head})[1]


# --- the first format ---------------------------------------------------------------------------------------------------


def first_format(*slots: Guarded | None) -> bytes:
    """A file as it was written by versions that kept one copy of each slot."""
    return b"".join(slot.encode("muniment-guard v1") if slot else bytes(SLOT) for slot in slots)


def number(made: Guarded, sequence: int) -> Guarded:
    return replace(made, sequence=sequence, size=sequence, root=root_of(sequence))


def test_a_file_of_the_first_format_is_taken_over_by_the_first_write(guard: Guard, made: Guarded):
    for slots, last in [((made, None), 0), ((made, number(made, 1)), 1), ((number(made, 2), number(made, 1)), 2)]:
        guard.path.write_bytes(first_format(*slots))
        fresh = Guard(guard.path)
        assert fresh.read() == number(made, last)
        assert guard.path.stat().st_size == 2 * SLOT, "reading changes nothing"
        new = TreeHead(9, root_of(9))
        assert fresh.swap(made.guard_id, new, ()) == (number(made, last), False)
        assert guard.path.stat().st_size == 2 * SLOT
        assert fresh.swap(made.guard_id, new, {number(made, last).head})[1]
        assert (fresh.read().head, fresh.read().sequence) == (new, last + 1)
        assert {len(set(pair)) for pair in copies_of(guard.path.read_bytes())} == {1}
        assert Guard(guard.path).read() == fresh.read()


def test_a_damaged_slot_of_the_first_format_is_refused(guard: Guard, made: Guarded):
    """There is no second copy that tells a torn write from one that rotted."""
    whole = first_format(number(made, 2), number(made, 1))
    for at in (3, 100, SLOT + 3, SLOT + 100):
        guard.path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert code_of(Guard(guard.path).read) == "guard_unreadable", f"byte {at}"
    for slots in ((number(made, 2), None), (None, number(made, 1))):
        guard.path.write_bytes(first_format(*slots))
        assert code_of(Guard(guard.path).read) == "guard_unreadable"


def in_the_old_release(data: bytes) -> Guarded | None:
    """What a version that knows the first format alone takes: the newer one of the slots that it can read."""
    found = []
    for slot in (data[:SLOT], data[SLOT : 2 * SLOT]):
        with contextlib.suppress(FormatError):
            found.append(Guarded.decode(slot, "muniment-guard v1"))
    return max(found, key=lambda slot: slot.sequence, default=None)


@pytest.mark.parametrize("newer", [0, 1])
def test_a_crash_at_any_write_of_the_take_over_loses_nothing(
    guard: Guard, made: Guarded, monkeypatch: pytest.MonkeyPatch, newer: int
):
    """Cut each of its writes at every 64 bytes: the head before, or the new one, is read, also by the release before."""
    slots = [number(made, 2 - newer), number(made, 1 + newer) if newer else number(made, 1)]
    last = max(slots, key=lambda slot: slot.sequence)
    old, real, new = first_format(*slots), os.pwrite, TreeHead(9, root_of(9))
    for which in range(6):
        for cut in range(0, BLOCK + 1, 64):
            guard.path.write_bytes(old)
            calls = 0

            def cut_short(descriptor: int, data: bytes, at: int, which=which, cut=cut) -> int:
                nonlocal calls
                calls += 1
                if calls <= which:
                    return real(descriptor, data, at)
                if calls == which + 1:
                    real(descriptor, data[:cut], at)
                raise KeyboardInterrupt  # the power went

            monkeypatch.setattr(os, "pwrite", cut_short)
            with contextlib.suppress(KeyboardInterrupt):
                Guard(guard.path).swap(made.guard_id, new, {last.head})
            monkeypatch.undo()
            assert Guard(guard.path).read().head in (last.head, new), (which, cut)
            assert in_the_old_release(guard.path.read_bytes()) in (None, last), (which, cut)
            for size in (10, 11):
                put(Guard(guard.path), made.guard_id, size, root_of(size))
                assert Guard(guard.path).read().size == size
            assert {len(set(pair)) for pair in copies_of(guard.path.read_bytes())} == {1}


def test_what_an_older_release_wrote_after_a_take_over_that_was_cut_short_counts(guard: Guard, made: Guarded):
    """The second block is behind by then; and a damaged slot is not mended from it."""
    behind = 2 * (2 * number(made, 2).encode()).ljust(BLOCK, b"\0")
    for slots, last in [((number(made, 4), number(made, 3)), 4), ((number(made, 4), number(made, 5)), 5)]:
        whole = first_format(*slots) + behind[2 * SLOT :]
        guard.path.write_bytes(whole)
        assert Guard(guard.path).read() == number(made, last)
        for at in (100, SLOT + 100):
            guard.path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            assert code_of(Guard(guard.path).read) == "guard_unreadable"
    half = number(made, 2).encode() + number(made, 3).encode("muniment-guard v1") + behind[2 * SLOT :]
    guard.path.write_bytes(half)
    assert Guard(guard.path).read() == number(made, 3)


def test_a_version_that_compares_sizes_only_does_not_read_the_file(guard: Guard, made: Guarded):
    """It would raise the guard without a proof. It looks at the two slots in the first 2,048 bytes."""
    put(guard, made.guard_id, 1, root_of(1))
    data = guard.path.read_bytes()
    for slot in (data[:SLOT], data[SLOT : 2 * SLOT]):
        with pytest.raises(FormatError):
            Guarded.decode(slot, "muniment-guard v1")


# --- damage -------------------------------------------------------------------------------------------------------------


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
        slot.replace(b"v2", b"v1"),
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
    assert code_of(lambda: put(guard, made.guard_id, 1, root_of(1))) == "guard_unreadable"
    assert code_of(lambda: guard.create(ORIGIN, KEY_ID)) == "guard_unreadable"
    assert guard.path.read_bytes() == content, "a damaged guard is evidence: nothing overwrites it"


@pytest.mark.parametrize(("module", "call"), [(os, "pread"), (os, "fstat"), (fcntl, "flock")])
def test_a_call_that_fails_is_a_refusal(
    guard: Guard, made: Guarded, monkeypatch: pytest.MonkeyPatch, module: ModuleType, call: str
):
    def lost(*_: object) -> None:
        raise OSError(errno.EIO, "lost")

    before = guard.path.read_bytes()
    monkeypatch.setattr(module, call, lost)
    for work in (guard.read, lambda: guard.swap(made.guard_id, TreeHead(1, root_of(1)), {made.head})):
        with pytest.raises(GuardRefused) as refused:
            work()
        assert (refused.value.code, refused.value.final) == ("guard_unreadable", False)
    monkeypatch.undo()
    assert guard.path.read_bytes() == before


def test_a_missing_file_is_refused_and_not_made(guard: Guard, made: Guarded):
    guard.path.unlink()
    assert code_of(guard.read) == "guard_missing"
    assert code_of(lambda: put(guard, made.guard_id, 1, root_of(1))) in ("guard_missing", "guard_unwritable")
    assert not guard.path.exists()


def test_a_file_that_cannot_be_read_is_refused(guard: Guard, made: Guarded, monkeypatch: pytest.MonkeyPatch):
    def denied(*_: object) -> int:
        raise PermissionError(13, "Permission denied")  # a test that runs as root cannot have the real one

    monkeypatch.setattr(module.os, "open", denied)
    assert code_of(guard.read) == "guard_unreadable"
    assert code_of(lambda: guard.swap(made.guard_id, TreeHead(1, root_of(1)), {made.head})) == "guard_unwritable"


def test_a_folder_in_its_place_is_refused(guard: Guard):
    guard.path.mkdir(parents=True)
    assert code_of(guard.read) == "guard_unreadable"


def test_a_link_of_folders_may_hold_it(tmp_path: Path):
    """The guard volume is often mounted elsewhere."""
    (tmp_path / "volume").mkdir()
    (tmp_path / "guard").symlink_to(tmp_path / "volume")
    guard = Guard(tmp_path / "guard" / "log.guard")
    made = guard.create(ORIGIN, KEY_ID)
    put(guard, made.guard_id, 1, root_of(1))
    assert Guard(tmp_path / "volume" / "log.guard").read().size == 1
