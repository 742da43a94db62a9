"""Bundles of receipts: what they prove, line by line; every way to spoil one; and how little of one is held at a time."""

from __future__ import annotations

import io
import json
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from muniment import strictjson
from muniment.encoding import b64
from muniment.errors import BadDisclosure, BadProof, BadSignature, FormatError, MunimentError, PolicyNotMet
from muniment.policy import Policy
from muniment.receipt import Receipt, Verified
from muniment.receipts import MAX_LINE, RECEIPTS_TYPE, Header, ReceiptsReader, ReceiptsWriter, is_bundle, lines_of
from tests.unit.samples import EVENTS, POLICY, Logged, SampleLog, event_log, logged_event, policy_of, raw_log

LOG = event_log()
SIZE = len(LOG.entries)


def bundle_of(
    log: SampleLog,
    indices: list[int],
    claimed: tuple[int, int] | None = None,
    keep: Callable[[Receipt], Receipt] = lambda r: r,
) -> bytes:
    """The bundle of these entries at the log's latest size."""
    file = io.BytesIO()
    writer = ReceiptsWriter(file.write, Header(log.key.vkey.name, log.checkpoint(len(log.entries)), claimed))
    for index in indices:
        writer.add(keep(log.receipt(index)))
    writer.end()
    return file.getvalue()


WHOLE = bundle_of(LOG, list(range(SIZE)), (0, SIZE))
SOME = bundle_of(LOG, [1, 3, 8])


def read(data: bytes, policy: Policy = POLICY) -> list[tuple[Receipt, Verified]]:
    """What a bundle proves. Raises what the reader raises."""
    return list(ReceiptsReader(lines_of(io.BytesIO(data)), policy))


def with_line(data: bytes, number: int, edit: Callable[[dict[str, Any]], object]) -> bytes:
    """The bundle with one line edited, and written in canonical form again."""
    lines = data.splitlines(keepends=True)
    value = json.loads(lines[number - 1])
    changed = edit(value)
    lines[number - 1] = strictjson.canonical(changed if isinstance(changed, dict) else value) + b"\n"
    return b"".join(lines)


# --- what a bundle proves -----------------------------------------------------------------------------------------------


def test_each_entry_is_proved_as_its_receipt_is() -> None:
    for data, indices in ((WHOLE, list(range(SIZE))), (SOME, [1, 3, 8])):
        found = read(data)
        assert [receipt for receipt, _ in found] == [LOG.receipt(index) for index in indices]
        assert [verified for _, verified in found] == [LOG.receipt(index).verify(POLICY) for index in indices]


def test_raw_leaves_and_bundles_without_entries() -> None:
    raw = raw_log()
    found = read(bundle_of(raw, [0, 2, 5], None), policy_of(raw))
    assert [verified.leaf for _, verified in found] == [raw.entries[index].leaf for index in (0, 2, 5)]
    assert read(bundle_of(LOG, [])) == []


def test_disclosures_may_be_left_out() -> None:
    found = read(bundle_of(LOG, [1, 2], (1, 3), lambda receipt: replace(receipt, disclosures=())))
    assert [verified.hidden for _, verified in found] == [tuple(sorted(event)) for event in EVENTS[:2]]
    bare = read(bundle_of(LOG, [1], None, lambda receipt: replace(receipt, disclosures=None, commitment=None)))
    assert bare[0][1].hidden == ("*",)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 9, 13])
def test_every_range_of_every_small_tree(size: int) -> None:
    log = SampleLog([Logged(b"leaf %d" % n) for n in range(size)])
    for low in range(size):
        for high in range(low + 1, size + 1):
            assert len(read(bundle_of(log, list(range(low, high)), (low, high)))) == high - low
    assert len(read(bundle_of(log, list(range(0, size, 2))))) == (size + 1) // 2


def test_what_is_written_is_what_is_read() -> None:
    for data in (WHOLE, SOME, bundle_of(LOG, [])):
        reader = ReceiptsReader(lines_of(io.BytesIO(data)), POLICY)
        file = io.BytesIO()
        writer = ReceiptsWriter(file.write, reader.header)
        for receipt, _ in reader:
            writer.add(receipt)
        writer.end()
        assert file.getvalue() == data


