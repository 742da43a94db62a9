"""Follows logs for a reader who trusts none of them: reads all entries, recomputes all roots, says what does not fit.

Any C2SP tlog-tiles log will do. What a monitor rests on is signed checkpoints and its own arithmetic; hash tiles are
asked for only where the two do not fit, to say which side is wrong. Each module imports only what stands left of it::

    owntree (what was read, as hashes) findings (what is reported) book (what is remembered) record (findings, on disk)
    source (asks one log) watching (what entries say) reading (entries into a tree) diagnosis (why a root does not fit)
    ours (what Muniment logs say beside) patrol (what was read before) rules (entries that are looked for)
    reporter (from suspicion to finding) follower (one log) hooks (webhook) metrics lines (printing) running (many logs)
    ties (receipts that come later)
"""
