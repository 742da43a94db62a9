"""Making logs, through every crash and every wrong combination of files, and opening them in a running server."""

from __future__ import annotations

import asyncio
import itertools
import json
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from muniment.hashing import EMPTY_ROOT, RootHash
from muniment.note import SigningKey
from muniment.policy import Policy
from muniment_server.access.keys import create_api_key, digest_of_key
from muniment_server.errors import Refused, SettingsError, SetupError, StoreUnavailable
from muniment_server.instance import create as creation
from muniment_server.instance import registry as module
from muniment_server.instance.create import create_log
from muniment_server.instance.files import read_key
from muniment_server.instance.registry import Registry
from muniment_server.read.flow import run
from muniment_server.settings import Settings
from muniment_server.storage import Store
from muniment_server.storage.catalog import LogRow
from muniment_server.storage.log import Head
from muniment_server.storage.open import open_store
from muniment_server.storage.sqlite.append import SqliteAppend
from muniment_server.telemetry import Metrics
from muniment_server.web.problems import CODES
from muniment_server.write.guard import Guard
from tests.service.audit import audit
from tests.service.faulty import Fault, Faulty
from tests.service.rig import NOW, Bench, Rig, lift_guard, raw


class Crash(BaseException):
    """The process ends here."""


@dataclass
class DataFolder:
    """A data folder on a rig."""

    rig: Rig
    settings: Settings

    async def create(
        self,
        name: str = "log",
        origin: str | None = None,
        kind: str = "event",
        store: Store | None = None,
        **more: bool,
    ) -> SigningKey:
        return await create_log(
            self.settings, store or self.rig.store, name, origin or f"example.com/{name}", kind, **more
        )

    async def bench(self, name: str = "log") -> Bench:
        (row,) = [row for row in await self.rig.store.catalog.logs() if row.name == name]
        return Bench(self.rig, row, read_key(self.settings.key_file(name)), Guard(self.settings.guard_file(name)))

    def files(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.settings.data)): path.read_bytes()
            for path in self.settings.data.rglob("*")
            if path.is_file()
        }

    async def check(self, name: str = "log", kind: str = "event", *, public: bool = True) -> None:
        """Check that a log is finished: genesis, first checkpoint, policy, key and guard."""
        bench = await self.bench(name)
        (genesis, *_) = await audit(bench)
        value = json.loads(genesis)
        assert value.pop("logged_at").endswith("Z")
        assert value == {
            "typ": "muniment/genesis@v1",
            "kind": kind,
            "origin": bench.row.origin,
            "vkeys": [str(bench.key.vkey)],
        }
        published = await self.rig.store.checkpoints.checkpoints(bench.log_id, 0, 1)
        assert [found.size for found in published] == [1]
        Policy.read(self.settings.policy).verify(published[0].note)
        (alone,) = Policy.read(self.settings.policy_file(name)).logs
        assert alone.vkey == bench.key.vkey, "its own policy trusts this log and no other"
        assert stat.S_IMODE(self.settings.key_file(name).stat().st_mode) == 0o600
        assert bench.row.public is public
        assert not [name for name in self.files() if ".tmp" in name or "/." in name or name.startswith(".")]


@pytest.fixture
def instance(rig: Rig, tmp_path: Path) -> DataFolder:
    return DataFolder(rig, Settings(data=tmp_path / "instance"))


async def refused(awaitable: Any, *words: str) -> str:
    with pytest.raises(SetupError) as caught:
        await awaitable
    for word in words:
        assert word in str(caught.value)
    return str(caught.value)


# --- making a log -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["event", "raw"])
async def test_a_log_is_made_whole(instance: DataFolder, kind: str):
    key = await instance.create(kind=kind)
    await instance.check(kind=kind)
    assert key.vkey == (await instance.bench()).key.vkey
    assert set(instance.files()) == {"keys/log.key", "guard/log.guard", "policies/log.policy", "policy"}
    text = instance.settings.key_file("log").read_text()
    assert text.startswith("PRIVATE+KEY+example.com/log+")
    assert text.endswith("\n")
    assert stat.S_IMODE((instance.settings.data / "keys").stat().st_mode) == 0o700


