"""What a receipt proves, in words for readers who know nothing of how it is done: a regulator, a customer, a court.

Also what a bundle of them proves. It says what :mod:`muniment.verify` and :mod:`muniment.receipts_report` say, and no
more: each limit of a report has its sentence here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from textwrap import fill
from typing import TYPE_CHECKING

from muniment.errors import (
    BadDisclosure,
    BadProof,
    BadSignature,
    CutOff,
    EntryMissing,
    FormatError,
    MunimentError,
    OutOfOrder,
    PolicyNotMet,
)
from muniment.event import EventLeaf, OwnLeaf
from muniment.evidence_report import ForkReport
from muniment.names import named
from muniment.receipts_report import BundleReport, Shown
from muniment.verify import Report, printable, shortened

if TYPE_CHECKING:
    from muniment.anchor.check import AnchorCheck

_LIMITS = {
    "unpublished": "That others were shown the same list. An operator could keep two. Compare what you were shown with"
    " what others were shown.",
    "hidden": "Anything about the parts that are not shown.",
    "clock": "That the operator's clock was right. Only the order is sure: later numbers do not have earlier times.",
    "anchors": "What the time stamp from outside says, since it was not checked.",
    "anchored": "When the record was made: it existed by the time of the block, and may be older. Nor that there is no"
    " other list.",
    "truth": "That what the record says is true, or who entered it. It is proved that this was entered, and not changed"
    " since.",
}
"""By the code of the limit."""
_FORK_LIMITS = {
    "who": "Who did it, or why. A thief of the key, or a fault of a machine, signs as the operator does.",
    "which": "Which of the two is the right one, if any is, or who was shown which.",
    "when": "When either was signed.",
}
_OTHERS = "That there are no other records, for example a later one that takes this one back."
_LIMITS_OF_MANY = _LIMITS | {
    "others": "That there are no other records like these: some may have been left out of this file.",
    "truth": "That what the records say is true, or who entered them. It is proved that they were entered, and not"
    " changed since.",
    "erasures": "That parts of the records were erased, as the file says of some: this program did not check it.",
}
_OTHERS_BEYOND = (
    "That the list has no records before or after these numbers, for example a later one that takes one of these back."
)

_STAMPS = {
    "mismatch": "A time stamp from outside is in this file, and it does NOT hold.",
    "no_source": "A time stamp from outside is in this file. It could not be checked here.",
    "pending": "A time stamp from outside is promised in this file, and proves nothing yet.",
    "unknown": "A time stamp from outside is in this file, of a kind that this program does not know.",
}
"""By the state of an anchor that shows nothing."""

_FAILURES: tuple[tuple[type[MunimentError], str], ...] = (
    (CutOff, "It is not whole: it ends too early, so records may be missing at its end. Ask for the whole file."),
    (EntryMissing, "It is not whole: records are missing that it says are there. Ask for the whole file."),
    (
        OutOfOrder,
        "Its lines do not stand in their order: some were moved, doubled or added. Ask for the file as it was written.",
    ),
    (FormatError, "It is not written as such files are: it was damaged on its way, or it is something else."),
    (BadDisclosure, "Something that it shows is not what was entered."),
    (BadProof, "What it says is not what was signed: it was changed, or put together from several others."),
    (
        PolicyNotMet,
        "It is not signed with a key that you trust: it is from another list, or made up, or you have another key.",
    ),
    (BadSignature, "Its signature is wrong: what was signed was changed, or the signature was made up."),
)


def plain_report(report: Report) -> str:
    """Return what a receipt proves and what it does not, several lines, each ending in a newline."""
    limits = [*(_LIMITS[limit.code] for limit in report.limits), _OTHERS]
    parts = (
        ("What is proved", [_proved(report)]),
        ("What the record says", list(_content(report))),
        ("Who says when", list(_times(report))),
        ("What is not proved", [f"- {text}" for text in limits]),
    )
    return _sections(parts)


def plain_bundle(report: BundleReport) -> str:
    """Return what a bundle of receipts proves and what it does not, as :func:`plain_report`."""
    limits = [_LIMITS_OF_MANY[limit.code] for limit in report.limits]
    if report.range is not None:
        limits.append(_OTHERS_BEYOND)
    parts = (
        ("What is proved", [_all_proved(report)]),
        ("Whether any are missing", [_missing(report)]),
        ("What is shown and what is not", list(_shown(report.shown))),
        ("Who says when", list(_times_of_many(report.shown))),
        ("What is not proved", [f"- {text}" for text in limits]),
    )
    return _sections(parts)


def plain_fork(report: ForkReport) -> str:
    """Return what evidence of a fork proves and what it does not, as :func:`plain_report`."""
    first, second = report.fork.first, report.fork.second
    signers = dict.fromkeys(name for names in report.signers for name in names)
    other = "that are not the same" if first.size == second.size else f"of which the first {first.size} are others"
    proved = (
        f'The list "{printable(first.origin)}" was signed in two versions that cannot both be true: one of'
        f" {_records(first.size)}, and one of {_records(second.size)} {other}. An honest list only grows at"
        " its end, so that every two versions of it agree. The signatures are of a key that you trust:"
        f" {', '.join(map(printable, signers))}."
    )
    limits = [f"- {_FORK_LIMITS[limit.code]}" for limit in report.limits]
    return _sections((("What is proved", [proved]), ("What is not proved", limits)))


def plain_failure(error: MunimentError) -> str:
    """Return what it means that a receipt does not hold."""
    what = next((text for kind, text in _FAILURES if isinstance(error, kind)), "A check of it failed.")
    advice = (
        "This does not say who did it, or that it was done on purpose. Keep the file as it is, and ask for it again"
        " where it comes from."
    )
    lines = (f"Do not rely on this file. {what}", advice, f"For a specialist: {printable(str(error))}")
    return "".join(map(_filled, lines))


def _sections(parts: Iterable[tuple[str, list[str]]]) -> str:
    return "\n".join(f"{title}\n" + "".join(map(_filled, lines)) for title, lines in parts)


def _filled(line: str) -> str:
    mark = "  " if line.startswith("- ") else ""
    return fill(line, 100, initial_indent="  ", subsequent_indent=f"  {mark}", break_on_hyphens=False) + "\n"


def _proved(report: Report) -> str:
    found, head = report.verified, report.verified.checkpoint
    return (
        f'The operator of the list "{printable(head.origin)}" has signed that the list had {_records(head.size)}, and'
        f" that record number {found.index} is the one that this file is about (numbers start at 0). A record that"
        f" differs by a single letter would have failed this check. The signature is of a key that you trust:"
        f" {', '.join(map(printable, report.signers))}."
    )


def _content(report: Report) -> Iterator[str]:
    found = report.verified
    if isinstance(found.entry, OwnLeaf):
        yield f"It was written by the list itself: {shortened(found.entry.value)}"
        return
    if not isinstance(found.entry, EventLeaf):
        yield f"It is a text or a file of {len(found.leaf)} bytes, exactly as it is in this receipt."
        return
    yield from (f"{named(name)}: {shortened(value)}" for name, value in sorted(found.opened.items()))
    if found.complete:
        yield "That is the whole record; nothing is left out."
    elif found.hidden == ("*",):
        yield "Nothing of it is shown in this file, not even which parts it has."
    else:
        yield _left_out(found.hidden, shown=len(found.opened))


def _left_out(hidden: tuple[str, ...], *, shown: int) -> str:
    names, whole = ", ".join(map(named, hidden)), shown + len(hidden)
    return (
        f"{shown or 'None'} of its {whole} parts {'is' if shown == 1 else 'are'} shown. Not shown: {names}. These were"
        " entered with the rest and cannot be replaced by others now. What they say is not in this file."
    )


def _times(report: Report) -> Iterator[str]:
    if report.logged_at is None:
        yield "The file does not say when the record was entered."
    else:
        yield (
            f"The operator says that the record was entered on {_day(report.logged_at)}, by the operator's own clock."
        )
    yield from map(_stamp, report.anchors or ())
    if report.anchors is None and any(limit.code == "anchors" for limit in report.limits):
        yield "A time stamp from outside is in this file. It was not checked (--check-anchors does so)."
    elif not report.anchors:
        yield "This is the operator's word alone: no time stamp from outside was checked."


def _stamp(anchor: AnchorCheck) -> str:
    if anchor.found is None:
        return _STAMPS[anchor.state]
    moment = datetime.fromtimestamp(anchor.found.header.time, UTC)
    young = "" if anchor.state == "confirmed" else " This is so new that it may still be undone."
    return (
        f"Independently of the operator: the record existed before block {anchor.found.height} of the Bitcoin block"
        f" chain, which was made on {moment:%d %B %Y at about %H:%M} UTC, give or take two hours, according to"
        f" {printable(anchor.found.source)}.{young}"
    )


def _day(milliseconds: int) -> str:
    return f"{datetime.fromtimestamp(milliseconds // 1000, UTC):%d %B %Y at %H:%M:%S} UTC"


# --- many records -----------------------------------------------------------------------------------------------------

_KINDS = {
    "whole": "shown whole",
    "part": "shown in part",
    "closed": "of which nothing is shown",
    "own": "that the list wrote itself",
    "raw": "that are texts or files, exactly as they are in this file",
}


def _all_proved(report: BundleReport) -> str:
    head, which = report.head, "the record in this file is" if report.count == 1 else "the records in this file are"
    if not report.count:
        return (
            "Of no record anything: there is none in this file. Only this was checked: that the operator of the list"
            f' "{printable(head.origin)}" has signed that the list had {_records(head.size)}. The signature is of a key'
            f" that you trust: {', '.join(map(printable, report.signers))}."
        )
    return (
        f'The operator of the list "{printable(head.origin)}" has signed that the list had {_records(head.size)}, and'
        f" that {which} among them: {report.count}, each at its place. A record that differs by a single letter would"
        " have failed this check. The signature is of a key that you trust:"
        f" {', '.join(map(printable, report.signers))}."
    )


def _records(count: int) -> str:
    return "1 record" if count == 1 else f"{count} records"


def _missing(report: BundleReport) -> str:
    if not report.count:
        return "Nothing says so. Records may have been left out of this file, and it would look the same."
    if report.range is None:
        return (
            "Nothing says that there are no others. Records may have been left out of this file, and it would look the"
            " same."
        )
    low, high = report.range
    if high - low == 1:
        return f"The file is to hold number {low} alone (numbers start at 0), and it is here."
    return f"None is missing from number {low} to number {high - 1} (numbers start at 0): all {high - low} are here."


def _shown(shown: Shown) -> Iterator[str]:
    yield from (f"- Records {text}: {shown.kinds[kind]}." for kind, text in _KINDS.items() if shown.kinds[kind])
    if not sum(shown.kinds.values()):
        yield "Nothing: there is no record in this file."
    if opened := _names(shown.opened, shown.opened_unnamed):
        yield f"Shown: {opened}."
    if hidden := _names(shown.hidden, shown.unnamed):
        yield (
            f"Not shown: {hidden}. These were entered with the rest and cannot be replaced by others now. What they say"
            " is not in this file."
        )


def _names(counted: Counter[str], unnamed: int) -> str:
    names = [f"{named(name)} (in {count})" for name, count in counted.most_common()]
    return ", ".join([*names, f"others ({unnamed} in all)"] if unnamed else names)


def _times_of_many(shown: Shown) -> Iterator[str]:
    if shown.logged is None:
        yield "No time is shown."
        return
    first, last = shown.logged
    yield (
        f"The operator says that the first of them was entered on {_day(first)} and the last on {_day(last)}, by the"
        " operator's own clock. This is the operator's word alone: no time stamp from outside is in this file."
    )
