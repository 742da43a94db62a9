"""What is remembered survives crashes and other processes, and damage to it is never an accusation."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from muniment import state
from muniment.errors import StateError
from muniment.state import FileState, MemoryState, State, default_path

NOTES = ["note one\n\n— a AAAA\n", "note two\n", "three"]


@pytest.fixture(params=["memory", "file"])
def memory(request: pytest.FixtureRequest, tmp_path: Path) -> State:
    return MemoryState() if request.param == "memory" else FileState(tmp_path / "deep" / "checkpoints.json")


def test_compare_and_swap(memory: State) -> None:
    assert memory.get("a") is None
    assert memory.swap("a", None, NOTES[0])
    assert not memory.swap("a", None, NOTES[1])
    assert memory.get("a") == NOTES[0]
    assert memory.swap("a", NOTES[0], NOTES[1])
    assert not memory.swap("a", NOTES[0], NOTES[2])
    assert memory.get("a") == NOTES[1]


def test_origins_do_not_meet(memory: State) -> None:
    assert memory.swap("a", None, NOTES[0])
    assert memory.swap("b", None, NOTES[1])
    assert (memory.get("a"), memory.get("b"), memory.get("c")) == (NOTES[0], NOTES[1], None)


def test_two_files_states_share_the_file(tmp_path: Path) -> None:
    one, two = FileState(tmp_path / "s"), FileState(tmp_path / "s")
    assert one.swap("a", None, NOTES[0])
    assert two.get("a") == NOTES[0]
    assert not two.swap("a", None, NOTES[1])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 187,
        b"{",
        b"[]",
        b"{}",
        b'{"typ":"muniment/checkpoints@v2","checkpoints":{}}',
        b'{"typ":"muniment/checkpoints@v1"}',
        b'{"typ":"muniment/checkpoints@v1","checkpoints":[]}',
        b'{"typ":"muniment/checkpoints@v1","checkpoints":{"a":1}}',
        b'{"typ":"muniment/checkpoints@v1","checkpoints":{"a":"x","a":"y"}}',
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_damage(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "s"
    path.write_bytes(content)
    with pytest.raises(StateError, match="says nothing about any log"):
        FileState(path).get("a")
    with pytest.raises(StateError):
        FileState(path).swap("a", None, "x")
    assert path.read_bytes() == content


def test_every_cut_of_the_file_is_damage_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "s"
    FileState(path).swap("a", None, NOTES[0])
    whole = path.read_bytes()
    for cut in range(len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(StateError):
            FileState(path).get("a")


def test_a_folder_where_the_file_should_be(tmp_path: Path) -> None:
    with pytest.raises(StateError):
        FileState(tmp_path).get("a")
    (tmp_path / "plain").write_text("x")
    with pytest.raises(StateError):
        FileState(tmp_path / "plain" / "below").swap("a", None, "x")


@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_a_write_that_fails_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    memory = FileState(tmp_path / "s")
    memory.swap("a", None, NOTES[0])

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((state.os, "fsync") if step == "fsync" else (Path, "replace")), fail)
    with pytest.raises(StateError, match="No space left"):
        memory.swap("a", NOTES[0], NOTES[1])
    monkeypatch.undo()
    assert memory.get("a") == NOTES[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s", "s.lock"]


def test_bytes_are_durable_before_the_name_points_to_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    real_fsync, real_replace = os.fsync, Path.replace
    monkeypatch.setattr(state.os, "fsync", lambda fd: (order.append("fsync"), real_fsync(fd))[1])
    monkeypatch.setattr(Path, "replace", lambda self, to: (order.append("rename"), real_replace(self, to))[1])
    FileState(tmp_path / "s").swap("a", None, "x")
    assert order == ["fsync", "rename", "fsync"]


def _count_up(path: str, times: int) -> None:
    memory = FileState(path)
    for _ in range(times):
        while True:
            known = memory.get("n")
            if memory.swap("n", known, str(int(known or 0) + 1)):
                break


def test_processes_lose_no_update(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_count_up, args=(path, 25)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert FileState(path).get("n") == "100"
    assert json.loads(Path(path).read_text())["checkpoints"] == {"n": "100"}


def test_where_the_command_line_remembers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_path() == tmp_path / "muniment" / "checkpoints.json"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for odd in ("", "relative/path"):
        monkeypatch.setenv("XDG_STATE_HOME", odd)
        assert default_path() == tmp_path / "home" / ".local" / "state" / "muniment" / "checkpoints.json"
    assert FileState().path == default_path()
