"""What the clients do, written once for both colours: generators that yield requests and are sent the answers.

steps (what a flow is made of) < fields, tilereader, trust (which checkpoints to accept) < results < reads < writes
"""
