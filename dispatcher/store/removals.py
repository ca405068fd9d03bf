"""Removing workflows. What starts runs of one goes; its row and versions stay, for its history."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from dispatcher.store.database import Connection, Database
from dispatcher.store.statement import Statement

MOST_COUNTED = 1_000


@dataclass(frozen=True, slots=True)
class WorkflowId:
    """A workflow that is registered."""

    id: int


FIND = Statement("select id from workflows where tenant_id = $1 and name = $2 and removed_at is null for update", WorkflowId)
AMONG = Statement("select id from workflows where tenant_id = $1 and id = any($2::int[]) and removed_at is not null", WorkflowId)
LIVE = "select count(*) from (select from runs where tenant_id = $1 and workflow_id = $2 limit $3) live"
CRONS = "delete from crons where tenant_id = $1 and workflow_id = $2"
SCHEDULES = "delete from schedules where tenant_id = $1 and workflow_id = $2 and status = 'scheduled'"
FILTERS = "delete from filters where tenant_id = $1 and workflow_id = $2"
ROUTES = "delete from routes where tenant_id = $1 and workflow_id = $2"
REMOVE = """
    update workflows set removed_at = $3, updated_at = $3, paused_at = null, queue_ttl_ms = null, aside = null
    where tenant_id = $1 and id = $2
"""


async def find(conn: Connection, tenant_id: int, name: str) -> int | None:
    """The id of a workflow, locked until the end of the transaction; None where there is none."""
    row = FIND.first(await conn.fetch(FIND.sql, tenant_id, name))
    return row.id if row is not None else None


async def among(db: Database | Connection, tenant_id: int, workflow_ids: Iterable[int]) -> set[int]:
    """Those of these workflows that were removed."""
    return {row.id for row in AMONG.read(await db.fetch(AMONG.sql, tenant_id, list(set(workflow_ids))))}


async def live(conn: Connection, tenant_id: int, workflow_id: int) -> int:
    """How many runs of a workflow are not over, counted as far as MOST_COUNTED."""
    return int(await conn.fetchval(LIVE, tenant_id, workflow_id, MOST_COUNTED))


async def remove(conn: Connection, tenant_id: int, workflow_id: int, now: datetime) -> None:
    """Remove a workflow with what starts it."""
    for sql in (CRONS, SCHEDULES, FILTERS, ROUTES):
        await conn.execute(sql, tenant_id, workflow_id)
    await conn.execute(REMOVE, tenant_id, workflow_id, now)