def test_a_bundle_that_was_cut_off_is_gone_on_with() -> None:
    lines = WHOLE.splitlines(keepends=True)
    kept = 4
    file = io.BytesIO(b"".join(lines[: kept + 1]))
    file.seek(0, io.SEEK_END)
    writer = ReceiptsWriter(file.write, Header.parse(lines[0]), kept, kept)
    for index in range(kept, SIZE):
        writer.add(LOG.receipt(index))
    writer.end()
    assert file.getvalue() == WHOLE


def test_the_writer_makes_nothing_that_is_refused() -> None:
    note = LOG.checkpoint(SIZE)
    for claimed, indices in (((1, 3), [0]), ((1, 3), [2]), ((1, 3), [1, 3]), (None, [1, 1]), (None, [2, 1])):
        writer = ReceiptsWriter(lambda _: None, Header("log.example/sample", note, claimed))
        with pytest.raises(AssertionError, match="not what follows"):
            list(map(writer.add, map(LOG.receipt, indices)))
    writer = ReceiptsWriter(lambda _: None, Header("log.example/sample", note, (1, 3)))
    writer.add(LOG.receipt(1))
    with pytest.raises(AssertionError, match="entry 2 is missing"):
        writer.end()
    with pytest.raises(AssertionError, match="one checkpoint"):
        writer.add(LOG.receipt(2, 5))


def test_a_bundle_is_known_by_its_first_line() -> None:
    first = SOME.splitlines(keepends=True)[0]
    spaced = json.dumps({"typ": RECEIPTS_TYPE}).encode()
    for line in (first, spaced, b" " + first, b"\xef\xbb\xbf" + first, first[:-1]):
        assert is_bundle(line), line
    receipt = str(LOG.receipt(1)).encode()
    nested = json.dumps({"typ": "other", "inner": {"typ": RECEIPTS_TYPE}}).encode()
    for line in (
        receipt,
        json.dumps(LOG.receipt(1).to_json()).encode(),
        b"",
        b"\xff",
        RECEIPTS_TYPE.encode(),
        nested,
        b"[" * 10**5,
    ):
        assert not is_bundle(line), line


# --- what it does not ---------------------------------------------------------------------------------------------------


