"""Evidence of a fork, judged by a verifier that was written from the page alone: all vectors, and its examples."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from tests.interop import evidence_by_the_page as page
from tests.test_spec import SPEC, blocks

VECTORS = json.loads((SPEC / "vectors" / "evidence.json").read_text())
CASES = [pytest.param(case, id=case["name"]) for case in VECTORS["cases"]]


def test_it_imports_nothing_of_ours() -> None:
    tree = ast.parse(Path(page.__file__).read_text())
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {name.split(".")[0] for name in names} == {"__future__", "base64", "cryptography", "hashlib", "json"}


def test_the_examples_of_the_page() -> None:
    examples = blocks(SPEC / "evidence.md")
    assert page.verify(examples["same-size"].encode(), examples["policy"]) == (3, 3)
    assert page.verify(examples["two-sizes"].encode(), examples["policy"]) == (2, 3)


@pytest.mark.parametrize("case", CASES)
def test_every_vector(case: dict) -> None:
    data = case["evidence"].encode()
    if not case["step"]:
        page.verify(data, VECTORS["policy"])
        return
    with pytest.raises(page.Bad) as refused:
        page.verify(data, VECTORS["policy"])
    assert refused.value.step == case["step"], refused.value


def test_the_vectors_spoil_in_every_step() -> None:
    steps = [case["step"] for case in VECTORS["cases"]]
    assert set(steps) == set(range(6))
    assert sum(step > 0 for step in steps) >= 40
    assert sum("two honest heads" in case["name"] for case in VECTORS["cases"]) >= 5
