"""`fsck`: a clean log is clean, and every kind of damage is found and its index named. On both databases."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muniment import event as definition
from muniment.errors import EventRefused
from muniment.policy import LogKey, Policy
from muniment_server.check.fsck import Report, fsck
from muniment_server.check.fsck.commitment import commitment_of
from muniment_server.check.fsck.entries import ERASURE_TYPE
from muniment_server.check.fsck.equal import LeafKeys
from muniment_server.check.fsck.workers import Database, Workers
from muniment_server.storage.checkpoints import Published
from muniment_server.storage.log import IdempotencyRow
from muniment_server.write.admission import commit
from muniment_server.write.guard import BLOCK, FILE_SIZE, SLOT
from tests.live import PATIENCE
from tests.service.rig import Bench, Rig, event, genesis, lift_guard, new_entry, raw, write_guard


def policy_of(bench: Bench) -> Policy:
    return Policy((LogKey(bench.key.vkey),))


async def check(bench: Bench, **more: object) -> Report:
    return await fsck(bench.rig.store, bench.row, policy_of(bench), bench.guard, **more)  # type: ignore[arg-type]


async def filled(rig: Rig, kind: str, count: int = 300) -> Bench:
    """A log of `count` entries, written by a sequencer, with checkpoints published at odd sizes."""
    bench = await rig.log(kind)
    sequencer = bench.sequencer()
    await sequencer.run([genesis(bench)])
    done = 1
    for step in (1, 6, 92, 157, count):
        numbers = range(done, min(done + step, count))
        if not numbers:
            continue
        if kind == "event":
            first, rest = numbers[0], numbers[1:]
            await sequencer.run([event(first, key=f"k{first}"), *([event(*rest, key=f"r{first}")] if rest else [])])
        else:
            await sequencer.run([raw(*(b"leaf %d" % n for n in numbers))])
        done = numbers[-1] + 1
        assert sequencer.signed
        await rig.store.checkpoints.publish(bench.log_id, Published(sequencer.signed.size, sequencer.signed.note, 1))
    return bench


async def spoil(rig: Rig, *statements: str) -> None:
    """Change rows past the triggers, as a fault of the disk or an owner with a grudge would."""
    if rig.database:
        tables = ("entries", "payloads", "tiles", "checkpoints", "heads", "logs")
        off = [f"ALTER TABLE {table} DISABLE TRIGGER USER" for table in tables]
        await rig.sql(*off, *statements, "SELECT 1")
        return
    triggers = await rig.sql("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'")
    await rig.sql(*(f"DROP TRIGGER {name}" for name, _ in triggers), *statements, *(sql for _, sql in triggers))


def codes(report: Report) -> set[tuple[str, int]]:
    return {(finding.code, finding.index) for finding in report.findings}


@pytest.mark.parametrize("kind", ["event", "raw"])
async def test_a_log_is_clean(rig: Rig, kind: str) -> None:
    bench = await filled(rig, kind)
    seen: list[tuple[int, int]] = []
    report = await check(bench, progress=lambda done, total: seen.append((done, total)))
    assert report.clean, report.findings
    assert (report.size, report.entries, report.tiles, report.checkpoints) == (300, 300, 3, 5)
    assert report.idempotency_keys == (9 if kind == "event" else 0)
    assert seen[-1] == (300, 300)
    assert json.loads(json.dumps(report.to_json()))["clean"] is True


async def test_small_and_empty_logs_are_clean(rig: Rig) -> None:
    bench = await rig.log("event")
    assert (await check(bench)).clean
    sequencer = bench.sequencer()
    await sequencer.run([genesis(bench)])
    for n in range(1, 4):
        assert (await check(bench)).clean
        await sequencer.run([event(n)])


# --- damage: one code and one index each ------------------------------------------------------------------------------------

ROW = '"index" = 77'
DAMAGE = {
    "leaf": (f"UPDATE entries SET leaf = {{zero}} WHERE {ROW}", ("leaf_hash", 77)),
    "entry gone": (f"DELETE FROM entries WHERE {ROW}", ("entry_missing", 77)),
    "payload gone": (f"DELETE FROM payloads WHERE {ROW}", ("payload_missing", 77)),
    "payload of another": ("UPDATE payloads SET payload = {payload} WHERE " + ROW, ("commitment", 77)),
    "payload not canonical": ("UPDATE payloads SET payload = {loose} WHERE " + ROW, ("payload", 77)),
    "seed": (f"UPDATE payloads SET seed = {{zero}} WHERE {ROW}", ("commitment", 77)),
    "tile 0": ('UPDATE tiles SET data = {zero} WHERE level = 0 AND "index" = 1', ("leaf_hash", 256)),
    "tile 1": ("UPDATE tiles SET data = {zero} WHERE level = 1", ("tile", 0)),
    "tile gone": ("DELETE FROM tiles WHERE level = 1", ("tile", 0)),
    "tile nobody needs": ("INSERT INTO tiles VALUES ({log}, 1, 1, {zero})", ("tile_extra", 65_536)),
    "entry beyond": ("INSERT INTO entries VALUES ({log}, 300, 0, {zero})", ("entry_beyond_head", 300)),
    "payload beyond": ("INSERT INTO payloads VALUES ({log}, 301, {zero}, {zero})", ("entry_beyond_head", 301)),
    "genesis payload": ("INSERT INTO payloads VALUES ({log}, 0, {zero}, {zero})", ("payload_extra", 0)),
    "root": ("UPDATE heads SET root = {zero}", ("head_root", 299)),
    "head's time": ("UPDATE heads SET logged_at = logged_at + 1", ("head_time", 299)),
    "head's checkpoint": ("UPDATE heads SET published_size = 8", ("published_size", 300)),
    "signature": ("UPDATE checkpoints SET note = 'x' WHERE size = 100", ("checkpoint_signature", 100)),
    "size": ("UPDATE checkpoints SET size = 101 WHERE size = 100", ("checkpoint_size", 101)),
    "fingerprint": ("UPDATE idempotency SET fingerprint = {zero} WHERE key = 'r8'", ("idempotency", 9)),
    "key beyond": ("UPDATE idempotency SET first_index = 5000 WHERE key = 'r8'", ("idempotency", 5000)),
    "key before": ("UPDATE idempotency SET first_index = -5 WHERE key = 'r8'", ("idempotency", -5)),
    "keys overlap": ("UPDATE idempotency SET count = 2 WHERE key = 'k8'", ("idempotency", 9)),
    "guard": ("UPDATE heads SET guard_id = 'other'", ("guard_foreign", None)),
}


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_a_wrong_leaf_key_is_named(rig: Rig) -> None:
    """Only SQLite stores it in the row."""
    bench = await filled(rig, "event")
    await spoil(rig, f"UPDATE entries SET leaf_key = leaf_key + 1 WHERE {ROW}")
    assert codes(await check(bench)) >= {("leaf_key", 77)}


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
async def test_parts_of_tiles_that_do_not_join_are_named(rig: Rig) -> None:
    """The tile reads the same, but the next append to it would be refused."""
    bench = await filled(rig, "event")
    await spoil(rig, "UPDATE tiles SET part = part + 1 WHERE level = 1")
    (finding,) = (await check(bench)).findings
    assert (finding.code, finding.index) == ("database_pages", None)
    assert f"the parts of tile 1/0 of log {bench.log_id} do not join" in finding.detail


@pytest.mark.parametrize("what", DAMAGE)
async def test_damage_is_named(rig: Rig, what: str) -> None:
    bench = await filled(rig, "event")
    sql, wanted = DAMAGE[what]
    values = {"zero": rig.blob(bytes(32)), "log": bench.log_id}
    values |= {"payload": rig.blob(b'{"n":78}'), "loose": rig.blob(b'{"n": 77}')}
    await spoil(rig, sql.format(**values))
    report = await check(bench)
    assert wanted in codes(report), report.findings
    first = 8 if what == "keys overlap" else wanted[1]  # whose fingerprint no longer fits
    assert report.first_bad_index == first
    assert f"first at index {first}" in report.lines()[0] or first is None


@pytest.mark.parametrize("at_once", [7, 50, 10_000])
def test_repeated_leaf_keys_are_found_in_any_number_of_parts(at_once: int) -> None:
    keys = [0, 5, -1, 2**63 - 1, -(2**63), *range(100, 400)]
    found = LeafKeys(len(keys), at_once)
    found.add(keys)
    found.add([2**63 - 1, 77, 250, 250, -(2**63), -1])
    assert sorted(key for part in found.repeated() for key in part) == [-(2**63), -1, 250, 2**63 - 1]
    found.close()


async def test_equal_leaves_in_a_raw_log(rig: Rig) -> None:
    bench = await filled(rig, "raw", 40)
    await bench.extend(b"leaf 17", b"new")
    assert codes(await check(bench)) == {("leaf_twice", 40)}


async def test_a_key_in_a_raw_log(rig: Rig) -> None:
    bench = await filled(rig, "raw", 10)
    key = IdempotencyRow("alice", "k", bytes(32), 10, 1, 2**50)
    await rig.store.log.append(*await bench.grown([b"x"], idempotency=[key]))
    assert codes(await check(bench)) == {("idempotency", 10)}


async def test_time_that_goes_back(rig: Rig) -> None:
    bench = await filled(rig, "event", 20)
    payload, seed = b'{"n":1}', bytes(32)
    leaf = commit({"n": 1}, payload, seed).leaf("2001-01-01T00:00:00.000Z")
    await bench.extend(new_entry(leaf, payload=payload, seed=seed))
    assert ("time_went_back", 20) in codes(await check(bench))


async def test_leaves_that_do_not_belong(rig: Rig) -> None:
    bench = await filled(rig, "event", 3)
    own = b'{"logged_at":"2100-01-01T00:00:00.000Z","typ":"muniment/genesis@v1"}'
    await bench.extend(b"raw bytes", own, b'{"typ": "muniment/anchor@v1"}')
    assert {("leaf_kind", 3), ("genesis", 4), ("leaf_format", 5)} <= codes(await check(bench))


async def test_an_erased_event_may_lack_its_payload(rig: Rig) -> None:
    bench = await filled(rig, "event", 20)
    draft = commit({"n": 1}, b'{"n":1}', bytes(32))
    await bench.extend(new_entry(draft.leaf("2100-01-01T00:00:00.000Z")))
    assert codes(await check(bench)) >= {("payload_missing", 20)}
    erasure = b'{"indices":[20],"logged_at":"2100-01-01T00:00:00.000Z","typ":"%s"}' % ERASURE_TYPE.encode()
    await bench.extend(new_entry(erasure))
    assert ("payload_missing", 20) not in codes(await check(bench))


# --- the guard --------------------------------------------------------------------------------------------------------------


async def test_guard_states(rig: Rig) -> None:
    bench = await filled(rig, "event", 20)
    path, good = bench.guard.path, bench.guard.path.read_bytes()
    for copy in (0, SLOT, BLOCK, BLOCK + SLOT):
        bad = bytearray(good)
        bad[copy + 40] ^= 4
        path.write_bytes(bad)
        assert codes(await check(bench)) == {("guard_slot", None)}
    path.write_bytes(good + b"x")
    assert codes(await check(bench)) == {("guard_slot", None)}
    path.write_bytes(good[:BLOCK])
    assert codes(await check(bench)) == {("guard_slot", None)}
    path.write_bytes(bytes(FILE_SIZE))
    assert codes(await check(bench)) == {("guard_unreadable", None)}
    path.unlink()
    assert codes(await check(bench)) == {("guard_missing", None)}
    head = await rig.store.reads.head(bench.log_id)
    path.write_bytes(good)
    lift_guard(path, head.size + 5, head.root)
    assert ("database_behind", head.size) in codes(await check(bench))


async def test_another_history_under_the_guard(rig: Rig) -> None:
    bench = await filled(rig, "event", 20)
    guarded = bench.guard.read()
    other = replace(guarded, root=type(guarded.root)(bytes(32)), sequence=guarded.sequence + 1)
    write_guard(bench.guard.path, other)
    assert codes(await check(bench)) == {("guard_root", 19)}
    write_guard(bench.guard.path, replace(other, key_id=b"abcd", sequence=other.sequence + 1))
    assert codes(await check(bench)) == {("guard_foreign", None)}


# --- parts, processes, writers ------------------------------------------------------------------------------------------------


async def test_a_part_of_a_log(rig: Rig) -> None:
    bench = await filled(rig, "event", 1100)
    report = await check(bench, start=300, stop=700)
    assert report.clean, report.findings
    assert (report.start, report.stop, report.entries) == (256, 768, 512)
    assert report.note
    assert "only the entries [256, 768)" in report.note
    assert (await check(bench, start=1090)).clean
    assert (await check(bench, start=5000)).clean
    await spoil(rig, f'UPDATE entries SET leaf = {rig.blob(b"x")} WHERE "index" = 900')
    assert (await check(bench, stop=768)).clean
    assert codes(await check(bench, start=800, stop=801)) >= {("leaf_hash", 900)}


async def test_a_part_is_tied_to_the_head(rig: Rig) -> None:
    bench = await filled(rig, "raw", 1100)
    await spoil(rig, f"UPDATE tiles SET data = {rig.blob(bytes(128))} WHERE level = 1")
    report = await check(bench, start=0, stop=256)
    assert ("tile", 0) in codes(report)


async def test_processes_find_what_one_does(rig: Rig) -> None:
    bench = await filled(rig, "event", 600)
    await spoil(rig, f'UPDATE payloads SET seed = {rig.blob(bytes(32))} WHERE "index" = 400')
    workers = Workers(Database(rig.folder / "store.sqlite", rig.database), 2)
    try:
        report = await check(bench, check=workers.check)
    finally:
        workers.close()
    assert codes(report) == codes(await check(bench)) == {("commitment", 400)}
    assert (report.entries, report.tiles, report.checkpoints) == (600, 4, 5)


async def test_beside_a_writer(rig: Rig) -> None:
    bench = await filled(rig, "event", 50)
    sequencer, written = bench.sequencer(await rig.open()), 0

    async def write() -> None:
        nonlocal written
        while True:
            await sequencer.run([event(written + 1000, key=f"w{written}")])
            assert sequencer.signed
            signed = sequencer.signed
            await rig.store.checkpoints.publish(bench.log_id, Published(signed.size, signed.note, 2))
            written += 1

    writer = asyncio.create_task(write())
    try:
        deadline = time.monotonic() + PATIENCE
        while written <= 6:
            report = await check(bench)
            assert report.clean, report.findings
            assert not writer.done()
            assert time.monotonic() < deadline, "the writer writes nothing"
    finally:
        writer.cancel()
        await asyncio.gather(writer, return_exceptions=True)
    assert (await check(bench)).clean


# --- commitments ----------------------------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(-1e9, 1e9) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=6), VALUES, min_size=1, max_size=5), st.binary(min_size=32, max_size=32))
def test_a_commitment_is_that_of_the_definition(value: dict[str, object], seed: bytes) -> None:
    try:
        payload = definition.canonical_event(value)
    except EventRefused:
        return
    wanted = definition.Commitment.to(definition.disclose(seed, json.loads(payload))).digest()
    assert commitment_of(payload, seed) == wanted


@pytest.mark.parametrize(
    "payload", [b'{"b":1,"a":2}', b'{"a": 1}', b'{"a":1.0}', b'{"a":1e2}', b'{"a":"\\u0041"}', b'{"a":-0}']
)
def test_a_payload_of_another_form_has_no_commitment(payload: bytes) -> None:
    assert commitment_of(payload, bytes(32)) is None


@pytest.mark.parametrize(
    "payload", [b"", b"{}", b"[1]", b'{"a":1,"a":1}', b'{"a":9007199254740993}', b'{"a":NaN}', b"x"]
)
def test_what_is_no_event_has_no_commitment(payload: bytes) -> None:
    with pytest.raises(EventRefused):
        commitment_of(payload, bytes(32))