def spoiled() -> Iterator[tuple[str, bytes, type[MunimentError], int, str]]:
    """Ways to spoil a bundle: name, bytes, error, its line, words of its message."""
    lines = WHOLE.splitlines(keepends=True)
    other = SampleLog([logged_event(event, 50 + at) for at, event in enumerate(EVENTS)])
    end = SIZE + 2

    def drop(*names: str) -> Callable[[dict[str, Any]], object]:
        return lambda value: [value.pop(name) for name in names]

    def put(**members: Any) -> Callable[[dict[str, Any]], object]:
        return lambda value: value.update(members)

    def flip(value: dict[str, Any]) -> None:
        value["hashes"][2] = f"{int(value['hashes'][2][0], 16) ^ 1:x}" + value["hashes"][2][1:]

    def pushed(name: str, part: object) -> Callable[[dict[str, Any]], object]:
        return lambda value: value[name].append(part)

    # the lines
    yield "empty", b"", FormatError, 1, "cut off"
    yield "only a first line", lines[0], FormatError, 2, "after 0 entries its last line is missing"
    yield "no last line", b"".join(lines[:-1]), FormatError, end, f"after {SIZE} entries its last line is missing"
    yield "cut within a line", WHOLE[:-40], FormatError, end, "cut off within this line"
    yield "no newline at the end", WHOLE[:-1], FormatError, end, "cut off within this line"
    yield "more after the end", WHOLE + b"\n", FormatError, end + 1, "something follows"
    yield "two bundles", WHOLE + SOME, FormatError, end + 1, "something follows"
    yield "a blank line", WHOLE.replace(b"\n", b"\n\n", 1), FormatError, 2, "not JSON"
    yield "carriage returns", WHOLE.replace(b"\n", b"\r\n"), FormatError, 1, "not canonical"
    yield "a byte order mark", b"\xef\xbb\xbf" + WHOLE, FormatError, 1, ""
    yield "a space", WHOLE.replace(b'"index":2', b'"index": 2'), FormatError, 4, "not canonical"
    yield "a number spelled otherwise", WHOLE.replace(b'"index":2', b'"index":2.0'), FormatError, 4, "not canonical"
    yield "a member twice", WHOLE.replace(b'"index":2', b'"index":2,"index":2'), FormatError, 4, "twice"
    yield "no object", lines[0] + b"[]\n", FormatError, 2, "not an object"
    yield "too long a line", lines[0] + b'"' + b"x" * MAX_LINE + b'"\n', FormatError, 2, "longer than"
    # the first line
    yield "another type", with_line(WHOLE, 1, put(typ="muniment/receipts@v2")), FormatError, 1, "typ is not"
    yield "a member too many", with_line(WHOLE, 1, put(query="actor:alice")), FormatError, 1, "no place"
    yield "no checkpoint", with_line(WHOLE, 1, drop("checkpoint")), FormatError, 1, "checkpoint is missing"
    yield "another origin", with_line(WHOLE, 1, put(origin="log.example/other")), BadProof, 1, "origin"
    for value in (None, [], [0], [0, 3, 9], [3, 3], [4, 2], [-1, 3], [0, 2.5], ["0", "9"], [False, 9], {"a": 0}):
        yield f"range {value}", with_line(WHOLE, 1, put(range=value)), FormatError, 1, "range is not two integers"
    yield "a range beyond the tree", with_line(WHOLE, 1, put(range=[0, SIZE + 1])), BadProof, 1, "signed size is 9"
    note = json.loads(lines[0])["checkpoint"]
    at = note.rindex(" ") + 12
    yield (
        "a changed signature",
        with_line(WHOLE, 1, put(checkpoint=note[:at] + "A" + note[at + 1 :])),
        BadSignature,
        1,
        "",
    )
    yield "an unknown log", bundle_of(raw_log(), [0]), PolicyNotMet, 1, "lists no log"
    # indices, and the range
    yield "an entry twice", b"".join([*lines[:3], lines[2], *lines[3:]]), FormatError, 4, "ascend"
    yield (
        "entries in another order",
        b"".join([*lines[:2], lines[3], lines[2], *lines[4:]]),
        BadProof,
        3,
        "entry 1 is missing",
    )
    some = SOME.splitlines(keepends=True)
    yield "descending", b"".join([some[0], some[2], some[1], *some[3:]]), FormatError, 3, "ascend"
    counted = lines[-1].replace(b"%d" % SIZE, b"%d" % (SIZE - 1))
    yield "a gap in the range", b"".join([*lines[:4], *lines[5:-1], counted]), BadProof, 5, "entry 3 is missing"
    yield "the first of the range", b"".join([lines[0], *lines[2:-1], counted]), BadProof, 2, "entry 0 is missing"
    yield "the last of the range", b"".join([*lines[:-2], counted]), BadProof, end - 1, "entry 8 is missing"
    yield "more than the range", with_line(WHOLE, 1, put(range=[0, 4])), FormatError, 6, "outside of the range"
    yield "a range put over some", with_line(SOME, 1, put(range=[1, 9])), BadProof, 3, "entry 2 is missing"
    yield "an index beyond the tree", with_line(SOME, 4, put(index=SIZE)), BadProof, 4, "no entry 9"
    yield "a negative index", with_line(SOME, 2, put(index=-1)), FormatError, 2, "not an index"
    yield "another index", with_line(SOME, 3, put(index=4)), BadProof, 3, ""
    # entries
    yield "another leaf", with_line(WHOLE, 5, put(leaf=b64(b"hello"))), BadProof, 5, ""
    yield "another entry's leaf", with_line(WHOLE, 5, put(leaf=json.loads(lines[5])["leaf"])), BadProof, 5, ""
    yield "a leaf in another spelling", with_line(SOME, 2, put(leaf="QR==")), FormatError, 2, "canonical form"
    yield "a changed hash", with_line(WHOLE, 5, flip), BadProof, 5, ""
    yield "a hash too many", with_line(WHOLE, 5, pushed("hashes", "00" * 32)), BadProof, 5, ""
    yield "a hash too few", with_line(WHOLE, 5, lambda value: value["hashes"].pop()), BadProof, 5, ""
    yield "65 hashes", with_line(WHOLE, 5, put(hashes=["00" * 32] * 65)), FormatError, 5, "at most 64"
    yield "hashes in capitals", with_line(WHOLE, 5, put(hashes=["AB" * 32])), FormatError, 5, "lowercase"
    yield "no hashes", with_line(WHOLE, 5, drop("hashes")), FormatError, 5, "hashes is missing"
    yield "a member of a receipt", with_line(WHOLE, 5, put(typ="muniment/receipt@v1")), FormatError, 5, "typ is not"
    yield "anchors", with_line(WHOLE, 5, put(anchors=[])), FormatError, 5, "no place"
    yield (
        "another entry's disclosure",
        with_line(WHOLE, 5, pushed("disclosures", LOG.entries[1].disclosures[0])),
        BadDisclosure,
        5,
        "",
    )  # type: ignore[index]
    yield (
        "a disclosure twice",
        with_line(WHOLE, 5, lambda value: value["disclosures"].extend(value["disclosures"][:1])),
        BadDisclosure,
        5,
        "twice",
    )
    yield "disclosures alone", with_line(WHOLE, 5, drop("commitment")), BadDisclosure, 5, ""
    yield (
        "a commitment of genesis",
        with_line(WHOLE, 2, put(commitment=json.loads(lines[2])["commitment"])),
        BadDisclosure,
        2,
        "",
    )
    yield "disclosures of no text", with_line(WHOLE, 5, put(disclosures=[1])), FormatError, 5, "list of texts"
    yield "erasures of no list", with_line(WHOLE, 5, put(erasures={})), FormatError, 5, "erasures"
    yield "257 erasures", with_line(WHOLE, 5, put(erasures=[{}] * 257)), FormatError, 5, "erasures"
    # the last line
    yield (
        "another count",
        with_line(WHOLE, end, put(count=SIZE + 1)),
        BadProof,
        end,
        "counts 10 entries, and there are 9",
    )
    yield "a count of no number", with_line(WHOLE, end, put(count=True)), FormatError, end, "count"
    yield "no count", with_line(WHOLE, end, drop("count")), FormatError, end, "count is missing"
    yield "more in the last line", with_line(WHOLE, end, put(range=[0, 9])), FormatError, end, "no place"
    yield "another last line", with_line(WHOLE, end, put(typ="end")), FormatError, end, "typ is not"
    # another log under the same name and key
    yield (
        "the lines of another log",
        lines[0] + b"".join(bundle_of(other, [0]).splitlines(keepends=True)[1:]),
        BadProof,
        2,
        "",
    )


