"""Every answer of a live server, checked twice: its shape against the OpenAPI document, its proofs against the policy alone."""

from __future__ import annotations

import itertools
import json
import re
from functools import cache
from typing import Any

import httpx
import jsonschema_rs
from prometheus_client.parser import text_string_to_metric_families

from muniment.checkpoint import Checkpoint
from muniment.event import EventLeaf, parse_leaf
from muniment.hashing import RootHash, leaf_hash
from muniment.policy import Policy
from muniment.proofs import verify_consistency, verify_inclusion
from muniment.receipt import Receipt, Verified
from muniment.sse import MEDIA_TYPE
from muniment_server.web import openapi
from muniment_server.web.problems import CODES
from muniment_server.web.routes import ROUTES
from tests.live import PATIENCE, until

LOG_ROUTES = [route for route in ROUTES if route.on == "log"]


@cache
def document() -> dict[str, Any]:
    """The OpenAPI document, as the application in this process makes it."""
    return openapi.document()


@cache
def _templates() -> list[tuple[re.Pattern[str], str]]:
    """Paths of the document as patterns, those without parameters first."""
    paths = sorted(document()["paths"], key=lambda path: ("{" in path, path))
    patterns = []
    for path in paths:
        escaped = re.sub(r"\\\{path\\\}", ".*", re.escape(path))
        patterns.append((re.compile(re.sub(r"\\\{[a-z]+\\\}", "[^/\\n]*", escaped)), path))
    return patterns


def template_of(path: str) -> str | None:
    """The path of the document that a URL path belongs to, or None."""
    versioned = path.startswith("/v1/")
    plain = path.removeprefix("/v1") if versioned else path
    found = next((template for pattern, template in _templates() if pattern.fullmatch(plain)), None)
    return None if versioned and found not in _versioned() else found


@cache
def _versioned() -> frozenset[str]:
    """Paths of the document that are mounted under /v1 too."""
    paths = [route.path for route in LOG_ROUTES if not route.c2sp]
    return frozenset(["/verify", "/logs", *paths, *(f"/logs/{{log}}{path}" for path in paths)])


@cache
def _validator(method: str, template: str, status: str, media: str) -> jsonschema_rs.Validator:
    schema = document()["paths"][template][method]["responses"][status]["content"][media]["schema"]
    return jsonschema_rs.validator_for({**schema, "components": document()["components"]})


def check_answer(response: httpx.Response) -> None:
    """Assert that an answer is one the OpenAPI document describes. Requires the body to have been read."""
    request = response.request
    where = f"{request.method} {request.url.raw_path.decode()} -> {response.status_code}"
    media = response.headers.get("content-type", "").partition(";")[0]
    if media == "application/problem+json" and request.method != "HEAD":
        check_problem(response, where)
    if response.status_code in (405, 431) or request.method == "OPTIONS":
        return  # the router's, not an operation's
    template = template_of(request.url.path)
    if template is None:
        assert response.status_code == 404 or request.url.path in ("/openapi.json", "/docs", "/"), where
        return
    method = "get" if request.method == "HEAD" else request.method.lower()
    operation = document()["paths"][template].get(method)
    assert operation, f"{where}: the document has no {method} {template}"
    described = operation["responses"].get(str(response.status_code))
    assert described, (
        f"{where}: status not in the document, which has {sorted(operation['responses'])}: {response.text}"
    )
    if response.status_code == 304 or request.method == "HEAD":
        assert not response.content, where
        return
    assert media in described.get("content", {}), f"{where}: {media} is not in {list(described.get('content', {}))}"
    if media.endswith("json") and media != "application/x-ndjson":
        _validator(method, template, str(response.status_code), media).validate(response.json())


