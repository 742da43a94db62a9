"""The JSON gate: what it refuses and where, what it makes of numbers, and that its canonical form is RFC 8785."""

from __future__ import annotations

import decimal
import json
import math
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Any

import pytest
import rfc8785
from hypothesis import example, given
from hypothesis import strategies as st

from muniment import strictjson
from muniment.errors import EventRefused, FormatError
from muniment.strictjson import _AS_OTHERS_WRITE, _DECODER, MAX_DEPTH, MAX_NUMBER, _checked, _parse_plain
from tests.unit.strategies import number_literals, values


def refusal(data: bytes) -> tuple[str, str]:
    """The code and the pointer with which `data` is refused."""
    with pytest.raises(EventRefused) as caught:
        strictjson.parse(data)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None, "the inner error would be shown too"
    return caught.value.code, caught.value.pointer


INVALID_JSON = [
    b"", b" ", b"\n", b"{", b"}", b"[", b"]", b"{]", b"[}", b"nul", b"True", b"NULL", b"undefined", b"'a'", b"{'a':1}",
    b"{a:1}", b'{"a" 1}', b'{"a":}', b'{"a":1,}', b"[1,]", b"[,1]", b"[1 2]", b'{"a":1 "b":2}', b"1 2", b"{}{}", b"{} x",
    b'"a', b'"\\x41"', b'"\\u12"', b'"\\u12G4"', b'"\\"', b'"a\nb"', b'"a\tb"', b'"\x00"', b'"\x1f"', b"// c\n1",
    b"/**/1", b"1//", b"#1", b"01", b"-01", b"+1", b".5", b"5.", b"-.5", b"1e", b"1e+", b"1.e1", b"0x10", b"1_0", b"--1", b"- 1",
    b"\xef\xbb\xbf{}", b"\x0b1", b"\x0c1", b"1\x0b", b"\xc2\xa01", b"\xe2\x80\xa81", b"\x001", b"1\x00", b"\\u0031",
    b"\xd9\xa1", b"\xef\xbc\x91", b"inf", b"nan", b"+Infinity", b"\x7f",
]  # fmt: skip
INVALID_UTF8 = [
    b"\xff",
    b'"\xc3"',
    b'"\xed\xa0\x80"',
    b'"\xc0\x80"',
    b'"\xf4\x90\x80\x80"',
    b"\xff\xfe1\x00",
    b'"\x80"',
    b"\xfe\xff\x001",
]
INVALID_NUMBERS = [
    (b"NaN", ""),
    (b"Infinity", ""),
    (b"-Infinity", ""),
    (b'{"a":[1,NaN]}', "/a/1"),
    (b"[[-Infinity]]", "/0/0"),
]
OUT_OF_RANGE = [
    b"9007199254740992", b"-9007199254740992", b"9007199254740992.0", b"9007199254740993", b"9.007199254740992e15",
    b"9007199254740991.0000000000000000000000000000001", b"-9007199254740991.0000000000000000000000000000001",
    b"9007199254740991.4", b"9007199254740991.5", b"90071992547409910000000000000001e-16", b"1e16", b"1E400", b"-1e400",
    b"1e999999", b"1e1000000", b"1e9999999", b"-1e99999999999999999999999999", b"1" + b"0" * 4999, b"9" * 5000 + b".5",
    b"18446744073709551616", b"1e-400", b"-1e-400", b"2e-324", b"1e-9999999", b"1e-99999999999999999999999999",
    b"0." + b"0" * 400 + b"1", b"-0." + b"0" * 5000 + b"1", b"0.1e-330", b"1" * 16 + b"e-5000",
]  # fmt: skip
GOOD_NUMBERS = [
    (b"0", 0), (b"-0", 0), (b"-0.0", 0.0), (b"0e5", 0.0), (b"0e-99999999999999999999999", 0.0), (b"0.0e99999999999999999999999", 0.0),
    (b"0e400", 0.0), (b"0." + b"0" * 5000, 0.0), (b"1E2", 100), (b"1e+2", 100), (b"1.0", 1), (b"10e-1", 1), (b"1.5", 1.5),
    (b"5e-324", 5e-324), (b"3e-324", 5e-324), (b"2.2250738585072014e-308", 2.2250738585072014e-308), (b"0.1", 0.1),
    (b"9007199254740991", MAX_NUMBER), (b"-9007199254740991", -MAX_NUMBER), (b"9007199254740991.0", MAX_NUMBER),
    (b"9.007199254740991e15", MAX_NUMBER), (b"90071992547409910e-1", MAX_NUMBER), (b"9007199254740990.9", MAX_NUMBER),
    (b"9007199254740990.6", MAX_NUMBER), (b"999999999999999", 999999999999999), (b"1000000000000000", 10**15),
    (b"-99999999999999", -(10**14) + 1), (b"1" + b"0" * 15, 10**15), (b"1" * 16 + b"e-5", 11111111111.11111),
    (b"0.1" + b"0" * 5000, 0.1),
]  # fmt: skip


