"""Every setting of the server, read once.

The descriptions below are the manual; docs/reference.md is made from them.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from muniment_server.database_url import read_url
from muniment_server.errors import SettingsError
from muniment_server.sinks import Sink, SinkName

PREFIX = "MUNIMENT_SERVER_"
FILE = "muniment.toml"


def _words(value: Any) -> Any:
    """Split what an environment variable or a flag holds: a list there is separated by commas."""
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value


def _table(value: Any) -> Any:
    """Read what an environment variable holds: a table there is a JSON object."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError("in the environment, a table is a JSON object") from error


def _one_file_each(sinks: dict[str, Sink]) -> dict[str, Sink]:
    """Return the sinks. Raises ValueError where two write one file: each would find lines that it did not write."""
    files = [sink.file for sink in sinks.values() if sink.file]
    if len(set(files)) < len(files):
        raise ValueError("two sinks have one file")
    return sinks


def _readable(url: str) -> str:
    """Raise SettingsError unless this is the URL of a Postgres database."""
    read_url(url)
    return url


Words = Annotated[tuple[str, ...], BeforeValidator(_words)]
_Origin = Annotated[str, Field(pattern=r"^[a-z][a-z0-9+.-]*://[^/?#@\s,A-Z*]+$")]
Origins = Annotated[tuple[_Origin, ...], BeforeValidator(_words)]
Push = Annotated[dict[SinkName, Sink], BeforeValidator(_table), AfterValidator(_one_file_each)]
DatabaseUrl = Annotated[str, Field(min_length=1), AfterValidator(_readable)]


