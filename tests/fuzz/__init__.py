"""Fuzzing of every parser and verifier of the client package. Run ``python -m tests.fuzz --help``."""
