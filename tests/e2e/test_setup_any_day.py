"""Set-up on a later day: from an index in which every pinned package has a newer release too.

The packages are stubs whose metadata is that of the real ones, so that pip has the same to resolve and to check.
What is run is the Makefile and the commands of the Dockerfile, with the pip of the running environment.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from muniment_server import __version__
from tests.e2e import stub_backend

ROOT = Path(__file__).parents[2]
LISTS = ("requirements/dev.txt", "deploy/requirements.txt", "deploy/requirements-build.txt")
OURS = {"muniment": __version__, "muniment-server": __version__}
SECONDS = 600  # for a command, on the slowest machine

_BACKEND = {"hatchling/__init__.py": "", "hatchling/build.py": Path(stub_backend.__file__).read_text()}
# Most of the time that `python -m venv` takes goes into pip: that of the running environment is copied instead.
_PYTHON = """#!/bin/sh
set -e
test "$1 $2" = "-m venv" || exec "{python}" "$@"
"{python}" -m venv --without-pip "$3"
cp -pR "{packages}/pip" "{packages}/pip-{version}.dist-info" "$3"/lib/python*/site-packages
printf '#!/bin/sh\\nexec "%s/bin/python" -m pip "$@"\\n' "$3" >"$3/bin/pip"
chmod +x "$3/bin/pip"
"""
_PIP = metadata.version("pip")


@dataclass(frozen=True)
class FakeMachine:
    """A folder with an index of stubs, a copy of what set-up reads, and a `python` whose `-m venv` is quick."""

    folder: Path
    hashes: dict[str, str]

    @property
    def tree(self) -> Path:
        """Where the copy is."""
        return self.folder / "tree"

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the tree; pip knows no index but that of stubs."""
        clean = {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_INDEX_URL": (self.folder / "index").as_uri(),
        }
        return subprocess.run(
            words,
            cwd=self.tree,
            env=clean | environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    def edit(self, name: str, old: str, new: str) -> None:
        """Replace what a file of the tree must have."""
        path = self.tree / name
        assert re.search(old, path.read_text(), re.MULTILINE), (name, old)
        path.write_text(re.sub(old, new, path.read_text(), flags=re.MULTILINE))

    def take_out(self, name: str, pins: set[str]) -> str:
        """Remove pins from a list of the tree, and return it as it was."""
        whole = (self.tree / name).read_text()
        self.edit(name, f"^({'|'.join(sorted(pins))})==.*\n", "")
        return whole

    def make_setup(self) -> subprocess.CompletedProcess[str]:
        """Run `make setup`."""
        return self.run("make", "setup", "PYTHON=python")

    def build_image(self) -> subprocess.CompletedProcess[str]:
        """Run what the first stage of the Dockerfile runs; absolute paths in the image are below `self.folder` here."""
        stage = (self.tree / "deploy/Dockerfile").read_text().split("\nFROM ")[1].replace("\\\n", "")
        commands = " && ".join(re.findall("^RUN (.*)", stage, re.MULTILINE))
        environment = dict(pair.split("=") for pair in re.findall("^ENV (.*)", stage, re.MULTILINE)[0].split())
        return self.run("sh", "-c", re.sub(r"(?<= )/(?=\w)", f"{self.folder}/", commands), **environment)


def pins(text: str) -> list[Requirement]:
    """Return the pins of a list."""
    lines = (line.rstrip(" \\") for line in text.splitlines() if line and line[0] not in " #")
    return [Requirement(line) for line in lines]


def version_of(pin: Requirement) -> str:
    """Return the version that a pin names."""
    (only,) = pin.specifier
    assert only.operator == "=="
    return only.version


def here(pin: Requirement) -> bool:
    """Tell whether a pin is for this Python and this machine."""
    return pin.marker is None or pin.marker.evaluate()


def fields_of(name: str) -> stub_backend.Fields:
    """Return what the real package says of those it needs; nothing when it is not for this machine."""
    try:
        about = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return []
    wanted = ("Requires-Python", "Provides-Extra", "Requires-Dist")
    return [(field, value) for field in wanted for value in about.get_all(field) or ()]


def publish(index: Path, pin: Requirement) -> str:
    """Put the pinned release of a package and a newer one into the index, and return the hash of the pinned one."""
    folder = index / canonicalize_name(pin.name)
    folder.mkdir(parents=True)
    pinned, fields = version_of(pin), fields_of(pin.name)
    newer = ".".join(map(str, (*Version(pinned).release, 1)))
    files = _BACKEND if pin.name == "hatchling" else None
    wheels = [stub_backend.write_wheel(folder, pin.name, version, fields, files) for version in (pinned, newer)]
    links = "".join(f'<a href="{wheel.name}">{wheel.name}</a>\n' for wheel in wheels)
    (folder / "index.html").write_text(links)
    return hashlib.sha256(wheels[0].read_bytes()).hexdigest()


def copy_tree(tree: Path, hashes: dict[str, str]) -> None:
    """Copy what set-up reads; the lists have the hashes of the stubs."""
    for name in ("Makefile", "deploy/Dockerfile", "client/pyproject.toml", "service/pyproject.toml"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tree / name)
    for name in LISTS:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        lines = [f"{pin} --hash=sha256:{hashes[pin.name]}\n" for pin in pins((ROOT / name).read_text())]
        (tree / name).write_text("".join(lines))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> FakeMachine:
    """Make the index and the `python`, once."""
    folder = tmp_path_factory.mktemp("any-day")
    hashes = {pin.name: publish(folder / "index", pin) for pin in pins((ROOT / LISTS[0]).read_text())}
    (folder / "bin").mkdir()
    python = folder / "bin" / "python"
    packages = metadata.distribution("pip").locate_file("")
    python.write_text(_PYTHON.format(python=sys.executable, packages=packages, version=_PIP))
    python.chmod(0o755)
    return FakeMachine(folder, hashes)


@pytest.fixture
def world(base: FakeMachine, tmp_path: Path) -> FakeMachine:
    """Give a tree of its own to each test."""
    for name in ("index", "bin"):
        (tmp_path / name).symlink_to(base.folder / name)
    copy_tree(tmp_path / "tree", base.hashes)
    return FakeMachine(tmp_path, base.hashes)


def installed(environment: Path) -> dict[str, str]:
    """Return the packages of a virtual environment with their versions, without pip."""
    (folder,) = environment.glob("lib/python*/site-packages")
    found = {canonicalize_name(one.name): one.version for one in metadata.distributions(path=[str(folder)])}
    return {name: version for name, version in found.items() if name != "pip"}


def pinned(name: str) -> dict[str, str]:
    """Return what a list pins for this machine."""
    return {canonicalize_name(pin.name): version_of(pin) for pin in pins((ROOT / name).read_text()) if here(pin)}


def missing(done: subprocess.CompletedProcess[str]) -> set[str]:
    """Return which packages `pip check` found to be missing."""
    assert done.returncode != 0, done.stdout
    return set(re.findall(r" requires ([\w-]+), which is not installed", done.stdout))


def test_setup_fails_when_a_pin_is_missing_and_installs_the_pins_when_none_is(world: FakeMachine) -> None:
    """Missing are one that our own packages ask for, and one that only others do."""
    whole = world.take_out("requirements/dev.txt", {"apsw", "idna"})
    assert missing(world.make_setup()) == {"apsw", "idna"}
    assert not (world.tree / ".venv" / ".ready").exists()
    (world.tree / "requirements/dev.txt").write_text(whole)
    done = world.make_setup()
    assert done.returncode == 0, done.stdout + done.stderr
    assert installed(world.tree / ".venv") == pinned("requirements/dev.txt") | OURS
    assert (world.tree / ".venv" / ".ready").exists()


@pytest.mark.skipif(Version(_PIP) >= Version("23.3"), reason="this pip resolves to what is pinned")
def test_setup_fails_when_pip_is_left_to_resolve(world: FakeMachine) -> None:
    """So the index is one of a later day indeed."""
    world.edit("Makefile", "--no-deps (?=--require-hashes)", "")
    done = world.make_setup()
    assert done.returncode != 0
    assert re.search(r"all requirements must have their versions pinned.*pydantic\[email\]", done.stderr, re.DOTALL)
    assert not (world.tree / ".venv" / ".ready").exists()


def test_image_is_built_of_the_pins(world: FakeMachine) -> None:
    done = world.build_image()
    assert done.returncode == 0, done.stdout + done.stderr
    assert installed(world.folder / "opt/build") == pinned("deploy/requirements-build.txt")
    assert installed(world.folder / "opt/muniment") == pinned("deploy/requirements.txt") | OURS


@pytest.mark.parametrize(
    ("name", "gone"), [("deploy/requirements-build.txt", {"pathspec"}), ("deploy/requirements.txt", {"apsw", "idna"})]
)
def test_image_is_not_built_when_a_pin_is_missing(world: FakeMachine, name: str, gone: set[str]) -> None:
    world.take_out(name, gone)
    assert missing(world.build_image()) == gone
