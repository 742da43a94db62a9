"""Generated JSON: any value that RFC 7493 (I-JSON) and the limits of Muniment allow."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import strategies as st

MAX_NUMBER = 2**53 - 1
_NONCHARACTER = re.compile(
    "[\ufdd0-\ufdef" + "".join(chr(plane << 16 | end) for plane in range(17) for end in (0xFFFE, 0xFFFF)) + "]"
)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(
    lambda text: not _NONCHARACTER.search(text)
)
numbers = st.integers(-MAX_NUMBER, MAX_NUMBER) | st.floats(-MAX_NUMBER, MAX_NUMBER)
scalars = st.none() | st.booleans() | numbers | texts
values: st.SearchStrategy[Any] = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=12
)
events = st.dictionaries(texts, values, min_size=1, max_size=6)
number_literals = st.from_regex(
    re.compile(r"\A-?(0|[1-9][0-9]{0,25})(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,4})?\Z", re.ASCII)
)
