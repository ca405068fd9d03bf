"""`dispatcher schedules`: runs at one moment each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import rich_click as click

from dispatcher.cli.options import JsonInput, Moment, Pair, asks_server, body, typed, written
from dispatcher.cli.output import Output, pairs

if TYPE_CHECKING:
    from dispatcher.cli.client import Api

STATUSES = ["scheduled", "started", "missed", "dropped"]
COLUMNS = ["id", "workflow", "status", "run_at", "run_id"]
_SHOWN = ["id", "workflow", "status", "run_at", "input", "metadata", "priority", "missed", "misfire_grace", "run_id", "settled_at", "error"]


@click.group()
def schedules() -> None:
    """Make, move and remove schedules: runs at one moment each."""


@schedules.command("list")
@click.option("-w", "--workflow", help="Only those of this workflow.")
@click.option("-s", "--status", type=click.Choice(STATUSES), multiple=True, help="Only those with this status; repeatable.")
@click.option("-m", "--metadata", type=Pair(), multiple=True, help="Only those whose metadata has key=value; repeatable.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="At most so many.")
@click.option("--cursor", help="Where the list before ended: its next_cursor.")
@asks_server
def list_(
    workflow: str | None,
    status: tuple[str, ...],
    metadata: tuple[tuple[str, str], ...],
    limit: int,
    cursor: str | None,
    api: Api,
    out: Output,
) -> None:
    """List schedules, newest first."""
    wanted = [f"{key}:{value}" for key, value in metadata] or None
    answer = api.get("/v1/schedules", workflow=workflow, status=list(status) or None, metadata=wanted, limit=limit, cursor=cursor)
    out.rows(answer.text, COLUMNS, "No schedules. Make one: dispatcher schedules create WORKFLOW --in 10m")


@schedules.command()
@click.argument("schedule_id")
@asks_server
def get(schedule_id: str, api: Api, out: Output) -> None:
    """Show a schedule, with its run once it is started."""
    answer = api.get(_path(schedule_id))
    out.document(answer.text, pairs(answer.value, _SHOWN))


@schedules.command()
@click.argument("workflow")
@click.option("--at", "run_at", type=Moment(), help="When, RFC 3339.")
@click.option("--in", "delay", help="Or how long from now: 10m, 1h30m, 'in 10 minutes'.")
@click.option("-i", "--input", "input_text", type=JsonInput(), help="The input: JSON, @file, or - for stdin.")
@click.option("-m", "--metadata", type=Pair(), multiple=True, help="key=value the run carries; repeatable.")
@click.option("--priority", type=click.IntRange(1, 3), help="1 low, 2 medium, 3 high.")
@click.option(
    "--missed", type=click.Choice(["skip", "run_once"]), help="Whether it still runs when its moment was missed; run_once unless said."
)
@click.option("--misfire-grace", help="How late it may run, as 2h; an hour unless said.")
@asks_server
def create(
    workflow: str,
    run_at: str | None,
    delay: str | None,
    input_text: str | None,
    metadata: tuple[tuple[str, str], ...],
    priority: int | None,
    missed: str | None,
    misfire_grace: str | None,
    api: Api,
    out: Output,
) -> None:
    """Schedule a run of a workflow, --at a moment or --in so long."""
    content = body(
        **{"in": written(delay)},
        workflow=written(workflow),
        run_at=written(run_at),
        input=input_text,
        metadata=written(typed(metadata) or None),
        priority=written(priority),
        missed=written(missed),
        misfire_grace=written(misfire_grace),
    )
    answer = api.call("POST", "/v1/schedules", content)
    out.document(answer.text, pairs(answer.value, _SHOWN))


@schedules.command()
@click.argument("schedule_id")
@click.option("--at", "run_at", type=Moment(), help="When, RFC 3339.")
@click.option("--in", "delay", help="Or how long from now.")
@asks_server
def reschedule(schedule_id: str, run_at: str | None, delay: str | None, api: Api, out: Output) -> None:
    """Give a schedule that is still to come another moment."""
    answer = api.call("PATCH", _path(schedule_id), body(**{"in": written(delay)}, run_at=written(run_at)))
    out.document(answer.text, pairs(answer.value, ["id", "status", "run_at"]))


@schedules.command()
@click.argument("schedule_ids", metavar="SCHEDULE_ID…", nargs=-1, required=True)
@asks_server
def delete(schedule_ids: tuple[str, ...], api: Api, out: Output) -> None:
    """Remove schedules; what they have started goes on."""
    for schedule_id in schedule_ids:
        api.call("DELETE", _path(schedule_id))
        out.item({"id": schedule_id, "deleted": True}, f"{schedule_id} deleted")


@schedules.command()
@click.argument("schedule_id")
@asks_server
def trigger(schedule_id: str, api: Api, out: Output) -> None:
    """Start the run of a schedule now instead of at its moment."""
    answer = api.call("POST", _path(schedule_id) + "/trigger")
    out.document(answer.text, pairs(answer.value, ["id", "status", "run_id"]))


def _path(schedule_id: str) -> str:
    from dispatcher.cli.client import segment

    return f"/v1/schedules/{segment(schedule_id)}"
