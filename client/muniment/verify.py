"""Offline verification, told to people and machines: what a receipt proves, and what it does not.

:meth:`muniment.receipt.Receipt.verify` decides; this module says in words what its decision means. It needs a receipt
and a policy and nothing else: no network, no clock, no server.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import TYPE_CHECKING, Any, NamedTuple

from muniment.encoding import b64
from muniment.errors import EventRefused, FormatError, MunimentError, Refused, Unavailable
from muniment.event import EVENT_TYPE, EventLeaf, OwnLeaf, format_time, parse_time
from muniment.hashing import leaf_hash
from muniment.names import named
from muniment.note import parse_note, verify_note
from muniment.policy import Policy
from muniment.receipt import Receipt, Verified

if TYPE_CHECKING:
    from muniment.anchor.check import AnchorCheck  # which needs another library

RAW = "raw"
"""The `typ` of a report on a leaf whose bytes mean what their submitter says they mean."""


class Limit(NamedTuple):
    """Something a receipt does not prove: a stable code, and the sentence for people."""

    code: str
    text: str


UNPUBLISHED = Limit(
    "unpublished",
    "that any other reader was shown this tree: no witness cosigned the checkpoint, and a receipt cannot tell"
    " whether it was published. It is the operator's signed promise until a consistency proof ties it to a"
    " published, cosigned or anchored checkpoint (muniment consistency --since RECEIPT).",
)
CLOCK = Limit("clock", "that the log's clock was right. Times never decrease from entry to entry; no more is sure.")
TRUTH = Limit(
    "truth",
    "that what was logged is true, or who sent it. A log proves that it was said, and not changed since.",
)


@dataclass(frozen=True, slots=True)
class Report:
    """What a receipt proved under a policy.

    Made by :func:`verify_receipt` alone, so holding one means the checks passed. `signers` are ``name+keyid`` of the
    policy's keys that signed the checkpoint. `typ` is the type of the leaf, or "raw". `logged_at` is in milliseconds
    since 1970 UTC, by the log's own clock; None for a raw leaf. `anchors` is what the receipt's anchors showed, in
    their order; None when they were not checked.
    """

    verified: Verified
    typ: str
    signers: tuple[str, ...]
    logged_at: int | None
    limits: tuple[Limit, ...]
    anchors: tuple[AnchorCheck, ...] | None = None

    @property
    def statement(self) -> str:
        """What is proved, in one sentence."""
        head = self.verified.checkpoint
        signers = ", ".join(self.signers)
        return f"entry {self.verified.index} of log {head.origin} as of size {head.size}, signed by {signers}"

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON value; `verified` is true."""
        found, head = self.verified, self.verified.checkpoint
        value: dict[str, Any] = {
            "verified": True,
            "origin": head.origin,
            "index": found.index,
            "tree_size": head.size,
            "root": head.root.hex(),
            "leaf_hash": leaf_hash(found.leaf).hex(),
            "typ": self.typ,
            "signers": list(self.signers),
            "proves": self.statement,
            "does_not_prove": [limit._asdict() for limit in self.limits],
        }
        if self.logged_at is not None:
            value["logged_at"] = format_time(self.logged_at)
        if self.anchors is not None:
            value["anchors"] = [anchor.to_json() for anchor in self.anchors]
        if isinstance(found.entry, EventLeaf):
            value |= {
                "complete": found.complete,
                "event": found.opened,
                "shown": sorted(found.opened),
                "hidden": list(found.hidden),
            }
        elif isinstance(found.entry, OwnLeaf):
            value["own"] = found.entry.value
        else:
            value["leaf"] = b64(found.leaf)
        return value

    def to_text(self) -> str:
        """Return the report for people, several lines, each ending in a newline."""
        return self.proved_text() + limits_text(self.limits)

    def proved_text(self) -> str:
        """Return the first half of the report: what is proved, and what the entry says."""
        lines = [f"Proved: {printable(self.statement)}.", *_content(self.verified)]
        if self.logged_at is not None:
            lines.append(f"Logged at {format_time(self.logged_at)}, by the log's own clock.")
        lines += [f"Anchor: {anchor.state}: {printable(anchor.claim)}." for anchor in self.anchors or ()]
        return "".join(f"{line}\n" for line in lines)


def limits_text(limits: Iterable[Limit]) -> str:
    """Return what is not proved, each limit once."""
    texts = dict.fromkeys(limit.text for limit in limits)
    return "Not proved:\n" + "".join(
        f"{fill(text, 110, initial_indent='  - ', subsequent_indent='    ')}\n" for text in texts
    )


