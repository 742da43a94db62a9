"""A log that misbehaves by name, over real HTTP: see misbehaviours.py for the table, and liar.py for the log."""
