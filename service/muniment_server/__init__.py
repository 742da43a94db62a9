"""The Muniment log server."""

__version__ = "0.1.0"
