"""Checkpoints: the text of a signed tree head, and what a policy says of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muniment.checkpoint import Checkpoint, check_origin, parse_checkpoint, sign_checkpoint
from muniment.encoding import MAX_SIZE, b64, parse_b64
from muniment.errors import BadSignature, FormatError, PolicyNotMet
from muniment.hashing import EMPTY_ROOT, RootHash
from muniment.note import SigningKey, parse_note, verify_note
from muniment.policy import LogKey, Policy
from tests.unit.samples import KEY, ORIGIN, POLICY, event_log

ROOT = RootHash(bytes(range(32)))
B64ROOT = b64(ROOT)
EMPTY = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="


def test_the_known_answer_of_sigsum() -> None:
    origin = "sigsum.org/v1/tree/e796172b92befd62d9dc67e41c2f5bc9d3100a3023b20b1ca40288dd1c679e69"
    key = SigningKey(origin, b"\x11" + bytes(31))
    root = RootHash(parse_b64("HA5HAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="))
    note = sign_checkpoint(Checkpoint(origin, 10, root), key)
    assert note.text == f"{origin}\n10\nHA5HAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n"
    known = "gJ2ho0n8F8olcerUF1FFdv235A/5as/coWrpLrtE7ovMeP5whgwouYExowG/lTznxu6OUGjjt5yJQ6bXtTcf718MqAQ="
    signature = note.signatures[0]
    assert signature.key_id + signature.signature == parse_b64(known)
    assert Policy((LogKey(key.vkey),)).verify(str(note)).checkpoint == Checkpoint(origin, 10, root)


@given(
    st.text(min_size=1, max_size=20),
    st.integers(0, MAX_SIZE),
    st.lists(st.text(max_size=10), max_size=3),
)
def test_what_parses_formats_to_the_same_text(origin: str, size: int, extensions: list[str]) -> None:
    checkpoint = Checkpoint(origin, size, ROOT if size else EMPTY_ROOT, tuple(extensions))
    try:
        parsed = parse_checkpoint(str(checkpoint))
    except FormatError:
        return
    assert str(parsed) == str(checkpoint)


def test_the_parts_of_a_checkpoint() -> None:
    text = f"{ORIGIN}\n7\n{B64ROOT}\n"
    assert parse_checkpoint(text) == Checkpoint(ORIGIN, 7, ROOT)
    assert str(Checkpoint(ORIGIN, 7, ROOT)) == text
    extended = parse_checkpoint(text + "one\ntwo three\n")
    assert extended.extensions == ("one", "two three")
    assert parse_checkpoint(f"{ORIGIN}\n0\n{EMPTY}\n") == Checkpoint(ORIGIN, 0, EMPTY_ROOT)
    assert parse_checkpoint(f"{ORIGIN}\n{MAX_SIZE}\n{B64ROOT}\n").size == MAX_SIZE


@pytest.mark.parametrize(
    "text",
    [
        "", "\n", "\n\n\n", f"{ORIGIN}\n7\n{B64ROOT}", f"{ORIGIN}\n7\n", f"{ORIGIN}\n7\n\n", f"{ORIGIN}\n\n{B64ROOT}\n",
        f"\n7\n{B64ROOT}\n", f"{ORIGIN}\n7\n{B64ROOT}\n\n", f"{ORIGIN}\n7\n{B64ROOT}\n\next\n", f"\n{ORIGIN}\n7\n{B64ROOT}\n",
        *(f"{ORIGIN}\n{size}\n{B64ROOT}\n" for size in (
            "07", "+7", "-7", "-0", "7 ", " 7", "7_0", "7.0", "0x7", "\u0667", "seven", str(MAX_SIZE + 1), "1" * 40)),
        f"{ORIGIN}\n0\n{B64ROOT}\n", f"{ORIGIN}\n00\n{EMPTY}\n",
        *(f"{ORIGIN}\n7\n{root}\n" for root in (
            B64ROOT[:-1], B64ROOT + "=", B64ROOT.replace("8=", "9="), B64ROOT + " ", " " + B64ROOT, b64(ROOT[:31]),
            b64(ROOT + b"x"), "=", ROOT.hex())),
        f"{ORIGIN}\r\n7\r\n{B64ROOT}\r\n", f"{ORIGIN}\u20287\u2028{B64ROOT}\n",
    ],
    ids=ascii,
)  # fmt: skip
def test_what_is_not_a_checkpoint_is_refused(text: str) -> None:
    with pytest.raises(FormatError):
        parse_checkpoint(text)


def test_an_origin_has_at_most_255_bytes() -> None:
    for origin in ("o" * 255, "é" * 127, "log.example/a?b#c"):
        assert check_origin(origin) == origin
    for origin in ("", "o" * 256, "é" * 128, "a b", "a\n", "a+b", "a\u00a0", "\ud800"):
        with pytest.raises(FormatError):
            check_origin(origin)


def test_a_key_signs_for_its_own_log_only() -> None:
    with pytest.raises(AssertionError, match="must not sign"):
        sign_checkpoint(Checkpoint("log.example/other", 7, ROOT), KEY)


def test_every_proper_substring_of_a_signed_checkpoint_is_refused() -> None:
    data = event_log().checkpoint(5).encode()
    assert POLICY.verify(data).checkpoint.size == 5
    for start in range(len(data)):
        for end in range(start, len(data) + 1):
            if (start, end) != (0, len(data)):
                with pytest.raises((FormatError, BadSignature, PolicyNotMet)):
                    POLICY.verify(data[start:end])


def test_every_one_byte_change_of_a_signed_checkpoint_is_refused() -> None:
    good = event_log().checkpoint(5).encode()
    data = bytearray(good)
    for at, byte in enumerate(good):
        for value in range(256):
            if value != byte:
                data[at] = value
                with pytest.raises((FormatError, BadSignature, PolicyNotMet)):
                    POLICY.verify(bytes(data))
        data[at] = byte


def test_lines_of_others_change_nothing() -> None:
    good = event_log().checkpoint(5)
    witness = SigningKey("witness.example", b"w" * 32)
    line = str(witness.sign(parse_note(good).text))
    for note in (good + line, good.replace("\n\n", f"\n\n{line}")):
        assert POLICY.verify(note).checkpoint == POLICY.verify(good).checkpoint
        assert POLICY.verify(note).note == note


@pytest.mark.parametrize("origin", ["go.sum database tree", "rekor.example - 2605736670972794746", "a+b", "o" * 256])
def test_origins_of_other_logs_are_read_and_ours_stay_strict(origin: str) -> None:
    """Go's checksum database and Rekor v1 are called so. The key of such a log cannot have the same name."""
    head = Checkpoint(origin, 7, ROOT)
    key = SigningKey("sum.example.org", b"g" * 32)
    note = parse_note(f"{head}\n{key.sign(str(head))}")
    assert verify_note(note, [key.vkey]) == [key.vkey]
    assert parse_checkpoint(note.text) == head
    with pytest.raises(PolicyNotMet, match="lists no log called"):
        Policy((LogKey(key.vkey),)).verify(str(note))
    with pytest.raises(FormatError):
        check_origin(origin)


def test_a_long_origin_is_vouched_for_when_a_key_has_it_for_a_name() -> None:
    key = SigningKey("log.example/" + "o" * 256, b"l" * 32)
    note = sign_checkpoint(Checkpoint(key.vkey.name, 7, ROOT), key)
    assert Policy((LogKey(key.vkey),)).verify(str(note)).checkpoint.origin == key.vkey.name


def test_a_witness_alone_does_not_speak_for_the_log() -> None:
    text = parse_note(event_log().checkpoint(5)).text
    witness = SigningKey("witness.example", b"w" * 32)
    with pytest.raises(BadSignature, match="not signed by a known key"):
        Policy((LogKey(KEY.vkey), LogKey(witness.vkey))).verify(f"{text}\n{witness.sign(text)}")
