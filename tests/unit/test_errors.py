"""The exception tree is the one drawn in the docstring, and every error says what it has to say."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest

from muniment import errors
from muniment_server import errors as server_errors


def drawn(module: ModuleType, base: str) -> dict[str, str]:
    """Each error of the drawing with its parent, read by indentation."""
    parents: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in inspect.getdoc(module).splitlines():  # type: ignore[union-attr]
        match = re.match(r"(?P<branch>(?:    )(?:[│ ]   )*(?:[├└]── )?)(?P<name>[A-Z]\w+)(?:\s|$)", line)
        if match and (above or match["name"] == base):
            depth = len(match["branch"])
            while above and above[-1][0] >= depth:
                above.pop()
            parents[match["name"]] = above[-1][1] if above else "Exception"
            above.append((depth, match["name"]))
    return parents


def defined(module: ModuleType) -> dict[str, str]:
    """Each public error with the nearest public class above it."""
    found = {}
    for name, value in vars(module).items():
        if inspect.isclass(value) and issubclass(value, BaseException) and not name.startswith("_"):
            above = next(base for base in value.__mro__[1:] if not base.__name__.startswith("_"))
            found[name] = above.__name__
    return found


@pytest.mark.parametrize(("module", "base"), [(errors, "MunimentError"), (server_errors, "ServerError")])
def test_the_tree_is_as_drawn(module: ModuleType, base: str) -> None:
    assert len(drawn(module, base)) >= 15
    assert defined(module) == drawn(module, base)


def test_the_server_has_one_tree() -> None:
    """Every public error is in it, and no two classes have one name."""
    folder = Path(server_errors.__file__).parent
    found = [
        node.name
        for path in sorted(folder.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ClassDef)
        and {ast.unparse(base) for base in node.bases} & {*defined(server_errors), "Exception"}
    ]
    own = {"ServerError", *defined(server_errors)}
    assert sorted(name for name in found if not name.startswith("_")) == sorted(own)


def test_a_verifier_catches_two_classes() -> None:
    assert not issubclass(errors.RequestError, errors.FormatError | errors.VerificationError)
    assert not issubclass(errors.StateError, errors.FormatError | errors.VerificationError)
    assert not any(issubclass(errors.MunimentError, base) for base in (ValueError, OSError, RuntimeError))


def test_a_refusal_by_the_server_says_why_and_what_to_do() -> None:
    problem = {"code": "no_checkpoint", "detail": "No checkpoint of size 7.", "hint": "The next one is 9."}
    refused = errors.Refused(404, problem)
    assert str(refused) == "404 no_checkpoint: No checkpoint of size 7.; The next one is 9."
    assert (refused.code, refused.status, refused.problem, refused.retry_after) == ("no_checkpoint", 404, problem, None)
    unavailable = errors.Unavailable(503, {}, retry_after=2.5)
    assert (unavailable.code, unavailable.retry_after) == ("", 2.5)
    assert str(unavailable) == "503 : "


def test_a_refused_event_carries_code_and_pointer() -> None:
    refused = errors.EventRefused("number_range", "too large", "/a/0")
    assert (refused.code, refused.detail, refused.pointer) == ("number_range", "too large", "/a/0")
    assert str(refused) == "too large (at '/a/0')"


def test_evidence_keeps_both_notes() -> None:
    for error in (
        errors.Inconsistent("two roots of size 5", ("note one", "note two")),
        errors.Unproven("two roots of size 5", ("note one", "note two")),
    ):
        assert error.notes == ("note one", "note two")
        assert str(error) == "two roots of size 5"
    assert not issubclass(errors.Unproven, errors.Inconsistent), "a lagging replica is not accused"