@pytest.mark.parametrize(("data", "kind", "line", "words"), [pytest.param(*rest, id=name) for name, *rest in spoiled()])
def test_a_spoiled_bundle_is_refused_and_the_line_named(
    data: bytes, kind: type[MunimentError], line: int, words: str
) -> None:
    with pytest.raises(kind, match=rf"^line {line}: .*{words}") as refused:
        read(data)
    assert refused.value.line == line


def test_every_byte_counts() -> None:
    for at in range(0, len(SOME), 7):
        data = SOME[:at] + bytes([SOME[at] ^ 1]) + SOME[at + 1 :]
        with pytest.raises(MunimentError):
            read(data)


def test_every_cut_is_seen() -> None:
    ends = [at + 1 for at, byte in enumerate(WHOLE[:-1]) if byte == 0x0A]
    for at in (0, 1, *ends, *(end - 1 for end in ends), *range(500, len(WHOLE), 997)):
        with pytest.raises(FormatError, match="cut off"):
            read(WHOLE[:at])


def test_erasures_are_skipped_and_counted() -> None:
    stated = with_line(WHOLE, 4, lambda value: value.update(erasures=[{"index": 7, "item": "anything"}]))
    reader = ReceiptsReader(lines_of(io.BytesIO(stated)), POLICY)
    assert len(list(reader)) == SIZE
    assert reader.erasures == 1


# --- bounds -------------------------------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_bundle() -> None:
    count = 128
    log = SampleLog([Logged(b"%d" % n * 15_000) for n in range(count)])
    data = bundle_of(log, list(range(count)), (0, count))
    file = io.BytesIO(data)
    tracemalloc.start()
    assert sum(1 for _ in ReceiptsReader(lines_of(file), POLICY)) == count
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < len(data) / 4
