"""Looks again at what was read before: a log may take old entries away, or serve others in their place, unseen.

One bundle at a time, chosen at random, with the hash tiles over it, which readers need and a monitor does not. Of a
Muniment log some old checkpoints too: one that was signed anew over another history is a fork.
"""

from __future__ import annotations

from muniment._flows import fields
from muniment._flows.steps import Flow, Request, json_of, send
from muniment._flows.tilereader import TileReader
from muniment.errors import BadProof, BadSignature, FormatError, PolicyNotMet, Refused, Unreachable
from muniment.monitor.diagnosis import Suspicion, first_difference
from muniment.monitor.reading import Absent, Mismatch, fetch_bundle, leaf_hashes
from muniment.monitor.source import RETRIES, Source
from muniment.policy import Policy, VerifiedCheckpoint
from muniment.tiles import TILE_WIDTH

EVERY = 10_000
"""Milliseconds between two patrols."""
_CHECKPOINTS = 10


async def patrol(source: Source, known: VerifiedCheckpoint, index: int) -> Suspicion | None:
    """Compare bundle `index` and the tiles over it, as they are served now, with the root of a verified checkpoint.

    Raises what sending does.
    """
    head, reader = known.checkpoint, TileReader(RETRIES)
    try:
        signed = await source.run(reader.hashes(head, 0, index))
        served = leaf_hashes(await source.run(fetch_bundle(index, head.size)))
    except Refused as refused:
        if refused.status not in (404, 410):
            raise
        return Suspicion("missing", f"tiles over bundle {index} are no longer there")
    except Absent as absent:
        return Suspicion("missing", str(absent))
    except Mismatch as mismatch:
        return Suspicion("bundle", str(mismatch))
    except (BadProof, FormatError, Unreachable) as error:  # the checkpoint was answered, and this is no answer
        return Suspicion("tile", f"tiles over bundle {index}: {error}")
    if served == signed:
        return None
    where = index * TILE_WIDTH + first_difference(served, signed)
    return Suspicion("bundle", f"entry {where} is served with other bytes than the log signed")


def old_checkpoints(policy: Policy, origin: str, start: int) -> Flow[list[VerifiedCheckpoint]]:
    """Return some published checkpoints of sizes from `start` on, as far as the policy vouches for them.

    None where the server has no list of them. Raises Unavailable.
    """
    try:
        answer = yield from send(Request("GET", "/checkpoints", {"start": start, "limit": _CHECKPOINTS}), RETRIES)
        rows = fields.objects(json_of(answer), "checkpoints")
        found = [policy.verify(fields.text(row, "checkpoint")) for row in rows]
    except (Refused, Unreachable, FormatError, BadSignature, PolicyNotMet):  # a mirror, whose folder is a redirect
        return []
    return [signed for signed in found if signed.checkpoint.origin == origin]
