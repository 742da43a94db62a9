"""The elements of a JSON array, one by one, as they are written: the strict reader of events takes each of them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from muniment_server.errors import Refused

_SPACE = b" \t\r\n"  # RFC 8259 section 2
_DEPTH = {b"[": 1, b"{": 1, b"]": -1, b"}": -1}
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[\]{},]', re.DOTALL)


def elements(body: bytes, most: int) -> Iterator[bytes]:
    """Yield the text of each element. One that is longer than `most` bytes ends it, as far as it was read.

    Brackets are counted, not matched, but for the last one: where each element is JSON by itself, so is the array.
    Raises Refused where it is none.
    """
    text = body.strip(_SPACE)
    if text[:1] != b"[":
        raise _no_array("the body is no JSON array")
    depth, start, at = 0, 1, 0
    while token := _TOKEN.search(text, at, start + most + 1):
        kind, at = token[0], token.end()
        if kind == b'"':  # of a string that does not end here
            break
        depth += _DEPTH.get(kind, 0)
        if depth == 0 or (depth == 1 and kind == b","):
            element = text[start : at - 1].strip(_SPACE)
            if element or kind == b"," or start > 1:  # "[]" has none
                yield element
            start = at
        if depth == 0:
            if kind != b"]":
                raise _no_array("the JSON array does not end with ]")
            break
    if depth and len(text) > start + most:
        yield text[start : start + most + 1]
    elif depth or start != len(text):
        raise _no_array("the JSON array does not end where the body does")


def _no_array(detail: str) -> Refused:
    hint = "Send [{...}, {...}], or one event a line with Content-Type: application/x-ndjson."
    return Refused("invalid_json", detail, hint)
