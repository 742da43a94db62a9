"""Planted defects: known ways to break a log, each put into a copy of the code, where a named test must go red.

A defect is a TOML file: `incident` (a row of the catalogue), `defect` (what is broken), `files` (a pattern), `change` (a list of `old` and
`new`; `old` must occur exactly once in those files), `test` (a pytest node) or `rig` (a rig and its seeds), and `reason`, a pattern of what
the failure must say. :mod:`tests.rigs.planted.runner` plants one; the rig `planted` runs them all.
"""
