"""What a bundle of receipts proves, for people and machines: how many entries, whether some are missing, what is shown.

:class:`muniment.receipts.ReceiptsReader` decides; this module says in words what its decision means.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from muniment.checkpoint import Checkpoint
from muniment.event import EventLeaf, OwnLeaf, format_time
from muniment.names import named
from muniment.policy import Policy
from muniment.receipt import Receipt, Verified
from muniment.receipts import RECEIPTS_TYPE, ReceiptsReader
from muniment.verify import CLOCK, TRUTH, UNPUBLISHED, Limit, printable, signers_of
from muniment.words import entries_text, lines_text, range_text

MOST_NAMED = 64
"""Names of hidden members that are counted one by one: a bundle of a stranger may have a million of them."""
_NAME = 100
"""Characters of a name that is counted by itself."""
_OTHERS = Limit("others", "that the log has no other entries like these: this bundle claims no range.")


@dataclass(slots=True)
class Shown:
    """How much of the entries is shown. Filled by one caller, entry by entry.

    `kinds` counts entries: events of which everything is shown (``whole``), a part (``part``) or nothing (``closed``),
    entries of the log itself (``own``) and raw leaves (``raw``). `hidden` counts, by its name, in how many entries a
    member is hidden, and `opened` in how many it is shown; `unnamed` and `opened_unnamed` count the rest. `first` and
    `last` are the receipts of the first entry and the last, `logged` the times of the first event and the last.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    hidden: Counter[str] = field(default_factory=Counter)
    unnamed: int = 0
    opened: Counter[str] = field(default_factory=Counter)
    opened_unnamed: int = 0
    first: Receipt | None = None
    last: Receipt | None = None
    logged: tuple[int, int] | None = None

    def add(self, receipt: Receipt, verified: Verified) -> None:
        """Count an entry."""
        self.first, self.last = self.first or receipt, receipt
        entry = verified.entry
        self.kinds[kind_of(verified)] += 1
        if not isinstance(entry, EventLeaf):
            return
        self.logged = (self.logged or (entry.logged_at, 0))[0], entry.logged_at
        self.opened_unnamed += count_names(self.opened, verified.opened)
        if receipt.commitment is not None:
            self.unnamed += count_names(self.hidden, verified.hidden)

    def join(self, later: Shown) -> None:
        """Count the entries that `later` counts, which come behind these. Requires room for all its names."""
        self.first, self.last = self.first or later.first, later.last or self.last
        self.kinds.update(later.kinds)
        self.hidden.update(later.hidden)
        self.opened.update(later.opened)
        if later.logged is not None:
            self.logged = (self.logged or later.logged)[0], later.logged[1]


def kind_of(verified: Verified) -> str:
    """Return how much of an entry is shown, as `kinds` of :class:`Shown` says it."""
    if not isinstance(verified.entry, EventLeaf):
        return "own" if isinstance(verified.entry, OwnLeaf) else "raw"
    return "whole" if verified.complete else "part" if verified.opened else "closed"


def count_names(counter: Counter[str], names: Iterable[str]) -> int:
    """Count names in a counter that stays small, and return how many found no place in it."""
    unnamed = 0
    for name in names:
        if name in counter or (len(counter) < MOST_NAMED and len(name) <= _NAME):
            counter[name] += 1
        else:
            unnamed += 1
    return unnamed


