"""Checks a stored log from the ground up: entries, payloads, tiles, roots, signatures and the guard, all recomputed.

It trusts the stored leaves and the policy file, and nothing that was derived from them. Reads only, but for `repair`,
so it may run beside a server.

    report     findings, and what was looked at
    entries    rows of entries, payloads and Idempotency-Keys. Pure
    commitment commitments of payloads, recomputed. Pure
    chunk      a chunk of a log: what can be said of it without the rest of the tree
    tree       from the roots of tiles to every signed root
    guards     the guard against the database
    anchors    what is stored of anchors, against the log and block headers
    equal      which leaves of a raw log may be equal
    index      the search index against the payloads
    workers    chunks in processes
    whole      one log
    repair     tiles made again from entries
    against    a log and a copy of it: where they first differ
"""

from muniment_server.check.fsck.report import Finding, Report
from muniment_server.check.fsck.whole import fsck

__all__ = ["Finding", "Report", "fsck"]
