"""Schedules: runs at one moment each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from dispatcher.store.database import Connection, Database
from dispatcher.store.runs import PLAN_FOR_VALUES
from dispatcher.store.statement import Statement

Status = Literal["scheduled", "started", "missed", "dropped"]


@dataclass(frozen=True, slots=True)
class ScheduleRow:
    """A schedule with its workflow's name. `metadata` is JSON text; lists leave `input` out. `error` is why it could not start its run."""

    id: str
    workflow: str
    status: str
    run_at: datetime
    input: bytes | None
    metadata: str | None
    priority: int | None
    missed: str
    grace_ms: int
    run_id: str | None
    settled_at: datetime | None
    error: str | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class DueSchedule:
    """A schedule whose moment has come."""

    tenant_id: int
    id: str
    workflow_id: int
    run_at: datetime
    input: bytes
    metadata: str | None
    priority: int | None
    missed: str
    grace_ms: int


@dataclass(frozen=True, slots=True)
class ScheduleFilter:
    """Which schedules. `metadata` is a jsonpath predicate; `since` and `until` are about when they run."""

    workflow: str | None = None
    statuses: Sequence[str] | None = None
    since: datetime | None = None
    until: datetime | None = None
    metadata: str | None = None
    ids: Sequence[str] | None = None


@dataclass(slots=True)
class NewSchedule:
    """A schedule as it shall be."""

    tenant_id: int
    id: str
    workflow_id: int
    run_at: datetime
    input: bytes
    metadata: str | None
    priority: int | None
    missed: str
    grace_ms: int


@dataclass(slots=True)
class ScheduleStep:
    """What has become of a schedule that was due at `run_at`; `run_id` is the run it starts."""

    tenant_id: int
    id: str
    run_at: datetime
    status: Status
    run_id: str | None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class ScheduleKey:
    """A schedule."""

    tenant_id: int
    id: str


@dataclass(frozen=True, slots=True)
class ScheduleId:
    """A schedule of a known tenant."""

    id: str


SCHEDULE = Statement(
    """
    select s.id, w.name as workflow, s.status, s.run_at, s.input, s.metadata, s.priority, s.missed, s.grace_ms, s.run_id, s.settled_at,
           s.error, s.created_at, s.updated_at
    from schedules s join workflows w on w.tenant_id = s.tenant_id and w.id = s.workflow_id where s.tenant_id = $1 and s.id = $2
    """,
    ScheduleRow,
)
# The row is locked, so that what is not changed is written as it is.
LOCKED = Statement(
    """
    select s.id, w.name as workflow, s.status, s.run_at, s.input, s.metadata, s.priority, s.missed, s.grace_ms, s.run_id, s.settled_at,
           s.error, s.created_at, s.updated_at
    from schedules s join workflows w on w.tenant_id = s.tenant_id and w.id = s.workflow_id where s.tenant_id = $1 and s.id = $2
    for update of s
    """,
    ScheduleRow,
)
PAGE = Statement(
    """
    select s.id, w.name as workflow, s.status, s.run_at, null::bytea as input, s.metadata, s.priority, s.missed, s.grace_ms, s.run_id,
           s.settled_at, s.error, s.created_at, s.updated_at
    from schedules s join workflows w on w.tenant_id = s.tenant_id and w.id = s.workflow_id
    where s.tenant_id = $1 and ($2::text is null or s.id < $2) and ($3::text is null or w.name = $3)
      and ($4::text[] is null or s.status = any($4)) and ($5::timestamptz is null or s.run_at >= $5)
      and ($6::timestamptz is null or s.run_at < $6) and ($7::jsonpath is null or s.metadata @@ $7)
    order by s.id desc limit $8
    """,
    ScheduleRow,
)
# In the order of their ids, so that two who change many of the same wait for one another at the first of them.
MATCHING = Statement(
    """
    select s.id from schedules s join workflows w on w.tenant_id = s.tenant_id and w.id = s.workflow_id
    where s.tenant_id = $1 and ($2::text is null or w.name = $2) and ($3::text[] is null or s.status = any($3))
      and ($4::timestamptz is null or s.run_at >= $4) and ($5::timestamptz is null or s.run_at < $5)
      and ($6::jsonpath is null or s.metadata @@ $6) and ($7::text[] is null or s.id = any($7))
    order by s.id limit $8 for update of s
    """,
    ScheduleId,
)
INSERT = """
    insert into schedules (tenant_id, id, workflow_id, status, run_at, input, metadata, priority, missed, grace_ms, created_at, updated_at)
    select tenant_id, id, workflow_id, 'scheduled', run_at, input, metadata::jsonb, priority, missed, grace_ms, $10::timestamptz, $10
    from unnest($1::int[], $2::text[], $3::int[], $4::timestamptz[], $5::bytea[], $6::text[], $7::smallint[], $8::text[], $9::bigint[])
         as g (tenant_id, id, workflow_id, run_at, input, metadata, priority, missed, grace_ms)
"""
RESCHEDULE = Statement(
    """
    with held as materialized (
        select s.tenant_id, g.id, g.run_at from unnest($2::text[], $3::timestamptz[]) as g (id, run_at)
        cross join lateral (select s.tenant_id, s.status from schedules s where s.tenant_id = $1 and s.id = g.id offset 0 for update) s
        where s.status = 'scheduled'
    )
    update schedules s set run_at = g.run_at, updated_at = $4
    from held g where s.tenant_id = any (array[g.tenant_id]) and s.id = g.id
    returning s.id
    """,
    ScheduleId,
)
CHANGE = """
    update schedules set run_at = $3, input = $4, metadata = $5::jsonb, priority = $6, missed = $7, grace_ms = $8, updated_at = $9
    where tenant_id = $1 and id = $2 and status = 'scheduled' returning id
"""
DELETE = Statement("delete from schedules where tenant_id = $1 and id = any($2::text[]) returning id", ScheduleId)
DUE = Statement(
    """
    select tenant_id, id, workflow_id, run_at, input, metadata, priority, missed, grace_ms
    from schedules where status = 'scheduled' and run_at <= $1 order by run_at limit $2
    """,
    DueSchedule,
)
NEXT = "select min(run_at) from schedules where status = 'scheduled'"
SETTLE = Statement(
    """
    with given as (
        select * from unnest($1::int[], $2::text[], $3::timestamptz[], $4::text[], $5::text[], $7::text[])
            as g (tenant_id, id, run_at, status, run_id, error)
    ), held as materialized (
        select g.tenant_id, g.id, g.status, g.run_id, g.error from given g
        cross join lateral (
            select s.run_at, s.status from schedules s where s.tenant_id = g.tenant_id and s.id = g.id offset 0 for update skip locked
        ) s
        where s.run_at = g.run_at and s.status = 'scheduled'
    )
    update schedules s set status = g.status, run_id = g.run_id, error = g.error, settled_at = $6
    from held g where s.tenant_id = any (array[g.tenant_id]) and s.id = g.id
    returning s.tenant_id, s.id
    """,
    ScheduleKey,
)
PRUNE = """
    delete from schedules where (tenant_id, id) in (
        select tenant_id, id from schedules where settled_at < $1 order by settled_at limit $2 for update skip locked
    )
"""


