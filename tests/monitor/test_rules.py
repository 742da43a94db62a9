"""Entries that are looked for: by their hashes, and by what events say."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest

from muniment.errors import FormatError
from muniment.hashing import leaf_hash
from muniment.monitor import metrics
from muniment.monitor.follower import Status
from muniment.monitor.rules import Rule, ranges, read_rules
from tests.client.fake_log import FakeLog, problem
from tests.monitor.desk import Desk


def rules(tmp_path: Path, text: str) -> tuple[Rule, ...]:
    path = tmp_path / "rules.toml"
    path.write_text(text)
    return read_rules(path)


def add(log: FakeLog, *actions: str) -> None:
    log.add_events([{"action": action} for action in actions])
    log.publish()


async def test_leaves_by_their_hashes(desk: Desk, log: FakeLog, tmp_path: Path) -> None:
    add(log, *"abcdefgh")
    by_digest = ",".join(f'"{sha256(log.leaves[at]).hexdigest()}"' for at in (2, 3, 4, 7))
    by_hash = f'"{leaf_hash(log.leaves[5]).hex()}"'
    text = (
        f'[[rule]]\nname="one"\nsha256=[{by_digest}]\n[[rule]]\nname="two"\nleaf_hash=[{by_hash}]\nseverity="alarm"\n'
    )
    assert await desk.look(rules=rules(tmp_path, text)) is Status.GOOD
    facts = [one["facts"] for one in desk.findings()]
    assert facts == [
        {"rule": "one", "start": 2, "stop": 5},
        {"rule": "one", "start": 7, "stop": 8},
        {"rule": "two", "start": 5, "stop": 6},
    ]
    assert [one["severity"] for one in desk.findings()] == ["info", "info", "alarm"]


async def test_events_by_what_they_say(desk: Desk, log: FakeLog, tmp_path: Path) -> None:
    found = rules(tmp_path, '[[rule]]\nname="roles"\nquery="action:role.*"\n')
    add(log, "role.add", "role.drop", "other", *(["other"] * 300), "role.add")
    await desk.look(rules=found)
    add(log, "other", "role.add")
    await desk.look(rules=found)
    await desk.look(rules=found)
    assert [(one["facts"]["start"], one["facts"]["stop"]) for one in desk.findings()] == [
        (1, 3),
        (304, 305),
        (306, 307),
    ]


async def test_a_rule_that_comes_later_looks_at_what_comes_after_it(desk: Desk, log: FakeLog, tmp_path: Path) -> None:
    add(log, "role.add")
    await desk.look()
    add(log, "role.add")
    await desk.look(rules=rules(tmp_path, '[[rule]]\nname="roles"\nquery="action:role.*"\n'))
    assert [one["facts"]["start"] for one in desk.findings()] == [2]


async def test_events_that_are_closed_are_said_and_looked_at_later(desk: Desk, log: FakeLog, tmp_path: Path) -> None:
    found = rules(tmp_path, '[[rule]]\nname="roles"\nquery="action:role.*"\n')
    add(log, "role.add")
    log.tamper = lambda request, response: problem(403, "forbidden") if request.url.path == "/entries" else response
    assert await desk.look(rules=found) is Status.REFUSED
    assert desk.events("head")[-1]["tree_size"] == 2  # what does not take the key goes on
    log.tamper = None
    assert await desk.look(rules=found) is Status.GOOD
    assert desk.codes() == ["match"]


async def test_what_events_say_is_compared_with_what_was_read(desk: Desk, log: FakeLog, tmp_path: Path) -> None:
    found = rules(tmp_path, '[[rule]]\nname="roles"\nquery="action:role.*"\n')
    add(log, "role.add", "other")
    twin = log.fork()
    twin.payloads[1] = twin.payloads[2]
    log.tamper = lambda request, response: twin._list(0, 3) if request.url.path == "/entries" else response
    assert await desk.look(rules=found, grace=0) is Status.FOUND
    assert desk.codes() == ["bundle"]


async def test_matches_wait_for_the_root(desk: Desk, log: FakeLog, tmp_path: Path) -> None:
    """What is served under no root that was signed is no entry of the log."""
    text = f'[[rule]]\nname="x"\nsha256=["{sha256(b"x").hexdigest()}"]\n'
    add(log, "a")
    log.tamper = lambda request, response: (
        type(response)(200, content=response.content[: response.content.rindex(b"\0}")] + b"\0\1x")
        if "entries" in request.url.path
        else response
    )
    assert await desk.look(rules=rules(tmp_path, text)) is Status.BEHIND
    log.tamper = None
    assert await desk.look(rules=rules(tmp_path, text)) is Status.GOOD
    assert not desk.findings()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "[[rule]]",
        '[[rule]]\nname="a"',
        '[[rule]]\nname=""\nquery="a:b"',
        '[[rule]]\nname="a"\nquery="a:b"\nsha256=[]',
        '[[rule]]\nname="a"\nquery="a:"',
        '[[rule]]\nname="a"\nquery=1',
        '[[rule]]\nname="a"\nsha256=[]',
        '[[rule]]\nname="a"\nsha256=["AB"]',
        '[[rule]]\nname="a"\nsha256=[1]',
        '[[rule]]\nname="a"\nquery="a:b"\nseverity="warning"',
        '[[rule]]\nname="a"\nquery="a:b"\nother=1',
        '[[rule]]\nname="a"\nquery="a:b"\n[[rule]]\nname="a"\nquery="a:b"',
        '[rule]\nname="a"\nquery="a:b"',
        'other=1\n[[rule]]\nname="a"\nquery="a:b"',
    ],
)
def test_rules_that_are_none(tmp_path: Path, text: str) -> None:
    with pytest.raises(FormatError):
        rules(tmp_path, text)


def test_neighbours_are_one_range() -> None:
    rule = Rule("a")
    found = [(one.start, one.stop) for one in ranges(rule, [0, 1, 2, 4, 6, 7])]
    assert found == [(0, 3), (4, 5), (6, 8)]


async def test_metrics(desk: Desk, log: FakeLog, tmp_path: Path) -> None:
    add(log, "a")
    async with desk.follower() as found:
        await found.look()
        log.published_sizes.pop()
        desk.now += 1
        await found.look()
        desk.now += 60_000
        await found.look()
        metrics.write(tmp_path / "m.prom", [found], None)
    lines = (tmp_path / "m.prom").read_text().splitlines()
    labels = f'origin="example.com/log",url="{desk.url}"'
    assert f"muniment_monitor_tree_size{{{labels}}} 2" in lines
    assert f'muniment_monitor_findings_total{{{labels},code="rollback"}} 1' in lines
    assert f'muniment_monitor_open{{{labels},code="rollback"}} 1' in lines
    assert f'muniment_monitor_status{{{labels},status="found"}} 1' in lines
    assert all(line.startswith(("#", "muniment_monitor_")) for line in lines)
