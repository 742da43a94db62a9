"""Text forms of numbers and bytes, each with exactly one spelling.

Python's own decoders accept many spellings of one value (``int("1_0")``, ``b64decode("QR==")``). Two spellings of one
signed value are how verifiers are fooled, so everything here parses by round trip: ``decode(x)`` succeeds only if
``encode(decode(x)) == x``.
"""

from __future__ import annotations

import base64
import binascii
import re

from muniment.errors import FormatError

MAX_SIZE = 2**63 - 1
"""Largest tree size and index anything here accepts (fits a signed 64-bit integer in every database and language)."""

_DECIMAL = re.compile(r"0|[1-9][0-9]{0,18}")


def parse_decimal(text: str, what: str = "number") -> int:
    """Return the value of ASCII decimal `text`, 0 <= value <= 2**63 - 1. Raises FormatError on any other spelling."""
    if not _DECIMAL.fullmatch(text):
        raise FormatError(f"{what} is not a plain decimal: {text[:40]!r}")
    value = int(text)
    if value > MAX_SIZE:
        raise FormatError(f"{what} is larger than 2^63-1: {text}")
    return value


def parse_hex(text: str, length: int, what: str = "hash") -> bytes:
    """Return the `length` bytes spelled by lowercase hex `text`. Raises FormatError."""
    try:
        data = bytes.fromhex(text)  # takes capitals and spaces too
    except ValueError:
        data = b""
    if len(data) != length or data.hex() != text:
        raise FormatError(f"{what} is not {2 * length} lowercase hex digits: {text[:80]!r}")
    return data


_TO_URL = bytes.maketrans(b"+/", b"-_")
_FROM_URL = bytes.maketrans(b"-_", b"+/")


def b64(data: bytes) -> str:
    """Return RFC 4648 section 4 base64 with padding."""
    return base64.b64encode(data).decode()


def parse_b64(text: str, what: str = "base64", length: int | None = None) -> bytes:
    """Return the bytes of canonical padded base64. Raises FormatError, also when `length` is given and differs."""
    try:
        data = binascii.a2b_base64(text.encode("ascii"), strict_mode=True)
    except (ValueError, UnicodeError) as error:
        raise FormatError(f"{what} is not base64: {text[:80]!r}") from error
    return _checked(data, b64(data) == text, text, what, length)


def b64url(data: bytes) -> str:
    """Return RFC 4648 section 5 base64url without padding."""
    return binascii.b2a_base64(data, newline=False).translate(_TO_URL).rstrip(b"=").decode()


def parse_b64url(text: str, what: str = "base64url", length: int | None = None) -> bytes:
    """Return the bytes of canonical unpadded base64url. Raises FormatError, also when `length` is given and differs."""
    try:
        data = binascii.a2b_base64(text.encode("ascii").translate(_FROM_URL) + b"=" * (-len(text) % 4))
    except (ValueError, UnicodeError) as error:
        raise FormatError(f"{what} is not base64url: {text[:80]!r}") from error
    return _checked(data, b64url(data) == text, text, what, length)


def _checked(data: bytes, canonical: bool, text: str, what: str, length: int | None) -> bytes:  # noqa: FBT001 - private
    if not canonical:
        raise FormatError(f"{what} is not in canonical form: {text[:80]!r}")
    if length is not None and len(data) != length:
        raise FormatError(f"{what} has {len(data)} bytes, not {length}")
    return data


def decode_utf8(data: bytes, what: str = "text") -> str:
    """Return `data` as text. Raises FormatError when it is not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{what} is not UTF-8 at byte {error.start}") from error
