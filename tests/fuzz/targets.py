"""What is fuzzed and what must hold.

Three oracles. Only the declared errors escape. What was accepted is its own serialisation, byte for byte, where the format has one
spelling. What verified is true of the sample log it is about: nothing else was ever signed.
"""

from __future__ import annotations

import json
from io import BytesIO
from random import Random

from muniment import strictjson
from muniment.checkpoint import parse_checkpoint
from muniment.encoding import b64, b64url, parse_b64, parse_b64url, parse_decimal, parse_hex
from muniment.errors import BadProof, FormatError, QueryError
from muniment.event import (
    EventLeaf,
    OwnLeaf,
    canonical_event,
    claims_reserved_type,
    event_leaf,
    format_time,
    parse_leaf,
    parse_time,
)
from muniment.evidence import Evidence, is_evidence
from muniment.evidence import verify as verify_evidence
from muniment.note import SigningKey, VerifierKey, parse_note, verify_note
from muniment.policy import Policy
from muniment.proofs import verify_consistency, verify_inclusion
from muniment.query import parse_query
from muniment.receipt import Receipt
from muniment.receipts import Header, ReceiptsReader, ReceiptsWriter, is_bundle, lines_of
from muniment.sse import HEARTBEAT, CheckpointEvent, EventReader, format_event
from muniment.tiles import Tile, decode_bundle, encode_bundle, format_bundle, format_tile, parse_tile_path
from tests.evidence_vectors import CASES, LARGEST, MINE, THEIRS
from tests.evidence_vectors import POLICY as FORKED
from tests.fuzz.target import TARGETS, Target, expect, fuzzed
from tests.oracle import Consistency, Inclusion, byte_tree, spoil_consistency, spoil_inclusion
from tests.service.search_oracle import Looked, evaluator
from tests.unit.samples import KEY, ORIGIN, POLICY, SampleLog, event_log, policy_of, raw_log

LOG, RAW = event_log(), raw_log()
BOTH = policy_of(LOG, RAW)
SIGNED = {parse_note(log.checkpoint(size)).text for log in (LOG, RAW) for size in range(1, len(log.entries) + 1)}
WITNESS = SigningKey("witness.example", b"w" * 32)
COSIGNED = LOG.checkpoint(5) + str(WITNESS.sign(parse_note(LOG.checkpoint(5)).text))
TREE = byte_tree(300)


def _text(data: bytes) -> str:
    """Any text, also what is no UTF-8: parsers that take str must survive it."""
    return data.decode("utf-8", "surrogateescape")


# --- streams ------------------------------------------------------------------------------------------------------------


@fuzzed(
    "sse",
    [
        format_event(CheckpointEvent(5, LOG.checkpoint(5))),
        HEARTBEAT + format_event(CheckpointEvent(0, "")),
        "event: x\n\n",
    ],
    [b"\n", b"\r\n", b"data: ", b"id: 7\n", b"event: message\n", b"\xef\xbb\xbf"],
)
def _sse(data: bytes) -> None:
    whole, reader = EventReader().read(data), EventReader()
    found = [event for byte in data for event in reader.read(bytes([byte]))]
    expect(found == whole, "the cuts change what is read")
    expect(EventReader().read(b"".join(map(format_event, whole))) == whole, "another event comes back")


# --- notes, checkpoints, keys -------------------------------------------------------------------------------------------


@fuzzed(
    "note",
    [LOG.checkpoint(5), COSIGNED, RAW.checkpoint(3), "one\n\ntwo\n\n— n AAAAAAAA\n"],
    [ORIGIN.encode(), b"\n\n\xe2\x80\x94 "],
)
def _note(data: bytes) -> None:
    note = parse_note(data)
    expect(str(note).encode() == data, "a note has two spellings")
    expect(parse_note(_text(data)) == note, "bytes and text are read differently")
    verify_note(note, [KEY.vkey, RAW.key.vkey])
    expect(note.text in SIGNED, "a text verified that was never signed")


@fuzzed("checkpoint", [LOG.checkpoint(5), COSIGNED, RAW.checkpoint(3), *SIGNED], [ORIGIN.encode()])
def _checkpoint(data: bytes) -> None:
    try:
        text = parse_note(data).text
    except FormatError:
        text = _text(data)
    checkpoint = parse_checkpoint(text)
    expect(str(checkpoint) == text, "a checkpoint has two spellings")
    found = BOTH.verify(data)
    expect(str(found.checkpoint) in SIGNED, "a checkpoint verified that was never signed")
    expect(found.note.encode() == data, "the note changed")


