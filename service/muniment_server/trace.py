"""The trace: what a process did to its logs, one JSON line for each step.

A checker can compare it with what must hold. Off unless the setting `trace` names a file. Several processes may share
one. A line has `t` (nanoseconds of the machine's monotonic clock), `pid`, `log`, `event` and what belongs to it; hashes
are hex::

    load    size root epoch                      the stored head was checked against the guard
    append  old_size old_root epoch size root leaf_hashes    about to be stored
    commit  size root epoch                      a clean reply made it durable
    moved   size                                 another writer was quicker: nothing was written
    known   size                                 a raw leaf may be in the log already: nothing was written
    unknown size                                 the writer does not know whether it was written
    fence   size root epoch                      a head that no clean reply of ours made durable is durable now
    sign    size root
    answer  index leaf_hash size root hashes key first    an entry was acknowledged, with its proof
    proof   kind first second hashes root leaf_hash    a proof was served; leaf_hash of kind "inclusion" alone
    publish size root larger                     `larger` tells whether it was the largest
    served  size since                           GET /checkpoint; `since` is when the request came
    refuse  code                                 nothing is signed from here on
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import orjson


class Trace:
    """Writes a trace. Every line is one write to the end of the file, so that lines of several processes do not mix."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def __call__(self, log: str, event: str, **values: Any) -> None:
        """Write one line. `bytes` become hex."""
        line = {"t": time.monotonic_ns(), "pid": os.getpid(), "log": log, "event": event, **values}
        os.write(self._descriptor, orjson.dumps(line, default=bytes.hex) + b"\n")

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)
