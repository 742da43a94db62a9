"""Misbehaviours of single answers: tiles, bundles, entries, proofs and receipts that are not what was asked for."""

from __future__ import annotations

from collections.abc import Callable

import httpx

from muniment.encoding import b64
from muniment.errors import BadProof, FormatError, NotWhatWasSent, Refused, Unreachable
from muniment.hashing import HASH_SIZE
from tests.client.fake_log import Tamper, edit
from tests.splitview.liar import SIZE, Liar, absent, answer
from tests.splitview.table import Meets, Start, latest, row


def _lie(tamper: Callable[[Liar], Tamper]) -> Start:
    def start(liar: Liar) -> None:
        liar.lie = tamper(liar)

    return start


def _bytes(path: str, change: Callable[[bytes], bytes]) -> Start:
    return _lie(lambda _: answer(path, change))


def _flip(data: bytes) -> bytes:
    return data[:100] + bytes([data[100] ^ 1]) + data[101:]


def _garbage_proof(liar: Liar) -> Tamper:
    """The honest log a little larger, with proofs that lead nowhere."""
    liar.view = liar.branch(20)
    return edit("/consistency", lambda value: value.update(hashes=["00" * 32] * 3))


def _other_receipt(liar: Liar) -> Tamper:
    return edit("/receipt", lambda _: liar.honest.receipt(8, SIZE).to_json())


def _other_leaf(liar: Liar) -> Tamper:
    return edit("/receipt", lambda value: value.update(leaf=b64(liar.honest.leaves[8])))


def _other_inclusion(liar: Liar) -> Tamper:
    answered = liar.honest._inclusion({"index": "8"}).json()
    return edit("/inclusion", lambda _: answered)


def _other_append(liar: Liar) -> Tamper:
    return lambda request, response: (
        httpx.Response(201, json=liar.honest.receipt(8).to_json()) if request.method == "POST" else response
    )


_TILE, _BUNDLE = "/tile/0/000", "/tile/entries/000"
_tile: Meets = lambda client: client.tile(0, 0)  # noqa: E731 - a row of the table reads like a sentence
_narrow: Meets = lambda client: client.tile(0, 1)  # noqa: E731
_leaves: Meets = lambda client: client.bundle(0)  # noqa: E731
_seventh: Meets = lambda client: client.receipt(7)  # noqa: E731

row("wrong-tile", "serves a tile with one bit turned", "client", _bytes(_TILE, _flip), _tile, BadProof)
row(
    "short-tile",
    "serves a tile without its last hash",
    "client",
    _bytes(_TILE, lambda data: data[:-HASH_SIZE]),
    _tile,
    BadProof,
)
row(
    "cut-tile",
    "serves a tile that ends within a hash",
    "client",
    _bytes(_TILE, lambda data: data[:-1]),
    _tile,
    BadProof,
)
row(
    "long-tile",
    "serves a full tile with bytes behind it",
    "client",
    _bytes(_TILE, lambda data: data + bytes(HASH_SIZE)),
    _tile,
    Unreachable,
)
row(
    "wide-tile",
    "serves more hashes than the width of a partial tile",
    "none",
    _bytes("/tile/0/001.p", lambda data: data + bytes(HASH_SIZE)),
    _narrow,
)
row("wrong-bundle", "serves a bundle with one bit turned", "client", _bytes(_BUNDLE, _flip), _leaves, BadProof)
row(
    "short-bundle",
    "serves a bundle without its last entry",
    "client",
    _bytes(_BUNDLE, lambda data: data[: data.rindex(b"{") - 2]),
    _leaves,
    BadProof,
)
row(
    "cut-bundle",
    "serves a bundle that ends within an entry",
    "client",
    _bytes(_BUNDLE, lambda data: data[:-1]),
    _leaves,
    FormatError,
)
row(
    "long-bundle",
    "serves a bundle with bytes behind it",
    "client",
    _bytes(_BUNDLE, lambda data: data + b"\0"),
    _leaves,
    FormatError,
)
row(
    "hides-a-bundle",
    "has no bundle where the signed tree has one",
    "client",
    _lie(lambda _: absent(_BUNDLE)),
    _leaves,
    Refused,
)
row(
    "hides-entries",
    "leaves an entry out of a page",
    "client",
    _lie(lambda _: edit("/entries", lambda value: value["entries"].pop(3) and None)),
    lambda client: list(client.entries(0, 20)),
    FormatError,
)
row(
    "proof-of-another-index",
    "answers with the inclusion proof of another entry",
    "client",
    _lie(_other_inclusion),
    lambda client: client.inclusion(7),
    NotWhatWasSent,
)
row(
    "receipt-of-another-entry",
    "answers with the receipt of another entry",
    "client",
    _lie(_other_receipt),
    _seventh,
    NotWhatWasSent,
)
row("receipt-of-another-leaf", "puts another leaf into a receipt", "client", _lie(_other_leaf), _seventh, BadProof)
row(
    "append-of-another-entry",
    "answers an append with the receipt of another entry",
    "client",
    _lie(_other_append),
    lambda client: client.append({"n": 1}),
    NotWhatWasSent,
)
row(
    "garbage-proofs",
    "gives a consistency proof that leads nowhere, over an honest tree",
    "none",
    _lie(_garbage_proof),
    latest,
)
