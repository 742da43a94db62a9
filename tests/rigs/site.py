"""One log, several real servers, and databases that change under them: what rigs of contests and pauses share.

All servers write one trace, and all their answers go to one :class:`Recorder`. :meth:`Site.check` holds everything that any process
signed, published or answered against one history.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from muniment.checkpoint import parse_checkpoint
from muniment.hashing import leaf_hash
from muniment.note import parse_note
from muniment.policy import Policy
from muniment_server.storage import Store
from muniment_server.write.guard import Guard
from tests.live import LiveServer, init, trace_of
from tests.rigs.recorder import Recorder
from tests.rigs.stopping import Board
from tests.rigs.wire import Answer, Lost, Wire
from tests.service.audit import Naive
from tests.tracecheck import Checker

ORIGIN = "example.com/contest"
WHY = {"database_behind", "guard_root", "guard_replaced", "database_replaced"}
"""What a server that is not the winner gives as its reason."""
AGAIN = {"outcome_unknown", "database_unavailable", "guard_locked", "database_damaged"}
"""What it may answer before that, but not for ever: ask again. Answers of two servers, taken together, look like damage."""
SECONDS = 20.0
"""Within this a server that was let go on, or whose database is right again, says what it does."""


class Server:
    """A server of a site. `answered` has every code that it answered an append with; `board` says at which step to stop."""

    def __init__(self, site: Site, live: LiveServer, board: Board) -> None:
        self.site = site
        self.live = live
        self.board = board
        self.answered: Counter[str] = Counter()
        self.still = asyncio.Lock()  # held by who stops the process

    async def ask(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Answer:
        """Send one request on a connection of its own. Raises Lost."""
        wire = Wire()
        try:
            return await wire.ask(self.live.url, method, path, body, headers)
        finally:
            wire.close()

    async def append(self, events: Sequence[dict[str, int]], *, key: str) -> str:
        """Append events in one request, and have every receipt verified; return "signed", "lost" or the code of the problem."""
        body = b"".join(json.dumps(event).encode() + b"\n" for event in events)
        headers = {"Content-Type": "application/x-ndjson", "Idempotency-Key": key}
        try:
            answer = await self.ask("POST", "/entries/batch?receipts=true", body, headers)
        except Lost:
            return self._ended("lost")
        if answer.status not in (200, 201):
            return self._ended(str(answer.json()["code"]))
        value, recorder = answer.json(), self.site.recorder
        recorder.checkpoint(value["checkpoint"])
        indices = [index for low, high in value["indices"] for index in range(low, high)]
        found = [recorder.proved(one, sent).index for one, sent in zip(value.get("receipts", ()), events, strict=False)]
        if found not in ([], indices):
            raise AssertionError(f"entries {indices} were answered with receipts of {found}")
        recorder.acked(key, indices, events)
        return self._ended("signed")

    def _ended(self, how: str) -> str:
        self.answered[how] += 1
        return how

    async def look(self) -> None:
        """Take the checkpoint that it shows, if it shows one."""
        answer = await self.ask("GET", "/checkpoint")
        if answer.status == 200:
            self.site.recorder.checkpoint(answer.body.decode())

    async def verdict(self) -> str:
        """Return "signed" or why not, once it neither waits nor wonders. Raises AssertionError when it never says."""
        async with asyncio.timeout(SECONDS):
            while True:
                how = await self.append([self.site.event()], key=self.site.key())
                if how == "signed":
                    return how
                if how in WHY:
                    await self._says(how)
                    return how
                if how not in AGAIN:
                    raise AssertionError(f"a server neither signs nor says why: {how}: {self.live.stderr()[-2000:]}")
                await asyncio.sleep(0.05)

    async def _says(self, code: str) -> None:
        """Its readiness says the same."""
        ready = (await self.ask("GET", "/readyz")).json()
        if ready["writes"]["default"] or ready["problems"].get("default") not in WHY | {"database_unavailable"}:
            raise AssertionError(f"appends end with {code}, and /readyz says {ready}")

    async def signs_again(self) -> None:
        """Wait until it signs: what was wrong is right again."""
        async with asyncio.timeout(SECONDS):
            while (how := await self.append([self.site.event()], key=self.site.key())) != "signed":
                if how not in AGAIN | WHY:
                    raise AssertionError(f"a server does not come back: {how}: {self.live.stderr()[-2000:]}")
                await asyncio.sleep(0.1)

    def pause(self) -> None:
        """Stop the process where it is."""
        self.live.process.send_signal(signal.SIGSTOP)

    def is_stopped(self) -> bool:
        """Tell whether the process stands still."""
        stat = Path(f"/proc/{self.live.process.pid}/stat").read_text("ascii")
        return stat.rpartition(")")[2].split()[0] == "T"

    def resume(self) -> None:
        """Let it go on."""
        self.live.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it at once."""
        self.live.process.send_signal(signal.SIGKILL)
        self.live.process.wait()


