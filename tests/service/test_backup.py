"""Backup and restore: a static tree that follows from its leaves, the same whoever makes it, and a log that comes back from it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from muniment import strictjson
from muniment.policy import LogKey, Policy
from muniment.tiles import decode_bundle
from muniment_server.backup import restore
from muniment_server.backup.folder import Folder
from muniment_server.backup.make import Made, backup
from muniment_server.backup.restore import Checked, Restored, check, rebuild
from muniment_server.backup.rows import decode_log, decode_payloads, decode_published, encode_payloads
from muniment_server.backup.tree import erased_indices
from muniment_server.errors import Corrupt, SetupError, StoreUnavailable
from muniment_server.settings import Settings
from muniment_server.storage import Store
from muniment_server.storage.checkpoints import Published
from muniment_server.storage.log import StoredPayload
from muniment_server.storage.sqlite.open import open_sqlite
from muniment_server.write.guard import Guard
from muniment_server.write.sequencer import Sequencer
from tests.parts import Parts
from tests.service.audit import Naive, audit
from tests.service.rig import Bench, Rig, event, genesis, raw, write_guard

SECRET_MODE = 0o600
THEN = 1_700_000_000_000
"""When checkpoints were published, in milliseconds."""


def quiet(step: str, done: int, total: int) -> None:
    """No progress bar; but what it would be told makes sense."""
    assert step
    assert 0 < done <= total


def policy_of(bench: Bench) -> Policy:
    return Policy((LogKey(bench.key.vkey),))


async def fill(bench: Bench, sizes: Sequence[int]) -> Sequencer:
    """Bring a log to each of these sizes in turn, and publish each."""
    sequencer = bench.sequencers[-1] if bench.sequencers else bench.sequencer()
    head = await bench.rig.store.reads.head(bench.log_id)
    at = head.size
    if not at:
        await sequencer.run([genesis(bench)])
        at = 1
    for size in sizes:
        if size > at:
            make = event if bench.row.kind == "event" else lambda *n: raw(*(b"leaf %d" % each for each in n))
            await sequencer.run([make(*range(at, size))])
        at = size
        assert sequencer.signed
        assert sequencer.signed.size == size
        await bench.rig.store.checkpoints.publish(bench.log_id, Published(size, sequencer.signed.note, THEN + size))
    return sequencer


async def save(bench: Bench, folder: Path, store: Store | None = None, size: int | None = None, **more: Any) -> Made:
    """Back up a log into a folder."""
    return await backup(
        store or bench.rig.store, bench.row, policy_of(bench), folder, quiet, size, payloads=more.get("payloads", True)
    )


async def bring_back(
    folder: Path, bench: Bench, store: Store, data: Path, name: str | None = None, *, payloads: bool = True
) -> Restored:
    """Restore a backup into a store, as the instance in `data`."""
    settings = Settings(data=data)
    checked = await check(settings, folder, policy_of(bench), quiet, name, payloads=payloads)
    return await rebuild(settings, store, checked, quiet)


async def checked(folder: Path, bench: Bench, data: Path) -> Checked:
    return await check(Settings(data=data), folder, policy_of(bench), quiet, payloads=True)


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
async def fresh(tmp_path: Path) -> Any:
    """An empty SQLite store."""
    store = await open_sqlite(tmp_path / "fresh.sqlite")
    yield store
    await store.close()


def give_guard(bench: Bench, data: Path, name: str | None = None) -> Guard:
    """Put key and guard of a log into another data folder."""
    settings = Settings(data=data)
    settings.key_file(name or bench.row.name).parent.mkdir(parents=True)
    settings.key_file(name or bench.row.name).write_text(bench.key.reveal() + "\n")
    settings.guards.mkdir(parents=True)
    path = settings.guard_file(name or bench.row.name)
    path.write_bytes(bench.guard.path.read_bytes())
    return Guard(path)


# --- the tree -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["event", "raw"])
@pytest.mark.parametrize("sizes", [(1,), (255,), (1, 256), (3, 257, 600)], ids=str)
async def test_every_file_follows_from_the_leaves(rig: Rig, tmp_path: Path, kind: str, sizes: tuple[int, ...]) -> None:
    bench = await rig.log(kind)
    await fill(bench, sizes)
    size = sizes[-1]
    folder = tmp_path / "backup"
    made = await save(bench, folder)
    found = files(folder)
    assert made.written == len(found)
    leaves = [
        leaf for (leaf,) in await rig.sql(f'SELECT leaf FROM entries WHERE log_id = {bench.log_id} ORDER BY "index"')
    ]
    tree = Naive(leaves)
    assert made.tree_size == size == int(found["checkpoint"].split(b"\n")[1])
    assert made.root == tree.root(size).hex()
    expected = {}
    for (level, index), data in tree.tiles(size).items():
        width = len(data) // 32
        expected[f"tile/{level}/{index:03}" + ("" if width == 256 else f".p/{width}")] = data
    assert {
        name: data for name, data in found.items() if name.startswith("tile/") and "/entries/" not in name
    } == expected
    bundles = {name: data for name, data in sorted(found.items()) if name.startswith("tile/entries/")}
    assert set(bundles) == {name.replace("tile/0/", "tile/entries/") for name in expected if name.startswith("tile/0/")}
    assert [leaf for name in sorted(bundles) for leaf in decode_bundle(bundles[name])] == leaves
    notes = [
        json.loads(line)["note"]
        for name in sorted(found)
        if name.startswith("checkpoints/")
        for line in found[name].splitlines()
    ]
    assert [int(note.split("\n")[1]) for note in notes] == list(sizes)
    assert notes[-1].encode() == found["checkpoint"]
    secret = [name for name in found if name.startswith("payloads/")]
    assert bool(secret) == (kind == "event" and size > 1)
    assert all((folder / name).stat().st_mode & 0o777 == SECRET_MODE for name in secret)
    assert not any(b"seed" in data for name, data in found.items() if name not in secret)


async def test_without_payloads_there_is_nothing_secret(rig: Rig, tmp_path: Path) -> None:
    bench = await rig.log("event")
    await fill(bench, (20,))
    await save(bench, tmp_path / "backup", payloads=False)
    assert not any(b'"n":' in data or "payloads/" in name for name, data in files(tmp_path / "backup").items())


async def test_the_same_bytes_however_it_came_about(rig: Rig, tmp_path: Path, fresh: Store) -> None:
    """Fresh or brought up to date, today or after more appends, by this database or the other one."""
    bench = await rig.log("event")
    await fill(bench, (200, 256))
    await save(bench, tmp_path / "grown")
    small = files(tmp_path / "grown")
    await fill(bench, (257, 300, 530))
    again = await save(bench, tmp_path / "grown")
    await save(bench, tmp_path / "whole")
    assert files(tmp_path / "grown") == files(tmp_path / "whole")
    assert again.kept >= 3  # full tile, bundle and payloads of the first 256 entries
    assert not list((tmp_path / "grown").rglob("*.tmp"))
    await save(bench, tmp_path / "old", size=256)
    assert files(tmp_path / "old") == small
    await bring_back(tmp_path / "whole", bench, fresh, tmp_path / "data")
    await save(bench, tmp_path / "other", fresh)
    assert files(tmp_path / "other") == files(tmp_path / "whole")
    assert (await save(bench, tmp_path / "whole")).written == 0


async def test_a_size_that_was_not_published_is_refused(rig: Rig, tmp_path: Path) -> None:
    bench = await rig.log("raw")
    await fill(bench, (5, 9))
    with pytest.raises(SetupError, match="no published checkpoint of size 6: the next published size is 9"):
        await save(bench, tmp_path / "backup", size=6)


async def test_a_folder_of_something_else_is_left_alone(rig: Rig, tmp_path: Path) -> None:
    bench, other = await rig.log("event"), await rig.log("event")
    await fill(bench, (5, 9))
    await fill(other, (5,))
    await save(bench, tmp_path / "backup")
    before = files(tmp_path / "backup")
    with pytest.raises(SetupError, match="is the backup of"):
        await save(other, tmp_path / "backup")
    with pytest.raises(SetupError, match="holds size 9, this would be size 5"):
        await save(bench, tmp_path / "backup", size=5)
    with pytest.raises(SetupError, match="was begun with --payloads"):
        await save(bench, tmp_path / "backup", payloads=False)
    with Folder(tmp_path / "backup").locked(), pytest.raises(SetupError, match="another backup"):
        await save(bench, tmp_path / "backup")
    assert files(tmp_path / "backup") == before


async def test_an_interrupted_backup_is_the_old_one_and_then_completed(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = await rig.log("event")
    await fill(bench, (250,))
    await save(bench, tmp_path / "first")
    await fill(bench, (300, 520))
    await save(bench, tmp_path / "whole")
    real = Folder._put
    for allowed in range(13):
        folder = tmp_path / f"backup-{allowed}"
        for name, data in files(tmp_path / "first").items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        left = iter(range(allowed))

        def put(self: Folder, file: Any, left: Iterator[int] = left) -> bool:
            if next(left, None) is None:
                raise OSError(28, "no space left on device")
            return real(self, file)

        monkeypatch.setattr(Folder, "_put", put)
        with pytest.raises(OSError, match="no space"):
            await save(bench, folder)
        assert (await checked(folder, bench, tmp_path / "data")).tree.head.size == 250
        monkeypatch.undo()
        await save(bench, folder)
        assert files(folder) == files(tmp_path / "whole")


async def test_checkpoint_comes_last_and_after_the_disk_has_everything(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    real_put, real_sync = Folder._put, Folder.sync
    monkeypatch.setattr(Folder, "_put", lambda self, file: steps.append(file.path) or real_put(self, file))
    monkeypatch.setattr(Folder, "sync", lambda self: steps.append("sync") or real_sync(self))
    bench = await rig.log("event")
    await fill(bench, (300,))
    await save(bench, tmp_path / "backup")
    assert steps[-3:] == ["sync", "checkpoint", "sync"]


# --- a damaged log ------------------------------------------------------------------------------------------------------


async def spoil(bench: Bench, *statements: str) -> None:
    """Change stored rows past the triggers."""
    rig = bench.rig
    tables = ("entries", "tiles", "checkpoints", "payloads")
    if rig.database:
        off = [f"ALTER TABLE {table} DISABLE TRIGGER ALL" for table in tables]
    else:
        names = await rig.sql("SELECT name FROM sqlite_schema WHERE type = 'trigger'")
        off = [f"DROP TRIGGER {name}" for (name,) in names]
    await rig.sql(*off, *statements)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("UPDATE entries SET leaf = {blob} WHERE {i} = 257", "entry 257"),
        ("DELETE FROM entries WHERE {i} = 299", r"\[256, 300\)"),
        ("UPDATE tiles SET data = {tile} WHERE level = 0 AND {i} = 0", "entry 3"),
        ("UPDATE tiles SET data = {tile} WHERE level = 1", "tile 1/0 .* index 0"),
        ("DELETE FROM tiles WHERE level = 0 AND {i} = 1", "tile 0/1"),
        ("UPDATE checkpoints SET note = replace(note, '300', '301')", "size 300"),
        ("UPDATE payloads SET payload = {blob} WHERE {i} = 17", "entry 17"),
    ],
)
async def test_a_damaged_log_is_refused_naming_the_index(rig: Rig, tmp_path: Path, change: str, named: str) -> None:
    bench = await rig.log("event")
    await fill(bench, (300,))
    await save(bench, tmp_path / "good")
    ((data,),) = await rig.sql(f'SELECT data FROM tiles WHERE log_id = {bench.log_id} AND level = 0 AND "index" = 0')
    bad = bytes(data[:96]) + bytes(32) + bytes(data[128:])
    await spoil(bench, change.format(i='"index"', blob=rig.blob(b'{"n":1}'), tile=rig.blob(bad)))
    for folder in ("good", "new"):
        with pytest.raises(Corrupt, match=named):
            await save(bench, tmp_path / folder)
    assert not (tmp_path / "new" / "checkpoint").exists()
    await checked(tmp_path / "good", bench, tmp_path / "data")  # what was there is as good as before


async def test_a_damaged_file_is_not_overwritten(rig: Rig, tmp_path: Path) -> None:
    bench = await rig.log("event")
    await fill(bench, (300,))
    await save(bench, tmp_path / "backup")
    path = tmp_path / "backup" / "tile" / "entries" / "000"
    path.write_bytes(b"x" + path.read_bytes()[1:])
    with pytest.raises(Corrupt, match="tile/entries/000 is not what the log holds"):
        await save(bench, tmp_path / "backup")
    path.unlink()
    assert (await save(bench, tmp_path / "backup")).written == 1


# --- restore ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["event", "raw"])
async def test_a_restored_log_is_the_same_and_goes_on(rig: Rig, tmp_path: Path, kind: str, fresh: Store) -> None:
    """From this store into SQLite and back into this one: entries, checkpoints, payloads, and then more appends."""
    bench = await rig.log(kind)
    await fill(bench, (1, 255, 300))
    await save(bench, tmp_path / "backup")
    guard = give_guard(bench, tmp_path / "data")
    done = await bring_back(tmp_path / "backup", bench, fresh, tmp_path / "data")
    assert (done.tree_size, done.entries_added, done.writable) == (300, 300, True)
    assert done.payloads == (299 if kind == "event" else 0)
    (row,) = await fresh.catalog.logs()
    assert replace(row, log_id=bench.row.log_id) == bench.row
    old = [await rig.store.checkpoints.checkpoint(bench.log_id, size) for size in (1, 255, 300)]
    assert await fresh.checkpoints.checkpoints(row.log_id, 0, 100) == old
    assert await fresh.reads.payloads(row.log_id, 0, 300) == await rig.store.reads.payloads(bench.log_id, 0, 300)

    other = Rig("sqlite", None, tmp_path, fresh, rig._stack)
    copy = Bench(other, row, bench.key, guard)
    sequencer = copy.sequencer(fresh)
    await sequencer.run([event(1000) if kind == "event" else raw(b"one more")])
    assert sequencer.refusal is None
    assert sequencer.signed
    assert sequencer.signed.size == 301
    assert guard.read().size == 301


async def test_a_restore_into_each_store_passes_the_audit(rig: Rig, tmp_path: Path, fresh: Store) -> None:
    bench = await rig.log("event", origin="example.com/one")
    await fill(bench, (258, 300))
    await save(bench, tmp_path / "backup")
    data = tmp_path / "data"
    await bring_back(tmp_path / "backup", bench, fresh, data)
    await save(bench, tmp_path / "second", fresh)
    # Back into the rig's own database, as the log of an origin that it does not know: its rows are gone.
    await spoil_all(rig)
    guard = give_guard(bench, tmp_path / "home")
    done = await bring_back(tmp_path / "second", bench, rig.store, tmp_path / "home")
    assert done.entries_added == 300
    (row,) = await rig.store.catalog.logs()
    assert len(await audit(Bench(rig, row, bench.key, guard))) == 300


async def spoil_all(rig: Rig) -> None:
    """Empty every table past the triggers."""
    tables = ("idempotency", "checkpoints", "tiles", "payloads", "entries", "heads", "logs")
    if rig.database:
        off = [f"ALTER TABLE {table} DISABLE TRIGGER USER" for table in tables]
        on = [f"ALTER TABLE {table} ENABLE TRIGGER USER" for table in tables]
    else:
        rows = await rig.sql("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'")
        off, on = [f"DROP TRIGGER {name}" for name, _ in rows], [text for _, text in rows]
    await rig.sql(*off, *(f"DELETE FROM {table}" for table in tables), *on)


async def test_every_file_that_is_missing_torn_or_changed_is_named(rig: Rig, tmp_path: Path) -> None:
    bench = await rig.log("event")
    await fill(bench, (2, 256, 257, 290))
    folder = tmp_path / "backup"
    await save(bench, folder)
    good = files(folder)
    names = sorted(set(good) - {"policy"})  # the policy in a backup is for others; restore never reads it
    assert len(names) == 11
    for name in names:
        path = folder / name
        middle = len(good[name]) // 2
        flipped = good[name][:middle] + bytes([good[name][middle] ^ 1]) + good[name][middle + 1 :]
        for data in (None, b"", good[name][:-1], good[name][:middle], flipped, good[name] + b"\n"):
            path.unlink() if data is None else path.write_bytes(data)
            with pytest.raises((Corrupt, SetupError)) as caught:
                await checked(folder, bench, tmp_path / "data")
            assert name in str(caught.value) or "entry " in str(caught.value) or "size " in str(caught.value), (
                name,
                data,
            )
            path.write_bytes(good[name])
    assert (await checked(folder, bench, tmp_path / "data")).tree.head.size == 290


async def test_the_kind_is_the_one_in_the_genesis_entry(rig: Rig, tmp_path: Path) -> None:
    bench = await rig.log("event")
    await fill(bench, (3,))
    await save(bench, tmp_path / "backup")
    path = tmp_path / "backup" / "log.json"
    path.write_bytes(path.read_bytes().replace(b'"event"', b'"raw"'))
    with pytest.raises(Corrupt, match=r"log\.json says"):
        await checked(tmp_path / "backup", bench, tmp_path / "data")


async def test_a_foreign_backup_is_refused(rig: Rig, tmp_path: Path) -> None:
    bench, other = await rig.log("event"), await rig.log("event")
    for each in (bench, other):
        await fill(each, (9,))
        await save(each, tmp_path / each.row.name)
    with pytest.raises(Corrupt, match="lists no log called"):
        await check(Settings(data=tmp_path), tmp_path / bench.row.name, policy_of(other), quiet, payloads=True)
    with pytest.raises(SetupError, match=f"name the folder of one log in it, .*{bench.row.name}"):
        await checked(tmp_path, bench, tmp_path / "data")
    (tmp_path / bench.row.name / "log.json").write_bytes((tmp_path / other.row.name / "log.json").read_bytes())
    with pytest.raises(Corrupt, match=r"is of 'example.com/log-2', the checkpoint of 'example.com/log-1'"):
        await checked(tmp_path / bench.row.name, bench, tmp_path / "data")


# --- restore and the guard ----------------------------------------------------------------------------------------------


async def test_what_the_guard_of_the_instance_says(rig: Rig, tmp_path: Path, fresh: Store) -> None:
    bench, other = await rig.log("event"), await rig.log("event")
    await fill(bench, (260,))
    await fill(other, (260,))
    await save(bench, tmp_path / "backup")

    data = tmp_path / "foreign-guard"
    give_guard(other, data, bench.row.name)
    Settings(data=data).key_file(bench.row.name).unlink()
    with pytest.raises(SetupError, match=r"^guard_foreign: .* guards"):
        await checked(tmp_path / "backup", bench, data)

    data = tmp_path / "foreign-key"
    give_guard(bench, data)
    Settings(data=data).key_file(bench.row.name).write_text(other.key.reveal() + "\n")
    with pytest.raises(SetupError, match=r"^guard_foreign: .* is not the key"):
        await checked(tmp_path / "backup", bench, data)

    data = tmp_path / "other-root"
    guard = give_guard(bench, data)
    wrong = replace(guard.read(), root=b"\0" * 32, sequence=9)
    write_guard(guard.path, wrong)
    with pytest.raises(SetupError, match=r"^guard_root: "):
        await checked(tmp_path / "backup", bench, data)

    data = tmp_path / "behind"
    await bench.sequencers[0].run([event(1000)])  # signed, not published: in no backup
    give_guard(bench, data)
    with pytest.raises(SetupError, match=r"^database_behind: the backup has 260 entries"):
        await checked(tmp_path / "backup", bench, data)
    assert await fresh.catalog.logs() == []


async def test_without_a_guard_it_comes_back_to_be_read(rig: Rig, tmp_path: Path, fresh: Store) -> None:
    bench = await rig.log("event")
    await fill(bench, (9,))
    await save(bench, tmp_path / "backup")
    done = await bring_back(tmp_path / "backup", bench, fresh, tmp_path / "data", "elsewhere")
    assert not done.writable
    (row,) = await fresh.catalog.logs()
    assert row.name == "elsewhere"
    assert (await fresh.reads.head(row.log_id)).guard_id != bench.guard.read().guard_id
    for policy in ("policy", "policies/elsewhere.policy"):
        assert Policy.read(tmp_path / "data" / policy) == policy_of(bench)


async def test_an_old_database_catches_up_from_a_newer_backup(rig: Rig, tmp_path: Path, fresh: Store) -> None:
    bench = await rig.log("event")
    await fill(bench, (100, 256))
    guard = give_guard(bench, tmp_path / "data")
    await save(bench, tmp_path / "old")
    await bring_back(tmp_path / "old", bench, fresh, tmp_path / "data")
    await fill(bench, (257, 400))
    await save(bench, tmp_path / "new")
    done = await bring_back(tmp_path / "new", bench, fresh, tmp_path / "data")
    assert (done.entries_added, done.tree_size) == (144, 400)
    assert guard.read().size == 400, "what was restored was signed: the guard knows it before anybody reads it here"
    again = await bring_back(tmp_path / "new", bench, fresh, tmp_path / "data")
    assert (again.entries_added, again.payloads) == (0, 0)
    with pytest.raises(SetupError, match="has 400 entries here already, the backup only 256"):
        await bring_back(tmp_path / "old", bench, fresh, tmp_path / "data2")


async def test_an_interrupted_restore_goes_on(
    rig: Rig, tmp_path: Path, fresh: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore, "_BATCH", 1)
    bench = await rig.log("event")
    await fill(bench, (1, 300, 600))
    await save(bench, tmp_path / "backup")
    give_guard(bench, tmp_path / "data")

    class Failing(Parts):
        """The store, until it has done so many writes."""

        def __init__(self, writes: int) -> None:
            super().__init__(fresh)
            self.left = writes

        async def call(self, part: str, name: str, *words: Any) -> Any:
            if name in ("append", "publish", "create_log"):
                if not self.left:
                    raise StoreUnavailable("power cut")
                self.left -= 1
            return await super().call(part, name, *words)

    failed = 0
    for _ in range(20):
        try:
            await bring_back(tmp_path / "backup", bench, Failing(1 + failed % 2), tmp_path / "data")  # type: ignore[arg-type]
            break
        except StoreUnavailable:
            failed += 1
            (row,) = await fresh.catalog.logs()
            latest = await fresh.checkpoints.checkpoint(row.log_id)
            assert latest is None or (await fresh.reads.head(row.log_id)).size == 600
    assert failed >= 3
    await save(bench, tmp_path / "second", fresh)
    assert files(tmp_path / "second") == files(tmp_path / "backup")


# --- erasure ------------------------------------------------------------------------------------------------------------


def erasure(**members: Any) -> bytes:
    value = {"typ": "muniment/erasure@v1", "logged_at": "2027-01-15T08:00:00.000Z", **members}
    return strictjson.canonical(value)


def test_what_an_erasure_entry_names() -> None:
    assert erased_indices(erasure(index=7)) == {7}
    assert erased_indices(erasure(indices=[3, 9], members=["actor"])) == {3, 9}
    assert erased_indices(b'{"typ": "muniment/erasure@v1", "index": 7}') == set()  # not canonical: a submitter's bytes
    assert erased_indices(b'{"a":"muniment/erasure@v1"}') == set()
    assert erased_indices(b"muniment/erasure@v1") == set()
    for bad in ({}, {"index": -1}, {"index": True}, {"indices": []}, {"indices": [1, "2"]}, {"indices": 4}):
        with pytest.raises(Corrupt, match="--no-payloads"):
            erased_indices(erasure(**bad))


async def test_what_was_erased_does_not_come_back(rig: Rig, tmp_path: Path, fresh: Store) -> None:
    bench = await rig.log("event")
    sequencer = await fill(bench, (20,))
    await save(bench, tmp_path / "backup")
    await spoil(bench, f'DELETE FROM payloads WHERE log_id = {bench.log_id} AND "index" = 5')
    await bench.extend(erasure(indices=[5, 7]))
    sequencer = bench.sequencer()
    await sequencer.start()
    await rig.store.checkpoints.publish(bench.log_id, Published(21, sequencer.signed.note, THEN + 21))
    await save(bench, tmp_path / "backup")
    lines = (tmp_path / "backup" / "payloads" / "000.p" / "21").read_bytes().splitlines()
    assert lines[4] == b'{"index":5}'
    done = await bring_back(tmp_path / "backup", bench, fresh, tmp_path / "data")
    assert (done.payloads, done.payloads_erased) == (17, 1)  # 5 was gone already, 7 is named by the entry
    (row,) = await fresh.catalog.logs()
    assert {each.index for each in await fresh.reads.payloads(row.log_id, 0, 30)} == set(range(1, 20)) - {5, 7}


async def test_payloads_may_be_left_out(rig: Rig, tmp_path: Path, fresh: Store) -> None:
    bench = await rig.log("event")
    await fill(bench, (20,))
    await save(bench, tmp_path / "backup")
    done = await bring_back(tmp_path / "backup", bench, fresh, tmp_path / "data", payloads=False)
    assert (done.tree_size, done.payloads) == (20, 0)


# --- rows ---------------------------------------------------------------------------------------------------------------


def test_payload_lines_go_both_ways() -> None:
    stored = [StoredPayload(4, b'{"a":"}\\",\\"seed\\":\\""}', bytes(range(32)))]
    data = encode_payloads([4, 5], stored)
    assert decode_payloads(data, [4, 5], Path("f")) == stored
    for bad in (data[:-1], data + b"\n", data.replace(b"AAEC", b"AAE="), data.replace(b'{"index":5}', b'{"index":6}')):
        with pytest.raises(Corrupt, match=r"^f"):
            decode_payloads(bad, [4, 5], Path("f"))
    with pytest.raises(Corrupt):
        decode_payloads(data, [4], Path("f"))


@pytest.mark.parametrize(
    "data", [b"", b"\n", b"{}\n", b"[]\n", b"\xff\n", b'{"note":1,"previous":0,"published_at":0}\n', b"null\n"]
)
def test_nonsense_is_no_list_of_checkpoints_and_no_description(data: bytes) -> None:
    with pytest.raises(Corrupt, match=r"^f"):
        decode_published(data, Path("f"))
    with pytest.raises(Corrupt, match=r"^f"):
        decode_log(data, Path("f"))
