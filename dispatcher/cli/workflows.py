"""`dispatcher workflows`: what can be run."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING

import rich_click as click

from dispatcher.cli.options import Duration, asks_server, body, written
from dispatcher.cli.output import Output, pairs

if TYPE_CHECKING:
    from dispatcher.cli.client import Api

COLUMNS = ["name", "version", "on_events", "endpoints", "paused", "resuming"]


@click.group()
def workflows() -> None:
    """List and read what can be run."""


@workflows.command("list")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="At most so many.")
@click.option("--cursor", help="Where the list before ended: its next_cursor.")
@asks_server
def list_(limit: int, cursor: str | None, api: Api, out: Output) -> None:
    """List workflows with the events that start them."""
    answer = api.get("/v1/workflows", limit=limit, cursor=cursor)
    out.rows(answer.text, COLUMNS, "No workflows. Register an endpoint: dispatcher endpoints add NAME URL")


@workflows.command()
@click.argument("name")
@asks_server
def get(name: str, api: Api, out: Output) -> None:
    """Show a workflow's definition."""
    from dispatcher.cli.client import segment

    answer = api.get(f"/v1/workflows/{segment(name)}")
    out.document(answer.text, pairs(answer.value, [member for member in answer.value if member != "graph"]))


@workflows.command()
@click.argument("name")
@click.option("--format", "kind", type=click.Choice(["mermaid", "svg"]), help="How to draw it; else mermaid on a terminal, JSON in a pipe.")
@asks_server
def graph(name: str, kind: str | None, api: Api, out: Output) -> None:
    """Draw a workflow: its tasks, what comes after what, and the conditions in between."""
    from dispatcher.cli.client import segment
    from dispatcher.cli.drawing import mermaid, svg

    shape = api.get(f"/v1/workflows/{segment(name)}").value["graph"]
    if kind is None:
        out.document(json.dumps(shape, ensure_ascii=False), [mermaid(shape)])
    else:
        click.echo(svg(shape) if kind == "svg" else mermaid(shape))


@workflows.command()
@click.argument("name")
@click.option("--queue-ttl", type=Duration(), help="How long its tasks may wait, as 10m; without it, as set before.")
@click.option("--on-schedule", type=click.Choice(["queue", "drop"]), help="What its crons and schedules do meanwhile.")
@asks_server
def pause(name: str, queue_ttl: timedelta | None, on_schedule: str | None, api: Api, out: Output) -> None:
    """Take runs of a workflow in and hand none out, until it is resumed."""
    ttl = f"{round(queue_ttl.total_seconds() * 1000)}ms" if queue_ttl is not None else None
    _patch(api, out, name, body(paused="true", queue_ttl=written(ttl), on_schedule=written(on_schedule)))


@workflows.command()
@click.argument("name")
@asks_server
def resume(name: str, api: Api, out: Output) -> None:
    """Hand out what has waited for a paused workflow."""
    _patch(api, out, name, body(paused="false"))


@workflows.command()
@click.argument("name")
@asks_server
def delete(name: str, api: Api, out: Output) -> None:
    """Remove a workflow with its crons, schedules and filters. Its finished runs stay; registering it again brings it back."""
    from dispatcher.cli.client import segment

    api.call("DELETE", f"/v1/workflows/{segment(name)}")
    out.item({"name": name, "deleted": True}, f"{name} deleted")


def _patch(api: Api, out: Output, name: str, changes: bytes) -> None:
    from dispatcher.cli.client import segment

    answer = api.call("PATCH", f"/v1/workflows/{segment(name)}", changes)
    out.document(answer.text, pairs(answer.value, ["name", "paused", "resuming", "queue_ttl_ms", "on_schedule"]))