class Site:
    """A log, made in `data` on a database (None: SQLite in that folder). All its servers share the guard of `data`."""

    def __init__(self, data: Path, database: str | None = None) -> None:
        self.data = data
        self.policy: Policy = init(data, database, "event", ORIGIN)
        self.recorder = Recorder(self.policy, ORIGIN)
        self.checker = Checker(trace_of(data), copied=True)
        self.servers: list[Server] = []
        self._numbers = iter(range(1, 10_000_000))

    @property
    def guard(self) -> Path:
        """The guard file."""
        return self.data / "guard" / "default.guard"

    def event(self) -> dict[str, int]:
        """Return an event that nobody has sent yet."""
        return {"n": next(self._numbers)}

    def key(self) -> str:
        """Return an Idempotency-Key that nobody has used yet."""
        return f"key-{next(self._numbers)}"

    def launch(self, data: Path | None = None, database: str | None = None) -> Server:
        """Begin to start a server, which stops itself when its board says so."""
        board = self.data.with_name(f"{self.data.name}-board-{next(self._numbers)}")
        settings = {
            "MUNIMENT_FAILPOINTS": "",
            "MUNIMENT_STOP_AT": str(board),
            "MUNIMENT_SERVER_GUARD_DIR": str(self.guard.parent),
            "MUNIMENT_SERVER_TRACE": str(self.checker.path),
            "MUNIMENT_SERVER_PUBLISH_INTERVAL": "0.1",
        }
        module = "tests.rigs.stopping"
        live = LiveServer(data or self.data, database=database, env=settings, traced=False, module=module)
        self.servers.append(Server(self, live, Board(board)))
        return self.servers[-1]

    async def ready(self) -> None:
        """Wait until all servers serve."""
        for server in self.servers:
            await asyncio.to_thread(server.live.wait)

    @property
    def damaged(self) -> int:
        """How often a server took its database for damaged, for a moment."""
        return sum(server.answered["database_damaged"] for server in self.servers)

    async def check(self, stores: Sequence[Store]) -> None:
        """Check everything that was ever said, and what these databases have. Raises AssertionError or Violated."""
        for server in self.servers:
            if server.live.process.poll() is None:
                await server.look()
        await asyncio.to_thread(self.checker.check)
        for size, root in self.recorder.roots.items():
            self.checker.shown("default", size, root.hex(), "answered with")
        for store in stores:
            await self._check_database(store)
        self.checker.finish()
        # The guard is raised before the signature: its head may be one that is signed a moment later, or by the next
        # writer where this one lost its database in between. `settle` sees to it that it is compared.
        guarded = Guard(self.guard).read()
        self.checker.shown("default", guarded.size, guarded.root.hex(), "guarded")

    async def settle(self) -> None:
        """Check, once a server signs again, that the signed history has all that was shown. Raises Violated."""
        await asyncio.to_thread(self.checker.check)
        self.checker.finish()

    async def _check_database(self, store: Store) -> None:
        (log_id,) = [row.log_id for row in await store.catalog.logs()]
        tree = Naive(await store.reads.leaves(log_id, 0, 10**7))
        for one in await store.checkpoints.checkpoints(log_id, 0, 10**7):
            head = parse_checkpoint(parse_note(one.note).text)
            self.checker.shown("default", head.size, head.root.hex(), "published")
            if tree.root(head.size) != head.root:
                raise AssertionError(f"a checkpoint of size {head.size} was stored where its tree is not")

    async def check_kept(self, store: Store) -> None:
        """Check that the log's database has every entry that was ever acknowledged."""
        (log_id,) = [row.log_id for row in await store.catalog.logs()]
        leaves = await store.reads.leaves(log_id, 0, 10**7)
        for index, leaf in self.recorder.bytes.items():
            if index >= len(leaves) or leaf_hash(leaves[index]) != leaf_hash(leaf):
                raise AssertionError(f"LOST: entry {index} was acknowledged, and is not in the log")

    def close(self) -> None:
        """Kill what is left."""
        for server in self.servers:
            server.kill()
        self.servers.clear()
