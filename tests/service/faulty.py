"""A real store that fails when told: before the real call, after it, or by returning something else."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from muniment_server.storage import Store
from tests.parts import Parts


@dataclass
class Fault:
    """What the next call does instead: raise `error` before or after the real thing, or change its result."""

    error: BaseException | None = None
    after: bool = False
    change: Callable[[Any], Any] | None = None
    late: float | None = None  # raise at once, and do the real thing this many seconds later


class Faulty(Parts):
    """Passes everything on to `store`. `faults[name]` are used up call by call; `calls` has (name, whether it succeeded)."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.faults: dict[str, list[Fault | None]] = defaultdict(list)
        self.always: dict[str, Fault] = {}
        self.calls: list[tuple[str, bool]] = []
        self.late: list[asyncio.Task[Any]] = []

    def plan(self, name: str, *faults: Fault | None) -> None:
        """Let the next calls of `name` go wrong; None is a call that goes well."""
        self.faults[name] += faults

    async def call(self, part: str, name: str, *args: Any, **kwargs: Any) -> Any:
        """Do it, or what was planned instead."""
        method = getattr(getattr(self.store, part), name)
        fault = self.faults[name].pop(0) if self.faults[name] else self.always.get(name)
        at = len(self.calls)
        self.calls.append((name, False))
        if fault and fault.late is not None:
            self.late.append(asyncio.create_task(self._late(method, args, fault.late)))
        if fault and fault.error and not fault.after:
            raise fault.error
        result = await method(*args, **kwargs)
        if fault and fault.error:
            raise fault.error
        if fault and fault.change:
            result = fault.change(result)
        self.calls[at] = (name, True)
        return result

    async def _late(self, method: Callable[..., Any], args: tuple[Any, ...], seconds: float) -> Any:
        await asyncio.sleep(seconds)
        return await method(*args)
