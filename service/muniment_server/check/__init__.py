"""Checks of what is stored: fsck from end to end, and scrub all the time."""
