"""The handlers of routes: a request in, an answer out."""
