"""Callers over HTTP that report each acknowledgement the moment it is read off the socket."""

from __future__ import annotations

import base64
import http.client
import json
import random
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from tests.rigs.children import Say

CALLERS = 4


def http_writer(url: str, seed: int, say: Say, post_: Callable[[str, str, Say], None] | None = None) -> None:
    """Post events from several threads, and look at /checkpoint from another one, for good; say what was answered."""
    lock = threading.Lock()

    def locked(value: Any) -> None:
        with lock:
            say(value)

    workers: list[Callable[[], None]] = [
        lambda n=n: (post_ or _post)(url, f"{seed}.{n}", locked) for n in range(CALLERS)
    ]
    threads = [threading.Thread(target=work, daemon=True) for work in (*workers, lambda: _look(url, locked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def connection(url: str, seconds: float = 60.0) -> http.client.HTTPConnection:
    """Return a connection to a server, not yet opened."""
    found = urlsplit(url)
    return http.client.HTTPConnection(found.hostname or "", found.port, timeout=seconds)


def post(http_: http.client.HTTPConnection, body: bytes, key: str | None = None) -> tuple[int, dict[str, Any]]:
    """Post one event; return status and JSON answer. Raises OSError or HTTPException when the connection breaks."""
    headers = {"Content-Type": "application/json"} | ({"Idempotency-Key": key} if key else {})
    http_.request("POST", "/entries", body, headers)
    answer = http_.getresponse()
    return answer.status, json.loads(answer.read())


def told(receipt: dict[str, Any]) -> dict[str, Any]:
    """Return what a receipt acknowledges, as workload.acknowledgement does."""
    leaf = base64.b64decode(receipt["leaf"]).hex()
    return {**_head(receipt["checkpoint"]), "indices": [receipt["index"]], "leaves": [leaf]}


def _head(note: str) -> dict[str, Any]:
    _, size, root, *_ = note.split("\n")
    head = {"note": note, "size": int(size), "root": base64.b64decode(root).hex()}
    return {**head, "log": "default", "indices": [], "leaves": [], "sent": {"key": None}}


def _post(url: str, tag: str, say: Say) -> None:
    random_ = random.Random(tag)
    http_ = connection(url)
    for at in range(10**9):
        status, answer = post(http_, json.dumps({"n": f"{tag}.{at}"}).encode(), f"{tag}.{at}")
        assert status == 201, answer
        say(told(answer))
        time.sleep(random_.random() * 0.004)


def patient(url: str, tag: str, say: Say) -> None:
    """Post events for good; repeat what was refused with 503 under the same key, and say how that was refused."""
    http_ = connection(url)
    for at in range(10**9):
        body, key = json.dumps({"n": f"{tag}.{at}", "pad": "x" * 400}).encode(), f"{tag}.{at}"
        status, answer = post(http_, body, key)
        while status != 201:
            say({"refused": answer["code"], "status": status})
            time.sleep(0.02)
            status, answer = post(http_, body, key)
            if status == 200:
                break  # it had been stored when its outcome was unknown
        say(told(answer))
        time.sleep(0.001)


def _look(url: str, say: Say) -> None:
    http_ = connection(url)
    while True:
        http_.request("GET", "/checkpoint")
        answer = http_.getresponse()
        note = answer.read().decode()
        assert answer.status == 200, note
        say(_head(note))
        time.sleep(0.02)
