"""The exception tree is the one drawn in the docstring, and every error says what it has to say."""

from __future__ import annotations

import inspect
import re

from muniment import errors


def drawn() -> dict[str, str]:
    """Each error of the drawing with its parent, read by indentation."""
    parents: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in inspect.getdoc(errors).splitlines():  # type: ignore[union-attr]
        match = re.match(r"(?P<branch>(?:    )(?:[│ ]   )*(?:[├└]── )?)(?P<name>[A-Z]\w+)(?:\s|$)", line)
        if match and (above or match["name"] == "MunimentError"):
            depth = len(match["branch"])
            while above and above[-1][0] >= depth:
                above.pop()
            parents[match["name"]] = above[-1][1] if above else "Exception"
            above.append((depth, match["name"]))
    return parents


def defined() -> dict[str, str]:
    """Each public error with the nearest public class above it."""
    found = {}
    for name, value in vars(errors).items():
        if inspect.isclass(value) and issubclass(value, BaseException) and not name.startswith("_"):
            above = next(base for base in value.__mro__[1:] if not base.__name__.startswith("_"))
            found[name] = above.__name__
    return found


def test_the_tree_is_as_drawn() -> None:
    assert len(drawn()) >= 15
    assert defined() == drawn()


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
