"""Misbehaviours that show another tree: to all, or to some."""

from __future__ import annotations

from collections.abc import Callable

from muniment.errors import Behind, Inconsistent, Unproven
from muniment.event import event_leaf, format_time
from tests.client.fake_log import NOON, FakeLog
from tests.splitview.liar import EARLY, SIZE, Liar, absent
from tests.splitview.table import Start, latest, row


def _show(make: Callable[[Liar], FakeLog]) -> Start:
    def start(liar: Liar) -> None:
        liar.view = make(liar)

    return start


def _without(paths: tuple[str, ...], make: Callable[[Liar], FakeLog]) -> Start:
    """Show a view of which some paths are absent."""

    def start(liar: Liar) -> None:
        liar.view, liar.lie = make(liar), absent(*paths)

    return start


def _split(caller: str) -> Start:
    """Show one caller another history."""

    def start(liar: Liar) -> None:
        liar.views[caller] = liar.branch(120, early=True)

    return start


def _resigned(liar: Liar) -> FakeLog:
    """The honest log, but for its old head, which is now that of another history."""
    view, other = liar.honest.fork(), FakeLog()
    other.add_events([{"actor": "mallory", "n": n} for n in range(1, EARLY)])
    view.notes = view.notes | {EARLY: other.note(EARLY)}
    return view


def _back_in_time(liar: Liar) -> FakeLog:
    """The honest log, and then an entry that it says is a day older than the one before."""
    view = liar.honest.fork()
    view._grow([event_leaf("A" * 43, format_time(NOON - 86_400_000))])
    view.publish()
    return view


def _frozen(liar: Liar) -> FakeLog:
    view = liar.honest.fork()
    view.lag = True
    return view


OTHER_KEY, OTHER_READER, OTHER_ADDRESS = "Bearer other-key", "other-reader", "127.0.0.2"
_NO_PROOFS = ("/proof", "/tile")

row(
    "forks",
    "shows another history, and more of it",
    "client",
    _show(lambda liar: liar.branch(120, early=True)),
    latest,
    Inconsistent,
)
row(
    "forks-at-one-size",
    "shows another history of the same size",
    "client",
    _show(lambda liar: liar.branch(SIZE - EARLY, early=True)),
    latest,
    Inconsistent,
)
row(
    "forks-without-proofs",
    "shows another history, and has neither proofs nor tiles of it",
    "client",
    _without(_NO_PROOFS, lambda liar: liar.branch(120, early=True)),
    latest,
    Unproven,
)
row(
    "rolls-back",
    "shows a smaller tree, as if the last entries had never been",
    "client",
    _show(lambda liar: liar.early),
    latest,
    Behind,
)
row(
    "rolls-back-and-goes-on",
    "goes back, and logs other entries instead",
    "client",
    _show(lambda liar: liar.branch(150, early=True)),
    lambda client: client.append({"n": 1}),
    Inconsistent,
)
row(
    "forgets-an-append",
    "gives a receipt, and shows a tree of the same size without the entry",
    "client",
    _show(lambda liar: liar.branch(SIZE - EARLY + 1, early=True)),
    latest,
    Inconsistent,
    before=lambda client: client.append({"n": 1}),
)
row(
    "signs-old-heads-anew",
    "signs another root for a size it published before",
    "client",
    _show(_resigned),
    lambda client: list(client.checkpoints()),
    Inconsistent,
)
row(
    "late-tiles",
    "publishes a head before it has the tiles and proofs for it",
    "client",
    _without(_NO_PROOFS, lambda liar: liar.branch(20)),
    latest,
    Unproven,
)
row(
    "freezes",
    "takes entries and gives receipts, and never publishes again",
    "monitor",
    _show(_frozen),
    lambda client: (client.append({"n": 1}), client.checkpoint()),
)
row(
    "lies-about-time",
    "logs an entry with a time before that of the entry before it",
    "monitor",
    _show(_back_in_time),
    lambda client: list(client.entries(SIZE - 2)),
)
row("equivocates-by-key", "shows another history to one API key", "witnesses", _split(OTHER_KEY), latest)
row(
    "equivocates-by-user-agent",
    "shows another history to one kind of reader",
    "witnesses",
    _split(OTHER_READER),
    latest,
)
row("equivocates-by-address", "shows another history to one address", "witnesses", _split(OTHER_ADDRESS), latest)
