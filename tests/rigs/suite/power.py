"""Power cuts: what is left of an instance on a disk when the machine stops at a random instant, with SQLite and with Postgres.

The instance lives on an ext4 in a file, and that file on an XFS with reflinks, so that one system call copies the disk as it is at
that instant; the copy is then mounted as after a reboot. Whoever counts acknowledgements is not on that disk: an acknowledgement
that was heard before the copy was begun must be in it.

What the copy holds: everything that ext4 had sent to its block device. What a program wrote and did not sync is still in the page
cache of the mounted ext4 (which is told to commit its journal only when somebody syncs), and is not in the copy. So a missing fsync,
or a missing fsync of a folder, loses data here as it does in a real power cut, and :func:`planted` shows that. The copy holds more
than a real disk might in one respect: writes that were sent and not yet flushed count as kept. So it does not show a file system that forgets
its flush, writes that a disk reorders between two flushes, nor torn sectors. And one sync of any file commits the journal of its
whole file system, which may hide a missing sync of a folder beside it: half of the seeds keep the guard on a disk of its own.
"""

from __future__ import annotations

import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from muniment.state import FileState
from tests.live import LiveServer
from tests.rigs import spoils
from tests.rigs.children import Child, Say, call
from tests.rigs.disks import Disks
from tests.rigs.http_load import http_writer
from tests.rigs.mounts import reflinks
from tests.rigs.rig import Context, FaultRig
from tests.rigs.workload import ORIGIN, Account, DataPaths, in_loop, init, log_create, recover, write

CUTS = 10  # of one seed
Writer = Callable[[Say], object]


# --- entries ------------------------------------------------------------------------------------------------------------


def appends(
    disks: Disks, seed: int, spoil: Callable[[], None] = lambda: None, cuts: int = CUTS
) -> Iterator[str | None]:
    """Cut the power while several callers append; yield what was lost after each cut, None when nothing was."""
    random_ = random.Random(seed)
    kind = random_.choice(("event", "raw"))
    with disks.mounted(kind):
        instance = disks.instance(disks.live, kind)

        def work(say: Say) -> None:
            spoil()
            in_loop(lambda say: write(instance, seed, say))(say)

        with Child(work, disks.output) as writer:
            yield from _cut_writer(disks, kind, writer, random_, cuts, writer.signal)


def _cut_writer(
    disks: Disks, kind: str, writer: Child, random_: random.Random, cuts: int, pause: Callable[[int], None]
) -> Iterator[str | None]:
    account = Account()
    for cut in range(cuts):
        heard = account.entries
        # Until something was acknowledged since the last cut, and then a random moment more; the first cut may fall into start-up.
        while cut and account.entries == heard and not writer.ended():
            account.add(writer.listen(0.002))
        account.add(writer.listen(random_.random() * 0.05))
        account.add(writer.hear())
        disks.take()
        pause(signal.SIGSTOP)
        yield _after(disks, kind, account, random_, f"cut{cut}")
        account.add(writer.hear())
        disks.context.done(0, acknowledged=account.entries - heard)
        pause(signal.SIGCONT)


def _after(disks: Disks, kind: str, account: Account, random_: random.Random, tag: str) -> str | None:
    """Reboot and judge; one time in four the power fails again while that goes on. Return what was lost."""
    account = Account(list(account.told))
    try:
        twice = random_.random() < 0.25
        if twice:
            _fail_again(disks, kind, account, random_)
        with disks.rebooted():
            instance = disks.instance(disks.cut, kind)
            if not (twice and disks.own_guard):  # then the guard's disk is the one of the first cut
                account.check_guard(instance)
            call(in_loop(lambda say: _recover(say, instance, account, tag)), disks.output)
    except AssertionError as error:
        return str(error)
    return None


async def _recover(say: Say, instance: DataPaths, account: Account, tag: str) -> None:
    say(await recover(instance, account, tag))


