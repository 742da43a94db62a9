"""A log on a live server with a few hundred entries, and what an independent verifier needs of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx

from muniment.checkpoint import parse_checkpoint
from muniment.event import canonical_event
from muniment.note import VerifierKey, parse_note
from muniment.tiles import encode_bundle
from tests.live import PATIENCE, LiveServer

BATCHES = (300, 1, 255, 37, 97)
"""With the genesis entry and a text append before, between and after: two full tiles, a partial one, one at level 1, odd sizes."""
SIZE = 1 + sum(BATCHES) + len(BATCHES) + 1
TEXT = {"Accept": "text/plain"}


@dataclass
class Sample:
    """A log as a stranger sees it. `leaves` are all leaves by index; `posted` the bodies, `answers` the tlog-proofs of single appends."""

    http: httpx.Client
    url: str
    kind: str
    vkey: VerifierKey
    posted: dict[int, bytes] = field(default_factory=dict)
    answers: dict[int, str] = field(default_factory=dict)
    leaves: list[bytes] = field(default_factory=list)

    @property
    def origin(self) -> str:
        """The log's name, which is its key's name."""
        return self.vkey.name

    def get(self, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
        """Return the 200 answer to a GET."""
        answer = self.http.get(f"{self.url}{path}", headers=headers)
        assert answer.status_code == 200, answer.text
        return answer

    def text_receipt(self, index: int, tree_size: int | None = None) -> str:
        """Return the receipt of an entry as tlog-proof text, at the latest published checkpoint or at `tree_size`."""
        query = "" if tree_size is None else f"?tree_size={tree_size}"
        return self.get(f"/entries/{index}/receipt{query}", TEXT).text

    def published(self) -> list[str]:
        """Return the notes of all published checkpoints, smallest first."""
        return [one["checkpoint"] for one in self.get("/checkpoints?limit=1000").json()["checkpoints"]]


def fill(server: LiveServer, url: str, kind: str, vkey: VerifierKey) -> Sample:
    """Append to an empty log until it has SIZE entries and the checkpoint says so."""
    sample = Sample(httpx.Client(timeout=PATIENCE), url, kind, vkey)
    numbers = iter(range(SIZE))
    _append_one(sample, next(numbers))
    for count in BATCHES:
        _append_batch(sample, [next(numbers) for _ in range(count)])
        _append_one(sample, next(numbers))
    _wait(lambda: parse_checkpoint(parse_note(sample.get("/checkpoint").text).text).size == SIZE, server)
    sample.leaves = _leaves(sample)
    return sample


def _body(sample: Sample, number: int) -> bytes:
    if sample.kind == "raw":  # lengths 1 to 700: also shorter than a hash
        return f"{number:x}".encode() + b"\xff\x00" * (number // 2)
    return canonical_event({"actor": "alice", "action": "interop", "number": number, "text": "Grüße ☕" * (number % 5)})


def _append_one(sample: Sample, number: int) -> None:
    body = _body(sample, number)
    kind = "application/json" if sample.kind == "event" else "application/octet-stream"
    answer = sample.http.post(f"{sample.url}/entries", content=body, headers=TEXT | {"Content-Type": kind})
    assert answer.status_code == 201, answer.text
    index = int(answer.headers["Location"].rpartition("/")[2])
    sample.posted[index] = body
    sample.answers[index] = answer.text


def _append_batch(sample: Sample, numbers: list[int]) -> None:
    bodies = [_body(sample, number) for number in numbers]
    raw = sample.kind == "raw"
    content = encode_bundle(bodies) if raw else b"\n".join(bodies)
    headers = {"Content-Type": "application/octet-stream" if raw else "application/x-ndjson"}
    answer = sample.http.post(f"{sample.url}/entries/batch", content=content, headers=headers)
    assert answer.status_code == 201, answer.text
    indices = [index for low, high in answer.json()["indices"] for index in range(low, high)]
    sample.posted.update(zip(indices, bodies, strict=True))


def _leaves(sample: Sample) -> list[bytes]:
    """Return all leaves, split from the entry bundles here: two bytes of length, big-endian, before each."""
    leaves: list[bytes] = []
    for number in range((SIZE + 255) // 256):
        width = min(256, SIZE - number * 256)
        data = sample.get(f"/tile/entries/{number:03}{'' if width == 256 else f'.p/{width}'}").content
        while data:
            end = 2 + int.from_bytes(data[:2], "big")
            leaves.append(data[2:end])
            data = data[end:]
    assert len(leaves) == SIZE
    if sample.kind == "raw":
        assert all(leaves[index] == body for index, body in sample.posted.items())
    return leaves


def _wait(done: Callable[[], bool], server: LiveServer) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline, server.stderr()
        time.sleep(0.02)
