"""The files of an instance: signing keys and the policy, each made durably or not at all."""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from muniment.errors import FormatError
from muniment.note import SigningKey
from muniment.policy import LogKey, Policy
from muniment_server.errors import (
    SetupError,
)
from muniment_server.failpoints import step
from muniment_server.settings import Settings
from muniment_server.write.guard import sync_directory


@step("instance.write_file")
def write_new(path: Path, text: str, mode: int) -> None:
    """Make a file with this text, durably, or leave nothing. Raises FileExistsError when there is one."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        os.write(descriptor, text.encode("utf-8", "surrogateescape"))  # a policy may hold other octets
        os.fsync(descriptor)
        os.link(temporary, path)
    finally:
        os.close(descriptor)
        temporary.unlink()
    sync_directory(path.parent)
    sync_directory(path.parent.parent)  # the folder may be new as well


def read_key(path: Path) -> SigningKey:
    """Return the signing key in a file. Raises SetupError, never quoting the key."""
    try:
        return SigningKey.parse(path.read_text("utf-8").removesuffix("\n"))
    except FileNotFoundError:
        raise SetupError(
            f"the signing key {path} is missing: put the file back; without it the log can only be read"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"the signing key {path} cannot be read: {type(error).__name__}") from None
    except FormatError as error:
        raise SetupError(f"{path}: {error}") from None


def read_policy(settings: Settings) -> Policy | None:
    """Return the policy of this instance, or None when there is none yet. Raises SetupError."""
    return _policy_at(settings.policy) if settings.policy.exists() else None


def _policy_at(path: Path) -> Policy:
    try:
        return Policy.read(path)
    except (OSError, FormatError) as error:
        raise SetupError(f"the policy file cannot be read: {error}") from error


@step("instance.policy")
def add_to_policies(settings: Settings, name: str, key: SigningKey) -> None:
    """Make sure that the policy file of this instance trusts `key`, and before it the file of the log alone."""
    _add_to_policy(settings.policy_file(name), key)
    _add_to_policy(settings.policy, key)


def _add_to_policy(path: Path, key: SigningKey) -> None:
    """Make sure that the policy at `path` trusts `key`. What else is in it stays, comments too."""
    if not path.exists():
        write_new(path, str(Policy((LogKey(key.vkey),))), 0o644)
    elif not any(log.vkey == key.vkey for log in _policy_at(path).logs):
        lines = path.read_bytes().decode("utf-8", "surrogateescape").split("\n")
        after = max((at for at, line in enumerate(lines, 1) if line.split()[:1] == ["log"]), default=0)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        write_new(temporary, "\n".join((*lines[:after], f"log {key.vkey}", *lines[after:])), 0o644)
        temporary.replace(path)
        sync_directory(path.parent)


@asynccontextmanager
async def exclusive(folder: Path) -> AsyncIterator[None]:
    """Keep others who make a log in this folder out: two of them could take half of their files from each other."""
    await asyncio.to_thread(folder.mkdir, mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        await asyncio.to_thread(fcntl.flock, descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
