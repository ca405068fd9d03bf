"""`dispatcher crons`: runs at every tick of an expression."""

from __future__ import annotations

from typing import TYPE_CHECKING

import rich_click as click

from dispatcher.cli.options import JsonInput, Pair, asks_server, body, typed, written
from dispatcher.cli.output import Output, note, pairs

if TYPE_CHECKING:
    from dispatcher.cli.client import Answer, Api

COLUMNS = ["id", "workflow", "name", "expression", "timezone", "enabled", "next_at", "last_at"]
_SHOWN = [
    "id", "workflow", "name", "expression", "description", "timezone", "input", "metadata", "priority", "missed", "enabled", "declared",
    "next_runs", "last_at", "last_run_id", "last_skipped_at", "last_error",
]  # fmt: skip
_MISSED = click.Choice(["skip", "run_once", "run_all"])


@click.group()
def crons() -> None:
    """Make, stop and start crons: runs at every tick of an expression."""


@crons.command("list")
@click.option("-w", "--workflow", help="Only those of this workflow.")
@click.option("--name", help="Only those of this name.")
@click.option("--enabled/--disabled", default=None, help="Only those that tick, or that do not.")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="At most so many.")
@click.option("--cursor", help="Where the list before ended: its next_cursor.")
@asks_server
def list_(workflow: str | None, name: str | None, enabled: bool | None, limit: int, cursor: str | None, api: Api, out: Output) -> None:
    """List crons, newest first, with their next ticks."""
    answer = api.get("/v1/crons", workflow=workflow, name=name, enabled=written(enabled), limit=limit, cursor=cursor)
    out.rows(answer.text, COLUMNS, "No crons. Make one: dispatcher crons create WORKFLOW NAME '0 9 * * 1'")


@crons.command()
@click.argument("cron_id")
@asks_server
def get(cron_id: str, api: Api, out: Output) -> None:
    """Show a cron in words, with the ticks to come."""
    _show(out, api.get(_path(cron_id)))


@crons.command()
@click.argument("workflow")
@click.argument("name")
@click.argument("expression")
@click.option("-z", "--timezone", help="A name of the IANA database, such as Europe/Berlin; UTC unless said.")
@click.option("-i", "--input", "input_text", type=JsonInput(), help="The input of its runs: JSON, @file, or - for stdin.")
@click.option("-m", "--metadata", type=Pair(), multiple=True, help="key=value its runs carry; repeatable.")
@click.option("--priority", type=click.IntRange(1, 3), help="1 low, 2 medium, 3 high.")
@click.option("--missed", type=_MISSED, help="What becomes of ticks nobody was there for; skip unless said.")
@asks_server
def create(
    workflow: str,
    name: str,
    expression: str,
    timezone: str | None,
    input_text: str | None,
    metadata: tuple[tuple[str, str], ...],
    priority: int | None,
    missed: str | None,
    api: Api,
    out: Output,
) -> None:
    """Make a cron: EXPRESSION has 5 fields (minute hour day month weekday), or 6 with seconds first."""
    content = body(
        workflow=written(workflow),
        name=written(name),
        expression=written(expression),
        timezone=written(timezone),
        input=input_text,
        metadata=written(typed(metadata) or None),
        priority=written(priority),
        missed=written(missed),
    )
    _show(out, api.call("POST", "/v1/crons", content))


@crons.command()
@click.argument("cron_id")
@asks_server
def delete(cron_id: str, api: Api, out: Output) -> None:
    """Remove a cron; the runs it has started go on."""
    api.call("DELETE", _path(cron_id))
    out.item({"id": cron_id, "deleted": True}, f"{cron_id} deleted")


@crons.command()
@click.argument("cron_id")
@asks_server
def enable(cron_id: str, api: Api, out: Output) -> None:
    """Let a cron tick again, from now on."""
    _switch(cron_id, True, api, out)


@crons.command()
@click.argument("cron_id")
@asks_server
def disable(cron_id: str, api: Api, out: Output) -> None:
    """Stop a cron; the ticks that pass meanwhile are not made up for."""
    _switch(cron_id, False, api, out)


@crons.command()
@click.argument("cron_id")
@asks_server
def trigger(cron_id: str, api: Api, out: Output) -> None:
    """Start a run now, with what the cron gives its runs."""
    answer = api.call("POST", _path(cron_id) + "/trigger")
    out.document(answer.text, pairs(answer.value, ["id", "workflow", "status", "created_at"]))


def _switch(cron_id: str, enabled: bool, api: Api, out: Output) -> None:
    answer = api.call("PATCH", _path(cron_id), body(enabled=written(enabled)))
    out.document(answer.text, pairs(answer.value, ["id", "name", "enabled", "next_at"]))


def _show(out: Output, answer: Answer) -> None:
    out.document(answer.text, pairs(answer.value, _SHOWN))
    if not out.json and answer.value["enabled"] and not answer.value["next_runs"]:
        note("It never ticks again.")


def _path(cron_id: str) -> str:
    from dispatcher.cli.client import segment

    return f"/v1/crons/{segment(cron_id)}"
