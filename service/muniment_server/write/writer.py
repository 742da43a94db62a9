"""What takes entries for one log, or says why nothing can be taken."""

from __future__ import annotations

from muniment_server.errors import LogReadOnly, ReadOnly, Refused
from muniment_server.host.disk import Disk
from muniment_server.write.batcher import Batcher, Done
from muniment_server.write.sequencer import Sequencer
from muniment_server.write.submission import Outcome, Submission


class Writer:
    """Takes entries.

    `sequencer` and `batcher` are None where this process does not write the log; `unwritable` may say why.
    """

    def __init__(
        self, sequencer: Sequencer | None, batcher: Batcher | None, unwritable: ReadOnly | None, disk: Disk | None
    ) -> None:
        self._sequencer = sequencer
        self._batcher = batcher
        self._unwritable = unwritable
        self._disk = disk

    @property
    def refusal(self) -> ReadOnly | None:
        """Why the log cannot be written here, or None."""
        return self._sequencer.refusal if self._sequencer else self._unwritable

    @property
    def obstacle(self) -> str | None:
        """The code that appends are answered with at the moment, or None; also while there are none.

        Load is no obstacle, nor is it one that a server only reads.
        """
        if refusal := self.refusal:
            return refusal.code
        return "disk_low" if self._batcher and self._disk and self._disk.low else self.trouble

    @property
    def trouble(self) -> str | None:
        """The part of `obstacle` that nothing else has told the operator about."""
        if not self._batcher or not self._sequencer or self._sequencer.refusal:
            return None
        return "clock" if self._sequencer.clock_doubt else self._batcher.failing

    def check_room(self) -> None:
        """Raise Refused when nothing is taken at the moment: before a body is read for nothing."""
        self._taking().check_room()

    async def submit(self, submission: Submission) -> Outcome:
        """Return where the entries are, once they are durable and signed. Raises Refused."""
        return await self._taking().submit(submission)

    def put(self, submission: Submission, done: Done) -> None:
        """As :meth:`submit`, for callers that answer from `done`, which is called in the event loop. Raises Refused."""
        self._taking().put(submission, done)

    def _taking(self) -> Batcher:
        if not self._batcher:
            raise self._not_writing()
        if self._disk and self._disk.low:
            hint = "Nothing was written. The operator must make room; retry later."
            raise Refused("disk_low", "the disk is nearly full", hint, retry_after=10)
        return self._batcher

    def _not_writing(self) -> Refused:
        if self._unwritable:
            return LogReadOnly(self._unwritable.code)
        return Refused("read_only", "this server only reads", "Send entries to the log's writer.", retry_after=60)
