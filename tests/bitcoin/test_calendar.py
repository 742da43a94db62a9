"""The calendars that other tests rely on: that they are real ones, by the library's reading, and that their faults are faults."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from hashlib import sha256

import httpx
import pytest
from opentimestamps.core.notary import BitcoinBlockHeaderAttestation, PendingAttestation
from opentimestamps.core.serialize import BytesDeserializationContext, DeserializationError
from opentimestamps.core.timestamp import Timestamp

from tests.bitcoin.calendar import BODY_FAULTS, SSRF_URIS, Calendar, confirm
from tests.bitcoin.chain import Chain, sha256d
from tests.bitcoin.node import Node
from tests.bitcoin.web import DRIP_SECONDS, TRANSPORT_FAULTS
from tests.live import PATIENCE

DIGEST = sha256(b"a checkpoint").digest()

TLS = httpx.create_ssl_context()  # made once: it takes longer than a request
get, post = partial(httpx.get, verify=TLS), partial(httpx.post, verify=TLS)


@pytest.fixture
def calendar(chain: Chain) -> Iterator[Calendar]:
    with Calendar(chain) as started:
        yield started


def parse(body: bytes, start: bytes) -> Timestamp:
    context = BytesDeserializationContext(body)
    found = Timestamp.deserialize(context, start)
    context.assert_eof()
    return found


def submit(calendar: Calendar, digest: bytes = DIGEST) -> tuple[bytes, str]:
    """Post a digest, and return the commitment and the URI that the reply names."""
    reply = post(f"{calendar.url}/digest", content=digest)
    assert (reply.status_code, reply.headers["content-type"]) == (200, "application/octet-stream")
    [(commitment, attestation)] = parse(reply.content, digest).all_attestations()
    assert isinstance(attestation, PendingAttestation)
    return commitment, attestation.uri


def poll(calendar: Calendar, commitment: bytes) -> httpx.Response:
    return get(f"{calendar.url}/timestamp/{commitment.hex()}")


def test_a_commitment_is_not_the_digest(calendar: Calendar) -> None:
    commitment, uri = submit(calendar)
    assert (len(commitment), uri) == (44, calendar.url)
    assert abs(int.from_bytes(commitment[:4], "big") - time.time()) < 60
    assert calendar.commitments == [commitment]
    assert poll(calendar, DIGEST).status_code == 404
    assert poll(calendar, DIGEST).text == "Not found"


def test_from_pending_to_a_real_merkle_root(calendar: Calendar, chain: Chain) -> None:
    calendar.confirmations = 3
    taken = [submit(calendar, sha256(bytes([at])).digest())[0] for at in range(7)]
    assert poll(calendar, taken[0]).text == "Pending confirmation in Bitcoin blockchain"
    calendar.publish()
    assert poll(calendar, taken[0]).text == "Pending confirmation in Bitcoin blockchain"
    block = chain.mine()
    waiting = poll(calendar, taken[0])
    assert waiting.status_code == 404
    assert waiting.text.startswith("Timestamped by transaction ")
    assert waiting.text.endswith("; waiting for 2 confirmations")
    assert waiting.headers["cache-control"] == "public, max-age=60"
    chain.mine(2)
    for commitment in taken:
        done = poll(calendar, commitment)
        [(message, attestation)] = parse(done.content, commitment).all_attestations()
        assert isinstance(attestation, BitcoinBlockHeaderAttestation)
        assert (attestation.height, message) == (block.height, block.root)


def test_calendars_share_a_block(chain: Chain) -> None:
    with Calendar(chain) as one, Calendar(chain) as two, Calendar(chain) as three:
        taken = {calendar: submit(calendar)[0] for calendar in (one, two, three)}
        block = confirm(chain, taken, depth=6)
        assert chain.height == block.height + 5
        assert len(block.transactions) == 4
        for calendar, commitment in taken.items():
            [(message, _)] = parse(poll(calendar, commitment).content, commitment).all_attestations()
            assert message == block.root


def test_after_a_reorganisation_the_path_leads_to_another_block(calendar: Calendar, chain: Chain) -> None:
    commitment, _ = submit(calendar)
    before = confirm(chain, [calendar], depth=2)
    chain.reorg(3)
    assert poll(calendar, commitment).text == "Pending confirmation in Bitcoin blockchain"
    after = chain.mine()
    [(message, attestation)] = parse(poll(calendar, commitment).content, commitment).all_attestations()
    assert (attestation.height, message) == (after.height, after.root)
    assert after.root != before.root


def test_what_the_protocol_refuses(calendar: Calendar) -> None:
    assert post(f"{calendar.url}/digest", content=bytes(65)).text == "digest too long"
    chunked = post(f"{calendar.url}/digest", content=iter([DIGEST]))
    assert (chunked.status_code, chunked.text) == (400, "invalid Content-Length")
    assert get(f"{calendar.url}/timestamp/nohex").status_code == 400
    assert get(f"{calendar.url}/").json() == {"pending_commitments": 0}
    assert get(f"{calendar.url}/else").status_code == 404


def test_requests_are_counted(calendar: Calendar) -> None:
    commitment, _ = submit(calendar)
    for _ in range(3):
        poll(calendar, commitment)
    assert [digest for _, digest in calendar.posts] == [DIGEST]
    assert len(calendar.polls[commitment]) == calendar.most_polls_in_a_minute == 3
    calendar.polls[b"other"] = [0.0, 61.0, 122.0]
    assert calendar.most_polls_in_a_minute == 3


@pytest.mark.parametrize("name", sorted({*BODY_FAULTS} - {"lie", "future", "wide", "sha1", "duplicate", "deep", "fake_height", "varuint"}))  # fmt: skip
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_spoiled_bodies_do_not_parse(calendar: Calendar, chain: Chain, name: str, method: str) -> None:
    commitment, _ = submit(calendar)
    confirm(chain, [calendar])
    calendar.fault = name
    reply = post(f"{calendar.url}/digest", content=DIGEST) if method == "POST" else poll(calendar, commitment)
    assert reply.status_code == 200
    if name == "big":
        assert len(reply.content) == 10_001
    with pytest.raises((DeserializationError, ValueError)):
        parse(reply.content, DIGEST if method == "POST" else commitment)


def test_bodies_that_parse_and_must_be_refused_all_the_same(calendar: Calendar, chain: Chain) -> None:
    commitment, _ = submit(calendar)
    for name in ("lie", "future", "wide", "sha1", "duplicate"):
        calendar.fault = name
        parse(poll(calendar, commitment).content, commitment)
    calendar.fault = "lie"
    [(message, attestation)] = parse(poll(calendar, commitment).content, commitment).all_attestations()
    assert attestation.height == chain.height
    assert len(message) == 32
    assert message != chain.tip.root
    calendar.fault = "deep"
    with pytest.raises(DeserializationError):
        parse(poll(calendar, commitment).content, commitment)
    calendar.fault = "fake_height"
    [(_, attestation)] = parse(poll(calendar, commitment).content, commitment).all_attestations()
    assert attestation.height == 2**57_000
    calendar.fault = "varuint"
    assert len(poll(calendar, commitment).content) > 9_000


def test_a_fault_may_concern_one_method(calendar: Calendar) -> None:
    calendar.fault, calendar.faulty = "error", {"GET"}
    commitment, _ = submit(calendar)
    assert poll(calendar, commitment).status_code == 503
    calendar.fault = "control"
    reply = poll(calendar, commitment)
    assert reply.status_code == 404
    assert "\n" in reply.text
    assert "\x1b" in reply.text
    calendar.fault = "not_found"
    assert poll(calendar, commitment).text == "Not found"


def test_a_silent_calendar_never_anchors(calendar: Calendar, chain: Chain) -> None:
    calendar.fault = "silent"
    commitment, _ = submit(calendar)
    confirm(chain, [calendar])
    assert poll(calendar, commitment).text == "Pending confirmation in Bitcoin blockchain"
    calendar.fault = ""
    confirm(chain, [calendar])
    assert poll(calendar, commitment).status_code == 200


@pytest.mark.parametrize("uri", SSRF_URIS)
def test_any_pending_uri(chain: Chain, uri: str) -> None:
    with Calendar(chain, uri=uri) as calendar:
        assert submit(calendar)[1] == uri


@pytest.mark.parametrize("fault", TRANSPORT_FAULTS)
def test_transport_faults(calendar: Calendar, fault: str) -> None:
    calendar.fault = fault
    with Calendar(calendar.chain) as other:
        calendar.elsewhere = f"{other.url}/digest"
        if fault in ("hang", "reset"):
            with pytest.raises(httpx.TransportError):
                post(f"{calendar.url}/digest", content=DIGEST, timeout=0.2)
        elif fault == "drip":
            started, found = time.monotonic(), b""
            with httpx.stream("POST", f"{calendar.url}/digest", content=DIGEST, timeout=PATIENCE) as reply:
                chunks = reply.iter_raw()
                while len(found) < 2:
                    found += next(chunks)
                assert time.monotonic() - started > 0.9 * (len(found) - 1) * DRIP_SECONDS
        else:
            reply = post(f"{calendar.url}/digest", content=DIGEST)
            assert reply.status_code == {"redirect": 302, "error": 503, "portal": 200}[fault]
        assert not other.posts


def test_down_refuses_and_up_has_the_same_port(calendar: Calendar) -> None:
    url = calendar.url
    for _ in range(2):
        calendar.down()
        with pytest.raises(httpx.ConnectError):
            submit(calendar)
        calendar.up()
        assert calendar.url == url
        submit(calendar)


def test_merkle_paths_of_every_width(chain: Chain) -> None:
    for width in range(8):
        sent = [bytes([width, at]) * 40 for at in range(width)]
        for one in sent:
            chain.submit(one)
        block = chain.mine()
        for one in sent:
            node = sha256d(one)
            for right, sibling in block.path(one):
                node = sha256d(node + sibling if right else sibling + node)
            assert node == block.root


def test_the_node_speaks_to_single_calls_and_batches(node: Node, chain: Chain) -> None:
    call = {"jsonrpc": "1.0", "id": "x", "method": "getblockhash", "params": [2]}
    assert post(node.url, json=call).json() == {"result": chain.blocks[2].block_hash, "error": None, "id": "x"}
    beyond = post(node.url, json=call | {"params": [99]})
    assert (beyond.status_code, beyond.json()["error"]["code"]) == (500, -8)
    both = post(node.url, json=[call, call | {"method": "nothing"}]).json()
    assert both[1]["error"]["code"] == -32601
    assert post(node.rest, json=call).status_code == 401
    verbose = {"method": "getblockheader", "params": [chain.blocks[2].block_hash]}
    assert post(node.url, json=verbose).json()["result"]["merkleroot"] == chain.blocks[2].root[::-1].hex()
