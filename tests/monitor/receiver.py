"""A receiver of webhooks that checks each delivery, and misbehaves when it is told to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from muniment.webhook import check_signature

SECRET = b"a secret of thirty-two bytes, hm"


@dataclass
class Receiver:
    """What was taken, in order. `answers` are the statuses of the next deliveries; then all are taken."""

    url: str = ""
    answers: list[int] = field(default_factory=list)
    taken: list[dict[str, Any]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    seconds: float = 0.0


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Yield a receiver at work."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            check_signature([SECRET], self.headers["Muniment-Timestamp"], self.headers["Muniment-Signature"], body)
            assert abs(time.time() - int(self.headers["Muniment-Timestamp"])) < 600
            value = json.loads(body)
            assert value["id"] == self.headers["Muniment-Id"]
            receiver.ids.append(value["id"])
            time.sleep(receiver.seconds)
            status = receiver.answers.pop(0) if receiver.answers else 204
            if status < 300:
                receiver.taken.append(value)
            self.send_response(status)
            self.send_header("Location", "http://127.0.0.1:9/")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    receiver.url = f"http://127.0.0.1:{server.server_address[1]}/hook"
    try:
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
