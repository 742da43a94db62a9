"""The `muniment-server` command. The only module of the server that prints or exits."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from muniment_server import __version__
from muniment_server.settings import FILE, Settings, SettingsError, read_settings

T = TypeVar("T")

EXIT_FAILED, EXIT_USAGE, EXIT_UNREACHABLE, EXIT_GUARD, EXIT_BUG = 1, 2, 4, 5, 70


def _fail(code: int, message: str) -> NoReturn:
    click.echo(f"muniment-server: {message}", err=True)
    sys.exit(code)


def _run(work: Coroutine[Any, Any, T], loop: Callable[[], asyncio.AbstractEventLoop] | None = None) -> T:
    """Run a coroutine; turn the errors a user can act on into a message and an exit code."""
    from muniment_server.catalog import SetupError
    from muniment_server.storage import SchemaError, StoreError

    try:
        with asyncio.Runner(loop_factory=loop) as runner:
            return runner.run(work)
    except (SettingsError, SchemaError) as error:
        _fail(EXIT_USAGE, str(error))
    except SetupError as error:
        guard = str(error).startswith(("database_", "guard_"))
        _fail(EXIT_GUARD if guard else EXIT_USAGE, str(error))
    except StoreError as error:
        _fail(EXIT_UNREACHABLE, str(error))


def _settings(**flags: Any) -> Settings:
    database = flags.get("database")
    if database and "@" in database and ":" in database.split("//", 1)[-1].split("@", 1)[0]:
        _fail(
            EXIT_USAGE,
            "no password on a command line: others on this machine can read it. "
            "Set MUNIMENT_SERVER_DATABASE, or PGPASSWORD or PGPASSFILE",
        )
    try:
        return read_settings(flags)
    except SettingsError as error:
        _fail(EXIT_USAGE, str(error))


def _data_options(command: Callable[..., None]) -> Callable[..., None]:
    data = click.option("--data", type=click.Path(file_okay=False, path_type=Path), help="Folder of this instance.")
    database = click.option("--database", metavar="URL", help="Postgres URL instead of the embedded SQLite.")
    return data(database(command))


def _json_option(command: Callable[..., None]) -> Callable[..., None]:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def _print(as_json: bool, value: Any, text: str) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False) if as_json else text)


def _need_instance(settings: Settings) -> None:
    if not settings.policy.exists():
        _fail(
            EXIT_USAGE,
            f"{settings.data} is not an instance: run `muniment-server init --data {settings.data} --origin NAME` first",
        )


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Run a transparency log: every accepted entry is answered with a proof that a stranger can check offline.

    \b
    First time:
      muniment-server init --data ./log-data --origin example.com/log
      muniment-server serve --data ./log-data

    Settings come from flags, MUNIMENT_SERVER_* variables and DATA/muniment.toml, in this order.

    \b
    Exit codes: 0 good, 1 a check failed, 2 usage or set-up, 4 database not reachable, 5 refused by the guard, 70 a bug.
    """


# --- instance -----------------------------------------------------------------------------------------------------------


@main.command()
@_data_options
@click.option("--origin", required=True, help="Name of the default log, for good: usually its URL without scheme.")
@click.option("--kind", type=click.Choice(["event", "raw"]), default="event", show_default=True)
@click.option("--private", is_flag=True, help="Reads need an API key too.")
@click.option("--open", "open_payloads", is_flag=True, help="Anyone may read the payloads of events.")
@_json_option
def init(**flags: Any) -> None:
    """Make an instance: key, guard, policy and genesis entry. Safe to run again after a crash.

    \b
    Example: muniment-server init --data ./log-data --origin example.com/log
    """
    settings = _settings(data=flags["data"], database=flags["database"])
    settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    vkey = _run(_make_log(settings, "default", flags))
    if flags["database"] and not (settings.data / FILE).exists():
        from muniment_server.catalog import write_new

        write_new(settings.data / FILE, f"database = {json.dumps(flags['database'])}\n", 0o600)
    commands = [
        f"muniment-server serve --data {settings.data}",
        f"""curl --json '{{"actor":"alice","action":"test"}}' http://127.0.0.1:{settings.port}/entries > receipt.json"""
        if flags["kind"] == "event"
        else f"echo hello | muniment append - --policy {settings.policy}",
        f"muniment verify receipt.json --policy {settings.policy}",
    ]
    value = {"origin": flags["origin"], "vkey": vkey, "policy": str(settings.policy), "next": commands}
    steps = "\n".join(f"  {command}" for command in commands)
    text = f"{flags['origin']} is ready in {settings.data}.\n\nIts public key, to give to everyone:\n  {vkey}\n\nNext:\n{steps}"
    _print(flags["as_json"], value, text)


