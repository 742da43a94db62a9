"""Signed notes and their keys: known answers, and every neighbour of a good note and a good key."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muniment.encoding import b64
from muniment.errors import BadSignature, FormatError, MunimentError
from muniment.note import (
    MAX_NOTE,
    MAX_SIGNATURES,
    Note,
    SignatureLine,
    SigningKey,
    VerifierKey,
    is_key_name,
    key_id_of,
    parse_note,
    verify_note,
)
from tests.unit.samples import KEY

VKEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
EXAMPLE = (
    "This is an example message.\n\n— example.com/foo "
    "Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
)
NEUMANN = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
NEUMANN_PRIVATE = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"


def opens(data: bytes | str, *keys: VerifierKey) -> bool:
    """Whether a note parses and verifies. Only our own errors may escape."""
    try:
        verify_note(parse_note(data), keys)
    except (FormatError, BadSignature):
        return False
    return True


# --- known answers ------------------------------------------------------------------------------------------------------


def test_the_example_of_the_specification_verifies() -> None:
    key = VerifierKey.parse(VKEY)
    note = parse_note(EXAMPLE.encode())
    assert note.text == "This is an example message.\n"
    assert verify_note(note, [key]) == [key]
    assert str(note) == EXAMPLE
    assert str(key) == VKEY
    assert key.key_id.hex() == "530d903a"


def test_a_key_made_by_go_is_read_and_written_alike() -> None:
    key = SigningKey.parse(NEUMANN_PRIVATE)
    assert str(key.vkey) == NEUMANN
    assert key.reveal() == NEUMANN_PRIVATE
    assert VerifierKey.parse(NEUMANN) == key.vkey


def test_a_key_id_covers_name_type_and_key() -> None:
    # A real witness (type 0x04) whose id was made by others: the formula, not only our use of it.
    text = "remora.n621.de+da77ade7+BOvN63jn/bLvkieywe8R6UYAtVtNbZpXh34x7onlmtw2"
    name, key_id, _ = text.split("+", 2)
    with pytest.raises(FormatError, match="not of type 0x01"):
        VerifierKey.parse(text)
    public = bytes.fromhex("ebcdeb78e7fdb2ef9227b2c1ef11e94600b55b4d6d9a57877e31ee89e59adc36")
    assert key_id_of(name, 4, public).hex() == key_id
    assert key_id_of(name, 1, public).hex() != key_id
    assert key_id_of(name + "x", 4, public).hex() != key_id


# --- every neighbour ----------------------------------------------------------------------------------------------------


def test_every_proper_substring_of_a_note_is_refused() -> None:
    data, key = EXAMPLE.encode(), VerifierKey.parse(VKEY)
    assert opens(data, key)
    for start in range(len(data)):
        for end in range(start, len(data) + 1):
            if (start, end) != (0, len(data)):
                assert not opens(data[start:end], key), (start, end)


def test_every_one_byte_change_of_a_note_is_refused() -> None:
    data, key = bytearray(EXAMPLE.encode()), VerifierKey.parse(VKEY)
    for at, good in enumerate(EXAMPLE.encode()):
        for value in range(256):
            if value != good:
                data[at] = value
                assert not opens(bytes(data), key), (at, value)
        data[at] = good


def test_every_byte_put_in_or_taken_out_of_a_note_is_noticed() -> None:
    data, key = EXAMPLE.encode(), VerifierKey.parse(VKEY)
    inserted = [b"\n", b" ", b"\r", b"\x00", b"=", b"A", b"+", "—".encode(), b"\xef\xbb\xbf", "\u2028".encode(), b"\t"]
    for at in range(len(data) + 1):
        assert at == len(data) or not opens(data[:at] + data[at + 1 :], key), at
        for more in inserted:
            assert not opens(data[:at] + more + data[at:], key), (at, more)


def test_every_proper_substring_and_one_character_change_of_a_vkey_is_refused() -> None:
    for start in range(len(VKEY)):
        for end in range(start, len(VKEY) + 1):
            if (start, end) != (0, len(VKEY)):
                with pytest.raises(FormatError):
                    VerifierKey.parse(VKEY[start:end])
    for at, good in enumerate(VKEY):
        for character in [*map(chr, range(256)), "\u2014", "\uff10", "\ud800", "\U0001f511"]:
            if character != good:
                with pytest.raises(FormatError):
                    VerifierKey.parse(VKEY[:at] + character + VKEY[at + 1 :])


def test_every_proper_substring_and_one_character_change_of_a_signing_key_is_refused() -> None:
    secret = NEUMANN_PRIVATE.split("+", 4)[4]
    spoiled = [NEUMANN_PRIVATE[:end] for end in range(len(NEUMANN_PRIVATE))]
    spoiled += [NEUMANN_PRIVATE[start:] for start in range(1, len(NEUMANN_PRIVATE))]
    for at, good in enumerate(NEUMANN_PRIVATE):
        spoiled += [
            NEUMANN_PRIVATE[:at] + chr(code) + NEUMANN_PRIVATE[at + 1 :] for code in range(128) if chr(code) != good
        ]
    for text in spoiled:
        with pytest.raises(FormatError) as refusal:
            SigningKey.parse(text)
        quoted = f"{refusal.value!r} {refusal.value.__cause__!r}"
        assert not any(secret[at : at + 12] in quoted for at in range(len(secret) - 11)), "an error shows the secret"


# --- structure ----------------------------------------------------------------------------------------------------------


def line(name: str = "n", blob: bytes = bytes(12)) -> str:
    """A signature line of no known key."""
    return f"— {name} {b64(blob)}\n"


@pytest.mark.parametrize(
    "data",
    [
        "", "\n", "\n\n", "text", "text\n", "text\n\n", "text\n\n\n", line(), "text\n" + line(), "\n" + line(),
        "text\n\n" + line()[:-1], "text\n\n" + line() + "\n", "text\n\n" + line() + " ", "text\n\n" + line() + "x\n",
        "text\n\n" + line().replace("—", "-"), "text\n\n" + line().replace("—", "\u2013"), "text\n\n" + line().replace("— ", "—"),
        "text\n\n" + line().replace("— ", "—  "), "text\n\n" + line().replace("— ", "—\u00a0"), "text\n\n" + line(""),
        "text\n\n" + line("a b"), "text\n\n" + line("a+b"), "text\n\n" + line("a\u2003b"), "text\n\n" + line("a\u0085b"),
        "text\n\n" + line(blob=b""), "text\n\n" + line(blob=bytes(4)), "text\n\n— n \n", "text\n\n— n\n", "text\n\n— n AAAA\n",
        "text\n\n— n AAAAAAAAAAB=\n", "text\n\n" + line().replace("\n", " \n"),
        "text\r\n\r\n" + line(), "te\x00xt\n\n" + line(), "te\txt\n\n" + line(), "te\x0bxt\n\n" + line(), "te\x1fxt\n\n" + line(),
        "te\ud800xt\n\n" + line(), "text\n\n" + line("\udfff"),
    ],
    ids=ascii,
)  # fmt: skip
def test_what_is_not_a_note_is_refused(data: str) -> None:
    with pytest.raises(FormatError):
        parse_note(data)


def test_notes_that_are_not_utf8_are_refused() -> None:
    for spoiled in (b"\xff", b"\xc3\n", b"\xed\xa0\x80", b"\xc0\x8a"):
        with pytest.raises(FormatError, match="UTF-8"):
            parse_note(b"text" + spoiled + b"\n\n" + line().encode())


def test_the_text_ends_at_the_last_empty_line() -> None:
    note = parse_note("one\n\ntwo\n\n\n" + line() + line("m"))
    assert note.text == "one\n\ntwo\n\n"
    assert [signature.name for signature in note.signatures] == ["n", "m"]
    quoted = parse_note("text\n\n" + line("inner") + "\n" + line("outer"))
    assert [signature.name for signature in quoted.signatures] == ["outer"]
    assert quoted.text == "text\n\n" + line("inner")


def test_limits() -> None:
    lines = [line(f"n{number}") for number in range(MAX_SIGNATURES + 1)]
    assert len(parse_note("text\n\n" + "".join(lines[:MAX_SIGNATURES])).signatures) == MAX_SIGNATURES
    with pytest.raises(FormatError, match="101 signature lines"):
        parse_note("text\n\n" + "".join(lines))
    room = MAX_NOTE - len("\n\n" + line())
    assert len(parse_note("x" * room + "\n\n" + line()).text) == room + 1
    with pytest.raises(FormatError, match="at most"):
        parse_note("x" * (room + 1) + "\n\n" + line())


@given(st.text(max_size=60), st.lists(st.tuples(st.text(max_size=8), st.binary(max_size=80)), max_size=4))
def test_notes_round_trip(text: str, signatures: list[tuple[str, bytes]]) -> None:
    lines = tuple(SignatureLine(name, blob[:4], blob[4:]) for name, blob in signatures)
    note = Note(text + "\n", lines)
    try:
        parsed = parse_note(str(note))
    except FormatError:
        return
    assert str(parsed) == str(note)
    assert parse_note(str(parsed).encode()) == parsed


@given(st.text("ab\n— +AQ=é\t", max_size=60))
def test_what_parses_formats_to_the_same_text(data: str) -> None:
    for candidate in (data, f"{data}\n\n{line()}", f"text\n\n{data}\n"):
        try:
            note = parse_note(candidate)
        except FormatError:
            continue
        assert str(note) == candidate


# --- signatures ---------------------------------------------------------------------------------------------------------


def test_unknown_lines_are_ignored_and_known_ones_must_verify() -> None:
    other = SigningKey("other.example", b"o" * 32)
    namesake = SigningKey(KEY.vkey.name, b"n" * 32)
    good = KEY.sign("text\n")
    bad = SignatureLine(good.name, good.key_id, other.sign("text\n").signature)
    keys = [KEY.vkey, other.vkey]
    assert verify_note(Note("text\n", (good,)), keys) == [KEY.vkey]
    assert verify_note(Note("text\n", (namesake.sign("text\n"), good)), keys) == [KEY.vkey]
    assert verify_note(Note("text\n", (other.sign("text\n"), good)), keys) == [other.vkey, KEY.vkey]
    for signatures in ((bad,), (other.sign("text\n"), bad), (bad, other.sign("text\n"))):
        with pytest.raises(BadSignature, match="does not verify"):
            verify_note(Note("text\n", signatures), keys)
    for signatures in ((), (namesake.sign("text\n"),), (SignatureLine("other.example", good.key_id, good.signature),)):
        with pytest.raises(BadSignature, match="not signed by a known key"):
            verify_note(Note("text\n", signatures), keys)
    with pytest.raises(BadSignature):
        verify_note(Note("text\n", (good,)), [])


def test_repeated_lines() -> None:
    """Unknown keys are ignored however often they stand there; of a known key the first line decides, and counts once."""
    good, other = KEY.sign("text\n"), SigningKey("other.example", b"o" * 32)
    bad = SignatureLine(good.name, good.key_id, other.sign("text\n").signature)
    witness = SignatureLine("witness.example", b"wwww", bytes(72))
    later = SignatureLine("witness.example", b"wwww", b"\x01" * 72)
    for lines in ((witness, witness, good), (good, witness, later), (good, good), (good, bad), (good, witness, good)):
        note = Note("text\n", lines)
        assert parse_note(str(note)) == note, "every line stays where it is"
        assert verify_note(note, [KEY.vkey, other.vkey]) == [KEY.vkey]
    for lines in ((bad, good), (witness, bad, good)):
        with pytest.raises(BadSignature, match="does not verify"):
            verify_note(Note("text\n", lines), [KEY.vkey])
    with pytest.raises(BadSignature, match="not signed by a known key"):
        verify_note(Note("text\n", (witness, witness)), [KEY.vkey])


def test_a_signature_has_64_bytes() -> None:
    good = KEY.sign("text\n").signature
    for signature in (b"", good[:-1], good + b"\x00", good[:32], good * 2, bytes(64)):
        with pytest.raises(BadSignature):
            KEY.vkey.verify("text\n", signature)
    KEY.vkey.verify("text\n", good)


def test_a_signature_is_of_one_text() -> None:
    good = KEY.sign("text\n").signature
    for text in ("text", "text\n\n", "Text\n", "", "text\r\n", "\ufefftext\n", "text\ud800\n"):
        with pytest.raises(BadSignature):
            KEY.vkey.verify(text, good)


def test_the_second_form_of_a_signature_is_refused() -> None:
    """S + L is the same number to a careless verifier: two notes for one statement."""
    order = 2**252 + 27742317777372353535851937790883648493
    good = KEY.sign("text\n").signature
    second = good[:32] + (int.from_bytes(good[32:], "little") + order).to_bytes(32, "little")
    with pytest.raises(BadSignature):
        KEY.vkey.verify("text\n", second)


@pytest.mark.parametrize(
    "y",
    [
        0, 1, 2**255 - 20, 2**255 - 19, 2**255 - 18, 2**255 - 1,
        2707385501144840649318225287225658788936804267575313519463743609750303402022,
        55188659117513257062467267217118295137698188065244968500265048394206261417927,
    ],
)  # fmt: skip
@pytest.mark.parametrize("sign", [0, 1])
def test_keys_of_small_order_and_second_spellings_are_refused(y: int, sign: int) -> None:
    public = (y | sign << 255).to_bytes(32, "little")
    with pytest.raises(FormatError, match="small order or not canonical"):
        VerifierKey("name", public)
    vkey = f"name+{key_id_of('name', 1, public).hex()}+{b64(bytes([1]) + public)}"
    with pytest.raises(FormatError, match="small order or not canonical"):
        VerifierKey.parse(vkey)


def test_keys_of_other_lengths_types_and_names_are_refused() -> None:
    public = KEY.vkey.public_key
    for data in (b"", public[:-1], public + b"\x00"):
        with pytest.raises(FormatError, match="32 bytes"):
            VerifierKey("name", data)
    for kind in (0, 2, 3, 4, 5, 6, 255):
        with pytest.raises(FormatError, match="not of type 0x01"):
            VerifierKey.parse(f"name+{key_id_of('name', kind, public).hex()}+{b64(bytes([kind]) + public)}")
    for name in ("", " ", "a b", "a+b", "a\n", "\ta", "a\u00a0", "\u2028", "a\x00", "a\x7f\x1f", "\ud800"):
        assert not is_key_name(name)
        with pytest.raises(FormatError, match="not a key name"):
            VerifierKey(name, public)
    for name in ("a", "example.com/foo", "é", "a/b?c=d&e#f", "\U0001f511", "-" * 255):
        assert is_key_name(name)
        assert VerifierKey.parse(str(VerifierKey(name, public))).name == name


def test_a_key_that_is_no_point_of_the_curve_verifies_nothing() -> None:
    rng = random.Random(25519)
    for _ in range(64):  # about half of all 32-byte strings are no point
        key = VerifierKey("name", rng.randbytes(32)[:31] + b"\x12")
        with pytest.raises(BadSignature):
            key.verify("text\n", bytes(64))


@given(st.binary(min_size=32, max_size=32), st.text(min_size=1, max_size=20))
def test_keys_round_trip(seed: bytes, name: str) -> None:
    try:
        key = SigningKey(name, seed)
    except MunimentError:
        assert not is_key_name(name)
        return
    assert SigningKey.parse(key.reveal()).reveal() == key.reveal()
    assert VerifierKey.parse(str(key.vkey)) == key.vkey
    assert verify_note(Note("text\n", (key.sign("text\n"),)), [key.vkey]) == [key.vkey]


def test_a_signing_key_does_not_show_itself() -> None:
    secret = KEY.reveal().split("+", 4)[4]
    shown = f"{KEY!r} {KEY} {[KEY]} {KEY.vkey}"
    assert not any(secret[at : at + 8] in shown for at in range(len(secret) - 7))
    assert bytes(range(32)).hex() not in shown
    assert SigningKey.generate("name").reveal() != SigningKey.generate("name").reveal()
    with pytest.raises(AssertionError, match="ends in a newline"):
        KEY.sign("text")
