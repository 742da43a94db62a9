"""Bits that flip before a signature: in a leaf hash, a leaf, a tile, the right edge, the root, the stored rows, or the note.

Every position of one batch. Whatever a flip hits, either nothing is signed, or (when the database itself refused the spoiled append
and it was made again from what is stored) what is signed is the tree of the true leaves, recomputed by code of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from muniment.hashing import EMPTY_ROOT, LeafHash, RootHash
from muniment.note import Note, SigningKey
from muniment.tree import Edge, Growth
from muniment_server.errors import ReadOnly, StoreError
from muniment_server.storage.catalog import LogRow
from muniment_server.storage.log import Head, Reread
from muniment_server.storage.sqlite.open import open_sqlite
from muniment_server.write import parts
from muniment_server.write import sequencer as module
from muniment_server.write.admission import RawDraft
from muniment_server.write.guard import Guard
from muniment_server.write.sequencer import Sequencer
from muniment_server.write.submission import Submission
from tests.rigs.rig import Context, FaultRig
from tests.service.audit import Naive, check_note
from tests.service.faulty import Fault, Faulty
from tests.service.rig import NOW, raw

SIZES = {3: (1, 1), 254: (3, 200)}
"""Sizes before the batch: entries of the batch, and of how many positions one is taken. All of them at 3; at 254 a tile becomes full."""
BATCH = [b"new leaf %d" % number for number in range(3)]


def flip(data: bytes, bit: int) -> bytes:
    """Return `data` with one bit changed."""
    spoiled = bytearray(data)
    spoiled[bit // 8] ^= 1 << bit % 8
    return bytes(spoiled)


@dataclass(frozen=True)
class Flip:
    """A place where a bit flips: `what`, which element of it, and which bit."""

    what: str
    at: int
    bit: int


def every_flip(size: int) -> Iterator[Flip]:
    """Yield every position of the batch that is appended to a tree of `size`."""
    batch = BATCH[: SIZES[size][0]]
    for at, leaf in enumerate(batch):
        yield from (Flip("leaf hash", at, bit) for bit in range(256))
        yield from (Flip("leaf", at, bit) for bit in range(8 * len(leaf)))
        yield from (Flip("stored leaf", at, bit) for bit in range(8 * len(leaf)))
    yield from (Flip("root", 0, bit) for bit in range(256))
    yield from (Flip("note", 0, bit) for bit in range(8 * 150))
    for what in ("tile", "stored tile", "edge"):
        yield from (Flip(what, 0, bit) for bit in range(256 * min(size + len(batch), 256)))
    yield from (Flip("edge", row, bit) for row in (1, 2) for bit in range(256 * (size >> row)))


class Bed:
    """A log of some size, made once and copied for each flip."""

    def __init__(self, size: int, folder: Path) -> None:
        self.size, self.folder = size, folder
        self.key = SigningKey.generate("example.com/flips")
        self.leaves = [b"old leaf %d" % number for number in range(size)]
        self.row = LogRow(1, "flips", self.key.vkey.name, "raw", True, False, NOW)
        asyncio.run(self._make())
        self.batch = BATCH[: SIZES[size][0]]
        self.tree = Naive([*self.leaves, *self.batch])

    async def _make(self) -> None:
        base = self.folder / "base"
        base.mkdir(parents=True)
        guarded = Guard(base / "guard").create(self.key.vkey.name, self.key.vkey.key_id)
        store = await open_sqlite(base / "store.sqlite")
        await store.catalog.create_log(self.row, Head(0, EMPTY_ROOT, 0, 0, guarded.guard_id))
        sequencer = Sequencer(store, self.row, self.key, Guard(base / "guard"))
        await sequencer.start()
        await sequencer.run([raw(*self.leaves)])
        await store.close()

    async def meet(self, one: Flip) -> str:
        """Let one bit flip; return "refused", "healed" or "too short". Raises AssertionError when a spoiled head is signed."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        for file in (self.folder / "base").iterdir():
            shutil.copyfile(file, folder / file.name)
        try:
            return await self._meet(one, folder)
        finally:
            shutil.rmtree(folder)

    async def _meet(self, one: Flip, folder: Path) -> str:
        store, guard = await open_sqlite(folder / "store.sqlite"), Guard(folder / "guard")
        faulty = Faulty(store)
        sequencer = Sequencer(faulty, self.row, self.key, guard)  # type: ignore[arg-type]
        await sequencer.start()
        before, guarded = sequencer.signed, guard.read()
        submission: Submission = raw(*self.batch)
        with contextlib.ExitStack() as stack:
            submission = _arrange(one, stack, sequencer, faulty, submission)
            try:
                await sequencer.run([submission])
            except (ReadOnly, StoreError) as error:
                if sequencer.signed != before or (one.what != "note" and guard.read() != guarded):
                    raise AssertionError(f"{one}: refused ({error}), but something was signed or guarded") from error
                return "refused"
            finally:
                await store.close()
        self._check_signed(one, sequencer)
        return "healed"

    def _check_signed(self, one: Flip, sequencer: Sequencer) -> None:
        signed = sequencer.signed
        if signed is None or signed.size != self.size + len(self.batch):
            raise AssertionError(f"{one}: nothing was refused, and nothing signed")
        try:
            check_note(signed.note, self.row.origin, self.key.vkey.public_key, signed.size, self.tree.root(signed.size))
        except Exception as error:
            raise AssertionError(f"{one}: a spoiled head was signed") from error