async def _make_log(settings: Settings, name: str, flags: dict[str, Any]) -> str:
    from muniment_server.catalog import create_log, open_store

    store = await open_store(settings)
    try:
        key = await create_log(
            settings,
            store,
            name,
            flags["origin"],
            flags["kind"],
            public=not flags["private"],
            open_payloads=flags["open_payloads"],
        )
        return str(key.vkey)
    finally:
        await store.close()


@main.command()
@_data_options
@click.option("--host", help="Address to serve on. [default: 127.0.0.1]")
@click.option("--port", type=int, help="Port to serve on; 0 takes a free one. [default: 8080]")
@click.option("--read-only", is_flag=True, default=None, help="Serve reads only.")
@click.option("--allow-anonymous-writes", is_flag=True, default=None, help="Take appends without a key from anywhere.")
def serve(**flags: Any) -> None:
    """Serve the logs of an instance over HTTP until SIGTERM or Ctrl-C.

    \b
    Example: muniment-server serve --data ./log-data --port 8080
    """
    from muniment_server.telemetry import Metrics, configure_logging

    settings = _settings(**flags)
    _need_instance(settings)
    configure_logging(settings.log_format, settings.log_level)
    _run(_check_public(settings))
    metrics = Metrics()
    if settings.metrics_port:
        from prometheus_client import start_http_server

        start_http_server(settings.metrics_port, settings.metrics_host, metrics.registry)
    _serve(settings, metrics)


async def _check_public(settings: Settings) -> None:
    """Refuse to offer appends to the world by accident."""
    from muniment_server.catalog import SetupError, open_store
    from muniment_server.storage import StoreUnavailable
    from muniment_server.web.request import is_loopback

    if settings.read_only or settings.allow_anonymous_writes or is_loopback(settings.host):
        return
    delay = 0.1
    while True:  # like the server itself: a database that is not up yet is waited for
        try:
            store = await open_store(settings)
            break
        except StoreUnavailable:
            await asyncio.sleep(delay)
            delay = min(2 * delay, 5.0)
    try:
        keys = [row for row in await store.api_keys() if row.revoked_at is None and "append" in row.scopes]
    finally:
        await store.close()
    if not keys:
        raise SetupError(
            f"{settings.host} can be reached from outside and there is no API key: run "
            f"`muniment-server key create --scope append --data {settings.data}`, or pass --allow-anonymous-writes"
        )


def _serve(settings: Settings, metrics: Any) -> None:
    import uvicorn
    import uvloop

    from muniment_server.app import create_app

    app = create_app(settings, metrics)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http="httptools",
        lifespan="on",  # "auto" would serve on after a failed start
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=int(settings.shutdown_seconds),
        backlog=2048,
    )
    server = _announcing_server(config)

    async def work() -> None:
        # Before the HTTP server: what is wrong with the instance then ends in a sentence, not in a failed lifespan.
        await app.state.service.start()
        # After start-up nearly everything lives for good: keep the collector from walking it again and again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 50, 1_000)
        await server.serve()

    _run(work(), uvloop.new_event_loop)
    if not server.started:
        sys.exit(EXIT_USAGE)


