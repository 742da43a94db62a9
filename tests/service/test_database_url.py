"""The URL of a Postgres database: read once, refused without a word of what it says."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Any

import pytest
from asyncpg import connect_utils
from click.testing import CliRunner

from muniment_server.cli import main
from muniment_server.cli.common import settings_from
from muniment_server.database_url import read_url
from muniment_server.errors import SettingsError
from muniment_server.settings import PREFIX, read_settings
from muniment_server.storage.postgres.connect import connect
from tests.live import ORIGIN

BASE = "postgresql://muniment:hunter2@db.example.com/muniment"

READ: dict[str, dict[str, Any]] = {
    "postgresql://alice@db/log": {"user": "alice", "host": ["db"], "port": [5432], "database": "log"},
    "postgres://alice:@db:5433/log": {"user": "alice", "host": ["db"], "port": [5433], "database": "log"},
    "postgresql://a:p%2Fa%23s%3Fs%40%25@db": {"user": "a", "password": "p/a#s?s@%", "host": ["db"], "port": [5432]},
    "postgresql://a:p]q[r@db": {"user": "a", "password": "p]q[r", "host": ["db"], "port": [5432]},
    "postgresql://a:p:q+r@db": {"user": "a", "password": "p:q+r", "host": ["db"], "port": [5432]},
    "postgresql://db/log?user=a&password=p+q%2Br": {
        "user": "a",
        "password": "p+q+r",
        "host": ["db"],
        "port": [5432],
        "database": "log",
    },
    "postgresql://db?password=": {"host": ["db"], "port": [5432]},
    "postgresql://": {},
    "postgresql:///log": {"database": "log"},
    "postgresql://a@/log?host=/run/postgresql&port=5433": {
        "user": "a",
        "database": "log",
        "host": ["/run/postgresql"],
        "port": [5433],
    },
    "postgresql://%2Frun%2Fpostgresql/log": {"host": ["/run/postgresql"], "port": [5432], "database": "log"},
    "postgresql://one,two:5433,[::1]:5434/log": {
        "host": ["one", "two", "::1"],
        "port": [5432, 5433, 5434],
        "database": "log",
    },
    "postgresql:///log?host=one,two&port=1": {"host": ["one", "two"], "port": [1, 1], "database": "log"},
}


@pytest.mark.parametrize("url", READ)
def test_what_a_url_says_goes_to_the_driver_in_parts(url: str):
    assert read_url(url) == READ[url]


MALFORMED = [
    # A password as it is, not as a URL writes it. The port of some is a number, so that a host and a name can be read.
    *(f"postgresql://muniment:{password}@db.example.com/muniment" for password in (
        "hun/ter2", "hun#ter2", "hun?ter2", "hun@ter2", "hun ter2", "hun%ter2", "hunter2%", "hun\tter2", "hun\nter2",
        "5432/hunter2", "5432#hunter2", "5432?hunter2=1", "5432?sslmode=hunter2", "5432/hunter2?sslmode=disable",
        "5432?application_name=hunter2", "%00hunter2", "%ffhunter2", "@hunter2:1", ":/hunter2",
    )),
    "postgresql://muniment:hunter2@db:port/muniment", "postgresql://muniment:hunter2@db:0/muniment",
    "postgresql://muniment:hunter2@db:65536/muniment", "postgresql://muniment:hunter2@[::1/muniment",
    "postgresql://muniment:hunter2@one,/muniment", "postgresql://muniment:hunter2@/muniment?host=one,,two", "postgresql://muniment:hunter2@one,two/muniment?port=1,2,3",
    "postgresql+asyncpg://muniment:hunter2@db/muniment", "host=db password=hunter2", "mysql://root:hunter2@db/x",
    "muniment:hunter2@db/muniment", "sqlite:///hunter2", "hunter2", " " + BASE,
]  # fmt: skip
PARAMETERS = [
    "hunter2=1", "hunter2", "sslmode", "=", "sslmode=hunter2", "target_session_attrs=hunter2", "sslnegotiation=hunter2",
    "connect_timeout=hunter2", "connect_timeout=1.5", "port=hunter2", "port=", "client_encoding=hunter2",
    "channel_binding=hunter2", "channel_binding=require", "channel_binding=require&sslmode=require",
    "gssencmode=require", "require_auth=hunter2", "hostaddr=hunter2", "sslcertmode=require", "pgbouncer=true",
    "sslrootcert=system&sslmode=require", "sslrootcert=system&sslcert=hunter2", "password=%zz", "host=one", "password=hunter2", "user=hunter2", "dbname=hunter2",
]  # fmt: skip


@pytest.mark.parametrize("url", [*MALFORMED, *(f"{BASE}?{each}" for each in PARAMETERS)])
def test_a_url_that_cannot_be_is_refused_and_not_quoted(tmp_path: Path, url: str):
    with pytest.raises(SettingsError) as caught:
        read_settings({"data": tmp_path}, {PREFIX + "DATABASE": url})
    told = str(caught.value)
    assert told.startswith("setting database: ")
    assert "hun" not in told
    assert "ter2" not in told
    assert caught.value.__suppress_context__ or caught.value.__context__ is None, "a traceback would quote the URL"


@pytest.mark.parametrize("given", ["environment", "flag", "file"])
@pytest.mark.parametrize("words", [("serve",), ("migrate",), ("init", "--origin", ORIGIN), ("key", "list"), ("fsck",)])
def test_every_command_ends_with_2_and_shows_nothing(tmp_path: Path, words: tuple[str, ...], given: str):
    url = "postgresql://muniment:hun/ter2@db.example.com/muniment"
    env = {name: None for name in os.environ if name.startswith(PREFIX)}
    if given == "file":
        (tmp_path / "muniment.toml").write_text(f"database = '{url}'\n")
    flags = ["--database", url] if given == "flag" else []
    done = CliRunner().invoke(
        main,
        [*words, "--data", str(tmp_path), *flags],
        env=env | ({PREFIX + "DATABASE": url} if given == "environment" else {}),
    )
    assert done.exit_code == 2, done.output
    assert "ter2" not in done.output
    assert "%2F" in done.output, "it says how such a password is written"
    assert not (tmp_path / "policy").exists()


@pytest.mark.parametrize("url", [BASE, "postgresql://db/muniment?user=a&password=hunter2", f"{BASE}?sslpassword=x"])
def test_no_password_on_a_command_line(tmp_path: Path, url: str):
    done = CliRunner().invoke(main, ["migrate", "--data", str(tmp_path), "--database", url])
    assert done.exit_code == 2
    assert "no password on a command line" in done.output
    assert "hunter2" not in done.output


# --- parameters that providers write into their URLs -------------------------------------------------------------------

TAKEN: dict[str, dict[str, Any]] = {
    "connect_timeout=3": {"timeout": 3.0},
    "connect_timeout=0": {},
    "application_name=log&options=-c%20search_path%3Dlog": {
        "server_settings": {"application_name": "log", "options": "-c search_path=log"}
    },
    "fallback_application_name=log": {"server_settings": {"application_name": "log"}},
    "keepalives=1&keepalives_idle=30&tcp_user_timeout=5000&gssencmode=prefer&load_balance_hosts=disable": {},
    "client_encoding=UTF8": {},
    "channel_binding=prefer": {},
    "channel_binding=require&sslmode=verify-full": {"dsn": "postgresql://?sslmode=verify-full"},
    "sslmode=require": {"dsn": "postgresql://?sslmode=require"},
    "target_session_attrs=read-write": {"dsn": "postgresql://?target_session_attrs=read-write"},
    f"sslmode=verify-ca&sslrootcert={__file__}&sslpassword=a%20b": {
        "dsn": f"postgresql://?sslmode=verify-ca&sslrootcert={__file__}&sslpassword=a%20b"
    },
}


@pytest.mark.parametrize("query", TAKEN)
def test_parameters_of_libpq(query: str):
    assert read_url(f"postgresql://db?{query}") == {"host": ["db"], "port": [5432]} | TAKEN[query]


def test_the_authorities_of_the_system_check_name_and_certificate():
    context = read_url("postgresql://db?sslrootcert=system")["ssl"]
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname


async def test_a_url_of_a_provider_connects(postgres_server: str):
    """With all that providers write, the server is asked for none of it."""
    base, _, query = postgres_server.partition("?")
    more = "connect_timeout=10&channel_binding=prefer&target_session_attrs=read-write&keepalives=1&application_name=a+b"
    connection = await connect(f"{base}?{query + '&' if query else ''}{more}")
    try:
        assert await connection.fetchval("SHOW application_name") == "a+b"
    finally:
        await connection.close()


async def test_an_empty_password_is_none(postgres_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Also that of the environment: the password file is read then, as by libpq."""
    seen: list[Any] = []

    async def look(*_: Any, params: Any, **__: Any) -> Any:
        seen.append(params.password)
        raise OSError("seen")

    monkeypatch.setattr(connect_utils, "_connect_addr", look)
    passfile = tmp_path / "pgpass"
    passfile.write_text("*:*:*:*:from-the-file\n")
    passfile.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(passfile))
    monkeypatch.setenv("PGPASSWORD", "")
    settings_from(data=tmp_path)
    for url in ("postgresql://alice:@127.0.0.1/log", "postgresql://127.0.0.1/log?user=alice&password="):
        with pytest.raises(Exception, match="seen"):
            await connect(url)
    assert seen == ["from-the-file"] * 2


def test_what_trying_again_would_not_mend_ends_the_command(tmp_path: Path):
    """The driver wants an authority's certificate, which it looks for in the home folder."""
    for query, named in (("sslmode=verify-full", "root.crt"), (f"sslmode=verify-ca&sslrootcert={tmp_path}/none", "")):
        env = {"HOME": str(tmp_path), PREFIX + "DATABASE": f"{BASE}?{query}", "PGSSLROOTCERT": None}
        done = CliRunner().invoke(main, ["migrate", "--data", str(tmp_path)], env=env)
        assert done.exit_code == 2, done.output
        assert named in done.output
        assert "hunter2" not in done.output
