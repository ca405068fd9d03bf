"""`dispatcher bulk`: cancels and replays of many runs; and the options that say which runs, for `dispatcher runs`."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import rich_click as click

from dispatcher.cli.failures import Exit
from dispatcher.cli.options import Command, Duration, Moment, Pair, asks_server, body, typed, written
from dispatcher.cli.output import Output, note, pairs

if TYPE_CHECKING:
    from dispatcher.cli.client import Api

COLUMNS = ["id", "kind", "status", "matched", "done", "skipped", "created_at"]
_SHOWN = ["id", "kind", "status", "matched", "done", "skipped", "asked", "reason", "created_by", "created_at", "finished_at"]


@dataclass(frozen=True, slots=True)
class Chosen:
    """Runs chosen by what they are instead of by id."""

    workflow: tuple[str, ...]
    status: tuple[str, ...]
    since: str | None
    until: str | None
    metadata: tuple[tuple[str, str], ...]
    event: str | None
    dry_run: bool
    wait: timedelta | None

    def filter(self) -> dict[str, Any]:
        """As the server reads it; empty where nothing was chosen."""
        named = {
            "workflow": list(self.workflow),
            "status": list(self.status),
            "since": self.since,
            "until": self.until,
            "metadata": typed(self.metadata),
            "event_id": self.event,
        }
        return {name: value for name, value in named.items() if value}


def chooses(*statuses: str) -> Callable[[Command], Command]:
    """Options that choose runs with one of these statuses; the command gets a Chosen as `chosen`."""

    def decorate(function: Command) -> Command:
        @click.option("-w", "--workflow", multiple=True, help="Runs of this workflow; repeatable.")
        @click.option("-s", "--status", type=click.Choice(statuses), multiple=True, help="Runs with this status; repeatable.")
        @click.option("--since", type=Moment(), help="Runs made since: RFC 3339, or 1h for the last hour.")
        @click.option("--until", type=Moment(), help="Runs made before.")
        @click.option("-m", "--metadata", type=Pair(), multiple=True, help="Runs whose metadata has key=value; repeatable.")
        @click.option("--event", help="Runs started by this event's id.")
        @click.option("--dry-run", is_flag=True, help="Count the runs that match, and do nothing.")
        @click.option("--wait", type=Duration(), help="Wait so long for all of them to be done; exit 5 when they are not.")
        @functools.wraps(function)
        def command(
            *args: Any,
            workflow: tuple[str, ...],
            status: tuple[str, ...],
            since: str | None,
            until: str | None,
            metadata: tuple[tuple[str, str], ...],
            event: str | None,
            dry_run: bool,
            wait: timedelta | None,
            **kwargs: Any,
        ) -> None:
            function(*args, chosen=Chosen(workflow, status, since, until, metadata, event, dry_run, wait), **kwargs)

        return command

    return decorate


def act(api: Api, out: Output, kind: str, chosen: Chosen, reason: str | None = None) -> None:
    """Cancel or replay the chosen runs, or count them."""
    content = body(filter=written(chosen.filter()), dry_run=written(True if chosen.dry_run else None), reason=written(reason))
    answer = api.call("POST", f"/v1/runs/{kind}", content)
    if chosen.dry_run:
        out.document(answer.text, [f"{answer.value['matched']} runs match"])
        return
    if chosen.wait is None:
        out.document(answer.text, pairs(answer.value, ["id", "status", "matched"]))
        if answer.value["status"] == "running":
            note(f"See how far it is: dispatcher bulk get {answer.value['id']}")
        return
    _await(api, out, answer.value["id"], chosen.wait)


def _await(api: Api, out: Output, bulk_id: str, timeout: timedelta) -> None:
    from dispatcher.cli.client import segment
    from dispatcher.cli.patience import Patience

    hint = f"It goes on. See how far it is: dispatcher bulk get {bulk_id}"
    patience = Patience(timeout, f"{bulk_id} is not done", hint)
    while True:
        answer = api.get(f"/v1/bulk/{segment(bulk_id)}")
        if answer.value["status"] != "running":
            out.document(answer.text, pairs(answer.value, ["id", "status", "matched", "done", "skipped"]))
            if answer.value["status"] != "finished":
                sys.exit(int(Exit.FAILURE))
            return
        patience.pause()


@click.group()
def bulk() -> None:
    """Look at cancels and replays of many runs, and end them."""


@bulk.command("list")
@click.option("-s", "--status", type=click.Choice(["running", "finished", "cancelled"]), help="Only actions with this status.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="At most so many.")
@click.option("--cursor", help="Where the list before ended: its next_cursor.")
@asks_server
def list_(status: str | None, limit: int, cursor: str | None, api: Api, out: Output) -> None:
    """List bulk actions, the latest first."""
    answer = api.get("/v1/bulk", status=status, limit=limit, cursor=cursor)
    out.rows(answer.text, COLUMNS, "No bulk actions. Begin one: dispatcher runs replay --status failed --since 1h")


@bulk.command()
@click.argument("bulk_id")
@asks_server
def get(bulk_id: str, api: Api, out: Output) -> None:
    """Show a bulk action, and how far it has come."""
    from dispatcher.cli.client import segment

    answer = api.get(f"/v1/bulk/{segment(bulk_id)}")
    out.document(answer.text, pairs(answer.value, _SHOWN))


@bulk.command()
@click.argument("bulk_id")
@asks_server
def cancel(bulk_id: str, api: Api, out: Output) -> None:
    """End a bulk action where it stands; what it has done stays done."""
    from dispatcher.cli.client import segment

    answer = api.call("POST", f"/v1/bulk/{segment(bulk_id)}/cancel")
    out.document(answer.text, pairs(answer.value, ["id", "status", "matched", "done", "skipped"]))