@fuzzed("vkey", [str(KEY.vkey), str(RAW.key.vkey), str(WITNESS.vkey)], [b"+"])
def _vkey(data: bytes) -> None:
    key = VerifierKey.parse(_text(data))
    expect(str(key) == _text(data), "a vkey has two spellings")
    key.verify("text\n", KEY.sign("text\n").signature)
    expect(key.public_key == KEY.vkey.public_key, "another key verified our signature")


@fuzzed("signing-key", [KEY.reveal(), RAW.key.reveal()], [b"+", b"PRIVATE+KEY+"])
def _signing_key(data: bytes) -> None:
    try:
        key = SigningKey.parse(_text(data))
    except FormatError as error:
        secrets = [known.reveal().split("+", 4)[4] for known in (KEY, RAW.key)]
        expect(not any(secret[8:30] in repr(error) for secret in secrets), "an error shows a secret")
        raise
    expect(key.reveal() == _text(data), "a signing key has two spellings")


# --- queries ---

QUERIES = [
    'actor:alice -action:invoice.* amount:>=1.5e2 "order 17" user."a.b":true bare',
    'a:"\\u0041" b:* -c:<-1 "\\"x" __proto__:null',
    'n:150 amount:"150" b:<=2.5 b:0 -b:1e0 user.team:bi* c.d:"order 17" "":"" n:*',
    "note:' OR 1=1 -- x'); DROP TABLE entries;-- a:%_ $1 ? -NULL \\x00",
]
SEARCHED = [
    Looked({"actor": "alice", "action": "invoice.approve", "amount": 150, "user": {"a.b": True, "team": "billing"}}),
    Looked({"a": "A", "b": [None, 2.5, 0, 1, -1, "1"], "c": [{"d": "order 17"}], "__proto__": None, "": ""}),
    Looked({"n": "150", "note": 'a bare "x" 1 null', "user": "a.b 17", "c": ["' OR 1=1 --", "%_", "*", ">=1"]}),
]


@fuzzed("search-query", QUERIES, [b'"', b":", b"-", b"*", b">=", b"\\u", b" "], refusals=(QueryError,))
def _search_query(data: bytes) -> None:
    text = _text(data)
    try:
        query = parse_query(text)
    except QueryError as error:
        expect(0 <= error.position <= len(text), "an error is nowhere in the query")
        raise
    expect(parse_query(f" {text}\n") == query, "white space around a query counts")
    matches = evaluator(text)
    for event in SEARCHED:
        expect(query.matches(event.event) is matches(event), "a second evaluator finds something else")


# --- tiles and small encodings ------------------------------------------------------------------------------------------


@fuzzed(
    "tile-path",
    ["0/000", "1/x001/234", "63/x001/x234/067.p/255", "entries/000.p/1", "entries/x009/x223/x372/x036/x854/x775/807"],
    [b"x000/", b".p/", b"x009/"],
)
def _tile_path(data: bytes) -> None:
    found = parse_tile_path(_text(data))
    spelled = format_tile(found) if isinstance(found, Tile) else format_bundle(found)
    expect(spelled == _text(data), "a path has two spellings")
    expect(1 <= found.width <= 256, "no such width")


@fuzzed(
    "bundle",
    [encode_bundle([b"", b"a", bytes(300)]), encode_bundle(RAW.tree.leaves), b""],
    [b"\x00\x00", b"\x00\x01", b"\xff\xff"],
)
def _bundle(data: bytes) -> None:
    expect(encode_bundle(decode_bundle(data)) == data, "a bundle has two spellings")


@fuzzed(
    "encoding",
    [
        "0",
        "9223372036854775807",
        b64(bytes(range(32))),
        b64url(bytes(31)),
        "00ff" * 16,
        "2026-11-20T12:00:00.123Z",
        "QQ==",
        "QQ",
    ],
)
def _encoding(data: bytes) -> None:
    text, accepted = _text(data), 0
    for parse, spell in (
        (parse_decimal, str),
        (parse_b64, b64),
        (parse_b64url, b64url),
        (lambda word: parse_hex(word, 32), bytes.hex),
        (parse_time, format_time),
    ):
        try:
            value = parse(text)  # type: ignore[operator]
        except FormatError:
            continue
        accepted += 1
        expect(spell(value) == text, f"{value!r} has two spellings")
    if not accepted:
        raise FormatError("no encoding took it")


# --- JSON, events, leaves -----------------------------------------------------------------------------------------------

