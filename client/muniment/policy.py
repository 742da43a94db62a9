"""C2SP tlog-policy files: which logs, and how many witnesses, a verifier trusts.

::

    log <vkey> [<url>]
    witness <name> <vkey> [<url>]
    group <name> all|any|<k> <member>...
    quorum <name>|none

Trust comes from this file alone. A key learned from the server it is meant to check is no trust.

Names, URLs and comments are octets to C2SP. Those that are no UTF-8 are kept as Python keeps them in file names
(surrogateescape), and ``bytes(policy)`` gives them back.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from muniment.checkpoint import Checkpoint, parse_checkpoint
from muniment.encoding import parse_decimal
from muniment.errors import FormatError, PolicyNotMet
from muniment.note import ED25519, VerifierKey, key_id_of, parse_note, split_vkey, verify_note

_BAD_CHARACTER = re.compile(r"[^\t\n\x20-\x7e\x80-\ud7ff\udc80-\udcff\ue000-\U0010ffff]")
_KEY_LENGTHS = {0x04: 33, 0x06: 1313}
"""Of the types of cosignature keys that C2SP defines, with the type byte."""


@dataclass(frozen=True, slots=True)
class LogKey:
    """A log line: a key whose name is the log's origin, and where the log is served."""

    vkey: VerifierKey
    url: str | None = None


@dataclass(frozen=True, slots=True)
class OtherLogKey:
    """A log line whose key is of a type that this version cannot check. It vouches for nothing; the others still do."""

    vkey: str
    url: str | None = None


@dataclass(frozen=True, slots=True)
class Witness:
    """A witness line: its name in this file, its vkey (of any type but 0x01), and where it takes checkpoints."""

    name: str
    vkey: str
    url: str | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """A group line: at least `threshold` of `members` must have cosigned."""

    name: str
    threshold: int
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class VerifiedCheckpoint:
    """A checkpoint that a policy vouches for, with the note that says so."""

    checkpoint: Checkpoint
    note: str


@dataclass(frozen=True, slots=True)
class Policy:
    """What a verifier trusts. `quorum` names a witness or a group, or is None for "none"."""

    logs: tuple[LogKey, ...]
    witnesses: tuple[Witness, ...] = ()
    groups: tuple[Group, ...] = ()
    quorum: str | None = None
    others: tuple[OtherLogKey, ...] = ()

    @classmethod
    def parse(cls, data: bytes | str) -> Policy:
        """Return the policy in `data`. Raises FormatError naming the line."""
        return _Parser().parse(data.decode("utf-8", "surrogateescape") if isinstance(data, bytes) else data)

    @classmethod
    def read(cls, path: str | Path) -> Policy:
        """Return the policy in a file. Raises FormatError when it is not one, OSError when it cannot be read."""
        data = Path(path).read_bytes()
        try:
            return cls.parse(data)
        except FormatError as error:
            raise FormatError(f"{path}: {error}") from error

    def __str__(self) -> str:
        """Return the policy as a file."""
        return "".join(f"{line}\n" for line in self._lines())

    def __bytes__(self) -> bytes:
        """Return the policy as the bytes of a file."""
        return str(self).encode("utf-8", "surrogateescape")

    def _lines(self) -> Iterator[str]:
        lines = [(str(log.vkey), log.url) for log in self.logs] + [(other.vkey, other.url) for other in self.others]
        for vkey, url in lines:
            yield " ".join(filter(None, ("log", vkey, url)))
        for witness in self.witnesses:
            yield " ".join(filter(None, ("witness", witness.name, witness.vkey, witness.url)))
        for group in self.groups:
            yield f"group {group.name} {group.threshold} {' '.join(group.members)}"
        yield f"quorum {self.quorum or 'none'}"

    def verify(self, note: str | bytes) -> VerifiedCheckpoint:
        """Check a checkpoint note against this policy.

        1. It parses, as a note and as a checkpoint.
        2. Its origin is the name of a log key listed here, and such a key signed it.
        3. The quorum is reached.

        Raises FormatError, BadSignature or PolicyNotMet.
        """
        return _verify(self, note)

    def signed(self, note: str | bytes) -> VerifiedCheckpoint:
        """Check steps 1 and 2 of :meth:`verify`: what a log signed stays signed, whether a quorum saw it or not.

        Raises FormatError, BadSignature or PolicyNotMet.
        """
        parsed = parse_note(note)
        checkpoint = parse_checkpoint(parsed.text)
        keys = [log.vkey for log in self.logs if log.vkey.name == checkpoint.origin]
        if not keys:
            raise PolicyNotMet(f"the policy lists no log called {checkpoint.origin!r}{_hint(self, checkpoint.origin)}")
        verify_note(parsed, keys)
        return VerifiedCheckpoint(checkpoint, str(parsed))


