"""What users and developers run first, from the command to its result."""
