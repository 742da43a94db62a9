"""Queries at random find what a second evaluator finds, which was written from the docs alone. Many more: rig `search`."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

from tests.service.rig import Rig
from tests.service.search_compare import compare
from tests.service.search_oracle import Looked, evaluator

PAGE = Path(__file__).resolve().parents[2] / "docs" / "search.md"


def test_the_evaluator_finds_what_the_page_says() -> None:
    page = PAGE.read_text("utf-8")
    events = [Looked(json.loads(line)) for line in page.split("```json\n")[1].split("\n```")[0].split("\n")]
    examples = re.findall(r"^\| `(.*?)` \| ((?:\d ?)+|none) \|", page, re.MULTILINE)
    assert len(examples) > 25
    for query, finds in examples:
        matches = evaluator(query)
        assert [str(at) for at, event in enumerate(events) if matches(event)] == finds.replace("none", "").split(), (
            query
        )


async def test_random_queries(rig: Rig) -> None:
    counts: Counter[str] = Counter()
    for seed in (3, 4):  # searched by some members, and by all
        counts += await compare([rig], seed, entries=200, queries=50)
    assert counts["queries with hits"] > 45
    assert counts["behind"] >= 20
