"""Rounds: raw entries that are taken together get the indices they would get one by one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from muniment_server.write.submission import Outcome, Round
from tests.service.rig import raw


@given(st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=20), max_size=6))
def test_entries_together_get_the_indices_of_one_after_the_other(parts: list[list[int]]):
    one, together = (Round(7, 0, "", {b"3": 2}) for _ in range(2))
    for part in parts:
        first, second = Outcome([], [], 0), Outcome([], [], 0)
        drafts = raw(*[b"%d" % n for n in part]).drafts
        one.assign_indices(drafts, first)
        together.assign_many(drafts, second)
        assert first == second
    assert one == together
