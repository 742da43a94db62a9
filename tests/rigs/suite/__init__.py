"""The rigs, one module for each kind of fault. Each has a list RIGS."""
