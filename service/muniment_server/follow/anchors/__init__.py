"""Anchors published checkpoints in Bitcoin, through OpenTimestamps calendars: a follower, never in the write path.

``schedule`` says when, ``calendar`` speaks HTTP, ``rows`` says how anchors change (pure), ``anchorer`` does it for one log,
``entries`` logs what is confirmed, ``running`` keeps one anchorer for each log of a server. docs/decisions/0011 says why so.
"""
