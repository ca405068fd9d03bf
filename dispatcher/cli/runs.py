"""`dispatcher runs`: what ran, runs, and stops running."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING

import rich_click as click

from dispatcher.cli.bulk import Chosen, act, chooses
from dispatcher.cli.failures import Exit, Failure
from dispatcher.cli.options import Duration, JsonInput, Moment, Pair, asks_server, body, written
from dispatcher.cli.output import Output

if TYPE_CHECKING:
    from dispatcher.cli.client import Answer, Api

LIVE = ["queued", "running", "waiting", "pending_retry", "blocked"]
STATUSES = [*LIVE, "succeeded", "failed", "cancelled"]
LEVELS = ["debug", "info", "warning", "error", "critical"]
COLUMNS = ["id", "workflow", "status", "created_at", "finished_at", "error.message"]


@click.group()
def runs() -> None:
    """List, read, follow, cancel and replay runs."""


@runs.command("list")
@click.option("-w", "--workflow", help="Only runs of this workflow.")
@click.option("-s", "--status", type=click.Choice(STATUSES), multiple=True, help="Only runs with this status; repeatable.")
@click.option("--since", type=Moment(), help="Only runs made since: RFC 3339, or 1h for the last hour.")
@click.option("--until", type=Moment(), help="Only runs made before.")
@click.option("-m", "--metadata", type=Pair(), multiple=True, help="Only runs whose metadata has key=value; repeatable.")
@click.option("--event", help="Only runs started by this event's id.")
@click.option("--parent", help="Only runs started by this run's id.")
@click.option("--endpoint", help="Only runs delivered to this endpoint.")
@click.option("-q", "--search", help='Only runs whose bodies hold these words, "phrases" and path:value.')
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="At most so many.")
@click.option("--cursor", help="Where the list before ended: its next_cursor.")
@asks_server
def list_(
    workflow: str | None,
    status: tuple[str, ...],
    since: str | None,
    until: str | None,
    metadata: tuple[tuple[str, str], ...],
    event: str | None,
    parent: str | None,
    endpoint: str | None,
    search: str | None,
    limit: int,
    cursor: str | None,
    api: Api,
    out: Output,
) -> None:
    """List runs, newest first."""
    answer = api.get(
        "/v1/runs",
        workflow=workflow,
        status=list(status) or None,
        since=since,
        until=until,
        metadata=[f"{key}:{value}" for key, value in metadata] or None,
        event_id=event,
        parent_run_id=parent,
        endpoint=endpoint,
        q=search,
        limit=limit,
        cursor=cursor,
    )
    out.rows(answer.text, COLUMNS, "No runs. Start one: dispatcher trigger WORKFLOW")


@runs.command()
@click.argument("run_id")
@asks_server
def get(run_id: str, api: Api, out: Output) -> None:
    """Show a run with its attempts; as JSON also with the journal of its durable tasks, for `dispatcher replay`."""
    from dispatcher.cli.client import segment
    from dispatcher.cli.results import run_lines

    answer = api.get(f"/v1/runs/{segment(run_id)}")
    journal = api.find(f"/v1/runs/{segment(run_id)}/journal") if out.json else None
    text = answer.text if journal is None else f'{answer.text.rstrip()[:-1]},"journal":{journal.text}}}'
    out.document(text, list(run_lines(answer.value)))


@runs.command()
@click.argument("run_id")
@asks_server
def explain(run_id: str, api: Api, out: Output) -> None:
    """Say why a run does not run: what each of its tasks waits for, one line each."""
    from dispatcher.cli.client import segment
    from dispatcher.cli.results import waiting_lines

    answer = api.get(f"/v1/runs/{segment(run_id)}")
    out.document(answer.text, list(waiting_lines(answer.value)))


@runs.command()
@click.argument("run_id")
@click.option("-f", "--follow", is_flag=True, help="Go on until the run is over.")
@click.option("--level", type=click.Choice(LEVELS), multiple=True, help="Only lines of this level; repeatable.")
@click.option("--search", help="Only lines that hold this text.")
@click.option("--attempt", type=click.IntRange(0), help="Only lines of this attempt.")
@asks_server
def logs(run_id: str, follow: bool, level: tuple[str, ...], search: str | None, attempt: int | None, api: Api, out: Output) -> None:
    """Print what a run's handlers logged, one line each."""
    from dispatcher.cli.following import follow_lines, print_logs

    filters = {"level": list(level) or None, "search": search, "attempt": attempt}
    if follow:
        follow_lines(api, out, run_id, filters)
    else:
        print_logs(api, out, run_id, filters)


