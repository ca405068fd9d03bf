"""Crons: those that workflows declare and those made by hand, and moving them on from tick to tick."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from dispatcher.store.database import Connection, Database
from dispatcher.store.runs import PLAN_FOR_VALUES
from dispatcher.store.statement import Statement


@dataclass(frozen=True, slots=True)
class CronRow:
    """A cron with its workflow's name. `metadata` is JSON text; `due_wall` is what the clocks of its zone show at `due_at`.
    `last_error` is why its last tick could not start a run.
    """

    id: str
    workflow_id: int
    workflow: str
    name: str
    expression: str
    timezone: str
    input: bytes
    metadata: str | None
    priority: int | None
    missed: str
    enabled: bool
    declared: bool
    due_at: datetime | None
    due_wall: datetime | None
    last_tick: datetime | None
    last_wall: datetime | None
    last_run_id: str | None
    skipped_at: datetime | None
    last_error: str | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class DueCron:
    """A cron with ticks to look at."""

    tenant_id: int
    id: str
    workflow_id: int
    expression: str
    timezone: str
    input: bytes
    metadata: str | None
    priority: int | None
    missed: str
    due_at: datetime
    due_wall: datetime


@dataclass(frozen=True, slots=True)
class OldCron:
    """A cron whose next tick was reckoned by older rules of time zones. `since` is when its next tick is looked for from."""

    tenant_id: int
    id: str
    expression: str
    timezone: str
    since: datetime
    last_wall: datetime | None
    due_at: datetime
    due_wall: datetime


@dataclass(frozen=True, slots=True)
class CronFilter:
    """Which crons a list is asked for. `metadata` is a jsonpath predicate (see `runs.has_metadata`)."""

    workflow: str | None = None
    name: str | None = None
    enabled: bool | None = None
    declared: bool | None = None
    metadata: str | None = None


@dataclass(slots=True)
class NewCron:
    """A cron as it shall be; `id` is used only if it is new. `rules` is the release its next tick was reckoned by."""

    id: str
    workflow_id: int
    name: str
    expression: str
    timezone: str
    input: bytes
    metadata: str | None
    priority: int | None
    missed: str
    enabled: bool
    declared: bool
    due_at: datetime | None
    due_wall: datetime | None
    rules: str


@dataclass(slots=True)
class CronStep:
    """Moving a cron on: from the tick it was due at, `due_at`, to `next_at`. The others say what became of the ticks between."""

    tenant_id: int
    id: str
    due_at: datetime
    next_at: datetime | None
    next_wall: datetime | None
    last_tick: datetime | None
    last_wall: datetime | None
    skipped_at: datetime | None
    rules: str
    error: str | None = None


@dataclass(frozen=True, slots=True)
class CronKey:
    """A cron."""

    tenant_id: int
    id: str


@dataclass(frozen=True, slots=True)
class TickKey:
    """A tick of a cron, and the run it starts."""

    tenant_id: int
    cron_id: str
    tick: datetime
    run_id: str


CRON = Statement(
    """
    select c.id, c.workflow_id, w.name as workflow, c.name, c.expression, c.timezone, c.input, c.metadata, c.priority, c.missed, c.enabled,
           c.declared, c.due_at, c.due_wall, c.last_tick, c.last_wall, c.last_run_id, c.skipped_at, c.last_error,
           c.created_at, c.updated_at
    from crons c join workflows w on w.tenant_id = c.tenant_id and w.id = c.workflow_id where c.tenant_id = $1 and c.id = $2
    """,
    CronRow,
)
# The row is locked, so that what is reckoned from it still holds when it is written.
LOCKED = Statement(
    """
    select c.id, c.workflow_id, w.name as workflow, c.name, c.expression, c.timezone, c.input, c.metadata, c.priority, c.missed, c.enabled,
           c.declared, c.due_at, c.due_wall, c.last_tick, c.last_wall, c.last_run_id, c.skipped_at, c.last_error,
           c.created_at, c.updated_at
    from crons c join workflows w on w.tenant_id = c.tenant_id and w.id = c.workflow_id where c.tenant_id = $1 and c.id = $2
    for update of c
    """,
    CronRow,
)
PAGE = Statement(
    """
    select c.id, c.workflow_id, w.name as workflow, c.name, c.expression, c.timezone, c.input, c.metadata, c.priority, c.missed, c.enabled,
           c.declared, c.due_at, c.due_wall, c.last_tick, c.last_wall, c.last_run_id, c.skipped_at, c.last_error,
           c.created_at, c.updated_at
    from crons c join workflows w on w.tenant_id = c.tenant_id and w.id = c.workflow_id
    where c.tenant_id = $1 and ($2::text is null or c.id < $2) and ($3::text is null or w.name = $3) and ($4::text is null or c.name = $4)
      and ($5::boolean is null or c.enabled = $5) and ($6::boolean is null or c.declared = $6)
      and ($7::jsonpath is null or c.metadata @@ $7)
    order by c.id desc limit $8
    """,
    CronRow,
)
DECLARED = Statement(
    """
    select c.id, c.workflow_id, w.name as workflow, c.name, c.expression, c.timezone, c.input, c.metadata, c.priority, c.missed, c.enabled,
           c.declared, c.due_at, c.due_wall, c.last_tick, c.last_wall, c.last_run_id, c.skipped_at, c.last_error,
           c.created_at, c.updated_at
    from crons c join workflows w on w.tenant_id = c.tenant_id and w.id = c.workflow_id
    where c.tenant_id = $1 and c.workflow_id = $2 order by c.id for update of c
    """,
    CronRow,
)
COUNT = "select count(*) from crons where tenant_id = $1"
INSERT = """
    insert into crons (tenant_id, id, workflow_id, name, expression, timezone, input, metadata, priority, missed, enabled, declared,
                       due_at, due_wall, rules, created_at, updated_at)
    values ($1, $2, $3, $4, $5, $6, $7, $8::jsonb, $9, $10, $11, $12, $13, $14, $15, $16, $16)
    on conflict (tenant_id, workflow_id, name, expression) do nothing returning id
