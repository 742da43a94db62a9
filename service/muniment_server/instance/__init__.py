"""One instance: its files, its logs, its guards."""
