"""Bundles of receipts of which a part is shown: each event opens some members and no others. Offline, line by line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from muniment.errors import UnknownMember
from muniment.names import listed_names
from muniment.receipt import Receipt
from muniment.receipts import ReceiptLines, end_line, line_of
from muniment.receipts_report import count_names
from muniment.signatures import passed_on


class PartOfBundle:
    """Makes of a bundle another one, whose events show the members `names` alone; with `hiding`, all but these.

    Made of the lines of a bundle, each with its newline, and iterated once: it yields the lines of the other. These
    verify if the bundle does, and keep its range; what opens the hidden members is in no byte of them. The leaf of an
    entry that is no event shows all, as before. What a line states of erasures is left out, since this version cannot
    tell what that says: `erasures` counts these lines. `checkpoint` says which signature lines of it go on, and how
    many do not. `count` is the number of entries so far; `shown` and `hidden`
    say of how many a member is shown or not, by name, and `unnamed` of those whose names are too many or too long.

    Raises UnknownMember instead of yielding the last line when no entry opens a member of one of these names (with
    `hiding`: when no event has it), and CannotHide when the checkpoint has extension lines. Raises FormatError,
    BadSignature, BadProof or BadDisclosure, which name the line.
    """

    def __init__(self, lines: Iterable[bytes], names: set[str], *, hiding: bool = False) -> None:
        self._reader = ReceiptLines(lines)
        self._names = names
        self._hiding = hiding
        self._missing = set(names)
        with self._reader.naming():
            self.checkpoint = passed_on(self._reader.header.checkpoint)
        self.header = replace(self._reader.header, checkpoint=self.checkpoint.note)
        self.shown: Counter[str] = Counter()
        self.hidden: Counter[str] = Counter()
        self.unnamed = 0
        self.erasures = 0

    @property
    def count(self) -> int:
        """How many entries were read."""
        return self._reader.count

    def __iter__(self) -> Iterator[bytes]:
        """Yield the lines."""
        yield self.header.line()
        with self._reader.naming():
            for value, receipt in self._reader.entries():
                yield line_of(self._cut(value, receipt))
        if self._missing:
            which = "no entry of the bundle has" if self._hiding else "no entry of the bundle opens"
            raise UnknownMember(f"{which} a member {listed_names(self._missing)}")
        yield end_line(self.count)

    def _cut(self, value: dict[str, Any], receipt: Receipt) -> dict[str, Any]:
        """Return an entry line that opens what is to be shown, all else that is understood as it was."""
        self.erasures += value.pop("erasures", None) is not None
        opening = receipt.opening()
        names = receipt.commitment.members.keys() if receipt.commitment else opening.keys()
        shown = {name for name in opening if (name in self._names) != self._hiding}
        self._missing -= names if self._hiding else shown
        self.unnamed += count_names(self.shown, shown) + count_names(self.hidden, names - shown)
        if "disclosures" not in value:
            return value
        return value | {"disclosures": [text for name, text in opening.items() if name in shown]}
