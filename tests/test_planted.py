"""The planted defects still fit the code: each text they replace stands in it exactly once. That they are caught is shown by a rig."""

from __future__ import annotations

import pytest

from tests.rigs.planted.runner import ROOT, Defect, all_defects


@pytest.mark.parametrize("defect", all_defects(), ids=lambda defect: defect.name)
def test_the_text_to_replace_stands_there_once(defect: Defect):
    texts = [path.read_text("utf-8") for path in ROOT.glob(defect.files)]
    assert [sum(text.count(change.old) for text in texts) for change in defect.changes] == [1] * len(defect.changes)
    assert all(change.old != change.new for change in defect.changes)
    assert defect.test or defect.rig
