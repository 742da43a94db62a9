"""The audit every test of the write path ends with: recompute a log from its leaves alone, sharing no code with what wrote it.

Leaves are read with bare SQL, hashed here, and everything else that is stored or signed must follow from them: indices, leaf keys,
every tile and no other, the head, every published checkpoint, the guard, and the last head each sequencer signed.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from hashlib import sha256

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from muniment import event as definition
from tests.service.rig import Bench


class Naive:
    """A Merkle tree as rows of complete subtrees: row h has the roots of the leaves [i << h, (i + 1) << h)."""

    def __init__(self, leaves: Sequence[bytes]) -> None:
        self.rows = [[sha256(b"\x00" + leaf).digest() for leaf in leaves]]
        while len(self.rows[-1]) > 1:
            below = self.rows[-1]
            self.rows.append([sha256(b"\x01" + below[i] + below[i + 1]).digest() for i in range(0, len(below) - 1, 2)])

    def root(self, size: int) -> bytes:
        """MTH(D[0:size]): the complete subtrees from left to right, folded from the right."""
        if not size:
            return sha256(b"").digest()
        parts, at = [], 0
        for height in reversed(range(size.bit_length())):
            if size >> height & 1:
                parts.append(self.rows[height][at >> height])
                at += 1 << height
        root = parts.pop()
        while parts:
            root = sha256(b"\x01" + parts.pop() + root).digest()
        return root

    def tiles(self, size: int) -> dict[tuple[int, int], bytes]:
        """Every tile of the tree of `size` by (level, index), as wide as it is (C2SP tlog-tiles)."""
        found: dict[tuple[int, int], bytes] = {}
        level = 0
        while size >> 8 * level:
            hashes = self.rows[8 * level][: size >> 8 * level]
            for index in range((len(hashes) + 255) // 256):
                found[level, index] = b"".join(hashes[index * 256 : index * 256 + 256])
            level += 1
        return found


def check_note(note: str, origin: str, public_key: bytes, size: int, root: bytes) -> None:
    """Check a checkpoint down to its bytes: three lines, an empty one, one signature line of this key."""
    text, signatures = note.split("\n\n")
    assert text.split("\n") == [origin, str(size), base64.b64encode(root).decode()], f"checkpoint of {size}: {text}"
    (line,) = signatures.removesuffix("\n").split("\n")
    dash, name, encoded = line.split(" ")
    decoded = base64.b64decode(encoded, validate=True)
    assert (dash, name, len(decoded)) == ("—", origin, 68)
    assert decoded[:4] == sha256(origin.encode() + b"\n\x01" + public_key).digest()[:4]
    Ed25519PublicKey.from_public_bytes(public_key).verify(decoded[4:], text.encode() + b"\n")


async def audit(bench: Bench) -> list[bytes]:
    """Check a whole log and return its leaves. Raises AssertionError naming what is wrong."""
    rig, log_id, origin = bench.rig, bench.log_id, bench.row.origin
    public_key = bench.key.vkey.public_key
    entries, heads, stored, payloads, published = await rig.fetch(
        f'SELECT "index", leaf_key, leaf FROM entries WHERE log_id = {log_id} ORDER BY "index"',
        f"SELECT size, root, logged_at, guard_id, published_size FROM heads WHERE log_id = {log_id}",
        f'SELECT level, "index", data FROM tiles WHERE log_id = {log_id}',
        f'SELECT "index", payload, seed FROM payloads WHERE log_id = {log_id} ORDER BY "index"',
        f"SELECT size, note FROM checkpoints WHERE log_id = {log_id} ORDER BY size",
    )
    leaves = [leaf for _, _, leaf in entries]
    tree = Naive(leaves)
    ((size, root, logged_at, guard_id, published_size),) = heads

    assert [index for index, _, _ in entries] == list(range(size)), "indices are not dense up to the head"
    for (index, key, _), value in zip(entries, tree.rows[0], strict=True):
        assert key == int.from_bytes(value[:8], "big", signed=True), f"leaf key of entry {index}"
    assert root == tree.root(size), f"root of the head at size {size}"

    expected = tree.tiles(size)
    assert {(level, index) for level, index, _ in stored} == set(expected), "tiles missing, or tiles nobody needs"
    for level, index, data in stored:
        assert data == expected[level, index], f"tile {level}/{index}"

    if bench.row.kind == "raw":
        assert len(set(leaves)) == len(leaves), "a raw leaf is in the log twice"
    _check_payloads(bench, leaves, payloads)
    times = [json.loads(leaf)["logged_at"] for leaf in leaves if leaf.startswith(b'{"') and b'"typ":"muniment/' in leaf]
    assert times == sorted(times), "time went back"
    assert not times or definition.parse_time(times[-1]) <= logged_at

    assert (published[-1][0] if published else 0) == published_size
    for at, note in published:
        assert 0 < at <= size, f"checkpoint of {at}, head of {size}"
        check_note(note, origin, public_key, at, tree.root(at))

    guarded = bench.guard.read()
    assert (guarded.origin, guarded.guard_id) == (origin, guard_id)
    assert guarded.size <= size, "the guard is ahead of the database"
    assert guarded.root == tree.root(guarded.size), f"root in the guard, of size {guarded.size}"
    assert guarded.size >= published_size, "published beyond the guard"
    for sequencer in bench.sequencers:
        if sequencer.signed:
            at = sequencer.signed.size
            assert at <= guarded.size, "signed beyond the guard"
            check_note(sequencer.signed.note, origin, public_key, at, tree.root(at))
            assert sequencer.signed.root == tree.root(at)
    return leaves


def _check_payloads(bench: Bench, leaves: Sequence[bytes], rows: Sequence[tuple[int, bytes, bytes]]) -> None:
    """Every payload opens the commitment in its leaf, and belongs to an event."""
    events = [at for at, leaf in enumerate(leaves) if b'"typ":"muniment/event@v1"' in leaf]
    assert [index for index, _, _ in rows] == (events if bench.row.kind == "event" else [])
    for index, payload, seed in rows:
        made = definition.Commitment.to(definition.disclose(seed, json.loads(payload)))
        assert json.loads(leaves[index])["commitment"] == made.digest(), f"commitment of entry {index}"