"""
# Not what it has done so far.
UPDATE = """
    update crons set name = $3, expression = $4, timezone = $5, input = $6, metadata = $7::jsonb, priority = $8, missed = $9, enabled = $10,
                     declared = $11, due_at = $12, due_wall = $13, rules = $14, updated_at = $15
    where tenant_id = $1 and id = $2 and not exists (
        select from crons o
        where o.tenant_id = $1 and o.workflow_id = crons.workflow_id and o.name = $3 and o.expression = $4 and o.id <> $2
    )
    returning id
"""
KNOWN = "select id from crons where tenant_id = $1 and workflow_id = $2 and name = $3 and expression = $4"
DELETE = "delete from crons where tenant_id = $1 and id = $2 returning id"
DELETE_MANY = "delete from crons where tenant_id = $1 and id = any($2::text[])"
# What a workflow declares goes when the last endpoint that serves it has gone.
DELETE_UNSERVED = """
    delete from crons c where c.tenant_id = $1 and c.declared and not exists (
        select from routes r where r.tenant_id = c.tenant_id and r.workflow_id = c.workflow_id
    )
"""
DUE = Statement(
    """
    select tenant_id, id, workflow_id, expression, timezone, input, metadata, priority, missed, due_at, due_wall
    from crons where due_at <= $1 order by due_at limit $2
    """,
    DueCron,
)
NEXT = "select min(due_at) from crons"
# Whoever holds a cron is moving it on already; whoever has been there before left another `due_at`.
ADVANCE = Statement(
    """
    with given as (
        select * from unnest(
            $1::int[], $2::text[], $3::timestamptz[], $4::timestamptz[], $5::timestamp[], $6::timestamptz[], $7::timestamp[],
            $8::timestamptz[], $9::text[], $10::text[]
        ) as g (tenant_id, id, expected_at, next_at, next_wall, last_tick, last_wall, skipped_at, rules, error)
    ), held as materialized (
        select g.* from given g
        cross join lateral (
            select c.due_at from crons c where c.tenant_id = g.tenant_id and c.id = g.id offset 0 for update skip locked
        ) c
        where c.due_at = g.expected_at
    )
    update crons c
    set due_at = g.next_at, due_wall = g.next_wall, last_tick = coalesce(g.last_tick, c.last_tick),
        last_wall = coalesce(g.last_wall, c.last_wall), skipped_at = coalesce(g.skipped_at, c.skipped_at), rules = g.rules,
        last_error = case when g.last_tick is null then coalesce(g.error, c.last_error) end
    from held g where c.tenant_id = any (array[g.tenant_id]) and c.id = g.id
    returning c.tenant_id, c.id
    """,
    CronKey,
)
CLAIM_TICKS = Statement(
    """
    insert into cron_ticks (tenant_id, cron_id, tick, run_id)
    select * from unnest($1::int[], $2::text[], $3::timestamptz[], $4::text[]) as g (tenant_id, cron_id, tick, run_id)
    order by 1, 2, 3
    on conflict do nothing returning tenant_id, cron_id, tick, run_id
    """,
    TickKey,
)
LAST_RUNS = """
    update crons c set last_run_id = g.run_id from unnest($1::int[], $2::text[], $3::text[]) as g (tenant_id, id, run_id)
    where c.tenant_id = any (array[g.tenant_id]) and c.id = g.id
