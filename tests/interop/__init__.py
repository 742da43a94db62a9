"""What verifiers that others wrote make of a live server's answers."""
