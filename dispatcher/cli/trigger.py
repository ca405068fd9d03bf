"""`dispatcher trigger`: start a run, and with `--wait` let the exit code say how it ended."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import rich_click as click

from dispatcher.cli.options import Duration, JsonInput, Moment, Pair, asks_server, body, typed, written
from dispatcher.cli.output import Output, note, pairs

if TYPE_CHECKING:
    from dispatcher.cli.client import Api


@click.command()
@click.argument("workflow")
@click.option("-i", "--input", "input_text", type=JsonInput(), help="The input: JSON, @file, or - for stdin.")
@click.option("-m", "--metadata", type=Pair(), multiple=True, help="key=value carried along with the run; repeatable.")
@click.option("--priority", type=int, help="Higher runs first.")
@click.option("--idempotency-key", help="Calls with the same key start one run.")
@click.option("--run-at", type=Moment(), help="Not before this moment, RFC 3339.")
@click.option("--wait", is_flag=True, help="Wait for the result; exit 6 unless the run succeeded.")
@click.option("--timeout", type=Duration(), default="5m", show_default=True, help="Longest wait before exit 5; the run goes on.")
@asks_server
def trigger(
    workflow: str,
    input_text: str | None,
    metadata: tuple[tuple[str, str], ...],
    priority: int | None,
    idempotency_key: str | None,
    run_at: str | None,
    wait: bool,
    timeout: timedelta,
    api: Api,
    out: Output,
) -> None:
    """Start a run of a workflow, and wait for its result if asked to."""
    answer = api.call(
        "POST",
        "/v1/runs",
        body(
            workflow=written(workflow),
            input=input_text,
            metadata=written(typed(metadata) or None),
            priority=written(priority),
            idempotency_key=written(idempotency_key),
            run_at=written(run_at),
        ),
    )
    if not wait:
        out.document(answer.text, pairs(answer.value, ["id", "status", "duplicate", "created_at"]))
        return
    note(f"{answer.value['id']} {answer.value['status']}")
    from dispatcher.cli.results import await_result

    await_result(api, out, answer.value["id"], timeout)
