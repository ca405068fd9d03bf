"""The line `dev` prints for every run that ends."""

from __future__ import annotations

from contextlib import suppress

import rich_click as click

from dispatcher.app import Runtime
from dispatcher.cli.steps import Steps, duration
from dispatcher.ids import created_at
from dispatcher.runtime.settlement import RunFinished

_MARKS = {"succeeded": click.style("✓", fg="green"), "failed": click.style("✗", fg="red"), "cancelled": click.style("–", fg="yellow")}


def tell_of_runs(runtime: Runtime, steps: Steps, url: str) -> None:
    """Print runs that this process ends, with the link to each."""
    clock = runtime.services.clock

    def tell(run: RunFinished) -> None:
        made = created_at(run.run_id)
        took = (clock.now() - made).total_seconds() * 1000 if made is not None else 0.0
        with suppress(OSError):  # nobody reads any more; the runs go on
            steps.run_finished(
                f"{_MARKS[run.status]} {run.workflow}  {run.status}  {duration(took)}{_tries(run.attempts)}  {url}/v1/runs/{run.run_id}",
                id=run.run_id,
                workflow=run.workflow,
                status=run.status,
                attempts=run.attempts,
                elapsed_ms=round(took, 1),
            )

    runtime.services.settlement.on_finished.append(tell)


def _tries(attempts: int) -> str:
    return f"  {attempts} attempts" if attempts > 1 else ""