@pytest.mark.parametrize("data", INVALID_JSON)
def test_invalid_json(data: bytes) -> None:
    assert refusal(data) == ("invalid_json", "")
    assert refusal(b'{"a":' + data + b"}")[0] == "invalid_json"


@pytest.mark.parametrize("data", INVALID_UTF8)
def test_invalid_utf8(data: bytes) -> None:
    assert refusal(data) == ("invalid_utf8", "")


@pytest.mark.parametrize(("data", "pointer"), INVALID_NUMBERS)
def test_invalid_numbers(data: bytes, pointer: str) -> None:
    assert refusal(data) == ("invalid_number", pointer)


@pytest.mark.parametrize("literal", OUT_OF_RANGE, ids=lambda literal: literal[:40].decode())
def test_numbers_out_of_range(literal: bytes) -> None:
    assert refusal(literal) == ("number_range", "")
    assert refusal(b'{"a":[0,{"b/c":' + literal + b"}]}") == ("number_range", "/a/1/b~1c")


@pytest.mark.parametrize(("literal", "value"), GOOD_NUMBERS, ids=lambda value: str(value)[:40])
def test_numbers_in_range(literal: bytes, value: float) -> None:
    assert strictjson.parse(literal) == value
    assert strictjson.canonical(strictjson.parse(literal)) == strictjson.canonical(value)


@given(number_literals)
@example("9007199254740991." + "0" * 40 + "1")
@example("900719925474099150e-2")
def test_numbers_are_judged_by_their_exact_value(literal: str) -> None:
    with decimal.localcontext() as context:
        context.prec, context.Emax, context.Emin = 200, 10**6, -(10**6)
        exact = Decimal(literal)
        beyond = abs(exact) > MAX_NUMBER or (exact != 0 and float(literal) == 0)
    if beyond:
        assert refusal(literal.encode())[0] == "number_range"
    else:
        value = strictjson.parse(literal.encode())
        assert value == float(literal)
        assert isinstance(value, int) is literal.removeprefix("-").isdigit()
        assert not isinstance(value, int) or value == exact


def test_the_callers_decimal_context_changes_nothing() -> None:
    with decimal.localcontext() as context:
        context.prec, context.Emax, context.Emin = 3, 5, -5
        for literal, value in GOOD_NUMBERS:
            assert strictjson.parse(literal) == value
        for literal in OUT_OF_RANGE:
            assert refusal(literal) == ("number_range", "")


@pytest.mark.parametrize(
    ("data", "pointer"),
    [
        (b'{"a":1,"a":1}', "/a"), (b'{"a":1,"b":2,"a":1}', "/a"), (b'{"a":1,"\\u0061":2}', "/a"), (b'{"":1,"":2}', "/"),
        (b'[0,{"x":{"y":1,"y":2}}]', "/1/x/y"), (b'{"a/b~c":1,"a/b~c":2}', "/a~1b~0c"), ('{"é":1,"\\u00e9":2}'.encode(), "/é"),
        ('{"\U0001f600":1,"\\ud83d\\ude00":2}'.encode(), "/\U0001f600"),
    ],
)  # fmt: skip
def test_duplicate_names(data: bytes, pointer: str) -> None:
    assert refusal(data) == ("duplicate_name", pointer)


