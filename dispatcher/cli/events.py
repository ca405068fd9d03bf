"""`dispatcher events`: what was sent, what it started, and sending it again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import rich_click as click

from dispatcher.cli.options import Moment, Pair, asks_server
from dispatcher.cli.output import Output, note, pairs

if TYPE_CHECKING:
    from dispatcher.cli.client import Api

COLUMNS = ["id", "type", "scope", "runs", "created_at"]
RUN_COLUMNS = ["run_id", "function", "status", "attempt", "duration_ms", "origin_run_id"]


@click.group()
def events() -> None:
    """List, read and replay events."""


@events.command("list")
@click.option("-t", "--type", "type_", help="Only events of this type.")
@click.option("--scope", help="Only events of this scope.")
@click.option("--matched/--unmatched", default=None, help="Only events that started runs, or only those that started none.")
@click.option("-m", "--metadata", type=Pair(), multiple=True, help="Only events whose metadata has key=value; repeatable.")
@click.option("--since", type=Moment(), help="Only events sent since: RFC 3339, or 1h for the last hour.")
@click.option("--until", type=Moment(), help="Only events sent before.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="At most so many.")
@click.option("--cursor", help="Where the list before ended: its next_cursor.")
@asks_server
def list_(
    type_: str | None,
    scope: str | None,
    matched: bool | None,
    metadata: tuple[tuple[str, str], ...],
    since: str | None,
    until: str | None,
    limit: int,
    cursor: str | None,
    api: Api,
    out: Output,
) -> None:
    """List events, newest first."""
    answer = api.get(
        "/v1/events",
        type=type_,
        scope=scope,
        matched=None if matched is None else str(matched).lower(),
        metadata=[f"{key}:{value}" for key, value in metadata] or None,
        since=since,
        until=until,
        limit=limit,
        cursor=cursor,
    )
    out.rows(answer.text, COLUMNS, "No events. Send one: dispatcher send TYPE")


@events.command()
@click.argument("event_id")
@asks_server
def get(event_id: str, api: Api, out: Output) -> None:
    """Show an event with its data."""
    answer = api.get(_path(event_id))
    shown = ["id", "type", "data", "metadata", "scope", "priority", "runs", "idempotency_key", "stream_id", "created_at"]
    out.document(answer.text, pairs(answer.value, shown))
    for failure in answer.value.get("filter_failures", []):
        note(f"Filter {failure['filter_id']} of {failure['workflow']} failed: {failure['message']}")


@events.command()
@click.argument("event_id")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="At most so many.")
@click.option("--cursor", help="Where the list before ended: its next_cursor.")
@asks_server
def runs(event_id: str, limit: int, cursor: str | None, api: Api, out: Output) -> None:
    """List the runs an event started, each attempt as a run."""
    answer = api.get(_path(event_id, "/runs"), limit=limit, cursor=cursor)
    out.rows(answer.text, RUN_COLUMNS, f"It started none. See which filters failed: dispatcher events get {event_id}")


@events.command()
@click.argument("event_ids", metavar="EVENT_ID…", nargs=-1, required=True)
@asks_server
def replay(event_ids: tuple[str, ...], api: Api, out: Output) -> None:
    """Send events again, each as a new one that is matched to what is registered now."""
    for event_id in event_ids:
        answer = api.call("POST", _path(event_id, "/replay"))
        out.item(answer.value, f"{event_id}  {answer.value['event_id']}  {len(answer.value['runs'])} runs")


def _path(event_id: str, action: str = "") -> str:
    from dispatcher.cli.client import segment

    return f"/v1/events/{segment(event_id)}{action}"
