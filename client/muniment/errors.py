"""Every error this package raises on purpose.

The tree, tested as such::

    MunimentError
    ├── FormatError               bytes that do not follow their format
    │   ├── EventRefused          JSON that cannot be an event; carries a JSON pointer
    │   ├── CutOff                a bundle of receipts that ends before its last line
    │   ├── OutOfOrder            a bundle of receipts whose lines do not follow each other
    │   ├── QueryError            not a query; carries a position
    │   ├── BadHeader             not a Bitcoin block header with its proof of work
    │   │   └── BadHeaderChain    headers that break a rule of the chain
    │   └── BadTimestamp          not an OpenTimestamps proof within our bounds
    ├── VerificationError         well-formed, but it does not prove what it says
    │   ├── BadSignature          a known key did not sign this
    │   ├── BadProof              the Merkle arithmetic does not lead to the signed root
    │   │   └── EntryMissing      a bundle of receipts lacks an entry that it claims to have
    │   ├── BadDisclosure         an opened member does not match its commitment
    │   ├── PolicyNotMet          nothing in the policy vouches for this checkpoint
    │   ├── NotWhatWasSent        the log answered with an entry that is not ours
    │   ├── Inconsistent          two signed checkpoints of one log contradict each other
    │   ├── Unproven              the log does not prove that two of its checkpoints belong together
    │   └── AnchorMismatch        an anchor is of other bytes or of no such block
    ├── NoHeader                  no block of this height exists yet
    ├── SourceUnavailable         a source of Bitcoin headers gives no usable answer
    ├── UnknownMember             a receipt does not open a member of this name
    ├── CannotHide                a receipt or a bundle has what can be neither hidden nor left out
    ├── StateError                the memory of checkpoints is damaged
    │   └── StateUnavailable      the file of it cannot be read or written
    └── RequestError              talking to the server
        ├── PayloadsClosed        nothing of an event is opened to this caller
        ├── Unreachable           no usable answer arrived
        ├── Behind                the server shows less of the log than was seen before
        ├── Unavailable           the server said 429 or 5xx
        └── Refused               the server said 4xx; carries the problem document

A caller that verifies something catches :class:`VerificationError` and :class:`FormatError`, and nothing else escapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class MunimentError(Exception):
    """Base of every error in this package.

    When an append ends in one, `idempotency_key` is the key it was sent under: the same call with it logs nothing
    twice. `receipts` are those that the log answered with and that hold by themselves, when only what came after
    failed, such as comparing them with what is remembered. `line` is the line of a bundle of receipts that failed.
    """

    idempotency_key: str | None = None
    receipts: tuple[Any, ...] = ()
    line: int | None = None


class FormatError(MunimentError):
    """Bytes that do not follow their format."""


class EventRefused(FormatError):
    """JSON that cannot be an event.

    `code` is stable and machine readable; `pointer` is the RFC 6901 JSON pointer of the offending place
    ("" is the whole document).
    """

    def __init__(self, code: str, detail: str, pointer: str = "") -> None:
        super().__init__(f"{detail} (at {pointer!r})" if pointer else detail)
        self.code = code
        self.detail = detail
        self.pointer = pointer


class CutOff(FormatError):
    """A bundle of receipts that ends before its last line: it was cut off on its way, or not written to its end."""


class OutOfOrder(FormatError):
    """A bundle of receipts whose entries do not ascend or lie outside of its range, or that goes on after its end."""


class QueryError(FormatError):
    """A text that is no query. `position` is where, in code points from 0."""

    def __init__(self, detail: str, position: int) -> None:
        super().__init__(f"{detail} (at position {position} of the query)")
        self.detail = detail
        self.position = position


class VerificationError(MunimentError):
    """Well-formed, but it does not prove what it says."""


class BadSignature(VerificationError):
    """A signature line of a known key does not verify."""


class BadProof(VerificationError):
    """A Merkle proof does not lead to the expected root."""


class EntryMissing(BadProof):
    """A bundle of receipts that lacks an entry of the range that it claims, or has another number of them."""


class BadDisclosure(VerificationError):
    """A commitment or an opened member does not match the leaf."""


class PolicyNotMet(VerificationError):
    """No log key of the policy signed this checkpoint, or its quorum is not reached."""


class NotWhatWasSent(VerificationError):
    """The log's answer is a valid receipt, but of another entry than the one that was sent or asked for."""


