"""Pushes the entries of logs to sinks: webhooks and files. Behind publication, at least once, and in order.

batch (what is sent) < cutting (reads it) < webhook, jsonl (take it) < pusher (one sink) < running (those of a server)

Life of a batch: its borders are cut and stored; it is made of the stored log; the sink takes it; the cursor moves
behind it. After a crash at any point the same borders are read again, and the same bytes are sent under the same id.
"""
