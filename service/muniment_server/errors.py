"""Every error this package raises on purpose.

The tree, tested as such::

    ServerError
    ├── SettingsError             a setting is unknown, or has a value it cannot have
    ├── SetupError                an instance or a log cannot be made or opened as things are
    │   └── InstanceRefused       its guard, database and keys do not belong together: signing could fork a log
    ├── Refused                   a request gets no success; carries code and hint
    │   ├── NotFound              there is no such entry, size or checkpoint (yet)
    │   └── LogReadOnly           the log takes no entries here
    ├── ReadOnly                  this process must not write the log
    ├── ClockRefused              this clock is not to be trusted with time stamps
    ├── GuardRefused              signing this head could fork the log
    ├── GuardUnavailable          the guard cannot be used at the moment; nothing was written
    ├── Mismatch                  what is stored contradicts itself, from some leaf on
    ├── StoreError                the database
    │   ├── StoreUnavailable      cannot be reached; nothing was written
    │   ├── SchemaError           has another schema
    │   ├── HeadMoved             another head is stored; nothing was written
    │   ├── DuplicateLeaf         a leaf that should be new may be stored; nothing was written
    │   ├── SessionLost           was reached anew since the head was read; nothing was written
    │   ├── OutcomeUnknown        may or may not have stored it
    │   │   └── NotProved         and the guard holds a head that the stored tiles do not connect
    │   ├── Replaced              has other files than before
    │   ├── OtherTree             does not hold the tree of a checkpoint
    │   ├── Corrupt               lacks, or contradicts, something a signed head covers
    │   ├── Behind                has a smaller checkpoint than was shown
    │   ├── CopyUnreachable       a copy to compare with gives no usable answer
    │   └── RepairRefused         its tiles cannot be made again
    ├── AnchorRefused             this log must not be anchored as it is stored
    ├── CalendarFailed            a calendar gave no usable answer
    ├── NotYet                    a calendar has no proof
    └── NotTaken                  a sink did not take a batch

The core raises what happened. What that is in HTTP only :mod:`muniment_server.web.problems` knows, and the exit code
of a command only :mod:`muniment_server.cli`, most of them in its `common`.
"""

from __future__ import annotations

from typing import Any


class ServerError(Exception):
    """Base of every error in this package."""


class SettingsError(ServerError):
    """A setting is unknown or has a value it cannot have. The message names it and where it came from."""


class SetupError(ServerError):
    """An instance or a log cannot be made or opened as things are. The message says what to do."""


class InstanceRefused(SetupError):
    """Guard, database and keys of an instance do not belong together: signing could fork a log. `code` is stable."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code


class Refused(ServerError):
    """A request gets no success: `code` is stable, `hint` says what to do, `extra` goes into the problem document."""

    def __init__(self, code: str, detail: str, hint: str, **extra: Any) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.hint = hint
        self.extra = extra


class NotFound(Refused):
    """There is no such entry, size or checkpoint (yet)."""


class LogReadOnly(Refused):
    """The log takes no entries here. `code` is that of the :class:`ReadOnly` that says why.

    Its reason names files of this machine: it is for the operator, in the server's log.
    """

    def __init__(self, code: str) -> None:
        hint = "The operator finds the reason in the server's log; reads go on."
        super().__init__(code, "this log is read-only here", hint, retry_after=30)


class ReadOnly(ServerError):
    """This process must not write the log. `code` is stable; the message says why and what to do.

    `look_again` says that nothing is wrong with this process itself: once database and guard fit again, it may go on.
    """

    def __init__(self, code: str, detail: str, *, look_again: bool = False) -> None:
        super().__init__(detail)
        self.code = code
        self.look_again = look_again


class ClockRefused(ServerError):
    """This clock is not to be trusted with time stamps."""


class GuardRefused(ServerError):
    """Signing this head could fork the log. `code` is stable; the message says what was found and what to do.

    `final` says that what was written may be lost, and that trying again would not tell: the kernel reports such an
    error once.
    """

    def __init__(self, code: str, detail: str, *, final: bool = False) -> None:
        super().__init__(detail)
        self.code = code
        self.final = final


class GuardUnavailable(ServerError):
    """The guard cannot be used at the moment, and nothing was written. The same call may succeed later.

    Its disk is full, another process holds its lock, or this one has no file descriptor left.
    """


class Mismatch(ServerError):
    """What is stored contradicts itself. `index` is the first leaf it concerns."""

    def __init__(self, index: int, detail: str) -> None:
        super().__init__(detail)
        self.index = index


class StoreError(ServerError):
    """Base of what a store raises on purpose."""


class StoreUnavailable(StoreError):
    """The database cannot be reached or refused the statement; nothing was written. The same call may succeed later."""


class SchemaError(StoreError):
    """The database's schema is not the one this version works with. The message says what to run."""


class HeadMoved(StoreError):
    """The head is no longer the expected one, or a row of this append exists already. Nothing was written."""


class DuplicateLeaf(StoreError):
    """A leaf that should be new may be in the log already. Nothing was written: look it up, then append the others."""


class SessionLost(StoreError):
    """The database was reached anew since the head was read: perhaps another one.

    Nothing was written; read the head again.
    """


class OutcomeUnknown(StoreError):
    """The append may or may not be durable. Fatal to the sequencer: drop all state and read the head again."""


class NotProved(OutcomeUnknown):
    """The guard holds a head that neither extends this one nor is extended by it, as far as this database can show."""


class Replaced(StoreError):
    """The database's files were removed or replaced under this process.

    Nothing that the database says counts any more: restart.
    """


class OtherTree(StoreError):
    """The database does not hold the tree of this checkpoint. Nothing was written."""


class Corrupt(StoreError):
    """The database, or a backup, lacks or contradicts something a signed head covers.

    The message names the file or the index.
    """


class Behind(StoreError):
    """The database has a smaller checkpoint than this process has shown: it is an old copy, or a replica that lags."""


class CopyUnreachable(StoreError):
    """The copy did not answer, or not with what tlog-tiles says."""


class RepairRefused(StoreError):
    """The tiles cannot be made again from these entries, or not now. Nothing was written; the message says why."""


class AnchorRefused(ServerError):
    """This log must not be anchored as it is stored. `code` is stable; the message says why and what to do."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class CalendarFailed(ServerError):
    """A calendar gave no usable answer. The message is safe to log."""


class NotYet(ServerError):
    """A calendar has no proof (404). The message is its reason, made safe to log."""

    @property
    def lost(self) -> bool:
        """Tell whether it does not know the commitment at all.

        Within an hour of the submission that may be a false answer.
        """
        return str(self) == "Not found"


class NotTaken(ServerError):
    """A sink did not take a batch. The message is safe to log; `after` are the seconds that the receiver asks for."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after
