"""A sink that is a webhook: each batch is posted, signed, and taken once the receiver has answered 2xx.

Of the receiver nothing is believed: one deadline for the whole exchange, no redirects, no cookies, no proxy of the
environment, an answer of at most 64 KiB, of which nothing but the status and `Retry-After` is used.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from muniment.errors import FormatError
from muniment.webhook import parse_secret, signature
from muniment.wire import NoAnswer, ask_async, bounded
from muniment_server import __version__
from muniment_server.errors import NotTaken, SetupError
from muniment_server.failpoints import step
from muniment_server.follow.push.batch import Batch
from muniment_server.sinks import Sink

DEADLINE = 15.0
_ANSWER = 64 * 1024
_SECRET = 4096
_STRANGE = re.compile(r"[^ -~]")
_MOST_REASON = 160


class Webhook:
    """Posts batches to the URL of a sink. Raises SetupError when its certificate authorities cannot be read."""

    def __init__(self, sink: Sink, deadline: float = DEADLINE) -> None:
        self._sink = sink
        self._deadline = deadline
        context = _context(sink)
        headers = {"User-Agent": f"muniment-server/{__version__}", "Content-Type": "application/json"}
        limits = httpx.Limits(max_connections=1, keepalive_expiry=30)
        self._client = bounded(
            httpx.AsyncClient(
                headers=headers, follow_redirects=False, trust_env=False, limits=limits, verify=context or False
            )
        )

    @step("push.take")
    async def take(self, batch: Batch) -> None:
        """See Target."""
        body, now = batch.body(), int(time.time())
        secrets = await asyncio.to_thread(self._secrets)
        headers = {
            "Muniment-Id": batch.id,
            "Muniment-Timestamp": str(now),
            "Muniment-Signature": ",".join([signature(secret, now, body) for secret in secrets]),
        }
        request = {"method": "POST", "url": self._sink.url, "content": body, "headers": headers}
        try:
            status, answered, _ = await ask_async(self._client, _ANSWER, self._deadline, **request)
        except NoAnswer as error:
            raise NotTaken(_STRANGE.sub("_", str(error)[:_MOST_REASON])) from error
        if not 200 <= status < 300:
            raise NotTaken(f"the receiver answers {status}", retry_after(answered.get("retry-after", "")))

    def _secrets(self) -> list[bytes]:
        """Read the secrets, each time: a new one is used without a restart. Raises NotTaken."""
        try:
            return [parse_secret(_head(path)) for path in self._sink.secrets]
        except (OSError, FormatError) as error:
            raise NotTaken(f"a secret of this sink cannot be used: {error}") from error

    async def close(self) -> None:
        """Close its connection."""
        await self._client.aclose()


def _context(sink: Sink) -> ssl.SSLContext | None:
    """Return whom to believe that they are the receiver. None for one on this machine: it loads a megabyte for nothing.

    Raises SetupError.
    """
    if not sink.ca and urlsplit(str(sink.url)).scheme == "http":
        return None
    try:
        return ssl.create_default_context(cafile=sink.ca)
    except (OSError, ssl.SSLError) as error:
        raise SetupError(f"{sink.ca}: no certificate authorities: {error}") from error


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_SECRET)


def retry_after(text: str) -> float:
    """Return the seconds that a Retry-After header asks for; 0 when there is none that makes sense."""
    if re.fullmatch(r"[0-9]{1,9}", text):
        return float(text)
    try:
        return max(parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return 0.0
