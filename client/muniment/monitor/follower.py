"""Follows one log as it is served at one URL: look after look, each of which ends in what was found."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from enum import IntEnum
from random import Random
from time import monotonic
from typing import Any

from muniment._flows.steps import Request, send
from muniment.errors import BadProof, BadSignature, FormatError, PolicyNotMet, Refused, Unavailable, Unreachable
from muniment.event import format_time
from muniment.monitor.book import MAX_PENDING, Book
from muniment.monitor.diagnosis import ForkFound, Suspicion, diagnose
from muniment.monitor.findings import Finding
from muniment.monitor.ours import events_of_bundle, publish_delay
from muniment.monitor.patrol import EVERY as PATROL_EVERY
from muniment.monitor.patrol import old_checkpoints, patrol
from muniment.monitor.reading import Absent, Mismatch, bundles, new_part, whole_bundle
from muniment.monitor.reporter import Reporter, Say
from muniment.monitor.rules import Rule, match_events, match_leaves
from muniment.monitor.source import RETRIES, Source, now_ms
from muniment.monitor.watching import Watch
from muniment.note import MAX_NOTE
from muniment.policy import Policy, VerifiedCheckpoint
from muniment.proofs import whole_proof
from muniment.tiles import TILE_WIDTH

SAVE_EVERY = 2.0
"""Seconds of reading that a crash may cost."""
TOUCH_EVERY = 30_000
"""Milliseconds after which a look that found nothing new is remembered too."""


class Status(IntEnum):
    """How a look ended. Of several the greatest counts; they are exit codes of the command."""

    GOOD = 0
    FOUND = 1
    BEHIND = 3
    UNREACHABLE = 4
    REFUSED = 6


@dataclass(frozen=True, slots=True)
class Settings:
    """How a log is followed. Times are in milliseconds; None asks for no such check."""

    grace: int = 60_000
    stale: int | None = None
    delay: int | None = None
    anchors: int | None = None
    rules: tuple[Rule, ...] = ()


class Follower:
    """One log. Belongs to one task. `status` is that of the last look, and `reason` says why it is not good."""

    def __init__(
        self, source: Source, policy: Policy, book: Book, reporter: Reporter, settings: Settings, say: Say
    ) -> None:
        self.source = source
        self.book = book
        self.reporter = reporter
        self.status: Status | None = None
        self.reason = ""
        self.answered_at = 0
        """When the log last answered."""
        self.costly = False
        """Whether the last look read tiles to find out what is wrong, and the next would read them again."""
        self.clock: Callable[[], int] = now_ms
        self.advance: Callable[[int, int], None] = lambda _new, _left: None
        self._policy = policy
        self._settings = settings
        self._say = say
        self.random = Random()  # noqa: S311 - chooses what is looked at again
        self._saved_at = 0
        self.patrol_every = PATROL_EVERY
        self._patrolled_at = 0
        self._delay = settings.delay
        self._delay_asked = settings.delay is not None

    # --- a look -------------------------------------------------------------------------------------------------------

    async def look(self) -> None:
        """Ask the log once, and judge what it answers. Raises StateError alone."""
        now, memory = self.clock(), self.book.memory
        memory.first_at = memory.first_at or now
        memory.grown_at = memory.grown_at or now
        before = _what_counts(self.book)
        self.costly = False
        try:
            suspicions = await self._look(now)
        except (Unreachable, Unavailable, Refused) as error:
            memory.failed_at = memory.failed_at or now
            self._ended(Status.REFUSED if isinstance(error, Refused) else Status.UNREACHABLE, str(error), now)
        else:
            self.answered_at = now
            self.reporter.answered(memory, now)
            self.reporter.judge(memory, [*suspicions, *self._overdue(now)], now)
            self._ended(*self._judged(), now)
        if before != _what_counts(self.book) or now - self._saved_at >= TOUCH_EVERY:
            self.book.save()
            self._saved_at = now

    def _ended(self, status: Status, reason: str, now: int) -> None:
        """Say how a look ended, when the one before ended in another way."""
        if (status, reason) != (self.status, self.reason) and (self.status is not None or status):
            line = {"event": "status", "url": self.source.url, "origin": self.book.memory.origin}
            self._say(line | {"status": status.name.lower(), "detail": reason, "seen_at": format_time(now)})
        self.status, self.reason = status, reason

    def _judged(self) -> tuple[Status, str]:
        memory = self.book.memory
        if memory.forked:
            return Status.FOUND, "this log has forked"
        for known in sorted(memory.suspicions.values(), key=lambda known: not known["told"]):
            return (Status.FOUND if known["told"] else Status.BEHIND), str(known["detail"])
        return Status.GOOD, ""

    async def _look(self, now: int) -> list[Suspicion]:
        answer = await self.source.run(send(Request("GET", "/checkpoint", limit=MAX_NOTE), RETRIES))
        try:
            seen = self._policy.verify(answer.body)
            self._check_origin(seen.checkpoint.origin)
        except BadSignature as error:
            return [Suspicion("key", str(error))]
        except PolicyNotMet as error:
            return [Suspicion("policy", str(error))]
        except FormatError as error:
            return [Suspicion("format", str(error))]
        known, memory = self.book.known(), self.book.memory
        if known and seen.checkpoint.size <= known.checkpoint.size:
            found = await self._compare(known, seen, now)
        else:
            found = await self._read(known, seen, now)
        if found or memory.forked or seen.checkpoint.size < self.book.size():
            return found
        return await self._patrol(now) or await self._ask_ours(now)

    def _check_origin(self, origin: str) -> None:
        here = {log.vkey.name for log in self._policy.logs if log.url and log.url.rstrip("/") == self.source.url}
        known = self.book.memory.origin
        if (known and origin != known) or (here and origin not in here):
            raise PolicyNotMet(f"a checkpoint of {origin!r} is served, and this is the log {known or min(here)!r}")

    def _overdue(self, now: int) -> list[Suspicion]:
        """Return what a log did not do in time that it was asked to do, as far as this monitor saw."""
        memory, asked, found = self.book.memory, self._settings, []
        if asked.stale is not None and now - memory.grown_at > asked.stale:
            since = format_time(memory.grown_at)
            found.append(Suspicion("stale", f"no new checkpoint since {since}", at_once=True))
        anchored = max(memory.head_anchored, memory.first_at)
        if asked.anchors is not None and memory.own and now - anchored > asked.anchors:
            found.append(Suspicion("anchor", f"no entry of a new anchor since {format_time(anchored)}", at_once=True))
        return found

    # --- no larger tree -----------------------------------------------------------------------------------------------

    async def _compare(self, known: VerifiedCheckpoint, seen: VerifiedCheckpoint, now: int) -> list[Suspicion]:
        """Compare a checkpoint that is not larger than the known one with the tree that was read."""
        try:
            fork = await contradicts(self.source, self.book, seen)
        except Mismatch as error:
            return [Suspicion("bundle", str(error))]
        except Absent as error:
            return [Suspicion("missing", str(error))]
        if fork:
            self.forked(fork, now)
            return []
        size, before = seen.checkpoint.size, known.checkpoint.size
        if size < before:
            return [Suspicion("rollback", f"size {size} is shown, after size {before}")]
        self.book.memory.looked_at = now
        return []

    def forked(self, fork: ForkFound, now: int) -> None:
        """Report a fork. Raises StateUnavailable."""
        self.reporter.forked(self.book.memory, self.book.memory.origin, fork, now)

    # --- a larger tree ------------------------------------------------------------------------------------------------

    async def _read(self, known: VerifiedCheckpoint | None, seen: VerifiedCheckpoint, now: int) -> list[Suspicion]:
        """Read what is new under a larger checkpoint, and accept it when the roots are equal."""
        book, size = self.book, seen.checkpoint.size
        if size < book.tree.size:
            book.discard()
        start, memory = book.tree.size, book.memory
        watch = Watch(own=memory.own, last=memory.last_logged, anchored=memory.anchored)
        given: Suspicion | None = None
        try:
            await self._entries(watch, seen, now)
        except Absent as absent:
            given = Suspicion("missing", f"{absent}, under a signed checkpoint of size {size}")
        except Mismatch as mismatch:
            given = Suspicion("bundle", str(mismatch))
        if given is None and book.tree.root_at(size) == seen.checkpoint.root:
            self._accept(seen, start, self._late(watch, start), now)
            return []
        self.costly = True
        found = await diagnose(self.source, book.tree, known, seen, given)
        if isinstance(found, Suspicion) and found.code == "missing" and given:
            book.save()  # what was read is gone on with
        else:
            book.discard()
        if isinstance(found, ForkFound):
            self.forked(found, now)
            return []
        return [found]

    async def _patrol(self, now: int) -> list[Suspicion]:
        """Look again at some of what was read; at the same as long as it does not fit."""
        memory, known = self.book.memory, self.book.known()
        if (
            not known
            or not known.checkpoint.size
            or (memory.patrol < 0 and now - self._patrolled_at < self.patrol_every)
        ):
            return []
        size, self._patrolled_at = known.checkpoint.size, now
        index = memory.patrol if memory.patrol >= 0 else self.random.randrange(size) // TILE_WIDTH
        found = await patrol(self.source, known, index)
        memory.patrol = index if found else -1
        if memory.own and not found:
            flow = old_checkpoints(self._policy, memory.origin, self.random.randrange(size))
            for old in await self.source.run(flow):
                if old.checkpoint.size > size:
                    break
                with suppress(Absent, Mismatch):
                    if fork := await contradicts(self.source, self.book, old):
                        self.forked(fork, now)
        return [found] if found else []

    async def _ask_ours(self, now: int) -> list[Suspicion]:
        """Ask a Muniment log for what others do not have: its publish delay, and what events say, for rules."""
        memory = self.book.memory
        if not memory.own:
            return []
        if not self._delay_asked:
            self._delay = await self.source.run(publish_delay())
            self._delay_asked = True
        rules = [one for one in self._settings.rules if one.query and one.origin in (None, memory.origin)]
        tree = self.book.head_tree()
        if not rules:
            memory.ruled = tree.size  # a rule that comes later looks at what comes after it
        while memory.ruled < tree.size:
            index = memory.ruled // TILE_WIDTH
            try:
                events = await self.source.run(events_of_bundle(tree, index))
            except Mismatch as mismatch:
                return [Suspicion("bundle", str(mismatch))]
            found = match_events(rules, [one for one in events if one[0] >= memory.ruled])
            self.reporter.report(
                Finding(url=memory.url, origin=memory.origin, at=now, **one.to_json()) for one in found
            )
            memory.ruled = min((index + 1) * TILE_WIDTH, tree.size)
        return []

    async def _entries(self, watch: Watch, seen: VerifiedCheckpoint, now: int) -> None:
        """Read up to a checkpoint into the tree; what came before an error is kept.

        Raises Absent, Mismatch, or what sending does.
        """
        tree, size, saved = self.book.tree, seen.checkpoint.size, monotonic()
        rules = [rule for rule in self._settings.rules if rule.origin in (None, seen.checkpoint.origin)]
        try:
            async with aclosing(bundles(self.source, tree.size, size)) as found:
                async for index, leaves in found:
                    new, hashes = new_part(bytes(tree.tail), leaves, index)
                    watch.take(new, tree.size, now)
                    self._pend([match.to_json() for match in match_leaves(rules, new, hashes, tree.size)])
                    tree.add(hashes)
                    self.advance(len(new), size - tree.size)
                    if monotonic() - saved >= SAVE_EVERY:
                        self._remember(watch)
                        self.book.save()
                        saved = monotonic()
        finally:
            self._remember(watch)

    def _remember(self, watch: Watch) -> None:
        """Keep with the tree what its entries said."""
        memory = self.book.memory
        memory.own, memory.last_logged, memory.anchored = watch.own, watch.last, watch.anchored
        self._pend([{"code": code, "detail": detail, "facts": facts} for code, detail, facts in watch.found])
        watch.found = []

    def _pend(self, found: list[dict[str, Any]]) -> None:
        """Keep findings until the root over their entries was compared."""
        pending = self.book.memory.pending
        pending += found[: max(0, MAX_PENDING - len(pending))]

    def _late(self, watch: Watch, start: int) -> str:
        """Return in words that an entry was published too late, or "".

        It should have been when the log was last seen without it; the grace period covers a lag of what was asked.
        """
        looked, delay = self.book.memory.looked_at, self._delay
        if delay is None or watch.first_new is None or watch.first_new + delay + self._settings.grace >= looked:
            return ""
        when = format_time(watch.first_new)
        return f"entry {start} is of {when}, and was not published yet at {format_time(looked)}"

    def _accept(self, seen: VerifiedCheckpoint, start: int, late: str, now: int) -> None:
        memory, head = self.book.memory, seen.checkpoint
        noticed = memory.pending + ([{"code": "late", "detail": late, "facts": {"index": start}}] if late else [])
        self.reporter.report(Finding(url=memory.url, origin=head.origin, at=now, **found) for found in noticed)
        memory.pending, memory.grown_at = [], now
        self.book.accept(seen.note)
        line = {"event": "head", "url": memory.url, "origin": head.origin, "tree_size": head.size}
        self._say(line | {"root": head.root.hex(), "new": head.size - start, "seen_at": format_time(now)})


async def contradicts(source: Source, book: Book, seen: VerifiedCheckpoint) -> ForkFound | None:
    """Return the fork that a checkpoint shows which is not larger than the known one, and of another tree.

    Raises Absent, Mismatch or what sending does, when the entries that this takes cannot be had.
    """
    known, tree = book.known(), book.head_tree()
    if known is None:
        raise AssertionError("nothing is known to compare with")
    size, bundle = seen.checkpoint.size, b""
    if (needed := tree.bundle_needed(size)) is not None:
        bundle = book.leaves(needed) or await whole_bundle(source, needed)
        try:
            tree.check_bundle(needed, bundle)
        except BadProof as error:
            raise Mismatch(str(error), needed * TILE_WIDTH) from error
    root = tree.root_at(size, bundle)
    if root == seen.checkpoint.root:
        return None
    proof = whole_proof(size, root, tree.consistency(size, bundle)) if size < tree.size else ()
    return ForkFound(seen.note, known.note, proof)


def _what_counts(book: Book) -> tuple[Any, ...]:
    memory = book.memory
    suspicions = {code: dict(known) for code, known in memory.suspicions.items()}
    return memory.note, memory.forked, memory.failed_at, suspicions, memory.ruled, book.tree.size
