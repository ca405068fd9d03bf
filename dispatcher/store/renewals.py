"""What waits has its schedule timeout again: before its workflow is resumed, or once an endpoint takes it again after none did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from dispatcher.store.database import Connection, Database
from dispatcher.store.pages import Looked, Page
from dispatcher.store.statement import Statement


@dataclass(frozen=True, slots=True)
class Renewal:
    """A workflow of which something may have to be renewed, from a page on: all that waits, since it is to be resumed, or with `late_at`
    only what was late then.
    """

    tenant_id: int
    workflow_id: int
    workflow: str
    version: int
    late_at: datetime | None
    of_tasks: bool
    run_id: str
    node: int
    began_at: datetime
    looked_at: datetime

    @property
    def page(self) -> Page:
        """What is looked at next."""
        return Page(self.of_tasks, self.run_id, self.node)


@dataclass(frozen=True, slots=True)
class Renewed(Looked):
    """A page: how many have their time again, and how many somebody else had at hand."""

    renewed: int
    passed_over: int


# Once told, it is not told again.
RESUMING = """
    insert into renewals (tenant_id, workflow_id, began_at, looked_at) values ($1, $2, $3, $3)
    on conflict (tenant_id, workflow_id) do update
    set late_at = null, began_at = excluded.began_at, looked_at = excluded.looked_at, of_tasks = true, run_id = '', node = -1
    where renewals.late_at is not null
"""
# Where another endpoint was there all the time, what is late is so for another reason. What waits for a paused workflow waits on. What is
# late is found by its deadline, and by nothing else: a tenant may have many tasks.
RETURNED = """
    with late as materialized (
        select t.workflow_id from tasks t where t.schedule_deadline <= $3 and t.tenant_id + 0 = $1
        union
        select q.workflow_id from runs q where q.schedule_deadline <= $3 and q.tenant_id + 0 = $1
               and q.gates is not null and q.gates_held < cardinality(q.gates) and q.advance_at is null
    )
    insert into renewals as n (tenant_id, workflow_id, late_at, began_at, looked_at)
    select r.tenant_id, r.workflow_id, $3, $3, $3
    from routes r join workflows w on w.tenant_id = r.tenant_id and w.id = r.workflow_id
    where r.tenant_id = $1 and r.endpoint_id = $2 and w.paused_at is null
      and exists (select from endpoints e where e.tenant_id = $1 and e.id = $2 and e.circuit = 'closed' and not e.paused)
      and not exists (select from routes o join endpoints e on e.tenant_id = o.tenant_id and e.id = o.endpoint_id
                      where o.tenant_id = $1 and o.workflow_id = r.workflow_id and o.endpoint_id <> $2
                        and e.circuit = 'closed' and not e.paused and not e.draining)
      and r.workflow_id in (select workflow_id from late)
    on conflict (tenant_id, workflow_id) do update
    set late_at = case when n.late_at is not null then excluded.late_at end, began_at = excluded.began_at,
        looked_at = excluded.looked_at, of_tasks = true, run_id = '', node = -1
"""
DROP = "delete from renewals where tenant_id = $1 and workflow_id = $2 returning workflow_id"
LATE = "insert into renewals (tenant_id, workflow_id, late_at, began_at, looked_at) values ($1, $2, $3, $3, $3)"
# Unless somebody has changed it since it was found to be the last page.
OVER = "delete from renewals where tenant_id = $1 and workflow_id = $2 and looked_at = $3 and late_at is null returning workflow_id"
# The one that was looked at least recently.
NEXT = Statement(
    """
    select n.tenant_id, n.workflow_id, w.name as workflow, w.version, n.late_at, n.of_tasks, n.run_id, n.node, n.began_at, n.looked_at
    from renewals n join workflows w on w.tenant_id = n.tenant_id and w.id = n.workflow_id
    order by n.looked_at limit 1 for update of n skip locked
    """,
    Renewal,
)
PUT_LAST = "update renewals set looked_at = $3 where tenant_id = $1 and workflow_id = $2"
GO_ON = """
    update renewals set of_tasks = $3, run_id = $4, node = $5, looked_at = $6 where tenant_id = $1 and workflow_id = $2