@lru_cache(64)
def _verify(policy: Policy, note: str | bytes) -> VerifiedCheckpoint:
    """See :meth:`Policy.verify`.

    The receipts of a batch hold one and the same note, and a signature costs ten proofs to check.
    """
    signed = policy.signed(note)
    # Fail closed: this version cannot check cosignatures, and an unchecked quorum is not a quorum.
    if policy.quorum is not None:
        raise PolicyNotMet(f"quorum {policy.quorum!r} needs witness cosignatures, which this version does not evaluate")
    return signed


def _hint(policy: Policy, origin: str) -> str:
    listed = any(split_vkey(other.vkey)[0] == origin for other in policy.others)
    return " with a key of a type that this version can check (Ed25519, 0x01)" if listed else ""


class _Parser:
    def __init__(self) -> None:
        self.logs: list[LogKey] = []
        self.others: list[OtherLogKey] = []
        self.witnesses: list[Witness] = []
        self.groups: list[Group] = []
        self.quorums: list[str] = []
        self.keys: set[bytes] = set()
        self.names: set[str] = set()
        self.grouped: set[str] = set()

    def parse(self, text: str) -> Policy:
        if _BAD_CHARACTER.search(text):
            raise FormatError("policy holds a control character")
        for number, line in enumerate(text.split("\n"), 1):
            words = [word for word in re.split(r"[ \t]+", line) if word]
            if not words or words[0].startswith("#"):
                continue
            try:
                self._line(words)
            except FormatError as error:
                raise FormatError(f"line {number}: {error}") from error
        if len(self.quorums) != 1:
            raise FormatError(f"a policy has one quorum line, not {len(self.quorums)}")
        quorum = None if self.quorums[0] == "none" else self.quorums[0]
        return Policy(tuple(self.logs), tuple(self.witnesses), tuple(self.groups), quorum, tuple(self.others))

    def _line(self, words: list[str]) -> None:
        keyword, *rest = words
        limits = {"log": (1, 2), "witness": (2, 3), "group": (3, 10_000), "quorum": (1, 1)}
        if keyword not in limits:
            raise FormatError(f"unknown keyword {keyword!r}")
        low, high = limits[keyword]
        if not low <= len(rest) <= high:
            raise FormatError(f"{keyword} takes {low} to {high} words, not {len(rest)}")
        {"log": self._log, "witness": self._witness, "group": self._group, "quorum": self._quorum}[keyword](rest)

    def _log(self, words: list[str]) -> None:
        url = words[1] if len(words) > 1 else None
        _, _, key = split_vkey(words[0])
        if key[0] == ED25519:
            self.logs.append(LogKey(VerifierKey.parse(words[0]), url))
        else:
            _check_cosigner(words[0])
            self.others.append(OtherLogKey(words[0], url))
        self._new_key(key[1:])

    def _witness(self, words: list[str]) -> None:
        name, vkey = words[:2]
        _, _, key = split_vkey(vkey)
        if key[0] == ED25519:
            raise FormatError("vkey of type 0x01 is the key of a log; a witness has one of type 0x04 or 0x06")
        _check_cosigner(vkey)
        self._new_key(key[1:])
        self._new_name(name)
        self.witnesses.append(Witness(name, vkey, words[2] if len(words) > 2 else None))

    def _group(self, words: list[str]) -> None:
        name, threshold, *members = words
        for member in members:
            if member not in self.names:
                raise FormatError(f"group {name!r} names {member!r}, which no earlier line defines")
            if member in self.grouped:
                raise FormatError(f"{member!r} is a member of a group already")
            self.grouped.add(member)
        self._new_name(name)
        self.groups.append(Group(name, _threshold(threshold, len(members)), tuple(members)))

    def _quorum(self, words: list[str]) -> None:
        if words[0] != "none" and words[0] not in self.names:
            raise FormatError(f"quorum names {words[0]!r}, which no earlier line defines")
        self.quorums.append(words[0])

    def _new_key(self, key: bytes) -> None:
        if key in self.keys:
            raise FormatError("this public key stands in an earlier line")
        self.keys.add(key)

    def _new_name(self, name: str) -> None:
        if name == "none" or name in self.names:
            raise FormatError(f"name {name!r} is reserved or taken")
        self.names.add(name)


def _threshold(word: str, members: int) -> int:
    known = {"all": members, "any": 1}
    threshold = known[word] if word in known else parse_decimal(word, "group threshold")
    if not 1 <= threshold <= members:
        raise FormatError(f"group threshold {threshold} is not in 1..{members}")
    return threshold


def _check_cosigner(vkey: str) -> None:
    """Check length and key id of a cosigner's vkey, as far as its type is known. Raises FormatError.

    Of types to come nothing can be said. Such a key vouches for nothing here, and must not stop the rest of the file.
    """
    name, key_id, key = split_vkey(vkey)
    if key[0] not in _KEY_LENGTHS:
        return
    if len(key) != _KEY_LENGTHS[key[0]]:
        raise FormatError(f"vkey of type 0x{key[0]:02x} has {len(key)} bytes, not {_KEY_LENGTHS[key[0]]}")
    if key_id != key_id_of(name, key[0], key[1:]):
        raise FormatError(f"key id of vkey {vkey[:80]!r} does not match its key")