_JSON_WORDS = [
    b'"a":',
    b'{"a":1}',
    b"[",
    b"]",
    b'"\\ud800"',
    b'"\\u0041"',
    b"NaN",
    b"null",
    b"true",
    b'"typ":"muniment/x"',
    b"[" * 40,
    b"]" * 40,
]
_JSON_SEEDS = [
    b'{"a":[1,2.5,-0,1e2,{"b":null}],"c":"\\u00e9\\n\\ud83d\\ude00","":true}', b'{"actor":"alice","amount":12.50,"tags":["x","y"]}',
    b" [ 1 , 9007199254740991 , 0.1e-5 ] ", b'{"\\ue000":1,"\xf0\x9f\x98\x80":2}', *(strictjson.canonical(entry.event) for entry in LOG.entries[1:]),
]  # fmt: skip


@fuzzed("json", _JSON_SEEDS, _JSON_WORDS)
def _json(data: bytes) -> None:
    value = strictjson.parse(data)
    canonical = strictjson.canonical(value)
    expect(strictjson.parse(canonical) == value, "the canonical form means something else")
    expect(strictjson.canonical(strictjson.parse(canonical)) == canonical, "the canonical form is not stable")
    expect(json.loads(data) == value, "the standard library reads another value")
    expect(json.loads(canonical) == value, "the standard library reads the canonical form otherwise")


@fuzzed("event", _JSON_SEEDS, _JSON_WORDS)
def _event(data: bytes) -> None:
    event = strictjson.parse(data)
    canonical = canonical_event(event)
    expect(canonical == strictjson.canonical(event), "two canonical forms of one event")
    expect(canonical_event(strictjson.parse(canonical)) == canonical, "the canonical form is not stable")


@fuzzed(
    "leaf",
    [*LOG.tree.leaves[:3], *RAW.tree.leaves, b'{"typ":"muniment/x@v1","a":1}', b'\xef\xbb\xbf {"typ":"muniment/x"}'],
    [*_JSON_WORDS, b"muniment/", b'"typ"'],
)
def _leaf(data: bytes) -> None:
    reserved = claims_reserved_type(data)
    try:
        lenient = json.loads(data)
    except (ValueError, RecursionError):
        lenient = None
    if isinstance(lenient, dict) and str(lenient.get("typ")).startswith("muniment/"):
        expect(reserved, "json.loads takes it for one of our leaves")
    found = parse_leaf(data)
    if isinstance(found, EventLeaf):
        expect(event_leaf(found.commitment, format_time(found.logged_at)) == data, "an event leaf has two spellings")
    elif isinstance(found, OwnLeaf):
        expect(strictjson.canonical(found.value) == data, "an own leaf has two spellings")
    expect(found is None or reserved, "a leaf of ours that a submitter could have made")


# --- receipts and policies ----------------------------------------------------------------------------------------------

_RECEIPTS = [*LOG.receipts(), *RAW.receipts()]


def _true(receipt: Receipt) -> None:
    """Check that what `receipt` proves is so in the sample log it names."""
    found = receipt.verify(BOTH)
    log = LOG if found.checkpoint.origin == ORIGIN else RAW
    entry = log.entries[found.index]
    expect(str(found.checkpoint) in SIGNED, "a checkpoint verified that was never signed")
    expect(found.leaf == entry.leaf, "a leaf verified that is not in the log")
    event = entry.event or {}
    expect(found.opened == {name: event[name] for name in found.opened}, "a member opened that was never committed")
    closed = ("*",) if receipt.commitment is None and entry.event else tuple(sorted(set(event) - set(found.opened)))
    expect(found.hidden == closed, "hidden members are not all named")


@fuzzed("receipt", [str(receipt) for receipt in _RECEIPTS], [*_JSON_WORDS, b'"index"', b'"hashes"', b'"disclosures"'])
def _receipt(data: bytes) -> None:
    receipt = Receipt.parse(data)
    expect(Receipt.parse(str(receipt)) == receipt, "a receipt does not survive writing")
    _true(receipt)


def _bundle(log: SampleLog, indices: range, claimed: tuple[int, int] | None) -> bytes:
    lines: list[bytes] = []
    writer = ReceiptsWriter(lines.append, Header(log.key.vkey.name, log.checkpoint(len(log.entries)), claimed))
    for index in indices:
        writer.add(log.receipt(index))
    writer.end()
    return b"".join(lines)


@fuzzed(
    "receipts",
    [
        _bundle(LOG, range(1, 4), (1, 4)),
        _bundle(LOG, range(0, 9, 4), None),
        _bundle(RAW, range(6), (0, 6)),
        _bundle(RAW, range(0), None),
    ],
    [
        *_JSON_WORDS,
        b"\n",
        b'"range":[0,3],',
        b'"index"',
        b'"hashes"',
        b'{"count":1,"typ":"muniment/receipts-end@v1"}\n',
    ],
)
def _receipts(data: bytes) -> None:
    reader = ReceiptsReader(lines_of(BytesIO(data)), BOTH)
    lines: list[bytes] = []
    writer = ReceiptsWriter(lines.append, reader.header)
    for receipt, found in reader:
        _true(receipt)
        expect(found == receipt.verify(BOTH), "an entry proves another thing than its receipt")
        writer.add(receipt)
    writer.end()
    expect(b"".join(lines) == data or reader.erasures > 0, "a bundle has two spellings")
    expect(is_bundle(BytesIO(data).readline()), "a bundle is not recognised")


