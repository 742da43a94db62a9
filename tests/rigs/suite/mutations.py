"""Whatever a verifier reads, spoiled at every byte: nothing may be accepted that is not what was signed.

A seed takes one kind of artefact at a tree size of up to 70,000 and goes through all its bytes. What comes back is one of

- *refused*: an error of the declared kinds;
- *equal*: the change is one the format leaves free (white space of receipt JSON, bytes behind the tile that was asked for, a
  signature line of a key nobody trusts), so that exactly the same was read;
- *weaker*: what opens the event is gone (a spoiled member name is an unknown member, which is ignored), and the verifier says that
  all members are hidden: the same leaf at the same place under the same head, and less of it.

Anything else is *accepted*, which fails the rig.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import permutations
from random import Random
from typing import Any

from muniment._flows.steps import Flow, Request, Response, Retries
from muniment._flows.tilereader import TileReader
from muniment.checkpoint import Checkpoint
from muniment.errors import FormatError, VerificationError
from muniment.hashing import RootHash
from muniment.note import Note, SigningKey, parse_note
from muniment.policy import LogKey, Policy, Witness
from muniment.proofs import verify_consistency, verify_inclusion
from muniment.receipt import Receipt
from muniment.tiles import Bundle, Tile, format_bundle, format_tile, parse_tile_path, width_at
from tests.oracle import NUMBERS, Consistency, Inclusion
from tests.rigs.forest import any_index, any_size, bundle_bytes, bundle_of, events, raws, tile_bytes
from tests.rigs.rig import Context, FaultRig
from tests.unit.samples import SampleLog

REFUSED = (FormatError, VerificationError)
SHORT = 1_500
"""Bytes up to which every position gets every change; longer artefacts get a turned bit and one other change at each position."""
SWAPPED = 60  # receipts of a seed that are mixed with one another
OTHER = SigningKey("log.example/other", b"o" * 32)
WITNESS = SigningKey("witness.example", b"w" * 32)

Judge = Callable[[bytes], str]
"""Says what becomes of spoiled bytes: "refused", "equal" or "weaker"."""


class Accepted(AssertionError):
    """A verifier took what it must not take."""


# --- changes ------------------------------------------------------------------------------------------------------------


def _turn(rng: Random, data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def _replace(rng: Random, data: bytes, at: int) -> bytes:
    return data[:at] + bytes([(data[at] + rng.randrange(1, 256)) % 256]) + data[at + 1 :]


def _remove(_: Random, data: bytes, at: int) -> bytes:
    return data[:at] + data[at + 1 :]


def _duplicate(_: Random, data: bytes, at: int) -> bytes:
    return data[: at + 1] + data[at:]


def _swap(_: Random, data: bytes, at: int) -> bytes:
    return data[:at] + data[at + 1 : at + 2] + data[at : at + 1] + data[at + 2 :]


CHANGES = (_turn, _replace, _remove, _duplicate, _swap)


def changed(rng: Random, good: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield (what was done, the spoiled bytes), for every position of `good`."""
    for at in range(len(good)):
        for change in CHANGES if len(good) <= SHORT else (_turn, rng.choice(CHANGES[1:])):
            bad = change(rng, good, at)
            if bad != good:
                yield f"{change.__name__[1:]} at {at}", bad


def spoil(rng: Random, good: bytes, judge: Judge, what: str) -> Counter[str]:
    """Judge every change of `good`; return how many had which outcome. Raises Accepted, with what was done."""
    if judge(good) != "equal":
        raise AssertionError(f"{what}: the good one is not what it should be")
    outcomes: Counter[str] = Counter()
    for done, bad in changed(rng, good):
        try:
            outcomes[judge(bad)] += 1
        except Exception as error:
            raise Accepted(f"{what}: {done}: {type(error).__name__} {error}: {bad[:4000]!r}") from error
    return outcomes


# --- receipts and checkpoints -------------------------------------------------------------------------------------------


def policy_of(log: SampleLog) -> Policy:
    """Return the policy that trusts this log alone."""
    return Policy((LogKey(log.key.vkey),))


