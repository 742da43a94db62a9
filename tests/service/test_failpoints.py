"""Failpoints: nothing at all when off, and when on each step fails, kills or hangs as armed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from muniment_server import failpoints
from muniment_server.failpoints import Armed, parse
from muniment_server.storage.sqlite.append import SqliteAppend
from muniment_server.write.guard import Guard
from muniment_server.write.sequencer import Sequencer
from tests.live import PATIENCE


@pytest.mark.skipif(failpoints.ON, reason="MUNIMENT_FAILPOINTS is set in this environment")
def test_off_means_that_the_very_function_runs():
    def function() -> None: ...

    assert failpoints.step("anything")(function) is function
    assert not failpoints.steps
    for marked in (Guard.swap, Sequencer._recheck, SqliteAppend.append):
        assert not hasattr(marked, "__wrapped__")
    with pytest.raises(ValueError, match="failpoints are off"):
        failpoints.arm("guard.swap", "fail", "before")


def test_what_the_variable_says():
    assert parse("") == {}
    found = parse("store.append=fail-after;guard.swap=kill-before@3")
    assert found == {"store.append": Armed("fail", "after", 1), "guard.swap": Armed("kill", "before", 3)}


@pytest.mark.parametrize(
    "text", ["append", "append=fail", "append=explode-after", "=fail-after", "a=fail-after@x", "a=fail-now"]
)
def test_what_it_cannot_say(text: str):
    with pytest.raises(ValueError, match="not a failpoint"):
        parse(text)


CODE = """
import asyncio, sys
from muniment_server import failpoints
from muniment_server.failpoints import step

@step("plain")
def plain():
    print("plain", flush=True)

@step("later")
async def later():
    print("later", flush=True)

def run():
    for call in (1, 2, 3):
        try:
            plain()
            asyncio.run(later())
        except failpoints.Injected as error:
            print(error, flush=True)
    print(failpoints.hits)
run()
"""


def said(armed: str) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env=os.environ | {failpoints.VARIABLE: armed},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return done.returncode, done.stdout.splitlines()


def test_fail_before_and_after():
    code, lines = said("plain=fail-before@2;later=fail-after")
    assert (code, lines) == (
        0,
        [
            "plain",
            "later",
            "failpoint later after",
            "failpoint plain before",
            "plain",
            "later",
            "{'plain': 3, 'later': 2}",
        ],
    )


@pytest.mark.parametrize(("moment", "last"), [("before", "plain"), ("after", "later")])
def test_kill(moment: str, last: str):
    code, lines = said(f"later=kill-{moment}")
    assert (code, lines[-1]) == (-signal.SIGKILL, last)


def test_hang():
    with subprocess.Popen(
        [sys.executable, "-c", CODE], env=os.environ | {failpoints.VARIABLE: "plain=hang-after"}, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"plain\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.kill()
