"""`fsck --against`: the first entry that differs, with few fetches; `fsck --repair`: tiles from entries, or nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest
from click.testing import CliRunner

from muniment.checkpoint import Checkpoint, sign_checkpoint
from muniment.hashing import leaf_hash
from muniment.tiles import format_tile, tiles_at
from muniment.tree import Edge, grow
from muniment_server.check.fsck.against import Comparison, compare, open_copy
from muniment_server.check.fsck.repair import repair
from muniment_server.check.fsck.whole import Whole
from muniment_server.check.fsck.workers import check_here
from muniment_server.cli import main
from muniment_server.errors import CopyUnreachable, RepairRefused
from tests.live import LiveServer, run
from tests.service.audit import Naive, audit
from tests.service.rig import Bench, Rig, raw
from tests.service.test_fsck import check, codes, filled, policy_of, spoil


def tree(folder: Path, bench: Bench, leaves: list[bytes]) -> Path:
    """Write a static tlog-tiles tree of these leaves, signed by the log's key."""
    made = grow(Edge(), map(leaf_hash, leaves))
    naive = Naive(leaves)
    assert naive.root(len(leaves)) == made.edge.root()
    stored = naive.tiles(len(leaves))
    for tile in tiles_at(len(leaves)):
        path = folder / "tile" / format_tile(tile)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(stored[tile.level, tile.index])
    note = str(sign_checkpoint(Checkpoint(bench.row.origin, len(leaves), made.edge.root()), bench.key))
    (folder / "checkpoint").write_text(note)
    return folder


async def against(bench: Bench, where: Path | str) -> Comparison:
    async with open_copy(str(where)) as copy:
        return await compare(bench.rig.store, [bench.row], policy_of(bench), copy)


async def leaves_of(bench: Bench) -> list[bytes]:
    return await bench.rig.store.reads.leaves(bench.log_id, 0, 10**6)


async def test_a_copy_of_any_size_is_the_same(rig: Rig, tmp_path: Path) -> None:
    bench = await filled(rig, "raw", 1000)
    leaves = await leaves_of(bench) + [b"more %d" % n for n in range(100)]
    for size in (1, 255, 256, 257, 700, 1000, 1100):
        found = await against(bench, tree(tmp_path / f"{size}", bench, leaves[:size]))
        assert found.clean, found.findings
        assert (found.size, found.copy_size, found.compared) == (1000, size, min(size, 1000))
        assert found.fetches <= 4  # the checkpoint, and the right edges of two levels


async def test_the_first_difference_is_named(rig: Rig, tmp_path: Path) -> None:
    bench = await filled(rig, "raw", 1000)
    good = await leaves_of(bench) + [b"more %d" % n for n in range(300)]
    for bad, size in (
        (0, 1000),
        (1, 1300),
        (255, 1000),
        (256, 1300),
        (767, 1000),
        (768, 1300),
        (900, 905),
        (999, 1300),
    ):
        leaves = [leaf if at not in (bad, 999) else b"another %d" % at for at, leaf in enumerate(good)]
        found = await against(bench, tree(tmp_path / f"{bad}", bench, leaves[:size]))
        assert [(finding.code, finding.index) for finding in found.findings] == [("entry_differs", bad)]
        assert found.fetches <= 5


async def test_a_large_log_takes_few_fetches(rig: Rig, tmp_path: Path) -> None:
    if rig.engine == "postgres":
        pytest.skip("the walk is the same; SQLite is enough for a large one")
    bench = await rig.log("raw")
    leaves = [b"leaf %d" % n for n in range(70_000)]
    for at in range(0, len(leaves), 10_000):
        await bench.extend(*leaves[at : at + 10_000])
    leaves[66_123] = b"another"
    found = await against(bench, tree(tmp_path / "copy", bench, leaves))
    assert found.first_bad_index == 66_123
    assert found.fetches <= 1 + 2 * 3