def judge_receipt(good: Receipt, policy: Policy) -> Judge:
    """Judge the bytes of a receipt. Only a receipt equal to `good`, or one that opens nothing and says so, may verify."""
    proved = good.verify(policy)
    hidden = replace(good, disclosures=None)
    closed = hidden.verify(policy)

    def judge(data: bytes) -> str:
        try:
            receipt = Receipt.parse(data)
            found = receipt.verify(policy)
        except REFUSED:
            return "refused"
        if receipt == good and found == proved:
            return "equal"
        if receipt == hidden and found == closed and not found.complete and not found.opened:
            return "weaker"
        raise Accepted("another receipt verifies")

    return judge


def json_receipt(rng: Random) -> Counter[str]:
    """Every byte of receipts in JSON, indented or not."""
    outcomes: Counter[str] = Counter()
    for _ in range(5):
        log = rng.choice([events(), events(), raws()])
        size = any_size(rng)
        receipt = log.receipt(any_index(rng, size), size)
        compact = json.dumps(receipt.to_json(), ensure_ascii=rng.random() < 0.5, separators=(",", ":"))
        text = rng.choice([str(receipt), compact])
        judge = judge_receipt(receipt, policy_of(log))
        outcomes += spoil(rng, text.encode(), judge, f"receipt {receipt.index} of {size}")
    return outcomes


def tlog_proof(rng: Random) -> Counter[str]:
    """Every byte of receipts as C2SP tlog-proof, which has one spelling: nothing is equal."""
    outcomes: Counter[str] = Counter()
    for _ in range(5):
        log = rng.choice([events(), raws()])
        size = any_size(rng)
        receipt = replace(log.receipt(any_index(rng, size), size), commitment=None, disclosures=None)
        judge = judge_receipt(receipt, policy_of(log))
        what = f"tlog-proof {receipt.index} of {size}"
        outcomes += spoil(rng, receipt.to_tlog_proof().encode(), judge, what)
        if set(outcomes) != {"refused"}:
            raise Accepted(f"{what} has two spellings")
    return outcomes


def checkpoint(rng: Random) -> Counter[str]:
    """Every byte of a checkpoint, alone and with a signature line of a key nobody trusts."""
    log, outcomes = rng.choice([events(), raws()]), Counter[str]()
    for _ in range(4):
        good = log.checkpoint(any_size(rng))
        cosigned = good + str(WITNESS.sign(parse_note(good).text))
        outcomes += spoil(rng, good.encode(), _judge_checkpoint(log, good, b""), "checkpoint")
        outcomes += spoil(rng, cosigned.encode(), _judge_checkpoint(log, cosigned, good.encode()), "checkpoint")
    return outcomes


def _judge_checkpoint(log: SampleLog, good: str, signed: bytes) -> Judge:
    """Judge the bytes of a note, of which `signed` is the part that somebody we trust made."""
    policy = policy_of(log)
    expected = policy.verify(good).checkpoint

    def judge(data: bytes) -> str:
        try:
            found = policy.verify(data).checkpoint
        except REFUSED:
            return "refused"
        if found == expected and (data == good.encode() or (signed and data.startswith(signed))):
            return "equal"
        raise Accepted("a note verifies that was not signed")

    return judge


# --- proofs -------------------------------------------------------------------------------------------------------------


def _hashes(data: bytes) -> list[bytes]:
    return [data[at : at + 32] for at in range(0, len(data), 32)]


def inclusion(rng: Random) -> Counter[str]:
    """Every byte of leaf hash, root and proof, and the numbers changed: accepted exactly when the definition says so."""
    outcomes: Counter[str] = Counter()
    for _ in range(4):
        log = rng.choice([events(), raws()])
        size = any_size(rng)
        index = any_index(rng, size)
        tree = log.tree
        good = Inclusion(index, size, tree.leaf_hash(index), tuple(tree.path(index, size)), tree.root(size))

        def judge(data: bytes, good: Inclusion = good) -> str:
            leaf, root, *proof = _hashes(data)
            return _holds(replace(good, leaf=leaf, root=root, proof=tuple(proof)), good)

        outcomes += spoil(rng, b"".join((good.leaf, good.root, *good.proof)), judge, f"inclusion {index} of {size}")
        for change in NUMBERS.values():
            outcomes[_holds(replace(good, index=change(index)), good)] += 1
            outcomes[_holds(replace(good, size=change(size)), good)] += 1
    return outcomes