def _fail_again(disks: Disks, kind: str, account: Account, random_: random.Random) -> None:
    with disks.rebooted():
        instance = disks.instance(disks.cut, kind)
        with Child(in_loop(lambda say: write(instance, random_.randrange(10**9), say)), disks.output) as writer:
            account.add(writer.listen(random_.random() * 0.06))
            account.add(writer.hear())
            disks.take_again()
        if disks.own_guard:  # it stays as the killed writer left it, which can only be newer: bring no false alarm
            shutil.rmtree(disks.cut.with_name("cut-guard"))
    disks.use_second()
    disks.context.done(0, twice=1)


def served(disks: Disks, seed: int, cuts: int = CUTS) -> Iterator[str | None]:
    """Likewise, with the real server and callers over HTTP."""
    random_ = random.Random(seed)
    with disks.mounted("event"):
        instance = disks.instance(disks.live)
        beside = Path(tempfile.mkdtemp(dir=disks.context.folder)) / "data"  # what it prints is not on the disk
        beside.symlink_to(instance.data)
        server = LiveServer(beside, env=instance.environment())
        try:
            url = server.wait().url
            with Child(lambda say: http_writer(url, seed, say), disks.output) as writer:
                yield from _cut_writer(disks, "event", writer, random_, cuts, server.process.send_signal)
        finally:
            server.stop(signal.SIGKILL)


# --- set-up -------------------------------------------------------------------------------------------------------------


def makes(disks: Disks, seed: int, spoil: Callable[[], None] = lambda: None, cuts: int = CUTS) -> Iterator[str | None]:
    """Cut the power while `init` runs, or `log create`. Run again it must finish, with the same key if it had said so before."""
    random_ = random.Random(seed)
    adds = bool(random_.randrange(2)) and spoil.__name__ == "<lambda>"
    with disks.mounted("event" if adds else None):
        took = 0.1
        for cut in range(cuts):
            name = "data" if adds else f"data-{cut}"
            if not adds:
                disks.make_database(name)
            work = _maker(disks.instance(disks.live, name=name), f"log-{cut}" if adds else None, spoil)
            with Child(work, disks.output) as child:
                started = time.monotonic()
                said = child.listen(random_.random() * 1.1 * took)
                if disks.own_guard:  # two copies are not one instant: a key must not be made in between
                    child.pause()
                said += child.hear()
                disks.take()
                child.signal(signal.SIGCONT)
                child.finish()
                took = 0.5 * took + 0.5 * (time.monotonic() - started)
            yield _made_again(disks, name, f"log-{cut}" if adds else None, said)


def _maker(instance: DataPaths, log: str | None, spoil: Callable[[], None]) -> Writer:
    def work(say: Say) -> None:
        spoil()
        say(log_create(instance, log) if log else init(instance))

    return work


def _made_again(disks: Disks, name: str, log: str | None, said: list[str]) -> str | None:
    try:
        with disks.rebooted():
            instance = disks.instance(disks.cut, name=name)
            (vkey,) = call(_maker(instance, log, lambda: None), disks.output)
            if said and said != [vkey]:
                return f"LOST: the key {said[0]} was given out, now it is {vkey}"
            call(in_loop(lambda say: _recover(say, instance, Account(), "made")), disks.output)
    except AssertionError as error:
        return str(error)
    disks.context.done(0, acknowledged_keys=len(said))
    return None


# --- the client's memory ------------------------------------------------------------------------------------------------


def remembers(
    disks: Disks, seed: int, spoil: Callable[[], None] = lambda: None, cuts: int = CUTS
) -> Iterator[str | None]:
    """Cut the power while a client replaces what it remembers: the old content or the new, never less than it was told."""
    random_ = random.Random(seed)
    with disks.mounted(None):

        def work(say: Say) -> None:
            spoil()
            _remember(disks.live / "client" / "checkpoints.json", say)

        with Child(work, disks.output) as child:
            last = 0
            for _ in range(cuts):
                last = max([last, *child.listen(random_.random() * 0.03), *child.hear()])
                disks.take()
                child.signal(signal.SIGSTOP)
                with disks.rebooted():
                    found = call(_recall(disks.cut / "client" / "checkpoints.json"), disks.output)[0]
                yield (
                    None if isinstance(found, int) and found >= last else f"LOST: {last} was remembered, now {found!r}"
                )
                child.signal(signal.SIGCONT)