"""
OLD_RULES = Statement(
    """
    select tenant_id, id, expression, timezone, greatest(last_tick, skipped_at, updated_at) as since, last_wall, due_at, due_wall
    from crons where due_at is not null and rules < $1 order by tenant_id, id limit $2 for update skip locked
    """,
    OldCron,
)
RECKON = """
    update crons c set due_at = g.due_at, due_wall = g.due_wall, rules = $5
    from unnest($1::int[], $2::text[], $3::timestamptz[], $4::timestamp[]) as g (tenant_id, id, due_at, due_wall)
    where c.tenant_id = any (array[g.tenant_id]) and c.id = g.id
"""


async def get(db: Database | Connection, tenant_id: int, cron_id: str) -> CronRow | None:
    """A cron."""
    return CRON.first(await db.fetch(CRON.sql, tenant_id, cron_id))


async def locked(conn: Connection, tenant_id: int, cron_id: str) -> CronRow | None:
    """The same, held until the end of the transaction."""
    return LOCKED.first(await conn.fetch(LOCKED.sql, tenant_id, cron_id))


async def page(db: Database, tenant_id: int, wanted: CronFilter, before: str | None, limit: int) -> list[CronRow]:
    """Crons that match, the newest first."""
    asked = (wanted.workflow, wanted.name, wanted.enabled, wanted.declared, wanted.metadata)
    async with db.transaction() as conn:
        await conn.execute(PLAN_FOR_VALUES)
        return PAGE.read(await conn.fetch(PAGE.sql, tenant_id, before, *asked, limit))


async def of_workflow(conn: Connection, tenant_id: int, workflow_id: int) -> list[CronRow]:
    """A workflow's crons, held until the end of the transaction."""
    return DECLARED.read(await conn.fetch(DECLARED.sql, tenant_id, workflow_id))


async def count(conn: Connection, tenant_id: int) -> int:
    """How many crons a tenant has."""
    return int(await conn.fetchval(COUNT, tenant_id))


async def insert(conn: Connection, tenant_id: int, row: NewCron, now: datetime) -> bool:
    """Write a new cron; False when its workflow has one of this name and expression."""
    found = await conn.fetchval(
        INSERT, tenant_id, row.id, row.workflow_id, row.name, row.expression, row.timezone, row.input, row.metadata, row.priority,
        row.missed, row.enabled, row.declared, row.due_at, row.due_wall, row.rules, now,
    )  # fmt: skip
    return found is not None


