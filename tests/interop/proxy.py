"""A loopback proxy that changes one byte of some answers: the verifier behind it stays honest."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

from tests.interop.flips import Spoil


@dataclass
class Proxy:
    """Where it listens, and how many answers it spoiled."""

    url: str
    spoiled: int = 0


@contextmanager
def spoiling(upstream: str, target: str, spoil: Spoil) -> Iterator[Proxy]:
    """Serve `upstream`, with `spoil` applied to the body of GET `target` (path and query)."""
    client = httpx.Client(timeout=30)
    proxy = Proxy("")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16  # head and body in one write: two would wait for each other's acknowledgement

        def do_GET(self) -> None:
            answer = client.get(f"{upstream}{self.path}", headers={"Accept": self.headers.get("Accept", "*/*")})
            body = answer.content
            if self.path == target:
                proxy.spoiled += 1
                body = spoil(body)
            self.send_response(answer.status_code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    proxy.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        client.close()
