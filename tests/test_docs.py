"""The docs say what the code does: generated pages are current, and every command in them runs."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from muniment.anchor.proof import merge_submission
from muniment.checkpoint import parse_checkpoint
from muniment.note import parse_note
from muniment_server.settings import Settings
from muniment_server.storage.anchors import AnchorRow, CalendarRow
from muniment_server.storage.sqlite.open import open_sqlite
from muniment_server.telemetry import Metrics
from muniment_server.web.openapi import document
from muniment_server.web.problems import CODES
from muniment_server.web.routes import ROUTES
from tests import gendocs
from tests.bitcoin.calendar import append, pending
from tests.live import PATIENCE, LiveServer, init, run
from tests.rigs.__main__ import all_rigs

LOG_ROUTES = [route for route in ROUTES if route.on == "log"]

ROOT = Path(__file__).parents[1]
ENDLESS = "GET /checkpoints/stream"
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("name", gendocs.PAGES)
def test_generated_page_is_current(name: str) -> None:
    assert (ROOT / "docs" / name).read_text("utf-8") == gendocs.PAGES[name](), "run `make docs`"


def test_every_route_is_in_the_openapi_document_and_has_a_curl_line(tmp_path: Path) -> None:
    openapi = document()
    served = {f"{method.upper()} {path}" for path, methods in openapi["paths"].items() for method in methods}
    for route in LOG_ROUTES:
        for prefix in ("", "/logs/{log}"):
            assert f"{route.method} {prefix}{route.path}".replace("{path:path}", "{path}") in {
                name.replace("{path:path}", "{path}") for name in served
            }
        assert f"{route.method} {route.path}" in gendocs.CURL


def test_every_error_code_in_the_code_is_in_the_catalogue() -> None:
    used = set()
    for path in (ROOT / "service" / "muniment_server").rglob("*.py"):
        text = path.read_text("utf-8")
        used |= set(
            re.findall(
                r"(?<!\w)(?:Refused\(\s*|NotFound\(\s*|problem\(\s*|GuardRefused\(\s*|ReadOnly\(\s*|_refuse\(\s*|"
                r"\((?:Corrupt|Behind|Replaced|StoreError|FormatError), )\"([a-z0-9_]+)\"",
                text,
            )
        )
    strict = (ROOT / "client" / "muniment" / "strictjson.py").read_text("utf-8")
    events = (ROOT / "client" / "muniment" / "event.py").read_text("utf-8")
    used |= set(re.findall(r'EventRefused\(\s*"([a-z0-9_]+)"', strict + events))
    assert used - set(CODES) == set()
    assert set(CODES) - used <= {"bad_parameter"}, "a code nothing uses"


def test_links_between_pages_lead_somewhere() -> None:
    broken = []
    for page in [*PAGES, *ROOT.glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert not broken


def test_symptoms_are_named_as_the_server_names_them() -> None:
    """Codes, settings and metrics of the table of incidents exist, and so do the places it leads to."""
    text = (ROOT / "docs" / "incidents.md").read_text("utf-8")
    table = text.partition("## By symptom")[2].partition("\n## ")[0]
    metrics = {sample.name for family in Metrics().registry.collect() for sample in family.samples}
    known = {*CODES, *Settings.model_fields, *metrics, *(family.name for family in Metrics().registry.collect())}
    for word in re.findall(r"`([a-z]+(?:_[a-z]+)+)`", table):
        assert word in known or f"{word}".removesuffix("_total") in known, word
    for page, place in re.findall(r"\]\(([\w.]*)#([\w-]+)\)", table):
        headings = re.findall(r"^#+ (.*)$", (ROOT / "docs" / (page or "incidents.md")).read_text("utf-8"), re.MULTILINE)
        assert place in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, place


@pytest.mark.parametrize("page", ["threat-model.md", "reliability.md"])
def test_tests_and_rigs_that_a_page_names_exist(page: str) -> None:
    text = (ROOT / "docs" / page).read_text("utf-8")
    for path in set(re.findall(r"`(tests/[\w/.-]+)`", text)):
        assert (ROOT / path).exists(), path
    listed = {
        name for found in re.findall(r"rigs? ((?:`[\w-]+`(?:, )?)+)", text) for name in re.findall(r"`([\w-]+)`", found)
    }
    assert listed <= set(all_rigs()), sorted(listed - set(all_rigs()))


@pytest.fixture
def two_logs(tmp_path: Path) -> LiveServer:
    data = tmp_path / "data"
    init(data)
    run("log", "create", "releases", "--data", data, "--origin", "example.com/releases", "--kind", "raw")
    asyncio.run(_store_anchor(data))
    with LiveServer(data) as server:
        yield server


async def _store_anchor(data: Path) -> None:
    """Store an anchor of the first checkpoint that a calendar has taken."""
    store = await open_sqlite(data / "muniment.sqlite")
    try:
        note = (await store.checkpoints.checkpoint(1)).note.encode()
        digest, url = sha256(note).digest(), "https://calendar.example"
        ots = merge_submission(None, digest, bytes(16), append(bytes(44)) + pending(url))
        row = AnchorRow(1, parse_checkpoint(parse_note(note).text).root, note, digest, bytes(16), 0, "pending", ots=ots)
        assert await store.anchors.add_anchor(1, row, [CalendarRow(1, url, "pending")])
    finally:
        await store.close()


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_every_curl_line_of_the_api_page_runs(two_logs: LiveServer, tmp_path: Path) -> None:
    env = {**os.environ, "URL": two_logs.url, "RAW": f"{two_logs.url}/logs/releases"}
    for name, line in gendocs.CURL.items():
        if name == ENDLESS:
            continue
        fail = "" if "-fO" in line else "--fail-with-body"
        script = line.replace("curl ", f"curl -sS {fail} --retry 3 --retry-all-errors --retry-delay 1 ")
        done = subprocess.run(
            ["bash", "-ec", f"set -o pipefail; {script}"],
            check=False,
            env=env,
            cwd=tmp_path,
            capture_output=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, (name, line, done.stdout, done.stderr)


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_the_curl_line_that_does_not_end_begins(two_logs: LiveServer) -> None:
    env = {**os.environ, "URL": two_logs.url}
    with subprocess.Popen(["bash", "-c", f"exec {gendocs.CURL[ENDLESS]}"], env=env, stdout=subprocess.PIPE) as curl:
        try:
            assert curl.stdout
            assert curl.stdout.readline().startswith(b"id: ")
        finally:
            curl.kill()


@pytest.mark.parametrize(
    ("name", "start", "found"), [("muniment", "ver", "verify"), ("muniment-server", "ser", "serve")]
)
def test_the_shell_completes_as_the_page_says(name: str, start: str, found: str) -> None:
    variable = f"_{name.upper().replace('-', '_')}_COMPLETE"
    assert f'eval "$({variable}=bash_source {name})"' in (ROOT / "docs" / "cli.md").read_text("utf-8")
    env = {**os.environ, "COMP_WORDS": f"{name} {start}", "COMP_CWORD": "1", variable: "bash_complete"}
    words = [str(Path(sys.executable).parent / name)]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.stdout == f"plain,{found}\n"


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_the_commands_of_the_readme_run(tmp_path: Path) -> None:
    said = _run_page(ROOT / "README.md", tmp_path)
    text = (ROOT / "README.md").read_text("utf-8")
    (good,) = (out for line, out in said.items() if "verify receipt.json" in line)
    assert good.startswith("receipt.json: OK\nProved: entry 1 of log example.com/log as of size 2, signed by ")
    (forged,) = (out for line, out in said.items() if "verify forged.json" in line)
    assert f"\n{forged}```" in text, "the page has another output of the forged receipt"


def test_the_figures_of_the_readme_are_those_of_the_measurement() -> None:
    """Of docs/performance.md, which is made from the JSON of a bench."""
    (said,) = re.findall(r"\*\*How fast\.\*\*(.*?)\n\n", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    rows = (ROOT / "docs" / "performance.md").read_text("utf-8").split("\n")
    (row,) = (row for row in rows if row.startswith("| events, one a request, 64 connections |"))
    postgres, sqlite = (re.findall(r"[\d,]+ a second|[\d.]+ ms", cell) for cell in row.strip("| ").split(" | ")[1:])
    found = [" ".join(each.split()) for each in re.findall(r"[\d,]+\s(?:events )?a second|[\d.]+ ms", said)]
    assert [each.replace("events ", "") for each in found] == [sqlite[0], sqlite[2], postgres[0], postgres[2]]


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_the_commands_of_the_quickstart_run(tmp_path: Path) -> None:
    _run_page(ROOT / "docs" / "quickstart.md", tmp_path)


def test_the_snippets_of_the_sdk_page_run(tmp_path: Path) -> None:
    _run_page(ROOT / "docs" / "sdk.md", tmp_path)


def _run_page(page: Path, folder: Path) -> dict[str, str]:
    """Run the console blocks of a page, in order, with one server behind its `serve` line; then its Python blocks.

    Returns what each command printed.
    """
    text, said = page.read_text("utf-8"), {}
    server: LiveServer | None = None
    env = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "XDG_STATE_HOME": str(folder / "state"),
    }
    try:
        for block in re.findall(r"```(console|python)\n(.*?)```", text, re.DOTALL):
            if block[0] == "python":
                assert server, "the page has no serve line before its Python"
                code = block[1].replace("http://127.0.0.1:8080", server.url)
                _check([sys.executable, "-W", "error", "-c", code], folder, env)
                continue
            for line in _commands(block[1]):
                if line.startswith("make ") or "pip install" in line:
                    continue  # this test is what they run
                if line.startswith("muniment-server serve"):
                    data = re.search(r"--data (\S+)", line)
                    assert data
                    server = server or LiveServer(folder / data[1]).wait()
                    continue
                url = server.url if server else "http://127.0.0.1:8080"
                wired = line.replace("http://127.0.0.1:8080", url).replace(
                    "curl ", "curl -sS --fail-with-body --retry 3 --retry-all-errors "
                )
                said[line] = _check(["bash", "-ec", wired], folder, env | {"MUNIMENT_URL": url})
    finally:
        if server:
            server.stop()
    return said


def _commands(block: str) -> list[str]:
    lines = [line[2:] for line in block.replace("\\\n", " ").splitlines() if line.startswith("$ ")]
    return [re.sub(r"\s+# .*$", "", line) for line in lines]


def _check(words: list[str], folder: Path, env: dict[str, str]) -> str:
    done = subprocess.run(
        words,
        check=False,
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout
