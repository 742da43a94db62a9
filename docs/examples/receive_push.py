"""Receives what a sink of muniment-server pushes, and keeps each row once in SQLite. Standard library alone.

python receive_push.py PORT SECRET_FILE DATABASE          behind a proxy that speaks TLS, or on the server's machine
"""

import hmac
import json
import sqlite3
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

MOST_BYTES = 16 * 2**20
MOST_SECONDS = 300


def is_signed(secret: bytes, timestamp: str, signatures: str, body: bytes) -> bool:
    """Tell whether a request was signed with the secret, not long ago."""
    if not timestamp.isdigit() or abs(time.time() - int(timestamp)) > MOST_SECONDS:
        return False
    wanted = "v1=" + hmac.new(secret, timestamp.encode() + b"." + body, "sha256").hexdigest()
    return any(hmac.compare_digest(given.strip().encode(), wanted.encode()) for given in signatures.split(","))


def keep(database: sqlite3.Connection, batch: dict) -> int:
    """Keep a batch, in one transaction; return the status to answer."""
    with database:
        if database.execute("SELECT 1 FROM batches WHERE id = ?", (batch["id"],)).fetchone():
            return 200  # it came again, because our answer was lost
        sink = f"{batch['log']}/{batch['sink']}"
        (expected,) = database.execute("SELECT max(stop) FROM batches WHERE sink = ?", (sink,)).fetchone()
        if expected is not None and batch["start"] != expected:
            return 409  # something is missing: the sender tries again, and its operator is told
        database.execute("INSERT INTO batches VALUES (?, ?, ?)", (batch["id"], sink, batch["stop"]))
        rows = [(sink, row["index"], json.dumps(row)) for row in batch["rows"]]
        database.executemany("INSERT INTO entries VALUES (?, ?, ?)", rows)
    return 200


class Handler(BaseHTTPRequestHandler):
    secret: bytes
    database: sqlite3.Connection

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", "0"))
        if length > MOST_BYTES:
            return self.send_error(413)
        body = self.rfile.read(length)
        given = self.headers.get("Muniment-Timestamp", ""), self.headers.get("Muniment-Signature", "")
        if not is_signed(self.secret, *given, body):
            return self.send_error(401)
        self.send_response(keep(self.database, json.loads(body)))
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None


def main(port: str, secret_file: str, database: str) -> None:
    Handler.secret = Path(secret_file).read_bytes().strip()
    Handler.database = sqlite3.connect(database)
    Handler.database.executescript(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;"
        "CREATE TABLE IF NOT EXISTS batches (id TEXT PRIMARY KEY, sink TEXT, stop INTEGER);"
        "CREATE TABLE IF NOT EXISTS entries (sink TEXT, idx INTEGER, row TEXT, PRIMARY KEY (sink, idx));"
    )
    HTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