async def known(conn: Connection, tenant_id: int, row: NewCron) -> str | None:
    """The id of the cron its workflow has of this name and expression."""
    found: str | None = await conn.fetchval(KNOWN, tenant_id, row.workflow_id, row.name, row.expression)
    return found


async def update(conn: Connection, tenant_id: int, row: NewCron, now: datetime) -> bool:
    """Write what may change of a cron; False when its workflow has another of this name and expression."""
    found = await conn.fetchval(
        UPDATE, tenant_id, row.id, row.name, row.expression, row.timezone, row.input, row.metadata, row.priority, row.missed, row.enabled,
        row.declared, row.due_at, row.due_wall, row.rules, now,
    )  # fmt: skip
    return found is not None


async def delete(db: Database, tenant_id: int, cron_id: str) -> bool:
    """Remove a cron; False when it was gone."""
    return await db.fetchval(DELETE, tenant_id, cron_id) is not None


async def delete_many(conn: Connection, tenant_id: int, cron_ids: Sequence[str]) -> None:
    """Remove crons."""
    await conn.execute(DELETE_MANY, tenant_id, list(cron_ids))


async def delete_unserved(conn: Connection, tenant_id: int) -> None:
    """Remove what workflows declare that nobody serves any more."""
    await conn.execute(DELETE_UNSERVED, tenant_id)


async def due(db: Database, now: datetime, limit: int) -> list[DueCron]:
    """Crons that are due, the longest overdue first."""
    return DUE.read(await db.fetch(DUE.sql, now, limit))


async def next_due(db: Database) -> datetime | None:
    """When the next cron is due."""
    moment: datetime | None = await db.fetchval(NEXT)
    return moment


async def advance(conn: Connection, steps: Sequence[CronStep]) -> set[tuple[int, str]]:
    """Move crons on, each from where it was seen; answers those that were still there."""
    rows = await conn.fetch(
        ADVANCE.sql,
        [s.tenant_id for s in steps],
        [s.id for s in steps],
        [s.due_at for s in steps],
        [s.next_at for s in steps],
        [s.next_wall for s in steps],
        [s.last_tick for s in steps],
        [s.last_wall for s in steps],
        [s.skipped_at for s in steps],
        [s.rules for s in steps],
        [s.error for s in steps],
    )
    return {(row.tenant_id, row.id) for row in ADVANCE.read(rows)}


async def claim_ticks(conn: Connection, ticks: Sequence[TickKey]) -> set[str]:
    """Claim ticks for runs, and note each cron's last; answers the runs whose tick had none."""
    given = [t.tenant_id for t in ticks], [t.cron_id for t in ticks], [t.tick for t in ticks], [t.run_id for t in ticks]
    won = CLAIM_TICKS.read(await conn.fetch(CLAIM_TICKS.sql, *given))
    last = {(t.tenant_id, t.cron_id): t.run_id for t in sorted(won, key=lambda t: t.tick)}
    await conn.execute(LAST_RUNS, [key[0] for key in last], [key[1] for key in last], list(last.values()))
    return {t.run_id for t in won}


async def of_old_rules(conn: Connection, rules: str, limit: int) -> list[OldCron]:
    """Crons whose next tick was reckoned by rules older than these, held until the end of the transaction."""
    return OLD_RULES.read(await conn.fetch(OLD_RULES.sql, rules, limit))


async def reckon(conn: Connection, reckoned: Sequence[tuple[OldCron, datetime, datetime]], rules: str) -> None:
    """Give crons the next tick (moment, time of the day) these rules say."""
    tenants, ids = [cron.tenant_id for cron, _, _ in reckoned], [cron.id for cron, _, _ in reckoned]
    await conn.execute(RECKON, tenants, ids, [at for _, at, _ in reckoned], [wall for _, _, wall in reckoned], rules)