async def get(db: Database | Connection, tenant_id: int, schedule_id: str) -> ScheduleRow | None:
    """A schedule."""
    return SCHEDULE.first(await db.fetch(SCHEDULE.sql, tenant_id, schedule_id))


async def page(db: Database, tenant_id: int, wanted: ScheduleFilter, before: str | None, limit: int) -> list[ScheduleRow]:
    """Schedules that match, the newest first."""
    asked = (wanted.workflow, wanted.statuses, wanted.since, wanted.until, wanted.metadata)
    async with db.transaction() as conn:
        await conn.execute(PLAN_FOR_VALUES)
        return PAGE.read(await conn.fetch(PAGE.sql, tenant_id, before, *asked, limit))


async def locked(conn: Connection, tenant_id: int, schedule_id: str) -> ScheduleRow | None:
    """A schedule, held until the end of the transaction."""
    return LOCKED.first(await conn.fetch(LOCKED.sql, tenant_id, schedule_id))


async def matching(conn: Connection, tenant_id: int, wanted: ScheduleFilter, limit: int) -> list[str]:
    """The ids of schedules that match, held until the end of the transaction."""
    asked = (wanted.workflow, wanted.statuses, wanted.since, wanted.until, wanted.metadata, wanted.ids)
    await conn.execute(PLAN_FOR_VALUES)
    return [row.id for row in MATCHING.read(await conn.fetch(MATCHING.sql, tenant_id, *asked, limit))]


async def insert(db: Database | Connection, rows: Sequence[NewSchedule], now: datetime) -> None:
    """Write new schedules."""
    await db.execute(
        INSERT,
        [r.tenant_id for r in rows],
        [r.id for r in rows],
        [r.workflow_id for r in rows],
        [r.run_at for r in rows],
        [r.input for r in rows],
        [r.metadata for r in rows],
        [r.priority for r in rows],
        [r.missed for r in rows],
        [r.grace_ms for r in rows],
        now,
    )


async def reschedule(db: Database | Connection, tenant_id: int, moments: Sequence[tuple[str, datetime]], now: datetime) -> set[str]:
    """Give schedules another moment; answers those that had not run yet."""
    rows = await db.fetch(RESCHEDULE.sql, tenant_id, [one for one, _ in moments], [at for _, at in moments], now)
    return {row.id for row in RESCHEDULE.read(rows)}


async def change(db: Database | Connection, tenant_id: int, row: ScheduleRow, now: datetime) -> bool:
    """Write what may change of a schedule; False when it has run."""
    given = (row.run_at, row.input, row.metadata, row.priority, row.missed, row.grace_ms)
    return await db.fetchval(CHANGE, tenant_id, row.id, *given, now) is not None


async def delete(db: Database | Connection, tenant_id: int, schedule_ids: Sequence[str]) -> set[str]:
    """Remove schedules; answers those there were. What they started goes on."""
    return {row.id for row in DELETE.read(await db.fetch(DELETE.sql, tenant_id, list(schedule_ids)))}


async def due(db: Database, now: datetime, limit: int) -> list[DueSchedule]:
    """Schedules whose moment has come, the longest overdue first."""
    return DUE.read(await db.fetch(DUE.sql, now, limit))


async def next_due(db: Database) -> datetime | None:
    """When the next schedule is due."""
    moment: datetime | None = await db.fetchval(NEXT)
    return moment


async def settle(conn: Connection, steps: Sequence[ScheduleStep], now: datetime) -> set[tuple[int, str]]:
    """Write what has become of schedules, each due when it was seen to be; answers those that still were."""
    rows = await conn.fetch(
        SETTLE.sql,
        [s.tenant_id for s in steps],
        [s.id for s in steps],
        [s.run_at for s in steps],
        [s.status for s in steps],
        [s.run_id for s in steps],
        now,
        [s.error for s in steps],
    )
    return {(row.tenant_id, row.id) for row in SETTLE.read(rows)}


async def prune(db: Database, before: datetime, limit: int) -> int:
    """Forget at most `limit` schedules settled before a moment; answers how many."""
    return int((await db.execute(PRUNE, before, limit)).split()[-1])
