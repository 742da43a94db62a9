"""All misbehaviours, by name. Importing the three modules fills the table."""

from __future__ import annotations

from tests.splitview import answers, heads, views
from tests.splitview.table import TABLE, Misbehaviour
from tests.splitview.views import OTHER_ADDRESS, OTHER_KEY, OTHER_READER

__all__ = ["OTHER_ADDRESS", "OTHER_KEY", "OTHER_READER", "TABLE", "Misbehaviour", "answers", "heads", "views"]
