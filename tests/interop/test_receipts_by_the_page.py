"""Bundles of receipts, verified by a verifier that was written from the pages alone; and spoiled ones that it refuses."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from muniment.receipts import Header, ReceiptsWriter
from muniment.receipts_report import verify_receipts
from muniment.words import range_text
from tests.interop import receipts_by_the_page as page
from tests.test_spec import POLICY as SPEC_POLICY
from tests.test_spec import SPEC, blocks
from tests.unit.samples import EVENTS, POLICY, SampleLog, event_log, policy_of, raw_log

LOG, RAW = event_log(), raw_log()


def bundle(log: SampleLog, indices: list[int], claimed: tuple[int, int] | None = None) -> bytes:
    lines: list[bytes] = []
    writer = ReceiptsWriter(lines.append, Header(log.key.vkey.name, log.checkpoint(len(log.entries)), claimed))
    for index in indices:
        writer.add(log.receipt(index))
    writer.end()
    return b"".join(lines)


WHOLE = bundle(LOG, list(range(4)), (0, 4))
LINES = WHOLE.splitlines(keepends=True)


def edited(number: int, edit: Callable[[dict], object]) -> bytes:
    """The bundle with one line changed, in the form of RFC 8785 as the stranger writes it."""
    value = json.loads(LINES[number - 1])
    edit(value)
    return b"".join([*LINES[: number - 1], page.jcs(value).encode() + b"\n", *LINES[number:]])


def test_it_imports_nothing_of_ours() -> None:
    tree = ast.parse(Path(page.__file__).read_text())
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {name.split(".")[0] for name in names} == {"__future__", "base64", "cryptography", "hashlib", "json"}


def test_the_examples_of_the_page() -> None:
    examples = blocks(SPEC / "receipts.md")
    found = page.verify(examples["bundle"].encode(), str(SPEC_POLICY))
    assert found["said"] == "all 2 entries proved; none is missing"
    assert found["entries"] == {
        1: ({"amount": 150}, ["action", "actor", "note", "resource"]),
        2: ({}, ["action", "actor", "resource"]),
    }
    alone = page.verify(examples["without-range"].encode(), str(SPEC_POLICY))
    assert alone["said"] == "1 entry proved; nothing says there are no others"


def test_what_we_write() -> None:
    found = page.verify(WHOLE, str(POLICY))
    assert found["entries"] == {0: None} | {index: (EVENTS[index - 1], []) for index in range(1, 4)}
    assert list(page.verify(bundle(LOG, [2, 7]), str(POLICY))["entries"]) == [2, 7]
    raw = page.verify(bundle(RAW, list(range(6)), (0, 6)), str(policy_of(RAW)))
    assert raw["entries"] == dict.fromkeys(range(6))
    assert page.verify(edited(3, lambda value: value.update(erasures=[{}])), str(POLICY))["erasures"] == 1


@pytest.mark.parametrize(
    ("indices", "claimed"), [([], None), ([2], None), ([2], (2, 3)), ([2, 3], None), ([2, 3], (2, 4))]
)
def test_it_says_what_we_say(indices: list[int], claimed: tuple[int, int] | None) -> None:
    data = bundle(LOG, indices, claimed)
    ours = verify_receipts(data.splitlines(keepends=True), POLICY)
    where = "" if claimed is None else f" {range_text(*claimed)}"
    found = page.verify(data, str(POLICY))
    assert (list(found["entries"]), ours.count) == (indices, len(indices))
    assert ours.completeness == found["said"].replace(" proved;", f"{where} proved;")


def other_hash(value: dict) -> None:
    value["hashes"][0] = "00" * 32


SPOILED: list[tuple[str, bytes, int]] = [
    ("cut off", b"".join(LINES[:-1]), 7),
    ("a line left out", b"".join([*LINES[:2], *LINES[3:]]), 4),
    ("the range made longer", edited(1, lambda value: value.update(range=[0, 5])), 4),
    ("the range beyond the tree", edited(1, lambda value: value.update(range=[0, 10])), 3),
    ("an entry twice", b"".join([*LINES[:3], *LINES[2:]]), 4),
    ("another count", edited(6, lambda value: value.update(count=3)), 7),
    ("more after the end", WHOLE + LINES[-1], 7),
    ("another leaf", edited(3, lambda value: value.update(leaf="e30=")), 5),
    ("another hash", edited(3, other_hash), 5),
    ("another member's value", edited(3, lambda value: value.update(disclosures=list(LOG.entries[2].disclosures or ()))), 6),
    ("a disclosure twice", edited(3, lambda value: value["disclosures"].append(value["disclosures"][0])), 6),
    ("another origin", edited(1, lambda value: value.update(origin="log.example/other")), 3),
    ("another checkpoint", edited(1, lambda value: value.update(checkpoint=value["checkpoint"].replace("\n9\n", "\n8\n"))), 2),
    ("a key that is not trusted", bundle(RAW, [0]), 2),
    ("a member that has no place", edited(3, lambda value: value.update(verified=True)), 1),
    ("a space", WHOLE.replace(b'"index":2', b'"index": 2'), 1),
    ("Windows", WHOLE.replace(b"\n", b"\r\n"), 1),
]  # fmt: skip


@pytest.mark.parametrize(("data", "step"), [pytest.param(*rest, id=name) for name, *rest in SPOILED])
def test_what_it_refuses_and_at_which_step(data: bytes, step: int) -> None:
    with pytest.raises(page.Bad) as refused:
        page.verify(data, str(POLICY))
    assert refused.value.step == step, refused.value
