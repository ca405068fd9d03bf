"""`dispatcher workflows`: what can be run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import rich_click as click

from dispatcher.cli.options import asks_server
from dispatcher.cli.output import Output, pairs

if TYPE_CHECKING:
    from dispatcher.cli.client import Api

COLUMNS = ["name", "version", "on_events", "endpoints"]


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
    out.document(answer.text, pairs(answer.value, list(answer.value)))
