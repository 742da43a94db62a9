"""Everyday Python values in events, options of clients, and what their errors carry."""

from __future__ import annotations

import collections
import datetime as dt
import enum
import inspect
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import muniment
from muniment import AsyncClient, Client, Policy, Retries, errors
from muniment._flows.values import event_body
from muniment.client import Options
from muniment.errors import EventRefused, MunimentError, Unreachable
from muniment.state import FileState, MemoryState
from tests.client.colours import Colours
from tests.client.fake_log import URL, FakeLog, answering, edit, lost_after, lost_before

NOON = dt.datetime(2026, 11, 20, 12, tzinfo=dt.UTC)
ID = uuid.UUID("12345678-1234-5678-1234-567812345678")


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "code", "pointer", "remedy"),
    [
        ({"a": Decimal("1.5")}, "invalid_json", "/a", "a Decimal is no JSON value: send str() of it"),
        ({"a": [1, {"b/c": NOON}]}, "invalid_json", "/a/1/b~1c", "send its isoformat()"),
        ({"a": NOON.date()}, "invalid_json", "/a", "isoformat"),
        ({"a": NOON.time()}, "invalid_json", "/a", "isoformat"),
        ({"a": ID}, "invalid_json", "/a", "default=str"),
        ({"a": Colour.RED}, "invalid_json", "/a", "a Colour is no JSON value: send its value"),
        ({"a": {1, 2}}, "invalid_json", "/a", "a sorted list"),
        ({"a": b"x"}, "invalid_json", "/a", "base64"),
        ({"a": Path("x")}, "invalid_json", "/a", "str()"),
        ({"a": {1: "x"}}, "invalid_json", "/a", "the name 1 is a int, not text"),
        ({"a": [float("nan")]}, "invalid_json", "/a/0", "nan is not JSON"),
        ({"a": float("-inf")}, "invalid_json", "/a", "send null or text"),
        ({"a": {"b": 2**53}}, "invalid_json", "/a/b", "send text"),
    ],
)
def test_what_is_no_json_value_is_named_by_its_place(event: Any, code: str, pointer: str, remedy: str) -> None:
    with pytest.raises(EventRefused) as caught:
        event_body(event, None)
    assert (caught.value.code, caught.value.pointer) == (code, pointer)
    assert remedy in caught.value.detail


def test_what_needs_no_conversion() -> None:
    event = {"a": Level.HIGH, "b": (1, 2), "c": collections.OrderedDict(d=1), "e": collections.UserDict(f=[None])}
    assert event_body(event, None) == b'{"a":3,"b":[1,2],"c":{"d":1},"e":{"f":[null]}}'


def encode(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, set):
        return sorted(value, key=str)
    return value.isoformat() if isinstance(value, dt.datetime) else str(value)


def test_a_function_of_the_caller_converts(colours: Colours) -> None:
    log = FakeLog()
    client = colours.client(log, default=encode)
    event = {"at": NOON, "id": ID, "sum": Decimal("1.50"), "colour": Colour.RED, "all": [{1, Colour.RED}], "n": 1}
    wanted = {
        "at": "2026-11-20T12:00:00+00:00",
        "id": str(ID),
        "sum": "1.50",
        "colour": "red",
        "all": [["red", 1]],
        "n": 1,
    }
    wanted["all"] = [[1, "red"]]
    client.append(event)
    list(client.append_many([event, event]))
    assert [log.payloads[index].event for index in (1, 2, 3)] == [wanted] * 3


def test_a_function_that_does_not_convert(colours: Colours) -> None:
    client = colours.client(FakeLog(), default=lambda value: value)
    with pytest.raises(EventRefused) as caught:
        client.append({"a": [Decimal(1)]})
    assert (caught.value.code, caught.value.pointer) == ("too_deep", "/a/0")

    def fail(_: Any) -> Any:
        raise KeyError("the caller's own")

    with pytest.raises(KeyError, match="the caller's own"):
        colours.client(FakeLog(), default=fail).append({"a": Decimal(1)})


async def test_an_asynchronous_source_is_converted_too() -> None:
    async def source() -> Any:
        yield {"a": Decimal(1)}

    log = FakeLog()
    async with AsyncClient(URL, policy=log.policy, transport=log.transport(), default=str) as client:
        assert [receipt.index async for receipt in client.append_many(source())] == [1]
    assert log.payloads[1].event == {"a": "1"}


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"needs a policy.*policy=Policy.read\(path\).*trust_on_first_use"),
        ({"policy": None}, "needs a policy"),
        ({"policy": "log-data/policy"}, r"policy is not a str; give Policy.read\('log-data/policy'\)"),
        ({"policy": Path("p")}, r"give Policy.read\("),
        ({"timout": 3}, "no option 'timout': did you mean timeout?"),
        ({"polcy": 3}, "did you mean policy?"),
        ({"verify": False}, "no option 'verify': there are policy, log"),
        ({"state": "seen.json"}, r"state is not a str; give FileState\('seen.json'\)"),
        ({"timeout": "30"}, "timeout is not a str; give seconds"),
        ({"timeout": None}, "seconds, at most a day"),
        ({"api_key": b"s3cret"}, "api_key is not a bytes; give the key as text"),
        ({"retries": 3}, r"retries is not a int; give Retries\(tries=...\)"),
        ({"default": "str"}, "default is not a str; give a function"),
    ],
)
def test_a_mistake_in_a_program_is_a_type_error(kind: Any, options: dict[str, Any], message: str) -> None:
    given = options if {"policy", "polcy"} & options.keys() or not options else {"policy": FakeLog().policy} | options
    with pytest.raises(TypeError, match=message) as caught:
        kind(URL, **given)
    assert kind.__name__ in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_types_say_that_a_policy_is_required() -> None:
    assert Options.__required_keys__ == {"policy"}
    assert get_type_hints(Options)["policy"] is Policy


