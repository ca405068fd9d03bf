"""Bulk actions: which runs they are about, settled when they are made, and how far they have come."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from dispatcher.store.database import Connection, Database
from dispatcher.store.runs import CLOCK_SKEW, PLAN_FOR_VALUES, Found, RunFilter, first_id
from dispatcher.store.statement import Statement

Kind = Literal["cancel", "replay"]


@dataclass(frozen=True, slots=True)
class BulkRow:
    """A bulk action. `filter` is JSON text of what was asked, `matched` how many runs that were; `done` and `skipped` are of those."""

    id: str
    kind: Kind
    status: str
    filter: str | None
    reason: str
    matched: int
    done: int
    skipped: int
    created_by: str | None
    created_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class Running:
    """A bulk action that is not over."""

    tenant_id: int
    id: str
    kind: Kind
    reason: str


# Both matches answer ids in order, so that what is previewed is what is done. Conditions are those of lists of runs.
MATCH_LIVE = Statement(
    """
    select r.id
    from runs r left join tasks t on t.tenant_id = $1 and t.run_id = r.id and t.node = 0 and r.graph is null
    where r.tenant_id = $1
      and ($2::text is null or r.id < $2) and ($3::text is null or r.id >= $3)
      and ($4::int[] is null or r.workflow_id = any($4))
      and ($5::text is null or r.event_id = $5)
      and ($6::text is null or r.parent_run_id = $6)
      and ($7::jsonpath is null or r.metadata @@ $7)
      and ($8::text[] is null or case when r.graph ~ '[^-]' or t.state = 'running' then 'running'
           when t.state in ('waiting', 'blocked') then t.state
           when t.state = 'scheduled' and t.epoch > 0 then 'pending_retry' else 'queued' end = any($8))
      and ($9::text[] is null or r.id = any($9))
    order by r.id limit $10
    """,
    Found,
)
MATCH_OVER = Statement(
    """
    select h.id from run_history h
    where h.tenant_id = $1 and ($11::timestamptz is null or h.finished_at >= $11)
      and ($2::text is null or h.id < $2) and ($3::text is null or h.id >= $3)
      and ($4::int[] is null or h.workflow_id = any($4))
      and ($5::text is null or h.event_id = $5)
      and ($6::text is null or h.parent_run_id = $6)
      and ($7::jsonpath is null or h.metadata @@ $7)
      and ($8::text[] is null or h.status = any($8))
      and ($9::text[] is null or h.id = any($9))
    order by h.id limit $10
    """,
    Found,
)
WORKFLOW_IDS = "select id from workflows where tenant_id = $1 and name = any($2::text[])"
CREATE = """
    insert into bulk_actions (tenant_id, id, kind, status, filter, reason, matched, created_by, created_at, finished_at)
    values ($1, $2, $3, case when $6 = 0 then 'finished' else 'running' end, $4::jsonb, $5, $6::int, $7, $8,
            case when $6 = 0 then $8::timestamptz end)
"""
ADD_ITEMS = "insert into bulk_items (tenant_id, bulk_id, run_id) select $1, $2, unnest($3::text[])"
ACTION = Statement(
    """
    select id, kind, status, filter, reason, matched, done, skipped, created_by, created_at, finished_at
    from bulk_actions where tenant_id = $1 and id = $2
    """,
    BulkRow,
)
PAGE = Statement(
    """
    select id, kind, status, filter, reason, matched, done, skipped, created_by, created_at, finished_at
    from bulk_actions
    where tenant_id = $1 and ($2::text is null or id < $2) and ($3::text is null or status = $3) order by id desc limit $4
    """,
    BulkRow,
)
RUNNING = Statement(
    """
    select tenant_id, id, kind, reason from bulk_actions where status = 'running' order by id limit $1
    """,
    Running,
)
TAKE = Statement(
    """
    select run_id as id from bulk_items where tenant_id = $1 and bulk_id = $2 order by run_id limit $3 for update skip locked
    """,
    Found,
)
LOOK = Statement("select run_id as id from bulk_items where tenant_id = $1 and bulk_id = $2 order by run_id limit $3", Found)
DROP = Statement("delete from bulk_items where tenant_id = $1 and bulk_id = $2 and run_id = any($3::text[]) returning run_id as id", Found)
COUNT = "update bulk_actions set done = done + $3, skipped = skipped + $4 where tenant_id = $1 and id = $2"
FINISH = """
    update bulk_actions set status = 'finished', finished_at = $3
    where tenant_id = $1 and id = $2 and status = 'running'
      and not exists (select from bulk_items where tenant_id = $1 and bulk_id = $2)
