"""A chain and its faces for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.bitcoin.chain import Chain
from tests.bitcoin.node import Node


@pytest.fixture
def chain() -> Chain:
    return Chain(30)


@pytest.fixture
def node(chain: Chain) -> Iterator[Node]:
    with Node(chain) as started:
        yield started