def verify_receipt(receipt: Receipt, policy: Policy, anchors: Sequence[AnchorCheck] | None = None) -> Report:
    """Return what `receipt` proves when `policy` alone is trusted.

    `anchors` is what :mod:`muniment.anchor.check` found of the receipt's anchors, when they were checked. Raises
    FormatError, BadSignature, PolicyNotMet, BadProof or BadDisclosure.
    """
    verified = receipt.verify(policy)
    typ, logged_at = _describe(verified.entry)
    checked = None if anchors is None else tuple(anchors)
    limits = (*_limits(verified), *_time_limits(verified, receipt, checked), *_content_limits(verified))
    return Report(verified, typ, signers_of(receipt.origin, receipt.checkpoint, policy), logged_at, limits, checked)


def failure_json(error: MunimentError) -> dict[str, Any]:
    """Return the JSON value for a receipt that failed: `verified` is false, with a stable `code` and a `detail`.

    For a bundle of receipts, with the `line` that failed too.
    """
    value = {"verified": False, "code": code_of(error), "detail": str(error)}
    return value if error.line is None else value | {"line": error.line}


def code_of(error: MunimentError) -> str:
    """Return the stable, machine-readable code of an error.

    Its own, the server's, or the name of its class in snake_case.
    """
    if isinstance(error, EventRefused | Refused | Unavailable) and error.code:
        return error.code
    name = type(error).__name__
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")


def signers_of(origin: str, checkpoint: str, policy: Policy) -> tuple[str, ...]:
    """Return ``name+keyid`` of the keys of a log that signed its checkpoint, which the policy vouches for."""
    keys = [log.vkey for log in policy.logs if log.vkey.name == origin]
    return tuple(f"{key.name}+{key.key_id.hex()}" for key in verify_note(parse_note(checkpoint), keys))


def _describe(entry: EventLeaf | OwnLeaf | None) -> tuple[str, int | None]:
    """Return the type of a leaf and when it was logged, as far as the leaf says so."""
    if entry is None:
        return RAW, None
    if isinstance(entry, EventLeaf):
        return EVENT_TYPE, entry.logged_at
    try:
        return entry.typ, parse_time(str(entry.value.get("logged_at", "")))
    except FormatError:
        return entry.typ, None


def _content(verified: Verified) -> list[str]:
    if isinstance(verified.entry, OwnLeaf):
        return [f"Content: written by the log itself, {shortened(verified.entry.value)}"]
    if verified.entry is None:
        return [f"Content: {len(verified.leaf)} bytes, SHA-256 leaf hash {leaf_hash(verified.leaf).hex()}"]
    lines = [f"  {named(name)} = {shortened(value)}" for name, value in sorted(verified.opened.items())]
    if verified.complete:
        return ["Complete: every member of the event is opened.", *lines]
    if verified.hidden == ("*",):
        return ["Not shown: the whole event. This receipt holds only its commitment."]
    shown = ", ".join(map(named, sorted(verified.opened))) or "nothing of the event"
    return [f"Shown: {shown}. Not shown: {_hidden(verified)}.", *lines]


def _hidden(verified: Verified) -> str:
    return "the event" if verified.hidden == ("*",) else ", ".join(map(named, verified.hidden))


def printable(text: str) -> str:
    """Return `text` with everything escaped that a terminal might obey or hide: it may come from a stranger."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shortened(value: Any) -> str:
    """Return a value for people: JSON, and not too much of it."""
    text = printable(json.dumps(value, ensure_ascii=False))
    return text if len(text) <= 500 else f"{text[:500]}... ({len(text)} characters)"


def _limits(verified: Verified) -> list[Limit]:
    limits = [UNPUBLISHED]
    if verified.hidden:
        limits.append(Limit("hidden", f"anything about what is not shown: {_hidden(verified)}."))
    return limits


def _time_limits(verified: Verified, receipt: Receipt, anchors: tuple[AnchorCheck, ...] | None) -> list[Limit]:
    limits = []
    if isinstance(verified.entry, EventLeaf):
        limits.append(CLOCK)
    if receipt.anchors and anchors is None:
        limits.append(
            Limit(
                "anchors",
                "what the anchors in this receipt say: they were not checked (muniment verify --check-anchors).",
            )
        )
    if any(anchor.found for anchor in anchors or ()):
        limits.append(
            Limit(
                "anchored",
                "when the entry was made, or that this tree is the only one. An anchor shows that both existed by a"
                " time; an operator can have two trees anchored.",
            )
        )
    return limits


def _content_limits(verified: Verified) -> list[Limit]:
    if isinstance(verified.entry, OwnLeaf):
        return []
    return [TRUTH]
