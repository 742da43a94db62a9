"""HTTP: the routes of the log, framework kept at the edge."""
