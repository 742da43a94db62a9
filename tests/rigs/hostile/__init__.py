"""Hostile HTTP: requests made by class, each with what the server may answer. Seed n always makes the same.

Every class is a module with `table(world)`: all its cases, and `random_case(rng, world)` where chance finds more than a table.
"""
