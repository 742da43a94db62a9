"""Misbehaviours of the head: what a log shows as its checkpoint."""

from __future__ import annotations

from collections.abc import Callable

from muniment.encoding import b64
from muniment.errors import BadSignature, FormatError, PolicyNotMet, Unproven
from muniment.note import SigningKey, parse_note
from tests.client.fake_log import FakeLog
from tests.splitview.liar import SIZE, Liar, answer
from tests.splitview.table import Start, latest, row


def _head(make: Callable[[Liar], str]) -> Start:
    """Show this as the checkpoint."""

    def start(liar: Liar) -> None:
        liar.lie = answer("/checkpoint", lambda _: make(liar).encode())

    return start


def _flipped(liar: Liar) -> str:
    note = parse_note(liar.honest.note(SIZE))
    [line] = note.signatures
    spoiled = bytes([line.signature[0] ^ 1]) + line.signature[1:]
    return f"{note.text}\n— {line.name} {b64(line.key_id + spoiled)}\n"


def _unknown_line(liar: Liar) -> str:
    return str(SigningKey("unknown.example", b"u" * 32).sign(liar.text()))


row(
    "wrong-origin",
    "shows a head of another log",
    "client",
    _head(lambda _: FakeLog(origin="other.example/log").note(1)),
    latest,
    PolicyNotMet,
)
row(
    "wrong-key",
    "signs with another key under its name",
    "client",
    _head(lambda _: FakeLog(seed=9).note(1)),
    latest,
    BadSignature,
)
row(
    "bad-signature",
    "shows a head with a signature that does not verify",
    "client",
    _head(_flipped),
    latest,
    BadSignature,
)
row(
    "only-unknown-lines",
    "shows a head that unknown keys signed, and not its own",
    "client",
    _head(lambda liar: f"{liar.text()}\n{_unknown_line(liar)}"),
    latest,
    BadSignature,
)
row(
    "unknown-lines-too",
    "shows its head with a signature line of an unknown key",
    "none",
    _head(lambda liar: liar.honest.note(SIZE) + _unknown_line(liar)),
    latest,
)
row(
    "extension-lines",
    "signs its head anew with an extension line",
    "none",
    _head(lambda liar: liar.sign(f"{liar.text()}time 17\n")),
    latest,
)
row(
    "leading-zeros",
    "writes its size with a leading zero",
    "client",
    _head(lambda liar: liar.sign(liar.text().replace("\n301\n", "\n0301\n"))),
    latest,
    FormatError,
)
row(
    "windows-line-ends",
    "writes its head with carriage returns",
    "client",
    _head(lambda liar: liar.honest.note(SIZE).replace("\n", "\r\n")),
    latest,
    FormatError,
)
row(
    "size-without-entries",
    "signs the root of its tree for a larger size",
    "client",
    _head(lambda liar: liar.sign(liar.text().replace("\n301\n", "\n305\n"))),
    latest,
    Unproven,
)
