"""What the clients do, written once for both colours: generators that yield requests and are sent the answers.

The colours are the blocking Client and the AsyncClient: each has a short driver that performs what is yielded, and
neither has a flow of its own. Each module imports only what stands left of it::

    steps (what a flow is made of) fields tilereader proving (two checkpoints, one tree) trust (which to accept)
    results reads anchors searching answered (the receipts of a batch) values (what an
    event may hold) writes without_receipts
"""
