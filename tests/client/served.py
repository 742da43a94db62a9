"""A FakeLog, or what answers like one, on a loopback port: for what runs in a process of its own or makes its own connections."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Protocol

import httpx


class Answering(Protocol):
    """What can be served."""

    def handle(self, request: httpx.Request) -> httpx.Response:
        """Answer a request; `request.extensions["peer"]` is the address that it comes from."""
        ...


@contextmanager
def served(log: Answering) -> Iterator[str]:
    """Yield the URL at which `log` answers."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            request = httpx.Request(
                self.command,
                f"http://log.test{self.path}",
                headers=dict(self.headers),
                content=body,
                extensions={"peer": self.client_address[0]},
            )
            try:
                with lock:
                    response = log.handle(request)
                    content = response.read()
            except httpx.TransportError:  # the connection is lost
                self.close_connection = True
                return
            self.send_response(response.status_code)
            for name, value in response.headers.items():
                if name.lower() not in ("content-length", "transfer-encoding"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = _answer

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
