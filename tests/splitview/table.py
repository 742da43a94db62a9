"""The table of misbehaviours: what a row says, and how one is added. Filled by views.py, heads.py and answers.py.

It is data. `caught` names the first of these that can notice a misbehaviour at all:

- ``client``: one client that remembers what it saw.
- ``monitor``: what follows the log for long, reads all of it, and has a clock. What it says rests on clocks, or on
  answers that no key signed.
- ``witnesses``: only readers who compare what they were shown, or witnesses who do it for them.
- ``none``: it harms no reader, and to refuse it would be the fault.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from muniment import Client
from muniment.errors import MunimentError
from tests.splitview.liar import Liar

Caught = Literal["client", "monitor", "witnesses", "none"]
Meets = Callable[[Client], Any]
Start = Callable[[Liar], None]


@dataclass(frozen=True)
class Misbehaviour:
    """A way to misbehave: `start` makes a log do it.

    `meets` is what a client does that would notice, and `error` what it then raises. `before` is what the client has
    done by then, besides taking the latest checkpoint.
    """

    name: str
    what: str
    caught: Caught
    start: Start
    meets: Meets
    error: type[MunimentError] | None = None
    before: Meets = Client.checkpoint


TABLE: dict[str, Misbehaviour] = {}


def row(
    name: str,
    what: str,
    caught: Caught,
    start: Start,
    meets: Meets,
    error: type[MunimentError] | None = None,
    before: Meets = Client.checkpoint,
) -> None:
    """Add a row."""
    if name in TABLE:
        raise AssertionError(f"two rows called {name}")
    TABLE[name] = Misbehaviour(name, what, caught, start, meets, error, before)


def latest(client: Client) -> object:
    """Take the latest checkpoint: what most of them are met by."""
    return client.checkpoint()