def consistency(rng: Random) -> Counter[str]:
    """Every byte of both roots and the proof, and the numbers changed: accepted exactly when the definition says so."""
    outcomes: Counter[str] = Counter()
    for _ in range(4):
        tree = rng.choice([events(), raws()]).tree
        second = any_size(rng)
        first = any_index(rng, second) + 1
        good = Consistency(first, second, tree.root(first), tree.root(second), tuple(tree.proof(first, second)))

        def judge(data: bytes, good: Consistency = good) -> str:
            root1, root2, *proof = _hashes(data)
            return _holds(replace(good, root1=root1, root2=root2, proof=tuple(proof)), good)

        data = b"".join((good.root1, good.root2, *good.proof))
        outcomes += spoil(rng, data, judge, f"consistency {first} to {second}")
        for change in NUMBERS.values():
            outcomes[_holds(replace(good, first=change(first)), good)] += 1
            outcomes[_holds(replace(good, second=change(second)), good)] += 1
    return outcomes


def _holds(claim: Inclusion | Consistency, good: Inclusion | Consistency) -> str:
    """Verify a claim and compare with the definition. A path that also fits another size is true there, and no forgery."""
    try:
        if isinstance(claim, Inclusion):
            verify_inclusion(claim.index, claim.size, claim.leaf, claim.proof, claim.root)  # type: ignore[arg-type]
        else:
            verify_consistency(claim.first, claim.second, claim.root1, claim.root2, claim.proof)  # type: ignore[arg-type]
    except REFUSED:
        if claim.holds():
            raise Accepted(f"a true claim is refused: {claim}") from None
        return "refused"
    if claim == good or claim.holds():
        return "equal"
    raise Accepted(f"a false claim verifies: {claim}")


# --- tiles and bundles, as a client reads them ---------------------------------------------------------------------------


class Mirror:
    """Serves the tiles of a log, but for those in `spoiled`; remembers what was asked for."""

    def __init__(self, log: SampleLog) -> None:
        self.log = log
        self.good: dict[str, bytes] = {}
        self.spoiled: dict[str, bytes] = {}

    def __call__(self, path: str) -> bytes:
        return self.spoiled[path] if path in self.spoiled else self.honest(path)

    def honest(self, path: str) -> bytes:
        """Return what the log really holds."""
        if path not in self.good:
            wanted = parse_tile_path(path)
            self.good[path] = (
                tile_bytes(self.log, wanted) if isinstance(wanted, Tile) else bundle_bytes(self.log, wanted)
            )
        return self.good[path]

    def run(self, flow: Flow[Any]) -> Any:
        """Drive a flow with our own answers."""
        answer = None
        try:
            while True:
                step = flow.send(answer)
                if not isinstance(step, Request):
                    raise AssertionError(f"a tile reader only reads, and this is {step}")
                answer = Response(200, {}, self(step.path.removeprefix("/tile/")))
        except StopIteration as stop:
            return stop.value


def tiles(rng: Random) -> Counter[str]:
    """Every byte of every tile and of the bundle that a client reads for one entry; each tile must be tied to its parents."""
    log = rng.choice([events(), raws()])
    size = any_size(rng)
    bundle = bundle_of(any_index(rng, size), size)
    head = Checkpoint(log.key.vkey.name, size, RootHash(log.tree.root(size)))
    mirror = Mirror(log)
    mirror.run(TileReader(Retries()).leaves(head, bundle.index))
    outcomes: Counter[str] = Counter()
    for path, good in list(mirror.good.items()):
        outcomes += spoil(rng, good, _judge_tile(mirror, head, bundle, path), f"{path} of {size}")
    outcomes += _others(rng, mirror, head, bundle)
    return outcomes