@runs.command()
@click.argument("run_id")
@asks_server
def stream(run_id: str, api: Api, out: Output) -> None:
    """Print what a run puts into its stream, from the beginning and as it comes, until it is over."""
    from dispatcher.cli.following import print_stream

    print_stream(api, out, run_id)


@runs.command()
@click.argument("run_id")
@click.option("--to", "path", type=click.Path(dir_okay=False, writable=True), help="The file to write; stdout unless given.")
@asks_server
def export(run_id: str, path: str | None, api: Api, out: Output) -> None:
    """Write everything that is kept of a run as one JSON document: tasks, attempts, log lines, stream, event."""
    from pathlib import Path

    from dispatcher.cli.client import segment

    document = api.download(f"/v1/runs/{segment(run_id)}/export")
    if path is None:
        click.echo(document)
    else:
        Path(path).write_bytes(document)
        out.item({"run_id": run_id, "path": path, "bytes": len(document)}, f"{run_id} written to {path}")


@runs.command()
@click.argument("run_id", required=False)
@click.option("-w", "--workflow", help="Only runs of this workflow.")
@click.option("--count", type=click.IntRange(1), help="End after so many runs.")
@click.option("--timeout", type=Duration(), help="Exit 5 after so long.")
@asks_server
def tail(run_id: str | None, workflow: str | None, count: int | None, timeout: timedelta | None, api: Api, out: Output) -> None:
    """Print each run as it finishes, one line each, until interrupted.

    With RUN_ID: print what it logs until it is over, then its result; exit 6 unless it succeeded.
    """
    from dispatcher.cli.following import follow_run, follow_runs

    try:
        if run_id is None:
            follow_runs(api, out, workflow, count, timeout)
        else:
            follow_run(api, out, run_id, timeout)
    except KeyboardInterrupt:
        return


@runs.command()
@click.argument("run_ids", metavar="[RUN_ID…]", nargs=-1)
@click.option("--reason", help="Told to the handlers and kept with the run.")
@chooses(*LIVE)
@asks_server
def cancel(run_ids: tuple[str, ...], reason: str | None, chosen: Chosen, api: Api, out: Output) -> None:
    """Cancel runs, queued or running: those named, or all that match the options."""
    if _by_options(run_ids, chosen):
        act(api, out, "cancel", chosen, reason)
    else:
        _each(run_ids, lambda path: api.call("POST", f"{path}/cancel", body(reason=written(reason))), out)


@runs.command()
@click.argument("run_ids", metavar="[RUN_ID…]", nargs=-1)
@click.option("--task", help="Of a workflow: only this task, and all that comes after it.")
@click.option("-i", "--input", "input_", type=JsonInput(), help="Another input: JSON text, @file or -.")
@chooses("succeeded", "failed", "cancelled")
@asks_server
def replay(run_ids: tuple[str, ...], task: str | None, input_: str | None, chosen: Chosen, api: Api, out: Output) -> None:
    """Run finished runs again under their own ids: those named, or all that match the options.

    Without --status, options choose those that failed or were cancelled.
    """
    if _by_options(run_ids, chosen):
        if task is not None or input_ is not None:
            raise click.UsageError("--task and --input are for runs that are named.")
        act(api, out, "replay", chosen)
    else:
        _each(run_ids, lambda path: api.call("POST", f"{path}/replay", body(task=written(task), input=input_)), out)


