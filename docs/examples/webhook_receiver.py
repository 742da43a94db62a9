"""Takes the webhooks of `muniment monitor`: checks the signature, drops what it has, and answers once it is kept.

    MUNIMENT_WEBHOOK_SECRET_FILE=secret python webhook_receiver.py 8090 findings.jsonl

Only the standard library is used. Behind a proxy that does TLS this is enough for production.
"""

from __future__ import annotations

import hmac
import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MAX_BODY = 1024 * 1024
MAX_AGE = 300
"""Seconds by which the clocks may differ: an older delivery may be a copy that was recorded on its way."""


class Inbox:
    """A file of findings, each once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        self._ids = {json.loads(line)["id"] for line in lines}

    def take(self, body: bytes) -> bool:
        """Keep a finding, durably; tell whether it was new."""
        finding = json.loads(body)
        with self._lock:
            if finding["id"] in self._ids:
                return False
            with self._path.open("ab") as file:
                file.write(body.strip() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            self._ids.add(finding["id"])
        return True


def is_signed(secret: bytes, timestamp: str, header: str, body: bytes, now: float) -> bool:
    """Tell whether a delivery was signed with this secret, and not too long ago."""
    if not (timestamp.isascii() and timestamp.isdigit()) or abs(now - int(timestamp)) > MAX_AGE:
        return False
    wanted = "v1=" + hmac.digest(secret, timestamp.encode() + b"." + body, "sha256").hex()
    return any([hmac.compare_digest(wanted.encode(), given.strip().encode()) for given in header.split(",")])


def handler(inbox: Inbox, secret: bytes) -> type[BaseHTTPRequestHandler]:
    """Return what answers requests."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 30

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            if not (length.isascii() and length.isdigit()) or int(length) > MAX_BODY:
                self._answer(413)
                return
            body = self.rfile.read(int(length))
            given = (self.headers.get("Muniment-Timestamp", ""), self.headers.get("Muniment-Signature", ""))
            if not is_signed(secret, *given, body, time.time()):
                self._answer(401)
                return
            inbox.take(body)  # on disk before 2xx: the monitor will not send it again
            self._answer(204)

        def _answer(self, status: int) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

    return Handler


if __name__ == "__main__":
    key = Path(os.environ["MUNIMENT_WEBHOOK_SECRET_FILE"]).read_bytes().strip()
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), handler(Inbox(Path(sys.argv[2])), key))
    print(f"listening on {server.server_address[1]}", flush=True)  # noqa: T201 - so that its starter knows
    server.serve_forever()