def _judge_tile(mirror: Mirror, head: Checkpoint, bundle: Bundle, path: str) -> Judge:
    """Judge the bytes served at `path`, by a reader that has what it needs besides, now and then by a new one."""
    good = mirror.honest(path)
    leaves = [entry.leaf for entry in mirror.log.entries[bundle.index * 256 :][: bundle.width]]
    wanted = parse_tile_path(path)
    full = isinstance(wanted, Bundle) or wanted.width == 256
    reader = TileReader(Retries())
    count = 0

    def read(reader: TileReader) -> None:
        if isinstance(wanted, Bundle):
            same = mirror.run(reader.leaves(head, bundle.index)) == leaves
        else:
            same = mirror.run(reader.hashes(head, wanted.level, wanted.index)) == good
        if not same:
            raise Accepted("spoiled bytes were given out")

    def judge(data: bytes) -> str:
        nonlocal reader, count
        count += 1
        if not full or not count % 64:  # the edge is checked as a whole, before anything is kept
            reader = TileReader(Retries())
        mirror.spoiled = {path: data}
        try:
            read(reader)
        except REFUSED:
            if not count % 64:  # what was refused must not have stayed in the reader
                mirror.spoiled = {}
                read(reader)
                reader = TileReader(Retries())
            return "refused"
        finally:
            mirror.spoiled = {}
        reader = TileReader(Retries())
        if data.startswith(good):
            return "equal"
        raise Accepted("a tile was taken that does not lead to the root")

    return judge


def _others(rng: Random, mirror: Mirror, head: Checkpoint, bundle: Bundle) -> Counter[str]:
    """Good tiles and bundles of another place or another log, served where they do not belong."""
    outcomes: Counter[str] = Counter()
    other = raws() if mirror.log is events() else events()
    for path in list(mirror.good):
        wanted = parse_tile_path(path)
        judge = _judge_tile(mirror, head, bundle, path)
        strangers = [(other, wanted)]
        for index in {wanted.index - 1, wanted.index + 1, rng.randrange(300)} - {wanted.index}:
            level = wanted.level if isinstance(wanted, Tile) else 0
            if width := width_at(level, index, head.size) if index >= 0 else 0:
                strangers.append((mirror.log, wanted._replace(index=index, width=min(width, wanted.width))))
        if isinstance(wanted, Tile) and wanted.level:
            strangers.append((mirror.log, wanted._replace(level=wanted.level - 1)))
        for log, place in strangers:
            found = tile_bytes(log, place) if isinstance(place, Tile) else bundle_bytes(log, place)
            name = format_tile(place) if isinstance(place, Tile) else format_bundle(place)
            if found != mirror.good[path] and judge(found) != "refused":
                raise Accepted(f"{name} is taken for {path} at size {head.size}")
            outcomes["refused"] += 1
    return outcomes


# --- parts of one receipt in another, and other keys ---------------------------------------------------------------------

PARTS = [
    ("leaf",), ("index",), ("proof",), ("origin",), ("checkpoint",), ("commitment",), ("disclosures",), ("leaf", "index"), ("leaf", "proof"),
    ("index", "proof"), ("leaf", "commitment", "disclosures"), ("leaf", "commitment", "disclosures", "proof"), ("commitment", "disclosures"),
    ("leaf", "commitment", "disclosures", "index"), ("tree_size", "checkpoint"), ("tree_size", "proof"),
    ("origin", "tree_size", "checkpoint"),
]  # fmt: skip


def swaps(rng: Random) -> Counter[str]:
    """Parts of each of 60 receipts put into each other one: valid receipts, of another entry (E4)."""
    sizes = [any_size(rng), any_size(rng)]
    places = [(rng.choice([events(), events(), raws()]), size) for size in rng.choices(sizes, k=SWAPPED)]
    receipts = [log.receipt(any_index(rng, size), size) for log, size in places]
    policy = Policy((LogKey(events().key.vkey), LogKey(raws().key.vkey)))
    outcomes: Counter[str] = Counter()
    for one, other in permutations(receipts, 2):
        parts = rng.choice(PARTS)
        mixed = replace(one, **{name: getattr(other, name) for name in parts})
        if mixed in (one, other):
            continue
        try:
            found = mixed.verify(policy)
        except REFUSED:
            outcomes["refused"] += 1
            continue
        closed = (replace(one, disclosures=None), replace(one, disclosures=None, commitment=None))
        if mixed not in closed or found.opened or found.complete:
            raise Accepted(f"{parts} of receipt {other.index} of {other.tree_size} in {one.index} of {one.tree_size}")
        outcomes["weaker"] += 1
    return outcomes