async def test_making_it_again_changes_nothing(instance: DataFolder):
    first = await instance.create()
    files, rows = instance.files(), await instance.rig.dump()
    again = await instance.create()
    assert again.vkey == first.vkey
    assert instance.files() == files
    after = await instance.rig.dump()
    assert {table: found for table, found in after.items() if table != "heads"} == {
        table: found for table, found in rows.items() if table != "heads"
    }
    await instance.check()


async def test_a_policy_of_the_log_alone_is_made_later_too(instance: DataFolder):
    """Where an earlier release made the log, or the file was lost; and it stands before the joint one."""
    await instance.create()
    instance.settings.policy_file("log").unlink()
    await instance.create()
    await instance.check()


async def test_what_may_be_chosen_is_kept(instance: DataFolder):
    await instance.create("a", public=False, open_payloads=True)
    row = (await instance.bench("a")).row
    assert (row.public, row.open) == (False, True)
    await instance.check("a", public=False)


async def test_the_policy_grows_by_a_line_for_each_log(instance: DataFolder):
    seen: list[str] = []
    for number in range(4):
        key = await instance.create(f"log-{number}")
        lines = instance.settings.policy.read_text().splitlines()
        assert lines == [*seen, f"log {key.vkey}", "quorum none"]
        seen = lines[:-1]
    assert [str(log.vkey) for log in Policy.read(instance.settings.policy).logs] == [line[4:] for line in seen]
    assert stat.S_IMODE(instance.settings.policy.stat().st_mode) == 0o644


async def test_what_the_operator_wrote_into_the_policy_stays(instance: DataFolder):
    await instance.create("a")
    first = instance.settings.policy.read_bytes().splitlines()[0]
    mine = (
        b"# the log of caf\xe9 \xe2\x80\xa8log\n"
        + first
        + b" https://example.com/a\n\n# nobody yet\xc2\x85\nquorum none\n"
    )
    instance.settings.policy.write_bytes(mine)
    key = await instance.create("b")
    added = instance.settings.policy.read_bytes()
    assert added == mine.replace(b"/a\n\n", f"/a\nlog {key.vkey}\n\n".encode())
    await instance.create("b")
    assert instance.settings.policy.read_bytes() == added


async def test_racing_makers_of_one_log_make_one(instance: DataFolder):
    stores = [instance.rig.store, await instance.rig.open()]
    keys = await asyncio.gather(*(instance.create(store=stores[n % 2]) for n in range(4)))
    assert len({str(key.vkey) for key in keys}) == 1
    await instance.check()
    assert len(Policy.read(instance.settings.policy).logs) == 1


async def test_racing_makers_of_many_logs_make_them_all(instance: DataFolder):
    stores = [instance.rig.store, await instance.rig.open()]
    keys = await asyncio.gather(*(instance.create(f"log-{n}", store=stores[n % 2]) for n in range(6)))
    trusted = {str(log.vkey) for log in Policy.read(instance.settings.policy).logs}
    assert trusted == {str(key.vkey) for key in keys}
    for number in range(6):
        await instance.check(f"log-{number}")


# --- crashes ------------------------------------------------------------------------------------------------------------


def _crash_in(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, *, after: bool) -> None:
    real = getattr(owner, name)

    def crash(*args: Any, **kwargs: Any) -> Any:
        if after:
            real(*args, **kwargs)
        raise Crash

    monkeypatch.setattr(owner, name, crash)


STEPS: dict[str, Callable[[pytest.MonkeyPatch, Faulty], None]] = {
    "before anything": lambda patch, store: _crash_in(patch, Guard, "create", after=False),
    "guard made, no key": lambda patch, store: _crash_in(patch, Guard, "create", after=True),
    "key made, no row": lambda patch, store: store.plan("create_log", Fault(Crash())),
    "row made, no genesis": lambda patch, store: store.plan("create_log", Fault(Crash(), after=True)),
    "fenced, no genesis": lambda patch, store: store.plan("fence", Fault(Crash(), after=True)),
    "genesis sent": lambda patch, store: store.plan("append", Fault(StoreUnavailable("test"))),
    "genesis stored, not signed": lambda patch, store: _crash_in(patch, Guard, "swap", after=False),
    "genesis guarded, not signed": lambda patch, store: _crash_in(patch, Guard, "swap", after=True),
    "signed, not published": lambda patch, store: store.plan("publish", *[Fault(StoreUnavailable("test"))] * 9),
    "published, no policy": lambda patch, store: _crash_in(patch, creation, "add_to_policies", after=False),
    "all done but the answer": lambda patch, store: _crash_in(patch, creation, "add_to_policies", after=True),
}


