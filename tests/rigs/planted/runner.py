"""Plants one defect in a copy of the code, and checks that its test is green without it and red with it, for the planted reason.

python -m tests.rigs.planted.runner [NAME ...]      all of them, or those whose name holds one of the words
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
COPIED = ("client", "service", "migrations", "tests", "pyproject.toml")
TIMEOUT = 300  # seconds
_NOT_RUN = re.compile(r"ImportError|ModuleNotFoundError|SyntaxError|IndentationError|errors? during collection")


@dataclass(frozen=True)
class Change:
    """Text that occurs once in the files of a defect, and what stands there instead."""

    old: str
    new: str


@dataclass(frozen=True)
class Defect:
    """One planted defect, as its file says."""

    name: str
    incident: str
    defect: str
    files: str
    changes: tuple[Change, ...]
    reason: str
    test: str | None = None
    rig: str | None = None

    @classmethod
    def read(cls, path: Path) -> Defect:
        """Return the defect in a file."""
        value = tomllib.loads(path.read_text("utf-8"))
        changes = tuple(Change(**change) for change in value.pop("change"))
        return cls(path.stem, changes=changes, **value)

    def command(self) -> list[str]:
        """Return the command that must fail."""
        if self.rig:
            name, seeds = self.rig.split()
            words = ["tests.rigs", "--rig", name, "--seeds", seeds, "--report", "report.json"]
        else:
            words = ["pytest", "-x", "-q", "-p", "no:cacheprovider", str(self.test)]
        return [sys.executable, "-m", *words]


def all_defects() -> list[Defect]:
    """Return every defect, by name."""
    return [Defect.read(path) for path in sorted(Path(__file__).parent.glob("*.toml"))]


def copy_code(folder: Path) -> Path:
    """Copy what git knows or would add, as it is now, and return the folder of the copy."""
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *COPIED]
    listed = subprocess.run(words, cwd=ROOT, capture_output=True, check=True, timeout=60).stdout.decode().split("\0")
    for name in filter(None, listed):
        source, target = ROOT / name, folder / name
        if source.exists() or source.is_symlink():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    return folder


def environment(copy: Path) -> dict[str, str]:
    """Return the environment in which the packages of the copy, and no others, are imported."""
    path = os.pathsep.join(str(copy / part) for part in ("", "client", "service"))
    return os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "CI": ""}


def check_imports(copy: Path) -> None:
    """Raise AssertionError unless the packages of the copy are the ones that its tests import."""
    code = "import muniment, muniment_server, tests; print(muniment.__file__, muniment_server.__file__, tests.__file__)"
    words = [sys.executable, "-c", code]
    done = subprocess.run(
        words, cwd=copy, env=environment(copy), capture_output=True, text=True, check=True, timeout=60
    )
    outside = [name for name in done.stdout.split() if not Path(name).is_relative_to(copy)]
    if outside:
        raise AssertionError(f"the copy in {copy} imports {', '.join(outside)}")


def plant(defect: Defect, copy: Path) -> None:
    """Put the defect into the copy. Raises AssertionError when the code is no longer what the defect was made for."""
    for change in defect.changes:
        texts = {path: path.read_text("utf-8") for path in sorted(copy.glob(defect.files))}
        found = [path for path, text in texts.items() for _ in range(text.count(change.old))]
        if len(found) != 1:
            raise AssertionError(f"{defect.name}: found {len(found)} times in {defect.files}: {change.old!r}")
        found[0].write_text(texts[found[0]].replace(change.old, change.new), "utf-8")


def run(defect: Defect, copy: Path) -> tuple[int, str]:
    """Run the defect's test in a copy; return the exit code and what it printed."""
    done = subprocess.run(
        defect.command(),
        cwd=copy,
        env=environment(copy),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=TIMEOUT,
        check=False,
    )
    return done.returncode, done.stdout.decode("utf-8", "replace")


def check(defect: Defect, folder: Path) -> None:
    """Check that the test is green, and red with the defect. Raises AssertionError otherwise."""
    copy = copy_code(folder / "copy")
    check_imports(copy)
    code, output = run(defect, copy)
    if code or (defect.test and not re.search(r"\b[1-9][0-9]* passed", output)):
        raise AssertionError(
            f"{defect.name}: the test is not green without the defect (exit {code}):\n{output[-3000:]}"
        )
    plant(defect, copy)
    code, output = run(defect, copy)
    if code != 1:
        raise AssertionError(
            f"{defect.name}: NOT CAUGHT (exit {code}) by {defect.test or defect.rig}:\n{output[-3000:]}"
        )
    if _NOT_RUN.search(output) or not re.search(defect.reason, output):
        raise AssertionError(f"{defect.name}: red, but not for the planted reason:\n{output[-3000:]}")


def main() -> int:
    """Check the defects that were asked for, all by default."""
    code = 0
    for defect in all_defects():
        if sys.argv[1:] and not any(word in defect.name for word in sys.argv[1:]):
            continue
        with tempfile.TemporaryDirectory(prefix="muniment-planted-") as folder:
            try:
                check(defect, Path(folder))
            except AssertionError as error:
                print(f"{defect.name}: {error}", flush=True)
                code = 1
            else:
                print(f"{defect.name}: caught by {defect.test or defect.rig}", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
