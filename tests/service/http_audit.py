"""The audit that ends a service test: download everything a stranger can, recompute it, and compare it with the checkpoint.

Nothing of muniment.tree or muniment.tiles is used here: paths, widths and hashes are computed anew from the C2SP texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256

import httpx

from muniment.checkpoint import Checkpoint
from muniment.policy import Policy
from muniment_server.check.fsck import fsck as check
from muniment_server.settings import Settings
from muniment_server.storage import Store
from muniment_server.write.guard import Guard
from tests.live import run
from tests.service.http_world import Instance, in_store


def tile_name(index: int) -> str:
    """N of a tile path: groups of three digits, all but the last after an x."""
    digits = f"{index:0{(len(str(index)) + 2) // 3 * 3}d}"
    groups = [digits[at : at + 3] for at in range(0, len(digits), 3)]
    return "/".join([f"x{group}" for group in groups[:-1]] + groups[-1:])


def tile_paths(size: int) -> Iterator[tuple[int, int, int, str]]:
    """(level, index, width, path below tile/) of every hash tile of the tree of `size`."""
    level = 0
    while hashes := size // 256**level:
        for index in range(-(-hashes // 256)):
            width = min(256, hashes - 256 * index)
            yield level, index, width, f"{level}/{tile_name(index)}" + ("" if width == 256 else f".p/{width}")
        level += 1


def tree_levels(leaf_hashes: list[bytes]) -> list[list[bytes]]:
    """For each tile level, the roots of all full subtrees of 256**level leaves."""
    levels = [leaf_hashes]
    while len(levels[-1]) >= 256:
        below = levels[-1]
        levels.append([merkle(below[at : at + 256]) for at in range(0, len(below) - 255, 256)])
    return levels


def merkle(hashes: list[bytes]) -> bytes:
    """MTH over hashes of equal subtrees, pair by pair."""
    while len(hashes) > 1:
        odd = hashes[-1:] if len(hashes) % 2 else []
        pairs = zip(hashes[::2], hashes[1::2], strict=False)
        hashes = [sha256(b"\x01" + left + right).digest() for left, right in pairs] + odd
    return hashes[0]


class Roots:
    """The root of every size of one tree, from rows of complete subtrees."""

    def __init__(self, leaves: Sequence[bytes]) -> None:
        self._rows = [[sha256(b"\x00" + leaf).digest() for leaf in leaves]]
        while len(self._rows[-1]) > 1:
            row = self._rows[-1]
            pairs = zip(row[::2], row[1::2], strict=False)
            self._rows.append([sha256(b"\x01" + left + right).digest() for left, right in pairs])

    def at(self, size: int) -> bytes:
        """MTH(D[0:size])."""
        root, at = b"", size
        for height, row in enumerate(self._rows):  # the smallest complete subtree is the rightmost one
            if size >> height & 1:
                at -= 1 << height
                left = row[at >> height]
                root = sha256(b"\x01" + left + root).digest() if root else left
        return root


def split_bundle(data: bytes) -> list[bytes]:
    """The leaves of an entry bundle."""
    leaves, at = [], 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 2], "big")
        leaves.append(data[at + 2 : at + 2 + length])
        assert len(leaves[-1]) == length
        at += 2 + length
    return leaves


@dataclass(frozen=True)
class Audited:
    """What the audit found."""

    checkpoint: Checkpoint
    leaves: list[bytes]
    tiles: int


def audit(http: httpx.Client, policy: Policy, prefix: str = "") -> Audited:
    """Recompute a log from its public bytes: bundles, every tile of the latest checkpoint, and its root."""
    head = policy.verify(http.get(f"{prefix}/checkpoint").text).checkpoint
    return _audit_at(http, head, prefix)


def _audit_at(http: httpx.Client, head: Checkpoint, prefix: str) -> Audited:
    leaves: list[bytes] = []
    for index in range(-(-head.size // 256)):
        width = min(256, head.size - 256 * index)
        path = f"{prefix}/tile/entries/{tile_name(index)}" + ("" if width == 256 else f".p/{width}")
        part = split_bundle(_get(http, path))
        assert len(part) == width, path
        leaves += part
    levels = tree_levels([sha256(b"\x00" + leaf).digest() for leaf in leaves])
    tiles = 0
    for level, index, width, path in tile_paths(head.size):
        wanted = b"".join(levels[level][256 * index : 256 * index + width])
        assert _get(http, f"{prefix}/tile/{path}") == wanted, path
        tiles += 1
    assert merkle(levels[0]) == head.root, "the leaves do not hash to the signed root"
    return Audited(head, leaves, tiles)


def _get(http: httpx.Client, path: str) -> bytes:
    answer = http.get(path)
    assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text}"
    return answer.content


def fsck(instance: Instance, *, command: bool = False) -> None:
    """The server's own check must agree: in this process, or as the command that operators run."""
    if command:
        done = run("fsck", "--data", instance.data, database=instance.database, check=False)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return

    async def work(settings: Settings, store: Store) -> None:
        for row in await store.catalog.logs():
            guard = Guard(settings.guard_file(row.name))
            policy = Policy.read(settings.policy)  # with the logs that were made since
            report = await check(store, row, policy, guard, lambda _done, _all: None)
            assert report.clean, report.findings

    in_store(instance, work)
