"""One spelling per value: whatever Python's own decoders would also take is refused."""

from __future__ import annotations

import base64

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from muniment.encoding import MAX_SIZE, b64, b64url, decode_utf8, parse_b64, parse_b64url, parse_decimal, parse_hex
from muniment.errors import FormatError

BAD_DECIMALS = [
    "", " ", " 1", "1 ", "+1", "-1", "-0", "00", "01", "1_000", "1.0", "1e3", "0x10", "1\n", "\n1", "\u0661\u0662",
    "\uff11", "\u00b2", "\u2460", "1\x00", "9223372036854775808", "18446744073709551616", "9" * 19, "9" * 20, "1" * 5000,
]  # fmt: skip
BAD_BASE64 = [
    "QR==", "QQ", "QQ=", "QQ===", "QQ==\n", "\nQQ==", " QQ==", "QQ== ", "Q Q==", "QQ==QQ==", "====", "=", "A", "QQ==A",
    "-_8=", "QQ\u003d\u003d\u2028", "\uff31QA=", "QUI", "QUJ=", "QQ\x00==", "QQ=\n=",
]  # fmt: skip
BAD_BASE64URL = [
    "QQ==",
    "QQ=",
    "QR",
    "Q",
    "+/8",
    "QQ\n",
    " QQ",
    "Q Q",
    "QUJ",
    "\uff31QA",
    "QQ.",
    "QQ\x00",
    "====",
    "Q" * 5,
]
BAD_HEX = ["", "a", "0g", "AB", "aB", "a b", " ab", "ab ", "ab\n", "0xab", "\uff41b", "\u0661\u0662", "abab"]


@pytest.mark.parametrize("text", BAD_DECIMALS)
def test_decimals_with_another_spelling_are_refused(text: str) -> None:
    with pytest.raises(FormatError):
        parse_decimal(text)


@given(st.integers(0, MAX_SIZE))
@example(0)
@example(MAX_SIZE)
def test_decimals_round_trip(value: int) -> None:
    assert parse_decimal(str(value)) == value


@given(st.text("0123456789+-_ .eE٣\n", max_size=25))
def test_what_parses_as_decimal_is_its_own_spelling(text: str) -> None:
    try:
        value = parse_decimal(text)
    except FormatError:
        return
    assert str(value) == text


@pytest.mark.parametrize("text", BAD_BASE64)
def test_base64_with_another_spelling_is_refused(text: str) -> None:
    with pytest.raises(FormatError):
        parse_b64(text)


@pytest.mark.parametrize("text", BAD_BASE64URL)
def test_base64url_with_another_spelling_is_refused(text: str) -> None:
    with pytest.raises(FormatError):
        parse_b64url(text)


@pytest.mark.parametrize("text", BAD_HEX)
def test_hex_with_another_spelling_is_refused(text: str) -> None:
    with pytest.raises(FormatError):
        parse_hex(text, 1)


@given(st.binary(max_size=80))
def test_bytes_round_trip(data: bytes) -> None:
    assert b64(data) == base64.b64encode(data).decode()
    assert parse_b64(b64(data)) == parse_b64(b64(data), length=len(data)) == data
    assert b64url(data) == base64.urlsafe_b64encode(data).decode().replace("=", "")
    assert parse_b64url(b64url(data)) == parse_b64url(b64url(data), length=len(data)) == data
    assert parse_hex(data.hex(), len(data)) == data
    for parse, text in ((parse_b64, b64(data)), (parse_b64url, b64url(data))):
        with pytest.raises(FormatError, match=f"has {len(data)} bytes, not {len(data) + 1}"):
            parse(text, "value", len(data) + 1)
    with pytest.raises(FormatError):
        parse_hex(data.hex(), len(data) + 1)


@given(st.text("AQR+/-_=\n aé", max_size=12))
def test_what_parses_as_base64_is_its_own_spelling(text: str) -> None:
    for parse, spell in ((parse_b64, b64), (parse_b64url, b64url)):
        try:
            data = parse(text)
        except FormatError:
            continue
        assert spell(data) == text


def test_every_last_character_of_base64_but_the_canonical_one_is_refused() -> None:
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
    accepted = [last for last in alphabet + "+/" if _parses(parse_b64, f"A{last}==")]
    assert accepted == ["A", "Q", "g", "w"]
    accepted = [last for last in alphabet + "-_" if _parses(parse_b64url, f"AA{last}")]
    assert accepted == list("AEIMQUYcgkosw048")


def _parses(parse: object, text: str) -> bool:
    try:
        parse(text)  # type: ignore[operator]
    except FormatError:
        return False
    return True


def test_text_is_utf8() -> None:
    assert decode_utf8("é\u2028\U0001f600".encode()) == "é\u2028\U0001f600"
    for data in (b"\xff", b"a\xc3", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80"):
        with pytest.raises(FormatError, match="not UTF-8 at byte"):
            decode_utf8(data)