@fuzzed(
    "tlog-proof",
    [receipt.to_tlog_proof() for receipt in _RECEIPTS],
    [b"extra ", b"index ", b"c2sp.org/tlog-proof@v1\n"],
)
def _tlog_proof(data: bytes) -> None:
    receipt = Receipt.parse_tlog_proof(data)
    expect(receipt.to_tlog_proof().encode() == data, "a tlog-proof has two spellings")
    expect(Receipt.parse(data) == receipt, "two parsers disagree")
    _true(receipt)


_WITNESS_LINE = b"witness w witness.example+b8a2cf20+BFLN3yikSfFkVAJtrnh/CiY3Zozkoy7clp+P7XB28qUN"


@fuzzed("policy", [str(POLICY), str(BOTH), f"log {KEY.vkey} https://log.example/\nquorum none\n",
                    b"log " + str(KEY.vkey).encode() + b"\nquorum none\ngroup g any w\n", b"# none\n\nquorum none\n",
                    f"log {KEY.vkey}\nwitness w {WITNESS.vkey}\ngroup g 1 w\ngroup h all g\nquorum h\n"],
         [b"group ", b"quorum none\n", b"quorum w\n", b" all ", b" any ", b"#", _WITNESS_LINE])  # fmt: skip
def _policy(data: bytes) -> None:
    policy = Policy.parse(_text(data))
    expect(Policy.parse(str(policy)) == policy, "a policy does not survive writing")
    policy.verify(LOG.checkpoint(5))
    expect(policy.quorum is None, "an unchecked quorum passed")
    expect(KEY.vkey in [log.vkey for log in policy.logs], "a log verified that the policy does not list")


# --- evidence -----------------------------------------------------------------------------------------------------------

_ROOTS = {tree.root(size): tree for tree in (MINE, THEIRS) for size in range(1, LARGEST + 1)}


@fuzzed(
    "evidence", [case.data for case in CASES if case.step != 1], [*_JSON_WORDS, b'"hashes":[', b'"first"', b"00" * 32]
)
def _evidence(data: bytes) -> None:
    evidence = Evidence.parse(data)
    expect(bytes(evidence) == data, "evidence has two spellings")
    expect(is_evidence(data), "evidence is not recognised")
    fork = verify_evidence(evidence, FORKED)
    first, second = _ROOTS[fork.first.root], _ROOTS[fork.second.root]
    expect(first is not second, "two heads of one tree passed for a fork")
    expect(fork.root == second.root(fork.first.size), "the second tree has another root")


# --- proofs -------------------------------------------------------------------------------------------------------------


def _make_proof(rng: Random) -> Inclusion | Consistency:
    """A proof of a tree of at most 300 leaves, spoiled by up to three of the oracle's ways."""
    size = rng.choice([rng.randrange(1, 40), rng.randrange(1, 300)])
    other = TREE.root(rng.randrange(1, 300))
    claim: Inclusion | Consistency
    if rng.random() < 0.5:
        index = rng.randrange(size)
        claim = Inclusion(index, size, TREE.leaf_hash(index), tuple(TREE.path(index, size)), TREE.root(size))
        for _ in range(rng.randrange(4)):
            claim = rng.choice(list(spoil_inclusion(claim, rng, other)))[1]
    else:
        first = rng.randrange(1, size + 1)
        claim = Consistency(first, size, TREE.root(first), TREE.root(size), tuple(TREE.proof(first, size)))
        for _ in range(rng.randrange(4)):
            claim = rng.choice(list(spoil_consistency(claim, rng, other)))[1]
    return claim


def _run_proof(claim: Inclusion | Consistency) -> bool:
    try:
        if isinstance(claim, Inclusion):
            verify_inclusion(claim.index, claim.size, claim.leaf, claim.proof, claim.root)  # type: ignore[arg-type]
        else:
            verify_consistency(claim.first, claim.second, claim.root1, claim.root2, claim.proof)  # type: ignore[arg-type]
        accepted = True
    except BadProof:
        accepted = False
    expect(accepted is claim.holds(), "verification and the definition disagree")
    return accepted


TARGETS["proof"] = Target("proof", _make_proof, _run_proof)
