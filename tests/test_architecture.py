"""The architecture as a test: which module may import which, what a verifier must never load, no `assert` outside tests."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.live import PATIENCE
from tests.unit.samples import EVENTS, POLICY, event_log

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"muniment": ROOT / "client" / "muniment", "muniment_server": ROOT / "service" / "muniment_server"}

# A module imports only what stands to its left. A package counts as one module: by its first component. `__init__` is the
# package itself: what a module may import from it by name. A new module gets its place here, or the test fails.
ORDER = {
    "muniment": [
        "errors",
        "encoding",
        "words",
        "hashing",
        "proofs",
        "paths",
        "tiles",
        "tree",
        "note",
        "checkpoint",
        "sse",
        "policy",
        "signatures",
        "strictjson",
        "event",
        "query",
        "times",
        "members",
        "names",
        "anchored",
        "tlogproof",
        "receipt",
        "receipts",
        "contradictions",
        "webhook",
        "evidence",
        "__init__",
        "wire",
        "anchor",
        "verify",
        "rowtext",
        "csvtext",
        "reconcile",
        "receipts_report",
        "evidence_report",
        "receipts_jobs",
        "receipts_part",
        "plain",
        "state",
        "_flows",
        "client",
        "monitor",
        "cli",
    ],
    "muniment_server": [
        "__init__",
        "errors",
        "database_url",
        "sinks",
        "settings",
        "failpoints",
        "telemetry",
        "trace",
        "host",
        "tile_rows",
        "terms",
        "storage",
        "write",
        "read",
        "follow",
        "check",
        "log",
        "instance",
        "access",
        "backup",
        "web",
        "app",
        "cli",
    ],
}
# The clients load when first named: see muniment.__getattr__.
LAZY = {("muniment", "__init__", "client")}

# Within a package no two modules import each other, over however many others, but for these. The page of the API is made from
# the routes, and the route that serves it is one of them; the handlers of the instance take what all routes share as an argument.
BACK = {
    ("muniment_server.web.handlers.system", "muniment_server.web.openapi"),
    ("muniment_server.web.handlers.system", "muniment_server.web.service"),
}

# What a verifier needs beside the standard library. Everything else loads with the clients or the CLI.
VERIFIER_NEEDS = {"cryptography", "rfc8785"}
VERIFIER_MODULES = ORDER["muniment"][: ORDER["muniment"].index("wire")]


def modules(package: str) -> list[Path]:
    """Every Python file of a package."""
    found = sorted(PACKAGES[package].rglob("*.py"))
    assert found, f"no modules in {PACKAGES[package]}"
    return found


def component(package: str, path: Path) -> str:
    """The module or subpackage of `package` that a file belongs to."""
    return path.relative_to(PACKAGES[package]).parts[0].removesuffix(".py")


def imports(path: Path, package: str) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of everything a file imports, in functions and for type checkers too; relative names resolved.

    ``from a import b`` yields ``a.b``: whether b is a module or a name in a is for the reader to tell.
    """
    parents = [package, *path.relative_to(PACKAGES[package]).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = parents[: len(parents) - node.level + 1] if node.level else []
            base = [*above, *(node.module.split(".") if node.module else [])]
            yield from ((node.lineno, ".".join([*base, alias.name])) for alias in node.names)


def imported_components(path: Path, package: str) -> Iterator[tuple[int, str]]:
    """Yield (line, component) of each import from the same package."""
    for line, name in imports(path, package):
        first, _, rest = name.partition(".")
        if first == package:
            head = rest.partition(".")[0]
            folder = PACKAGES[package]
            known = (folder / head).is_dir() or (folder / f"{head}.py").is_file()
            yield line, head if head and known else "__init__"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_has_its_place(package: str) -> None:
    order = ORDER[package]
    assert len(set(order)) == len(order)
    there = {component(package, path) for path in modules(package)}
    assert not there - set(order), f"give {sorted(there - set(order))} a place in ORDER and in docs/architecture.md"
    assert not set(order) - there, f"ORDER names {sorted(set(order) - there)}, which do not exist"


@pytest.mark.parametrize("package", PACKAGES)
def test_modules_import_only_to_their_left(package: str) -> None:
    order = {name: place for place, name in enumerate(ORDER[package])}
    wrong = []
    for path in modules(package):
        own = component(package, path)
        for line, other in imported_components(path, package):
            if other == own or (package, own, other) in LAZY:
                continue
            if order.get(other, len(order)) >= order.get(own, -1):
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {own} must not import {other}")
    assert not wrong, "\n".join(wrong)


def module_imports(package: str) -> dict[str, set[str]]:
    """What each module of a package imports of it, by dotted name. An import of a name counts as one of its module."""
    files = {
        ".".join([package, *path.relative_to(PACKAGES[package]).with_suffix("").parts]).removesuffix(".__init__"): path
        for path in modules(package)
    }
    found: dict[str, set[str]] = {}
    for own, path in files.items():
        found[own] = set()
        for _, name in imports(path, package):
            while name and name not in files:
                name = name.rpartition(".")[0]  # noqa: PLW2901 - from the name of a thing to that of its module
            found[own] |= {name} - {"", own}
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_direction(package: str) -> None:
    """Also between the modules of one folder, which have one place in ORDER: following imports never leads back."""
    graph = {
        own: {other for other in found if (own, other) not in BACK} for own, found in module_imports(package).items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_every_exception_is_needed() -> None:
    """An import that no longer closes a circle is no exception."""
    there = module_imports("muniment_server")
    assert {(own, other) for own, found in there.items() for other in found} >= BACK


def test_every_way_to_import_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGES, "muniment", tmp_path)
    (tmp_path / "client").mkdir()
    (tmp_path / "tree.py").touch()
    path = tmp_path / "client" / "drivers.py"
    path.write_text(
        "import muniment.tree\nfrom muniment import tree\nfrom muniment.tree import grow\nfrom .. import tree\n"
        "from ..tree import grow\nfrom . import drivers\nfrom .drivers import x\nfrom muniment import Policy\nimport muniment\n"
        "if True:\n    import muniment.tree as t\ndef f():\n    from muniment import client, tree as u\nimport json.tree\n"
    )
    assert [name for _, name in imported_components(path, "muniment")] == [
        "tree", "tree", "tree", "tree", "tree", "client", "client", "__init__", "__init__", "tree", "client", "tree",
    ]  # fmt: skip


def test_the_client_does_not_know_the_server() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in modules("muniment")
        for line, name in imports(path, "muniment")
        if name.partition(".")[0] == "muniment_server"
    ]
    assert not wrong


