"""Servers that keep to no rule, on loopback ports: a script has each connection, and sends what it likes.

A server ends only once its clients have hung up by themselves: one that leaves a connection open fails the test.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from tempfile import TemporaryDirectory

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

TICK = 0.02
"""Seconds between two signs of life: many within the shortest deadline that a test gives."""
PATIENCE = 60.0
"""Seconds for what takes a moment, however slow the machine: only what hangs takes them all."""


class Peer:
    """One connection, as its script sees it. Sending raises OSError once the client has hung up."""

    def __init__(self, sock: socket.socket, over: threading.Event) -> None:
        self.socket = sock
        self._over = over

    def request(self) -> bytes:
        """Read a request: head, and a body as long as it says. Empty when the client hangs up instead."""
        data = b""
        while b"\r\n\r\n" not in data:
            part = self.socket.recv(65_536)
            if not part:
                return b""
            data += part
        head, _, body = data.partition(b"\r\n\r\n")
        length = next(
            (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
        )
        while len(body) < length:
            body += self.socket.recv(65_536)
        return head + b"\r\n\r\n" + body

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def pause(self, seconds: float = TICK) -> None:
        """Wait. Raises OSError when the test is over."""
        if self._over.wait(seconds):
            raise OSError("the test is over")

    def for_ever(self, data: bytes, seconds: float = TICK) -> None:
        """Send the same again and again, with a pause between; without one at no seconds."""
        while True:
            self.send(data)
            self.pause(seconds)

    def stay(self) -> None:
        """Say nothing until the client hangs up, whatever it sends."""
        with suppress(OSError):
            while self.socket.recv(65_536):
                pass


Script = Callable[[Peer], None]


@dataclass
class Hostile:
    """A listening server. `connections` counts those that came."""

    port: int
    scheme: str
    connections: int = 0
    open: list[threading.Thread] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"


@contextmanager
def hostile(script: Script, *, tls: bool = False, scheme: str = "", window: int | None = None) -> Iterator[Hostile]:
    """Serve `script` to each connection. `window` is how many bytes this side buffers of what it does not read."""
    over = threading.Event()
    with socket.socket() as listening:
        if window is not None:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        server = Hostile(listening.getsockname()[1], scheme or ("https" if tls else "http"))
        accepting = threading.Thread(target=_accept, args=(listening, server, script, over, tls))
        accepting.start()
        left = False
        try:
            yield server
            for thread in server.open:
                thread.join(PATIENCE)
            left = not any(thread.is_alive() for thread in server.open)
        finally:
            over.set()
            listening.shutdown(socket.SHUT_RDWR)
            for thread in (accepting, *server.open):
                thread.join(PATIENCE)
        assert left, "the client left a connection open"


def _accept(listening: socket.socket, server: Hostile, script: Script, over: threading.Event, tls: bool) -> None:
    with suppress(OSError):
        while True:
            sock, _ = listening.accept()
            server.connections += 1
            thread = threading.Thread(target=_run, args=(sock, script, over, tls))
            server.open.append(thread)
            thread.start()


def _run(sock: socket.socket, script: Script, over: threading.Event, tls: bool) -> None:
    try:
        if tls:
            sock = certificates().server.wrap_socket(sock, server_side=True)
        script(Peer(sock, over))
    except OSError:  # hung up
        pass
    finally:
        sock.close()


# --- TLS --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Certificates:
    """One certificate for 127.0.0.1: with its key for servers, and alone for those who trust it."""

    server: ssl.SSLContext
    client: ssl.SSLContext


@cache
def certificates() -> Certificates:
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "both.pem"
        file.write_bytes(secret + pem)
        server.load_cert_chain(file)
    return Certificates(server, ssl.create_default_context(cadata=pem.decode()))