@pytest.mark.parametrize("kind", ["event", "raw"])
async def test_a_log_that_a_crash_interrupted_twice_is_finished(
    instance: DataFolder, kind: str, monkeypatch: pytest.MonkeyPatch
):
    """Every pair of steps to crash at; the third run finishes, and what the first one made is what there is."""
    said = ""
    pairs = itertools.product(STEPS, STEPS)
    if kind == "raw" or instance.rig.database:  # every step once, followed by itself and by the one before it
        pairs = zip([*STEPS, *STEPS], [*STEPS, *list(STEPS)[-1:], *list(STEPS)[:-1]], strict=True)
    for number, pair in enumerate(pairs):
        name = f"log-{number}"
        for step in pair:
            with monkeypatch.context() as patch:
                faulty = Faulty(instance.rig.store)
                STEPS[step](patch, faulty)
                try:
                    await instance.create(name, kind=kind, store=faulty)
                except (Crash, Exception) as error:
                    said += repr(error)
                await _end_tasks()
        await instance.create(name, kind=kind)
        await instance.check(name, kind=kind)
    assert "PRIVATE+KEY+example" not in said
    policy = Policy.read(instance.settings.policy)
    assert len({str(log.vkey) for log in policy.logs}) == len(policy.logs)


async def _end_tasks() -> None:
    """A crash takes the tasks of its process with it."""
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        if task.get_name().split()[0] in ("batcher", "publisher", "housekeeper"):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


# --- what does not fit together -----------------------------------------------------------------------------------------


def used(instance: DataFolder) -> None:
    """Let the guard say that something was signed."""
    lift_guard(instance.settings.guard_file("log"), 3, RootHash(bytes(32)))


def new_guard(instance: DataFolder, origin: str = "example.com/log", key_id: bytes | None = None) -> None:
    path = instance.settings.guard_file("log")
    path.unlink(missing_ok=True)
    Guard(path).create(origin, key_id or read_key(instance.settings.key_file("log")).vkey.key_id)


async def forget_row(instance: DataFolder) -> None:
    """Empty the database, as if another one had been put in its place."""
    tables = ("checkpoints", "idempotency", "payloads", "tiles", "entries", "heads", "logs")
    if instance.rig.database:
        off = [f"ALTER TABLE {table} DISABLE TRIGGER ALL" for table in tables]
    else:
        rows = await instance.rig.sql("SELECT name FROM sqlite_schema WHERE type = 'trigger'")
        off = [f"DROP TRIGGER {name}" for (name,) in rows]
    statements = (*off, *(f"DELETE FROM {table}" for table in tables), "SELECT 1")
    try:
        await instance.rig.sql(*statements)
    except asyncpg.DeadlockDetectedError:  # with a session of the log that is being closed, which has its tables too
        await instance.rig.sql(*statements)


async def nothing(instance: DataFolder) -> None:
    pass


# what is done to the files of a finished log, whether its row goes too, and what the message must say
MISFITS: dict[str, tuple[Callable[[DataFolder], object], bool, str]] = {
    "no key": (lambda i: i.settings.key_file("log").unlink(), False, "key"),
    "no key and no row": (lambda i: i.settings.key_file("log").unlink(), True, "key"),
    "no guard": (lambda i: i.settings.guard_file("log").unlink(), False, "guard_missing"),
    "no guard and no row": (lambda i: i.settings.guard_file("log").unlink(), True, "guard_missing"),
    "no row": (lambda i: None, True, "database_missing"),
    "neither key nor guard": (
        lambda i: (i.settings.key_file("log").unlink(), i.settings.guard_file("log").unlink()), False, "key"),
    "a key that is none": (lambda i: i.settings.key_file("log").write_text("PRIVATE+KEY+nonsense"), False, "signing key"),
    "an empty key": (lambda i: i.settings.key_file("log").write_text(""), False, "signing key"),
    "the key of another origin": (
        lambda i: i.settings.key_file("log").write_text(SigningKey.generate("example.com/b").reveal()), False, "example.com/b"),
    "another key": (
        lambda i: i.settings.key_file("log").write_text(SigningKey.generate("example.com/log").reveal()), False, "guard_foreign"),
    "another key and no row": (
        lambda i: i.settings.key_file("log").write_text(SigningKey.generate("example.com/log").reveal()), True, "guard_foreign"),
    "a new guard": (new_guard, False, "guard_foreign"),
    "a new guard of another log": (lambda i: new_guard(i, "example.com/b"), False, "guard_foreign"),
    "a new guard of another log, no row": (lambda i: new_guard(i, "example.com/b"), True, "guard_foreign"),
    "a new guard of another key, no row": (lambda i: new_guard(i, key_id=b"abcd"), True, "guard_foreign"),
    "a guard that is none": (lambda i: i.settings.guard_file("log").write_text("x"), False, "guard_unreadable"),
    "a guard ahead of the database": (used, False, "database_behind"),
    "a policy that is none": (lambda i: i.settings.policy.write_text("log example.com/log\n"), False, "policy"),
    "a policy that is no text": (lambda i: i.settings.policy.write_bytes(b"\xff"), False, "policy"),
}  # fmt: skip


