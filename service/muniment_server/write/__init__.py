"""The write path: from a posted body to a signed head. Only the sequencer signs."""
