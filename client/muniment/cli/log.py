"""`muniment log`."""

from __future__ import annotations

from dataclasses import asdict

import click

from muniment.cli.options import Target, log_options
from muniment.verify import printable
from muniment.words import entries_text


@click.command("log", short_help="Say what the log is.")
@log_options
def command(target: Target) -> None:
    """Say what the log is: name, kind, size, keys, limits. Its name and key are compared with your policy.

    \b
    Examples:
      muniment log
      muniment log --log releases --json
    """
    with target.open() as client:
        info = client.log_info()
        head = client.checkpoint().checkpoint
        trusted = {str(log.vkey) for log in client.policy.logs}
    keys = [f"{printable(vkey)}  ({'trusted' if vkey in trusted else 'not in your policy'})" for vkey in info.vkeys]
    rows = [
        ("log", info.origin),
        (
            "kind",
            f"{info.kind}{', public' if info.public else ', private'}{', payloads open to all' if info.open else ''}",
        ),
        ("size", f"{entries_text(head.size)}, root {head.root.hex()}"),
        *(("key", key) for key in keys),
        ("an entry", f"at most {info.max_entry_bytes} bytes"),
        ("a batch", f"at most {info.max_batch_entries} entries and {info.max_batch_bytes} bytes"),
        ("published", f"within {info.publish_interval_seconds:g} s"),
        ("retries", f"an Idempotency-Key holds for {info.idempotency_ttl_seconds:g} s"),
    ]
    text = "\n".join(f"{name:<10} {printable(value)}" for name, value in rows)
    example = (
        "append actor=alice action=test --receipt receipt.json"
        if info.kind == "event"
        else "append @FILE --receipt receipt.json"
    )
    target.show(
        {**asdict(info), "checkpoint_size": head.size, "root": head.root.hex()}, f"{text}\n{target.suggest(example)}"
    )
