"""Followers: background work that each log has, with a cursor of its own, never in the way of an append.

A new one is a module here that makes a :class:`~muniment_server.follow.follower.Follower`, and a line in ``Log`` that
starts it.
"""
