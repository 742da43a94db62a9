"""A log as a folder of files, and back: a static C2SP tlog-tiles tree that anyone can verify without a server.

`tree` checks tiles, leaves, payloads and published checkpoints against a signed head, wherever they come from.
`source` reads them from a database or from a folder. `folder` writes files that survive a power cut. `make` and
`restore` put them together. The files are described in docs/backup.md.
"""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Gets what is being done, how many entries of it are done, and how many there are."""
