"""Anchors in Bitcoin: block headers, header chains and sources, OpenTimestamps proofs, and what they show together.

Only :mod:`muniment.anchor.proof` needs the ``opentimestamps`` library (``pip install muniment[anchor]``).
"""