"""
# A durable task that has begun waits as long as it takes. What somebody else has at hand is passed over: who holds a row of this page may
# wait for one of the next.
TASKS = Statement(
    """
    with page as materialized (
        select t.run_id, t.node, t.workflow_id = $2 and t.state in ('queued', 'gated', 'scheduled')
               and coalesce(t.turn, 1) = 1 and coalesce(t.log_len, 0) = 0 and t.cleanup is null
               and ($3::timestamptz is null or coalesce(t.schedule_deadline <= $3, false)) as waits
        from tasks t
        where t.tenant_id = $1 and t.run_id >= $4 and (t.run_id, t.node) > ($4, $5) order by t.run_id, t.node limit $6
    ), changed as materialized (
        select t.tenant_id, t.run_id, t.node, greatest(t.due_at, $7::timestamptz) + t.ms * interval '1 millisecond' as until
        from page g
        cross join lateral (
            select t.tenant_id, t.run_id, t.node, t.due_at, coalesce(($8::bigint[])[t.node + 1], ($8::bigint[])[1]) as ms
            from tasks t
            where t.tenant_id = any (array[$1]) and t.run_id = g.run_id and t.node = g.node and t.state in ('queued', 'gated', 'scheduled')
              and coalesce(t.turn, 1) = 1 and coalesce(t.log_len, 0) = 0 and t.cleanup is null
              and ($3::timestamptz is null or t.schedule_deadline <= $3)
            for update skip locked
        ) t
        where g.waits
    ), renewed as (
        update tasks t set schedule_deadline = c.until from changed c
        where t.tenant_id = any (array[c.tenant_id]) and t.run_id = c.run_id and t.node = c.node
    )
    select run_id, node, (select count(*) from page)::int as looked, (select count(*) from changed)::int as renewed,
           ((select count(*) from page where waits) - (select count(*) from changed))::int as passed_over
    from page order by run_id desc, node desc limit 1
    """,
    Renewed,
)
# Runs of graphs that stand in line.
RUNS = Statement(
    """
    with page as materialized (
        select r.id, r.workflow_id = $2 and case when r.gates_held < cardinality(r.gates) and r.advance_at is null then true else false end
               and r.cancel_reason is null and ($3::timestamptz is null or coalesce(r.schedule_deadline <= $3, false)) as waits
        from runs r where r.tenant_id = $1 and r.id > $4 order by r.id limit $5
    ), changed as materialized (
        select r.tenant_id, r.id
        from page g
        cross join lateral (
            select r.tenant_id, r.id from runs r
            where r.tenant_id = any (array[$1]) and r.id = g.id
              and case when r.gates_held < cardinality(r.gates) and r.advance_at is null then true else false end
              and r.cancel_reason is null and ($3::timestamptz is null or r.schedule_deadline <= $3)
            for update skip locked
        ) r
        where g.waits
    ), renewed as (
        update runs r set schedule_deadline = $6 from changed c where r.tenant_id = any (array[c.tenant_id]) and r.id = c.id
    )
    select id as run_id, 0::smallint as node, (select count(*) from page)::int as looked, (select count(*) from changed)::int as renewed,
           ((select count(*) from page where waits) - (select count(*) from changed))::int as passed_over
    from page order by id desc limit 1
    """,
    Renewed,
)


async def resuming(conn: Connection, tenant_id: int, workflow_id: int, now: datetime) -> None:
    """A workflow is to be resumed once all that waits for it has its time again."""
    await conn.execute(RESUMING, tenant_id, workflow_id, now)


async def returned(conn: Connection, tenant_id: int, endpoint_id: str, now: datetime) -> None:
    """An endpoint takes work again: what became late while nobody did is to have its time again. Nothing, if it does not after all."""
    await conn.execute(RETURNED, tenant_id, endpoint_id, now)


async def drop(conn: Connection, tenant_id: int, workflow_id: int) -> bool:
    """Nothing of a workflow is to have its time again any more; whether something was."""
    return await conn.fetchval(DROP, tenant_id, workflow_id) is not None


async def over(conn: Connection, renewal: Renewal) -> bool:
    """All that waits for a workflow has its time again, and it is to be resumed; False if it is not to be any more."""
    return await conn.fetchval(OVER, renewal.tenant_id, renewal.workflow_id, renewal.looked_at) is not None


async def next_one(conn: Connection) -> Renewal | None:
    """What nobody else renews, locked until the end of the transaction."""
    return NEXT.first(await conn.fetch(NEXT.sql))


async def go_on(conn: Connection, renewal: Renewal, page: Page, now: datetime) -> None:
    """Say from where on it is to be looked next."""
    await conn.execute(GO_ON, renewal.tenant_id, renewal.workflow_id, page.of_tasks, page.run_id, page.node, now)


async def put_last(db: Database, renewal: Renewal, now: datetime) -> None:
    """Look at all others before this one, from where it is."""
    await db.execute(PUT_LAST, renewal.tenant_id, renewal.workflow_id, now)


async def late(conn: Connection, renewal: Renewal, now: datetime) -> None:
    """What is late by now of a workflow that is resumed is to have its time again."""
    await conn.execute(LATE, renewal.tenant_id, renewal.workflow_id, now)


async def renew(conn: Connection, renewal: Renewal, schedule_ms: Sequence[int], now: datetime, limit: int) -> Renewed | None:
    """Count the schedule timeouts, `schedule_ms` by node, from `now` on for what waits on a page of `limit` of the tenant's tasks at most,
    or of its runs; None where there are none.
    """
    of, late_at = (renewal.tenant_id, renewal.workflow_id), renewal.late_at
    if renewal.of_tasks:
        return TASKS.first(await conn.fetch(TASKS.sql, *of, late_at, renewal.run_id, renewal.node, limit, now, list(schedule_ms)))
    until = now + timedelta(milliseconds=schedule_ms[0])
    return RUNS.first(await conn.fetch(RUNS.sql, *of, late_at, renewal.run_id, limit, until))
