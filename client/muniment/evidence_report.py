"""What evidence of a fork proves, for people and machines, and what it does not.

:func:`muniment.evidence.verify` decides; this module says in words what its decision means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from muniment.checkpoint import Checkpoint
from muniment.evidence import EVIDENCE_TYPE, Evidence, Fork, verify
from muniment.policy import Policy
from muniment.verify import Limit, printable, signers_of

LIMITS = (
    Limit("who", "who made the second tree, or why: the holder of a stolen key, or a fault, signs as the log does."),
    Limit("which", "which of the two trees is the right one, if any is, or which readers were shown which."),
    Limit("when", "when either head was signed."),
)


@dataclass(frozen=True, slots=True)
class ForkReport:
    """What evidence proved under a policy.

    Made by :func:`report_fork` alone, so holding one means that the checks passed. `signers` are ``name+keyid`` of the
    policy's keys that signed the first head, and those of the second.
    """

    fork: Fork
    signers: tuple[tuple[str, ...], tuple[str, ...]]

    @property
    def limits(self) -> tuple[Limit, ...]:
        """What is not proved."""
        return LIMITS

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON value; `verified` is true."""
        fork, (first, second) = self.fork, self.signers
        return {
            "verified": True,
            "typ": EVIDENCE_TYPE,
            "origin": fork.first.origin,
            "first": _head(fork.first, first),
            "second": _head(fork.second, second) | {"root_at_first": fork.root.hex()},
            "proves": fork.statement,
            "does_not_prove": [limit._asdict() for limit in LIMITS],
        }

    def proved_text(self) -> str:
        """Return what is proved, for people, several lines, each ending in a newline."""
        first, second = (", ".join(signers) for signers in self.signers)
        signed = f"Both are signed by {first}." if first == second else f"Signed by {first}; and by {second}."
        return f"Proved: {printable(self.fork.statement)}.\n{printable(signed)}\n"


def report_fork(evidence: Evidence, policy: Policy) -> ForkReport:
    """Return what `evidence` proves when `policy` alone is trusted. Raises as :func:`muniment.evidence.verify`."""
    fork = verify(evidence, policy)
    first, second = (signers_of(evidence.origin, note, policy) for note in (evidence.first, evidence.second))
    return ForkReport(fork, (first, second))


def _head(head: Checkpoint, signers: tuple[str, ...]) -> dict[str, Any]:
    return {"tree_size": head.size, "root": head.root.hex(), "signers": list(signers)}