@pytest.mark.parametrize("misfit", MISFITS)
async def test_what_does_not_fit_together_is_refused_and_left_alone(instance: DataFolder, misfit: str):
    spoil, forget, word = MISFITS[misfit]
    await instance.create()
    if forget:
        await forget_row(instance)
    spoil(instance)
    files, rows = instance.files(), await instance.rig.dump()
    message = await refused(instance.create(), word)
    assert "PRIVATE+KEY+example" not in message
    assert instance.files() == files
    assert await instance.rig.dump() == rows


@pytest.mark.parametrize(
    ("name", "origin", "kind", "word"),
    [
        ("log", "example.com/other", "event", "never change"),
        ("log", "example.com/log", "raw", "never change"),
        ("other", "example.com/log", "event", "used once"),
    ],
)
async def test_names_and_origins_belong_to_one_log(instance: DataFolder, name: str, origin: str, kind: str, word: str):
    await instance.create()
    files, rows = instance.files(), await instance.rig.dump()
    await refused(instance.create(name, origin, kind), word)
    assert instance.files() == files
    assert await instance.rig.dump() == rows


BAD_NAMES = ["", "-a", "A", "a_b", "a.b", "a/b", "../a", "a b", "ä", "a\n", "a" * 64, "²"]
BAD_ORIGINS = [" ", "a b", "a+b", "a\tb", "a\n", "a\x7f\x00", "x" * 256, "ü" * 128, "a\u00a0b", "a\u2003b"]
GOOD_NAMES = ["a", "0", "a-", "a--b", "a" * 63]
GOOD_ORIGINS = ["x", "example.com/log", "x" * 255, "ünïcode/日本", "a,b;c|d"]


async def test_names_and_origins_that_cannot_be_make_nothing(instance: DataFolder):
    for name in BAD_NAMES:
        await refused(create_log(instance.settings, instance.rig.store, name, "example.com/x", "event"))
    for origin in ["", *BAD_ORIGINS]:
        await refused(create_log(instance.settings, instance.rig.store, "name", origin, "event"))
    assert instance.files() == {}
    assert await instance.rig.store.catalog.logs() == []


async def test_names_and_origins_that_can_be(instance: DataFolder):
    for name in GOOD_NAMES:
        await instance.create(name)
    for number, origin in enumerate(GOOD_ORIGINS):
        await instance.create(f"n{number}", origin)
        await instance.check(f"n{number}")


async def test_a_database_that_does_not_answer_is_no_reason_to_make_files(instance: DataFolder):
    faulty = Faulty(instance.rig.store)
    faulty.plan("logs", Fault(StoreUnavailable("test")))
    with pytest.raises(StoreUnavailable):
        await instance.create(store=faulty)
    assert instance.files() == {}


# --- secrets ------------------------------------------------------------------------------------------------------------


