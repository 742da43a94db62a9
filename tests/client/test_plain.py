"""`verify --plain`: all that is proved and all that is not, in words that need no explanation."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from muniment.anchor.check import AnchorCheck, check_receipt_anchor
from muniment.errors import BadDisclosure, BadProof, BadSignature, FormatError, PolicyNotMet, VerificationError
from muniment.plain import plain_bundle, plain_failure, plain_report
from muniment.receipt import Receipt
from muniment.receipts_report import verify_receipts
from muniment.verify import Report, verify_receipt
from tests.client.cli_runner import Cli
from tests.client.fake_log import FakeLog
from tests.client.test_bundle_cli import bundle
from tests.unit.anchors import ChainSource, sample_anchor, sample_chain
from tests.unit.samples import POLICY, event_log, policy_of, raw_log

RECEIPT = event_log().receipt(1)
JARGON = re.compile(
    r"\b(hash|merkle|tree|root|leaf|checkpoint|commitment|disclos\w*|inclusion|consistency|ed25519|sha-?256|index|digest|"
    r"origin|member|anchor|attest\w*|cosign\w*|witness\w*|payload|json|log)\b",
    re.IGNORECASE,
)


def plain(receipt: Receipt, anchors: list[AnchorCheck] | None = None) -> str:
    return plain_report(verify_receipt(receipt, policy_of(event_log(), raw_log()), anchors))


def test_the_whole_text() -> None:
    assert (
        plain(RECEIPT.disclose({"action"}))
        == """\
What is proved
  The operator of the list "log.example/sample" has signed that the list had 9 records, and that
  record number 1 is the one that this file is about (numbers start at 0). A record that differs by
  a single letter would have failed this check. The signature is of a key that you trust:
  log.example/sample+ed92596f.

What the record says
  action: "invoice.approve"
  1 of its 3 parts is shown. Not shown: actor, resource. These were entered with the rest and cannot
  be replaced by others now. What they say is not in this file.

Who says when
  The operator says that the record was entered on 20 November 2026 at 12:00:00 UTC, by the
  operator's own clock.
  This is the operator's word alone: no time stamp from outside was checked.

What is not proved
  - That others were shown the same list. An operator could keep two. Compare what you were shown
    with what others were shown.
  - Anything about the parts that are not shown.
  - That the operator's clock was right. Only the order is sure: later numbers do not have earlier
    times.
  - That what the record says is true, or who entered it. It is proved that this was entered, and
    not changed since.
  - That there are no other records, for example a later one that takes this one back.