def strangers(rng: Random) -> Counter[str]:
    """Good proofs under heads that the log's key did not sign for this origin, and policies that do not vouch for it."""
    outcomes: Counter[str] = Counter()
    for _ in range(200):
        log = rng.choice([events(), raws()])
        size = any_size(rng)
        receipt = log.receipt(any_index(rng, size), size)
        receipt.verify(policy_of(log))
        for what, changed_receipt, policy in _foreign(rng, log, receipt):
            try:
                changed_receipt.verify(policy)
            except REFUSED:
                outcomes["refused"] += 1
            else:
                raise Accepted(f"{what}: receipt {receipt.index} of {size}")
    return outcomes


def _foreign(rng: Random, log: SampleLog, receipt: Receipt) -> Iterator[tuple[str, Receipt, Policy]]:
    key, trusted = log.key, policy_of(log)
    note = parse_note(receipt.checkpoint)
    line = note.signatures[0]
    elsewhere = Note(note.text.replace(receipt.origin, OTHER.vkey.name), ())
    namesake = SigningKey(receipt.origin, b"n" * 32)
    older = parse_note(log.checkpoint(any_size(rng)))

    def under(text: str, *lines: object) -> Receipt:
        return replace(receipt, checkpoint=str(replace(note, text=text, signatures=lines)))

    yield "no trust at all", receipt, Policy(())
    yield "another log is trusted", receipt, Policy((LogKey(OTHER.vkey),))
    yield "the same name, another key", receipt, Policy((LogKey(namesake.vkey),))
    yield "an unreachable quorum", receipt, replace(trusted, witnesses=(Witness("w", str(WITNESS.vkey)),), quorum="w")
    yield "signed by another log's key", under(note.text, OTHER.sign(note.text)), trusted
    yield "signed by a namesake", under(note.text, namesake.sign(note.text)), trusted
    yield "signed by a witness alone", under(note.text, WITNESS.sign(note.text)), trusted
    forged = replace(namesake.sign(note.text), key_id=line.key_id)
    yield "a namesake's signature under our key id", under(note.text, forged), trusted
    yield "our key, other origin", under(elsewhere.text, key.sign(elsewhere.text)), trusted
    both = Policy((*trusted.logs, LogKey(OTHER.vkey)))
    yield "our key, other origin, both trusted", under(elsewhere.text, key.sign(elsewhere.text)), both
    renamed = replace(under(elsewhere.text, key.sign(elsewhere.text)), origin=OTHER.vkey.name)
    yield "our key, other origin, also in the receipt", renamed, both
    signed_elsewhere = under(elsewhere.text, OTHER.sign(elsewhere.text))
    yield "head of another log over our tree", signed_elsewhere, both
    if older.text != note.text:
        yield "signature of another head", under(note.text, *older.signatures), trusted
        yield "another head's text", under(older.text, line), trusted
        yield "another head", under(older.text, *older.signatures), trusted


# --- the rig ------------------------------------------------------------------------------------------------------------

KINDS = {
    "receipt": json_receipt,
    "tlog-proof": tlog_proof,
    "inclusion": inclusion,
    "checkpoint": checkpoint,
    "consistency": consistency,
    "tile": tiles,
    "swap": swaps,
    "stranger": strangers,
}


def run(context: Context) -> None:
    """Run the kinds in turn. Points are what was refused; `equal` and `weaker` are counted apart."""
    for seed in context.each():
        kind = list(KINDS)[seed % len(KINDS)]
        try:
            outcomes = KINDS[kind](Random(seed))
        except Exception as error:
            raise AssertionError(f"mutations, seed {seed}, {kind}: {error}") from error
        context.done(outcomes["refused"], accepted=0, **{f"{kind} refused": outcomes.pop("refused")}, **outcomes)


RIGS = [
    FaultRig(
        name="mutations",
        goal="verifier mutations accepted",
        unit="mutations",
        run=run,
        quick=8,
        full=320,
    )
]