async def test_keys_never_show(
    instance: DataFolder, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    key = await instance.create()
    secret = key.reveal().split("+", 4)[4]  # base64 may hold, and end with, a plus sign itself
    assert len(secret) == 44
    hexed = key._seed.hex()
    shown = [str(key), repr(key), f"{key}", repr([key]), repr(await instance.bench())]
    async with opened(instance) as registry:
        log = await registry.get("log")
        shown += [
            repr(registry),
            repr(log),
            repr(log.sequencer),
            repr(vars(log)),
            repr(vars(log.sequencer)),
            repr(log.settings),
        ]
    await new_guarded_refusal(instance, shown)
    output = capfd.readouterr()
    for text in (*shown, output.out, output.err, caplog.text, json.dumps(repr(await instance.rig.dump()))):
        assert secret[:20] not in text
        assert hexed not in text
        assert "PRIVATE+KEY+example" not in text


async def new_guarded_refusal(instance: DataFolder, shown: list[str]) -> None:
    new_guard(instance)
    async with opened(instance) as registry:  # logs its refusal
        log = await registry.get("log")
        shown.append(str(log.sequencer.refusal))
    path = instance.settings.key_file("log")
    text = path.read_text()
    for bad in (text[:-5], text.replace("PRIVATE", "private"), text + "x", text.replace("+KEY+", "+KEY"), "ü" + text):
        path.write_text(bad)
        with pytest.raises(SetupError) as caught:
            read_key(path)
        shown += [str(caught.value), repr(caught.value)]
        assert caught.value.__suppress_context__


# --- a running server ---------------------------------------------------------------------------------------------------


@asynccontextmanager
async def opened(instance: DataFolder, **settings: Any) -> AsyncIterator[Registry]:
    """A running registry on a store of its own."""
    registry = Registry(instance.settings.model_copy(update=settings), await instance.rig.open(), Metrics())
    await registry.open()
    try:
        yield registry
    finally:
        await registry.close()


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a registry look for new logs at every call."""
    monkeypatch.setattr(module, "_REFRESH_SECONDS", -1.0)


@pytest.mark.usefixtures("at_once")
async def test_a_new_log_is_found_by_a_running_server(instance: DataFolder):
    await instance.create("a")
    async with opened(instance) as registry:
        assert [log.row.name for log in registry.logs()] == ["a"]
        assert await registry.get("b") is None
        await instance.create("b", kind="raw")
        log = await registry.get("b")
        assert (await log.append(raw(b"x"))).indices == [1]
        assert await registry.get("b") is log
    await audit(await instance.bench("b"))


async def test_unknown_names_do_not_ask_the_database_each_time(instance: DataFolder):
    await instance.create("a")
    async with opened(instance) as registry:
        faulty = Faulty(registry.store)
        registry.store = faulty
        for name in ("b", "c", "../a", "A", ""):
            assert await registry.get(name) is None
        assert faulty.calls == []


@pytest.mark.usefixtures("at_once")
async def test_a_log_that_is_still_being_made_is_not_served(instance: DataFolder):
    """Its first entry is its genesis, whoever would like to be quicker."""
    await instance.create("a")
    async with opened(instance) as registry:
        faulty = Faulty(instance.rig.store)
        faulty.plan("create_log", Fault(Crash(), after=True))
        with pytest.raises(Crash):
            await instance.create("b", store=faulty)
        assert await registry.get("b") is None
        await instance.create("b")
        assert await registry.get("b") is not None
    await instance.check("b")


@pytest.mark.usefixtures("at_once")
async def test_a_log_of_another_instance_spoils_nothing(instance: DataFolder):
    """Its row is in our database, its key is not in our folder: we can read it."""
    await instance.create("a")
    async with opened(instance) as registry:
        bench = await instance.rig.log()
        await bench.extend(b"x")
        assert (await registry.get(bench.row.name)).refusal.code == "key_unreadable"
        assert await registry.get("nobody") is None
        assert await registry.get("a") is not None
        await instance.create("later")
        assert await registry.get("later") is not None


async def test_a_server_without_logs_says_what_to_do(instance: DataFolder):
    store = await instance.rig.open()
    registry = Registry(instance.settings, store, Metrics())
    await refused(registry.open(), "muniment-server init")
    with pytest.raises(StoreUnavailable):
        await store.catalog.logs()  # closed again


@pytest.mark.parametrize("spoil", ["missing", "unreadable", "of another log"])
async def test_without_its_key_a_log_can_be_read(instance: DataFolder, spoil: str):
    await instance.create("a", kind="raw")
    await instance.create("b", kind="raw")
    path = instance.settings.key_file("b")
    if spoil == "missing":
        path.unlink()
    else:
        path.write_text("PRIVATE+KEY" if spoil == "unreadable" else instance.settings.key_file("a").read_text())
    async with opened(instance) as registry:
        log = await registry.get("b")
        assert log.refusal.code == "key_unreadable"
        assert str(path) in str(log.refusal)
        assert (await run(log.proofs.inclusion(0, None))).size == 1
        with pytest.raises(Refused) as caught:
            await log.append(raw(b"x"))
        assert (CODES[caught.value.code][0], caught.value.code) == (503, "key_unreadable")
        assert (await (await registry.get("a")).append(raw(b"x"))).new == 1


async def test_guards_without_a_log_mean_another_database(instance: DataFolder):
    """The key of a log on an empty database would make a second history (Izenpe 2016): nothing is made, nothing is signed."""
    Guard(instance.settings.guard_file("a")).create("example.com/a", b"abcd")
    await refused(Registry(instance.settings, await instance.rig.open(), Metrics()).open(), "database_missing", "'a'")


async def test_a_server_that_only_reads_needs_no_key_and_no_guard(instance: DataFolder):
    await instance.create("a")
    for path in (instance.settings.key_file("a"), instance.settings.guard_file("a")):
        path.rename(path.with_suffix(".away"))
    async with opened(instance, read_only=True) as registry:
        log = await registry.get("a")
        assert (await log.heads.latest()).size == 1
        assert log.sequencer is None


async def test_close_answers_what_was_taken(instance: DataFolder):
    await instance.create("a", kind="raw")
    await instance.create("b", kind="raw")
    async with opened(instance) as registry:
        logs = [await registry.get(name) for name in "ab"]
        tasks = [asyncio.create_task(log.append(raw(b"%d" % n))) for log in logs for n in range(5)]
        await asyncio.sleep(0)
    outcomes = await asyncio.gather(*tasks)
    assert sorted(outcome.indices[0] for outcome in outcomes) == sorted([1, 2, 3, 4, 5] * 2)
    for name in "ab":
        assert len(await audit(await instance.bench(name))) == 6


async def test_the_database_is_chosen_by_its_url(tmp_path: Path):
    with pytest.raises(SettingsError, match="postgresql://"):
        await open_store(Settings(data=tmp_path, database="mysql://db"))
    with pytest.raises(StoreUnavailable):
        await open_store(Settings(data=tmp_path, database="postgres://x@127.0.0.1:1/x"))
    store = await open_store(Settings(data=tmp_path))
    assert isinstance(store.log, SqliteAppend)
    assert (tmp_path / "muniment.sqlite").exists()
    await store.close()


# --- API keys -----------------------------------------------------------------------------------------------------------


async def test_an_api_key_is_stored_without_its_secret(instance: DataFolder):
    await instance.create("a")
    store = instance.rig.store
    token, row = await create_api_key(store.catalog, frozenset({"append", "read"}), "a", "billing")
    other, _ = await create_api_key(store.catalog, frozenset({"read"}), None, "")
    assert token != other
    assert token.startswith("mk_")
    assert len(token) == 3 + 43
    assert await store.catalog.find_key(digest_of_key(token)) == row
    assert (row.scopes, row.log_name, row.label, row.revoked_at) == ({"append", "read"}, "a", "billing", None)
    dump = repr(await instance.rig.dump())
    assert token not in dump
    assert token[3:] not in dump
    assert token not in repr(row)


async def test_scopes_and_logs_that_are_not_there_make_no_key(instance: DataFolder):
    store = instance.rig.store
    await instance.create("a")
    for scopes, log in (
        (frozenset(), None),
        (frozenset({"admin"}), None),
        (frozenset({"read", "write"}), None),
        (frozenset({"read"}), "b"),
    ):
        await refused(create_api_key(store.catalog, scopes, log, ""))
    assert await store.catalog.api_keys() == []


async def test_a_row_that_was_made_by_hand_is_not_enough(instance: DataFolder):
    """Somebody inserts a log row: without its key nobody can make the rest."""
    row = LogRow(0, "log", "example.com/log", "event", True, False, NOW)
    await instance.rig.store.catalog.create_log(row, Head(0, EMPTY_ROOT, 0, 0, "guard"))
    await refused(instance.create(), "key")
    assert instance.files() == {}