def check_problem(response: httpx.Response, where: str = "") -> dict[str, Any]:
    """Assert that an answer is a problem document as docs/api.md promises, and return it."""
    assert response.headers["content-type"] == "application/problem+json", f"{where} {response.text}"
    assert response.headers["cache-control"] == "no-store", where
    value: dict[str, Any] = response.json()
    assert value["status"] == response.status_code, where
    assert value["code"] in CODES, f"{where}: {value['code']} is not in CODES"
    assert value["code"] != "internal", f"{where}: {value}"
    assert value["title"] == CODES[value["code"]].title, where
    assert value["type"] == f"urn:muniment:error:{value['code']}", where
    assert value["detail"], where
    assert value["hint"], where
    if response.status_code == 401:
        assert response.headers["www-authenticate"].startswith("Bearer"), where
    if "retry_after" in value:
        assert response.headers["retry-after"] == str(value["retry_after"]), where
    return value


def expect_problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Assert that an answer is this problem, and return it."""
    assert (response.status_code, response.headers.get("content-type")) == (status, "application/problem+json"), (
        f"{response.request.method} {response.request.url} -> {response.status_code} {response.text[:500]}"
    )
    found = check_problem(response)
    assert found["code"] == code, found
    return found


def client(url: str, key: str | None = None, **kwargs: Any) -> httpx.Client:
    """A client that checks every answer against the document. Of an answer without an end it reads the first piece."""

    def hook(response: httpx.Response) -> None:
        if response.headers.get("content-type") == MEDIA_TYPE and response.request.method == "GET":
            response._content = next(response.iter_raw())  # as if that were all
            response.close()
        response.read()
        check_answer(response)

    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.Client(
        base_url=url,
        timeout=PATIENCE,
        headers=headers,
        event_hooks={"response": [hook]},
        trust_env=False,
        verify=False,
        **kwargs,
    )


def async_client(url: str, connections: int = 100) -> httpx.AsyncClient:
    """The same for asyncio."""

    async def hook(response: httpx.Response) -> None:
        await response.aread()
        check_answer(response)

    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    return httpx.AsyncClient(
        base_url=url, timeout=PATIENCE, event_hooks={"response": [hook]}, limits=limits, trust_env=False, verify=False
    )


# --- proofs -------------------------------------------------------------------------------------------------------------


class Verifier:
    """Checks what a server says with the policy alone. Counts what it verified; each distinct note is verified once."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.proofs = 0
        self.roots: dict[tuple[str, int], RootHash] = {}  # every head ever seen: two roots of one size are a fork
        self._notes: dict[str, Checkpoint] = {}

    def checkpoint(self, note: str) -> Checkpoint:
        """Verify a note, and that it does not contradict one seen before."""
        found = self._notes.get(note)
        if found is None:
            found = self._notes[note] = self.policy.verify(note).checkpoint
            known = self.roots.setdefault((found.origin, found.size), found.root)
            assert known == found.root, f"FORK: two roots of {found.origin} at size {found.size}"
        return found

    def receipt(self, answer: httpx.Response | bytes | dict[str, Any]) -> Verified:
        """Verify a receipt completely, as a stranger would."""
        if isinstance(answer, dict):
            receipt = Receipt.from_json(answer)
        else:
            receipt = Receipt.parse(answer if isinstance(answer, bytes) else answer.content)
        self.checkpoint(receipt.checkpoint)
        self.proofs += 1
        return receipt.verify(self.policy)

    def quick_receipt(self, value: dict[str, Any]) -> Receipt:
        """Verify a receipt's proof and commitment, with the signature of its note checked once for all who share it."""
        receipt = Receipt.from_json(value)
        head = self.checkpoint(receipt.checkpoint)
        assert (receipt.origin, receipt.tree_size) == (head.origin, head.size)
        verify_inclusion(receipt.index, head.size, receipt.leaf_hash, receipt.proof, head.root)
        if receipt.commitment is not None:
            leaf = parse_leaf(receipt.leaf)
            assert isinstance(leaf, EventLeaf)
            assert leaf.commitment == receipt.commitment.digest()
        self.proofs += 1
        return receipt

    def inclusion(self, value: dict[str, Any], leaf: bytes | None = None) -> None:
        """Verify an answer of /proof/inclusion: the proof, and what ties its root to the signed checkpoint."""
        root = self._tied(value, value["tree_size"])
        wanted = bytes.fromhex(value["leaf_hash"])
        assert leaf is None or wanted == leaf_hash(leaf)
        verify_inclusion(value["index"], value["tree_size"], wanted, _hashes(value), root)  # type: ignore[arg-type]
        self.proofs += 1

    def consistency(self, value: dict[str, Any], first_root: bytes) -> None:
        """Verify an answer of /proof/consistency from the root we know of the smaller tree."""
        root = self._tied(value, value["second"])
        verify_consistency(value["first"], value["second"], RootHash(first_root), root, _hashes(value))
        self.proofs += 1

    def _tied(self, value: dict[str, Any], size: int) -> RootHash:
        head = self.checkpoint(value["checkpoint"])
        assert value["origin"] == head.origin
        root = RootHash(bytes.fromhex(value["root"]))
        tie = value["consistency"]
        assert (tie["first"], tie["second"]) == (size, head.size)
        verify_consistency(size, head.size, root, head.root, _hashes(tie))
        return root

    def consistent(self, http: httpx.Client, prefix: str = "", origin: str | None = None) -> int:
        """Prove that all heads seen of one log are one history: each consistent with the next larger one."""
        heads = sorted(
            (size, root) for (name, size), root in self.roots.items() if name == (origin or next(iter(self.roots))[0])
        )
        for (first, root1), (second, root2) in itertools.pairwise(heads):
            answer = http.get(f"{prefix}/proof/consistency", params={"first": first, "second": second})
            value = answer.json()
            assert value["root"] == root2.hex()
            self.consistency(value, root1)
        return len(heads)