class Inconsistent(VerificationError):
    """Two signed checkpoints of one origin contradict each other. `notes` holds both, older first.

    `evidence` is what shows it to others, offline (:class:`muniment.evidence.Evidence`); None where what was seen does
    not make one.
    """

    def __init__(self, detail: str, notes: tuple[str, str], evidence: Any = None) -> None:
        super().__init__(detail)
        self.notes = notes
        self.evidence = evidence


class Unproven(VerificationError):
    """The server did not prove two signed checkpoints of one origin consistent. `notes` holds both, older first.

    Not evidence of a fork: a log restored from a backup looks the same. Only the log can tell, by a proof. `absent`
    tells whether the server said that it does not have what a proof takes.
    """

    def __init__(self, detail: str, notes: tuple[str, str], *, absent: bool = False) -> None:
        super().__init__(detail)
        self.notes = notes
        self.absent = absent


class BadHeader(FormatError):
    """Not a Bitcoin block header, or one without the proof of work that it claims."""


class BadHeaderChain(BadHeader):
    """A file of headers that breaks a rule of the header chain, or has less work than it must have."""


class NoHeader(MunimentError):
    """No block of this height exists yet, as far as the source knows."""


class SourceUnavailable(MunimentError):
    """A source of Bitcoin headers is not reachable, answers nonsense, or explorers disagree.

    Says nothing about the anchor.
    """


class BadTimestamp(FormatError):
    """An OpenTimestamps proof, or the answer of a calendar, that is malformed or beyond our bounds."""


class AnchorMismatch(VerificationError):
    """An anchor does not hold: it is of other bytes, or its Merkle root is not that of the block."""


class UnknownMember(MunimentError):
    """A member was named that a receipt does not open, so it can be neither shown nor kept. The message names all."""


class CannotHide(MunimentError):
    """A part is to be shown of what holds bytes that could say anything and that cannot be left out."""


class StateError(MunimentError):
    """What is remembered of checkpoints is damaged. Never an accusation of the log."""


class StateUnavailable(StateError):
    """The file of remembered checkpoints cannot be read or written: no right to, no room, no such folder."""


class RequestError(MunimentError):
    """A request to the server did not give an answer to verify."""


class PayloadsClosed(RequestError):
    """Nothing of the event at `index` is opened to this caller: a matter of permission, and no contradiction."""

    def __init__(self, index: int) -> None:
        super().__init__(f"nothing of the event at index {index} is opened to this caller")
        self.index = index


class Unreachable(RequestError):
    """No usable answer arrived: connection refused, reset or timed out, or an answer that is not ours."""


class Behind(RequestError):
    """The server shows a smaller tree than one seen before, and does not have the larger one.

    That is what a replica or a mirror does for a moment, so it is no accusation: not yet. A log that was rolled back
    does it for good. `notes` holds both checkpoints, the server's own first.
    """

    def __init__(self, shown: int, seen: int, notes: tuple[str, str]) -> None:
        super().__init__(f"the server shows the log at size {shown}, and size {seen} was seen before: it is behind")
        self.notes = notes


class _Answered(RequestError):
    def __init__(self, status: int, problem: Mapping[str, Any], retry_after: float | None = None) -> None:
        hint = f"; {problem['hint']}" if problem.get("hint") else ""
        if status == 401:
            hint += " Here: Client(api_key=...), or MUNIMENT_API_KEY for commands."
        super().__init__(f"{status} {problem.get('code', '')}: {problem.get('detail', '')}{hint}")
        self.status = status
        self.problem = dict(problem)
        self.retry_after = retry_after

    @property
    def code(self) -> str:
        """The stable error code of the problem document, or ""."""
        return str(self.problem.get("code", ""))


class Unavailable(_Answered):
    """The server answered 429 or 5xx: the same request may succeed later. `retry_after` is in seconds."""


class Refused(_Answered):
    """The server answered 4xx (but 429): the same request will be refused again."""