def test_names_that_only_look_alike_are_different() -> None:
    assert len(strictjson.parse('{"é":1,"e\u0301":2,"A":3,"a":4,"\u0410":5," a":6}'.encode())) == 6


@pytest.mark.parametrize(
    ("data", "pointer"),
    [
        (b'"\\ud800"', ""), (b'"\\udfff"', ""), (b'{"a":["x","\\udc00"]}', "/a/1"), (b'"\\ude00\\ud83d"', ""),
        (b'"\\ud83dx"', ""), (b'"\\ud83d\\ud83d\\ude00"', ""), (b'{"\\ud800":1}', "/\ufffd"), (b'{"\\ud800":{"b":"\\ud800"}}', "/\ufffd"),
    ],
)  # fmt: skip
def test_lone_surrogates(data: bytes, pointer: str) -> None:
    assert refusal(data) == ("lone_surrogate", pointer)
    assert strictjson.parse(b'"\\ud83d\\ude00"') == "\U0001f600"


@pytest.mark.parametrize(
    "point", [0xFDD0, 0xFDEF, *(plane << 16 | end for plane in range(17) for end in (0xFFFE, 0xFFFF))]
)
def test_noncharacters(point: int) -> None:
    character = chr(point)
    assert refusal(f'["a","x{character}"]'.encode()) == ("noncharacter", "/1")
    assert refusal(f'{{"{character}":1}}'.encode()) == ("noncharacter", f"/{character}")
    assert refusal(json.dumps([character]).encode()) == ("noncharacter", "/0")
    for neighbour in (point - 1, point + 1):
        if neighbour <= 0x10FFFF and chr(neighbour) != "\ufdd1" and neighbour & 0xFFFF not in (0xFFFE, 0xFFFF, 0xFDEE):
            assert strictjson.parse(f'"{chr(neighbour)}"'.encode()) == chr(neighbour)


def test_depth() -> None:
    good = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    assert strictjson.canonical(strictjson.parse(good)) == good
    for scalar in (b"1", b"null", b"true", b'"a"', b"1.5"):
        assert strictjson.parse(b"[" * MAX_DEPTH + scalar + b"]" * MAX_DEPTH)
    assert refusal(b"[" + good + b"]") == ("too_deep", "/0" * MAX_DEPTH)
    objects = b'{"a":' * MAX_DEPTH + b"1" + b"}" * MAX_DEPTH
    assert strictjson.parse(objects)
    assert refusal(b'{"a":' + objects + b"}") == ("too_deep", "/a" * MAX_DEPTH)
    for depth in (900, 1_000, 5_000, 100_000):
        assert refusal(b"[" * depth + b"]" * depth)[0] == "too_deep"
        assert refusal(b'{"a":' * depth + b"1" + b"}" * depth)[0] == "too_deep"
        assert refusal(b"[" * depth)[0] in ("too_deep", "invalid_json")


def test_the_pointer_names_the_first_place_in_reading_order() -> None:
    assert refusal(b'{"a":[1,{"b":NaN}],"a":2}') == ("invalid_number", "/a/1/b")
    assert refusal(b'{"a":1,"a":NaN}') == ("duplicate_name", "/a")
    assert str(EventRefused("code", "detail", "/a")) == "detail (at '/a')"
    assert str(EventRefused("code", "detail")) == "detail"


def test_plain_values() -> None:
    data = ' {"t":true,"f":false,"n":null,"s":"\\u0000\\n\\/\u2028\x7f","l":[],"o":{}}\r\n\t'.encode()
    assert strictjson.parse(data) == {"t": True, "f": False, "n": None, "s": "\x00\n/\u2028\x7f", "l": [], "o": {}}
    assert type(strictjson.parse(b"{}")) is dict
    assert type(strictjson.parse(b"[]")) is list


# --- canonical form -----------------------------------------------------------------------------------------------------


@given(values)
def test_parse_reads_what_canonical_writes(value: Any) -> None:
    data = strictjson.canonical(value)
    assert strictjson.parse(data) == value
    assert strictjson.canonical(strictjson.parse(data)) == data
    assert json.loads(data) == value


