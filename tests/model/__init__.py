"""Models: the protocols of the server in small, run through random interleavings."""