def _arrange(
    one: Flip, stack: contextlib.ExitStack, sequencer: Sequencer, faulty: Faulty, clean: Submission
) -> Submission:
    """Let the bit flip at its place. Returns the submission, which may be spoiled itself."""
    patch: dict[tuple[ModuleType, str], Callable[..., Any]] = {}
    real_grow, real_sign = parts.grow, module.sign_checkpoint
    if one.what == "leaf hash":
        drafts = list(clean.drafts)
        draft = drafts[one.at]
        if not isinstance(draft, RawDraft):
            raise AssertionError("a raw log has raw drafts")
        drafts[one.at] = draft._replace(hash=LeafHash(flip(draft.hash, one.bit)))
        return Submission(drafts)
    if one.what == "leaf":
        real_append = faulty.store.log.append

        async def append(grown: Any, *words: Any) -> Reread:
            leaves = list(grown.leaves)
            leaves[one.at] = flip(leaves[one.at], one.bit)
            return await real_append(replace(grown, leaves=leaves), *words)

        faulty.store.log.append = append  # type: ignore[method-assign]
    elif one.what == "stored leaf":
        faulty.plan("append", Fault(change=lambda found: (_spoil(found[0], one), found[1])))
    elif one.what == "stored tile":
        faulty.plan("append", Fault(change=lambda found: (found[0], _spoil_tile(found[1], one))))
    elif one.what == "edge":
        rows = sequencer._state.edge.levels[0]  # type: ignore[union-attr]
        row = one.at % len(rows)
        if one.bit // 8 < len(rows[row]):
            rows[row][one.bit // 8] ^= 1 << one.bit % 8
    elif one.what == "note":

        def sign(*words: Any) -> Note:
            return _Spoiled(str(real_sign(*words)), one.bit)  # type: ignore[return-value]

        patch[module, "sign_checkpoint"] = sign
    else:
        patch[parts, "grow"] = lambda edge, hashes: _spoil_growth(real_grow(edge, hashes), one)
    for (where, name), function in patch.items():
        stack.callback(setattr, where, name, getattr(where, name))
        setattr(where, name, function)
    return clean


class _Spoiled:
    def __init__(self, text: str, bit: int) -> None:
        data = text.encode()
        self._text = flip(data, bit % (8 * len(data))).decode("utf-8", "surrogateescape")

    def __str__(self) -> str:
        return self._text


def _spoil(leaves: list[bytes], one: Flip) -> list[bytes]:
    return [flip(leaf, one.bit) if at == one.at else leaf for at, leaf in enumerate(leaves)]


def _spoil_tile(tiles: dict[Any, bytes], one: Flip) -> dict[Any, bytes]:
    where = sorted(tiles)[one.at % len(tiles)]
    return tiles | {where: flip(tiles[where], one.bit % (8 * len(tiles[where])))}


def _spoil_growth(growth: Growth, one: Flip) -> Growth:
    if one.what == "root":
        edge = _Edge(growth.edge.size, growth.edge.levels)
        edge.bit = one.bit
        return growth._replace(edge=edge)
    tiles = list(growth.tiles)
    at = one.at % len(tiles)
    tiles[at] = tiles[at]._replace(data=flip(tiles[at].data, one.bit % (8 * len(tiles[at].data))))
    return growth._replace(tiles=tiles)


class _Edge(Edge):
    bit = 0

    def root(self) -> RootHash:
        return RootHash(flip(super().root(), self.bit))


def work(context: Context) -> None:
    """Seed n is every eighth position from n on, for both sizes."""
    root = Path("/dev/shm") if Path("/dev/shm").is_dir() else context.folder
    for seed in context.each():
        folder = Path(tempfile.mkdtemp(prefix="muniment-presign-", dir=root))
        try:
            for size in SIZES:
                _run_all(context, Bed(size, folder / str(size)), seed)
        finally:
            shutil.rmtree(folder)


def _run_all(context: Context, bed: Bed, seed: int) -> None:
    flips = list(every_flip(bed.size))
    random.Random(bed.size).shuffle(flips)
    for one in flips[seed % PARTS :: PARTS * SIZES[bed.size][1]]:
        outcome = asyncio.run(bed.meet(one))
        context.done(1, **{outcome.replace(" ", "_"): 1})


PARTS = 8
RIGS = [FaultRig("presign", "bit flips before signing", "flips", work, 3, PARTS)]