async def test_a_copy_that_is_broken(rig: Rig, tmp_path: Path) -> None:
    bench = await filled(rig, "raw", 600)
    copy = tree(tmp_path / "copy", bench, await leaves_of(bench))
    good = (copy / "tile/1/000.p/2").read_bytes()
    (copy / "tile/1/000.p/2").write_bytes(bytes(32) + good[32:])
    assert (await against(bench, copy)).findings[0].code == "copy_damaged"
    (copy / "tile/1/000.p/2").write_bytes(good[:32])
    assert (await against(bench, copy)).findings[0].code == "copy_damaged"
    (copy / "tile/1/000.p/2").unlink()
    assert (await against(bench, copy)).findings[0].code == "copy_damaged"
    (copy / "checkpoint").write_text("nonsense")
    with pytest.raises(CopyUnreachable, match="not one of these logs"):
        await against(bench, copy)
    (copy / "checkpoint").write_bytes(b"x" * 100_000)
    with pytest.raises(CopyUnreachable, match="more than"):
        await against(bench, copy)
    (copy / "checkpoint").unlink()
    with pytest.raises(CopyUnreachable, match="no checkpoint"):
        await against(bench, copy)
    with pytest.raises(CopyUnreachable, match="neither"):
        await against(bench, tmp_path / "nowhere")


async def test_tiles_here_that_are_broken(rig: Rig, tmp_path: Path) -> None:
    bench = await filled(rig, "raw", 600)
    copy = tree(tmp_path / "copy", bench, await leaves_of(bench))
    await spoil(rig, f"UPDATE tiles SET data = {rig.blob(bytes(64))} WHERE level = 1")
    assert (await against(bench, copy)).findings[0].code == "database_damaged"


# --- the command --------------------------------------------------------------------------------------------------------------


def test_against_a_server(serve: Callable[..., LiveServer], database: str | None, tmp_path: Path) -> None:
    server = serve(kind="raw")
    words = ("fsck", "--data", server.data)
    done = run(*words, "--against", server.url, "--json", database=database)
    (found,) = json.loads(done.stdout)
    assert (found["clean"], found["compared"]) == (True, 1)
    server.stop()
    for where, code in ((server.url, 4), (tmp_path / "nothing", 4)):
        assert command(*words, "--against", where, database=database) == code
    assert command(*words, "--to", "1", database=database) == 0
    assert command(*words, "--repair", database=database) == 0
    assert command(*words, "--from", "3", "--to", "2", database=database) == 2
    assert command(*words, "--repair", "--from", "3", database=database) == 2


def command(*words: str | Path, database: str | None) -> int:
    """Run a command in this process and return its exit code."""
    environment = {"MUNIMENT_SERVER_DATABASE": database} if database else {}
    return CliRunner().invoke(main, list(map(str, words)), env=environment).exit_code


# --- repair -------------------------------------------------------------------------------------------------------------------


async def mend(bench: Bench) -> list[str]:
    whole = await Whole(bench.rig.store, bench.row, policy_of(bench), bench.guard).run(lambda _d, _a: None, check_here)
    return await repair(whole, bench.rig.folder / "store.sqlite", bench.rig.database)


@pytest.mark.parametrize(
    "sql",
    [
        'UPDATE tiles SET data = {zero} WHERE level = 0 AND "index" = 0',
        "UPDATE tiles SET data = {zero}",
        "DELETE FROM tiles",
        "DELETE FROM tiles WHERE level = 1",
    ],
)
async def test_tiles_are_made_again(rig: Rig, sql: str) -> None:
    bench = await filled(rig, "event", 600)
    before = await rig.dump()
    await spoil(rig, sql.format(zero=rig.blob(bytes(32))))
    if rig.database:
        for table in ("entries", "payloads", "tiles", "checkpoints", "heads", "logs"):
            await rig.sql(f"ALTER TABLE {table} ENABLE TRIGGER USER", "SELECT 1")
    assert not (await check(bench)).clean
    assert await mend(bench)
    assert (await check(bench)).clean
    after = await rig.dump()
    assert {name: rows for name, rows in after.items() if name != "tiles"} == {
        name: rows for name, rows in before.items() if name != "tiles"
    }
    await audit(bench)
    with pytest.raises(Exception, match=r"append-only|only grow"):  # the triggers are back
        await rig.sql("UPDATE tiles SET data = " + rig.blob(bytes(32)))
    await bench.sequencer().run([])
    await bench.extend(b'{"after": 1}')


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_leaf_keys_are_made_again_beside_a_writer(rig: Rig) -> None:
    bench = await filled(rig, "raw", 3000)
    sequencer = bench.sequencers[0]
    await sequencer.run([raw(b"carries the others over")])
    before = await rig.dump()
    await spoil(rig, 'DELETE FROM leaf_keys WHERE "index" = 30', "UPDATE leaf_keys_carried SET steps = steps + 1")
    assert {code for code, _ in codes(await check(bench))} == {"leaf_keys"}
    assert await mend(bench) == ["leaf_keys"]
    assert (await check(bench)).clean
    assert await rig.dump() == before
    with pytest.raises(Exception, match="append-only"):  # the triggers are back
        await rig.sql("DELETE FROM leaf_keys")
    answers = await sequencer.run([raw(b"leaf 30"), raw(*(b"more %d" % n for n in range(2000)))])
    assert answers[0].new == 0
    await sequencer.run([raw(*(b"yet more %d" % n for n in range(2000)))])
    assert (await check(bench)).clean