def _announcing_server(config: Any) -> Any:
    import uvicorn

    from muniment_server.telemetry import get_logger

    class Server(uvicorn.Server):
        """Says where it listens once it does, which with port 0 nobody knows before; exits with 0 when told to stop."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            # uvicorn's own version ends by raising the signal again, so that a clean stop looks like a crash to scripts.
            handled = (signal.SIGINT, signal.SIGTERM)
            before = {sig: signal.signal(sig, self.handle_exit) for sig in handled}
            try:
                yield
            finally:
                for sig, handler in before.items():
                    signal.signal(sig, handler)

        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            for server in self.servers if self.started else ():
                for socket in server.sockets:
                    host, port = socket.getsockname()[:2]
                    get_logger().info("serving", url=f"http://{host}:{port}")

    return Server(config)


@main.command()
@_data_options
@click.option("--dry-run", is_flag=True, help="Only say what would be applied.")
@_json_option
def migrate(**flags: Any) -> None:
    """Bring a Postgres database to the schema of this release. SQLite migrates by itself on serve."""
    settings = _settings(data=flags["data"], database=flags["database"])
    if not settings.database:
        _print(flags["as_json"], {"applied": []}, "The embedded database migrates by itself on init and serve.")
        return
    from muniment_server.storage import postgres

    names = _run(postgres.migrate(settings.database, dry_run=flags["dry_run"]))
    verb = "Would apply" if flags["dry_run"] else "Applied"
    text = f"{verb}: {', '.join(names)}." if names else "Nothing to do: the schema is current."
    _print(flags["as_json"], {"applied" if not flags["dry_run"] else "pending": names}, text)


@main.command()
@_data_options
@click.option("--log", "log_name", help="Check only this log; default: all.")
@_json_option
def fsck(**flags: Any) -> None:
    """Recompute every leaf hash, tile, root and signature from the stored entries; name the first bad index.

    Reads only, so it may run beside a server. Exit code 1 when something is wrong.

    \b
    Example: muniment-server fsck --data ./log-data
    """
    settings = _settings(data=flags["data"], database=flags["database"])
    _need_instance(settings)
    reports = _run(_fsck(settings, flags["log_name"]))
    lines = [line for report in reports for line in _fsck_lines(report)]
    _print(flags["as_json"], [report.to_json() for report in reports], "\n".join(lines))
    if not all(report.clean for report in reports):
        sys.exit(EXIT_FAILED)


def _fsck_lines(report: Any) -> list[str]:
    counts = f"{report.entries} entries, {report.tiles} tiles, {report.checkpoints} checkpoints"
    if report.clean:
        return [f"{report.log}: clean ({counts})"]
    problems = [f"  {finding.code} at {finding.index}: {finding.detail}" for finding in report.findings]
    return [f"{report.log}: NOT clean, first at index {report.first_bad_index} ({counts})", *problems]


async def _fsck(settings: Settings, name: str | None) -> list[Any]:
    from rich.console import Console
    from rich.progress import Progress

    from muniment.policy import Policy
    from muniment_server.catalog import SetupError, open_store
    from muniment_server.fsck import fsck as check
    from muniment_server.guard import Guard

    store = await open_store(settings)
    try:
        rows = [row for row in await store.logs() if name in (None, row.name)]
        if not rows:
            raise SetupError(f"there is no log {name!r}")
        reports = []
        with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
            for row in rows:
                task = bar.add_task(row.name, total=None)

                def progress(done: int, total: int, task: Any = task) -> None:
                    bar.update(task, completed=done, total=total)

                guard = Guard(settings.guard_file(row.name))
                reports.append(await check(store, row, Policy.read(settings.policy), guard, progress))
        return reports
    finally:
        await store.close()


# --- logs ---------------------------------------------------------------------------------------------------------------


@main.group()
def log() -> None:
    """Make and list logs."""


@log.command("create")
@click.argument("name")
@_data_options
@click.option("--origin", required=True, help="Name of the log, for good: usually its URL without scheme.")
@click.option("--kind", type=click.Choice(["event", "raw"]), default="event", show_default=True)
@click.option("--private", is_flag=True, help="Reads need an API key too.")
@click.option("--open", "open_payloads", is_flag=True, help="Anyone may read the payloads of events.")
@_json_option
def log_create(name: str, **flags: Any) -> None:
    """Make another log in this instance; a running server finds it by itself.

    \b
    Example: muniment-server log create releases --kind raw --origin example.com/releases --data ./log-data
    """
    settings = _settings(data=flags["data"], database=flags["database"])
    _need_instance(settings)
    vkey = _run(_make_log(settings, name, flags))
    value = {"name": name, "origin": flags["origin"], "vkey": vkey, "policy": str(settings.policy)}
    text = f"Log {name} is ready, under /logs/{name}.\n\nIts public key, to give to everyone:\n  {vkey}"
    _print(flags["as_json"], value, text)


@log.command("list")
@_data_options
@_json_option
def log_list(**flags: Any) -> None:
    """List the logs of this instance."""
    settings = _settings(data=flags["data"], database=flags["database"])
    _need_instance(settings)
    rows = _run(_list_logs(settings))
    text = "\n".join(f"{r['name']:20} {r['kind']:6} {r['tree_size']:>12}  {r['origin']}" for r in rows)
    _print(flags["as_json"], rows, text or "no logs")


async def _list_logs(settings: Settings) -> list[dict[str, Any]]:
    from muniment_server.catalog import open_store

    store = await open_store(settings)
    try:
        return [
            {
                "name": row.name,
                "origin": row.origin,
                "kind": row.kind,
                "public": row.public,
                "open": row.open or row.kind == "raw",
                "tree_size": (await store.head(row.log_id)).size,
            }
            for row in await store.logs()
        ]
    finally:
        await store.close()


# --- API keys -----------------------------------------------------------------------------------------------------------


@main.group()
def key() -> None:
    """Make, list and revoke API keys."""


@key.command("create")
@_data_options
@click.option(
    "--scope", "scopes", multiple=True, required=True, type=click.Choice(["append", "read"]), help="May repeat."
)
@click.option("--log", "log_name", help="Only for this log; default: all.")
@click.option("--label", default="", help="Whose key it is, for `key list`.")
@_json_option
def key_create(**flags: Any) -> None:
    """Make an API key and print it, this once.

    \b
    Example: muniment-server key create --scope append --label billing --data ./log-data
    """
    settings = _settings(data=flags["data"], database=flags["database"])
    _need_instance(settings)
    token, row = _run(_make_key(settings, frozenset(flags["scopes"]), flags["log_name"], flags["label"]))
    value = {"key_id": row.key_id, "key": token, "scopes": sorted(row.scopes), "log": row.log_name, "label": row.label}
    text = f"{token}\n\nKeep it: only its hash is stored. Its id is {row.key_id}. Send it as\n  Authorization: Bearer {token}"
    _print(flags["as_json"], value, text)


async def _make_key(settings: Settings, scopes: frozenset[str], log_name: str | None, label: str) -> Any:
    from muniment_server.catalog import create_api_key, open_store

    store = await open_store(settings)
    try:
        return await create_api_key(store, scopes, log_name, label)
    finally:
        await store.close()


@key.command("list")
@_data_options
@_json_option
def key_list(**flags: Any) -> None:
    """List API keys, without their secrets."""
    from muniment.event import format_time

    settings = _settings(data=flags["data"], database=flags["database"])
    _need_instance(settings)
    rows = [
        {
            "key_id": row.key_id,
            "scopes": sorted(row.scopes),
            "log": row.log_name,
            "label": row.label,
            "created_at": format_time(row.created_at),
            "revoked_at": format_time(row.revoked_at) if row.revoked_at else None,
        }
        for row in _run(_list_keys(settings))
    ]
    lines = [
        f"{r['key_id']}  {','.join(r['scopes']):12} {r['log'] or '*':20} "
        f"{'revoked ' + r['revoked_at'] if r['revoked_at'] else 'since ' + r['created_at']}  {r['label']}"
        for r in rows
    ]
    _print(flags["as_json"], rows, "\n".join(lines) or "no API keys")


async def _list_keys(settings: Settings) -> Any:
    from muniment_server.catalog import open_store

    store = await open_store(settings)
    try:
        return await store.api_keys()
    finally:
        await store.close()


@key.command("revoke")
@click.argument("key_id")
@_data_options
@_json_option
def key_revoke(key_id: str, **flags: Any) -> None:
    """Revoke an API key by its id; running servers refuse it within a second."""
    settings = _settings(data=flags["data"], database=flags["database"])
    _need_instance(settings)
    if not _run(_revoke(settings, key_id)):
        _fail(EXIT_FAILED, f"no such key, or revoked already: {key_id}")
    _print(flags["as_json"], {"revoked": key_id}, f"Revoked {key_id}.")


async def _revoke(settings: Settings, key_id: str) -> bool:
    import time

    from muniment_server.catalog import open_store

    store = await open_store(settings)
    try:
        return await store.revoke_key(key_id, time.time_ns() // 1_000_000)
    finally:
        await store.close()


if __name__ == "__main__":
    main()
