"""Named steps of the write path and of recovery, where a test can make things go wrong.

They do nothing at all unless they are switched on. A step is a function or coroutine function marked with
:func:`step`. Without ``MUNIMENT_FAILPOINTS`` in the environment when this module is imported the mark returns the
function itself, so that production runs the very code that was written. With it (its value may be empty) each call
asks whether something was armed for this step::

    MUNIMENT_FAILPOINTS="store.append=fail-after;guard.swap=kill-before@3"

arms steps from the start; tests in one process call :func:`arm` and :func:`disarm`.

======== =============================================================================
``fail`` raise :class:`Injected`: before the step, or after it (happened although reported failed)
``kill`` SIGKILL to this process, before or after the step
``hang`` wait for ever, before or after the step
======== =============================================================================
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

VARIABLE = "MUNIMENT_FAILPOINTS"
ACTIONS = ("fail", "kill", "hang")
MOMENTS = ("before", "after")

F = TypeVar("F", bound=Callable[..., Any])


class Injected(OSError):
    """What an armed step raises: an I/O error, which any of them could meet."""


@dataclass(slots=True)
class Armed:
    """What happens at a step: `action` at `moment`, from call `nth` on, `times` times.

    Calls are counted from 1. `times` is None for always.
    """

    action: str
    moment: str
    nth: int = 1
    times: int | None = 1
    calls: int = 0

    def due(self, moment: str) -> bool:
        """Tell whether it happens now; count the calls."""
        self.calls += moment == "before"
        at = self.calls - self.nth
        return moment == self.moment and at >= 0 and (self.times is None or at < self.times)


ON = VARIABLE in os.environ
steps: dict[str, str] = {}
"""Every step that was marked, by name, with the function that is it. Empty unless switched on."""
_armed: dict[str, Armed] = {}
hits: dict[str, int] = {}
"""How often each step was reached since :func:`disarm`. Tells a rig which steps a run has, and how often."""


def parse(text: str) -> dict[str, Armed]:
    """Return what the value of the variable arms. Raises ValueError."""
    found: dict[str, Armed] = {}
    for item in filter(None, text.split(";")):
        name, _, what = item.partition("=")
        what, _, nth = what.partition("@")
        action, _, moment = what.partition("-")
        if not name or action not in ACTIONS or moment not in MOMENTS or not (nth or "1").isdecimal():
            raise ValueError(f"not a failpoint: {item!r}; write step=fail-after or step=kill-before@3")
        found[name] = Armed(action, moment, int(nth or 1))
    return found


def arm(name: str, action: str, moment: str, nth: int = 1, times: int | None = 1) -> None:
    """Let a step go wrong. Raises ValueError when there is no such step, or failpoints are off."""
    if name not in steps:
        raise ValueError(f"no step {name!r} (failpoints are {'on' if ON else 'off: set ' + VARIABLE})")
    _armed[name] = Armed(action, moment, nth, times)


def disarm() -> None:
    """Let every step go well again, and forget the counts."""
    _armed.clear()
    hits.clear()


def step(name: str) -> Callable[[F], F]:
    """Mark a function as a step. Its wrapper exists only when failpoints are on."""

    def mark(function: F) -> F:
        if not ON:
            return function
        steps[name] = f"{function.__module__}.{function.__qualname__}"
        wrapper = _async_wrapper(name, function) if inspect.iscoroutinefunction(function) else _wrapper(name, function)
        return functools.wraps(function)(wrapper)  # type: ignore[return-value]

    return mark


def _wrapper(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if _happens(name, "before"):
            time.sleep(1e9)
        result = function(*args, **kwargs)
        if _happens(name, "after"):
            time.sleep(1e9)
        return result

    return call


def _async_wrapper(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    async def call(*args: Any, **kwargs: Any) -> Any:
        if _happens(name, "before"):
            await asyncio.sleep(1e9)
        result = await function(*args, **kwargs)
        if _happens(name, "after"):
            await asyncio.sleep(1e9)
        return result

    return call


def _happens(name: str, moment: str) -> bool:
    """Fail or kill if that is armed; return whether to hang."""
    if moment == "before":
        hits[name] = hits.get(name, 0) + 1
    armed = _armed.get(name)
    if armed is None or not armed.due(moment):
        return False
    if armed.action == "fail":
        raise Injected(f"failpoint {name} {moment}")
    if armed.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    return True


if ON:
    _armed.update(parse(os.environ[VARIABLE]))
