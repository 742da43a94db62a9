"""`muniment-server serve`: the HTTP server."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import signal
import sys
from collections.abc import Iterator
from typing import Any

import click

from muniment_server.cli.common import EXIT_USAGE, data_options, fail, need_instance, run, settings_from
from muniment_server.errors import SetupError, StoreUnavailable
from muniment_server.settings import Settings


@click.command()
@data_options
@click.option("--host", help="Address to serve on; :: is all of both families. [default: 127.0.0.1]")
@click.option("--port", type=int, help="Port to serve on; 0 takes a free one. [default: 8080]")
@click.option("--read-only", is_flag=True, default=None, help="Serve reads only.")
@click.option("--allow-anonymous-writes", is_flag=True, default=None, help="Take appends without a key from anywhere.")
def serve(**flags: Any) -> None:
    """Serve the logs of an instance over HTTP until SIGTERM, SIGHUP or Ctrl-C.

    \b
    Example: muniment-server serve --data ./log-data --port 8080
    """
    from muniment_server.cli.memory import give_memory_back, load_structlog

    give_memory_back()
    load_structlog()
    from muniment_server.telemetry import Metrics, configure_logging

    settings = settings_from(**flags)
    need_instance(settings)
    configure_logging(settings.log_format, settings.log_level)
    run(_check_public(settings))
    metrics = Metrics()
    if settings.metrics_port:
        _serve_metrics(settings, metrics)
    _serve(settings, metrics)


def _serve_metrics(settings: Settings, metrics: Any) -> None:
    from prometheus_client import start_http_server

    try:
        start_http_server(settings.metrics_port, settings.metrics_host, metrics.registry)
    except OSError as error:
        where = f"port {settings.metrics_port} of {settings.metrics_host}"
        why = f"cannot serve metrics on {where}: {error.strerror or error}: set MUNIMENT_SERVER_METRICS_PORT"
        fail(EXIT_USAGE, why)


async def _check_public(settings: Settings) -> None:
    """Refuse to offer appends to the world by accident."""
    from muniment_server.access.asking import is_loopback
    from muniment_server.storage.open import open_store
    from muniment_server.telemetry import get_logger

    if settings.read_only or settings.allow_anonymous_writes or is_loopback(settings.host):
        return
    delay = 0.1
    while True:  # like the server itself: a database that is not up yet is waited for
        try:
            store = await open_store(settings)
            break
        except StoreUnavailable as error:
            get_logger().warning("waiting for the database", error=str(error), retry_seconds=delay)
            await asyncio.sleep(delay)
            delay = min(2 * delay, 2.0)
    try:
        keys = [row for row in await store.catalog.api_keys() if row.revoked_at is None and "append" in row.scopes]
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
    from muniment_server.cli import announce
    from muniment_server.cli.listen import bind
    from muniment_server.telemetry import get_logger
    from muniment_server.web.http.connections import Connections
    from muniment_server.web.http.fast_path import FastPath

    app = create_app(settings, metrics)
    connections = Connections(settings, metrics, app.service.rooms)
    protocol: Any = functools.partial(_protocol(settings), connections=connections, fast_path=FastPath(app.service))
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=protocol,
        ws="none",  # otherwise a WebSocket library that happens to be installed would take connections past every limit
        lifespan="on",  # "auto" would serve on after a failed start
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=int(settings.shutdown_seconds),
    )
    server = _announcing_server(config, announce.about(settings))

    async def work() -> None:
        sockets = bind(settings.host, settings.port)
        # Before the HTTP server: what is wrong with the instance then ends in a sentence, not in a failed lifespan.
        await app.service.start()
        await announce.warn(settings, app.service)
        # After start-up nearly everything lives for good: keep the collector from walking it again and again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 50, 1_000)
        config.backlog = connections.start()
        try:
            await server.serve(sockets)
        finally:
            connections.stop()

    run(work(), uvloop.new_event_loop)
    if not server.started:
        sys.exit(EXIT_USAGE)
    get_logger().info("stopped")


def _protocol(settings: Settings) -> Any:
    if settings.access_log:
        from muniment_server.web.http.access_lines import LoggedProtocol

        return LoggedProtocol
    from muniment_server.web.http.protocol import Protocol

    return Protocol


def _announcing_server(config: Any, about: dict[str, str]) -> Any:
    import uvicorn

    from muniment_server.cli.listen import url_of
    from muniment_server.telemetry import get_logger

    class Server(uvicorn.Server):
        """Says where it listens once it does; exits with 0 when told to stop.

        With port 0 no client knows the port before that.
        """

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            # uvicorn's own version ends by raising the signal again: to scripts a clean stop then looks like a crash.
            handled = [signal.SIGINT, signal.SIGTERM]
            if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
                handled.append(signal.SIGHUP)  # otherwise a terminal that closes would cut answers off
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
                    get_logger().info("serving", url=url_of(socket), **about)

    return Server(config)
