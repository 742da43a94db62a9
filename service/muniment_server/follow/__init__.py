"""Followers: background work that each log has, with a cursor of its own, never in the way of an append."""
