"""`dispatcher filters`: which of the events a workflow listens for start it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import rich_click as click

from dispatcher.cli.options import JsonInput, asks_server, body, written
from dispatcher.cli.output import Output, pairs

if TYPE_CHECKING:
    from dispatcher.cli.client import Api

COLUMNS = ["id", "workflow", "scope", "expression", "declared"]
_SHOWN = ["id", "workflow", "scope", "expression", "payload", "declared", "created_at", "updated_at"]


@click.group()
def filters() -> None:
    """List, make, change and remove filters of events."""


@filters.command("list")
@click.option("-w", "--workflow", multiple=True, help="Only filters of this workflow; repeatable.")
@click.option("--scope", multiple=True, help="Only filters of this scope; repeatable.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="At most so many.")
@click.option("--cursor", help="Where the list before ended: its next_cursor.")
@asks_server
def list_(workflow: tuple[str, ...], scope: tuple[str, ...], limit: int, cursor: str | None, api: Api, out: Output) -> None:
    """List filters, those that workflows declare among them."""
    answer = api.get("/v1/filters", workflow=list(workflow) or None, scope=list(scope) or None, limit=limit, cursor=cursor)
    out.rows(answer.text, COLUMNS, "No filters: every workflow runs for each event it listens for.")


@filters.command()
@click.argument("filter_id")
@asks_server
def get(filter_id: str, api: Api, out: Output) -> None:
    """Show a filter."""
    answer = api.get(_path(filter_id))
    out.document(answer.text, pairs(answer.value, _SHOWN))


@filters.command()
@click.argument("workflow")
@click.argument("expression")
@click.option("--scope", required=True, help="Events of this scope are judged by it.")
@click.option("-p", "--payload", type=JsonInput(), help="What the handler is told when it holds: a JSON object, @file or -.")
@asks_server
def create(workflow: str, expression: str, scope: str, payload: str | None, api: Api, out: Output) -> None:
    """Make a filter: events in its scope start WORKFLOW when EXPRESSION, in CEL, holds.

    It reads `input` (the event's data), `payload` (the filter's own), `additional_metadata` and `event_key`.
    """
    content = body(workflow=written(workflow), expression=written(expression), scope=written(scope), payload=payload)
    answer = api.call("POST", "/v1/filters", content)
    out.document(answer.text, pairs(answer.value, _SHOWN))


@filters.command()
@click.argument("filter_id")
@click.option("--expression", help="The expression instead of the one it has.")
@click.option("--scope", help="The scope instead of the one it has.")
@click.option("-p", "--payload", type=JsonInput(), help="The payload instead of the one it has; null takes it away.")
@asks_server
def update(filter_id: str, expression: str | None, scope: str | None, payload: str | None, api: Api, out: Output) -> None:
    """Change a filter that was made by hand."""
    answer = api.call("PATCH", _path(filter_id), body(expression=written(expression), scope=written(scope), payload=payload))
    out.document(answer.text, pairs(answer.value, _SHOWN))


@filters.command()
@click.argument("filter_ids", metavar="FILTER_ID…", nargs=-1, required=True)
@asks_server
def delete(filter_ids: tuple[str, ...], api: Api, out: Output) -> None:
    """Remove filters that were made by hand."""
    for filter_id in filter_ids:
        api.call("DELETE", _path(filter_id))
        out.item({"id": filter_id, "deleted": True}, f"{filter_id} deleted")


def _path(filter_id: str) -> str:
    from dispatcher.cli.client import segment

    return f"/v1/filters/{segment(filter_id)}"
