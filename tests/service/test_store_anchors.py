"""The contract of storage.anchors and followers, sentence by sentence, on each store."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from muniment_server.storage.anchors import AnchorRow, AnchorSummary, CalendarRow
from tests.service.rig import NOW, Rig

ALICE, BOB = "https://alice.example", "https://bob.example"


def anchor(size: int, **changes: object) -> AnchorRow:
    row = AnchorRow(size, bytes([size]) * 32, b"note of %d\n" % size, size.to_bytes(32, "big"), bytes(16), NOW + size)
    return replace(row, **changes)


def calendars(size: int, **changes: object) -> list[CalendarRow]:
    return [CalendarRow(size, url, **({"next_at": NOW} | changes)) for url in (ALICE, BOB)]


FULL = {
    "ots": b"proof \x00 of it",
    "submitted_at": NOW + 1,
    "confirmed_at": NOW + 2,
    "height": 2**28 - 1,
    "block_hash": bytes(range(32)),
    "header": bytes(80),
    "block_time": 2**32 - 1,
    "next_at": NOW + 3,
    "last_error": "what it was — ñ",
    "logged_from": 4,
    "logged": 5,
}


async def test_an_anchor_is_stored_with_its_calendars(rig: Rig):
    log_id = (await rig.log()).log_id
    assert await rig.store.anchors.anchor(log_id) is None
    assert await rig.store.anchors.add_anchor(log_id, anchor(3), calendars(3))
    for store in (rig.store, await rig.open()):
        assert await store.anchors.anchor(log_id) == await store.anchors.anchor(log_id, 3) == anchor(3)
        assert await store.anchors.anchor_calendars(log_id, 0, 9) == calendars(3)
        assert await store.anchors.anchor(log_id, 2) is None


async def test_only_larger_trees_are_anchored(rig: Rig):
    one, two = (await rig.log()).log_id, (await rig.log()).log_id
    assert await rig.store.anchors.add_anchor(one, anchor(3), calendars(3))
    before = await rig.dump()
    for size in (1, 2, 3):
        assert not await rig.store.anchors.add_anchor(one, anchor(size, nonce=bytes(range(16))), calendars(size))
    assert await rig.dump() == before
    assert await rig.store.anchors.add_anchor(two, anchor(1), [])
    assert await rig.store.anchors.add_anchor(one, anchor(4), [])
    assert [row.tree_size for row in await rig.store.anchors.anchors(one, 0, 9)] == [3, 4]


async def test_of_racing_anchors_of_one_size_one_is_stored(rig: Rig):
    log_id = (await rig.log()).log_id
    stores = [rig.store, await rig.open()]
    for size in range(1, 11):
        rows = [anchor(size, nonce=bytes([who]) * 16) for who in range(4)]
        work = [stores[who % 2].anchors.add_anchor(log_id, row, calendars(size)) for who, row in enumerate(rows)]
        won = await asyncio.gather(*work)
        assert sum(won) == 1
        assert await rig.store.anchors.anchor(log_id, size) == rows[won.index(True)]


async def test_every_field_comes_back_as_it_was_saved(rig: Rig):
    log_id = (await rig.log()).log_id
    await rig.store.anchors.add_anchor(log_id, anchor(3), calendars(3))
    changed = CalendarRow(3, BOB, "pending", 2, None, NOW, f"{BOB}/x", bytes(44), "why", 7)
    added = CalendarRow(3, "https://carol.example")
    new = anchor(3, state="confirmed", **FULL)
    assert await rig.store.anchors.save_anchor(log_id, new, [changed, added])
    assert await rig.store.anchors.anchor(log_id, 3) == replace(new, revision=1)
    assert await rig.store.anchors.anchor_calendars(log_id, 3, 4) == [calendars(3)[0], changed, added]


async def test_a_change_of_what_was_changed_meanwhile_writes_nothing(rig: Rig):
    log_id = (await rig.log()).log_id
    await rig.store.anchors.add_anchor(log_id, anchor(3), calendars(3))
    assert await rig.store.anchors.save_anchor(log_id, anchor(3, state="pending"))
    before = await rig.dump()
    assert not await rig.store.anchors.save_anchor(log_id, anchor(3, state="complete"), calendars(3, attempts=9))
    assert not await rig.store.anchors.save_anchor(log_id, anchor(4, state="complete"), calendars(4))
    assert await rig.dump() == before
    stores = [rig.store, await rig.open()]
    for number in range(1, 21):
        row = await rig.store.anchors.anchor(log_id, 3)
        work = [store.anchors.save_anchor(log_id, replace(row, last_error=f"{number}")) for store in stores]
        assert sum(await asyncio.gather(*work)) == 1
    assert (await rig.store.anchors.anchor(log_id)).revision == 21


async def test_anchors_are_listed_by_size_and_state(rig: Rig):
    log_id = (await rig.log()).log_id
    for size, state in ((2, "confirmed"), (3, "superseded"), (5, "pending"), (8, "queued")):
        await rig.store.anchors.add_anchor(log_id, anchor(size, state=state), calendars(size))

    async def sizes(*arguments: object) -> list[int]:
        return [row.tree_size for row in await rig.store.anchors.anchors(log_id, *arguments)]

    assert await sizes(0, 10) == [2, 3, 5, 8]
    assert await sizes(3, 2) == [3, 5]
    assert await sizes(4, 10) == [5, 8]
    assert await sizes(0, 10, ("queued", "pending")) == [5, 8]
    assert await sizes(0, 1, ("queued", "pending")) == [5]
    assert await sizes(9, 10) == []
    assert [row.tree_size for row in await rig.store.anchors.anchor_calendars(log_id, 3, 8)] == [3, 3, 5, 5]
    assert await rig.store.anchors.anchor_calendars(log_id + 1, 0, 99) == []


async def test_the_covering_anchor_is_the_confirmed_one_in_the_earliest_block(rig: Rig):
    log_id = (await rig.log()).log_id
    heights = {2: 110, 4: 109, 6: 109, 8: 105}
    for size, height in heights.items():
        state = "complete" if size == 8 else "confirmed"
        await rig.store.anchors.add_anchor(log_id, anchor(size, state=state, height=height), [])

    async def covering(index: int) -> int | None:
        found = await rig.store.anchors.covering_anchor(log_id, index)
        return found and found.tree_size

    assert [await covering(index) for index in (0, 1, 2, 3, 4, 5, 6, 7, 8)] == [4, 4, 4, 4, 6, 6, None, None, None]


async def test_what_is_due_comes_oldest_first(rig: Rig):
    log_id = (await rig.log()).log_id
    for size, due in ((1, NOW + 5), (2, NOW), (3, None), (4, NOW - 5)):
        await rig.store.anchors.add_anchor(log_id, anchor(size, next_at=due), calendars(size, next_at=due))

    async def due(now: int, limit: int = 9) -> tuple[list[int], list[int]]:
        anchors = await rig.store.anchors.due_anchors(log_id, now, limit)
        rows = anchors, await rig.store.anchors.due_calendars(log_id, BOB, now, limit, queued=True)
        return tuple([row.tree_size for row in found] for found in rows)

    assert await due(NOW) == ([4, 2], [2, 4])
    assert await due(NOW, 1) == ([4], [2])
    assert await due(NOW + 5) == ([4, 2, 1], [1, 2, 4])
    assert await due(NOW - 6) == ([], [])
    assert await rig.store.anchors.due_calendars(log_id, f"{BOB}/", NOW, 9, queued=True) == []


async def test_what_a_calendar_has_does_not_hide_what_it_lacks(rig: Rig):
    log_id = (await rig.log()).log_id
    for size, state in ((1, "pending"), (2, "bad_attestation"), (3, "queued"), (4, "pending")):
        await rig.store.anchors.add_anchor(log_id, anchor(size), calendars(size, state=state))
    for queued, sizes in ((True, [3]), (False, [1, 2, 4])):
        found = await rig.store.anchors.due_calendars(log_id, BOB, NOW, 9, queued=queued)
        assert [row.tree_size for row in found] == sizes


async def test_own_entries_are_counted_from_an_index_on(rig: Rig):
    log_id = (await rig.log()).log_id
    for size, logged in ((1, 3), (2, 7), (3, None)):
        await rig.store.anchors.add_anchor(log_id, anchor(size, logged=logged), [])
    assert [await rig.store.anchors.own_entries(log_id, start) for start in (0, 3, 4, 7, 8)] == [2, 2, 1, 1, 0]


async def test_confirmed_anchors_without_an_entry_are_found(rig: Rig):
    log_id = (await rig.log()).log_id
    for size, state, logged in (
        (1, "confirmed", 3),
        (2, "confirmed", None),
        (3, "complete", None),
        (4, "confirmed", None),
    ):
        await rig.store.anchors.add_anchor(log_id, anchor(size, state=state, logged=logged), [])
    assert [row.tree_size for row in await rig.store.anchors.unlogged_anchors(log_id, 9)] == [2, 4]
    assert [row.tree_size for row in await rig.store.anchors.unlogged_anchors(log_id, 1)] == [2]


async def test_a_summary_says_what_is_open_degraded_and_bad(rig: Rig):
    log_id = (await rig.log()).log_id
    assert await rig.store.anchors.anchor_summary(log_id, 2) == AnchorSummary({}, None, None, 0, 0)
    await rig.store.anchors.add_anchor(log_id, anchor(1, state="confirmed", confirmed_at=NOW), calendars(1))
    await rig.store.anchors.add_anchor(log_id, anchor(2, state="superseded"), calendars(2))
    await rig.store.anchors.add_anchor(log_id, anchor(3, state="complete"), calendars(3))
    await rig.store.anchors.add_anchor(log_id, anchor(4, state="pending"), calendars(4, state="bad_attestation"))
    one = [calendars(5, state="pending")[0], calendars(5, state="given_up")[1]]
    await rig.store.anchors.add_anchor(log_id, anchor(5, state="pending"), one)
    await rig.store.anchors.add_anchor(log_id, anchor(6), calendars(6))
    states = {"confirmed": 1, "superseded": 1, "complete": 1, "pending": 2, "queued": 1}
    for held, degraded in ((0, 0), (1, 1), (2, 2), (3, 3)):
        found = await rig.store.anchors.anchor_summary(log_id, held)
        assert found == AnchorSummary(states, NOW + 3, NOW, degraded, 2)


async def test_a_lease_has_one_holder_until_it_ends(rig: Rig):
    log_id, other = (await rig.log()).log_id, (await rig.log()).log_id
    stores = [rig.store, await rig.open()]
    took = await asyncio.gather(
        *(stores[who % 2].followers.take_lease(log_id, "anchorer", f"{who}", NOW, NOW + 10) for who in range(6))
    )
    assert sum(took) == 1
    holder = str(took.index(True))
    assert await rig.store.followers.take_lease(log_id, "anchorer", holder, NOW + 5, NOW + 15)  # and keeps it
    assert not await rig.store.followers.take_lease(log_id, "anchorer", "another", NOW + 14, NOW + 24)
    assert await rig.store.followers.take_lease(log_id, "another follower", "another", NOW + 14, NOW + 24)
    assert await rig.store.followers.take_lease(other, "anchorer", "another", NOW + 14, NOW + 24)
    assert await rig.store.followers.take_lease(log_id, "anchorer", "another", NOW + 15, NOW + 25)
    assert not await rig.store.followers.take_lease(log_id, "anchorer", holder, NOW + 15, NOW + 25)
