"""Hypothesis: the same examples on every run where CI is set; no deadline, since a busy machine is not a bug."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("muniment", deadline=None, derandomize=bool(os.environ.get("CI")), print_blob=True)
settings.load_profile("muniment")
