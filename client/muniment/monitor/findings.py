"""What a monitor reports: a stable code, how grave it is, and on what it rests. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256
from typing import Any, NamedTuple

from muniment import strictjson
from muniment.errors import FormatError
from muniment.event import format_time, parse_time

FINDING_TYPE = "muniment/monitor-finding@v1"


class Severity(StrEnum):
    """How grave a finding is."""

    EVIDENCE = "evidence"
    """The log is proved to have signed two histories: any third party can check it offline."""
    ALARM = "alarm"
    """The log did what it must not do, as this monitor saw it."""
    WARNING = "warning"
    """The log did not do in time what it says it does."""
    INFO = "info"
    """An entry that was looked for."""


class Rests(StrEnum):
    """What a finding rests on."""

    SIGNED = "signed"
    """On what the log signed."""
    UNSIGNED = "unsigned"
    """On answers that are not signed: whatever stands between may have caused it, and nothing proves it to others."""
    CLOCK = "signed, and this monitor's clock"
    """On what the log signed, and on when this monitor says that it saw it."""
    ENTRY = "signed, and this monitor's rules"
    """On an entry under a signed root."""


class Kind(NamedTuple):
    """What holds of all findings of one code."""

    severity: Severity
    rests: Rests
    text: str


KINDS: Mapping[str, Kind] = {
    "fork": Kind(Severity.EVIDENCE, Rests.SIGNED, "the log signed two checkpoints that contradict each other"),
    "rollback": Kind(Severity.ALARM, Rests.UNSIGNED, "the log shows less than it showed before"),
    "missing": Kind(Severity.ALARM, Rests.UNSIGNED, "entries under a signed checkpoint are not there"),
    "bundle": Kind(Severity.ALARM, Rests.UNSIGNED, "entries are served that are not those of the signed tree"),
    "tile": Kind(Severity.ALARM, Rests.UNSIGNED, "hash tiles are served that do not lead to the signed root"),
    "root": Kind(Severity.ALARM, Rests.UNSIGNED, "nothing that is served leads to the signed root"),
    "key": Kind(Severity.ALARM, Rests.UNSIGNED, "a checkpoint is served that no key of the policy signed"),
    "policy": Kind(Severity.ALARM, Rests.UNSIGNED, "a checkpoint is served that the policy does not vouch for"),
    "format": Kind(Severity.ALARM, Rests.UNSIGNED, "what is served as a checkpoint is none"),
    "time": Kind(Severity.ALARM, Rests.CLOCK, "times of entries go back, or lie in the future"),
    "leaf": Kind(Severity.ALARM, Rests.SIGNED, "an entry claims a type of this log's own and does not follow it"),
    "late": Kind(Severity.WARNING, Rests.CLOCK, "an entry was published later than the log says it publishes"),
    "stale": Kind(Severity.WARNING, Rests.UNSIGNED, "there was no new checkpoint for too long"),
    "anchor": Kind(Severity.WARNING, Rests.CLOCK, "there was no new anchor for too long, or a wrong one"),
    "match": Kind(Severity.INFO, Rests.ENTRY, "entries match a rule"),
}
"""Every code that is reported, and no other."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is reported once. `facts` say what makes it this one: the same again has the same `id`.

    `at` is when it was seen, in milliseconds since 1970 UTC; it is no part of the id.
    """

    code: str
    url: str
    origin: str
    detail: str
    at: int
    facts: Mapping[str, Any] = field(default_factory=dict)
    alarm: bool = False
    """Of a match: that its rule says it is an alarm."""

    @property
    def id(self) -> str:
        """The name by which receivers know a finding that they have got already."""
        about = [self.code, self.origin, dict(self.facts)] + ([] if self.code == "fork" else [self.url])
        return sha256(strictjson.canonical(about)).hexdigest()[:32]

    @property
    def severity(self) -> Severity:
        """How grave it is."""
        return Severity.ALARM if self.alarm else KINDS[self.code].severity

    def to_json(self) -> dict[str, Any]:
        """Return the finding as it is printed, recorded and sent."""
        return {
            "typ": FINDING_TYPE,
            "id": self.id,
            "code": self.code,
            "severity": str(self.severity),
            "rests_on": str(KINDS[self.code].rests),
            "origin": self.origin,
            "url": self.url,
            "detail": self.detail,
            "facts": dict(self.facts),
            "seen_at": format_time(self.at),
        }

    @classmethod
    def from_json(cls, value: Any) -> Finding:
        """Return the finding in a JSON value. Raises FormatError unless it is written as :meth:`to_json` writes it."""
        try:
            found = cls(
                value["code"],
                value["url"],
                value["origin"],
                value["detail"],
                parse_time(value["seen_at"]),
                value["facts"],
                alarm=value["code"] == "match" and value["severity"] == Severity.ALARM,
            )
            same = found.to_json() == value
        except (KeyError, TypeError, AttributeError) as error:
            raise FormatError("not a finding of a monitor") from error
        if not same:
            raise FormatError("not a finding of a monitor, or one that was changed")
        return found
