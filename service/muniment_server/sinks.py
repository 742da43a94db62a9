"""What a sink is, as the settings say it: where entries of a log are pushed to, and how much of them."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from muniment.errors import QueryError
from muniment.query import Query, parse_query

_LOCAL = ("localhost", "127.0.0.1", "::1")


def _url(text: str) -> str:
    """Return the URL of a receiver. Raises ValueError for one that would send entries in the clear."""
    parts = urlsplit(text)
    if not parts.hostname or parts.username is not None or parts.fragment or not text.isascii() or " " in text:
        raise ValueError("a URL like https://siem.example/muniment, without user, password and fragment")
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOCAL):
        raise ValueError("https, or http to this machine: entries would go over the network in the clear")
    return text


def _query(text: str) -> str:
    """Return the text of a query. Raises ValueError."""
    try:
        parse_query(text)
    except QueryError as error:
        raise ValueError(f"no query: {error}") from error
    return text


def _absolute(path: Path) -> Path:
    """Return a path. Raises ValueError for one that depends on where the server was started."""
    if not path.is_absolute():
        raise ValueError("an absolute path")
    return path


SinkName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
_Absolute = Annotated[Path, AfterValidator(_absolute)]


class Sink(BaseModel):
    """One sink: a table ``[push.NAME]`` of the settings. It has either `url` and `secrets`, or `file`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    log: str = Field("default", description="Name of the log whose entries are pushed.")
    url: Annotated[str, AfterValidator(_url)] | None = Field(None, description="Where a webhook posts its batches.")
    secrets: tuple[_Absolute, ...] = Field(
        (),
        max_length=4,
        description=(
            "Files with a secret each, of 16 bytes or more. A batch is signed with each of them: list the new one "
            "beside the old one until the receiver has it. They are read anew for each batch."
        ),
    )
    ca: _Absolute | None = Field(
        None, description="File of the certificate authorities that vouch for the receiver. Unset: those of the system."
    )
    file: _Absolute | None = Field(None, description="File to which rows are appended, one JSON object a line.")
    rotate_bytes: int = Field(
        256 * 2**20, ge=2**16, description="Bytes from which on the file is given a name that says its indices."
    )
    rotate_daily: bool = Field(default=False, description="Do that also with the first batch of a day, in UTC.")
    start: int = Field(0, ge=0, description="Index of the first entry that is pushed, when the sink is new.")
    query: Annotated[str, AfterValidator(_query)] = Field(
        "", description="Push the events that this query finds. Unset: every entry, the log's own too."
    )
    payloads: bool = Field(
        default=False,
        description="Push what events say. Without it, rows of events have their leaf and say when they were logged.",
    )
    receipts: bool = Field(
        default=False, description="Add a bundle of receipts to each batch, at its checkpoint. For webhooks."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.url is None) == (self.file is None):
            raise ValueError("a sink has url or file, and one of them alone")
        if (self.url is None) != (not self.secrets):
            raise ValueError("secrets go with url, one at least: a receiver could not tell who sends")
        if self.file is not None and (self.receipts or self.ca):
            raise ValueError("receipts and ca go with url: `muniment export --format receipts` writes bundles to files")
        if self.query and not self.payloads:
            raise ValueError("query goes with payloads = true: which events it finds says something of them")
        return self

    @property
    def parsed(self) -> Query | None:
        """The query; None where every entry is pushed."""
        return parse_query(self.query) if self.query.strip() else None

    def mark(self) -> bytes:
        """Return what stands for the settings that decide what is sent.

        A cursor belongs to one such: under others the same id would stand for another batch.
        """
        kind = "webhook" if self.url is not None else "file"
        return sha256(orjson.dumps([kind, self.query, self.payloads, self.receipts])).digest()
