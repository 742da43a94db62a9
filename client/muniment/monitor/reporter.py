"""From what was noticed to what is reported: durable first, then said, each once.

What an unsigned answer may explain is a suspicion at first, and a finding once it has lasted for the grace period: a
replica that lags and a proxy in trouble do the same for a moment.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from muniment import evidence
from muniment.errors import MunimentError
from muniment.event import format_time
from muniment.monitor.book import Memory
from muniment.monitor.diagnosis import ForkFound, Suspicion
from muniment.monitor.findings import Finding, Severity
from muniment.monitor.record import Record
from muniment.policy import Policy
from muniment.state import replace_file

Say = Callable[[dict[str, Any]], None]


class Reporter:
    """Reports of one log. Belongs to its follower. `counts` are of findings, by code, since it was made."""

    def __init__(self, record: Record, folder: Path, policy: Policy, grace: int, say: Say) -> None:
        self.counts: Counter[str] = Counter()
        self.bad = False
        """Whether something was reported that is more than an entry that was looked for."""
        self._record = record
        self._folder = folder
        self._policy = policy
        self._grace = grace
        self._say = say

    def report(self, findings: Iterable[Finding]) -> None:
        """Make findings durable, and say those that are new. Raises StateUnavailable."""
        for found in self._record.add(list(findings)):
            self.counts[found.code] += 1
            self.bad = self.bad or found.severity is not Severity.INFO
            self._say({"event": "finding", **found.to_json()})

    def forked(self, memory: Memory, origin: str, fork: ForkFound, now: int) -> None:
        """Report a fork with a file of evidence. The first of a log alone: all that it signs later would be another.

        Raises StateUnavailable.
        """
        if memory.forked:
            return
        made, statement, facts = self._evidence(fork)
        found = Finding("fork", memory.url, origin, statement, now, facts)
        if made is not None:
            path = self._folder / facts["evidence"]
            path.parent.mkdir(exist_ok=True, mode=0o700)
            replace_file(path, bytes(made))
        self.report([found])
        memory.forked = found.id

    def _evidence(self, fork: ForkFound) -> tuple[evidence.Evidence | None, str, dict[str, Any]]:
        try:
            made, shown = evidence.make(fork.first, fork.second, fork.hashes, self._policy)
        except MunimentError as error:  # notes that no file of evidence can hold
            text = f"two signed checkpoints contradict each other; no evidence could be made of them: {error}"
            return None, text, {"first": fork.first, "second": fork.second}
        first, second = shown.first, shown.second
        facts = {
            "evidence": f"evidence/{first.size}-{second.size}-{first.root.hex()[:8]}-{second.root.hex()[:8]}.json",
            "first": {"tree_size": first.size, "root": first.root.hex()},
            "second": {"tree_size": second.size, "root": second.root.hex()},
        }
        return made, shown.statement, facts

    def answered(self, memory: Memory, now: int) -> None:
        """Take note that the log answers again: while it did not, nothing was seen to last."""
        if memory.failed_at:
            for known in memory.suspicions.values():
                known["since"] = min(now, known["since"] + now - memory.failed_at)
            memory.failed_at = 0

    def judge(self, memory: Memory, suspicions: Sequence[Suspicion], now: int) -> None:
        """Compare what is suspected now with what was: what lasts is reported, what has gone is taken back.

        Raises StateUnavailable.
        """
        current = {found.code: found for found in suspicions}
        for code in [code for code in memory.suspicions if code not in current]:
            if memory.suspicions.pop(code)["told"]:
                self._say({"event": "cleared", "code": code, "url": memory.url, "seen_at": format_time(now)})
        for code, found in current.items():
            state = memory.suspicions.setdefault(code, {"since": now, "detail": "", "told": False})
            state["detail"] = found.detail
            lasted = now - state["since"] >= self._grace
            if (lasted or found.at_once) and not state["told"]:
                facts = {"since": format_time(state["since"])}
                self.report([Finding(code, memory.url, memory.origin, found.detail, now, facts)])
                state["told"] = True