def _remember(path: Path, say: Say) -> None:
    state = FileState(path)
    for number in range(1, 10**9):
        old = state.get(ORIGIN)
        assert state.swap(ORIGIN, old, f"{number} " + "x" * (number % 5000))
        say(number)


def _recall(path: Path) -> Writer:
    def work(say: Say) -> None:
        note = FileState(path).get(ORIGIN)
        if note is None:
            say(0)
            return
        number, _, rest = note.partition(" ")
        assert FileState(path).swap(ORIGIN, note, "next")
        say(int(number) if rest == "x" * (int(number) % 5000) else f"garbage: {note[:40]}")

    return work


# --- what must be caught ------------------------------------------------------------------------------------------------


def planted(disks: Disks, seed: int, cuts: int = CUTS) -> dict[str, int]:
    """Run with each of the defects this rig exists for; return how many of `cuts` cuts showed it. None may be 0."""
    if disks.postgres:
        trials = {"synchronous_commit=off": (appends, spoils.answer_before_wal, disks)}
    else:
        apart = replace(disks, own_guard=True)
        trials = {
            "synchronous=NORMAL": (appends, spoils.normal, disks),
            "no fdatasync of the guard": (appends, spoils.no_guard_data_sync, apart),
            "no fsync of the guard's folder": (makes, spoils.no_guard_folder_sync, apart),
            "no fsync of the state's folder": (remembers, spoils.no_folder_sync, disks),
        }
    found = {
        name: sum(bool(lost) for lost in work(on, seed, spoil, cuts)) for name, (work, spoil, on) in trials.items()
    }
    disks.context.done(0, **{f"caught: {name}": count for name, count in found.items()})
    assert all(found.values()), f"seed {seed}: a planted defect was not noticed: {found}"
    return found


# --- the rigs -----------------------------------------------------------------------------------------------------------


def _judge(disks: Disks, seed: int, results: Iterator[str | None]) -> None:
    for cut, lost in enumerate(results):
        assert lost is None, f"seed {seed}, cut {cut}: {lost}"
        disks.context.done()


def run_sqlite(context: Context) -> None:
    """Run the seeds on SQLite: of ten, six append, one serves HTTP, two make instances and logs, one remembers or is spoiled."""
    with reflinks(context.folder, 2048) as images:
        for seed in context.each():
            disks = Disks(context, images, own_guard=seed % 2 == 1)
            if seed % 30 == 9:
                planted(replace(disks, own_guard=False), seed)
            elif seed % 10 == 9:
                _judge(disks, seed, remembers(replace(disks, own_guard=False), seed))
            else:
                work = served if seed % 10 == 6 else makes if seed % 10 > 6 else appends
                _judge(disks, seed, work(disks, seed))


def run_postgres(context: Context) -> None:
    """Run the seeds on Postgres: of eight, five append, two make instances and logs, one is spoiled."""
    context.folder.chmod(0o711)  # Postgres runs as another user
    with reflinks(context.folder, 4096) as images:
        for seed in context.each():
            disks = Disks(context, images, own_guard=seed % 2 == 1, postgres=True)
            if seed % 8 == 4:
                planted(replace(disks, own_guard=False), seed)
            else:
                if seed % 4 == 3:
                    results = makes(disks, seed, cuts=5)  # each needs a database of its own, which takes a second
                else:
                    results = served(disks, seed, 12) if seed % 8 == 6 else appends(disks, seed, cuts=12)
                _judge(disks, seed, results)


GOAL = "power cuts, SQLite / Postgres"
RIGS = [
    FaultRig("power-sqlite", GOAL, "power cuts", run_sqlite, 31, 312, needs=("mkfs.xfs", "mkfs.ext4", "mount"), jobs=1),
    FaultRig(
        "power-postgres", GOAL, "power cuts", run_postgres, 5, 34, needs=("mkfs.xfs", "mkfs.ext4", "mount"), jobs=1
    ),
]