def test_states_of_all_kinds_are_taken(tmp_path: Path) -> None:
    for state in (None, MemoryState(), FileState(tmp_path / "s")):
        with Client(URL, policy=FakeLog().policy, state=state) as client:
            assert client.origin == "example.com/log"


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("NO_PROXY", "fe80::/10", "Invalid port"),
        ("ALL_PROXY", "socks5://127.0.0.1:1", "socksio"),
        ("HTTPS_PROXY", "http://[::1", "Invalid port"),
        ("HTTP_PROXY", "http://user:s3cret@host:port", "Invalid port"),
        ("SSL_CERT_FILE", "/missing/certificates.pem", "No such file"),
    ],
)
def test_an_environment_that_cannot_be(
    kind: Any, name: str, value: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the TLS context that all tests share would hide the last one
    monkeypatch.setenv(name, value)
    with pytest.raises(Unreachable, match=f"the environment does not allow connections .*{reason}") as caught:
        kind(URL, policy=FakeLog().policy)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("fault", [lost_before, lost_after, answering(503, "overloaded"), answering(422, "bad")])
@pytest.mark.parametrize("many", [False, True])
def test_an_error_carries_the_key_under_which_it_can_be_repeated(colours: Colours, fault: Any, many: bool) -> None:
    log = FakeLog()
    log.faults = [fault] * 4
    client = colours.client(log)
    with pytest.raises(MunimentError) as caught:
        list(client.append_many([{"a": 1}])) if many else client.append({"a": 1})
    key = caught.value.idempotency_key
    assert key
    assert {request.headers["idempotency-key"] for request in log.requests} == {f'"{key}"'}
    log.faults = []
    assert client.append({"a": 1}, idempotency_key="mine" if many else key).index >= 1
    assert log.size == 2 + (many and fault is lost_after)


def test_an_error_of_checking_carries_it_too(colours: Colours) -> None:
    log = FakeLog()
    client = colours.client(log)
    log.tamper = edit("/entries", lambda value: value.update(index=0))
    with pytest.raises(MunimentError) as caught:
        client.append({"a": 1}, idempotency_key="mine")
    assert (caught.value.idempotency_key, caught.value.receipts) == ("mine", ())
    log.tamper = edit("/entries/batch", lambda value: value.update(receipts=[]))
    with pytest.raises(MunimentError) as caught:
        list(client.append_many([{"a": 1}]))
    assert f'"{caught.value.idempotency_key}"' == log.requests[-1].headers["idempotency-key"]


async def test_a_closed_client_says_so() -> None:
    log = FakeLog()
    client = AsyncClient(URL, policy=log.policy, transport=log.transport())
    await client.aclose()
    with pytest.raises(Unreachable, match="closed"):
        await client.checkpoint()
    blocking = Client(URL, policy=log.policy, transport=log.transport())
    blocking.close()
    with pytest.raises(Unreachable, match="closed"):
        blocking.checkpoint()


# --- both clients, and what the package gives -------------------------------------------------------------------------

OWN = {"close": "aclose"}
"""Where asyncio has a name of its own."""


def public(kind: type) -> dict[str, Any]:
    return {name: value for name, value in inspect.getmembers(kind) if not name.startswith("_")}


def test_both_clients_have_the_same_methods_with_the_same_arguments() -> None:
    blocking = {OWN.get(name, name): value for name, value in public(Client).items()}
    assert blocking.keys() == public(AsyncClient).keys()
    for name, value in public(AsyncClient).items():
        if callable(value) and name != "trust_on_first_use":
            ours, theirs = inspect.signature(value).parameters, inspect.signature(blocking[name]).parameters
            assert list(ours) == list(theirs), name
            assert [one.default for one in ours.values()] == [one.default for one in theirs.values()], name


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_each_method_has_a_text_of_its_own(kind: type) -> None:
    for name, value in public(kind).items():
        text = inspect.getdoc(value) or ""
        assert len(text) > 20, name
        assert "see :meth:`Client" not in text, name


def batches(log: FakeLog) -> list[Any]:
    prepared = [muniment.client.PreparedEntry.of({"n": n}) for n in range(6)]
    return [(prepared[:4], "one"), (prepared[4:], "two")]


def test_batches_under_keys_of_the_caller(colours: Colours) -> None:
    log = FakeLog()
    client = colours.client(log)
    assert [[one.index for one in found] for found in client.append_batches(batches(log))] == [[1, 2, 3, 4], [5, 6]]
    assert [list(one.indices) for one in client.append_without_receipts(batches(log))] == [[1, 2, 3, 4], [5, 6]]
    assert (log.size, set(log.keys)) == (7, {'"one"', '"two"'})


async def test_batches_from_an_asynchronous_source() -> None:
    log = FakeLog()

    async def source() -> Any:
        for batch in batches(log):
            yield batch

    async with AsyncClient(URL, policy=log.policy, transport=log.transport()) as client:
        assert [one.tree_size async for one in client.append_without_receipts(source())] == [5, 7]


def test_errors_and_retries_come_from_the_package() -> None:
    tree = {name for name, value in vars(errors).items() if inspect.isclass(value) and not name.startswith("_")}
    ours = {name for name in tree if issubclass(getattr(errors, name), MunimentError)}
    assert ours <= set(muniment.__all__)
    assert Retries is muniment.client.Retries
    assert all(getattr(muniment, name) is not None for name in muniment.__all__)
    assert muniment.__all__ == sorted(muniment.__all__)
