"""Anchors published checkpoints in Bitcoin, through OpenTimestamps calendars: a follower, never in the write path.

``schedule`` says when, ``calendar`` speaks HTTP, ``rows`` says how anchors change (pure), ``changes`` stores that. For
one log ``freezer`` freezes checkpoints, ``anchorer`` gives them to calendars, ``blocks`` compares them with headers,
and ``entries`` logs what is confirmed; ``running`` keeps all of them at work for each log of a server.
docs/decisions/0011 says why so.
"""
