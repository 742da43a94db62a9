"""Server-Sent Events: whatever the pieces in which they come, a reader gets the notes that were sent, byte for byte."""

from __future__ import annotations

import pytest

from muniment.encoding import MAX_SIZE
from muniment.errors import FormatError
from muniment.sse import HEARTBEAT, MAX_EVENT, CheckpointEvent, EventReader, format_event
from tests.unit.samples import event_log

LOG = event_log()
EVENTS = [CheckpointEvent(size, LOG.checkpoint(size)) for size in range(1, len(LOG.entries) + 1)]


def test_the_bytes_of_an_event() -> None:
    note = "example.com/log\n5\nroot\n\n— example.com/log sig\n"
    assert format_event(CheckpointEvent(5, note)).decode() == (
        "id: 5\ndata: example.com/log\ndata: 5\ndata: root\ndata: \ndata: — example.com/log sig\ndata: \n\n"
    )


@pytest.mark.parametrize(
    "note", ["", "\n", "\n\n", " a\n", "a", ": x\n", "a\n\n\n", "data: x\nid: 9\n", "\ufeff\u2028\n"]
)
def test_any_text_comes_back(note: str) -> None:
    for size in (0, 7, MAX_SIZE):
        event = CheckpointEvent(size, note)
        assert EventReader().read(format_event(event)) == [event]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100, 10_000])
def test_events_in_pieces(size: int) -> None:
    data = HEARTBEAT + HEARTBEAT.join(map(format_event, EVENTS)) + HEARTBEAT
    for text in (data, data.replace(b"\n", b"\r\n")):
        reader = EventReader()
        parts = [text[at : at + size] for at in range(0, len(text), size)]
        assert [event for part in parts for event in reader.read(part)] == EVENTS


def test_what_has_not_ended_is_no_event() -> None:
    data = format_event(EVENTS[0])
    for end in range(len(data)):
        assert EventReader().read(data[:end]) == []


def test_what_is_not_known_is_left_out() -> None:
    other = b"event: cosigned\nid: 3\ndata: x\n\nretry: 100\n\nnovelty\nid: 4\n\n"
    named = b"event: message\nflavour: 1\n" + format_event(EVENTS[0])
    assert EventReader().read(other + named) == [EVENTS[0]]


@pytest.mark.parametrize("id_", [b"", b"id: \n", b"id: x\n", b"id: 01\n", b"id: -1\n", b"id: 9223372036854775808\n"])
def test_an_id_that_is_no_size(id_: bytes) -> None:
    with pytest.raises(FormatError, match="id of an event"):
        EventReader().read(id_ + b"data: x\n\n")


@pytest.mark.parametrize("part", [b"data: " + b"x" * 999 + b"\n", b"x" * 1000, b"id: 1\n" * 200])
def test_no_event_is_held_that_is_too_long(part: bytes) -> None:
    reader = EventReader()
    for _ in range(MAX_EVENT // len(part)):
        assert reader.read(part) == []
    with pytest.raises(FormatError, match="more than"):
        reader.read(part * 2)


def test_comments_are_not_held() -> None:
    reader = EventReader()
    for _ in range(MAX_EVENT // 1000 + 2):
        assert reader.read(b":" + b"x" * 999 + b"\n") == []


def test_bytes_that_are_no_text() -> None:
    with pytest.raises(FormatError, match="UTF-8"):
        EventReader().read(b"data: \xff\n\n")
