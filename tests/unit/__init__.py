"""Tests of the pure parts: no server, no network, no files but the vectors."""