@dataclass(frozen=True, slots=True)
class BundleReport:
    """What a bundle of receipts proved under a policy.

    Made by :func:`verify_receipts` alone, so holding one means that the checks passed. `range` is what is there
    without a gap, or None. `erasures` counts the lines that state erasures, which were not checked.
    """

    head: Checkpoint
    signers: tuple[str, ...]
    count: int
    range: tuple[int, int] | None
    shown: Shown
    erasures: int

    @property
    def statement(self) -> str:
        """What is proved, in one sentence."""
        if not self.count:
            return f"nothing of any entry; only the checkpoint {self.source}"
        return f"{self._which} {self.source}"

    @property
    def source(self) -> str:
        """Of which log and of which of its trees the entries are, and who signed it."""
        head = self.head
        return f"of log {head.origin} as of size {head.size}, signed by {', '.join(self.signers)}"

    @property
    def completeness(self) -> str:
        """How many entries are proved, and whether any may be missing, in one sentence."""
        if not self.count:
            return "no entry proved: the bundle has none; nothing says there are no others"
        others = "nothing says there are no others" if self.range is None else "none is missing"
        return f"{self._which} proved; {others}"

    @property
    def _which(self) -> str:
        """Which entries are proved."""
        which = entries_text(self.count)
        if self.range is None:
            return which
        return f"{'all ' if self.count > 1 else ''}{which} {range_text(*self.range)}"

    @property
    def limits(self) -> tuple[Limit, ...]:
        """What is not proved."""
        kinds = self.shown.kinds
        limits = [UNPUBLISHED] if self.range is not None else [_OTHERS, UNPUBLISHED]
        if kinds["part"] or kinds["closed"]:
            limits.append(Limit("hidden", "anything about what is hidden."))
        if self.shown.logged is not None:
            limits.append(CLOCK)
        if self.erasures:
            limits.append(
                Limit("erasures", f"the erasures that {lines_text(self.erasures)} stated: they were not checked.")
            )
        return (*limits, TRUTH) if self.count > kinds["own"] else tuple(limits)

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON value; `verified` is true."""
        shown = self.shown
        names = ("whole", "part", "closed", "own", "raw")
        value: dict[str, Any] = {
            "verified": True,
            "typ": RECEIPTS_TYPE,
            "origin": self.head.origin,
            "tree_size": self.head.size,
            "root": self.head.root.hex(),
            "signers": list(self.signers),
            "entries": self.count,
            "range": None if self.range is None else list(self.range),
            "first": None if shown.first is None else shown.first.index,
            "last": None if shown.last is None else shown.last.index,
            "shown": {name: shown.kinds[name] for name in names},
            "members_shown": dict(shown.opened.most_common()),
            "members_shown_unnamed": shown.opened_unnamed,
            "hidden": dict(shown.hidden.most_common()),
            "hidden_unnamed": shown.unnamed,
            "erasures_not_checked": self.erasures,
            "proves": self.statement,
            "completeness": self.completeness,
            "does_not_prove": [limit._asdict() for limit in self.limits],
        }
        return value if shown.logged is None else value | {"logged": list(map(format_time, shown.logged))}

    def proved_text(self) -> str:
        """Return the first half of the report: what is proved, and what is shown."""
        lines = [f"{self.completeness[0].upper()}{self.completeness[1:]}.", self._of_what()]
        texts = {
            "Entries": _kinds_text(self.shown.kinds),
            "Shown": _names_text(self.shown.opened, self.shown.opened_unnamed),
            "Hidden": _names_text(self.shown.hidden, self.shown.unnamed),
        }
        lines += [f"{what}: {text}." for what, text in texts.items() if text]
        if self.shown.logged is not None:
            first, last = map(format_time, self.shown.logged)
            lines.append(f"Logged from {first} to {last}, by the log's own clock.")
        if self.erasures:
            lines.append(f"Erasures stated in {lines_text(self.erasures)} were not checked: this version cannot.")
        return "".join(f"{line}\n" for line in lines)

    def _of_what(self) -> str:
        if self.count:
            return f"{'They are' if self.count > 1 else 'It is'} {printable(self.source)}."
        return f"Only its checkpoint was checked, {printable(self.source)}."


def verify_receipts(lines: Iterable[bytes], policy: Policy) -> BundleReport:
    """Return what a bundle of receipts proves when `policy` alone is trusted, given its lines.

    Raises as :class:`muniment.receipts.ReceiptsReader`.
    """
    reader, shown = ReceiptsReader(lines, policy), Shown()
    for receipt, verified in reader:
        shown.add(receipt, verified)
    return report_of(reader, policy, reader.count, shown, reader.erasures)


def report_of(reader: ReceiptsReader, policy: Policy, count: int, shown: Shown, erasures: int) -> BundleReport:
    """Return the report on a bundle with the first line that `reader` has read, all of whose lines hold."""
    signed, header = reader.signed, reader.header
    signers = signers_of(header.origin, signed.note, policy)
    return BundleReport(signed.checkpoint, signers, count, header.range, shown, erasures)


_KINDS = {
    "whole": "events whole",
    "part": "events in part",
    "closed": "events of which nothing is opened",
    "own": "entries written by the log itself",
    "raw": "raw leaves",
}


def _kinds_text(kinds: Counter[str]) -> str:
    found = [(kinds[kind], text) for kind, text in _KINDS.items() if kinds[kind]]
    return ", ".join(f"{count} {text if count > 1 else _one(text)}" for count, text in found)


def _one(text: str) -> str:
    return text.replace("events", "event").replace("entries", "entry").replace("leaves", "leaf")


def _names_text(names: Counter[str], unnamed: int) -> str:
    texts = [f"{named(name)} (in {count})" for name, count in names.most_common()]
    if unnamed:
        texts.append(f"other members ({unnamed} in all)")
    return ", ".join(texts)