def test_the_server_uses_no_client_of_itself() -> None:
    """Proofs and formats are shared; HTTP clients and commands are not the server's business."""
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in modules("muniment_server")
        for line, name in imports(path, "muniment_server")
        if name.split(".")[:2]
        in (["muniment", "_flows"], ["muniment", "client"], ["muniment", "cli"], ["muniment", "AsyncClient"])
    ]
    assert not wrong, wrong


def test_verification_needs_two_libraries() -> None:
    allowed = sys.stdlib_module_names | VERIFIER_NEEDS | {"muniment"}
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in modules("muniment")
        if component("muniment", path) in VERIFIER_MODULES
        for line, name in imports(path, "muniment")
        if name.partition(".")[0] not in allowed
    ]
    assert not wrong


@pytest.mark.parametrize("package", PACKAGES)
def test_no_assert_statement(package: str) -> None:
    """``python -O`` strips them: a check that matters raises AssertionError itself."""
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in modules(package)
        for node in ast.walk(ast.parse(path.read_text(), str(path)))
        if isinstance(node, ast.Assert)
    ]
    assert not wrong


VERIFY_OFFLINE = """
import json, sys
import muniment
from muniment import Policy, Receipt
given = json.load(sys.stdin)
policy = Policy.parse(given["policy"])
found = Receipt.parse(given["receipt"]).verify(policy)
assert Receipt.parse(given["tlog_proof"]).verify(policy).leaf == found.leaf
print(json.dumps({"opened": found.opened, "complete": found.complete, "modules": sorted(sys.modules)}))
"""


def test_verifying_offline_loads_no_client() -> None:
    receipt = event_log().receipt(1)
    given = {"policy": str(POLICY), "receipt": str(receipt), "tlog_proof": receipt.to_tlog_proof()}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", VERIFY_OFFLINE],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["opened"] == EVENTS[0]
    assert said["complete"]
    loaded = {name.partition(".")[0] for name in said["modules"]}
    assert not loaded & {
        "httpx",
        "httpcore",
        "anyio",
        "click",
        "rich",
        "asyncio",
        "muniment_server",
        "fastapi",
        "pydantic",
    }
    assert not any(name.startswith(("muniment.client", "muniment.cli", "muniment._flows")) for name in said["modules"])


def test_a_server_loads_the_library_of_its_own_database_alone() -> None:
    code = "import sys, muniment_server.app; print({'apsw', 'asyncpg'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.stdout.strip() == "set()", done.stderr


def test_the_clients_load_when_named() -> None:
    code = "import sys, muniment; muniment.AsyncClient; muniment.Client; print('httpx' in sys.modules)"
    if not (PACKAGES["muniment"] / "client").is_dir() and not (PACKAGES["muniment"] / "client.py").is_file():
        pytest.skip("this tree has no HTTP client yet")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.stdout.strip() == "True", done.stderr
    code = "import muniment; muniment.Nothing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert "has no attribute 'Nothing'" in done.stderr
