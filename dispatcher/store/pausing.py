"""Pausing workflows: what is set on them, and how long their tasks may wait."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from dispatcher.store.database import Connection, Database
from dispatcher.store.outcomes import TaskKey
from dispatcher.store.pages import Looked, Page
from dispatcher.store.statement import Statement


@dataclass(frozen=True, slots=True)
class Pause:
    """A workflow as it stands: `paused_at` None means that it is not paused."""

    id: int
    version: int
    paused_at: datetime | None
    queue_ttl_ms: int | None
    on_schedule: str


GET = Statement(
    """
    select id, version, paused_at, queue_ttl_ms, on_schedule from workflows where tenant_id = $1 and name = $2 and removed_at is null
    for update
    """,
    Pause,
)
SET = """
    update workflows set paused_at = $3, queue_ttl_ms = $4, on_schedule = $5, updated_at = $6 where tenant_id = $1 and id = $2
"""
# What waited for the pause to end has its whole schedule timeout before it; a durable task that has begun waits as long as it takes. What
# is put off has its time before it anyway.
RESUME = """
    with keys as materialized (
        select t.tenant_id, t.run_id, t.node from tasks t where t.tenant_id = $1 and t.workflow_id = $2 and t.state = 'queued'
        union all
        select t.tenant_id, t.run_id, t.node from tasks t
        where t.tenant_id = $1 and t.workflow_id = $2
          and t.state = 'gated' and t.gate_wait is null and t.parked_on is null and not t.unschedulable
        union all
        select t.tenant_id, t.run_id, t.node from tasks t where t.tenant_id = $1 and t.workflow_id = $2 and t.unschedulable
        union all
        select t.tenant_id, t.run_id, t.node from tasks t
        where t.tenant_id = $1 and t.workflow_id = $2 and t.state = 'gated' and (t.gate_wait is not null or t.parked_on is not null)
    ), waiting as materialized (
        select *, coalesce(($3::bigint[])[node + 1], ($3::bigint[])[1]) as ms from keys
    )
    update tasks t set schedule_deadline = greatest(t.due_at, $4::timestamptz) + w.ms * interval '1 millisecond'
    from waiting w
    where t.tenant_id = any (array[w.tenant_id]) and t.run_id = w.run_id and t.node = w.node
      and coalesce(t.turn, 1) = 1 and coalesce(t.log_len, 0) = 0 and t.cleanup is null
"""
RESUME_RUNS = """
    update runs set schedule_deadline = $3
    where tenant_id = $1 and workflow_id = $2 and gates is not null and gates_held < cardinality(gates) and advance_at is null
"""
# How many wait at least, counted as far as $3 in each of their places.
WAITING = """
    select count(*) from (
        (select from tasks t where t.tenant_id = $1 and t.workflow_id = $2 and t.state = 'queued' limit $3)
        union all
        (select from tasks t where t.tenant_id = $1 and t.workflow_id = $2
         and t.state = 'gated' and t.gate_wait is null and t.parked_on is null and not t.unschedulable limit $3)
        union all
        (select from tasks t where t.tenant_id = $1 and t.workflow_id = $2 and t.unschedulable limit $3)
        union all
        (select from tasks t where t.tenant_id = $1 and t.workflow_id = $2
         and t.state = 'gated' and (t.gate_wait is not null or t.parked_on is not null) limit $3)
        union all
        (select from runs r where r.tenant_id = $1 and r.workflow_id = $2 and r.gate_wait is not null limit $3)
        union all
        (select from runs r where r.tenant_id = $1 and r.workflow_id = $2
         and r.gates is not null and r.gates_held = 0 and r.gate_wait is null and r.advance_at is null limit $3)
    ) waiting