def _hashes(value: dict[str, Any]) -> list[bytes]:
    return [bytes.fromhex(part) for part in value["hashes"]]


def head_size(http: httpx.Client, prefix: str = "") -> int:
    """How many entries the last signed head has, published or not. Tells whether something was written."""
    answer = http.get(f"{prefix}/proof/consistency?first=1")
    size: int = answer.json()["second"]
    return size


def published_size(http: httpx.Client, prefix: str = "") -> int:
    """How many entries the last published checkpoint covers."""
    return int(http.get(f"{prefix}/checkpoint").text.split("\n")[1])


def published(http: httpx.Client, prefix: str, size: int) -> str:
    """Wait until a checkpoint of at least `size` is published, and return the last one."""
    until(lambda: published_size(http, prefix) >= size, f"no checkpoint of size {size}")
    return http.get(f"{prefix}/checkpoint").text


def bundle(*leaves: bytes) -> bytes:
    """The C2SP entry bundle of these leaves, made here."""
    return b"".join(len(leaf).to_bytes(2, "big") + leaf for leaf in leaves)


def ndjson(*events: dict[str, Any]) -> bytes:
    """One JSON object a line."""
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


def spread(ranges: list[list[int]]) -> list[int]:
    """The indices that half-open ranges stand for, in their order."""
    return [index for low, high in ranges for index in range(low, high)]


JSON = {"Content-Type": "application/json"}
NDJSON = {"Content-Type": "application/x-ndjson"}


def metric(port: int, name: str) -> float:
    """Return the sum of a metric of the server, by how its lines begin."""
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(f"muniment_{name}"))


def assert_nothing_is_held(port: int) -> None:
    """What is held for clients who have left is held for ever, and in the end all are refused."""
    until(lambda: metric(port, "held_bytes") == 0, "the server holds memory for clients, and has none")


def takes_what_no_schema_says(method: str, path: str) -> bool:
    """Whether an operation may refuse what its schema allows.

    No JSON schema says I-JSON, the kind of a log, first <= second, the grammar of queries, what is a day, that `from` is before `to`, or
    that `after` goes with `tree_size`.
    """
    return method == "POST" or "/proof/" in path or path.endswith(("/export", "/search", "/checkpoints"))


def refused(port: int) -> dict[str, float]:
    """How often connections were refused so far, by reason, as the metrics at this port say."""
    families = text_string_to_metric_families(httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text)
    family = next(family for family in families if family.name == "muniment_connections_refused")
    return {sample.labels["reason"]: sample.value for sample in family.samples if sample.name.endswith("_total")}
