"""What can be read of a log: heads, proofs, entries and files, from memory where they are there."""
