"""The URL of a Postgres database, read in one place, before anything connects.

What it says goes to the driver in parts, which it does not read again: its own errors would quote the URL, with the
password in it. Read as libpq does (Postgres manual, 32.1.1.2), but strictly. No error here quotes what was given: of a
URL that cannot be read, any part may be the password.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote, unquote_to_bytes

from muniment_server.errors import SettingsError

_URL = re.compile(
    r"postgres(?:ql)?://(?:(?P<user>[^\s:@/?#]*)(?::(?P<password>[^\s@/?#]*))?@)?(?P<hosts>[^\s@/?#]*)"
    r"(?:/(?P<database>[^\s@/?#]*))?(?:\?(?P<query>[^\s@?#]*))?"
)
_HOST = re.compile(r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?P<name>[^\s:\[\]]+))(?::(?P<port>[0-9]{1,5}))?")
_ESCAPED = re.compile(r"(?:[^%]|%[0-9A-Fa-f]{2})*")
_PORT = "5432"

# Parameters that the driver takes from a URL; None: any value.
_FILES = ("sslcert", "sslkey", "sslrootcert", "sslcrl")
_DRIVER: dict[str, tuple[str, ...] | None] = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "sslnegotiation": ("postgres", "direct"),
    "target_session_attrs": ("any", "primary", "standby", "read-write", "read-only", "prefer-standby"),
    "gsslib": ("gssapi", "sspi"),
    "ssl_min_protocol_version": ("TLSv1.2", "TLSv1.3"),
    "ssl_max_protocol_version": ("TLSv1.2", "TLSv1.3"),
    **dict.fromkeys((*_FILES, "sslpassword", "passfile", "service", "krbsrvname")),
}
# Parameters with these values ask for what is done anyway, or for nothing that this driver could do otherwise.
_DONE: dict[str, tuple[str, ...] | None] = {
    "channel_binding": ("disable", "prefer", "require"),
    "client_encoding": ("utf8", "UTF8", "utf-8", "UTF-8", "auto"),
    "gssencmode": ("disable", "prefer"),
    "load_balance_hosts": ("disable",),
    "sslcompression": ("0",),
    "sslsni": ("1",),
    **dict.fromkeys(
        ("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout"),
    ),
}
_SERVER = ("application_name", "options")
_OWN = ("host", "port", "user", "password", "dbname", "connect_timeout", "fallback_application_name")
KNOWN = tuple(sorted({*_DRIVER, *_DONE, *_SERVER, *_OWN}))
"""The parameters that may follow the question mark."""


def read_url(url: str) -> dict[str, Any]:
    """Return what a URL says, as arguments of `asyncpg.connect`. Raises SettingsError, which does not quote it."""
    match = _URL.fullmatch(url)
    if match is None:
        _wrong(
            "not a URL postgresql://USER@HOST:PORT/DATABASE. A password has its @ / # ? % and blanks as %40 %2F %23 "
            "%3F %25 %20, or stands in PGPASSWORD or the file that PGPASSFILE names"
        )
    query = _query(match["query"] or "")
    found: dict[str, Any] = {}
    for part, parameter in (("user", "user"), ("password", "password"), ("database", "dbname")):
        _once(match[part], query, parameter)
        found[part] = _text(match[part] or "") or query.get(parameter)
    hosts, ports = _hosts(match["hosts"], query)
    found |= {"host": hosts, "port": ports, **_timeout(query), **_server(query), **_tls(query)}
    return {name: value for name, value in found.items() if value}  # an empty password is none


def has_password(url: str) -> bool:
    """Tell whether a URL holds a secret. Raises SettingsError."""
    found = read_url(url)
    return "password" in found or "sslpassword=" in found.get("dsn", "")


def name_of(url: str) -> str:
    """Return the name of a database for people, without anything secret. Raises SettingsError."""
    found = read_url(url)
    places = [f"{host}:{port}" for host, port in zip(found.get("host", ()), found.get("port", ()), strict=False)]
    name = f" {found['database']}" if "database" in found else ""
    return f"Postgres database{name} on {', '.join(places) or 'the host of its service or PGHOST'}"


def _wrong(why: str) -> NoReturn:
    raise SettingsError(f"setting database: {why}") from None


def _once(part: str | None, query: dict[str, str], parameter: str) -> None:
    if part and query.get(parameter):
        _wrong(f"{parameter} is given twice, before ? and after it")


def _text(escaped: str) -> str:
    """Return what a part of a URL stands for. "+" is itself."""
    try:
        text = unquote_to_bytes(escaped).decode() if _ESCAPED.fullmatch(escaped) else "\0"
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        _wrong("% stands only before two hex digits, of UTF-8; % itself is %25, also in a password")
    return text


def _query(text: str) -> dict[str, str]:
    """Return the parameters after the question mark; of those given twice the last one counts, as in libpq."""
    found = {}
    for pair in filter(None, text.split("&")):
        name, equals, value = pair.partition("=")
        if not equals or name not in KNOWN:
            _wrong(
                f"after ? stand parameters NAME=VALUE; this one is not known here, which may be a ? in a password that "
                f"is not written %3F. Known are {', '.join(KNOWN)}. Settings of the server: options=-c%20name%3Dvalue"
            )
        found[name] = _text(value)
        if (allowed := (_DRIVER | _DONE).get(name)) and found[name] not in allowed:
            _wrong(f"{name} can be {', '.join(allowed)} here")
    return found


def _hosts(text: str, query: dict[str, str]) -> tuple[list[str], list[int]]:
    """Return the hosts and the port of each; none where the URL names none, so that the driver looks elsewhere."""
    _once(text, query, "host")
    shared = query.get("port", _PORT).split(",")
    if text:
        matches = [_HOST.fullmatch(each) for each in text.split(",")]
        if not all(matches):
            _wrong("a host is a name, an address, or an IPv6 address in [], and its port is a number")
        found = [(_text(each["ipv6"] or each["name"]), each["port"]) for each in matches if each]
    else:
        found = [(each, None) for each in query["host"].split(",")] if query.get("host") else []
    if not all(host for host, _ in found):
        _wrong("a host has no name")
    if len(shared) not in (1, len(found)):
        _wrong("port has one value, or one for each host")
    every = shared * len(found) if len(shared) == 1 else shared
    ports = [own or port for (_, own), port in zip(found, every, strict=True)]
    if not all(re.fullmatch(r"[0-9]{1,5}", port) and 1 <= int(port) <= 65_535 for port in [*ports, *shared]):
        _wrong("a port is a number from 1 to 65535")
    # A port without a host goes with the place where the driver looks by itself.
    return [host for host, _ in found], [int(port) for port in ports or (shared if "port" in query else [])]


def _timeout(query: dict[str, str]) -> dict[str, float]:
    text = query.get("connect_timeout", "0")
    if not re.fullmatch(r"[0-9]{1,9}", text):
        _wrong("connect_timeout is a number of seconds")
    return {"timeout": float(text)}  # 0, and so not given: libpq would wait for ever


def _server(query: dict[str, str]) -> dict[str, dict[str, str]]:
    """Return what the server itself is told."""
    settings = {name: query[name] for name in _SERVER if query.get(name)}
    if fallback := query.get("fallback_application_name"):
        settings.setdefault("application_name", fallback)
    return {"server_settings": settings}


def _tls(query: dict[str, str]) -> dict[str, Any]:
    """Return how the connection is secured: as a URL that says nothing else, which the driver reads for it."""
    if query.get("channel_binding") == "require" and query.get("sslmode") != "verify-full":
        _wrong(
            "channel_binding=require is not in the power of this driver. sslmode=verify-full protects from the same "
            "impostor, by the server's certificate: set it, with sslrootcert=system or the file of the provider"
        )
    if query.get("sslrootcert") == "system":
        return {"ssl": _system_authorities(query)}
    for name in _FILES:
        if query.get(name) and not Path(query[name]).is_file():
            _wrong(f"{name} names no file that this process can read")
    given = [f"{name}={quote(query[name])}" for name in query if name in _DRIVER and query[name]]
    return {"dsn": f"postgresql://?{'&'.join(given)}" if given else None}


def _system_authorities(query: dict[str, str]) -> Any:
    """Return a context that trusts the authorities of this machine, for `sslrootcert=system`."""
    import ssl  # noqa: PLC0415 - most databases do without

    others = {name for name in query if name.startswith("ssl")} - {"sslmode", "sslrootcert", "sslsni"}
    if others or query.get("sslmode", "verify-full") != "verify-full":
        _wrong("sslrootcert=system goes with sslmode=verify-full and no other parameter of TLS")
    return ssl.create_default_context()