"""
    )


STAMPED = replace(RECEIPT, anchors=(sample_anchor(event_log(), 1, 5),))


def confirmed() -> AnchorCheck:
    found = check_receipt_anchor(STAMPED, STAMPED.anchors[0], POLICY, ChainSource(sample_chain()))
    assert found.found
    return replace(found, state="confirmed")


@pytest.mark.parametrize(
    ("receipt", "anchors", "says"),
    [
        (RECEIPT, None, "That is the whole record; nothing is left out."),
        (RECEIPT.disclose(()), None, "None of its 3 parts are shown. Not shown: action, actor, resource."),
        (RECEIPT.hide({"actor"}), None, "2 of its 3 parts are shown. Not shown: actor."),
        (Receipt.parse(RECEIPT.to_tlog_proof()), None, "Nothing of it is shown in this file, not even which parts it has."),
        (event_log().receipt(0), None, "It was written by the list itself: {"),
        (raw_log().receipt(0), None, "It is a text or a file of 5 bytes, exactly as it is in this receipt."),
        (raw_log().receipt(0), None, "The file does not say when the record was entered."),
        (STAMPED, None, "It was not checked (--check-anchors does so)."),
        (STAMPED, [], "no time stamp from outside was checked"),
        (STAMPED, [AnchorCheck("mismatch")], "it does NOT hold"),
        (STAMPED, [AnchorCheck("no_source")], "It could not be checked here"),
        (STAMPED, [AnchorCheck("pending")], "proves nothing yet"),
        (STAMPED, [AnchorCheck("unknown")], "of a kind that this program does not know"),
        (STAMPED, [confirmed()], "Independently of the operator: the record existed before block "),
        (STAMPED, [replace(confirmed(), state="complete")], "This is so new that it may still be undone."),
    ],
)  # fmt: skip
def test_what_is_said(receipt: Receipt, anchors: list[AnchorCheck] | None, says: str) -> None:
    text = plain(receipt, anchors)
    assert says in " ".join(text.split())
    ours = text.partition("What the record says")[0].replace(receipt.origin, "") + text.partition("Who says when")[2]
    assert not JARGON.search(re.sub("--check-anchors|Merkle", "", ours)), "a word that a reader would have to look up"
    assert max(map(len, text.splitlines())) <= 100
    assert text.count("This is the operator's word alone") == (not anchors and "not checked (" not in text)


def test_all_that_is_not_proved_is_said_in_both_ways() -> None:
    for receipt, anchors in ((RECEIPT.disclose(()), None), (STAMPED, None), (STAMPED, (confirmed(),))):
        report: Report = verify_receipt(receipt, POLICY, anchors)
        assert plain_report(report).count("\n  - ") == len(report.limits) + 1


@pytest.mark.parametrize("kind", [FormatError, BadDisclosure, BadProof, BadSignature, PolicyNotMet, VerificationError])
def test_a_failure_accuses_no_one(kind: type[Exception]) -> None:
    text = " ".join(plain_failure(kind("root \x1b[2J differs")).split())  # type: ignore[arg-type]
    assert text.startswith("Do not rely on this file. ")
    assert "This does not say who did it" in text
    assert text.endswith(r"For a specialist: root \x1b[2J differs")
    assert not JARGON.search(text.partition("For a specialist")[0])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda lines: lines[:-1], "It is not whole: it ends too early"),
        (lambda lines: [*lines[:-1], lines[-1][:9]], "It is not whole: it ends too early"),
        (lambda lines: lines[:2] + lines[3:], "records are missing that it says are there. Ask for the whole file"),
        (lambda lines: [*lines[:3], lines[-1]], "records are missing"),
        (lambda lines: [*lines[:3], lines[2], *lines[3:]], "Its lines do not stand in their order"),
        (lambda lines: [*lines, lines[-1]], "Its lines do not stand in their order"),
        (lambda lines: [lines[0], lines[1][:-2] + b"\n", *lines[2:]], "It is not written as such files are"),
    ],
)
def test_what_is_wrong_with_a_bundle_is_said_by_its_kind(
    cli: Cli, log: FakeLog, tmp_path: Path, spoil: Callable[[list[bytes]], list[bytes]], said: str
) -> None:
    (tmp_path / "policy").write_text(str(log.policy))
    lines = spoil(bundle(log, [0, 1, 2], (0, 3)).splitlines(keepends=True))
    done = cli("verify", "-", "--plain", "--policy", tmp_path / "policy", stdin=b"".join(lines))
    assert done.code == 1
    assert said in " ".join(done.out.split())


def test_a_bundle_without_records_proves_nothing_of_any(cli: Cli, log: FakeLog, tmp_path: Path) -> None:
    (tmp_path / "policy").write_text(str(log.policy))
    done = cli("verify", "-", "--plain", "--policy", tmp_path / "policy", stdin=bundle(log, []))
    assert done.out.startswith("-: THIS HOLDS, BUT NO RECORD IS IN IT\n")
    assert "What is proved\n  Of no record anything: there is none in this file." in done.out


def test_a_name_is_not_taken_for_a_sentence(cli: Cli, tmp_path: Path) -> None:
    odd = FakeLog()
    odd.add_events([{"nothing is hidden. All": 1, "a": 2, "b: c": 3}])
    (tmp_path / "policy").write_text(str(odd.policy))
    for words in ((), ("--plain",)):
        given = bundle(odd, [1], keep=lambda receipt: receipt.disclose({"a"}))
        done = cli("verify", "-", *words, "--policy", tmp_path / "policy", stdin=given)
        assert '"nothing is hidden. All"' in done.out
        assert '"b: c"' in done.out


def test_the_command(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "policy").write_text(str(POLICY))
    (tmp_path / "good").write_text(str(RECEIPT.hide({"actor"})))
    (tmp_path / "bad").write_text(str(replace(RECEIPT, index=2)))
    words = ("--plain", "--policy", tmp_path / "policy")
    done = cli("verify", tmp_path / "good", tmp_path / "bad", *words)
    assert done.code == 1
    assert f"{tmp_path}/good: THIS HOLDS\n\nWhat is proved\n" in done.out
    assert f"{tmp_path}/bad: THIS DOES NOT HOLD\n\n  Do not rely on this file." in done.out
    assert "1 of 2 files hold." in done.out
    assert "Not proved:" not in done.out, "it is said once"
    assert cli("verify", tmp_path / "good", *words).code == 0
    assert cli("verify", tmp_path / "good", *words, "--json").code == 2


def test_shown_and_hidden_for_programs(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "policy").write_text(str(POLICY))
    for shown in ({"action", "actor", "resource"}, {"actor"}, set()):
        done = cli(
            "verify", "-", "--policy", tmp_path / "policy", "--json", stdin=str(RECEIPT.disclose(shown)).encode()
        )
        found = done.json["results"][0]
        assert (set(found["shown"]), set(found["event"])) == (shown, shown)
        assert set(found["hidden"]) == {"action", "actor", "resource"} - shown
        assert found["complete"] == (not found["hidden"])


# --- bundles ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def log() -> FakeLog:
    made = FakeLog()
    made.add_events([{"actor": "alice", "n": 1}, {"actor": "bob", "n": 2}])
    made.add_raw([b"x"])
    return made


def plain_of(log: FakeLog, data: bytes) -> str:
    report = verify_receipts(data.splitlines(keepends=True), log.policy)
    text = plain_bundle(report)
    assert not JARGON.search(re.sub(f'"{log.origin}"|{log.origin}', "", text)), "a word that a reader would look up"
    assert max(map(len, text.splitlines())) <= 100
    assert text.count("\n  - That ") + text.count("\n  - Anything ") == len(report.limits) + (report.range is not None)
    return " ".join(text.split())


def test_a_bundle_in_plain_words(log: FakeLog) -> None:
    text = plain_of(log, bundle(log, [0, 1, 2, 3], (0, 4), hidden))
    for says in (
        f'The operator of the list "{log.origin}" has signed that the list had 4 records,',
        "and that the records in this file are among them: 4, each at its place.",
        "Whether any are missing None is missing from number 0 to number 3 (numbers start at 0): all 4 are here.",
        "- Records shown in part: 2. - Records that the list wrote itself: 1.",
        "- Records that are texts or files, exactly as they are in this file: 1. Shown: n (in 2). Not shown: actor (in 2).",
        "the first of them was entered on 20 November 2026 at",
        "This is the operator's word alone: no time stamp from outside is in this file.",
        "That the list has no records before or after these numbers",
        "That what the records say is true",
    ):
        assert says in text
    assert "no others" not in text


def hidden(receipt: Receipt) -> Receipt:
    return receipt if receipt.commitment is None else receipt.hide({"actor"})


@pytest.mark.parametrize(
    ("indices", "says", "says_not"),
    [
        ([1], "the record in this file is among them: 1,", "Not shown"),
        ([1], "Nothing says that there are no others.", "is missing"),
        ([1], "That there are no other records like these", "before or after"),
        ([1], "- Records shown whole: 1.", "Records shown in part"),
        ([0], "No time is shown.", "by the operator's own clock"),
        ([], "Nothing: there is no record in this file.", "Records shown"),
    ],
)
def test_a_bundle_without_a_range_in_plain_words(log: FakeLog, indices: list[int], says: str, says_not: str) -> None:
    text = plain_of(log, bundle(log, indices))
    assert says in text
    assert says_not not in text


def test_closed_events_and_erasures_in_plain_words(log: FakeLog) -> None:
    closed = bundle(log, [1, 2], None, lambda receipt: replace(receipt, commitment=None, disclosures=None))
    assert "- Records of which nothing is shown: 2." in plain_of(log, closed)
    erased = bundle(log, [1]).replace(b'"hashes":', b'"erasures":[{}],"hashes":')
    assert "this program did not check it" in plain_of(log, erased)


def test_many_hidden_names_in_plain_words() -> None:
    log = FakeLog()
    log.add_events([{f"m{n}": n for n in range(70)}])
    data = bundle(log, [1], None, lambda receipt: replace(receipt, disclosures=()))
    assert "others (6 in all)" in plain_of(log, data)


def test_the_command_on_bundles(cli: Cli, log: FakeLog, tmp_path: Path) -> None:
    (tmp_path / "policy").write_text(str(log.policy))
    good = bundle(log, [1, 2, 3], (1, 4))
    (tmp_path / "good").write_bytes(good)
    (tmp_path / "cut").write_bytes(good[:-10])
    done = cli("verify", tmp_path / "good", tmp_path / "cut", "--plain", "--policy", tmp_path / "policy")
    assert done.code == 1
    assert f"{tmp_path}/good: THIS HOLDS\n\nWhat is proved\n" in done.out
    assert f"{tmp_path}/cut: THIS DOES NOT HOLD\n\n  Do not rely on this file." in done.out