"""
STOP = """
    update bulk_actions set status = 'cancelled', finished_at = $3 where tenant_id = $1 and id = $2 and status = 'running' returning id
"""
DROP_ALL = "delete from bulk_items where tenant_id = $1 and bulk_id = $2"
PRUNE = "delete from bulk_actions where finished_at < $1"


async def match(
    db: Database,
    tenant_id: int,
    kind: Kind,
    wanted: RunFilter,
    names: Sequence[str] | None,
    run_ids: Sequence[str] | None,
    limit: int,
) -> list[str]:
    """Ids of runs that match and that this kind of action is for: live ones to cancel, finished ones to replay. At most `limit`.

    `names` are those of workflows.
    """
    async with db.transaction() as conn:
        await conn.execute(PLAN_FOR_VALUES)
        workflows = None
        if names is not None:
            workflows = [record[0] for record in await conn.fetch(WORKFLOW_IDS, tenant_id, list(names))]
        given = (
            tenant_id,
            first_id("run", wanted.until) if wanted.until else None,
            first_id("run", wanted.since) if wanted.since else None,
            workflows,
            wanted.event_id,
            wanted.parent_run_id,
            wanted.metadata,
            list(wanted.statuses) if wanted.statuses is not None else None,
            list(run_ids) if run_ids is not None else None,
            limit,
        )
        if kind == "cancel":
            return [found.id for found in MATCH_LIVE.read(await conn.fetch(MATCH_LIVE.sql, *given))]
        finished = wanted.since - CLOCK_SKEW if wanted.since else None
        return [found.id for found in MATCH_OVER.read(await conn.fetch(MATCH_OVER.sql, *given, finished))]


async def create(
    conn: Connection,
    tenant_id: int,
    bulk_id: str,
    kind: Kind,
    asked: Mapping[str, Any],
    reason: str,
    run_ids: Sequence[str],
    actor: str | None,
    now: datetime,
) -> None:
    """Make an action for these runs; one for none is finished."""
    await conn.execute(CREATE, tenant_id, bulk_id, kind, json.dumps(asked), reason, len(run_ids), actor, now)
    await conn.execute(ADD_ITEMS, tenant_id, bulk_id, list(run_ids))


async def get(db: Database | Connection, tenant_id: int, bulk_id: str) -> BulkRow | None:
    """An action, or None where there is none of this id."""
    return ACTION.first(await db.fetch(ACTION.sql, tenant_id, bulk_id))


async def page(db: Database, tenant_id: int, before: str | None, status: str | None, limit: int) -> list[BulkRow]:
    """Actions, the latest first, older than the id `before`."""
    return PAGE.read(await db.fetch(PAGE.sql, tenant_id, before, status, limit))


async def running(db: Database, limit: int) -> list[Running]:
    """Actions of any tenant that are not over, the oldest first."""
    return RUNNING.read(await db.fetch(RUNNING.sql, limit))


async def take(conn: Connection, tenant_id: int, bulk_id: str, limit: int) -> list[str]:
    """Runs nobody else is at, held until the transaction ends."""
    return [found.id for found in TAKE.read(await conn.fetch(TAKE.sql, tenant_id, bulk_id, limit))]


async def look(db: Database, tenant_id: int, bulk_id: str, limit: int) -> list[str]:
    """Runs that are left, without holding them."""
    return [found.id for found in LOOK.read(await db.fetch(LOOK.sql, tenant_id, bulk_id, limit))]


async def drop(conn: Connection, tenant_id: int, bulk_id: str, run_ids: Sequence[str]) -> set[str]:
    """Strike runs off; answers those that were still there."""
    return {found.id for found in DROP.read(await conn.fetch(DROP.sql, tenant_id, bulk_id, list(run_ids)))}


async def count(conn: Connection, tenant_id: int, bulk_id: str, done: int, skipped: int) -> None:
    """Add to what has been done."""
    await conn.execute(COUNT, tenant_id, bulk_id, done, skipped)


async def finish(db: Database | Connection, tenant_id: int, bulk_id: str, now: datetime) -> None:
    """End an action that has no runs left."""
    await db.execute(FINISH, tenant_id, bulk_id, now)


async def stop(conn: Connection, tenant_id: int, bulk_id: str, now: datetime) -> bool:
    """End an action and forget the runs it has not come to; False where it is over already."""
    await conn.execute(DROP_ALL, tenant_id, bulk_id)  # before the action itself: whoever carries out a set holds them in this order
    return await conn.fetchval(STOP, tenant_id, bulk_id, now) is not None


async def prune(db: Database, before: datetime) -> None:
    """Forget actions that ended before a moment."""
    await db.execute(PRUNE, before)