"""
# While a workflow is paused, nothing that waits for it may wait for longer than the pause says. A tenant's live tasks are gone through a
# page at a time, since no index leads to what waits for a workflow. What somebody else has at hand is seen the next time; so is a workflow
# that is being changed, lest a deadline of a resumed one be overwritten. One that is being resumed is bound no more.
BOUND = Statement(
    """
    with page as materialized (
        select t.run_id, t.node, t.workflow_id from tasks t
        where t.tenant_id = $1 and t.run_id >= $3 and (t.run_id, t.node) > ($3, $4) order by t.run_id, t.node limit $5
    ), paused as materialized (
        select id, paused_at, queue_ttl_ms * interval '1 millisecond' as ttl from workflows
        where tenant_id = $1 and id = any ($2::int[]) and paused_at is not null and queue_ttl_ms is not null
          and not exists (select from renewals n where n.tenant_id = $1 and n.workflow_id = workflows.id)
        for share skip locked
    ), changed as materialized (
        select t.tenant_id, t.run_id, t.node, t.until
        from page g join paused p on p.id = g.workflow_id
        cross join lateral (
            select t.tenant_id, t.run_id, t.node, greatest(t.due_at, p.paused_at) + p.ttl as until from tasks t
            where t.tenant_id = any (array[$1]) and t.run_id = g.run_id and t.node = g.node and t.state in ('queued', 'gated', 'scheduled')
              and t.schedule_deadline is distinct from greatest(t.due_at, p.paused_at) + p.ttl
              and coalesce(t.turn, 1) = 1 and coalesce(t.log_len, 0) = 0 and t.cleanup is null
            for update skip locked
        ) t
    ), bounded as (
        update tasks t set schedule_deadline = c.until from changed c
        where t.tenant_id = any (array[c.tenant_id]) and t.run_id = c.run_id and t.node = c.node
    )
    select run_id, node, (select count(*) from page)::int as looked from page order by run_id desc, node desc limit 1
    """,
    Looked,
)
# The same of runs of graphs that stand in line.
BOUND_RUNS = Statement(
    """
    with page as materialized (
        select r.id, r.workflow_id from runs r where r.tenant_id = $1 and r.id > $3 order by r.id limit $4
    ), paused as materialized (
        select id, paused_at, queue_ttl_ms * interval '1 millisecond' as ttl from workflows
        where tenant_id = $1 and id = any ($2::int[]) and paused_at is not null and queue_ttl_ms is not null
          and not exists (select from renewals n where n.tenant_id = $1 and n.workflow_id = workflows.id)
        for share skip locked
    ), changed as materialized (
        select r.tenant_id, r.id, r.until
        from page g join paused p on p.id = g.workflow_id
        cross join lateral (
            select r.tenant_id, r.id, greatest(r.arrived_at, p.paused_at) + p.ttl as until from runs r
            where r.tenant_id = any (array[$1]) and r.id = g.id
              and case when r.gates_held < cardinality(r.gates) and r.advance_at is null then true else false end
              and r.schedule_deadline is distinct from greatest(r.arrived_at, p.paused_at) + p.ttl
            for update skip locked
        ) r
    ), bounded as (
        update runs r set schedule_deadline = c.until from changed c where r.tenant_id = any (array[c.tenant_id]) and r.id = c.id
    )
    select id as run_id, 0::smallint as node, (select count(*) from page)::int as looked from page order by id desc limit 1
    """,
    Looked,
)
# Only what is late still: whoever resumed the workflow meanwhile has given its tasks new deadlines.
POSTPONE = """
    update tasks t set schedule_deadline = g.until
    from unnest($1::int[], $2::text[], $3::smallint[], $4::timestamptz[]) as g (tenant_id, run_id, node, until)
    where t.tenant_id = any (array[g.tenant_id]) and t.run_id = g.run_id and t.node = g.node and t.state in ('queued', 'gated', 'scheduled')
      and t.schedule_deadline <= $5
"""


async def get(db: Database | Connection, tenant_id: int, name: str) -> Pause | None:
    """A workflow, locked until the end of the transaction, if there is one."""
    return GET.first(await db.fetch(GET.sql, tenant_id, name))


async def put(conn: Connection, tenant_id: int, pause: Pause, now: datetime) -> None:
    """Write how a workflow stands."""
    await conn.execute(SET, tenant_id, pause.id, pause.paused_at, pause.queue_ttl_ms, pause.on_schedule, now)


async def waiting(conn: Connection, tenant_id: int, workflow_id: int, limit: int) -> int:
    """How many tasks, and runs in line, of a workflow wait; where they are more than `limit`, more than that."""
    return int(await conn.fetchval(WAITING, tenant_id, workflow_id, limit + 1))


async def resume(conn: Connection, tenant_id: int, workflow_id: int, schedule_ms: Sequence[int], now: datetime) -> None:
    """Count the schedule timeouts of what waits from now on; `schedule_ms` by node."""
    await conn.execute(RESUME, tenant_id, workflow_id, list(schedule_ms), now)
    await conn.execute(RESUME_RUNS, tenant_id, workflow_id, now + timedelta(milliseconds=schedule_ms[0]))


async def bound(db: Database | Connection, tenant_id: int, workflow_ids: Sequence[int], page: Page, limit: int) -> Page | None:
    """Let nothing on a page wait for longer than its pause says, of those of these workflows that are paused with a bound; answers the next
    page, None behind the last. A page is `limit` of the tenant's tasks at most, or of its runs.
    """
    if page.of_tasks:
        last = BOUND.first(await db.fetch(BOUND.sql, tenant_id, list(workflow_ids), page.run_id, page.node, limit))
    else:
        last = BOUND_RUNS.first(await db.fetch(BOUND_RUNS.sql, tenant_id, list(workflow_ids), page.run_id, limit))
    return page.behind(last, limit)


async def postpone(db: Database, tasks: Sequence[tuple[TaskKey, datetime | None]], now: datetime) -> None:
    """Let tasks that are late and wait for a pause to end wait until a moment, or for ever."""
    keys = [key for key, _ in tasks]
    await db.execute(POSTPONE, [k[0] for k in keys], [k[1] for k in keys], [k[2] for k in keys], [until for _, until in tasks], now)