async def test_nothing_is_mended_when_entries_are_wrong(rig: Rig) -> None:
    bench = await filled(rig, "event", 600)
    zero = rig.blob(bytes(32))
    await spoil(rig, f"UPDATE tiles SET data = {zero}", f'UPDATE entries SET leaf = {zero} WHERE "index" = 20')
    before = await rig.dump()
    with pytest.raises(RepairRefused, match="do not hash to the signed checkpoint"):
        await mend(bench)
    assert await rig.dump() == before


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_leaf_keys_stay_as_they_are_when_tiles_are_refused(rig: Rig) -> None:
    bench = await filled(rig, "raw", 3000)
    await bench.sequencers[0].run([raw(b"carries the others over")])
    spoiled = "UPDATE leaf_keys_carried SET steps = steps + 1"
    await spoil(rig, spoiled, f"UPDATE tiles SET data = {rig.blob(bytes(32))}", "UPDATE checkpoints SET note = 'x'")
    before = await rig.store.inspect.leaf_key_damage()
    with pytest.raises(RepairRefused, match="no published checkpoint"):
        await mend(bench)
    assert before
    assert await rig.store.inspect.leaf_key_damage() == before


async def test_nothing_is_mended_without_a_signature(rig: Rig) -> None:
    bench = await filled(rig, "raw", 300)
    await spoil(rig, f"UPDATE tiles SET data = {rig.blob(bytes(32))}", "UPDATE checkpoints SET note = 'x'")
    with pytest.raises(RepairRefused, match="no published checkpoint"):
        await mend(bench)


async def test_repair_of_a_tile_that_changed_meanwhile(rig: Rig) -> None:
    bench = await filled(rig, "raw", 300)
    await spoil(rig, f"UPDATE tiles SET data = {rig.blob(bytes(32))} WHERE level = 1")
    whole = await Whole(rig.store, bench.row, policy_of(bench)).run(lambda _d, _a: None, check_here)
    real = whole.store.reads.tiles

    async def tiles(log_id: int, wanted: object) -> dict[tuple[int, int], bytes]:
        found = await real(log_id, wanted)  # type: ignore[arg-type]
        await spoil(rig, f"UPDATE tiles SET data = {rig.blob(bytes(64))} WHERE level = 1")
        return found

    whole.store.reads.tiles = tiles  # type: ignore[method-assign,assignment]
    with pytest.raises(RepairRefused, match="changed meanwhile"):
        await repair(whole, rig.folder / "store.sqlite", rig.database)
    del whole.store.reads.tiles
    assert ("tile", 0) in codes(await check(bench))


async def test_repair_needs_the_owner(rig: Rig) -> None:
    if not rig.database:
        pytest.skip("SQLite has no roles")
    bench = await filled(rig, "raw", 300)
    await spoil(rig, f"UPDATE tiles SET data = {rig.blob(bytes(32))} WHERE level = 1")
    whole = await Whole(rig.store, bench.row, policy_of(bench)).run(lambda _d, _a: None, check_here)
    role = f"fsck_{bench.log_id}_{abs(hash(rig.database)) % 10**6}"
    connection = await asyncpg.connect(rig.database)
    try:
        await connection.execute(
            f"CREATE ROLE {role} LOGIN; GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO {role}"
        )
        url = rig.database.replace("://postgres:", f"://{role}:").replace("://postgres@", f"://{role}@")
        with pytest.raises(RepairRefused, match="owner"):
            await repair(whole, rig.folder / "none", url)
    finally:
        await connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
        await connection.close()
