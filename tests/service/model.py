"""The model of a simulation: what was acknowledged and signed, and what that forbids from then on."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from random import Random

from muniment.event import parse_time
from muniment_server.errors import Refused
from muniment_server.write.admission import EventDraft, RawDraft
from muniment_server.write.submission import Outcome, Submission
from tests.service.rig import event, raw

TTL = 3600


def expect(condition: object, problem: str) -> None:
    """Raise AssertionError unless `condition`."""
    if not condition:
        raise AssertionError(problem)


@dataclass
class Key:
    """What is known of one Idempotency-Key: where its entries are, or which bodies may have been stored under it."""

    indices: tuple[int, ...] = ()
    body: tuple[bytes, ...] = ()
    expires: int = -1
    maybe: set[tuple[bytes, ...]] = field(default_factory=set)


@dataclass
class Model:
    """What was acknowledged, and what was signed."""

    acked: dict[int, bytes] = field(default_factory=dict)
    payloads: dict[int, bytes] = field(default_factory=dict)
    places: dict[bytes, int] = field(default_factory=dict)  # raw leaves
    keys: dict[str, Key] = field(default_factory=dict)
    signed: dict[int, bytes] = field(default_factory=dict)
    published: int = 0
    counts: Counter[str] = field(default_factory=Counter)

    def acknowledge(self, index: int, leaf: bytes, size: int) -> None:
        """An entry was answered for, under a signed head of `size`."""
        expect(index < size, f"entry {index} acknowledged under a head of {size}")
        expect(self.acked.setdefault(index, leaf) == leaf, f"index {index} was acknowledged for another entry")

    def answer(self, submission: Submission, outcome: Outcome | Refused, now: int, leaves: list[bytes]) -> None:
        """Take the answer to a submission; `leaves` are those stored at its indices."""
        self.counts["answers"] += 1
        if isinstance(submission.drafts[0], RawDraft):
            self._raw(submission, outcome)
        else:
            self._event(submission, outcome, now, leaves)

    def _raw(self, submission: Submission, outcome: Outcome | Refused) -> None:
        expect(isinstance(outcome, Outcome), f"raw leaves refused: {outcome}")
        for draft, index in zip(submission.drafts, outcome.indices, strict=True):
            expect(self.places.setdefault(draft.leaf, index) == index, f"a raw leaf is at two indices, one is {index}")
            self.acknowledge(index, draft.leaf, outcome.signed.size)

    def _event(self, submission: Submission, outcome: Outcome | Refused, now: int, leaves: list[bytes]) -> None:
        body = tuple(draft.payload for draft in submission.drafts if isinstance(draft, EventDraft))
        key = self.keys.setdefault(submission.key, Key()) if submission.key else Key()
        live = key.expires > now
        if isinstance(outcome, Refused):
            expect(outcome.code == "idempotency_mismatch", f"refused: {outcome.code}")
            other = (live and key.body != body) or any(maybe != body for maybe in key.maybe)
            expect(other, "an Idempotency-Key refused that was used for no other body")
            return
        indices = tuple(outcome.indices)
        if outcome.replayed:
            expect((live and key.body == body) or body in key.maybe, "replayed what was never sent")
        elif not submission.key:
            expect(not set(indices) & set(self.acked), "a new event at an index that is taken")
        if live and (key.body == body or not outcome.replayed):
            expect((key.indices, key.body) == (indices, body), f"one key, two places: {key.indices} and {indices}")
        for draft, index, leaf in zip(submission.drafts, indices, leaves, strict=True):
            self.acknowledge(index, leaf, outcome.signed.size)
            expect(self.payloads.setdefault(index, draft.payload) == draft.payload, f"another payload at {index}")
        expires = parse_time(json.loads(leaves[0])["logged_at"]) + TTL * 1000
        key.indices, key.body, key.expires = indices, body, expires
        key.maybe.clear()

    def unknown(self, batch: list[Submission], now: int) -> None:
        """A batch may have been stored. A key that had expired may stand for it now, or be good again when the clock goes back."""
        self.counts["unknown"] += 1
        for submission in batch:
            if submission.key:
                body = tuple(draft.payload for draft in submission.drafts if isinstance(draft, EventDraft))
                key = self.keys.setdefault(submission.key, Key())
                key.maybe.add(body)
                if key.body and key.expires <= now:
                    key.maybe.add(key.body)
                    key.indices, key.body, key.expires = (), (), -1


class Batches:
    """Draws batches of submissions: new entries, raw leaves again, and Idempotency-Keys again with the same or another body."""

    def __init__(self, rng: Random, kind: str, model: Model) -> None:
        self.rng = rng
        self.kind = kind
        self.model = model
        self._numbers = 0

    def draw(self) -> list[Submission]:
        """Return a batch in which no key occurs twice, as the batcher makes them."""
        make = self._raw_submission if self.kind == "raw" else self._event_submission
        made = [make() for _ in range(self.rng.choice([1, 1, 2, 3, self.rng.choice([5, 40, 300])]))]
        keys: set[str] = set()
        return [one for one in made if not one.key or not (one.key in keys or keys.add(one.key))]

    def number(self) -> int:
        """Return a number that was not there before."""
        self._numbers += 1
        return self._numbers

    def _raw_submission(self) -> Submission:
        known = list(self.model.places)
        leaves = [b"leaf %d" % self.number() for _ in range(self.rng.choice([1, 1, 2]))]
        if known and self.rng.random() < 0.4:
            leaves.append(self.rng.choice(known))
        return raw(*leaves, *leaves[: self.rng.choice([0, 0, 1])])

    def _event_submission(self) -> Submission:
        numbers = [self.number() for _ in range(self.rng.choice([1, 1, 2]))]
        if self.rng.random() < 0.5:
            return event(*numbers)
        if self.model.keys and self.rng.random() < 0.6:
            key, known = self.rng.choice(list(self.model.keys.items()))
            bodies = [known.body] if known.body else sorted(known.maybe)
            if bodies and self.rng.random() < 0.8:
                body = self.rng.choice(bodies)
                numbers = [json.loads(payload)["n"] for payload in body]
            return event(*numbers, key=key, seed=self.rng.randbytes(32))
        return event(*numbers, key=f"key-{self.number()}")
