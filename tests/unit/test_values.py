"""What was parsed or verified stays as it was: the value types of the primitives cannot be changed."""

from __future__ import annotations

import dataclasses
import importlib
import inspect

import pytest

MODULES = ["note", "checkpoint", "policy", "event", "receipt", "tree"]
VALUES = [
    found
    for module in MODULES
    for found in vars(importlib.import_module(f"muniment.{module}")).values()
    if inspect.isclass(found) and dataclasses.is_dataclass(found) and found.__module__ == f"muniment.{module}"
]


def test_all_are_here() -> None:
    assert len(VALUES) >= 16


@pytest.mark.parametrize("value", VALUES, ids=lambda value: value.__name__)
def test_values_are_frozen_and_take_no_new_names(value: type) -> None:
    assert value.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert "__slots__" in vars(value)
    assert "__dict__" not in dir(value)