@runs.command()
@click.argument("run_id")
@asks_server
def journal(run_id: str, api: Api, out: Output) -> None:
    """Show the journal of a run's durable tasks: what they asked for, and what became of it."""
    from dispatcher.cli.client import segment
    from dispatcher.cli.results import journal_lines

    answer = api.get(f"/v1/runs/{segment(run_id)}/journal")
    out.document(answer.text, list(journal_lines(answer.value)))


@runs.command()
@click.argument("run_ids", metavar="RUN_ID…", nargs=-1, required=True)
@click.option("--node", help="Id of a journal's entry: what came before it stays, it and the rest are run again.")
@click.option("--task", help="Of a workflow: which of its durable tasks.")
@asks_server
def reset(run_ids: tuple[str, ...], node: str | None, task: str | None, api: Api, out: Output) -> None:
    """Let durable tasks go on from a node of their journal, as a branch; without --node from all of it."""
    _each(run_ids, lambda path: api.call("POST", f"{path}/reset", body(journal_node=written(node), task=written(task))), out)


@runs.command()
@click.argument("run_ids", metavar="RUN_ID…", nargs=-1, required=True)
@asks_server
def resume(run_ids: tuple[str, ...], api: Api, out: Output) -> None:
    """Let what is blocked in runs try again, on the version that is the latest now."""
    _each(run_ids, lambda path: api.call("POST", f"{path}/resume", b"{}"), out)


@runs.command()
@click.argument("run_id")
@click.argument("data", type=JsonInput())
@click.option("--task", help="Of a workflow: which of its durable tasks.")
@asks_server
def message(run_id: str, data: str, task: str | None, api: Api, out: Output) -> None:
    """Send a message to a running durable task: JSON text, @file or -."""
    from dispatcher.cli.client import segment

    answer = api.call("POST", f"/v1/runs/{segment(run_id)}/messages", body(data=data, task=written(task)))
    out.document(answer.text, ["delivered"])


@runs.command()
@click.argument("run_id")
@click.option("--task", help="Of a workflow: which of its durable tasks.")
@asks_server
def checkpoint(run_id: str, task: str | None, api: Api, out: Output) -> None:
    """Show what a durable task last saved."""
    import json

    from dispatcher.cli.client import segment

    answer = api.get(f"/v1/runs/{segment(run_id)}/checkpoint", task=task)
    out.document(answer.text, [f"saved {answer.value['at']}", json.dumps(answer.value["value"], ensure_ascii=False)])


def _by_options(run_ids: tuple[str, ...], chosen: Chosen) -> bool:
    """Whether options choose the runs, and not ids."""
    if run_ids and chosen.filter():
        raise click.UsageError("Name runs, or choose them with options; not both.")
    if not run_ids and not chosen.filter():
        raise click.UsageError("Name at least one run, or choose runs with --workflow, --status, --since, --until, --metadata or --event.")
    if run_ids and (chosen.dry_run or chosen.wait is not None):
        raise click.UsageError("--dry-run and --wait are for runs that options choose.")
    return not run_ids


def _each(run_ids: tuple[str, ...], call: Callable[[str], Answer], out: Output) -> None:
    """Do something to each run; those that are not there are named at the end."""
    from dispatcher.cli.client import segment

    missing = []
    for run_id in run_ids:
        try:
            answer = call(f"/v1/runs/{segment(run_id)}")
        except Failure as failure:
            if len(run_ids) == 1 or failure.exit_code != Exit.NOT_FOUND:
                raise
            failure.show()
            missing.append(run_id)
        else:
            out.item(answer.value, f"{run_id}  {answer.value['status']}")
    if missing:
        raise Failure(f"not found: {', '.join(missing)}", code=Exit.NOT_FOUND)