@given(values, st.sampled_from([None, 1, "\t"]), st.booleans(), st.booleans())
def test_spelling_does_not_matter(value: Any, indent: int | str | None, ascii_only: bool, sort: bool) -> None:
    data = json.dumps(value, indent=indent, ensure_ascii=ascii_only, sort_keys=sort).encode()
    assert strictjson.canonical(strictjson.parse(data)) == strictjson.canonical(value)


@given(st.floats(-MAX_NUMBER, MAX_NUMBER))
def test_numbers_are_written_as_ecmascript_does(value: float) -> None:
    text = strictjson.canonical(value).decode()
    assert float(text) == value
    digits = text.removeprefix("-").partition("e")[0].replace(".", "").strip("0")
    assert len(digits) <= len(repr(abs(value)).partition("e")[0].replace(".", "").strip("0"))
    if value:
        assert ("e" in text) is (abs(value) < 1e-6)
    assert text != "-0"
    assert not text.endswith((".0", "."))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (-0.0, "0"), (1.0, "1"), (1e-6, "0.000001"), (1e-7, "1e-7"), (1.5e-10, "1.5e-10"), (5e-324, "5e-324"),
        (1e15, "1000000000000000"), (123456789012345.6, "123456789012345.6"), (-1e-7, "-1e-7"), (4.50, "4.5"), (2e-3, "0.002"),
        (1e-27, "1e-27"), (333333333.33333329, "333333333.3333333"), (100.0, "100"), (True, "true"), (None, "null"),
        ("\u20ac$\x0f\nA'B\"\\\\\"/", '"\u20ac$\\u000f\\nA\'B\\"\\\\\\\\\\"/"'), ("\x7f\u2028", '"\x7f\u2028"'), ("\b\t\n\f\r", '"\\b\\t\\n\\f\\r"'),
        ({"\U0001f600": 1, "\ue000": 2}, '{"\U0001f600":1,"\ue000":2}'), ({"b": 1, "a": [2, {}]}, '{"a":[2,{}],"b":1}'),
        ({"": 1, "\n": 2, "1": 3, "A": 4, "a": 5, "é": 6}, '{"":1,"\\n":2,"1":3,"A":4,"a":5,"é":6}'),
    ],
)  # fmt: skip
def test_known_canonical_forms(value: Any, text: str) -> None:
    assert strictjson.canonical(value) == text.encode()


class Colour(Enum):
    RED = 1


class Small(IntEnum):
    ONE = 1


@pytest.mark.parametrize(
    "value",
    [
        {1: 2}, {None: 1}, {"a": 1, 2: 3}, {b"a": 1}, {("a",): 1}, {1}, b"bytes", bytearray(b"x"), Decimal(1), object(), math.nan,
        math.inf, -math.inf, 2**53, -(2**53), 10**400, "\ud800", {"\udfff": 1}, ["\ud800"], 1j, range(3), Colour.RED, Ellipsis,
        iter([]), strictjson,
    ],
    ids=lambda value: type(value).__name__,  # not repr: it may hold an address
)  # fmt: skip
def test_values_without_a_canonical_form_are_refused(value: Any) -> None:
    for candidate in (value, [value], {"a": {"b": value}}):
        with pytest.raises(EventRefused) as caught:
            strictjson.canonical(candidate)
        assert caught.value.code == "invalid_json"


def test_endless_values_are_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(EventRefused) as caught:
        strictjson.canonical(endless)
    assert caught.value.code == "too_deep"


def test_python_values_become_what_json_has_for_them() -> None:
    assert strictjson.canonical({"a": (1, 2), "b": Small.ONE}) == b'{"a":[1,2],"b":1}'


def test_pointers_escape_as_rfc_6901_says() -> None:
    assert [strictjson.escape(name) for name in ("", "a/b", "m~n", "~1", " ")] == ["", "a~1b", "m~0n", "~01", " "]


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-MAX_NUMBER - 2, MAX_NUMBER + 2)
    | st.text()
    | st.text(alphabet=st.characters(max_codepoint=127)),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text(), inner) | st.dictionaries(st.text(alphabet='aAé~\x7f"_'), inner)
    ),
    max_leaves=12,
)


