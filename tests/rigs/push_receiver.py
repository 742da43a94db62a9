"""A receiver of pushed batches that writes down every delivery, durably, and at times takes one without saying so.

python -m tests.rigs.push_receiver PORT SECRET_FILE FILE SEED
"""

from __future__ import annotations

import json
import os
import random
import sys
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

from muniment.webhook import check_signature


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    secret: ClassVar[bytes]
    file: ClassVar[int]
    random: ClassVar[random.Random]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if len(body) < int(self.headers["Content-Length"]):
            return  # its sender was killed
        check_signature([self.secret], self.headers["Muniment-Timestamp"], self.headers["Muniment-Signature"], body)
        batch = json.loads(body)
        line = {
            "id": self.headers["Muniment-Id"],
            "sha256": sha256(body).hexdigest(),
            "indices": [row["index"] for row in batch["rows"]],
            "start": batch["start"],
            "stop": batch["stop"],
        }
        os.write(self.file, json.dumps(line).encode() + b"\n")
        os.fsync(self.file)
        status = self.random.choice((200, 200, 200, 204, 503))
        if self.random.random() < 0.1:
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def main(port: str, secret: str, file: str, seed: str) -> None:
    """Receive until killed."""
    _Handler.secret = Path(secret).read_bytes()
    _Handler.file = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    _Handler.random = random.Random(seed)
    HTTPServer(("127.0.0.1", int(port)), _Handler).serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
