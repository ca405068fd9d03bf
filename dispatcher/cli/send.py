"""`dispatcher send`: an event."""

from __future__ import annotations

from typing import TYPE_CHECKING

import rich_click as click

from dispatcher.cli.options import JsonInput, Pair, asks_server, body, typed, written
from dispatcher.cli.output import Output, note, pairs

if TYPE_CHECKING:
    from dispatcher.cli.client import Api


@click.command()
@click.argument("type_", metavar="TYPE")
@click.argument("data", type=JsonInput(), default="{}", metavar="[JSON]")
@click.option("-m", "--metadata", type=Pair(), multiple=True, help="key=value carried along with the event and its runs; repeatable.")
@click.option("--scope", help="Only filters of this scope look at the event.")
@click.option("--priority", type=int, help="Of the runs it starts; higher runs first.")
@click.option("--idempotency-key", help="Calls with the same key store one event.")
@asks_server
def send(
    type_: str,
    data: str,
    metadata: tuple[tuple[str, str], ...],
    scope: str | None,
    priority: int | None,
    idempotency_key: str | None,
    api: Api,
    out: Output,
) -> None:
    """Send an event, which starts the workflows that listen for it.

    JSON is its data: JSON text, @file, or - for stdin; without it, an empty object.
    """
    content = body(
        type=written(type_),
        data=data,
        metadata=written(typed(metadata) or None),
        scope=written(scope),
        priority=written(priority),
        idempotency_key=written(idempotency_key),
    )
    answer = api.call("POST", "/v1/events", content)
    out.document(answer.text, pairs(answer.value, ["event_id", "runs", "duplicate"]))
    if not answer.value["runs"]:
        note(
            f"No workflow listens for {type_!r}; the event is stored, and durable tasks that wait for it go on."
            " See what listens: dispatcher workflows list"
        )
