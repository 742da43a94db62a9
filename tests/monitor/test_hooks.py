"""Findings reach a receiver in order and at least once, whatever it answers and whoever is killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from muniment.errors import BadSignature, FormatError, StateError
from muniment.monitor import hooks
from muniment.monitor.findings import Finding
from muniment.monitor.hooks import Outbox, Webhook
from muniment.monitor.record import Record
from muniment.webhook import check_signature, parse_secret, signature, signed_headers
from tests.client.fake_log import NOON
from tests.monitor.receiver import SECRET, receiving

EXPECTED = "v1=0e41ae18dec0c98f9ccccdfc9da1d6b897e12bde7815a6055d8739af8b38df59"
"""printf '1795000000.{}' | openssl dgst -sha256 -hmac 0123456789abcdef"""


def findings(count: int, start: int = 0) -> list[Finding]:
    return [Finding("time", "u", "o", "", NOON, {"index": at}) for at in range(start, start + count)]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "_FIRST", 0.001)


async def test_in_order_and_once(tmp_path: Path) -> None:
    record = Record(tmp_path)
    outbox = Outbox(tmp_path, record)
    with receiving() as receiver:
        async with Webhook(receiver.url, SECRET, outbox) as webhook:
            record.add(findings(5))
            assert await webhook.deliver()
            record.add(findings(7))
            assert await webhook.deliver()
    assert [one["facts"]["index"] for one in receiver.taken] == list(range(7))
    assert outbox.waiting == 0


@pytest.mark.parametrize("status", [301, 400, 404, 410, 429, 500, 503])
async def test_what_is_not_taken_is_sent_again(tmp_path: Path, status: int) -> None:
    record = Record(tmp_path)
    outbox = Outbox(tmp_path, record)
    record.add(findings(3))
    with receiving() as receiver:
        receiver.answers = [204, status, status]
        async with Webhook(receiver.url, SECRET, outbox) as webhook:
            await webhook.deliver_all()
    assert [one["facts"]["index"] for one in receiver.taken] == [0, 1, 2]
    assert receiver.ids[1] == receiver.ids[2] == receiver.ids[3]


async def test_a_receiver_that_is_down_costs_an_offset(tmp_path: Path) -> None:
    record = Record(tmp_path)
    outbox = Outbox(tmp_path, record)
    record.add(findings(3))
    async with Webhook("http://127.0.0.1:9/", SECRET, outbox) as webhook:
        assert not await webhook.deliver()
    again = Outbox(tmp_path, Record(tmp_path))
    assert again.offset == 0
    with receiving() as receiver:
        async with Webhook(receiver.url, SECRET, again) as webhook:
            assert await webhook.deliver()
    assert len(receiver.taken) == 3


async def test_a_slow_receiver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "TIMEOUT", 0.05)
    record = Record(tmp_path)
    outbox = Outbox(tmp_path, record)
    record.add(findings(1))
    with receiving() as receiver:
        receiver.seconds = 0.5
        async with Webhook(receiver.url, SECRET, outbox) as webhook:
            assert not await webhook.deliver()
            monkeypatch.setattr(hooks, "TIMEOUT", 60)
            assert await webhook.deliver()


async def test_killed_before_the_cursor_moved(tmp_path: Path) -> None:
    """What was taken comes again, under the same id."""
    record = Record(tmp_path)
    outbox = Outbox(tmp_path, record)
    record.add(findings(2))
    with receiving() as receiver:
        async with Webhook(receiver.url, SECRET, outbox) as webhook:
            outbox.taken = lambda offset: (_ for _ in ()).throw(KeyboardInterrupt)  # type: ignore[method-assign]
            with pytest.raises(KeyboardInterrupt):
                await webhook.deliver()
        async with Webhook(receiver.url, SECRET, Outbox(tmp_path, Record(tmp_path))) as webhook:
            assert await webhook.deliver()
    assert [one["facts"]["index"] for one in receiver.taken] == [0, 0, 1]
    assert receiver.ids[0] == receiver.ids[1]


def test_a_new_webhook_begins_with_what_comes(tmp_path: Path) -> None:
    record = Record(tmp_path)
    record.add(findings(2))
    outbox = Outbox(tmp_path, record)
    assert outbox.next() is None
    record.add(findings(3))
    found = outbox.next()
    assert found
    assert found[1].facts == {"index": 2}


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b'{"offset":999,"typ":"muniment/monitor-webhook@v1"}', b'{"offset":-1,"typ":"muniment/monitor-webhook@v1"}',
     b'{"offset":true,"typ":"muniment/monitor-webhook@v1"}', b"[]", b"\xff"],
)  # fmt: skip
def test_a_damaged_cursor(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "webhook.json").write_bytes(data)
    with pytest.raises(StateError, match="says nothing about any log"):
        Outbox(tmp_path, Record(tmp_path))


def test_signatures() -> None:
    headers = signed_headers(SECRET, "id", 1_795_000_000, b"body")
    given = headers["Muniment-Signature"]
    check_signature([b"x" * 16, SECRET], "1795000000", f"v1=00, {given}", b"body")
    for secrets, at, header, body in [
        ([b"x" * 16], "1795000000", given, b"body"),
        ([SECRET], "1795000001", given, b"body"),
        ([SECRET], "1795000000", given, b"body "),
        ([SECRET], "x", given, b"body"),
        ([SECRET], "1795000000", given[:-1], b"body"),
        ([SECRET], "1795000000", "", b"body"),
    ]:
        with pytest.raises(BadSignature):
            check_signature(secrets, at, header, body)
    assert signature(b"0123456789abcdef", 1_795_000_000, b"{}") == EXPECTED


def test_secrets() -> None:
    assert parse_secret(b" 0123456789abcdef\n") == b"0123456789abcdef"
    with pytest.raises(FormatError):
        parse_secret(b"short\n")