@given(PLAIN)
def test_the_short_way_to_canonical_form_leads_where_the_long_one_does(value: Any):
    try:
        expected = rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, UnicodeError):
        with pytest.raises(EventRefused):
            strictjson.canonical(value)
    else:
        assert strictjson.canonical(value) == expected


def test_every_character_is_escaped_as_rfc_8785_says():
    for low in range(0, 0x3000, 64):
        text = "".join(map(chr, range(low, low + 64)))
        assert strictjson.canonical([text, {"a": text}]) == rfc8785.dumps([text, {"a": text}])


SURPRISES = [
    b'{"a":1,"a":1}',
    b"-0",
    b"1e0",
    b"1.0",
    b"[1,NaN]",
    b'"\\u0061"',
    b'{"b":1,"a":1}',
    b" 1",
    b"1\x00",
    b'{"a":9007199254740992}',
    b"[" * 33 + b"]" * 33,
    b"[" * 9999,
    b'"\x01"',
]


@pytest.mark.parametrize("data", SURPRISES)
def test_what_may_surprise_goes_the_long_way(data: bytes):
    assert _parse_plain(data) is None
    if data != b'{"b":1,"a":1}':  # others write that
        assert _parse_plain(data, _AS_OTHERS_WRITE) is None


@given(PLAIN | st.floats())
def test_a_value_that_is_read_the_short_way_is_the_same(value: Any):
    for text in (
        json.dumps(value),
        json.dumps(value, separators=(",", ":"), sort_keys=True),
        json.dumps(value, separators=(",", ":")),
    ):
        found = _parse_plain(text.encode(), _AS_OTHERS_WRITE)
        if found is not None:
            assert repr(found[0]) == repr(_checked(_DECODER.decode(text), "", 1))
            assert found[1] == rfc8785.dumps(found[0])


@pytest.mark.parametrize("data", [b'{"a":[1,null,true,"\\n\\u0001"],"b":{}}', b'"x"', b"9007199254740991"])
def test_what_is_plain_goes_the_short_way(data: bytes):
    assert _parse_plain(data) == (json.loads(data), data)


@pytest.mark.parametrize(
    "data", [b'{"b":1,"a":{"d":[1,2],"c":"x"}}', b'{"b": 1, "a": {"d": [1, 2], "c": "x, y: z"}}', b"[1, 2]"]
)
def test_what_other_programs_write_goes_the_short_way(data: bytes):
    assert _parse_plain(data, _AS_OTHERS_WRITE) == (json.loads(data), rfc8785.dumps(json.loads(data)))
    assert _parse_plain(data) is None
    with pytest.raises(FormatError):
        strictjson.parse_canonical(data)


@pytest.mark.parametrize(
    "data",
    [
        b'{"a": 1,"b":2}',
        b'{"a": 1, "a": 1}',
        b'{"b": 1, "a": 1, "b": 1}',
        b'{"a" : 1}',
        b'{"a": 1 }',
        b"[1, 2 ]",
        b'{"a": 1}\n',
    ],
)
def test_other_spellings_go_the_long_way(data: bytes):
    assert _parse_plain(data, _AS_OTHERS_WRITE) is None


@given(PLAIN)
def test_a_canonical_form_made_the_short_way_is_one_that_is_read(value: Any):
    found = strictjson.canonical_plain(value)
    if found is not None:
        assert found == strictjson.canonical(strictjson.parse(found)) == rfc8785.dumps(value)


@pytest.mark.parametrize(("text", "at"), [('{"a":"\n"}', 6), ('{"a":"x', 5), ("{", 1)])
def test_where_a_text_ends_to_be_json_is_said_once(text: str, at: int) -> None:
    with pytest.raises(EventRefused, match=rf"not JSON: [^:]*\w at character {at}$") as caught:
        strictjson.parse(text.encode())
    assert "at at" not in str(caught.value)
