"""`dispatcher migrate`."""

from __future__ import annotations

import json
from typing import Any

import rich_click as click

from dispatcher.cli.options import answers, needs_data, rfc3339
from dispatcher.cli.output import Output


@click.command()
@click.option("--status", is_flag=True, help="Only say what is applied and what is pending.")
@needs_data
@answers
def migrate(status: bool, data_dir: str | None, out: Output) -> None:
    """Bring the database to this release's schema.

    Safe to run again and by several at once. `dev` and `serve` do it themselves when they start.
    """
    from dispatcher.cli.local import run, settings_with

    rows = run(_migrate(settings_with(data_dir=data_dir), status))
    out.rows(json.dumps({"rows": rows, "next_cursor": None}), ["version", "name", "state", "applied_at"], "No migrations.")


async def _migrate(settings: Any, status_only: bool) -> list[dict[str, Any]]:
    from dispatcher.cli.local import database_of
    from dispatcher.clock import SystemClock
    from dispatcher.store import migrate as migrations

    async with database_of(settings, create=not status_only) as dsn:
        new = [] if status_only else await migrations.migrate(dsn, SystemClock().now())
        status = await migrations.status(dsn)
    names = {migration.version for migration in new}
    applied = [
        {
            "version": row.version,
            "name": row.name,
            "state": "new" if row.version in names else "applied",
            "applied_at": rfc3339(row.applied_at),
        }
        for row in status.applied
    ]
    pending = [{"version": row.version, "name": row.name, "state": "pending", "applied_at": None} for row in status.pending]
    return [*applied, *pending]
