"""What a server says of itself: at its start and end, and of each request where the operator asked for that."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from muniment_server import __version__
from tests.live import PATIENCE, LiveServer, free_port, init, run, until
from tests.service.http_check import JSON, client
from tests.service.http_raw import exchange, request_bytes, statuses

Told = tuple[list[dict[str, Any]], list[tuple[str, str, int, str]]]
"""Every line, and of each answer: method, target, status and X-Request-Id."""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """What a server said that was asked in every way there is, and whose files are not as they should be."""
    data = tmp_path_factory.mktemp("lines") / "data"
    init(data)
    (data / "keys" / "default.key").chmod(0o640)
    answers = []
    env = {"MUNIMENT_SERVER_ACCESS_LOG": "true", "MUNIMENT_SERVER_METRICS_PORT": str(free_port())}
    with LiveServer(data, env=env) as server:
        with client(server.url) as http:
            for method, target in (
                ("POST", "/entries"), ("POST", "/entries"), ("POST", "/entries"),  # the last one by its bytes
                ("GET", "/tile/0/000.p/1"), ("GET", "/tile/0/000.p/1"), ("GET", "/tile/0/000.p/1"),
                ("GET", "/tile/entries/000.p/1"), ("GET", "/entries?start=0&limit=1"), ("GET", "/proof/inclusion?index=0"), ("HEAD", "/log"),
                ("GET", "/entries/999"), ("GET", "/nothing"), ("DELETE", "/log"), ("POST", "/entries/batch"),
                ("GET", "/log?api_key=mk_" + 43 * "x"), ("GET", "/tile/0/000.p/9"), ("GET", "/tile/0/x"), ("GET", "/healthz"), ("GET", "/openapi.json"),
            ):  # fmt: skip
                body = b'{"a":1}' if method == "POST" else None
                answer = http.request(method, target, content=body, headers=JSON if body else {})
                answers.append((method, target, answer.status_code, answer.headers["x-request-id"]))
        answers += _pipelined(server.url)
    return [json.loads(line) for line in server.stderr().splitlines()], answers


def _pipelined(url: str) -> list[tuple[str, str, int, str]]:
    """Three requests in one segment: the second is here while the first waits for its batch."""
    asked = [("POST", "/entries"), ("GET", "/tile/0/000.p/1"), ("GET", "/log")]
    bodies = [b'{"a":1}' if method == "POST" else b"" for method, _ in asked]
    data = b"".join(request_bytes(*one, body, JSON) for one, body in zip(asked, bodies, strict=True))
    received = exchange(url, data, answers=len(asked))
    ids = re.findall(rb"\r\nx-request-id: ([^\r]+)\r\n", received)
    return [
        (*one, status, request.decode()) for one, status, request in zip(asked, statuses(received), ids, strict=True)
    ]


def test_each_answer_has_the_id_of_its_line(told: Told) -> None:
    lines, answers = told
    said = {line["request"]: line for line in lines if line["event"] == "request"}
    assert len(said) == len(answers) == len({one[3] for one in answers})
    for method, target, status, request in answers:
        line = said[request]
        told_target = target.replace("mk_" + 43 * "x", "mk_...")  # what a key opens must not stand in a log
        assert (line["method"], line["target"], line["status"]) == (method, told_target, status)
        assert line["client"] == "127.0.0.1"
        assert 0 <= line["seconds"] < 300


def test_start_and_end_are_said(told: Told) -> None:
    lines, _ = told
    (serving,) = (line for line in lines if line["event"] == "serving")
    assert serving["version"] == __version__
    assert serving["metrics"].startswith("http://127.0.0.1:")
    assert serving["metrics"].endswith("/metrics")
    assert lines[-1]["event"] == "stopped"


def test_what_the_operator_may_not_have_meant_is_said(told: Told) -> None:
    warned = {line["event"]: line for line in told[0] if line["level"] == "warning"}
    key = warned["others on this machine can read a secret"]
    assert key["file"].endswith("keys/default.key")
    assert key["hint"].startswith("run: chmod 600 ")
    assert "anyone on this machine may append and read payloads without a key" in warned


def test_nothing_is_said_where_nothing_is_wrong_or_asked_for(tmp_path: Path) -> None:
    data = tmp_path / "data"
    init(data)
    run("key", "create", "--scope", "append", "--data", data)
    with LiveServer(data) as server, client(server.url) as http:
        assert "x-request-id" not in http.get("/log").headers
    lines = [json.loads(line) for line in server.stderr().splitlines()]
    assert [line["event"] for line in lines if line["level"] == "warning"] == []
    assert "request" not in {line["event"] for line in lines}


def test_a_server_for_the_world_says_that_it_waits(tmp_path: Path) -> None:
    """It looks for API keys before anything else, and would be silent for as long as the database is away."""
    data = tmp_path / "data"
    init(data)
    database = f"postgresql://nobody:hunter2@127.0.0.1:{free_port()}/nowhere"
    server = LiveServer(data, "--host", "0.0.0.0", database=database, traced=False)
    try:
        until(lambda: "waiting for the database" in server.stderr())
    finally:
        server.stop()
    assert "hunter2" not in server.stderr()


def test_lines_of_a_command_are_no_part_of_its_result() -> None:
    """Work beside a command, such as a follower that begins while `init` is slow, may write lines at any time."""
    code = "from muniment_server.telemetry import get_logger; get_logger().warning('late', log='a\\nforged')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