class Settings(BaseModel):
    """Defaults < DATA/muniment.toml < environment (MUNIMENT_SERVER_*) < command-line flags.

    Never changes after it was read.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Path = Field(description="Folder of this instance: embedded database, keys, guard, policy and muniment.toml.")
    database: DatabaseUrl | None = Field(  # an empty variable is a mistake, and must not mean the embedded database
        None,
        description=(
            "URL of a Postgres database, postgresql://user@host/name. Unset: the embedded SQLite in the data folder. "
            "Put the password in PGPASSWORD or PGPASSFILE, or set this in the environment, never on a command line."
        ),
        repr=False,
    )
    guard_dir: Path | None = Field(
        None,
        description=(
            "Folder of the guard files. Unset: DATA/guard. "
            "In production a volume that is not restored with the database."
        ),
    )
    host: str = Field(
        "127.0.0.1", min_length=1, description="Address to serve on; :: is every address of the machine, IPv4 too."
    )
    port: int = Field(8080, ge=0, le=65535, description="Port to serve on; 0 takes a free one and prints it.")
    metrics_host: str = Field("127.0.0.1", min_length=1, description="Address of the Prometheus metrics.")
    metrics_port: int = Field(0, ge=0, le=65535, description="Port of the Prometheus metrics; 0 turns them off.")
    read_only: bool = Field(
        default=False, description="Serve reads only: no key and no guard are opened, no log is written."
    )
    allow_anonymous_writes: bool = Field(
        default=False, description="Accept appends without an API key on an address that is not loopback."
    )
    cors_origins: Origins = Field(
        (),
        description=(
            "Origins of web pages, like https://app.example, that may use this server from a browser as their user's "
            "API key allows, separated by commas. Unset: pages may read what is public, and nothing else."
        ),
    )
    publish_interval: float = Field(
        1.0, gt=0, le=60, description="Seconds within which an acknowledged entry is under a published checkpoint."
    )
    max_event_bytes: int = Field(65_536, ge=256, le=1_048_576, description="Largest event, in bytes as posted.")
    max_batch_entries: int = Field(10_000, ge=1, le=10_000, description="Most entries in one POST /entries/batch.")
    max_batch_bytes: int = Field(
        16 * 2**20, ge=1024, le=64 * 2**20, description="Largest body of POST /entries/batch, in bytes."
    )
    max_queue_entries: int = Field(
        20_000, ge=1, description="Entries waiting for the sequencer of one log before 429 overloaded."
    )
    max_queue_bytes: int = Field(
        64 * 2**20, ge=1024, description="Bytes waiting for the sequencer of one log before 429 overloaded."
    )
    max_queue_seconds: float = Field(
        1.0, gt=0, le=60, description="Seconds the first of those waits before later ones are answered 429 overloaded."
    )
    max_commit_entries: int = Field(1_000, ge=1, le=10_000, description="Entries stored in one commit, at the most.")
    idempotency_ttl: int = Field(86_400, ge=60, description="Seconds for which an Idempotency-Key is remembered.")
    cache_bytes: int | None = Field(
        None,
        ge=2**20,
        description=(
            "Most memory for full tiles and entry bundles, in bytes. They take 40 bytes an entry, which is nearly all "
            "tiles, or 38 MiB where that is more, and never more than this. Unset: a sixteenth of the memory of the "
            "machine or of its control group, but at least 38 MiB and at most 512 MiB."
        ),
    )
    max_connections: int = Field(
        4096, ge=1, description="Open HTTP connections, at the most; further ones are answered 503 and closed."
    )
    max_connections_per_address: int = Field(
        1024,
        ge=1,
        description=(
            "Open HTTP connections from one IPv4 address or one IPv6 /64 network, at the most. Connections from this "
            "machine do not count. Behind a proxy on another host all come from the proxy: then set it to "
            "max_connections."
        ),
    )
    client_seconds: float = Field(
        10.0,
        gt=0,
        le=600,
        description=(
            "Seconds a client has to send the header of a request, and the longest pause in sending a body or reading "
            "an answer. After them it must keep up 8 KiB a second. Who is slower is answered 408 where possible, and "
            "cut off."
        ),
    )
    keep_alive_seconds: float = Field(
        15.0,
        gt=0,
        le=600,
        description="Seconds a connection stays open without a request. More than a proxy in front keeps it.",
    )
    scrub_rate: float = Field(
        1_000.0,
        ge=0,
        le=100_000,
        description=(
            "Entries of each log that are recomputed every second, all the time, to find damage at rest; "
            "0 turns it off."
        ),
    )
    shutdown_seconds: float = Field(
        30.0, gt=0, allow_inf_nan=False, description="Seconds to answer accepted requests after SIGTERM."
    )
    max_clock_behind_seconds: int = Field(
        60,
        ge=1,
        description=(
            "Seconds that the clock may be behind the last entry; beyond, appends get 503 clock. Until the clock has "
            "caught up, entries get the time of the last one. Set it higher to go on with a log that holds an entry "
            "from the future."
        ),
    )
    max_clock_ahead_days: int = Field(
        366,
        ge=1,
        description=(
            "Days that the clock may be ahead of the last entry when the server starts; beyond, appends get 503 clock. "
            "Set it higher, once, for a log that got nothing for longer than that."
        ),
    )
    min_free_percent: float = Field(
        10.0,
        ge=0,
        lt=100,
        description=(
            "Free space, in percent of the volumes of data folder and guard, below which appends get 503 disk_low; "
            "4 GiB are always enough. 0 turns this off."
        ),
    )
    search: Words = Field(
        ("all",),
        description=(
            "Which event logs can be searched, and by what: all, none, or a list of LOG, for all members of its "
            "events, and LOG/MEMBER, for one of them, separated by commas. After a change the index is made anew."
        ),
    )
    push: Push = Field(
        {},
        description=(
            "Where entries are pushed to: a table `[push.NAME]` for each sink in muniment.toml, or a JSON object in "
            "the environment. [push.md](push.md) has what stands in it."
        ),
    )
    anchor: bool = Field(
        default=False,
        description=(
            "Anchor the logs in Bitcoin. Off by default: it makes this server talk to the calendars below. "
            "See docs/run.md."
        ),
    )
    anchor_logs: Words = Field((), description="Names of the logs to anchor, separated by commas. Unset: all.")
    anchor_entries: int = Field(1_000, ge=1, description="New entries after which a log is anchored.")
    anchor_minutes: float = Field(
        60.0,
        ge=10,
        allow_inf_nan=False,
        description=(
            "Minutes after which a log that has any new entry is anchored. Never more often than every 10 minutes."
        ),
    )
    anchor_calendars: Words = Field(
        (
            "https://alice.btc.calendar.opentimestamps.org",
            "https://bob.btc.calendar.opentimestamps.org",
            "https://finney.calendar.eternitywall.com",
        ),
        min_length=1,
        description=(
            "URLs of the OpenTimestamps calendars that get each anchor, separated by commas; also the only ones that "
            "are asked for proofs. Keep one listed until its anchors are complete. The first two defaults have one "
            "operator."
        ),
    )
    anchor_held_by: int = Field(
        2, ge=1, description="Calendars that should hold an anchor; with fewer it counts as degraded."
    )
    anchor_log_entries: bool = Field(
        default=True, description="Append each confirmed anchor to its log, as an entry muniment/anchor@v1."
    )
    anchor_header_file: Path | None = Field(
        None,
        description=(
            "File of Bitcoin block headers against which anchors are checked, kept current with "
            "`muniment anchor headers sync`. Without one source of headers, no anchor is ever confirmed."
        ),
    )
    anchor_node: str | None = Field(
        None,
        min_length=1,
        description=(
            "URL of a Bitcoin Core node (JSON-RPC), instead of a header file. "
            "A password may stand in it only in the environment."
        ),
        repr=False,
    )
    anchor_node_cookie: Path | None = Field(None, description="Cookie file of that node.")
    anchor_rest: str | None = Field(
        None, min_length=1, description="URL of a Bitcoin Core node with -rest=1, instead of a header file."
    )
    anchor_explorers: Words = Field(
        (),
        description=(
            "API URLs of Esplora block explorers of different operators, separated by commas, instead of a header "
            "file: two of them must agree."
        ),
    )
    anchor_network: Literal["main", "regtest"] = Field(
        "main", description="Which chain the headers are of; regtest is for tests."
    )
    trace: Path | None = Field(
        None,
        description=(
            "File to which every step of the write path is written, for tests. Unset: none. It grows without bound."
        ),
    )
    log_format: Literal["json", "console"] = Field("console", description="Form of the server's own log lines.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least important log line to write."
    )
    access_log: bool = Field(
        default=False,
        description=(
            "Write a line `request` for each request, at level info, with an id that its answer has as X-Request-Id. "
            "Off by default: a proxy writes such lines too, and they cost more than a read."
        ),
    )

    @property
    def guards(self) -> Path:
        """The folder of guard files."""
        return self.guard_dir or self.data / "guard"

    @property
    def sqlite(self) -> Path:
        """The embedded database."""
        return self.data / "muniment.sqlite"

    @property
    def policy(self) -> Path:
        """The policy file that trusts the logs of this instance."""
        return self.data / "policy"

    def policy_file(self, log: str) -> Path:
        """Return the policy file that trusts one log: not every client reads a file that lists several."""
        return self.data / "policies" / f"{log}.policy"

    @property
    def anchor_held(self) -> int:
        """How many calendars should hold an anchor: no more than there are."""
        return min(self.anchor_held_by, len(self.anchor_calendars))

    def searched(self, log: str) -> frozenset[str] | None:
        """Return the members by which a log can be searched: none of them, some, or None for all."""
        if log in self.search or self.search == ("all",):
            return None
        parts = (each.partition("/") for each in self.search)
        return frozenset(member for name, _, member in parts if name == log and member)

    def key_file(self, log: str) -> Path:
        """Return the signing key file of a log."""
        return self.data / "keys" / f"{log}.key"

    def guard_file(self, log: str) -> Path:
        """Return the guard file of a log."""
        return self.guards / f"{log}.guard"


def read_settings(flags: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> Settings:
    """Return the settings. `flags` that are None count as not given. Raises SettingsError."""
    given = {name: value for name, value in flags.items() if value is not None}
    from_environment = _environment(os.environ if environment is None else environment)
    data = Path(given.get("data") or from_environment.get("data") or ".")
    try:
        return Settings(**{**_file(data / FILE), **from_environment, **given, "data": data.absolute()})
    except ValidationError as error:
        first = error.errors()[0]
        raise SettingsError(f"setting {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _environment(environment: Mapping[str, str]) -> dict[str, str]:
    found = {name[len(PREFIX) :].lower(): value for name, value in environment.items() if name.startswith(PREFIX)}
    if unknown := sorted(set(found) - set(Settings.model_fields)):
        close = get_close_matches(unknown[0], Settings.model_fields, 1)
        meant = f"did you mean {PREFIX}{close[0].upper()}?" if close else "docs/reference.md lists all settings"
        raise SettingsError(f"unknown environment variable {PREFIX}{unknown[0].upper()}: {meant}")
    return found


def _file(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{path}: {error}") from error
    if unknown := sorted(set(values) - set(Settings.model_fields)):
        raise SettingsError(f"{path}: unknown setting {unknown[0]}")
    return values
