"""Wheels that carry metadata and nothing else, and a build backend that makes one of a pyproject.toml.

Uses the standard library alone: in the index of `test_setup_any_day.py` this file is `hatchling/build.py`.
"""

from __future__ import annotations

import re
import tomllib
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_WHEEL = "Wheel-Version: 1.0\nGenerator: stub\nRoot-Is-Purelib: true\nTag: py3-none-any\n"

Fields = list[tuple[str, str]]


def write_wheel(
    folder: Path, name: str, version: str, fields: Iterable[tuple[str, str]], files: Mapping[str, str] | None = None
) -> Path:
    """Write a wheel of these files, with these fields in its METADATA, and return where it is."""
    stem = f"{re.sub('[-_.]+', '_', name)}-{version}"
    about = [("Metadata-Version", "2.1"), ("Name", name), ("Version", version), *fields]
    inside = {
        **(files or {}),
        f"{stem}.dist-info/METADATA": "".join(f"{field}: {value}\n" for field, value in about),
        f"{stem}.dist-info/WHEEL": _WHEEL,
    }
    record = f"{stem}.dist-info/RECORD"
    inside[record] = "".join(f"{path},,\n" for path in [*inside, record])
    where = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(where, "w") as wheel:
        for path, text in inside.items():
            wheel.writestr(path, text)
    return where


def fields_of(project: dict[str, Any]) -> Fields:
    """Return what a `[project]` table says in METADATA of the packages it needs."""
    fields = [("Requires-Dist", needed) for needed in project["dependencies"]]
    for extra, wanted in project.get("optional-dependencies", {}).items():
        fields.append(("Provides-Extra", extra))
        fields += [("Requires-Dist", f'{needed} ; extra == "{extra}"') for needed in wanted]
    return fields


def build_wheel(wheel_directory: str, _settings: object = None, _metadata: object = None) -> str:
    """Build the wheel of the current folder (PEP 517) and return its file name."""
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    return write_wheel(Path(wheel_directory), project["name"], project["version"], fields_of(project)).name


build_editable = build_wheel
