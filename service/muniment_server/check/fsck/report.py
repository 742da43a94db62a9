"""What a check of a log says: findings, each with the index it concerns, and what was looked at."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

MAX_FINDINGS = 100
"""Findings kept of one log: beyond, the list says no more than its length."""


class Finding(NamedTuple):
    """Something that is wrong: a stable code, the first index (or tree size) it concerns, if any, and a sentence."""

    code: str
    index: int | None  # type: ignore[assignment]  # the specification's word; tuple.index is not used
    detail: str

    def __str__(self) -> str:
        """Return the finding as a line for people."""
        return f"{self.code}{'' if self.index is None else f' at {self.index}'}: {self.detail}"


@dataclass(slots=True)
class Report:
    """What was checked of one log, and what was found.

    `start` and `stop` bound the entries that were recomputed; what lies outside counts as its stored tiles say. `total`
    counts the findings, of which the first hundred are kept. `unreachable` says what could not be checked because a
    source did not answer.
    """

    log: str
    origin: str
    size: int
    start: int = 0
    stop: int = 0
    entries: int = 0
    tiles: int = 0
    checkpoints: int = 0
    idempotency_keys: int = 0
    anchors: int = 0
    unreachable: list[str] = field(default_factory=list)
    seconds: float = 0.0
    repaired: list[str] = field(default_factory=list)
    total: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Tell whether nothing is wrong."""
        return not self.total

    @property
    def first_bad_index(self) -> int | None:
        """The lowest index, or size, of any finding."""
        return min((finding.index for finding in self.findings if finding.index is not None), default=None)

    @property
    def note(self) -> str | None:
        """What a clean report does not say, or None."""
        if (self.start, self.stop) == (0, self.size):
            return None
        return (
            f"only the entries [{self.start}, {self.stop}) were recomputed; "
            "outside, the stored tiles were taken as they are, and equal leaves were not looked for"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON value."""
        value = asdict(self) | {"findings": [finding._asdict() for finding in self.findings]}
        return value | {"clean": self.clean, "first_bad_index": self.first_bad_index, "note": self.note}

    def add(self, *findings: Finding) -> None:
        """Note findings."""
        self.total += len(findings)
        self.findings += findings[: max(MAX_FINDINGS - len(self.findings), 0)]

    def add_one(self, code: str, index: int | None, detail: str) -> None:
        """Note a finding."""
        self.add(Finding(code, index, detail))

    def lines(self) -> list[str]:
        """Return the report for people."""
        counts = (
            f"{self.entries} entries, {self.tiles} tiles, {self.checkpoints} checkpoints, "
            f"{self.idempotency_keys} idempotency keys, "
            f"{f'{self.anchors} anchors, ' * bool(self.anchors)}{self.seconds:.1f} s"
        )
        found = [f"  {finding}" for finding in self.findings]
        if self.total > len(self.findings):
            found.append(f"  and {self.total - len(self.findings)} more")
        where = "" if self.first_bad_index is None else f", first at index {self.first_bad_index}"
        verdict = "clean" if self.clean else f"NOT clean{where}"
        mended = [f"  mended {'tile ' * ('/' in name)}{name}" for name in self.repaired]
        notes = [f"  note: {self.note}"] if self.note else []
        notes += [f"  not checked: {said}" for said in self.unreachable]
        return [f"{self.log}: {verdict} ({counts})", *mended, *found, *notes]
